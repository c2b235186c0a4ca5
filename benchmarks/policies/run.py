"""`gr2 benchmark policies`: the systems of the field, trained on the same demonstrations, on the same episodes."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...errors import ConfigError, DataError
from ..journal import Journal
from ..side_by_side import how_many, side_by_side, threads
from .recipes import PolicyRecipe, choose_recipes

_PROBE_STEPS = 60
"""Steps that say how fast a system trains."""


@dataclass(frozen=True, kw_only=True)
class PoliciesOptions:
    """Options of `gr2 benchmark policies`.

    Args:
        tokens: folders of `gr2 data tokens` with the demonstrations, as runs/demo/tokens.
        out: folder of the trainings and results; `policies.json` and `policies.html` hold the table.
        policies: "all", or names separated by commas: gr2, gr2-cvae, gr1, act, mt-act, rt1, diffusion-unet,
            diffusion-transformer, pi0, rdt, two-speeds, openvla.
        seeds: trainings of each, of seeds 0, 1, and so on.
        steps: optimization steps of each: equal samples.
        minutes: equal time instead: each takes as many steps as fit, by how fast its first ones are; 0 is for steps.
        batch_size: windows a step.
        tokenizer: the image tokenizer that made the tokens: "small" or its folder or file.
        text: the text encoder that made the tokens.
        benchmark: calvin (PlayTable, its 34 tasks), or metaworld on tokens of its demonstrations (docs/metaworld.md).
        sequences: how many of CALVIN's 1000 official sequences.
        control: our whole-body controller or CALVIN's own.
        tasks: of Meta-World: mt10, mt50, or names separated by commas.
        starts: episodes of each of them.
        max_steps: time limit for each task in control steps (CALVIN 360, Meta-World 500).
        test_tokens: folders of demonstrations that no training saw, on which chunks are compared with holding still and
            with the mean chunk; none is for the share of `tokens` that training held out.
        num_workers: systems that are trained and measured side by side, one process each; with a GPU, processes for
            acting.
    """

    tokens: list[str]
    out: Path = Path("runs/policies")
    policies: str = "all"
    seeds: int = 3
    steps: int = 1300
    minutes: float = 0.0
    batch_size: int = 64
    tokenizer: str = "small"
    text: str = "small"
    benchmark: Literal["calvin", "metaworld"] = "calvin"
    sequences: int = 200
    control: Literal["wbc", "calvin"] = "wbc"
    tasks: str = "mt10"
    starts: int = 20
    max_steps: int | None = None
    test_tokens: list[str] = field(default_factory=list)
    num_workers: int = 2

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ConfigError("--tokens: expected at least one folder, as in --tokens runs/demo/tokens.")
        numbers = (self.seeds, self.steps, self.batch_size, self.sequences, self.starts, self.num_workers)
        if min(*numbers, 1 if self.max_steps is None else self.max_steps) < 1 or self.minutes < 0:
            raise ConfigError(
                "policies: expected 1 or more seeds, steps, windows, sequences and workers, and minutes of 0 or more."
            )


def benchmark(options: PoliciesOptions) -> dict[str, Any]:
    """Train every system and measure it; run again to resume, with more `seeds` or `policies` to go on.

    Without a GPU `num_workers` of them go side by side, one thread each.

    Raises:
        ConfigError: an impossible number, an unknown system, or too few episodes that training holds out.
    """
    from .table import write_table

    o, recipes = options, choose_recipes(options.policies)
    if not o.test_tokens:
        _expect_held_out(o.tokens)
    common: dict[str, Any] = {"num_workers": o.num_workers, "logs": o.out / "logs"}
    names = [recipe.name for recipe in recipes]
    speeds = side_by_side(_steps, [(o, r) for r in recipes], [f"speed_{name}" for name in names], **common)
    steps = dict(zip(names, speeds, strict=True))
    found: dict[str, Any] = {}
    for seed in range(o.seeds):
        tasks = [(o, recipe, steps[recipe.name], seed) for recipe in recipes]
        side_by_side(_train, tasks, [f"{name}_{seed}" for name in names], **common)
        samples = {name: steps[name] * o.batch_size for name in names}
        found = write_table(o.out, recipes, seeds=seed + 1, samples=samples)
    return found


def _expect_held_out(tokens: list[str]) -> None:
    """Refuse before hours of training what `gr2 benchmark actions` would refuse after them."""
    from ...data_pipeline.loading.token_store import TokenStore
    from ...data_pipeline.loading.token_windows import in_split
    from ...gr_model.train.options import FinetuneOptions

    store = TokenStore.open(tokens)
    share = FinetuneOptions.validation_share
    found = int((in_split(store.column("video"), "validation", share) & store.labeled).sum())
    if found < 2:
        raise ConfigError(
            f"--tokens: expected two or more episodes among the {share:.0%} that training holds out, got {found}; give "
            "other demonstrations as --test-tokens."
        )


def _training(o: PoliciesOptions, recipe: PolicyRecipe, out: Path, *, steps: int, seed: int) -> dict[str, Any]:
    common = {"tokens": o.tokens, "out": out, "steps": steps, "batch_size": o.batch_size, "seed": seed}
    common |= {"tokenizer": o.tokenizer, "text": o.text, "threads": threads(o.num_workers)}
    return common | recipe.training


def _steps(o: PoliciesOptions, recipe: PolicyRecipe) -> int:
    """Return how many steps a system takes: as many as asked for, or as fit the time."""
    if not o.minutes:
        return o.steps
    from ...gr_model.train.stages import finetune

    out = o.out / "speed" / recipe.name
    training = _training(o, recipe, out, steps=_PROBE_STEPS, seed=0)
    Journal(out, 1).run("finetune", finetune, training, name="speed")
    with (out / "metrics.csv").open(newline="") as file:
        rates = [float(row["train/sequences_per_s"]) for row in csv.DictReader(file) if row["train/sequences_per_s"]]
    if not rates:
        raise DataError(f"{out}: its metrics.csv states no speed; remove the folder and run the command again.")
    return max(1, round(60 * o.minutes * rates[-1] / o.batch_size))


def _train(o: PoliciesOptions, recipe: PolicyRecipe, steps: int, seed: int) -> None:
    """Train and measure one policy."""
    from ...gr_model.train.stages import finetune
    from ..actions.run import benchmark as benchmark_actions

    folder = o.out / f"seed_{seed}" / recipe.name
    journal = Journal(folder, 3)
    journal.run("finetune", finetune, _training(o, recipe, folder / "policy", steps=steps, seed=seed))
    workers = 1 if how_many(o.num_workers) > 1 else o.num_workers
    acting = {"policy": str(folder / "policy"), "out": folder / "act", "num_workers": workers, **recipe.acting}
    acting |= {} if o.max_steps is None else {"max_steps": o.max_steps}
    if o.benchmark == "metaworld":
        from ..metaworld.evaluate import evaluate as evaluate_metaworld

        acting |= {"tasks": o.tasks, "starts": o.starts}
        journal.run("benchmark metaworld", evaluate_metaworld, acting, name="act")
    else:
        from ..calvin.evaluate import evaluate

        acting |= {"sequences": o.sequences, "tasks": "all", "control": o.control}
        journal.run("benchmark calvin", evaluate, acting, name="act")
    chunks: dict[str, Any] = {"policy": str(folder / "policy"), "json": folder / "actions.json"}
    chunks |= {"tokens": o.test_tokens, "held_out": 0.0} if o.test_tokens else {"tokens": o.tokens}
    journal.run("benchmark actions", benchmark_actions, chunks)
