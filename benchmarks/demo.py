"""The whole chain as one command: record, shards, tokens, pretrain, finetune with corrections, act, imagine, report.

Each stage is a sub-command of its own; here they are run one after another in one folder. Finished stages are
skipped, a stopped one resumes where it was.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data_pipeline.files import write_json
from ..errors import ConfigError, DataError
from .journal import Journal, spread

if TYPE_CHECKING:
    from ..cvae_head.kinds import HeadKind


@dataclass(frozen=True, kw_only=True)
class ChainPreset:
    """How much of everything a run makes.

    scenes: scenes of the demonstrations; tasks: "demonstrated" (17) or "all" (34); chains: recorded chains of up to
    six skills.
    tokenizer_steps, text_steps: training of the tokenizers, 0 takes the shipped ones.
    pretrain_steps, finetune_steps: optimization steps; batch_size: windows a step; head: the trajectory head; keyposes:
    whether finetuning says keyposes, too; dropout: of the trunk, for trainings that see their windows several times.
    processes: processes that share the finetuning on a machine without a GPU; small models gain little from threads.
    correction_chains: chains in which a first policy, finetuned for `imitation_steps`, drives and the expert corrects
    it (DAgger), before the finetuning on both; 0 leaves them out.
    frame_fraction: share of the finetunings' steps that predict frames too.
    starts: random starts for each task when acting; sequences: official sequences, from the first, of a policy for
    all tasks; test_chains: chains of five tasks of another; max_steps: time limit of a task [control steps].
    shown_episodes, metric_episodes: imagined episodes shown as videos and measured.
    """

    name: str
    scenes: str
    tasks: str
    chains: int
    tokenizer_steps: int
    text_steps: int
    pretrain_steps: int
    correction_chains: int
    imitation_steps: int
    finetune_steps: int
    batch_size: int
    learning_rate: float
    frame_fraction: float
    starts: int
    sequences: int
    test_chains: int
    max_steps: int
    head: HeadKind = "cvae"
    keyposes: bool = False
    processes: int = 1
    dropout: float = 0.0
    shown_episodes: int = 8
    metric_episodes: int = 34


def demo_preset() -> ChainPreset:
    """Return the quarter-hour chain: scene D, shipped tokenizers."""
    return ChainPreset(
        name="demo", scenes="D", tasks="all", chains=630, tokenizer_steps=0, text_steps=0, pretrain_steps=200,
        correction_chains=0, imitation_steps=0, finetune_steps=4000, batch_size=32, learning_rate=1e-3,
        frame_fraction=0.1, starts=2, sequences=20, test_chains=0, max_steps=360, head="flow",
        keyposes=True,
    )  # fmt: skip


def smaller_demo_preset() -> ChainPreset:
    """Return the ten-minute chain of the 17 tasks that need nothing done before them."""
    return replace(
        demo_preset(), tasks="demonstrated", chains=300, pretrain_steps=100, finetune_steps=1200, batch_size=64,
        starts=10, test_chains=10, max_steps=180, keyposes=False, processes=2,
    )  # fmt: skip


def reference_preset() -> ChainPreset:
    """Return the two-hour chain: scenes A to D, tokenizers trained from nothing, one round of corrections."""
    return ChainPreset(
        name="reference", scenes="ABCD", tasks="all", chains=1000, tokenizer_steps=3000, text_steps=500,
        pretrain_steps=600, correction_chains=300, imitation_steps=2000, finetune_steps=8000, batch_size=128,
        learning_rate=1e-3, frame_fraction=0.1, starts=20, sequences=200, test_chains=200, max_steps=360, head="flow",
        processes=2, dropout=0.1,
    )  # fmt: skip


_SHARD_MB = 18.0
"""Size of the video shards [MB]: several, as a corpus has."""


def _prepare(out: Path, preset: ChainPreset, seed: int, fresh: bool) -> None:
    """Make the run folder, or check that it holds the same run."""
    facts = out / "run.json"
    asked = {"preset": preset.name, "tasks": preset.tasks, "seed": seed}
    if fresh and out.exists():
        entries = [entry for entry in out.iterdir() if not entry.name.startswith(".")]  # the lock stays
        if entries and not facts.exists():
            raise DataError(f"{out}: not a folder of `gr2 demo`, so --fresh does not empty it; choose another --out.")
        for entry in entries:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    out.mkdir(parents=True, exist_ok=True)
    if facts.exists():
        found = {"tasks": "demonstrated"} | json.loads(facts.read_text())  # 0.1.0 knew no other
        if (out / "stages.json").exists() and any(found[key] != value for key, value in asked.items()):
            holds, wants = (", ".join(f"{key} {one[key]}" for key in asked) for one in (found, asked))
            raise DataError(f"{out}: holds a run of {holds}, asked for {wants}; add --fresh, or choose another --out.")
    packages = ("gr2", "torch", "lightning", "open_clip_torch", "taming-transformers", "decord", "webdataset",
                "pybullet", "numpy", "scipy", "daqp")  # fmt: skip
    write_json(
        facts,
        asked
        | {
            "versions": {name: _version(name) for name in packages},
            "machine": {
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "system": platform.platform(terse=True),
            },
            "scenes_trained": preset.scenes,
            "scene_tested": "D",
            "head": preset.head,
            "renderer": "TinyRenderer, built-in assets, 64 px",
            "demonstrations": "scripted",
        },
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def demo(
    *,
    out: Path = Path("runs/demo"),
    preset: Literal["demo", "reference"] = "demo",
    tasks: Literal["demonstrated", "all"] | None = None,
    videos: Path | None = None,
    fresh: bool = False,
    num_workers: int = 2,
    seed: int = 0,
) -> Path:
    """Run the whole chain, from recording demonstrations to the report; run it again to resume where it stopped.

    Args:
        out: folder of the run.
        preset: "demo" (a quarter of an hour on two cores) or "reference" (two hours, tokenizers included).
        tasks: "all" (34), or "demonstrated" (the 17 that need nothing done before them; ten minutes).
        videos: folder of your own clips, with or without captions, that pretraining sees too.
        fresh: start over: empty the folder first.
        num_workers: processes for recording and acting.
        seed: seed of everything.

    Returns:
        The report's path.
    """
    if num_workers < 1:
        raise ConfigError(f"--num-workers: expected 1 or more, got {num_workers}.")
    if videos is not None and not videos.exists():
        raise DataError(f"--videos {videos}: no such file or folder, expected clips; check the path.")
    chosen = _chosen(preset, tasks)
    _prepare(out, chosen, seed, fresh)
    began = time.monotonic()
    trains_tokenizers = chosen.tokenizer_steps > 0
    stages = 8 + 2 * trains_tokenizers + 2 * (videos is not None) + 4 * bool(chosen.correction_chains)
    journal = Journal(out, stages)
    _make_data(journal, out, chosen, videos, num_workers, seed)
    _train(journal, out, chosen, videos, num_workers, seed)
    _judge(journal, out, chosen, num_workers, seed)
    from .report.page import write_report

    report = journal_report(journal, out, write_report)
    print(
        f"\nThe report is {report}; the chain took {(time.monotonic() - began) / 60:.1f} min.",
        file=sys.stdout,
    )
    return report


def _chosen(preset: str, tasks: Literal["demonstrated", "all"] | None) -> ChainPreset:
    """Return the preset of a name, for other tasks where they are asked for."""
    if preset == "demo":
        return smaller_demo_preset() if tasks == "demonstrated" else demo_preset()
    return replace(reference_preset(), tasks=tasks or reference_preset().tasks)


def _make_data(journal: Journal, out: Path, preset: ChainPreset, videos: Path | None, workers: int, seed: int) -> None:
    from ..data_pipeline.curation.ingest import write_video_shards
    from ..gr_model.train.tokenizer_stages import tokens, train_text, train_tokenizer
    from .demonstrations.record import record

    journal.run(
        "data record", record,
        {"out": out / "record", "scenes": preset.scenes, "tasks": preset.tasks, "chains": preset.chains,
         "num_workers": workers, "seed": seed},
    )  # fmt: skip
    journal.run(
        "data shards",
        write_video_shards,
        {"source": out / "record", "out": out / "shards", "shard_megabytes": _SHARD_MB, "num_workers": workers},
    )
    tokenizer, text = "small", "small"
    if preset.tokenizer_steps:
        journal.run(
            "tokenizer train", train_tokenizer,
            {"shards": out / "shards", "out": out / "tokenizer", "steps": preset.tokenizer_steps, "seed": seed},
            name="tokenizer",
        )  # fmt: skip
        journal.run(
            "text train", train_text,
            {"shards": out / "shards", "out": out / "text", "steps": preset.text_steps, "seed": seed}, name="text",
        )  # fmt: skip
        tokenizer, text = str(out / "tokenizer"), str(out / "text")
    frozen = {"tokenizer": tokenizer, "text": text, "num_workers": workers}
    journal.run("data tokens", tokens, {"shards": out / "shards", "out": out / "tokens", **frozen})
    if videos is not None:
        journal.run(
            "data shards",
            write_video_shards,
            {"source": videos, "out": out / "video_shards"},
            name="video shards",
        )
        journal.run(
            "data tokens", tokens, {"shards": out / "video_shards", "out": out / "video_tokens", **frozen},
            name="video tokens",
        )  # fmt: skip


def _train(journal: Journal, out: Path, preset: ChainPreset, videos: Path | None, workers: int, seed: int) -> None:
    """Pretrain, finetune on demonstrations, let that policy drive while the expert corrects, finetune on both."""
    from ..cvae_head.kinds import HeadOptions
    from ..data_pipeline.curation.ingest import write_video_shards
    from ..gr_model.model.config import ModelChanges
    from ..gr_model.train.stages import finetune, pretrain
    from ..gr_model.train.tokenizer_stages import tokens
    from .demonstrations.record import record

    frozen = {"tokenizer": str(out / "tokenizer"), "text": str(out / "text")} if preset.tokenizer_steps else {}
    common: dict[str, Any] = {
        "batch_size": preset.batch_size,
        "learning_rate": preset.learning_rate,
        "seed": seed,
    } | frozen
    sources = [out / "tokens"] + ([out / "video_tokens"] if videos is not None else [])
    pretrained, final = out / "pretrain", out / "finetune"
    watching = {"tokens": sources, "out": pretrained, "steps": preset.pretrain_steps, **common}
    if preset.dropout:
        watching["model"] = ModelChanges(dropout=preset.dropout)
    journal.run("pretrain", pretrain, watching)
    common |= {"head": HeadOptions(kind=preset.head)} | ({"keyposes": True} if preset.keyposes else {})
    demonstrated = {"tokens": [out / "tokens"], "init": pretrained, **common}
    last = {"out": final, "steps": preset.finetune_steps, "frame_fraction": preset.frame_fraction}
    shared = spread(preset.processes, preset.batch_size, workers)
    if not preset.correction_chains:
        journal.run("finetune", finetune, demonstrated | last | shared)
        return
    first, corrections = out / "imitate", out / "corrections"
    imitate = {"out": first, "steps": preset.imitation_steps, "frame_fraction": preset.frame_fraction}
    journal.run("finetune", finetune, demonstrated | imitate | shared, name="imitate")
    recorded = {
        "scenes": preset.scenes,
        "tasks": preset.tasks,
        "chains": preset.correction_chains,
        "play_share": 0.0,
        "num_workers": workers,
    }
    recorded |= {"out": corrections / "record", "policy": str(first), "seed": seed + 1}
    journal.run("data record", record, recorded, name="correct")
    shards: dict[str, Any] = {"source": corrections / "record", "out": corrections / "shards"}
    shards |= {"shard_megabytes": _SHARD_MB, "num_workers": workers}
    journal.run("data shards", write_video_shards, shards, name="correction shards")
    encoded: dict[str, Any] = {
        "shards": corrections / "shards",
        "out": corrections / "tokens",
        "num_workers": workers,
        **frozen,
    }
    journal.run("data tokens", tokens, encoded, name="correction tokens")
    both = {"tokens": [out / "tokens", corrections / "tokens"], "init": first}
    journal.run("finetune", finetune, both | common | last | shared)


def _judge(journal: Journal, out: Path, preset: ChainPreset, workers: int, seed: int) -> None:
    from .calvin.evaluate import evaluate
    from .imagine.run import imagine

    every = preset.tasks == "all"  # official sequences ask for all tasks
    in_a_row = {"sequences": preset.sequences if every else 0, "chains": 0 if every else preset.test_chains}
    journal.run(
        "benchmark calvin", evaluate,
        {"policy": str(out / "finetune"), "out": out / "act", "control": "both",
         "tasks": preset.tasks, "starts": preset.starts, **in_a_row,
         "max_steps": preset.max_steps, "num_workers": workers, "seed": seed + 100},
        name="act",
    )  # fmt: skip
    imagined = {"policy": str(out / "finetune"), "out": out / "imagine", "seed": seed + 300}
    imagined |= {"episodes": preset.shown_episodes, "metric_episodes": preset.metric_episodes}
    journal.run("imagine", imagine, imagined)


def journal_report(journal: Journal, out: Path, write_report: Callable[..., Path]) -> Path:
    """Write the report; it is cheap and made again each time."""
    journal.number += 1
    print(f"\n[{journal.number}/{journal.stages}] report: gr2 report --run {out}", flush=True)
    return write_report(run=out)
