"""`gr2 benchmark claims`: what GR-2's report claims, measured in miniature, several seeds each."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ..journal import Journal
from ..side_by_side import how_many, side_by_side, threads
from .grid import FRACTION, TOKENS, Variant, choose_claims


@dataclass(frozen=True, kw_only=True)
class ClaimsOptions:
    """Options of `gr2 benchmark claims`.

    Args:
        out: folder of the demonstrations, trainings and results; `claims.json` and `claims.html` hold the verdicts.
        claims: "all", or some of pretraining, clips, video_loss, trajectories, size, augmentation, imagination,
            few_demonstrations, with commas.
        seeds: trainings of each kind, of seeds 0, 1, and so on.
        tasks: of the demonstrations and of the test: "all" (34), "demonstrated" (17), or names separated by commas.
        chains: recorded chains of up to six demonstrations in scene D.
        play_chains: chains of play in scenes A to D, which pretraining sees without actions.
        generated_scenes: scenes that are made up for the claim on augmentation.
        videos: folder of real clips of your own, for the claim on them.
        pretrain_steps: optimization steps of a pretraining.
        steps: optimization steps of a finetuning.
        batch_size: windows a step.
        starts: random starts for each task, the same for all policies.
        max_steps: time limit for each task in control steps.
        num_workers: processes for recording, and trainings side by side.
    """

    out: Path = Path("runs/claims")
    claims: str = "all"
    seeds: int = 3
    tasks: str = "all"
    chains: int = 300
    play_chains: int = 300
    generated_scenes: int = 60
    videos: Path | None = None
    pretrain_steps: int = 600
    steps: int = 1200
    batch_size: int = 64
    starts: int = 5
    max_steps: int = 360
    num_workers: int = 2

    def __post_init__(self) -> None:
        numbers = (
            self.seeds,
            self.chains,
            self.play_chains,
            self.generated_scenes,
            self.pretrain_steps,
            self.steps,
            self.batch_size,
        )
        if min(*numbers, self.starts, self.max_steps, self.num_workers) < 1:
            raise ConfigError("claims: expected 1 or more seeds, chains, steps, windows, starts and workers.")


def benchmark(options: ClaimsOptions) -> dict[str, Any]:
    """Train policies that differ in one thing and measure them from the same starts; run again to resume.

    More `seeds` go on after those that are done. An interval is over seeds and starts: where it holds zero, the claim
    is not shown here.

    Raises:
        ConfigError: an impossible number or claim.
    """
    from .verdicts import write_verdicts

    o = options
    claims = choose_claims(o.claims, clips=o.videos is not None)
    variants = list(dict.fromkeys(variant for claim in claims for variant in claim.variants))
    imagining = {variant for claim in claims if claim.imagines for variant in claim.others}
    wanted = {name for variant in variants for name in TOKENS[variant.demonstrations]}
    data = 3 + 2 * ("eighth" in wanted) + 3 * ("abc" in wanted) + ("jittered" in wanted) + 3 * ("generated" in wanted)
    data += 3 * any(v.pretraining != "none" for v in variants) + 2 * (o.videos is not None)
    _make_data(Journal(o.out, data), o, wanted, play=any(v.pretraining != "none" for v in variants))
    common: dict[str, Any] = {"num_workers": o.num_workers, "logs": o.out / "logs"}
    for seed in range(o.seeds):
        bases = {_base(o, variant, seed): variant for variant in variants if variant.pretraining != "none"}
        names = [f"{base.name}_{seed}" for base in bases]
        side_by_side(_pretrain, [(o, variant, seed) for variant in bases.values()], names, **common)
        tasks = [(o, variant, seed, variant in imagining) for variant in variants]
        side_by_side(_train, tasks, [f"{v.folder(o.out, seed).name}_{seed}" for v in variants], **common)
        verdicts = write_verdicts(o.out, claims, seeds=seed + 1)
    return verdicts


def _make_data(journal: Journal, o: ClaimsOptions, wanted: Set[str], *, play: bool) -> None:
    """Record demonstrations and play, and encode what is wanted of them."""
    from ...data_pipeline.curation.ingest import write_video_shards
    from ...gr_model.train.tokenizer_stages import tokens
    from ..demonstrations.record import record

    def encode(name: str, source: Path, **options: Any) -> None:
        shards, coded = o.out / f"{name}_shards", o.out / f"{name}_tokens"
        chosen = {"source": source, "out": shards, "num_workers": o.num_workers, **options}
        journal.run("data shards", write_video_shards, chosen, name=f"{name}: shards")
        chosen = {"shards": shards, "out": coded, "num_workers": o.num_workers}
        journal.run("data tokens", tokens, chosen, name=f"{name}: tokens")

    def demonstrate(name: str, folder: str, seed: int, **options: Any) -> None:
        chosen = {"out": o.out / folder, "num_workers": o.num_workers, "seed": seed, **options}
        journal.run("data record", record, chosen, name=folder)
        encode(name, o.out / folder)

    taught: dict[str, Any] = {"tasks": o.tasks, "play_share": 0.0}
    demonstrate("all", "demonstrations", 0, scenes="D", chains=o.chains, **taught)
    if "eighth" in wanted:
        encode("eighth", o.out / "demonstrations", part=f"0/{FRACTION}")
    if play:
        demonstrate("play", "play", 1, scenes="ABCD", chains=o.play_chains, play_share=1.0)
    if "abc" in wanted:
        demonstrate("abc", "other scenes", 2, scenes="ABC", chains=o.chains, **taught)
    if "jittered" in wanted:
        coded = {"shards": o.out / "abc_shards", "out": o.out / "jittered_tokens", "jitter": 0.3}
        journal.run("data tokens", tokens, coded, name="jittered: tokens")
    if "generated" in wanted:
        new = {"scenes": "", "generated": o.generated_scenes, "chains": o.chains}
        demonstrate("generated", "generated scenes", 3, **new, **taught)
    if o.videos is not None:
        encode("clips", o.videos)


def _base(o: ClaimsOptions, variant: Variant, seed: int) -> Path:
    """Return the folder of the pretrained model that a variant begins with; variants may share it."""
    words = "_".join(str(word).replace(" ", "_") for word in variant.base)
    return o.out / f"seed_{seed}" / f"pretrained_{words}"


def _common(o: ClaimsOptions, seed: int) -> dict[str, Any]:
    one = {"learning_rate": 1e-3, "seed": seed, "batch_size": o.batch_size}
    return one | ({"threads": threads(o.num_workers)} if threads(o.num_workers) else {})


def _pretrain(o: ClaimsOptions, variant: Variant, seed: int) -> None:
    """Pretrain the model that a variant begins with."""
    from ...gr_model.train.stages import pretrain

    sources = [o.out / "play_tokens"] + [o.out / "clips_tokens"] * (variant.pretraining == "play and clips")
    base = _base(o, variant, seed)
    seen = {"tokens": sources, "out": base, "steps": o.pretrain_steps, **variant.model, **_common(o, seed)}
    Journal(base, 1).run("pretrain", pretrain, seen)


def _train(o: ClaimsOptions, variant: Variant, seed: int, imagines: bool) -> None:
    """Finetune and measure one policy."""
    from ...gr_model.train.stages import finetune
    from ..calvin.evaluate import evaluate
    from ..imagine.run import imagine

    folder = variant.folder(o.out, seed)
    journal = Journal(folder, 2 + imagines)
    start = variant.model if variant.pretraining == "none" else {"init": _base(o, variant, seed)}
    sources = [o.out / f"{name}_tokens" for name in TOKENS[variant.demonstrations]]
    training: dict[str, Any] = {"tokens": sources, "out": folder / "policy", "steps": o.steps}
    training |= {"frame_fraction": variant.frame_fraction, "head": variant.head, **start, **_common(o, seed)}
    training |= {"chunk_length": variant.chunk_length}
    journal.run("finetune", finetune, training)
    acting = {"policy": str(folder / "policy"), "out": folder / "act", "sequences": 0, "starts": o.starts}
    acting |= {"tasks": o.tasks}
    workers = 1 if how_many(o.num_workers) > 1 else o.num_workers
    acting |= {"executed_steps": variant.executed_steps, "max_steps": o.max_steps, "num_workers": workers}
    journal.run("benchmark calvin", evaluate, acting, name="act")
    if imagines:
        imagined = {"policy": str(folder / "policy"), "out": folder / "imagine", "agreement_starts": o.starts}
        journal.run("imagine", imagine, imagined)
