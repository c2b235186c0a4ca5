"""The report page: every metric equals its input, nothing comes from outside, missing parts are tolerated."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from fractions import Fraction
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from gr2.benchmarks.metrics.published import ABCD_D
from gr2.benchmarks.metrics.statistics import bootstrap_mean, paired_difference, wilson_interval
from gr2.benchmarks.report.inputs import read_run
from gr2.benchmarks.report.media import encode_mp4
from gr2.benchmarks.report.page import SECTIONS, write_report
from gr2.errors import DataError

TASKS = [
    "open_drawer",
    "close_drawer",
    "move_slider_left",
    "move_slider_right",
    "turn_on_lightbulb",
    "turn_off_lightbulb",
    "turn_on_led",
    "turn_off_led",
    "lift_red_block_table",
    "lift_blue_block_table",
    "lift_pink_block_table",
    "push_red_block_left",
    "push_red_block_right",
    "push_blue_block_left",
    "push_blue_block_right",
    "push_pink_block_left",
    "push_pink_block_right",
]
INSTRUCTIONS = (
    "open the drawer",
    "push the <red> block to the left",
    "turn on the light bulb",
    "lift the blue block",
)


def make_run(folder: Path, *, episodes: int = 2) -> Path:
    """Write a synthetic run folder with every part that a report shows."""
    rng = np.random.default_rng(0)
    _write_overview(folder)
    for stage in ("pretrain", "finetune"):
        _write_curves(folder / stage / "metrics.csv", rng, acting=stage == "finetune")
    controls = {name: _control(rng, level) for name, level in (("wbc", 0.88), ("calvin", 0.8))}
    controls["wbc"]["limits"] = {
        "ticks": 48211,
        "position_violations": 0,
        "velocity_violations": 0,
        "min_position_margin_rad": 0.0312,
        "max_velocity_ratio": 0.973,
    }
    act = {"controls": controls, "executed_steps": 5, "chunk_length": 10, "max_steps": 360, "seed": 0}
    _write(folder / "act/results.json", act)
    _write(folder / "imagine/metrics.json", _video_metrics(rng))
    _write_episodes(folder / "imagine", rng, episodes)
    return folder


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_overview(folder: Path) -> None:
    names = ["record", "shards", "tokenizer", "pretrain", "finetune", "imagine", "act"]
    seconds = [402.4, 12.1, 551.0, 310.2, 745.9, 41.3, 208.8]
    stages = [
        {
            "name": name,
            "command": f"gr2 {name} --run runs/demo --seed 0",
            "seconds": time,
            "started_at": f"2026-01-02T10:{10 + i}:00",
            "summary": {"frames": 16645, "rate": "41 a second"},
        }
        for i, (name, time) in enumerate(zip(names, seconds, strict=True))
    ]
    _write(folder / "stages.json", stages)
    versions = {"gr2": "0.1.0", "torch": "2.9.1", "numpy": "2.3.1", "pybullet": "3.2.7"}
    machine = {"cores": 2, "processor": "x86_64", "memory_gib": 23, "python": "3.11.9", "accelerator": "none"}
    run = {
        "preset": "tiny",
        "seed": 0,
        "versions": versions,
        "machine": machine,
        "scenes_trained": "D",
        "scene_tested": "D",
        "renderer": "TinyRenderer",
        "demonstrations": "scripted",
    }
    _write(folder / "run.json", run)
    counts = {"records": 2250, "kept": 1938, "dropped": {"expert_failed": 288, "too_short": 17, "no_motion": 7}}
    _write(folder / "shards/manifest.json", counts)


def _write_curves(path: Path, rng: np.random.Generator, *, acting: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["epoch", "step", "lr-AdamW", "train/loss", "train/frame_loss", "train/action_loss"]
    columns += ["val/action_l1_mm", "val/token_accuracy", "val/copy_accuracy"]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for step in range(0, 900, 3):
            decay = np.exp(-step / 300)
            row: dict[str, float] = {"epoch": step // 300, "step": step, "lr-AdamW": 1e-3}
            row["train/frame_loss"] = 2.0 + 4 * decay + 0.2 * rng.random()
            if acting:
                row["train/action_loss"] = 0.08 + 0.5 * decay + 0.02 * rng.random()
            row["train/loss"] = row["train/frame_loss"] + row.get("train/action_loss", 0.0)
            writer.writerow(row)
            if step % 150 == 0:
                validation = {
                    "step": step,
                    "val/token_accuracy": 0.55 - 0.2 * decay,
                    "val/copy_accuracy": 0.44,
                }
                if acting:
                    validation["val/action_l1_mm"] = 6 + 20 * decay
                writer.writerow(validation)


def _control(rng: np.random.Generator, level: float) -> dict[str, object]:
    tasks = {}
    for task in TASKS:
        rate = level - 0.3 * ("lift" in task) + 0.1 * ("led" in task)
        success = int(rng.binomial(30, min(rate, 1.0)))
        tasks[task] = {"success": success, "total": 30, "steps": rng.integers(22, 90, success).tolist()}
    chains = np.minimum(rng.geometric(1 - level, 40) - 1, 5).tolist()
    return {"tasks": tasks, "chains": chains}


def _video_metrics(rng: np.random.Generator) -> dict[str, object]:
    steps = []
    for horizon in range(1, 6):
        row: dict[str, object] = {"horizon": horizon}
        for name, start, slope, spread, gain in (
            ("psnr", 27.0, -0.7, 1.2, 0.9),
            ("psnr_moving", 19.0, -0.8, 1.5, 2.1),
            ("ssim", 0.93, -0.012, 0.01, 0.008),
            ("token_accuracy", 0.62, -0.035, 0.03, 0.09),
        ):
            base = start + slope * horizon + spread * rng.standard_normal(24)
            row[f"{name}_copy"] = base.tolist()
            row[name] = (base + gain + 0.2 * spread * rng.standard_normal(24)).tolist()
        steps.append(row)
    moving = steps[0]["psnr_moving"]
    assert isinstance(moving, list)
    moving[0] = None
    return {"per_step": steps, "episodes": 24}


def _write_episodes(folder: Path, rng: np.random.Generator, episodes: int) -> None:
    records = []
    for index in range(episodes):
        record = {"instruction": INSTRUCTIONS[index % 4], "task": TASKS[index], "camera": "static"}
        for role, frames in (("predicted", 8), ("real", 8), ("rollout", 12)):
            image = np.full((frames, 64, 64, 3), (196, 178, 150), dtype=np.uint8)
            image[:, 40:] = (120, 98, 80)
            for t in range(frames):
                image[t, 28:40, 4 + 4 * t : 16 + 4 * t] = (190, 50 + 60 * (role == "rollout"), 40)
            noise = rng.integers(0, 12 if role == "predicted" else 2, image.shape, dtype=np.uint8)
            record[role] = f"{index:03d}_{role}.mp4"
            (folder / record[role]).write_bytes(encode_mp4(list(image + noise), Fraction(6)))
        records.append(record)
    _write(folder / "episodes.json", records)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "synthetic")


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    return write_report(run=run_folder).read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """Return the visible words of a page: tags and whitespace folded to one blank, thousands unseparated."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", page.replace("\N{NARROW NO-BREAK SPACE}", ""), flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


def test_every_section_is_present_and_nothing_is_left_out(page: str) -> None:
    for anchor, title, _ in SECTIONS:
        assert f'<section id="{anchor}"><h2>{title}</h2>' in page
    assert "Left out" not in page and "not in the run folder" not in page


def test_page_loads_nothing_from_outside(page: str) -> None:
    addresses = re.findall(r'(?:src|href|action|poster)="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "http://" not in page and "https://" not in page and "@import" not in page


def test_success_metrics_equal_the_inputs(page: str, run_folder: Path) -> None:
    controls = json.loads((run_folder / "act/results.json").read_text())["controls"]
    words = words_of(page)
    for control in controls.values():
        for task, trial in control["tasks"].items():
            rate = wilson_interval(trial["success"], trial["total"])
            cell = (
                f"{100 * rate.value:.0f} % {trial['success']}/{trial['total']} "
                f"{100 * rate.low:.1f}\N{EN DASH}{100 * rate.high:.1f}"
            )
            row = re.search(rf"<tr><td><code>{task}</code>.*?</tr>", page)
            assert row and cell in words_of(row[0])
        success = sum(trial["success"] for trial in control["tasks"].values())
        assert f"solved {success} of {30 * len(TASKS)} single instructions" in words


def test_chain_metrics_equal_the_inputs(page: str, run_folder: Path) -> None:
    words = words_of(page)
    for control in json.loads((run_folder / "act/results.json").read_text())["controls"].values():
        average = bootstrap_mean(control["chains"])
        assert f"{average.value:.2f} {average.low:.2f} to {average.high:.2f}" in words
        for k in range(1, 6):
            assert f"{100 * np.mean(np.asarray(control['chains']) >= k):.1f} %" in words


def test_published_rows_are_marked_and_leave_unconfirmed_values_empty(page: str) -> None:
    box = page[page.index('<div class="published">') :]
    mark = (
        "published, official CALVIN, 1000 chains, not comparable: our simulator, our scripted demonstrations, 17 tasks"
    )
    assert mark in words_of(box)
    assert all(f"<td>{row.model}</td>" in box for row in ABCD_D)
    gr2 = next(row for row in ABCD_D if row.model == "GR-2")
    assert gr2.rates[1:4] == (None, None, None)


def test_video_metrics_equal_the_inputs_and_skip_episodes_without_value(page: str, run_folder: Path) -> None:
    step = json.loads((run_folder / "imagine/metrics.json").read_text())["per_step"][0]
    kept = slice(1, None)
    gap = paired_difference(step["psnr_moving"][kept], step["psnr_moving_copy"][kept])
    words = words_of(page)
    assert f"{np.mean(step['psnr_moving'][kept]):.2f} dB" in words
    assert f"+{gap.value:.2f} (+{gap.low:.2f} to +{gap.high:.2f})" in words


def test_safety_funnel_time_and_provenance_equal_the_inputs(page: str, run_folder: Path) -> None:
    words = words_of(page)
    for metric in (
        "48211",
        "0.0312 rad",
        "0.973",
        "No limit was violated",
        "2250",
        "1938",
        "86.1 %",
        "288",
        "17",
        "7",
    ):
        assert metric in words
    assert "12 min 26 s" in words and "in all 37 min 52 s" in words
    for stage in json.loads((run_folder / "stages.json").read_text()):
        assert stage["command"] in words
    assert "torch 2.9.1" in words and "cores 2" in words and "python 3.11.9" in words


def test_violations_are_said_aloud(run_folder: Path, tmp_path: Path) -> None:
    results = json.loads((run_folder / "act/results.json").read_text())
    limits = results["controls"]["wbc"]["limits"]
    for key, value in (
        ("velocity_violations", 3),
        ("min_position_margin_rad", -0.01),
        ("max_velocity_ratio", 1.2),
    ):
        results["controls"]["wbc"]["limits"] = {**limits, key: value}
        _write(tmp_path / "act/results.json", results)
        words = words_of(write_report(run=tmp_path).read_text())
        assert ": see the table." in words and "No limit was violated" not in words
    results["controls"]["wbc"]["limits"] = {**limits, "velocity_violations": 3}
    _write(tmp_path / "act/results.json", results)
    assert "3 limit violations" in words_of(write_report(run=tmp_path).read_text())


def test_videos_are_embedded_as_h264_enlarged_without_smoothing(page: str) -> None:
    import av

    videos = re.findall(r'<video src="data:video/mp4;base64,([^"]+)"([^>]*)>', page)
    assert len(videos) == 6
    assert all({"autoplay", "loop", "muted", "playsinline"} <= set(flags.split()) for _, flags in videos)
    with av.open(io.BytesIO(base64.b64decode(videos[2][0]))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (256, 256)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 12
    red = frames[3][34 * 4, 22 * 4].astype(int)
    assert red[0] > 150 and red[2] < 90


def test_instructions_are_escaped(page: str) -> None:
    assert "push the &lt;red&gt; block" in page and "<red>" not in page


@pytest.mark.parametrize(
    "missing",
    [
        "stages.json",
        "run.json",
        "shards",
        "pretrain",
        "finetune",
        "act",
        "imagine/metrics.json",
        "imagine/episodes.json",
    ],
)
def test_a_missing_part_is_left_out_with_a_note(run_folder: Path, tmp_path: Path, missing: str) -> None:
    copy = Path(shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("*.mp4")))
    target = copy / missing
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    page = write_report(run=copy, html=tmp_path / "page.html").read_text()
    for anchor, _, _ in SECTIONS:
        assert f'<section id="{anchor}">' in page
    assert "another layout" not in page
    if missing not in ("run.json", "stages.json"):
        assert re.search(rf"Left out: <code>{missing}[^<]*</code>", page)


@pytest.mark.parametrize("name", ["act/results.json", "imagine/metrics.json", "stages.json", "run.json"])
@pytest.mark.parametrize(
    "content", ["{broken", "[1, 2]", '{"controls": {"wbc": {"tasks": {"a": 3}}}, "per_step": [1]}']
)
def test_a_broken_part_is_noted_and_the_rest_stays(run_folder: Path, tmp_path: Path, name: str, content: str) -> None:
    copy = Path(shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("*.mp4")))
    (copy / name).write_text(content)
    page = write_report(run=copy).read_text()
    assert page.count("<section") == len(SECTIONS)
    assert "2250" in words_of(page)
    if name != "run.json" or not content.startswith('{"'):
        assert "problem" in page.split("<body>")[1]


def test_an_empty_or_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected at least one of"):
        write_report(run=tmp_path)
    with pytest.raises(DataError, match="expected a run folder"):
        write_report(run=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_training_folder_alone_is_reported(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss,val/loss\n10,2.5,\n20,2.0,2.25\n")
    page = write_report(run=tmp_path).read_text()
    assert "train/loss" in page and "2.25" in page


def test_logs_of_a_resumed_tokenizer_training_are_one_curve(tmp_path):
    for number, rows in enumerate(("10,3\n20,2\n30,1\n", "25,1.5\n40,0.5\n")):
        folder = tmp_path / "log" / f"version_{number}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,loss\n{rows}")
    assert read_run(tmp_path).training["loss"] == [(10, 3), (20, 2), (25, 1.5), (40, 0.5)]
