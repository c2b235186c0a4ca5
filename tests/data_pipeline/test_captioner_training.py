"""A captioner of one's own: mined tokens before a small language model made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gr2.data_pipeline.caption_training import CHECKPOINT, CaptionerOptions, _objects, train_captioner
from gr2.data_pipeline.curation.caption import caption
from gr2.data_pipeline.curation.endpoint_captioner import AskConfig
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.store.shards import list_shards, read_indexed
from gr2.data_pipeline.token_miner import MinerConfig, TokenMiner, is_captioner
from gr2.errors import ConfigError, DataError

transformers = pytest.importorskip("transformers", reason="transformers comes with the extra 'caption'")


def save_language_model(folder: Path, sentences: list[str]) -> Path:
    """Save a randomly initialized GPT-2 of 64 numbers a token whose words are those of some sentences."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<end>", "<unk>", *["Caption:"], ":", *sorted({w for s in sentences for w in s.split()})]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<end>")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_embd=64, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def captions_in(shards: Path) -> list[str]:
    found = [json.loads(members["json"]) for shard in list_shards(shards) for _, members in read_indexed(shard)]
    return [window["caption"] for description in found for window in description["windows"] if window["caption"]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Video shards of a few scripted demonstrations with their instructions."""
    from gr2.benchmarks.demonstrations.record import record

    root = tmp_path_factory.mktemp("clips")
    record(out=root / "record", scenes="D", chains=4, num_workers=1)
    write_video_shards(source=root / "record", out=root / "shards", num_workers=1)
    return root / "shards"


def test_a_miner_looks_at_every_frame_and_its_time() -> None:
    torch.manual_seed(0)
    miner = TokenMiner(MinerConfig(image_size=16, num_frames=3, num_tokens=5, width=32, language_width=24))
    frames = torch.randint(256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    first = miner(frames)
    assert first.shape == (2, 5, 24)
    for change in (frames.flip(1), torch.cat((frames[:, :2], 255 - frames[:, 2:]), 1)):
        assert not torch.allclose(miner(change), first)
    with pytest.raises(ConfigError, match="patches that fill the image"):
        MinerConfig(image_size=60, language_width=8)


def test_a_captioner_trains_resumes_and_captions_shards(shards: Path, tmp_path: Path) -> None:
    words = captions_in(shards)
    language = str(save_language_model(tmp_path / "language", words))
    common = {"shards": str(shards), "language_model": language, "batch_size": 4, "num_frames": 4, "device": "cpu"}
    common |= {"language": "full", "checkpoint_every": 3, "width": 32, "depth": 1}
    whole = train_captioner(CaptionerOptions(out=tmp_path / "whole", steps=6, **common))
    assert whole["loss"] < np.log(60) and 0 <= whole["verb_accuracy"] <= 1 and is_captioner(tmp_path / "whole")
    model = str(tmp_path / "whole")
    ask = AskConfig(max_tokens=12, device="cpu")
    manifest = caption(shards=str(shards), out=tmp_path / "captioned", model=model, ask=ask, num_frames=4)
    assert manifest["generated"] + sum(manifest["unused_answers"].values()) == manifest["counts"]["records"]
    again = train_captioner(CaptionerOptions(out=tmp_path / "whole", steps=6, **common))  # nothing is left to do
    assert again == whole
    with pytest.raises(DataError, match="checkpoint of these options"):
        train_captioner(CaptionerOptions(out=tmp_path / "whole", steps=8, **(common | {"width": 64})))
    saved = torch.load(tmp_path / "whole" / CHECKPOINT, weights_only=True)
    assert saved["step"] == 6


@pytest.mark.parametrize("language", ["lora", "frozen"])
def test_the_language_model_may_stay_as_it_is_or_change_by_low_rank(language, shards: Path, tmp_path: Path) -> None:
    if language == "lora":
        pytest.importorskip("peft")
    folder = save_language_model(tmp_path / "language", captions_in(shards))
    options = CaptionerOptions(
        shards=str(shards), language_model=str(folder), out=tmp_path / "out", language=language, steps=3, batch_size=4,
        num_frames=2, device="cpu",
    )  # fmt: skip
    train_captioner(options)
    first, last = (
        transformers.AutoModelForCausalLM.from_pretrained(place).state_dict()
        for place in (folder, tmp_path / "out" / "language_model")
    )
    assert first.keys() == last.keys()
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert bool(changed) is (language == "lora") and not any("wte" in name for name in changed)


@pytest.mark.nightly
def test_it_learns_to_caption_clips_of_the_simulator(tmp_path: Path) -> None:
    """Verb and objects of what it writes of held-out clips are right more often than the most frequent ones are."""
    from gr2.benchmarks.demonstrations.record import record

    record(out=tmp_path / "record", scenes="D", chains=120, num_workers=2)
    write_video_shards(source=tmp_path / "record", out=tmp_path / "shards", num_workers=2)
    language = save_language_model(tmp_path / "language", captions_in(tmp_path / "shards"))
    found = train_captioner(
        CaptionerOptions(
            shards=str(tmp_path / "shards"), language_model=str(language), out=tmp_path / "out", language="full",
            steps=1500, batch_size=16, device="cpu",
        )
    )  # fmt: skip
    print(found)
    assert found["verb_accuracy"] > found["verb_majority"] + 0.3
    assert found["object_accuracy"] > found["object_majority"] + 0.3


def test_objects_are_nouns_and_their_colors() -> None:
    assert _objects("push the red block to the left") == ("red", "block")
