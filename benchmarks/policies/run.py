"""`gr2 benchmark policies`: the systems of the field, trained on the same demonstrations, on the same episodes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ...data_pipeline.executors import worker_pool
from ...errors import ConfigError, DataError
from ..journal import Journal
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

    Without a GPU each system has one process and one thread, and `num_workers` of them go side by side: small models
    train faster so than one after the other on all cores.

    Raises:
        ConfigError: an impossible number or an unknown system.
    """
    from .table import write_table

    o, recipes = options, choose_recipes(options.policies)
    steps = dict(zip([r.name for r in recipes], _all(o, _steps, [(o, recipe) for recipe in recipes]), strict=True))
    found: dict[str, Any] = {}
    for seed in range(o.seeds):
        _all(o, _train, [(o, recipe, steps[recipe.name], seed) for recipe in recipes])
        samples = {recipe.name: steps[recipe.name] * o.batch_size for recipe in recipes}
        found = write_table(o.out, recipes, seeds=seed + 1, samples=samples)
    return found


def _processes(o: PoliciesOptions) -> int:
    """Return how many systems go side by side."""
    import torch

    return 1 if torch.cuda.is_available() else o.num_workers


def _all(o: PoliciesOptions, stage: Callable[..., int], tasks: Sequence[tuple[Any, ...]]) -> list[int]:
    """Run a stage for every task, side by side, and return what it gives, in order.

    Raises:
        Gr2Error: one failed; what the others have finished is kept.
    """
    processes = min(_processes(o), len(tasks))
    if processes == 1:
        return [stage(*task) for task in tasks]
    with worker_pool(processes) as pool, tqdm(total=len(tasks), desc=stage.__name__.strip("_"), unit="system") as bar:
        futures = [pool.submit(_quietly, stage, *task) for task in tasks]
        for future in as_completed(futures):
            future.result()
            bar.update()
        return [future.result() for future in futures]


def _quietly(stage: Callable[..., int], o: PoliciesOptions, recipe: PolicyRecipe, *more: int) -> int:
    """Run a stage with what it prints in `logs/`, since lines of several processes would mix."""
    file = o.out / "logs" / f"{'_'.join([stage.__name__.strip('_'), recipe.name, *map(str, more[1:])])}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as log, redirect_stdout(log), redirect_stderr(log):
        return stage(o, recipe, *more)


def _training(o: PoliciesOptions, recipe: PolicyRecipe, out: Path, *, steps: int, seed: int) -> dict[str, Any]:
    common = {"tokens": o.tokens, "out": out, "steps": steps, "batch_size": o.batch_size, "seed": seed}
    common |= {"tokenizer": o.tokenizer, "text": o.text, "threads": 1 if _processes(o) > 1 else 0}
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


def _train(o: PoliciesOptions, recipe: PolicyRecipe, steps: int, seed: int) -> int:
    """Train and measure one policy; return its steps."""
    from ...gr_model.train.stages import finetune

    folder = o.out / f"seed_{seed}" / recipe.name
    journal = Journal(folder, 2)
    journal.run("finetune", finetune, _training(o, recipe, folder / "policy", steps=steps, seed=seed))
    workers = 1 if _processes(o) > 1 else o.num_workers
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
    return steps
