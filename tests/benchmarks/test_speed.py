"""The speed benchmark: what is compared is equal, what is counted is right, and the fast layers change no number."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gr2.benchmarks.speed.generation import DRAFTED, MASKED, RASTER, time_generation
from gr2.benchmarks.speed.generation import HUGGINGFACE as GENERATE
from gr2.benchmarks.speed.measure import Setting, Work, measure, peak_flops, peak_memory_mb
from gr2.benchmarks.speed.models import (
    PlainTransformer,
    comparable,
    layout_of,
    make_gpt2,
    make_world_model,
    num_predicted,
    training_flops_per_position,
)
from gr2.benchmarks.speed.run import PARTS, speed
from gr2.benchmarks.speed.tokenizer import OURS as OUR_VQGAN
from gr2.benchmarks.speed.tokenizer import TAMING, TamingVQGAN, time_tokenizer, unfolded
from gr2.benchmarks.speed.training import HUGGINGFACE, OURS, PLAIN, time_training
from gr2.cli.main import main
from gr2.data_pipeline.video.reader import write_video
from gr2.errors import ConfigError, EnvironmentMissing
from gr2.gr_model.act.loading import assemble
from gr2.gr_model.model import presets
from gr2.gr_model.model.gpt import count_parameters
from gr2.gr_model.model.release import save_release
from gr2.gr_model.model.world_model import WorldModel
from gr2.layers import Block, attend, with_wide_weights_by_column
from gr2.tokenizers.vqgan import VQGAN, f16_1024, small

SETTING = Setting(device=torch.device("cpu"), bfloat16=False, rounds=2)

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed (pip install 'gr2[peers]')"
)


@pytest.fixture
def no_transformers(monkeypatch):
    """Make `import transformers` fail, as where it is not installed."""
    monkeypatch.setitem(sys.modules, "transformers", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "trainin"}, "did you mean 'training'"),
        ({"only": " , "}, "got nothing"),
        ({"rounds": 0}, "positive rounds"),
        ({"threads": 0}, "positive rounds"),
        ({"seconds": float("nan")}, "positive rounds"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        speed(**options)


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentMissing, match="found none"):
        speed(only="training", device="cuda")


def test_command_times_what_it_is_asked_for(tmp_path, capsys, no_transformers):
    out = tmp_path / "new" / "speed.json"
    argv = ["benchmark", "speed", "--rounds", "1", "--only", "training,tokenizer", "--precision", "32"]
    assert main([*argv, "--json", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert set(found["training"]) == {OURS, PLAIN}
    assert found["training_bars"] == []
    assert [bar["what"].split(",")[0] for bar in found["tokenizer_bars"]] == ["encoding", "decoding"]
    assert not {"metrics", "generation"} & set(found)
    assert found["encoding"][OUR_VQGAN]["rate"]["median"] > 0
    printed = capsys.readouterr().out
    assert printed.count("the package transformers is missing") == 1
    assert main(["benchmark", "speed", "--only", "nothing"]) == 1
    assert set(PARTS) == {"control", "training", "generation", "tokenizer"}


@pytest.mark.parametrize("size", ["tiny", "S", "B", "L"])
def test_compared_model_has_the_positions_and_the_trunk_of_its_preset(size):
    preset = presets.tiny() if size == "tiny" else getattr(presets, f"size_{size.lower()}")()
    config = comparable(size, "raster", num_context=preset.max_context)
    assert layout_of(config).length == layout_of(preset).length
    assert (config.width, config.depth, config.heads) == (preset.width, preset.depth, preset.heads)
    assert config.codes_per_position == 1
    assert config.dropout == config.token_dropout == config.state_dropout == config.text_dropout == 0


def test_plain_transformer_is_as_large_as_ours_and_causal():
    config = comparable("tiny", "raster", num_context=1)
    plain = PlainTransformer(config, 90).eval()
    ours = make_world_model(config, torch.device("cpu"), 1)
    assert count_parameters(plain.trunk) == count_parameters(ours.gpt)
    tokens = torch.randint(config.codebook_size, (2, 90))
    changed = tokens.clone()
    changed[:, -1] += 1
    changed %= config.codebook_size
    with torch.no_grad():
        before, after = plain(tokens, 32), plain(changed, 32)
    assert before.shape == (2, 32, config.codebook_size)
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


@needs_transformers
def test_gpt2_is_as_large_as_ours_and_has_no_dropout():
    config = comparable("tiny", "raster", num_context=1)
    gpt2 = make_gpt2(config, 90)
    ours = make_world_model(config, torch.device("cpu"), 1)
    trunk = sum(count_parameters(part) for part in (gpt2.transformer.h, gpt2.transformer.ln_f))
    assert trunk == count_parameters(ours.gpt)
    assert all(m.p == 0 for m in gpt2.modules() if isinstance(m, torch.nn.Dropout))
    assert gpt2.config._attn_implementation == "sdpa"


def test_missing_transformers_is_one_sentence_that_names_the_extra(no_transformers):
    with pytest.raises(EnvironmentMissing, match=r"gr2\[peers\]"):
        make_gpt2(comparable("tiny", "raster", num_context=1), 90)


def test_operations_are_those_that_torch_counts():
    config = comparable("tiny", "raster", num_context=1)
    n, m = layout_of(config).length, num_predicted(config)
    plain = PlainTransformer(config, n).train()
    counter = FlopCounterMode(display=False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        plain(torch.zeros(3, n, dtype=torch.long), m).sum().backward()
    ours = training_flops_per_position(config, n, m) * 3 * n
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_training_without_transformers_is_measured_beside_torch(no_transformers, bfloat16):
    setting = Setting(device=SETTING.device, bfloat16=bfloat16, rounds=2)
    table, notes = time_training("tiny", setting, batch_size=1)
    assert set(table.rows) == {OURS, PLAIN}
    assert table.rows[PLAIN].rate.ratio is None and table.rows[OURS].rate.ratio is not None
    assert all(0 < row.rate.low <= row.rate.median <= row.rate.high for row in table.rows.values())
    assert all(row.utilization is not None and row.utilization > 0 for row in table.rows.values())
    assert "90 positions, 32 predicted" in notes[0]
    assert len(notes) == 2


@needs_transformers
def test_training_is_measured_beside_huggingface():
    table, notes = time_training("tiny", SETTING, batch_size=1)
    assert set(table.rows) == {OURS, HUGGINGFACE, PLAIN}
    assert table.rows[HUGGINGFACE].rate.ratio is None
    assert len(notes) == 1


def test_generation_is_measured_with_or_without_huggingface():
    table, notes = time_generation("tiny", SETTING)
    present = importlib.util.find_spec("transformers") is not None
    assert set(table.rows) == {RASTER, MASKED} | ({GENERATE} if present else set())
    (wall, low, high), processor = table.ratio(MASKED, RASTER)
    assert low <= wall <= high
    assert min(wall, processor[0]) > 1, "two decoding steps are faster than one for each of 33 positions"
    assert "32 to predict, 1 codes each" in notes[0] and "cut" not in notes[0]


def test_trained_model_is_timed_with_and_without_drafts(tmp_path, capsys):
    for number in range(6):
        frames = np.full((24, 64, 64, 3), 30 * (1 + number), np.uint8)
        for index in range(24):
            frames[index, 20:36, index : index + 16] = 240
        write_video(tmp_path / f"videos/{number}.mp4", frames, fps=12)
    assert main(["data", "shards", "--source", str(tmp_path / "videos"), "--out", str(tmp_path / "shards")]) == 0
    tokens = str(tmp_path / "tokens")
    assert main(["data", "tokens", "--shards", str(tmp_path / "shards"), "--out", tokens]) == 0
    shipped = assemble("pretrained").release
    for decoding in ("raster", "masked"):
        model = WorldModel(replace(shipped.model.config, decoding=decoding), codebook=shipped.model.embed.vectors[:-1])
        save_release(
            tmp_path / decoding, model, tokenizer=shipped.tokenizer, text=shipped.text, frame_step=5, control_hz=30,
            provenance={},
        )  # fmt: skip
    out = tmp_path / "speed.json"
    time = ["benchmark", "speed", "--only", "generation", "--rounds", "1", "--precision", "32", "--tokens", tokens]
    assert main([*time, "--policy", str(tmp_path / "raster"), "--json", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert set(found["generation"]) - {GENERATE} == {RASTER, DRAFTED, MASKED}
    printed = {bar["what"] for bar in found["generation_bars"]}
    assert printed >= {f"{MASKED} over {RASTER}", f"{MASKED} over {DRAFTED}"}
    note = re.search(r"6 clips; with drafts ([0-9.]+) steps a frame and ([0-9.]+) %", found["notes"][0])
    assert note is not None
    assert 0 < float(note[1]) <= 33
    assert float(note[2]) > 99
    capsys.readouterr()
    assert main([*time, "--policy", str(tmp_path / "masked")]) == 1
    assert "--model.decoding raster" in capsys.readouterr().err


def test_policy_and_tokens_come_together():
    with pytest.raises(ConfigError, match="--policy and --tokens together"):
        speed(policy="pretrained")
    with pytest.raises(ConfigError, match="where generation is timed"):
        speed(policy="pretrained", tokens=["tokens"], only="training")


def test_taming_alone_gives_our_codes_and_images():
    torch.manual_seed(0)
    ours, taming = VQGAN(small()).eval(), TamingVQGAN(small()).eval()
    torch.nn.init.normal_(ours.quantize.embedding.weight)
    taming.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        codes = ours.encode(images)
        assert len(codes.unique()) > 10
        assert torch.equal(codes, taming.encode(images))
        torch.testing.assert_close(ours.decode(codes), taming.decode(codes))


def test_unfolded_network_makes_as_many_codes():
    assert unfolded(small()).grid == small().grid
    assert unfolded(small()).patch_size == 1
    assert unfolded(f16_1024()).downsampling == 16


def test_tokenizer_is_measured_both_ways():
    encoding, decoding, _ = time_tokenizer("tiny", SETTING, batch_size=1)
    assert set(encoding.rows) == set(decoding.rows) > {OUR_VQGAN, TAMING}


def test_ratio_is_that_of_the_items():
    def one() -> int:
        torch.randn(64, 64) @ torch.randn(64, 64)
        return 1

    table = measure(
        {"a": Work(step=one), "b": Work(step=lambda: 3 * one())},
        "items/s",
        "a",
        Setting(device=SETTING.device, bfloat16=False, rounds=3),
    )
    wall, processor = table.ratio("b", "a")
    assert wall[0] == pytest.approx(3, rel=0.4) and processor[0] == pytest.approx(3, rel=0.4)
    assert table.rows["b"].rate.ratio == pytest.approx(wall, rel=0.05)
    assert "items/s" in table.rows["b"].text()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is counted by Linux alone")
def test_memory_of_a_step_is_what_it_holds_at_most():
    def step() -> int:
        torch.ones(50_000_000)  # freed at once
        torch.ones(25_000_000)
        return 1

    found = peak_memory_mb(step, SETTING.device)
    assert found == pytest.approx(200, rel=0.1)


def test_peak_of_an_unknown_device_is_not_guessed(monkeypatch):
    assert (peak_flops(SETTING) or 0) > 1e8
    setting = Setting(device=torch.device("cuda"), bfloat16=True, rounds=1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(setting) == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another Card")
    assert peak_flops(setting) is None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_attention_is_the_softmax_of_its_definition(masked, gradient):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=gradient) for n in (5, 9, 9))
    mask = torch.zeros(2, 1, 5, 9).masked_fill(torch.rand(2, 1, 5, 9) < 0.4, float("-inf")) if masked else None
    scores = q @ k.transpose(-1, -2) / 8**0.5
    expected = (scores if mask is None else scores + mask).softmax(-1) @ v
    found = attend(q, k, v, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if gradient:
        weights = torch.randn_like(found)
        for a, b in zip(
            torch.autograd.grad((found * weights).sum(), (q, k, v)),
            torch.autograd.grad((expected * weights).sum(), (q, k, v)),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_attention_in_bfloat16_is_close_to_that_in_float32():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 7, 16) for _ in range(3))
    low = [t.bfloat16().requires_grad_() for t in (q, k, v)]
    torch.testing.assert_close(attend(*low, None).float(), attend(q, k, v, None), rtol=0, atol=0.05)


@pytest.mark.parametrize("training", [False, True])
def test_block_computes_what_its_modules_compute(training):
    torch.manual_seed(0)
    block = Block(32, 4).train(training)
    x = torch.randn(2, 6, 32)
    n = block.norm_attention(x)
    q, k, v = (t.view(2, 6, 4, 8).transpose(1, 2) for t in block.attention.qkv(n).split(32, dim=-1))
    y = x + block.attention.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    expected = y + block.mlp(block.norm_mlp(y))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-5)


def test_turning_wide_weights_shares_everything_else():
    torch.manual_seed(0)
    block = Block(256, 4).eval()
    turned = with_wide_weights_by_column(block)
    x = torch.randn(1, 1, 256)
    torch.testing.assert_close(turned(x), block(x), rtol=0, atol=1e-5)
    before, after = dict(block.named_parameters()), dict(turned.named_parameters())
    changed = {name for name in before if before[name] is not after[name]}
    assert changed == {"attention.qkv.weight", "mlp.0.weight"}
    assert all(after[name].stride() == (1, len(after[name])) for name in changed)
    assert all(weight.is_contiguous() and weight.requires_grad for weight in before.values())
    small = Block(32, 4)
    assert with_wide_weights_by_column(small) is small


def test_block_drops_in_training_alone():
    torch.manual_seed(0)
    block = Block(32, 4, dropout=0.5)
    x = torch.randn(2, 6, 32)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))
