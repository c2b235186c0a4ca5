"""Curation: scenes become windows, what teaches nothing is dropped with its reason, and no kill changes the result."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from stage_cases import contents

from gr2.contracts import Episode
from gr2.data_pipeline.curation.curate import CurationThresholds, curate, judge
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.curation.measure import MeasureConfig
from gr2.data_pipeline.executors import Executor, run_tasks
from gr2.data_pipeline.loading.clip_windows import ClipWindows
from gr2.data_pipeline.store.episodes import write_episode
from gr2.data_pipeline.store.shards import list_shards, read_dropped, read_samples
from gr2.data_pipeline.store.stages import begin_stage, read_manifest
from gr2.data_pipeline.tokens import write_token_shards
from gr2.data_pipeline.video.reader import open_video
from gr2.data_pipeline.video.transcode import encode_frames
from gr2.errors import ConfigError, DataError

FPS = 12.0


def scene(num_frames: int, seed: int, size: tuple[int, int] = (120, 160)) -> np.ndarray:
    """Draw a disc that wanders over a background of its own: uint8 `[f h w 3]`."""
    rng = np.random.default_rng(seed)
    height, width = size
    coarse = rng.integers(40, 215, (height // 10, width // 10, 3)).repeat(10, 0).repeat(10, 1)
    frames = np.repeat((coarse + rng.normal(0, 2, (height, width, 1)))[None], num_frames, axis=0)
    rows, columns = np.mgrid[:height, :width]
    center, color = rng.uniform(0.3, 0.7, 2) * size, rng.integers(0, 255, 3)
    for i in range(num_frames):
        row, column = center + 12 * np.array([np.sin(i / 4 + seed), np.cos(i / 5)])
        frames[i][(rows - row) ** 2 + (columns - column) ** 2 < (height / 6) ** 2] = color
    return np.clip(frames, 0, 255).astype(np.uint8)


def write(path: Path, frames: np.ndarray, crf: int = 20) -> None:
    """Write a captioned video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_frames(frames, FPS, crf=crf, pixel_format="yuv420p"))
    path.with_suffix(".txt").write_text(f"caption of {path.stem}")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write video shards of clips with one fault each, among good ones."""
    root = tmp_path_factory.mktemp("curation")
    for i in range(6):
        write(root / f"in/a_good_{i}.mp4", scene(36, i))
    write(root / "in/b_copy.mp4", scene(36, 2), crf=32)
    write(root / "in/b_dark.mp4", scene(36, 11) // 12)
    write(root / "in/b_two_scenes.mp4", np.concatenate([scene(30, 21), scene(42, 22)]))
    still = scene(36, 31)
    write(root / "in/c_still_then_moving.mp4", np.concatenate([np.repeat(still[:1], 40, axis=0), scene(30, 32)]))
    write(root / "in/d_long.mp4", scene(150, 41))
    write_video_shards(source=str(root / "in"), out=root / "shards", shard_megabytes=0.1)
    assert len(list_shards(root / "shards")) >= 4
    return root / "shards"


MEASURE = MeasureConfig(window_seconds=5.0, hands="none")


def windows(folder: Path) -> dict[str, list[tuple[int, int]]]:
    """List the windows of each clip by the name of its file."""
    found = (json.loads(sample["json"]) for sample in read_samples(folder))
    return {d["source"][:-4]: [(w["start"], w["stop"]) for w in d["windows"]] for d in found}


def dropped(folder: Path) -> list[tuple[str, str]]:
    """List source and reason of what was dropped."""
    return [(entry["source"][:-4], entry["reason"]) for shard in list_shards(folder) for entry in read_dropped(shard)]


def test_scenes_become_windows_and_faults_have_their_reason(shards: Path, tmp_path: Path) -> None:
    manifest = curate(shards=str(shards), out=tmp_path / "out", measure=MEASURE)
    kept = windows(tmp_path / "out")
    assert all(kept[f"a_good_{i}"] == [(0, 36)] for i in range(6))
    assert kept["b_two_scenes"] == [(0, 30), (30, 72)]
    assert kept["c_still_then_moving"] == [(40, 70)]
    assert kept["d_long"] == [(0, 50), (50, 100), (100, 150)]
    assert dropped(tmp_path / "out") == [
        ("b_copy", "duplicate"),
        ("b_dark", "dark"),
        ("c_still_then_moving", "static"),
    ]
    counts = manifest["counts"]
    assert counts["records"] == 15 and counts["kept"] == 12
    assert counts["dropped"] == {"dark": 1, "duplicate": 1, "static": 1}
    assert counts["frames"] == sum(stop - start for spans in kept.values() for start, stop in spans)
    for sample in read_samples(tmp_path / "out"):
        description = json.loads(sample["json"])
        for window in description["windows"]:
            assert window["caption"] == f"caption of {description['source'][:-4]}"
            assert judge(window["measures"], CurationThresholds(), -1) == ("", "")


def test_other_thresholds_judge_again_without_decoding(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate(shards=str(shards), out=tmp_path / "out", measure=MEASURE)
    loose = CurationThresholds(min_motion=None, min_brightness=None, min_contrast=None, duplicate_bits=None)
    with pytest.raises(DataError, match="thresholds changed"):
        curate(shards=str(shards), out=tmp_path / "out", measure=MEASURE, thresholds=loose)

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a video was opened")

    monkeypatch.setattr("gr2.data_pipeline.curation.measure.open_video", refuse)
    manifest = curate(shards=str(shards), out=tmp_path / "out", measure=MEASURE, thresholds=loose, overwrite=True)
    assert manifest["counts"]["kept"] == 15 and manifest["counts"]["dropped"] == {}


def test_a_duplicate_of_a_dropped_window_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "in/a.mp4", scene(8, 1))
    write(tmp_path / "in/b.mp4", scene(36, 1))
    write_video_shards(source=str(tmp_path / "in"), out=tmp_path / "shards")
    strict = CurationThresholds(min_seconds=1.0, duplicate_bits=31)
    curate(shards=str(tmp_path / "shards"), out=tmp_path / "out", measure=MEASURE, thresholds=strict)
    assert windows(tmp_path / "out") == {"b": [(0, 36)]} and dropped(tmp_path / "out") == [("a", "too_short")]


def test_demonstrations_that_look_alike_all_stay_whole(tmp_path: Path) -> None:
    for index in range(2):
        frames = np.concatenate([scene(30, 1), scene(30, 2)])
        steps = np.zeros((60, 8), np.float32)
        write_episode(
            tmp_path / "in",
            index,
            Episode(images={"static": frames}, states=steps, actions=steps, instruction="lift it", control_hz=FPS),
            {},
        )
    write_video_shards(source=str(tmp_path / "in"), out=tmp_path / "shards")
    curate(shards=str(tmp_path / "shards"), out=tmp_path / "out", measure=MeasureConfig(window_seconds=1.0))
    spans = [json.loads(sample["json"])["windows"] for sample in read_samples(tmp_path / "out")]
    assert [[(w["start"], w["stop"]) for w in windows] for windows in spans] == [[(0, 60)], [(0, 60)]]


def test_nothing_left_is_an_error_and_tokens_need_a_finished_stage(shards: Path, tmp_path: Path) -> None:
    impossible = CurationThresholds(min_motion=200.0)
    with pytest.raises(DataError, match="Loosen the thresholds"):
        curate(shards=str(shards), out=tmp_path / "out", measure=MEASURE, thresholds=impossible)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["measures"]
    begin_stage(tmp_path / "half", "curated_shards", {}, False)
    with pytest.raises(DataError, match="not finished"):
        write_token_shards(
            shards=tmp_path / "half", out=tmp_path / "tokens", encode_images=len, encode_texts=None,
            tokenizer_facts={"codebook_size": 4, "grid": [1, 1]}, image_size=8,
        )  # fmt: skip


def test_curated_windows_are_what_a_loader_decodes(shards: Path, tmp_path: Path) -> None:
    curate(shards=str(shards), out=tmp_path / "out", measure=MEASURE)
    clips = ClipWindows([tmp_path / "out"], ["static"], num_frames=8, stride=8, size=64)
    samples = [json.loads(sample["json"]) for sample in read_samples(tmp_path / "out")]
    spans = [(s["source"], w["start"], w["stop"]) for s in samples for w in s["windows"]]
    assert clips.counts.tolist() == [max((stop - start - 8) // 8 + 1, 1) for _, start, stop in spans]
    chosen = np.array([next(i for i, span in enumerate(spans) if span == ("b_two_scenes.mp4", 30, 72)), 0])
    batch = clips.gather(chosen, np.array([1, 3]))
    source = shards.parent / "in"
    with open_video(source / "b_two_scenes.mp4", width=64, height=64) as reader:
        assert np.array_equal(batch["frames"]["static"][0], reader.get_batch(range(38, 46)))
    with open_video(source / "a_good_0.mp4", width=64, height=64) as reader:
        assert np.array_equal(batch["frames"]["static"][1], reader.get_batch(range(24, 32)))
    assert batch["captions"] == ["caption of b_two_scenes", "caption of a_good_0"]
    assert batch["frame_mask"].all() and batch["problems"] == []


COMMAND = "import sys; from gr2.cli.main import main; sys.exit(main())"


def start_curation(shards: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start `gr2 data curate` in a process group of its own."""
    words = [
        "data",
        "curate",
        f"--shards={shards}",
        f"--out={out}",
        "--measure.window-seconds=5",
        "--measure.hands=none",
    ]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_and_resume(shards: Path, out: Path, after_s: float, *options: str) -> bool:
    """Kill a curation after some seconds, run it again to its end, and return whether the kill met it at work."""
    first = start_curation(shards, out, *options)
    time.sleep(after_s)
    at_work = first.poll() is None
    with suppress(ProcessLookupError):  # it was done before
        os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert start_curation(shards, out, *options).wait() == 0
    return at_work


@pytest.mark.parametrize("after_s", [2.0])
def test_killed_curation_ends_with_the_same_bytes(shards: Path, tmp_path: Path, after_s: float) -> None:
    curate(shards=str(shards), out=tmp_path / "whole", measure=MEASURE)
    kill_and_resume(shards, tmp_path / "killed", after_s, "--num-workers=2")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.nightly
def test_ten_kills_at_random_moments_change_nothing(shards: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    assert start_curation(shards, tmp_path / "whole").wait() == 0
    duration, whole = time.monotonic() - begin, contents(tmp_path / "whole")
    rng, met = np.random.default_rng(), 0
    for number in range(30):
        moment, out = float(rng.uniform(0.2, 0.95)) * duration, tmp_path / f"killed_{number}"
        met += kill_and_resume(shards, out, moment)
        assert contents(out) == whole, f"killed after {moment:.2f} of {duration:.2f} s"
        if met == 10:
            return
    raise AssertionError(f"expected ten kills that met the command at work, got {met} of 30")


def test_ray_killed_in_the_middle_and_resumed(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'gr2[ray]'")
    curate(shards=str(shards), out=tmp_path / "whole", measure=MEASURE)
    out = tmp_path / "killed"
    first = start_curation(shards, out, "--executor=ray", "--num-workers=2")
    deadline = time.monotonic() + 120
    while not list(out.glob("measures/shard-*.index.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert list(out.glob("measures/shard-*.index.json")) and not list(out.glob("shard-*.index.json"))
    with pytest.raises(DataError, match="not finished"):
        read_manifest(out, "curated_shards")
    assert start_curation(shards, out, "--executor=ray", "--num-workers=2").wait() == 0
    assert contents(out) == contents(tmp_path / "whole")


def _fail_first(task: tuple[Path, int]) -> None:
    """Fail in a way that depends on the task: once, always, by a wrong file, or by dying."""
    folder, number = task
    tried = folder / f"tried_{number}_{len(list(folder.glob(f'tried_{number}_*')))}"
    tried.write_text("")
    first = tried.name.endswith("_0")
    if number == 1 and first:
        raise OSError("the disk did not answer")
    if number == 2:
        raise RuntimeError("never works")
    if number == 3:
        raise DataError("file 3: expected a video; leave it out.")
    if number == 4 and first:
        os._exit(1)
    (folder / f"done_{number}").write_text("")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_failed_tasks_are_tried_again_and_named(tmp_path: Path, num_workers: int) -> None:
    numbers = [0, 1, 2, 3, *([4] if num_workers > 1 else []), 5]
    done: list[int] = []
    tasks = [(tmp_path, number) for number in numbers]
    failures = run_tasks(_fail_first, tasks, Executor(num_workers=num_workers), lambda task: done.append(task[1]))
    assert sorted(failure.item[1] for failure in failures) == [2, 3]
    assert sorted(done) == [number for number in numbers if number not in (2, 3)]
    assert len(list(tmp_path.glob("tried_2_*"))) == 3 and len(list(tmp_path.glob("tried_3_*"))) <= 2


def _wrong_option(task: int) -> None:
    raise ConfigError("option: expected another one.")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_wrong_option_stops_at_once(num_workers: int) -> None:
    with pytest.raises(ConfigError, match="another one"):
        run_tasks(_wrong_option, [1, 2, 3], Executor(num_workers=num_workers), print)
