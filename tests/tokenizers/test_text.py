"""The text encoder: parity with open_clip, safe loading, the small vocabulary, and its training."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

from gr2.benchmarks.playtable.instructions import held_out_instruction
from gr2.benchmarks.playtable.tasks import ALL_TASKS
from gr2.errors import CheckpointError, ConfigError, ShapeError
from gr2.tokenizers.text import (
    BPE_SIZE,
    UNKNOWN_ROW,
    TextConfig,
    TextEncoder,
    Vocabulary,
    tokenize,
    vocabulary_of,
)
from gr2.tokenizers.text_training import (
    EqualCaptionsClipLoss,
    TextTrainingConfig,
    drop_words,
    frame_channels,
    train_text,
)
from gr2.tokenizers.text_weights import build_text_tower, load_text_encoder

torch.set_num_threads(1)

TEXTS = ["push the red block left", "open the drawer", "Lift the BLUE block, please!", ""]
MODEL_CFG = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": BPE_SIZE, "width": 32, "heads": 2, "layers": 2},
}


def tiny_clip(quick_gelu: bool = False) -> CLIP:
    torch.manual_seed(0)
    return CLIP(
        embed_dim=16,
        vision_cfg=CLIPVisionCfg(**MODEL_CFG["vision_cfg"]),
        text_cfg=CLIPTextCfg(**MODEL_CFG["text_cfg"]),
        quick_gelu=quick_gelu,
    ).eval()


def write_folder(folder: Path, clip: CLIP, quick_gelu: bool = False) -> Path:
    folder.mkdir(parents=True)
    model_cfg = {**MODEL_CFG, **({"quick_gelu": True} if quick_gelu else {})}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def reference_features(clip: CLIP) -> np.ndarray:
    tokens = open_clip.SimpleTokenizer()(TEXTS, context_length=77)
    with torch.no_grad():
        out = clip.forward_intermediates(text=tokens, text_indices=1, normalize_intermediates=True)
    return out["text_intermediates"][-1].numpy()


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_token_features_equal_open_clip(tmp_path: Path, quick_gelu: bool, prefix: str) -> None:
    clip = tiny_clip(quick_gelu)
    encoder = load_text_encoder(f"{prefix}{write_folder(tmp_path / 'clip', clip, quick_gelu)}")
    features, mask = encoder.encode(TEXTS)
    expected = reference_features(clip)
    assert features.shape == (4, 77, 32)
    assert features.dtype == np.float32
    assert mask.sum(1).tolist() == [7, 5, 9, 2]
    np.testing.assert_allclose(features[mask], expected[mask], atol=1e-5)
    assert not features[~mask].any()
    assert (encoder.width, encoder.context_length) == (32, 77)


def test_bare_file_must_state_its_activation(tmp_path: Path) -> None:
    clip = tiny_clip(quick_gelu=True)
    (tmp_path / "gr2-test-clip.json").write_text(json.dumps(MODEL_CFG))
    open_clip.add_model_config(tmp_path / "gr2-test-clip.json")
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, path)
    with pytest.raises(ConfigError, match="architecture"):
        load_text_encoder(path)
    with pytest.raises(ConfigError, match="quick_gelu"):
        load_text_encoder(path, architecture="gr2-test-clip")
    right = load_text_encoder(path, architecture="gr2-test-clip", quick_gelu=True)
    wrong = load_text_encoder(path, architecture="gr2-test-clip", quick_gelu=False)
    features, mask = right.encode(TEXTS)
    np.testing.assert_allclose(features[mask], reference_features(clip)[mask], atol=1e-5)
    assert np.abs(wrong.encode(TEXTS)[0] - features).max() > 1e-3


def test_random_weights_are_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_folder(tmp_path / "clip", tiny_clip())
    (folder / "open_clip_model.safetensors").unlink()
    with caplog.at_level(logging.CRITICAL), pytest.raises(CheckpointError, match="expected weights"):
        load_text_encoder(folder)
    with pytest.raises(ConfigError, match="name:tag"):
        load_text_encoder("ViT-B-32")
    with pytest.raises(CheckpointError, match="check the path"):
        load_text_encoder(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b79k", False)])
def test_tags_carry_their_activation(monkeypatch: pytest.MonkeyPatch, tag: str, quick: bool) -> None:
    asked: dict[str, object] = {}

    def create_model(name: str, **options: object) -> CLIP:
        asked.update(options, name=name)
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(CheckpointError, match="without network"):
        load_text_encoder(f"ViT-B-32:{tag}")
    assert asked["force_quick_gelu"] is quick
    assert asked["require_pretrained"] is True


def small_encoder(vocabulary: Vocabulary | None = None, width: int = 32) -> TextEncoder:
    torch.manual_seed(0)
    config = TextConfig(width=width, heads=2, layers=2, context_length=12, embed_dim=16)
    return TextEncoder(build_text_tower(config, len(vocabulary) if vocabulary else BPE_SIZE), vocabulary=vocabulary)


def test_small_vocabulary_gives_the_features_of_the_whole_table() -> None:
    vocabulary = vocabulary_of(TEXTS)
    small, whole = small_encoder(vocabulary), small_encoder()
    state = small.tower.state_dict()
    table = whole.tower.token_embedding.weight.clone()
    table[torch.as_tensor(vocabulary.token_ids)] = state.pop("token_embedding.weight")[1:]
    whole.tower.load_state_dict({**state, "token_embedding.weight": table})
    np.testing.assert_allclose(small.encode(TEXTS)[0], whole.encode(TEXTS)[0], atol=1e-6)
    assert small.fingerprint != whole.fingerprint


def test_pooling_position_survives_the_small_vocabulary() -> None:
    tokens = tokenize(TEXTS, 12)
    assert torch.equal(vocabulary_of(TEXTS).rows[tokens].argmax(1), tokens.argmax(1))


def test_unknown_words_warn_and_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gr2.tokenizers.text._TOLD", set())  # other tests have warned, too
    encoder = small_encoder(vocabulary_of(TEXTS))
    with pytest.warns(UserWarning, match="zebra"):
        zebra, _ = encoder.encode(["push the zebra left"])
    with pytest.warns(UserWarning, match="violin"):
        violin, _ = encoder.encode(["push the violin left"])
    np.testing.assert_array_equal(zebra, violin)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(TEXTS[:2])


def test_each_text_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small_encoder(vocabulary_of(TEXTS))
    first, mask = encoder.encode([*TEXTS, TEXTS[0]])
    monkeypatch.setattr(encoder, "features", lambda tokens: pytest.fail("computed again"))
    again, _ = encoder.encode(TEXTS[::-1])
    np.testing.assert_array_equal(again, first[:4][::-1])
    np.testing.assert_array_equal(first[4], first[0])
    assert mask[:, 0].all()
    assert encoder.encode([])[0].shape == (0, 12, 32)
    with pytest.raises(ConfigError, match="one string"):
        encoder.encode("open the drawer")


def test_cache_is_bounded_and_never_wrong() -> None:
    vocabulary = vocabulary_of(TEXTS)
    encoder = small_encoder(vocabulary)
    encoder.cache_texts = 2
    expected = small_encoder(vocabulary).encode(TEXTS)[0]
    for _ in range(2):
        np.testing.assert_allclose(encoder.encode(TEXTS)[0], expected, atol=1e-5)
    assert len(encoder._cache) == 2


def test_long_texts_are_cut_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="are cut"):
        tokens = tokenize(["block " * 40], 12)
    assert tokens[0, -1] == BPE_SIZE - 1


def test_dropped_words_are_words() -> None:
    tokens = tokenize(TEXTS, 12)
    rows = vocabulary_of(TEXTS).rows[tokens]
    dropped = drop_words(rows, tokens, 1.0, seed=0)
    words = (tokens > 0) & (tokens < BPE_SIZE - 2)
    assert torch.equal(dropped == UNKNOWN_ROW, words)
    assert torch.equal(dropped[~words], rows[~words])
    assert torch.equal(drop_words(rows, tokens, 0.0, seed=0), rows)


def test_loss_equals_open_clip_where_captions_differ() -> None:
    images, texts = torch.nn.functional.normalize(torch.randn(2, 6, 8), dim=-1)
    scale = torch.tensor(7.0)
    ours = EqualCaptionsClipLoss()(images, texts, scale, torch.arange(6))
    torch.testing.assert_close(ours, open_clip.ClipLoss()(images, texts, scale))


def test_equal_captions_are_not_pushed_apart() -> None:
    features = torch.eye(8)[[0, 1, 2, 0]]
    features[0, 7], features[3, 7] = 0.1, -0.1  # two pairs with the same caption, a little apart
    images = features.clone().requires_grad_()
    caption_ids = torch.tensor([0, 1, 2, 0])
    equal = EqualCaptionsClipLoss()(images, features, torch.tensor(20.0), caption_ids)
    plain = open_clip.ClipLoss()(images, features, torch.tensor(20.0))
    steps = [-torch.autograd.grad(loss, images)[0][0, 7] for loss in (equal, plain)]
    assert steps[0] < 0 < steps[1]  # ours draws the first towards the last, the plain loss pushes it away


def test_frame_channels_show_change() -> None:
    frames = torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8)
    frames[0, 1, 2:4, 2:4] = 255
    channels = frame_channels(frames)
    assert channels.shape == (1, 6, 8, 8)
    assert torch.equal(channels[0, 3:].abs().sum(0) > 0, (frames[0, 1].sum(-1) > 0))
    torch.testing.assert_close(frame_channels(frames[:, 0]), channels[:, :3])


COLORS = {"red": (200, 30, 30), "blue": (30, 30, 200)}
TASKS = [f"push the {color} block {side}" for color in COLORS for side in ("left", "right")]
TINY = TextTrainingConfig(
    text=TextConfig(width=32, heads=2, layers=1, context_length=10, embed_dim=16),
    vision_width=64,
    vision_layers=1,
    warmup=10,
    learning_rate=3e-3,
)


def moving_blocks(count: int, generator: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Return before/after images of two blocks, of which one has moved."""
    frames = np.full((count, 2, 32, 32, 3), 120, np.uint8)
    captions = [TASKS[i] for i in generator.integers(0, len(TASKS), count)]
    for frame, caption in zip(frames, captions, strict=True):
        for name, color in COLORS.items():
            row, column = generator.integers(4, 24, 2)
            shift = (-4 if caption.endswith("left") else 4) if name in caption else 0
            frame[0, row : row + 4, column : column + 4] = color
            frame[1, row : row + 4, column + shift : column + shift + 4] = color
    return frames, captions


def train(out: Path, steps: int, stop_after: int | None = None) -> TextEncoder:
    return train_text(
        sample_pairs=moving_blocks,
        captions=TASKS,
        validation=moving_blocks(64, np.random.default_rng(99)),
        out=out,
        training=TINY,
        steps=steps,
        batch_size=32,
        checkpoint_every=3,
        stop_after=stop_after,
    )


def test_training_learns_what_changed(tmp_path: Path) -> None:
    encoder = train(tmp_path, 250)
    record = json.loads((tmp_path / "text.json").read_text())
    assert record["metrics"]["retrieval_top1"] > 0.7  # chance is 0.25, color or side alone 0.5
    assert (tmp_path / "text.safetensors").stat().st_size < 200_000
    loaded = load_text_encoder(tmp_path / "text.safetensors")
    np.testing.assert_array_equal(loaded.encode(TASKS)[0], encoder.encode(TASKS)[0])
    assert loaded.fingerprint == encoder.fingerprint
    assert not any(p.requires_grad for p in loaded.tower.parameters())


def test_words_that_images_never_tell_apart_stay_apart(tmp_path: Path) -> None:
    pairs = ["push the door left", "push the door right"]

    def same_images(size: int, generator: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        frames, _ = moving_blocks(size, np.random.default_rng(0))
        return frames, [pairs[i] for i in generator.integers(2, size=size)]

    encoder = train_text(
        sample_pairs=same_images, captions=pairs, validation=same_images(8, np.random.default_rng(1)),
        out=tmp_path, training=TINY, steps=80, batch_size=16,
    )  # fmt: skip
    features, mask = encoder.encode(pairs)
    typical = np.median(np.linalg.norm(features[0, mask[0]][:, None] - features[0, mask[0]][None], axis=-1))
    apart = np.linalg.norm(features[0, 4] - features[1, 4])
    assert apart > 0.8 * typical
    assert apart > 3.0  # without the word loss all features fall together: 0.7 here, 9.6 with it


def test_resuming_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 6)
    train(tmp_path / "parts", 6, stop_after=4)
    assert train(tmp_path / "parts", 6).fingerprint == whole.fingerprint


def test_single_frames_train_too_and_wrong_shapes_are_refused(tmp_path: Path) -> None:
    def singles(count: int, generator: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        frames, captions = moving_blocks(count, generator)
        return frames[:, 1], captions

    validation = singles(8, np.random.default_rng(0))
    encoder = train_text(
        sample_pairs=singles, captions=TASKS, validation=validation, out=tmp_path, training=TINY, steps=2
    )
    assert encoder.encode(TASKS[:1])[0].shape == (1, 10, 32)
    with pytest.raises(ShapeError, match="square frames"):
        train_text(sample_pairs=singles, captions=TASKS, validation=(validation[0][..., :2], []), out=tmp_path)


def test_vocabulary_must_have_the_end_of_text() -> None:
    with pytest.raises(ConfigError, match="end of text"):
        Vocabulary(np.array([0, 5]))


def test_the_shipped_encoder_of_before_is_found_by_its_fingerprint() -> None:
    newest, before = load_text_encoder("small"), load_text_encoder("small", fingerprint="b60b8e68791dca13")
    assert before.fingerprint.startswith("b60b8e68791dca13.") and before.fingerprint != newest.fingerprint
    assert load_text_encoder("small", fingerprint=before.fingerprint).fingerprint == before.fingerprint
    assert load_text_encoder("small", fingerprint="of another one").fingerprint == newest.fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newest.encode([held_out_instruction(task) for task in ALL_TASKS])  # no word is unknown
