"""The systems of `gr2 benchmark policies`: each trains, loads and acts; the table gathers what was found."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gr2
from gr2.benchmarks.demonstrations.record import record
from gr2.benchmarks.imagine.imagination import Imagination
from gr2.benchmarks.journal import _arguments
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.benchmarks.policies.recipes import RECIPES, PolicyRecipe, choose_recipes
from gr2.benchmarks.policies.run import PoliciesOptions, benchmark
from gr2.cvae_head.detr import DetrDecoder, StyleEncoder
from gr2.cvae_head.dit import DiTBlock
from gr2.cvae_head.expert import ExpertBlock
from gr2.cvae_head.head import ChunkShape, TrunkShape
from gr2.cvae_head.unet import UNetDenoiser
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.errors import ConfigError
from gr2.gr_model.act.loading import load_world_model
from gr2.gr_model.train.options import FinetuneOptions
from gr2.gr_model.train.stages import finetune
from gr2.gr_model.train.tokenizer_stages import tokens as encode


def millions(*modules: nn.Module) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


def test_networks_have_the_published_sizes() -> None:
    """Of the parts whose sizes the papers or their code state, in millions of weights."""
    with torch.device("meta"):
        act = {"latent_dim": 32, "condition_dim": 512, "shape": ChunkShape(length=100, width=14), "width": 512}
        style = StyleEncoder(heads=8, num_blocks=4, **act)
        decoder = DetrDecoder(heads=8, num_blocks=4, film=False, **act)
        # ACT in LeRobot: 52 with one ResNet-18 of 11.2
        assert millions(style, decoder) == pytest.approx(52 - 11.2, rel=0.02)
        rdt = [DiTBlock(2048, 32) for _ in range(28)]
        assert millions(*rdt) == pytest.approx(1200, rel=0.03)
        expert = [ExpertBlock(1024, TrunkShape(width=2048, depth=18, heads=8)) for _ in range(18)]
        assert millions(*expert) == pytest.approx(300, rel=0.03)
        # Diffusion Policy in LeRobot, its condition of 132 numbers for PushT: 252
        unet = UNetDenoiser(ChunkShape(length=16, width=2), condition_dim=132, width=2048)
        assert millions(unet) == pytest.approx(251.5, rel=0.001)


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of a few demonstrations."""
    root = tmp_path_factory.mktemp("policies")
    record(out=root / "record", scenes="D", chains=3, num_workers=1)
    write_video_shards(source=root / "record", out=root / "shards", num_workers=1)
    encode(shards=root / "shards", out=root / "tokens")
    return root / "tokens"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_system_trains_and_acts(recipe: PolicyRecipe, demonstrated: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy"
    losses = finetune(
        FinetuneOptions(tokens=[str(demonstrated)], out=out, steps=2, batch_size=4, threads=1, **recipe.training)
    )
    assert np.isfinite(losses["action_l1_mm"])
    policy = gr2.load_policy(out, **recipe.acting)
    assert policy.model.predicts is (recipe.frame_fraction > 0)
    if not policy.model.predicts:
        with pytest.raises(ConfigError, match="trained to predict frames"):
            Imagination(load_world_model(out))
    assert policy.model.config.head.kind == recipe.head.kind
    env = PlayTable("D")
    try:
        observation = env.observe("open the drawer")
    finally:
        env.close()
    trajectory = policy.act(observation)
    policy.reset()
    again = policy.act(observation)
    assert len(trajectory.positions) == recipe.chunk_length and np.array_equal(trajectory.positions, again.positions)
    policy.reset()
    other = policy.act(replace(observation, instruction="push the red block to the left"))
    assert recipe.name != "act" or np.array_equal(other.positions, again.positions)  # it reads no text


def test_systems_are_measured_side_by_side(demonstrated: Path, tmp_path: Path, capsys) -> None:
    options = PoliciesOptions(
        tokens=[str(demonstrated)], out=tmp_path / "out", policies="act,gr2", seeds=1, steps=2, batch_size=4,
        sequences=1, max_steps=3, num_workers=1, test_tokens=[str(demonstrated)],
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"two or more episodes among the 3% .*--test-tokens"):
        benchmark(replace(options, test_tokens=[]))
    found = benchmark(options)
    assert found == json.loads((tmp_path / "out" / "policies.json").read_text())
    rows = {row["name"]: row for row in found["policies"]}
    assert list(rows) == ["act", "gr2"] and rows["act"]["samples"] == 8 and rows["act"]["by_seed"] == [0.0]
    assert rows["gr2"]["ms_per_chunk"] > 0 and rows["gr2"]["parameters"] > 1e6
    signals = rows["gr2"]["chunks"]
    assert [signal["unit"] for signal in signals.values()] == ["mm", "deg", "% wrong"]
    assert not all(signal["beats_both"] for signal in signals.values())  # after two steps
    page = (tmp_path / "out" / "policies.html").read_text()
    assert "no better than a guess: " in page and "arXiv 2304.13705" in page and "HULC" in page
    capsys.readouterr()
    benchmark(options)
    assert capsys.readouterr().out.count("done before") == 6


def test_systems_are_chosen_by_name() -> None:
    assert [recipe.name for recipe in choose_recipes("pi0, rt1")] == ["pi0", "rt1"]
    assert choose_recipes("all") == list(RECIPES) and len({recipe.name for recipe in RECIPES}) == len(RECIPES)
    with pytest.raises(ConfigError, match="diffusion-unet"):
        choose_recipes("octo")
    with pytest.raises(ConfigError, match="runs/demo/tokens"):
        PoliciesOptions(tokens=[])
    with pytest.raises(ConfigError, match="1 or more"):
        PoliciesOptions(tokens=["a"], seeds=0)


def test_the_page_states_the_options_of_every_system() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
    defaults = {entry.name: entry.default for entry in fields(FinetuneOptions)}
    for recipe in RECIPES:
        changed = {name: value for name, value in recipe.training.items() if value != defaults[name]}
        assert f"`{' '.join(_arguments(changed))}` | {recipe.differs or '-'} |" in page
