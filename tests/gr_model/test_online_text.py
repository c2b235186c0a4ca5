"""Features of texts computed while training: the same bits as from a table, kept or not, alone or among others.

Run as a program, this file is one training run on token shards: `python test_online_text.py '{"tokens": ..., ...}'`;
Lightning starts it once more for the second process.
"""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from model_cases import make_batch, make_model, small_config

from gr2.cvae_head.regression import RegressionConfig
from gr2.data_pipeline.files import array_bytes
from gr2.data_pipeline.loading.loader import BatchLoader
from gr2.data_pipeline.loading.token_store import TokenStore
from gr2.data_pipeline.loading.token_windows import TokenWindows, in_split
from gr2.data_pipeline.store.columns import video_id
from gr2.data_pipeline.store.shards import ShardWriter, finished_shards
from gr2.data_pipeline.store.stages import Tally, begin_stage
from gr2.data_pipeline.tokens import finish_token_shards
from gr2.errors import CheckpointError, ShapeError
from gr2.gr_model.model.config import CameraSpec
from gr2.gr_model.model.encoded_texts import GROUP, EncodedTexts
from gr2.gr_model.model.objectives import evaluation_metrics, training_losses
from gr2.gr_model.model.texts import TextTable
from gr2.gr_model.train.bad_samples import find_bad_samples
from gr2.gr_model.train.distributed import Distribution
from gr2.gr_model.train.loop import train
from gr2.gr_model.train.module import TrainingModule
from gr2.gr_model.train.options import FinetuneOptions, TrainingOptions
from gr2.gr_model.train.recipe import TrainingConfig
from gr2.gr_model.train.stages import finetune, pretrain
from gr2.gr_model.train.texts import give_texts
from gr2.gr_model.train.tokenizer_stages import tokenizer_facts
from gr2.tokenizers.text import TextConfig, TextEncoder, tokenize, vocabulary_of
from gr2.tokenizers.text_weights import build_text_tower, load_text_encoder
from gr2.tokenizers.weights import load_vqgan

torch.set_num_threads(1)
CPU = torch.device("cpu")
WORDS = ("push", "lift", "the", "red", "block", "drawer", "open", "left")
LONG = " ".join(WORDS * 3)
HELD_OUT = next(f"held out {i}" for i in range(1000) if in_split(np.array([video_id(f"held out {i}")], np.uint64),
                "validation", 0.03)[0])  # fmt: skip
TEXTS = sorted({"", LONG, *(f"{a} the {b} {c}" for a in WORDS[:3] for b in WORDS[3:6] for c in WORDS[4:])})


def make_encoder(width: int = 12, context_length: int = 6) -> TextEncoder:
    """A text tower of random weights over the words of the texts."""
    vocabulary = vocabulary_of(TEXTS)
    torch.manual_seed(1)
    shape = TextConfig(width=width, heads=2, layers=2, context_length=context_length, embed_dim=8)
    return TextEncoder(build_text_tower(shape, len(vocabulary)), vocabulary=vocabulary)


def make_features(encoder: TextEncoder | None = None, **options: Any) -> EncodedTexts:
    return EncodedTexts(encoder or make_encoder(), TEXTS.__getitem__, **options)


def table_of(encoder: TextEncoder, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Encode texts as training does."""
    features, mask = EncodedTexts(encoder, texts.__getitem__).of(range(len(texts)), CPU)
    return features.numpy(), mask.numpy()


pytestmark = pytest.mark.filterwarnings("ignore:Text. .* is longer than", "ignore:Text. .* are cut")


def test_a_text_has_the_same_features_kept_or_not_alone_or_among_others() -> None:
    encoder = make_encoder()
    alone = [make_features(encoder).of([number], CPU) for number in range(len(TEXTS))]
    rng = np.random.default_rng(0)
    for kept_bytes in (0, 1000, 2**20):
        texts = make_features(encoder, kept_bytes=kept_bytes)
        for size in (1, 2, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP):
            chosen = rng.integers(0, len(TEXTS), size).tolist()
            features, mask = texts.of(chosen, CPU)
            assert torch.equal(features, torch.cat([alone[number][0] for number in chosen]))
            assert torch.equal(mask, torch.cat([alone[number][1] for number in chosen]))
            assert texts.num_kept_bytes <= kept_bytes


def test_features_are_those_of_the_encoder() -> None:
    encoder = make_encoder(context_length=20)
    features, mask = make_features(encoder).of(range(len(TEXTS)), CPU)
    expected, expected_mask = encoder.encode(TEXTS)
    assert np.array_equal(mask, expected_mask) and mask.sum(1).max() == 20
    assert np.abs(features.numpy() - expected).max() < 1e-5
    assert not features.requires_grad and not features.is_inference()
    nothing, without = make_features(encoder).of([-1, 3], CPU)
    assert not nothing[0].any() and not without[0].any() and torch.equal(nothing[1], features[3])


def test_texts_asked_for_lately_are_kept_within_the_bytes() -> None:
    encoder = make_encoder()
    size = [len(f) for f in make_features(encoder)._find(range(1, 9)).values()]
    texts = make_features(encoder, kept_bytes=sum(size[:4]) * 12 * 4)
    assert len(set(size)) == 1  # else four of them would not be the bound
    texts.of([1, 2, 3, 4], CPU)
    texts.of([1, 1, 4], CPU)
    assert texts.num_encoded == 4
    texts.of([5], CPU)  # 2 has not been asked for the longest
    texts.of([3, 1, 4, 5], CPU)
    assert texts.num_encoded == 5 and texts.num_kept_bytes == texts.kept_bytes
    texts.of([2], CPU)
    assert texts.num_encoded == 6


def test_long_and_unknown_texts_are_cut_as_by_open_clip_and_reported_once() -> None:
    encoder = make_encoder()
    wanted = [LONG, "push push push push", "push push push", "lift " * 2000, "shove the red block", "shove it"]
    texts = EncodedTexts(encoder, wanted.__getitem__, kept_bytes=0)
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always")
        for _ in range(3):
            features, mask = texts.of(range(3), CPU)
        texts.of([4], CPU)
        texts.of([5], CPU)
    assert [str(w.message)[:40] for w in reported] == [
        f"Text: {LONG!r}"[:40],
        "Text: the encoder was trained without so",
    ]
    assert "is longer than 6 tokens and is cut" in str(reported[0].message)
    assert "'shove the red block'" in str(reported[1].message)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        features, mask = texts.of(range(4), CPU)
        expected, expected_mask = encoder.encode(wanted[:4])
        assert torch.equal(texts._tokens(wanted), tokenize(wanted, 6))
    assert np.array_equal(mask, expected_mask) and mask.all(1).tolist() == [True, True, False, True]
    assert np.abs(features.numpy() - expected).max() < 1e-5


def test_autocast_of_training_does_not_reach_the_encoder() -> None:
    expected, _ = make_features().of(range(8), CPU)
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = make_features().of(range(8), CPU)
    assert features.dtype == torch.float32 and torch.equal(features, expected)


@pytest.mark.parametrize("decoding", ["masked", "raster"])
@pytest.mark.parametrize("own", [True, False])
def test_losses_and_metrics_are_those_of_the_table(decoding: Any, own: bool) -> None:
    encoder = make_encoder()
    config = small_config(decoding, dropout=0.1, text_dropout=0.2)
    batch = make_batch(config, 6) | {"text_id": torch.tensor([3, 0, 3, -1, 8, TEXTS.index(LONG)])}
    models = [make_model(config), make_model(config)]
    features, mask = encoder.encode(TEXTS) if own else table_of(encoder, TEXTS)
    models[0].set_texts(TextTable(torch.from_numpy(features), torch.from_numpy(mask)))
    models[1].set_texts(make_features(encoder))
    assert models[0].texts.length == models[1].texts.length == 6
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    assert [n for n, _ in models[0].named_parameters()] == [n for n, _ in models[1].named_parameters()]
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if own else {"rtol": 0, "atol": 0}
    measured = []
    for model in models:
        metrics = evaluation_metrics(model.eval(), batch, with_actions=True, with_frames=True)
        torch.manual_seed(7)
        losses = training_losses(model.train(), batch, with_actions=True, with_frames=True)
        (losses["frame_loss"] + losses["action_loss"]).backward()
        measured.append({name: value.detach() for name, value in (metrics | losses).items()})
        others = batch | {"text_id": batch["text_id"].flip(0)}
        shuffled = evaluation_metrics(model.eval(), others, with_actions=True, with_frames=True)
        assert abs(shuffled["frame_loss"] - metrics["frame_loss"]) > 1e-4  # texts matter
    torch.testing.assert_close(measured[1], measured[0], **tolerance)
    if not own:
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None) and (a.grad is None or torch.equal(a.grad, b.grad))
    assert not encoder.tower.training and all(p.grad is None for p in encoder.tower.parameters())


def test_a_table_takes_the_place_of_an_encoder_and_a_foreign_one_is_refused() -> None:
    config = small_config()
    model = make_model(config)
    model.set_texts(make_features())
    model.set_texts(TextTable(torch.ones(2, 6, 12), torch.ones(2, 6, dtype=torch.bool)))
    assert model.texts.of([1], CPU)[0].eq(1).all()
    for width, length in ((14, 6), (12, 7)):
        with pytest.raises(ShapeError, match=f"width 12 and at most 6 positions, got width {width} and {length}"):
            model.set_texts(make_features(make_encoder(width, length)))


def test_the_sample_with_a_bad_text_is_blamed() -> None:
    encoder = make_encoder()
    assert encoder.vocabulary is not None
    row = int(encoder.vocabulary.rows[tokenize(["drawer"], 6)[0, 1]])
    encoder.tower.token_embedding.weight[row] = torch.nan
    config = small_config()
    model = make_model(config)
    model.set_texts(make_features(encoder))
    bad, good = ([n for n, text in enumerate(TEXTS) if ("drawer" in text) == wanted] for wanted in (True, False))
    batch = make_batch(config, 5) | {"text_id": torch.tensor([good[0], bad[0], good[1], bad[1], good[2]])}
    found = find_bad_samples(batch, lambda part: evaluation_metrics(
        model, part, with_actions=False, with_frames=True)["frame_loss"])  # fmt: skip
    assert found == {1: "loss nan", 3: "loss nan"}


def write_tokens(
    out: Path, texts: Sequence[str], *, facts: dict[str, Any], encoder: TextEncoder | None, steps: int = 0
) -> Path:
    """Write token shards of random codes, a text each clip; without `encoder` they hold the texts alone."""
    rng = np.random.default_rng(len(texts))
    tokens = facts["grid"][0] * facts["grid"][1]
    dtype = np.min_scalar_type(facts["codebook_size"] - 1)
    begin_stage(out, "token_shards", {}, overwrite=False)
    with ShardWriter(out, max_bytes=1 << 40) as writer:
        for i in range(len(texts)):
            members = {"json": b"{}"}
            for camera in ("static", "gripper"):
                codes = rng.integers(0, facts["codebook_size"], (12, tokens)).astype(dtype)
                members[f"codes.{camera}.npy"] = array_bytes(codes)
            for name, dim in (("states", 16), ("actions", 8)) if steps else ():
                values = rng.normal(size=(steps, dim)).astype(np.float32)
                values[:, 3:7] /= np.linalg.norm(values[:, 3:7], axis=1, keepdims=True)
                members[f"{name}.npy"] = array_bytes(values)
            row = {"frames": 12, "stride": 1, "steps": steps, "cameras": ["static", "gripper"], "text": i}
            row |= {"state_dim": 16 * bool(steps), "action_dim": 8 * bool(steps)}
            row |= {"code_bytes": tokens * np.dtype(dtype).itemsize, "video": HELD_OUT if i == 1 else f"video {i}"}
            writer.write(f"clip_{i}", members, row)
        writer.finish_shard({"sentences": list(texts)})
    names = [shard.name for shard in finished_shards(out)]
    encode = None if encoder is None else lambda part: table_of(encoder, part)
    finish_token_shards(out, {"texts": encoder is not None}, Tally(), names, facts, encode)
    return out


def small_facts() -> dict[str, Any]:
    return {"codebook_size": 20, "grid": [4, 4], "image_size": 64}


def run(
    *, tokens: str, out: str, steps: int, batch_size: int, devices: int = 1, stop_after: int | None = None,
    random: bool = False,
) -> TrainingModule:  # fmt: skip
    """Train on token shards, with their table or with the encoder, which keeps only two groups of texts."""
    torch.set_num_threads(1)
    distribution = Distribution(device="cpu", devices=devices)
    cameras = tuple(CameraSpec(name=name, grid=(4, 4)) for name in ("static", "gripper"))
    changes = {"dropout": 0.1, "text_dropout": 0.2, "scored_share": 0.5} if random else {}
    head = RegressionConfig(network="mlp", width=32)
    config = small_config("masked" if random else "raster", cameras=cameras, head=head, **changes)
    store = TokenStore.open([tokens], ["static", "gripper"], load_steps=False)
    windows = TokenWindows(store, num_frames=3, frame_step=1, chunk_length=5, context=2)
    loader = BatchLoader(
        windows, batch_size=batch_size, seed=0, rank=distribution.rank, world_size=distribution.world_size
    )
    model = make_model(config).train()
    give_texts(model, store, None if store.has_text_features else make_encoder())
    if isinstance(model.texts, EncodedTexts):
        model.texts.kept_bytes = 2 * GROUP * 5 * 12 * 4
    settings = TrainingConfig(with_actions=False, warmup=2, precision="32", weight_average=0.9)
    module = TrainingModule(model, settings, steps=steps)
    validation = [next(iter(BatchLoader(windows, batch_size=8, seed=5)))]
    train(
        module=module, loader=loader, validation=validation, out=Path(out), batch_size=batch_size, log_every=1,
        validate_every=3, checkpoint_every=1, distribution=distribution, stop_after=stop_after,
    )  # fmt: skip
    return module


def read_losses(out: Path) -> list[tuple[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return [(row["train/loss"], row["val/frame_loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give the same clips as token shards with features and without."""
    root = tmp_path_factory.mktemp("tokens")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            name: write_tokens(root / name, TEXTS, facts=small_facts(), encoder=encoder)
            for name, encoder in (("features", make_encoder()), ("texts", None))
        }


def test_training_and_a_resumed_run_repeat_the_table_bit_for_bit(folders: dict[str, Path], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 6, "batch_size": 8, "random": True}
    table = run(tokens=str(folders["features"]), out=str(tmp_path / "table"), **settings)
    whole = run(tokens=str(folders["texts"]), out=str(tmp_path / "whole"), **settings)
    for stop in (2, 5):
        run(tokens=str(folders["texts"]), out=str(tmp_path / "broken"), stop_after=stop, **settings)
    resumed = run(tokens=str(folders["texts"]), out=str(tmp_path / "broken"), **settings)
    assert isinstance(whole.model.texts, EncodedTexts)
    assert isinstance(table.model.texts, TextTable) and len(table.model.texts) == len(TEXTS)
    assert read_losses(tmp_path / "table") == read_losses(tmp_path / "whole") == read_losses(tmp_path / "broken")
    assert len(set(read_losses(tmp_path / "whole"))) == 6
    for name, tensor in table.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_two_processes_each_encode_their_own_texts(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = {"tokens": str(folders["texts"]), "steps": 6}
    run(**settings, out=str(tmp_path / "one"), batch_size=8)  # type: ignore[arg-type]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = json.dumps(settings | {"out": str(tmp_path / "two"), "batch_size": 4, "devices": 2})
    known = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "TORCHELASTIC"))}
    finished = subprocess.run(
        [sys.executable, __file__, options], env=known | {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    one, two = (np.array([row[0] for row in read_losses(tmp_path / name)], float) for name in ("one", "two"))
    assert len(one) == 6 and np.abs(one - two).max() < 1e-4


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Give two sets of robot episodes made for the shipped encoders, each with features and without."""
    root = tmp_path_factory.mktemp("corpora")
    encoder = load_text_encoder("small")
    facts = tokenizer_facts(load_vqgan("small"), encoder) | {"image_size": 64}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            name: str(write_tokens(root / name, part, facts=facts, encoder=encoder if "f" in name else None, steps=12))
            for part, names in ((TEXTS[:9], ("af", "a")), ((LONG, *TEXTS[9:20]), ("bf", "b")))
            for name in names
        }


@pytest.mark.parametrize("stage", [pretrain, finetune])
def test_stages_train_on_texts_alone_as_on_their_features(corpora: dict[str, str], tmp_path: Path, stage: Any) -> None:
    settings = {"size": "tiny", "steps": 2, "batch_size": 4, "threads": 1, "device": "cpu"}
    settings |= {"statistics": "measure"} if stage is finetune else {}
    released = []
    for names in (("af", "bf"), ("a", "b"), ("a", "bf")):
        out = tmp_path / "-".join(names)
        options = TrainingOptions if stage is pretrain else FinetuneOptions
        metrics = stage(options(tokens=[corpora[name] for name in names], out=out, **settings))
        assert np.isfinite(metrics["frame_loss"])
        released.append((out / "model.safetensors").read_bytes())
    assert released[0] == released[1] == released[2]


def test_the_encoder_must_be_that_of_the_tokens(
    corpora: dict[str, str], folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"out": tmp_path / "out", "steps": 1, "threads": 1, "device": "cpu"}
    with pytest.raises(CheckpointError, match="nowhere: expected a folder or weight file of a text encoder, got none"):
        pretrain(TrainingOptions(tokens=[corpora["a"]], text=str(tmp_path / "nowhere"), **settings))
    monkeypatch.setattr("gr2.gr_model.train.texts.load_text_encoder", lambda text, **_: make_encoder())
    with pytest.raises(
        CheckpointError, match=r"--text other: expected the text encoder of the tokens \([0-9a-f]{16}\)"
    ):
        pretrain(TrainingOptions(tokens=[corpora["a"]], text="other", **settings))
    assert not (tmp_path / "out").exists()


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
