"""What GR-2's report claims: which trainings decide it, and what is made of their results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gr2.benchmarks.claims.grid import CLAIMS, RECIPE, choose_claims
from gr2.benchmarks.claims.run import ClaimsOptions, benchmark
from gr2.benchmarks.claims.verdicts import write_verdicts
from gr2.benchmarks.metrics.statistics import over_seeds
from gr2.errors import ConfigError


def test_trainings_of_a_pair_differ_in_one_thing_and_share_what_they_can() -> None:
    variants = {variant for claim in CLAIMS for variant in claim.variants}
    assert len({variant.name for variant in variants}) == len(variants)
    for better, worse in (pair for claim in CLAIMS for pair in claim.pairs):
        differ = [name for name in better.__dataclass_fields__ if getattr(better, name) != getattr(worse, name)]
        assert len(differ) == 1
    assert RECIPE.name == "recipe" and RECIPE in variants


def test_claims_are_chosen_by_name() -> None:
    assert [claim.name for claim in choose_claims("size, video_loss", clips=False)] == ["size", "video_loss"]
    assert "clips" not in {claim.name for claim in choose_claims("all", clips=False)}
    with pytest.raises(ConfigError, match="trajectories"):
        choose_claims("sizes", clips=False)
    with pytest.raises(ConfigError, match="--videos"):
        choose_claims("clips", clips=False)
    with pytest.raises(ConfigError, match="1 or more"):
        ClaimsOptions(seeds=0)


def test_an_interval_over_seeds_is_wider_than_one_over_starts() -> None:
    apart, alike = over_seeds([[0.0] * 50, [1.0] * 50, [0.5] * 50]), over_seeds([[0.0, 1.0] * 25] * 3)
    assert apart.value == alike.value == 0.5
    assert apart.high - apart.low > alike.high - alike.low


def _pretend(folder: Path, rate: int, loss: float) -> None:
    (folder / "act").mkdir(parents=True)
    (folder / "policy").mkdir()
    lines = [json.dumps({"config": {}})]
    for i in range(100):
        result = {"task": "open_drawer", "success": i < rate, "steps": 30}
        lines.append(json.dumps({"key": f"wbc/open_drawer/{i}", "results": [result], "joint_jerk": 2.0}))
    (folder / "act" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "policy" / "metrics.csv").write_text(f"step,val/frame_loss\n1,\n2,{loss}\n")


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [((90, 50), "holds here"), ((50, 90), "the opposite holds here"), ((70, 70), "not shown here")],
)
def test_a_verdict_follows_from_the_interval(tmp_path: Path, rates: tuple[int, int], verdict: str) -> None:
    (claim,) = choose_claims("video_loss", clips=False)
    for seed in range(3):
        for variant, rate in zip(claim.variants, rates, strict=True):
            _pretend(variant.folder(tmp_path, seed), rate, 3.0)
    assert write_verdicts(tmp_path, [claim], seeds=2)["claims"][0]["differences"][0]["verdict"].startswith("too few")
    found = write_verdicts(tmp_path, [claim], seeds=3)
    assert found["claims"][0]["differences"][0]["verdict"] == verdict
    assert found["policies"]["recipe"]["success"] == rates[0] / 100
    page = (tmp_path / "claims.html").read_text()
    assert verdict in page and "no video loss" in page
    assert json.loads((tmp_path / "claims.json").read_text()) == found


@pytest.mark.parametrize(
    ("auc", "verdict"),
    [
        ([0.7, 0.6, 0.8], "holds here"),
        ([0.4, 0.3, 0.2], "the opposite holds here"),
        ([0.7, None, 0.8], "too few seeds to say"),
        ([0.7, 0.6, 0.45], "not shown here"),
    ],
)
def test_agreement_must_hold_in_every_seed(tmp_path: Path, auc: list[float | None], verdict: str) -> None:
    (claim,) = choose_claims("imagination", clips=False)
    for seed, value in enumerate(auc):
        folder = RECIPE.folder(tmp_path, seed)
        _pretend(folder, 80, 3.0)
        found = {"closer_mm": [9.0, 8.0, 10.0], "auc": None if value is None else [value, value - 0.02, value + 0.02]}
        (folder / "imagine").mkdir()
        (folder / "imagine" / "agreement.json").write_text(json.dumps(found))
    path, ranking = write_verdicts(tmp_path, [claim], seeds=3)["claims"][0]["differences"]
    assert path["verdict"] == "holds here" and ranking["verdict"] == verdict
    assert len(ranking["by_seed"]) == sum(value is not None for value in auc)
    assert "ROC" in (tmp_path / "claims.html").read_text()


@pytest.mark.nightly
def test_a_claim_is_measured_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "claims": "video_loss,trajectories",
        "chains": 8,
        "play_chains": 2,
        "pretrain_steps": 2,
        "steps": 2,
        "batch_size": 8,
    }
    options |= {"out": tmp_path, "starts": 1, "max_steps": 3, "num_workers": 1}
    found = benchmark(ClaimsOptions(**options, seeds=1))
    assert set(found["policies"]) == {
        "recipe", "no video loss in finetuning", "single steps", "trajectories of 5", "trajectories of 20",
    }  # fmt: skip
    capsys.readouterr()
    assert benchmark(ClaimsOptions(**options, seeds=1)) == found
    assert capsys.readouterr().out.count("done before") == 6 + 4 + 5 * 2
