"""The whole chain on almost nothing: every stage really runs, every file the next one needs is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gr2.benchmarks import journal as journal_module
from gr2.benchmarks.calvin.evaluate import evaluate
from gr2.benchmarks.calvin.results import summarize
from gr2.benchmarks.calvin.suite import EvaluationConfig
from gr2.benchmarks.demo import ChainPreset, _prepare, demo, demo_preset
from gr2.benchmarks.demonstrations.disturbance import Hand
from gr2.benchmarks.demonstrations.record import record
from gr2.benchmarks.imagine.run import imagine
from gr2.benchmarks.improve import ImproveOptions, improve
from gr2.benchmarks.report.page import write_report
from gr2.benchmarks.simulation.control import controller_fingerprint
from gr2.benchmarks.simulation.jobs import Job, choose_part, run_evaluation
from gr2.cvae_head.kinds import HeadOptions
from gr2.data_pipeline.curation.filters import FilterConfig
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.executors import worker_pool
from gr2.data_pipeline.store.episodes import list_episodes, read_episode, read_facts
from gr2.data_pipeline.store.shards import read_samples
from gr2.errors import CheckpointError, ConfigError, DataError
from gr2.gr_model.model.config import ModelChanges
from gr2.gr_model.train.options import FinetuneOptions, TrainingOptions
from gr2.gr_model.train.stages import finetune, pretrain
from gr2.gr_model.train.tokenizer_stages import tokens, train_text, train_tokenizer

pytestmark = pytest.mark.usefixtures("workers_at_once")


@pytest.fixture
def new_processes(workers_at_once: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the tests that are about worker processes some."""
    for pool in workers_at_once:
        monkeypatch.setattr(pool, worker_pool)


@pytest.fixture(scope="module")
def run(tmp_path_factory, workers_at_once) -> Path:
    """A run folder whose stages up to finetuning are done, with two or three optimization steps each."""
    out = tmp_path_factory.mktemp("run")
    record(out=out / "record", scenes="AD", chains=6, num_workers=1, seed=3)
    write_video_shards(source=out / "record", out=out / "shards")
    train_tokenizer(shards=out / "shards", out=out / "tokenizer", steps=3, batch_size=8)
    train_text(shards=out / "shards", out=out / "text", steps=3, batch_size=8)
    frozen = {"tokenizer": str(out / "tokenizer"), "text": str(out / "text")}
    tokens(shards=out / "shards", out=out / "tokens", **frozen)
    small = {"batch_size": 8, "threads": 1, **frozen}
    pretrain(TrainingOptions(tokens=[out / "tokens"], out=out / "pretrain", steps=3, **small))
    finetune(FinetuneOptions(tokens=[out / "tokens"], init=out / "pretrain", out=out / "finetune", steps=3, **small))
    return out


def test_recorded_episodes_are_whole(run):
    folders = list_episodes(run / "record")
    assert len(folders) >= 10
    for folder in folders:
        episode, facts = read_episode(folder), read_facts(folder)
        steps = len(episode.states)
        assert all(len(frames) == -(-steps // episode.frame_stride) for frames in episode.images.values())
        assert np.allclose(np.linalg.norm(episode.actions[:, 3:7], axis=1), 1, atol=1e-5)
        assert set(np.unique(episode.actions[:, 7])) <= {0.0, 1.0}
        assert bool(episode.instruction) == (facts["task"] is not None)
    scenes = {read_facts(folder)["scene"] for folder in folders}
    assert scenes == {"A", "D"}


def test_recording_goes_on_where_it_was_killed(run, tmp_path, new_processes):
    record(out=tmp_path / "a", scenes="D", chains=2, num_workers=1, seed=5)
    (tmp_path / "b").mkdir()
    record(out=tmp_path / "b", scenes="D", chains=2, num_workers=1, seed=5)
    first = sorted((tmp_path / "b" / "chains").glob("*.json"))[0]
    first.unlink()
    record(out=tmp_path / "b", scenes="D", chains=2, num_workers=1, seed=5)
    names = [p.name for p in list_episodes(tmp_path / "a")]
    assert names == [p.name for p in list_episodes(tmp_path / "b")]
    for name in names:
        left, right = read_episode(tmp_path / "a" / name), read_episode(tmp_path / "b" / name)
        assert np.array_equal(left.states, right.states)
        assert np.array_equal(left.images["static"], right.images["static"])


def test_chains_go_round_among_letters_and_generated_scenes(tmp_path: Path) -> None:
    record(out=tmp_path / "r", scenes="A", generated=2, chains=3, num_workers=1, seed=5, play_share=1.0)
    assert [read_facts(folder)["scene"] for folder in list_episodes(tmp_path / "r")] == ["A", "R0", "R1"]
    assert json.loads((tmp_path / "r" / "recording.json").read_text())["generated"] == 2
    with pytest.raises(ConfigError, match="--generated"):
        record(out=tmp_path / "c", generated=1, calvin_root=tmp_path, chains=1)


def test_a_policy_may_drive_before_the_expert_takes_over(run, tmp_path):
    alone, driven = tmp_path / "alone", tmp_path / "driven"
    record(out=alone, scenes="D", chains=1, num_workers=1, noise_share=0.0, seed=8)
    record(out=driven, scenes="D", chains=1, num_workers=1, noise_share=0.0, seed=8, policy=str(run / "finetune"))
    first, corrected = (read_episode(list_episodes(folder)[0]) for folder in (alone, driven))
    assert first.instruction == corrected.instruction
    apart = np.linalg.norm(first.states[:, :3] - corrected.states[0, :3], axis=1)
    assert apart.min() > 0.001 and apart[0] < 0.5, "the recording begins where the policy has got to"
    with pytest.raises(ConfigError, match="--policy-steps: expected two numbers of 1 or more, the smaller one first"):
        record(out=tmp_path / "none", scenes="D", policy=str(run / "finetune"), policy_steps=(9, 3))


def test_a_hand_that_slips_opens_once_and_the_others_stay_as_they_are():
    for seed in range(5):
        hand, steady = Hand(np.random.default_rng(seed), False, slips=True), Hand(np.random.default_rng(seed), True)
        opened = [k for k in range(100) if hand.grip(0.0) == 1.0]
        assert 4 <= len(opened) < 10 and opened == list(range(opened[0], opened[-1] + 1)) and opened[-1] < 55
        assert [steady.grip(gripper) for gripper in (0.0, 1.0, 0.0)] == [0.0, 1.0, 0.0]


def test_recording_refuses_another_configuration(run):
    with pytest.raises(DataError, match="choose another folder"):
        record(out=run / "record", scenes="D", chains=6, num_workers=1, seed=3)


def test_acting_imagining_and_the_report(run):
    results = evaluate(
        policy=str(run / "finetune"), out=run / "act", tasks="open_drawer,turn_on_led", control="both", starts=1,
        sequences=1, chains=1, max_steps=12, num_workers=1, videos="failed",
    )  # fmt: skip
    for control in ("wbc", "calvin"):
        assert set(results["controls"][control]["tasks"]) == {"open_drawer", "turn_on_led"}
        assert len(results["controls"][control]["chains"]) == len(results["controls"][control]["sequences"]) == 1
    assert len(results["policy_fingerprint"]) == 64 and results["versions"]["pybullet"]
    config = json.loads((run / "act" / "episodes.jsonl").read_text().splitlines()[0])["config"]
    assert results["controller_fingerprint"] == config["controller"] == controller_fingerprint()
    videos = list((run / "act" / "videos").glob("*.mp4"))
    failures = [r for c in results["controls"].values() for r in c["tasks"].values() if not r["success"]]
    assert len(videos) >= len(failures) > 0 and (run / "act" / "videos" / "sheet.png").is_file()
    limits = results["controls"]["wbc"]["limits"]
    assert limits["ticks"] > 0
    assert limits["position_violations"] == limits["velocity_violations"] == 0
    done = imagine(policy=str(run / "finetune"), out=run / "imagine", episodes=1, metric_episodes=2, horizon=2)
    assert done["metric_episodes"] >= 1
    metrics = json.loads((run / "imagine" / "metrics.json").read_text())
    assert [row["horizon"] for row in metrics["per_step"]] == [1, 2]
    (run / "run.json").write_text(json.dumps({"preset": "test", "seed": 0}))
    page = write_report(run=run).read_text()
    assert "open_drawer" in page or "open drawer" in page


def test_parts_of_an_evaluation_make_the_whole():
    jobs = [Job(control="wbc", kind="chain", index=i) for i in range(5)]
    assert sorted(job.index for part in ("1/2", "2/2") for job in choose_part(jobs, part)) == [0, 1, 2, 3, 4]
    for wrong in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(ConfigError, match="expected i/n"):
            choose_part(jobs, wrong)


def test_evaluation_goes_on_and_ends_the_same(run, tmp_path, new_processes):
    config = EvaluationConfig(
        policy=str(run / "finetune"), weights="", scene="D", calvin_root="", executed_steps=5, max_steps=7,
        image_px=64, renderer="tiny", fast_drawing=False, backend="gr2",
        seed=1,
    )  # fmt: skip
    jobs = [Job(control="calvin", kind="turn_on_led", index=i) for i in range(2)]
    whole = run_evaluation(config, jobs, file=tmp_path / "whole.jsonl", num_workers=1)
    part = tmp_path / "part.jsonl"
    run_evaluation(config, jobs[:1], file=part, num_workers=1)
    part.write_text(part.read_text() + '{"key": "calvin/turn_on')
    resumed = run_evaluation(config, jobs, file=part, num_workers=1)
    assert summarize(whole, ["calvin"]) == summarize(resumed, ["calvin"])
    assert len(part.read_text().splitlines()) == 3


def test_real_clips_join_the_pretraining(run, tmp_path):
    real = Path(__file__).resolve().parents[3] / "shared" / "real_samples"
    if not real.is_dir():
        pytest.skip("real clips (../shared/real_samples) are absent")
    manifest = write_video_shards(
        source=real, out=tmp_path / "shards", filters=FilterConfig(min_frames=2, min_seconds=0.0, min_motion=0.0)
    )
    wanted = {str(p.relative_to(real)) for p in real.rglob("*.mp4")} - {"edge/corrupted.mp4"}
    kept = {json.loads(s["json"])["source"] for s in read_samples(tmp_path / "shards")}
    assert all(any(name in source or source in name for source in kept) for name in wanted), (wanted, kept)
    assert manifest["counts"]["dropped"] == {"undecodable": 1}
    frozen = {"tokenizer": str(run / "tokenizer"), "text": str(run / "text")}
    tokens(shards=tmp_path / "shards", out=tmp_path / "tokens", target_fps=6.0, **frozen)
    metrics = pretrain(
        TrainingOptions(
            tokens=[run / "tokens", tmp_path / "tokens"], out=tmp_path / "p", steps=2, batch_size=8, threads=1, **frozen
        )
    )
    assert metrics["windows"] > 100


def test_another_tokenizer_is_refused(run, tmp_path):
    train_tokenizer(shards=run / "shards", out=tmp_path / "other", steps=2, batch_size=8, seed=9)
    with pytest.raises(CheckpointError, match="expected the tokenizer that made the tokens"):
        pretrain(
            TrainingOptions(
                tokens=[run / "tokens"], out=tmp_path / "p", tokenizer=str(tmp_path / "other"), steps=2, batch_size=8
            )
        )


def test_changes_of_a_size_reach_the_release_and_leave_an_initial_model_alone(run, tmp_path):
    changes, frozen = ModelChanges(decoding="raster", code_permutation=0.5), {"tokenizer": str(run / "tokenizer")}
    options = {"tokens": [run / "tokens"], "text": str(run / "text"), "batch_size": 8, "threads": 1, **frozen}
    pretrain(TrainingOptions(out=tmp_path / "p", steps=1, model=changes, **options))
    release = json.loads((tmp_path / "p/config.json").read_text())
    assert (release["model"]["decoding"], release["model"]["code_permutation"]) == ("raster", 0.5)
    pretrain(TrainingOptions(out=tmp_path / "q", steps=1, frame_step=2, **options))
    wider = json.loads((tmp_path / "q/config.json").read_text())
    assert wider["frame_step"] == 2 * release["frame_step"]
    assert 0 < wider["provenance"]["windows"] < release["provenance"]["windows"]
    with pytest.raises(ConfigError, match="--target-fps: expected a rate above 0"):
        tokens(shards=str(run / "shards"), out=tmp_path / "t", target_fps=-3.0)
    with pytest.raises(ConfigError, match="leave --model out"):
        finetune(FinetuneOptions(out=tmp_path / "f", init=tmp_path / "p", steps=1, model=changes, **options))
    with pytest.raises(CheckpointError, match="reference: expected a model trained with the tokenizer encoder"):
        finetune(FinetuneOptions(out=tmp_path / "f", init=Path("pretrained"), steps=1, **options))


def test_the_snapshot_that_acts_best_is_released(run: Path, tmp_path: Path, capsys) -> None:
    frozen = {"tokenizer": str(run / "tokenizer"), "text": str(run / "text")}
    common = {"tokens": [run / "tokens"], "out": tmp_path / "f", "batch_size": 8, "threads": 1, **frozen}
    acts = "--sequences 0 --starts 1 --tasks open_drawer --max-steps 2 --num-workers 1"
    options = FinetuneOptions(steps=3, evaluate_every=2, evaluate=acts, **common)
    finetune(options)
    snapshots = sorted((tmp_path / "f" / "evaluations").glob("step_*"))
    assert [place.name for place in snapshots] == ["step_000002", "step_000003"]
    assert all(json.loads((place / "act/results.json").read_text())["controls"]["wbc"] for place in snapshots)
    assert capsys.readouterr().out.endswith("the best of 2 evaluated snapshots is step_000003: it is released\n")
    assert not (snapshots[0] / "config.json").exists()  # beaten: its results alone are kept
    better = json.loads((snapshots[0] / "act/results.json").read_text())
    better["controls"]["wbc"]["tasks"]["open_drawer"]["success"] = 1
    (snapshots[0] / "act/results.json").write_text(json.dumps(better))
    shutil.copytree(
        tmp_path / "f", snapshots[0], dirs_exist_ok=True, ignore=shutil.ignore_patterns("evaluations", "act")
    )
    record = json.loads((snapshots[0] / "config.json").read_text())
    record["provenance"]["steps"] = 2
    (snapshots[0] / "config.json").write_text(json.dumps(record))
    finetune(options)  # finished before: measures nothing again
    assert json.loads((tmp_path / "f/config.json").read_text())["provenance"]["steps"] == 2
    with pytest.raises(ConfigError, match="use ddp"):
        FinetuneOptions(steps=3, evaluate_every=2, strategy="fsdp", **common)


def test_the_demo_runs_every_stage_once_and_then_skips_them(tmp_path, monkeypatch, capsys):
    tiny = ChainPreset(
        name="demo", scenes="D", tasks="demonstrated", chains=4, tokenizer_steps=0, text_steps=0, pretrain_steps=2,
        correction_chains=1, imitation_steps=2, finetune_steps=2, batch_size=8, learning_rate=1e-3,
        frame_fraction=0.5, starts=1, sequences=1, test_chains=1, max_steps=3, dropout=0.1, shown_episodes=1,
        metric_episodes=2,
    )  # fmt: skip
    monkeypatch.setattr("gr2.benchmarks.demo.demo_preset", lambda: tiny)
    report = demo(out=tmp_path / "run", num_workers=1)
    assert report.is_file()
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    names = ["record", "shards", "tokens", "pretrain", "imitate", "correct", "correction shards", "correction tokens"]
    assert [row["name"] for row in stages] == [*names, "finetune", "act", "imagine"]
    assert all(row["command"].startswith("gr2 ") for row in stages)
    assert stages[3]["command"].endswith("--model.dropout 0.1")
    assert json.loads((tmp_path / "run/finetune/config.json").read_text())["model"]["dropout"] == 0.1
    capsys.readouterr()
    demo(out=tmp_path / "run", num_workers=1)
    assert capsys.readouterr().out.count("done before") == len(stages)
    with pytest.raises(DataError, match="add --fresh"):
        demo(out=tmp_path / "run", num_workers=1, seed=1)
    monkeypatch.undo()
    with pytest.raises(DataError, match="tasks demonstrated, seed 0, asked for preset demo, tasks all"):
        demo(out=tmp_path / "run", num_workers=1, tasks="all")


def test_fresh_takes_a_new_folder_that_holds_the_lock_of_its_command_alone(tmp_path: Path) -> None:
    (tmp_path / ".gr2.lock").touch()
    _prepare(tmp_path, demo_preset(), 0, fresh=True)
    assert (tmp_path / "run.json").is_file()
    (tmp_path / "tokens").mkdir()
    _prepare(tmp_path, demo_preset(), 0, fresh=True)
    assert (tmp_path / ".gr2.lock").exists() and not (tmp_path / "tokens").exists()
    (tmp_path / "run.json").rename(tmp_path / "notes.json")
    with pytest.raises(DataError, match="not a folder of `gr2 demo`"):
        _prepare(tmp_path, demo_preset(), 0, fresh=True)


def test_rounds_measure_correct_and_finetune_and_go_on(run: Path, tmp_path: Path, capsys) -> None:
    options = {"policy": str(run / "finetune"), "tokens": [run / "tokens"], "out": tmp_path / "improve"}
    options |= {"scenes": "D", "chains": 1, "steps": 2, "batch_size": 8, "starts": 0, "sequences": 1, "max_steps": 3}
    rows = json.loads(improve(ImproveOptions(**options, rounds=1, num_workers=1)).read_text())
    assert [row["round"] for row in rows] == [0, 1] and rows[0]["weights"] != rows[1]["weights"]
    assert rows[0]["average_length"] == 0 and rows[0]["sequences"] == 1 and rows[1]["corrections"] >= 0
    assert len(rows[0]["most_failures"]) == 1
    recording = json.loads((tmp_path / "improve" / "round_0" / "record" / "recording.json").read_text())
    failed = next(iter(rows[0]["most_failures"]))
    stages = {row["name"]: row["command"] for row in json.loads((tmp_path / "improve" / "stages.json").read_text())}
    for kept in (run / "tokens", tmp_path / "improve" / "round_0" / "tokens"):
        assert str(kept) in stages["round 0: finetune"]
    assert "emphasis" not in json.loads((run / "record" / "recording.json").read_text())  # as in 0.1.0
    assert recording["emphasis"][failed] == 1.2 and min(recording["emphasis"].values()) == 0.7  # others: not tried
    capsys.readouterr()
    improve(ImproveOptions(**options, rounds=1, num_workers=1))
    assert capsys.readouterr().out.count("done before") == 6
    with pytest.raises(DataError, match="another --out"):
        improve(ImproveOptions(**options, rounds=1, num_workers=1, seed=1))
    with pytest.raises(DataError, match=r"results.json"):
        record(out=tmp_path / "r", chains=1, emphasis=tmp_path / "improve" / "improve.json")


def test_training_on_two_processes_is_a_command_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []
    monkeypatch.setattr(
        journal_module, "run_apart", lambda command, out: commands.append(command) or {"action_l1_mm": 9.0}
    )
    journal = journal_module.Journal(tmp_path, 2)
    options = {"tokens": [tmp_path / "a b"], "out": tmp_path / "x", **journal_module.spread(2, 64, 2)}
    assert journal.run("finetune", lambda **_: pytest.fail("in this process"), options) == {"action_l1_mm": 9.0}
    assert commands[0].endswith("--devices 2 --threads 1 --batch-size 32") and journal.rows[0]["command"] == commands[0]
    assert journal_module.spread(2, 64, 1) == journal_module.spread(1, 32, 8) == {}


def test_a_stage_is_written_as_the_command_that_repeats_it(tmp_path: Path) -> None:
    journal = journal_module.Journal(tmp_path, 1)
    options = {"out": tmp_path / "a b", "batch_size": 8, "head": HeadOptions(kind="flow", steps=4), "x": HeadOptions()}
    journal.run("finetune", lambda **_: {}, options)
    assert journal.rows[0]["command"] == (
        f"gr2 finetune --out '{tmp_path}/a b' --batch-size 8 --head.kind flow --head.steps 4"
    )


def test_a_stage_that_runs_again_makes_later_ones_stale(tmp_path: Path) -> None:
    ran = []
    for steps in (1, 1, 2):
        journal = journal_module.Journal(tmp_path, 3)
        for name, options in (("record", {}), ("train", {"steps": steps}), ("act", {"starts": 3})):
            journal.run(name, lambda name=name, **_: ran.append(name), {"out": tmp_path / name, **options})
    assert ran == ["record", "train", "act", "train", "act"]
    assert [row["name"] for row in journal.rows] == ["record", "train", "act"]


def test_a_command_of_its_own_gives_its_metrics_or_its_status(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/action_l1_mm\n1,2.0,9.5\n2,1.0,\n")
    assert journal_module.run_apart("gr2 --version", tmp_path) == {"action_l1_mm": 9.5}
    with pytest.raises(SystemExit, match="2"):
        journal_module.run_apart("gr2 finetun", tmp_path)
