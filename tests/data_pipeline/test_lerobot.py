"""LeRobot datasets of every version: what was written is read, and what is broken is named, episode by episode."""

import io
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gr2.contracts import Episode
from gr2.data_pipeline.curation.filters import FilterConfig, examine
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.inspection.inspect import inspect_source
from gr2.data_pipeline.readers.lerobot import LeRobotSource
from gr2.data_pipeline.readers.lerobot_layout import EpisodeVideo, fill_pattern
from gr2.data_pipeline.readers.lerobot_rows import EpisodeRows
from gr2.data_pipeline.readers.lerobot_video import EpisodeSpan, find_video, read_header
from gr2.data_pipeline.readers.record import ImageBytes, Record, VideoSpan, load_image, with_video_files
from gr2.data_pipeline.readers.source import open_source
from gr2.data_pipeline.readers.spec import EpisodeSpec
from gr2.data_pipeline.video.transcode import encode_frames
from gr2.errors import ConfigError, DataError

SAMPLE = Path(__file__).parents[2] / "../shared/real_samples/lerobot_v21_g1"
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason="the real LeRobot sample is not beside the checkout")

FPS = 10
TASKS = ("push the block", "lift it")
CAMERAS = ("observation.images.top", "observation.images.wrist")
LENGTHS = (7, 5, 9, 6)
Columns = dict[str, pa.Array]


def frames(episode: int, camera: int = 0, count: int | None = None) -> np.ndarray:
    """Draw frames of one color each, far from that of the frame before and after: uint8 `[t h w 3]`."""
    steps = np.arange(LENGTHS[episode] if count is None else count)
    levels = 20 + (60 * steps + 17 * episode + 31 * camera) % 220
    return np.broadcast_to(levels[:, None, None, None], (len(steps), 32, 48, 3)).astype(np.uint8)


def numbers(episode: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw float32 `[t width]`."""
    return np.random.default_rng(10 * episode + seed).normal(size=(LENGTHS[episode], width)).astype(np.float32)


def lists(values: np.ndarray, fixed: bool = False) -> pa.Array:
    """Make a column of lists."""
    flat = pa.array(np.ascontiguousarray(values).ravel())
    if fixed:
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.ListArray.from_arrays(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1], flat)


def columns(episode: int, fixed: bool = False) -> Columns:
    """Make the rows of an episode."""
    steps = np.arange(LENGTHS[episode])
    first = sum(LENGTHS[:episode])
    return {
        "observation.state": lists(numbers(episode, 6), fixed),
        "action": lists(numbers(episode, 7, 1), fixed),
        "timestamp": pa.array((steps / FPS).astype(np.float32)),
        "frame_index": pa.array(steps),
        "episode_index": pa.array(np.full(len(steps), episode)),
        "index": pa.array(steps + first),
        "task_index": pa.array(np.full(len(steps), episode % 2)),
    }


def write_info(root: Path, version: str, cameras: tuple[str, ...], image: bool = False) -> None:
    """Write `meta/info.json`; names are null, nested or a dict, as they are found."""
    features: dict = {name: {"dtype": "float32", "shape": [n], "names": names} for name, n, names in (
        ("observation.state", 6, [["a", "b", "c", "d", "e", "f"]]), ("action", 7, {"motors": list("abcdefg")}),
        ("timestamp", 1, None))}  # fmt: skip
    features |= {
        camera: {"dtype": "image" if image else "video", "shape": [3, 32, 48], "names": None} for camera in cameras
    }
    info = {"codebase_version": version, "robot_type": "arm", "fps": FPS, "chunks_size": 1000, "features": features}
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info))


def write_v2(root: Path, version: str = "v2.1", cameras: tuple[str, ...] = CAMERAS) -> Path:
    """Write a dataset of one parquet file and one video a camera for each episode."""
    write_info(root, version, cameras)
    rows = [{"episode_index": i, "tasks": [TASKS[i % 2]], "length": n} for i, n in enumerate(LENGTHS)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = ({"task_index": i, "task": task} for i, task in enumerate(TASKS))
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tasks))
    for i in range(len(LENGTHS)):
        write_parquet(data_v2(root, i), columns(i))
        for number, camera in enumerate(cameras):
            write_file(video_v2(root, i, camera), encode_frames(frames(i, number), FPS))
    return root


def data_v2(root: Path, episode: int) -> Path:
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def video_v2(root: Path, episode: int, camera: str = CAMERAS[0]) -> Path:
    return root / f"videos/chunk-000/{camera}/episode_{episode:06d}.mp4"


def write_file(path: Path, data: bytes) -> None:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_parquet(path: Path, content: Columns, group: int | None = None) -> None:
    """Write a parquet file in row groups of `group` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(content), path, row_group_size=group)


def write_v3(root: Path, fixed: bool = True, group: int | None = None, cameras: tuple[str, ...] = CAMERAS) -> Path:
    """Write a dataset whose first three episodes share their files; the fourth has its own."""
    write_info(root, "v3.0", cameras)
    rows: list[dict] = []
    for file, episodes in enumerate(((0, 1, 2), (3,))):
        tables = [pa.table(columns(i, fixed)) for i in episodes]
        path = root / f"data/chunk-000/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), path, row_group_size=group)
        for number, camera in enumerate(cameras):
            shown = np.concatenate([frames(i, number) for i in episodes])
            write_file(root / f"videos/{camera}/chunk-000/file-{file:03d}.mp4", encode_frames(shown, FPS))
        borders = np.cumsum([0, *(LENGTHS[i] for i in episodes)]) / FPS
        for i, start, stop in zip(episodes, borders[:-1], borders[1:], strict=True):
            row = {"episode_index": i, "tasks": [TASKS[i % 2]], "length": LENGTHS[i], "stats/action/mean": [0.0] * 7}
            row |= {"data/chunk_index": 0, "data/file_index": file}
            for camera in cameras:
                row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file}
                row |= {f"videos/{camera}/from_timestamp": start, f"videos/{camera}/to_timestamp": stop}
            rows.append(row)
    write_rows(root, rows)
    instructions = pa.table({"task_index": pa.array(range(len(TASKS))), "__index_level_0__": pa.array(TASKS)})
    pq.write_table(instructions, root / "meta/tasks.parquet")
    return root


def write_rows(root: Path, rows: list[dict]) -> None:
    """Write the list of episodes of v3.0."""
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def change_rows(root: Path, change: Callable[[list[dict]], None]) -> None:
    """Change the list of episodes of v3.0."""
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    change(rows)
    write_rows(root, rows)


def change_info(root: Path, **entries: object) -> None:
    """Change entries of `meta/info.json`."""
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def levels(video: np.ndarray) -> np.ndarray:
    """Return the mean gray level of each frame."""
    return video.astype(float).mean(axis=(1, 2, 3))


def expect_episode(record: Record, episode: int, cameras: dict[str, int]) -> None:
    """Check that a record decodes to what was written, every frame at its step."""
    assert record.problem == "" and record.key == f"episode_{episode:06d}"
    got = record.decode()
    assert isinstance(got, Episode) and got.control_hz == FPS and got.instruction == TASKS[episode % 2]
    assert np.array_equal(got.states, numbers(episode, 6)) and np.array_equal(got.actions, numbers(episode, 7, 1))
    assert list(got.images) == list(cameras)
    for camera, number in cameras.items():
        assert got.images[camera].shape == frames(episode).shape
        assert np.abs(levels(got.images[camera]) - levels(frames(episode, number))).max() < 4
    assert examine(with_video_files(record), FilterConfig(min_frames=1, min_seconds=0)).reason == ""


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_a_file_for_each_episode(tmp_path: Path, version: str) -> None:
    records = list(open_source(write_v2(tmp_path, version)))
    assert len(records) == len(LENGTHS) and all(record.facts["dataset"] == tmp_path.name for record in records)
    for i, record in enumerate(records):
        expect_episode(record, i, {"top": 0, "wrist": 1})
        assert record.videos["top"] == video_v2(tmp_path, i)  # the file as it is


@pytest.mark.parametrize(("fixed", "group"), [(True, None), (False, 4), (True, 6)])
def test_several_episodes_in_a_file(tmp_path: Path, fixed: bool, group: int | None) -> None:
    records = list(open_source(write_v3(tmp_path, fixed, group)))
    assert len(records) == len(LENGTHS)
    for i, record in enumerate(records):
        expect_episode(record, i, {"top": 0, "wrist": 1})
    assert [isinstance(record.videos["top"], EpisodeSpan) for record in records] == [True, True, True, False]


def test_end_of_a_span_may_be_the_time_of_its_last_frame(tmp_path: Path) -> None:
    """Datasets are about whose spans end one frame early; the length of the episode counts."""
    write_v3(tmp_path, cameras=CAMERAS[:1])

    def shorten(rows: list[dict]) -> None:
        for row in rows:
            row[f"videos/{CAMERAS[0]}/to_timestamp"] -= 1 / FPS

    change_rows(tmp_path, shorten)
    for i, record in enumerate(open_source(tmp_path, "eye")):
        expect_episode(record, i, {"eye": 0})


def test_times_that_drift_by_a_part_of_a_frame_find_their_frames(tmp_path: Path) -> None:
    write_v3(tmp_path, cameras=CAMERAS[:1])
    for drift in (-0.2, 0.2):
        file, start = tmp_path / f"videos/{CAMERAS[0]}/chunk-000/file-000.mp4", (7 + drift) / FPS
        place = EpisodeVideo(file=file, start=start, stop=start + 0.5)
        video = find_video("top", place, 5, FPS, read_header)
        got = Record(key="x", videos={"top": video}).decode()
        assert np.abs(levels(got.frames) - levels(frames(1))).max() < 4  # type: ignore[union-attr]


def test_few_row_groups_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_v3(tmp_path, group=3)
    asked: list[tuple[list[int], list[str]]] = []
    read = pq.ParquetFile.read_row_groups

    def note(self: pq.ParquetFile, groups: list[int], columns: list[str]) -> pa.Table:
        asked.append((groups, columns))
        return read(self, groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", note)
    assert not any(record.problem for record in LeRobotSource(tmp_path))
    assert max(len(groups) for groups, _ in asked) <= 4 and len(asked) == len(LENGTHS)
    assert all("index" not in columns for _, columns in asked)


@pytest.mark.parametrize("stored", ["bytes", "path", "plain"])
def test_images_in_the_rows(tmp_path: Path, stored: str) -> None:
    write_v2(tmp_path, cameras=())
    write_info(tmp_path, "v2.0", CAMERAS[:1], image=True)
    for i, length in enumerate(LENGTHS):
        images = []
        for step in range(length):
            data = encode_image(frames(i)[step])
            name = f"images/top/episode_{i:06d}/frame_{step:06d}.png"
            write_file(tmp_path / name, data)
            entry = {"bytes": data, "path": "frame.png"} if stored == "bytes" else {"bytes": None, "path": name}
            images.append(data if stored == "plain" else entry)
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if stored != "plain" else pa.binary()
        write_parquet(data_v2(tmp_path, i), columns(i) | {CAMERAS[0]: pa.array(images, kind)})
    for i, record in enumerate(open_source(tmp_path)):
        assert isinstance(record.videos["static"], ImageBytes)
        expect_episode(record, i, {"static": 0})


def encode_image(pixels: np.ndarray) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_image_outside_the_dataset_is_not_read(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "data", cameras=())
    write_info(root, "v2.0", CAMERAS[:1], image=True)
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode_image(frames(0)[0]))
    for name in ("../secret.png", str(secret), ""):
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        images = pa.array([{"bytes": None, "path": name}] * LENGTHS[0], kind)
        write_parquet(data_v2(root, 0), columns(0) | {CAMERAS[0]: images})
        first, second, *_ = LeRobotSource(root)
        assert "expected an image or its path in the dataset" in first.problem
        assert "expected the column observation.images.top" in second.problem


def test_episodes_without_cameras_are_there_for_statistics(tmp_path: Path) -> None:
    write_v2(tmp_path / "v2", cameras=())
    write_v3(tmp_path / "v3", cameras=())
    for root in (tmp_path / "v2", tmp_path / "v3"):
        records = list(open_source(root))
        assert [record.problem for record in records] == [""] * len(LENGTHS)
        for i, record in enumerate(records):
            assert not record.videos and record.states is not None and np.array_equal(record.states, numbers(i, 6))
            assert record.actions is not None and np.array_equal(record.actions, numbers(i, 7, 1))


def test_short_names_and_the_folder_video(tmp_path: Path) -> None:
    write_v3(tmp_path, fixed=False, cameras=CAMERAS[:1])
    info = json.loads((tmp_path / "meta/info.json").read_text())
    names = {"observation.state": "state", "action": "actions", CAMERAS[0]: "image"}
    change_info(tmp_path, features={names.get(name, name): value for name, value in info["features"].items()})
    for path in (tmp_path / "data").glob("*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.rename_columns([names.get(name, name) for name in table.column_names]), path)
    rows = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    write_rows(tmp_path, [{name.replace(CAMERAS[0], "image"): v for name, v in row.items()} for row in rows])
    (tmp_path / "videos").rename(tmp_path / "video")
    (tmp_path / "video" / CAMERAS[0]).rename(tmp_path / "video/image")
    source = LeRobotSource(tmp_path)
    assert source.spec.states == ("state",) and source.spec.actions == ("actions",)
    for i, record in enumerate(source):
        expect_episode(record, i, {"static": 0})


def test_cameras_that_end_alike_keep_their_whole_names_and_depth_is_left_out(tmp_path: Path) -> None:
    names = ("observation.images.left.rgb", "observation.images.right.rgb", "observation.images.depth", "extra")
    write_v2(tmp_path, cameras=names)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    info["features"][names[2]]["info"] = {"video.is_depth_map": True}
    change_info(tmp_path, features=info["features"])
    assert dict(LeRobotSource(tmp_path).spec.cameras) == {"left_rgb": names[0], "right_rgb": names[1]}


def test_spec_chooses_turns_the_gripper_and_speaks(tmp_path: Path) -> None:
    root = write_v2(tmp_path / "data")
    for i, length in enumerate(LENGTHS):
        more = {"gripper": pa.array(np.arange(length) % 2, pa.int64()), "words": pa.array([f" say {i} "] * length)}
        write_parquet(data_v2(root, i), columns(i) | more)
    path = tmp_path / "spec.yaml"
    path.write_text(
        "name: mine\ncameras: {eye: observation.images.wrist}\nstates: [gripper, observation.state]\n"
        "actions: [action, gripper]\ninstructions: words\ngripper: closing\naction_kind: joint\nlicense: MIT\n"
    )
    for i, record in enumerate(open_source(root, spec=path)):
        assert record.caption == f"say {i}" and record.states is not None and record.actions is not None
        closed = np.arange(LENGTHS[i]) % 2
        assert np.array_equal(record.states, np.column_stack([closed, numbers(i, 6)]).astype(np.float32))
        assert np.array_equal(record.actions[:, 7], 1 - closed) and record.actions.dtype == np.float32
        assert list(record.videos) == ["eye"]
        facts = {"dataset": "mine", "action_kind": "joint", "gripper": "closing", "license": "MIT"}
        assert facts.items() <= record.facts.items()
    words = pa.array([None] * LENGTHS[0], pa.string())
    write_parquet(data_v2(root, 0), columns(0) | {"words": words, "gripper": pa.array([0.0] * LENGTHS[0])})
    assert next(iter(open_source(root, spec=path))).caption == TASKS[0]
    with pytest.raises(ConfigError, match=r"expected the 10 Hz of meta/info\.json, got 15 Hz"):
        LeRobotSource(root, spec=EpisodeSpec(cameras={}, actions=("action",), control_hz=15))
    with pytest.raises(DataError, match=r"expected \['lever'\], got .*'words'.*correct the names"):
        LeRobotSource(root, spec=EpisodeSpec(cameras={}, actions=("lever",)))


def test_video_without_actions_and_a_camera_that_may_be_missing(tmp_path: Path) -> None:
    write_v2(tmp_path)
    video_v2(tmp_path, 1, CAMERAS[1]).unlink()
    cameras = {"top": CAMERAS[0], "wrist": CAMERAS[1]}
    records = list(LeRobotSource(tmp_path, spec=EpisodeSpec(cameras=cameras, optional_cameras=("wrist",))))
    assert [list(record.videos) for record in records] == [
        ["top", "wrist"],
        ["top"],
        ["top", "wrist"],
        ["top", "wrist"],
    ]
    assert all(record.states is None and record.actions is None and record.caption in TASKS for record in records)
    assert "no such file" in list(LeRobotSource(tmp_path, spec=EpisodeSpec(cameras=cameras)))[1].problem


def test_several_tasks_in_an_episode_and_none_in_the_table(tmp_path: Path) -> None:
    write_v2(tmp_path, cameras=())
    write_parquet(data_v2(tmp_path, 0), columns(0) | {"task_index": pa.array([1, 1, 1, 0, 0, 0, 0])})
    first, rest, second, *_ = LeRobotSource(tmp_path)
    assert [first.caption, rest.caption, second.caption] == [TASKS[1], TASKS[0], TASKS[1]]
    assert np.array_equal(np.concatenate([first.actions, rest.actions]), numbers(0, 7, 1))
    (tmp_path / "meta/tasks.jsonl").unlink()
    assert [record.caption for record in LeRobotSource(tmp_path)] == [TASKS[0], TASKS[1]] * 2


@pytest.mark.parametrize("layout", ["v2", "v3", "images"])
def test_an_episode_is_divided_where_its_task_changes(tmp_path: Path, layout: str) -> None:
    if layout == "images":
        write_info(tmp_path, "v2.1", CAMERAS[:1], image=True)
    else:
        (write_v2 if layout == "v2" else write_v3)(tmp_path)
    for file in sorted(tmp_path.glob("data/**/*.parquet")):
        table = pq.read_table(file)
        task = pa.array(np.asarray(table["frame_index"]) // 3 % 2)
        pq.write_table(table.set_column(table.column_names.index("task_index"), "task_index", task), file)
    if layout == "images":
        write_v2(tmp_path, cameras=())
        write_info(tmp_path, "v2.1", CAMERAS[:1], image=True)
        content = columns(0) | {"task_index": pa.array([0, 0, 0, 1, 1, 1, 0])}
        files = []
        for frame in frames(0):
            Image.fromarray(frame).save(data := io.BytesIO(), "PNG")
            files.append({"bytes": data.getvalue(), "path": ""})
        write_parquet(data_v2(tmp_path, 0), content | {CAMERAS[0]: pa.array(files)})
    records = [r for r in LeRobotSource(tmp_path) if r.source.partition(": episode ")[2].startswith("0")]
    assert [record.caption for record in records] == [TASKS[0], TASKS[1], TASKS[0]]
    assert [record.facts["steps"] for record in records] == [[0, 3], [3, 6], [6, 7]]
    assert [record.key for record in records] == [f"episode_000000_00{i}" for i in range(3)]
    assert all("divided where the task changes" in record.repairs for record in records)
    for record, (start, stop) in zip(records, ((0, 3), (3, 6), (6, 7)), strict=True):
        episode = record.decode()
        assert isinstance(episode, Episode) and np.array_equal(episode.actions, numbers(0, 7, 1)[start:stop])
        found = next(iter(episode.images.values())).astype(int)
        assert abs(found - frames(0)[start:stop]).mean() < 6


def test_several_tasks_without_their_steps_are_told(tmp_path: Path) -> None:
    write_v2(tmp_path, cameras=())
    listing = tmp_path / "meta/episodes.jsonl"
    listing.write_text(listing.read_text().replace('["push the block"]', '["push the block", "lift it"]'))
    first, second, *_ = LeRobotSource(tmp_path)
    assert first.caption == TASKS[0] and not second.repairs
    assert first.repairs == ("several tasks whose steps are not stated, the first is the caption",)


def test_metadata_of_windows_and_of_a_recorder_that_was_resumed(tmp_path: Path) -> None:
    write_v2(tmp_path, cameras=())
    for name in ("info.json", "episodes.jsonl", "tasks.jsonl"):
        file = tmp_path / "meta" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"push the block", "push\u2028it".encode()))
    listing = tmp_path / "meta/episodes.jsonl"
    lines = listing.read_text("utf-8").split("\n")
    listing.write_text("\n".join([*lines[:2], lines[1], *lines[2:]]), "utf-8")
    records = list(LeRobotSource(tmp_path))
    assert len(records) == 4 and records[0].caption == "push\u2028it"
    assert [record.repairs for record in records] == [(), ("episode listed twice in meta",), (), ()]


def test_what_metadata_do_not_list_is_told(tmp_path: Path) -> None:
    write_v2(tmp_path, cameras=())
    listing = tmp_path / "meta/episodes.jsonl"
    listing.write_text("\n".join(listing.read_text().splitlines()[:2]))
    found = LeRobotSource(tmp_path).layout.not_listed()
    assert [file.name for file in found] == ["episode_000002.parquet", "episode_000003.parquet"]
    assert inspect_source(source=str(tmp_path))["details"]["not listed in meta"].startswith("2 parquet files")


def test_depth_by_its_name_and_actions_of_other_names(tmp_path: Path) -> None:
    write_v2(tmp_path / "a", cameras=("observation.images.top", "observation.images.top_depth"))
    first = next(iter(LeRobotSource(tmp_path / "a")))
    assert list(first.videos) == ["static"]
    assert first.repairs == ("observation.images.top_depth left out, it is depth",)
    asked = EpisodeSpec(cameras={"depth": "observation.images.top_depth"})
    assert list(next(iter(LeRobotSource(tmp_path / "a", spec=asked))).videos) == ["depth"]
    write_v2(tmp_path / "b", cameras=())
    content = columns(0)
    content["action.arm"] = content.pop("action")
    write_parquet(data_v2(tmp_path / "b", 0), content)
    assert next(iter(LeRobotSource(tmp_path / "b"))).repairs == ("no actions known by name (not read: action.arm)",)


def test_times_of_another_kind_need_no_more_than_the_order(tmp_path: Path) -> None:
    write_v2(tmp_path, cameras=())
    texts = pa.array([f"{step / FPS}" for step in range(LENGTHS[0])])
    write_parquet(data_v2(tmp_path, 0), columns(0) | {"timestamp": texts})
    none = columns(1)
    del none["timestamp"]
    write_parquet(data_v2(tmp_path, 1), none)
    write_parquet(data_v2(tmp_path, 2), columns(2) | {"timestamp": pa.array(1.7e9 + np.arange(LENGTHS[2]) / FPS)})
    first, second, third, _ = LeRobotSource(tmp_path)
    for record, got in ((first, "got string, each the seconds"), (second, "got none")):
        assert got in record.problem and "--times order" in record.problem
    assert not third.problem and third.repairs == ("times of day",)
    records = list(LeRobotSource(tmp_path, times="order"))
    assert all(not record.problem for record in records)
    assert [bool(record.repairs) for record in records] == [True, True, True, False]


def stamps(values: list[float]) -> Columns:
    return {"timestamp": pa.array(values, pa.float32())}


BROKEN_ROWS: list[tuple[Columns, str]] = [
    (stamps([0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7]), r"timestamp: expected 0\.3000 s at step 3 \(10 Hz\), got 0\.4000"),
    (stamps([0, 0.1, 0.2, 0.3, 0.4, 0.5, float("nan")]), r"timestamp: expected 0\.6000 s at step 6 .*, got nan"),
    (stamps([k / 15 for k in range(7)]), r"expected 0\.2000 s at step 2 \(10 Hz\), got 0\.1333; .* rate in info\.json"),
    (stamps([1 + k / 10 for k in range(7)]), r"expected 0\.0000 s at step 0 .*, got 1\.0000"),
    ({"frame_index": pa.array([0, 1, 2, 4, 5, 6, 7])}, "frame_index: expected 3 at step 3, got 4"),
    ({"frame_index": pa.array([2, 3, 4, 6, 7, 8, 9])}, "frame_index: expected 5 at step 3, got 6"),
    ({"frame_index": pa.array(range(1, 8)), **stamps([k / 10 for k in range(1, 8)])}, "expected 0.0000 s at step 0"),
    (
        {"frame_index": pa.array(range(1, 8)), "timestamp": pa.array(1.7e9 + np.arange(7) / FPS)},
        "frame_index: expected 0 at step 0, got 1, and times of day",
    ),
    (
        {"action": lists(np.full((7, 7), np.inf, np.float32))},
        "action: expected finite numbers, got NaN or .* at step 0",
    ),
    ({"action": lists(numbers(0, 7).astype(np.float64) * 1e300)}, "action: expected finite numbers"),
    ({"action": pa.array([[1.0, 2.0]] * 6 + [[1.0]])}, r"action: expected equally many .*, got lists of \[1, 2\]"),
    ({"action": pa.array([[1.0, 2.0]] * 5 + [None, None])}, "action: expected equally many numbers .* nothing in some"),
    ({"action": pa.array([[1.0, None]] * 7)}, "action: expected equally many numbers .* nothing in some"),
    ({"action": pa.array(["push"] * 7)}, "action: expected numbers, got string"),
    ({"episode_index": pa.array([0] * 6 + [1])}, "expected the rows of one episode, got those of 2"),
]


@pytest.mark.parametrize(("change", "words"), BROKEN_ROWS)
def test_broken_rows_are_a_problem_of_their_episode(tmp_path: Path, change: Columns, words: str) -> None:
    write_v2(tmp_path, cameras=())
    write_parquet(data_v2(tmp_path, 0), columns(0) | change)
    first, *others = LeRobotSource(tmp_path)
    assert first.states is None and "episode 0" in first.source
    assert [record.problem for record in others] == [""] * 3
    assert re.search(words, first.problem), first.problem


def test_measured_times_and_names_of_v3_are_repaired_and_counted(tmp_path: Path) -> None:
    write_v2(tmp_path)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    newer = {
        "data_path": "data/chunk-{chunk_index:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{chunk_index:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (tmp_path / "meta/info.json").write_text(json.dumps(info | newer))
    rng = np.random.default_rng(0)
    for i, drift in ((0, 0.0), (1, 0.3)):  # measured beside their step; at another rate
        steps = np.arange(LENGTHS[i]) * (1 + drift) + rng.uniform(-0.4, 0.4, LENGTHS[i])
        write_parquet(data_v2(tmp_path, i), columns(i) | {"timestamp": pa.array((steps / FPS).astype(np.float32))})
    near, late, *others = LeRobotSource(tmp_path)
    assert near.repairs == ("chunk_index in patterns of v2", "clock times") and not near.problem
    assert "--times order" in late.problem and [record.repairs for record in others] == [near.repairs[:1]] * 2
    trusted = list(LeRobotSource(tmp_path, times="order"))
    assert (
        not any(record.problem for record in trusted)
        and trusted[1].repairs[1] == "times that are not those of the rate"
    )
    manifest = write_video_shards(source=str(tmp_path), out=tmp_path / "shards", times="order")
    assert manifest["counts"]["repaired"] == {
        "chunk_index in patterns of v2": 4, "clock times": 1, "times that are not those of the rate": 1,
    }  # fmt: skip
    (tmp_path / "videos_alone").mkdir()
    (tmp_path / "videos_alone/a.mp4").write_bytes(video_v2(tmp_path, 0).read_bytes())
    with pytest.raises(ConfigError, match="leave the option out"):
        open_source(tmp_path / "videos_alone", times="order")


def test_what_one_camera_or_the_last_frame_lacks_is_repaired_and_counted(tmp_path: Path) -> None:
    write_v2(tmp_path)
    video_v2(tmp_path, 1).unlink()
    video_v2(tmp_path, 2).write_bytes(encode_frames(frames(2)[:-1], FPS))
    whole, one_eyed, shorter, last = (record for record in LeRobotSource(tmp_path))
    assert whole.repairs == last.repairs == () and whole.videos.keys() == last.videos.keys()
    assert one_eyed.repairs == ("no video of top",) and list(one_eyed.videos) == ["wrist"]
    assert shorter.repairs == ("video one frame shorter than the steps",)
    assert len(shorter.states) == len(shorter.actions) == LENGTHS[2] - 1
    manifest = write_video_shards(source=str(tmp_path), out=tmp_path / "shards")  # the other camera is cut, too
    assert manifest["counts"]["kept"] == 4 and sum(manifest["counts"]["repaired"].values()) == 2
    spec = EpisodeSpec(cameras=dict(zip(("top", "wrist"), CAMERAS, strict=True)))
    named = list(LeRobotSource(tmp_path, spec=spec))
    assert "no such file" in named[1].problem  # a spec asks for what it names


@pytest.mark.parametrize("last", [[float("nan")] * 7, None])
def test_a_last_step_without_an_action_is_left_out_and_counted(tmp_path: Path, last: list[float] | None) -> None:
    for root, layout in ((tmp_path / "v2", write_v2), (tmp_path / "v3", write_v3)):
        layout(root)
        whole = next(iter(LeRobotSource(root))).decode()
        file = data_v2(root, 0) if layout is write_v2 else min((root / "data").rglob("*.parquet"))
        table = pq.read_table(file)
        end = LENGTHS[0] - 1
        actions = [last if row == end else value for row, value in enumerate(table.column("action").to_pylist())]
        place = table.column_names.index("action")
        pq.write_table(table.set_column(place, "action", pa.array(actions, pa.list_(pa.float32()))), file)
        first, *others = LeRobotSource(root)
        assert first.repairs == ("a last step without an action left out",), first.problem
        assert all(not record.problem and not record.repairs for record in others)
        short = first.decode()
        np.testing.assert_array_equal(short.states, whole.states[:-1])
        np.testing.assert_array_equal(short.actions, whole.actions[:-1])
        for camera in CAMERAS:
            name = camera.rpartition(".")[2]
            np.testing.assert_allclose(levels(short.images[name]), levels(whole.images[name][:-1]), atol=2)


def test_rows_that_are_counted_from_one_and_a_rate_written_as_text(tmp_path: Path) -> None:
    write_v2(tmp_path)
    change_info(tmp_path, fps=str(FPS))
    steps = {"frame_index": pa.array(range(1, LENGTHS[0] + 1))}
    write_parquet(data_v2(tmp_path, 0), columns(0) | steps)
    first, second, *_ = LeRobotSource(tmp_path)
    assert first.repairs == ("steps counted from 1, times from 0",) and second.repairs == ()
    expect_episode(replace(first, repairs=()), 0, {"top": 0, "wrist": 1})


def test_depth_whole_floats_and_other_texts_are_told_apart(tmp_path: Path) -> None:
    write_v3(tmp_path, cameras=CAMERAS[:1])
    info = json.loads((tmp_path / "meta/info.json").read_text())
    depth = {"dtype": "video", "shape": [16, 24, 1], "info": {"is_depth_map": True}}
    info["features"]["observation.images.depth"] = depth
    (tmp_path / "meta/info.json").write_text(json.dumps(info))

    def as_floats(rows: list[dict]) -> None:
        for row in rows:
            row.update({name: float(value) for name, value in row.items() if type(value) is int})

    change_rows(tmp_path, as_floats)
    content = {"task_index": pa.array([0.0, 1.0]), "room": pa.array(["kitchen"] * 2), "task": pa.array(TASKS[:2])}
    pq.write_table(pa.table(content), tmp_path / "meta/tasks.parquet")
    records = list(LeRobotSource(tmp_path))
    assert not any(record.problem for record in records) and {r.caption for r in records} == set(TASKS[:2])
    assert {r.repairs for r in records} == {("observation.images.depth left out, it is depth",)}


def test_starts_a_frame_beside_the_lengths_are_repaired(tmp_path: Path) -> None:
    write_v3(tmp_path, cameras=CAMERAS[:1])

    def shift(rows: list[dict], episodes: tuple[int, ...], by: float) -> None:
        for row in (rows[i] for i in episodes):
            for end in ("from", "to"):
                row[f"videos/{CAMERAS[0]}/{end}_timestamp"] += by / FPS

    change_rows(tmp_path, lambda rows: shift(rows, (1, 2), 1.0))
    records = list(LeRobotSource(tmp_path))
    repair = ("start of a video by the lengths before it",)
    assert [record.repairs for record in records] == [(), repair, repair, ()]
    for i, record in enumerate(records):
        assert np.abs(record.decode().images["static"].astype(int) - frames(i)).max() < 12
    change_rows(tmp_path, lambda rows: shift(rows, (1,), 2.0))  # three frames: refused, not guessed at
    assert "3 frames beside it" in list(LeRobotSource(tmp_path))[1].problem


def test_images_as_files_below_the_dataset_are_read(tmp_path: Path) -> None:
    write_v2(tmp_path, cameras=())
    info = json.loads((tmp_path / "meta/info.json").read_text())
    info["features"][CAMERAS[0]] = {"dtype": "image", "shape": [32, 48, 3]}
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    for i in range(len(LENGTHS)):
        for step, frame in enumerate(frames(i)):
            file = tmp_path / f"images/{CAMERAS[0]}/episode_{i:06d}/frame_{step:06d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(file)
    records = list(LeRobotSource(tmp_path))
    assert not any(record.problem for record in records)
    decoded = records[1].decode()
    assert np.abs(decoded.images["static"].astype(int) - frames(1)).max() < 12
    file.unlink()
    assert "expected 6 images" in list(LeRobotSource(tmp_path))[3].problem


def test_images_of_any_usual_kind_are_read_and_depth_is_refused() -> None:
    colors = frames(0)[0]
    for kind, mode in (("WEBP", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "L"), ("TIFF", "RGB"), ("JPEG", "CMYK")):
        buffer = io.BytesIO()
        Image.fromarray(colors).convert(mode).save(buffer, kind)
        assert load_image(buffer.getvalue()).convert("RGB").size == (colors.shape[1], colors.shape[0])
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 900, np.uint16)).save(buffer, "PNG")
    with pytest.raises(DataError, match="as depth images have"):
        load_image(buffer.getvalue())
    with pytest.raises(DataError, match="got none of them"):
        load_image(b"GIF89a")


def test_missing_and_truncated_files_are_problems_of_their_episodes(tmp_path: Path) -> None:
    write_v2(tmp_path)

    def problems() -> list[str]:
        return [record.problem for record in LeRobotSource(tmp_path)]

    assert problems() == [""] * 4
    whole = data_v2(tmp_path, 1).read_bytes()
    data_v2(tmp_path, 1).write_bytes(whole[: len(whole) // 2])
    data_v2(tmp_path, 2).unlink()
    for camera in CAMERAS:
        video_v2(tmp_path, 3, camera).unlink()
    first, *others = problems()
    assert first == ""
    for got, words in zip(
        others, ("cannot be read as parquet", "no such file, expected the steps", "a video"), strict=True
    ):
        assert words in got and got.startswith("data/chunk-000/episode_") and got.endswith(".")
    data_v2(tmp_path, 0).unlink()
    assert "no such file" in problems()[0]  # the first file that is there is broken, which is no reason to stop


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (lambda: encode_frames(frames(0)[:-2], FPS), "expected 7 frames, one a step, from frame 0 on, got 5 of 5"),
        (lambda: encode_frames(frames(0, count=8), FPS), "expected 7 frames, one a step, from frame 0 on, got 8 of 8"),
        (lambda: encode_frames(frames(0), 2 * FPS), "expected 10 frames a second, got 20"),
        (lambda: encode_frames(frames(0), FPS)[:300], "truncated or corrupt"),
        (lambda: b"", "truncated or corrupt"),
    ],
)
def test_video_that_does_not_fit_its_steps(tmp_path: Path, video: Callable[[], bytes], words: str) -> None:
    write_v2(tmp_path)
    video_v2(tmp_path, 0).write_bytes(video())
    first, *others = LeRobotSource(tmp_path)
    assert words in first.problem and not any(record.problem for record in others)


def test_episode_of_another_width_is_left_out(tmp_path: Path) -> None:
    write_v2(tmp_path, cameras=())
    write_parquet(data_v2(tmp_path, 2), columns(2) | {"action": lists(numbers(2, 8))})
    problems = [record.problem for record in LeRobotSource(tmp_path)]
    assert [bool(problem) for problem in problems] == [False, False, True, False]
    assert "actions: expected 7 as in the first episode, got 8 numbers a step" in problems[2]


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("from_timestamp", None, "expected times in videos/observation.images.top/from_timestamp"),
        ("to_timestamp", float("nan"), "expected times in"),
        ("to_timestamp", 0.9, r"expected a span to 1.2000 s for 5 frames, got 0.9000 s"),
        ("from_timestamp", 1.9, "expected a span to 2.4000 s for 5 frames, got 1.2000 s"),
        ("from_timestamp", -0.5, "expected a span to"),
        ("file_index", None, "expected videos/observation.images.top/chunk_index and"),
    ],
)
def test_wrong_span_of_one_episode(tmp_path: Path, entry: str, value: object, words: str) -> None:
    write_v3(tmp_path)
    change_rows(tmp_path, lambda rows: rows[1].update({f"videos/{CAMERAS[0]}/{entry}": value}))
    problems = [record.problem for record in LeRobotSource(tmp_path)]
    assert words in problems[1] and problems[0] == problems[2] == problems[3] == ""


def test_span_past_the_end_of_the_video(tmp_path: Path) -> None:
    write_v3(tmp_path, cameras=CAMERAS[:1])
    shown = np.concatenate([frames(i) for i in range(3)])[:-2]
    (tmp_path / f"videos/{CAMERAS[0]}/chunk-000/file-000.mp4").write_bytes(encode_frames(shown, FPS))
    problems = [record.problem for record in LeRobotSource(tmp_path)]
    assert "expected 9 frames, one a step, from frame 12 on, got 7 of 19" in problems[2]
    assert problems[0] == problems[1] == problems[3] == ""


def test_span_with_another_number_of_frames_is_noticed_when_it_is_cut(tmp_path: Path) -> None:
    write_file(tmp_path / "long.mp4", encode_frames(frames(2), FPS))
    span = VideoSpan(file=tmp_path / "long.mp4", start=0.175, stop=0.575)
    assert read_header(EpisodeSpan(span=span, num_frames=4).encode().data).num_frames == 4
    record = with_video_files(Record(key="x", videos={"top": EpisodeSpan(span=span, num_frames=5)}))
    assert "expected 5 frames, one a step, got 4" in record.problem


def test_rows_of_an_episode_must_follow_each_other(tmp_path: Path) -> None:
    write_v3(tmp_path, cameras=())
    path = tmp_path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take([*range(6), 7, 6, *range(8, 21)]), path)
    problems = [record.problem for record in LeRobotSource(tmp_path)]
    assert "expected rows of episode 0 one after the other, got 7" in problems[0]
    assert "expected rows of episode 1 one after the other, got 5" in problems[1] and problems[2:] == ["", ""]
    pq.write_table(table.slice(0, 10), path)
    problems = [record.problem for record in LeRobotSource(tmp_path)]
    assert problems[0] == "" and "expected the 5 steps that meta promises, got 3" in problems[1]
    assert "expected rows of episode 2 one after the other, got 0" in problems[2]


def test_arrays_of_arrays_and_numbers_alone_are_columns(tmp_path: Path) -> None:
    content = columns(0) | {
        "nested": pa.array([[[1.0, 2.0], [3.0, 4.0]]] * 7),
        "flag": pa.array([True, False] * 3 + [True]),
        "half": pa.array(np.ones(7, np.float16)),
    }
    write_v2(tmp_path, cameras=())
    for i in range(len(LENGTHS)):
        data_v2(tmp_path, i).unlink()
    write_parquet(data_v2(tmp_path, 0), content)
    spec = EpisodeSpec(cameras={}, states=("nested", "flag", "half"), actions=("action",))
    first = next(iter(LeRobotSource(tmp_path, spec=spec)))
    assert first.states is not None and first.states.tolist() == [[1, 2, 3, 4, i % 2 == 0, 1] for i in range(7)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("meta/info.json", "[", "cannot be read as JSON"),
        ("meta/info.json", "[]", "expected `fps`, a number above 0"),
        ("meta/info.json", '{"fps": 0, "features": {}}', "expected `fps`, a number above 0 .*, got 0"),
        ("meta/info.json", '{"fps": "fast", "features": {}}', "expected `fps`, a number above 0 .*, got 'fast'"),
        ("meta/info.json", '{"fps": 30, "features": {"action": 3}}', "expected `features`"),
        ("meta/info.json", '{"fps": 30, "features": {}, "data_path": "../{episode_index}"}', "files in the dataset"),
        ("meta/info.json", '{"fps": 30, "features": {}, "video_path": "/x/{video_key}"}', "files in the dataset"),
        ("meta/info.json", '{"fps": 30, "features": {}, "data_path": "{episode.__class__}"}', "files in the dataset"),
        ("meta/info.json", '{"fps": 30, "features": {}, "data_path": "{chunk:03d}"}', "a value for 'chunk'"),
        ("meta/info.json", '{"fps": 30, "features": {}, "chunks_size": -1}', "a number as chunks_size"),
        ("meta/episodes.jsonl", '{"episode_index": 0}', "expected `episode_index` and `length`"),
        ("meta/episodes.jsonl", '{"episode_index": 0, "length": 3}\n{"episode_index": 0, "length": 4}', "got 0 again"),
        ("meta/episodes.jsonl", "{", "line 1: expected a JSON object, got '{'"),
        ("meta/episodes.jsonl", "3", "line 1: expected a JSON object, got '3'"),
    ],
)
def test_unusable_metadata_stop_at_opening(tmp_path: Path, name: str, content: str, words: str) -> None:
    write_v2(tmp_path, cameras=())
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words.replace("[", r"\[")):
        open_source(tmp_path)


def test_other_versions_and_broken_tables_stop_at_opening(tmp_path: Path) -> None:
    write_v3(tmp_path, cameras=())
    episodes, tasks = tmp_path / "meta/episodes/chunk-000/file-000.parquet", tmp_path / "meta/tasks.parquet"
    whole = episodes.read_bytes()
    pq.write_table(pa.table({"task_index": pa.array([0])}), tasks)
    with pytest.raises(DataError, match="expected `task_index` and the instructions as `task`"):
        LeRobotSource(tmp_path)
    tasks.unlink()
    assert [record.caption for record in LeRobotSource(tmp_path)] == [TASKS[0], TASKS[1]] * 2
    episodes.write_bytes(whole[:100])
    with pytest.raises(DataError, match="cannot be read as parquet"):
        LeRobotSource(tmp_path)
    episodes.unlink()
    with pytest.raises(DataError, match="expected parquet files that list the episodes"):
        LeRobotSource(tmp_path)
    for path in (episodes.parent, episodes.parent.parent):
        path.rmdir()
    change_info(tmp_path, codebase_version="v1.6")
    with pytest.raises(DataError, match=r"got neither \(the file states 'v1.6'\); .* convert the dataset"):
        LeRobotSource(tmp_path)


def test_patterns_know_names_and_widths_alone() -> None:
    values = {"chunk_index": 3, "video_key": "observation.images.top"}
    assert fill_pattern("a/{video_key}/c-{chunk_index:03d}.mp4", values) == "a/observation.images.top/c-003.mp4"
    for pattern in ("{video_key:03d}", "{chunk_index!r}", "{0}", "{chunk_index.real}", "{chunk_index:>9}"):
        with pytest.raises(DataError, match=r"info\.json"):
            fill_pattern(pattern, values)


def test_rows_of_an_empty_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", {name: column.slice(0, 0) for name, column in columns(0).items()})
    rows = EpisodeRows(tmp_path / "x.parquet", ["action"])
    with pytest.raises(DataError, match="got 0"):
        rows.episode(0)
    write_v2(tmp_path / "d", cameras=())
    write_parquet(data_v2(tmp_path / "d", 0), {name: column.slice(0, 0) for name, column in columns(0).items()})
    assert "expected the 7 steps that meta promises, got 0" in next(iter(LeRobotSource(tmp_path / "d"))).problem


@needs_sample
def test_real_dataset_with_one_episode_of_a_hundred() -> None:
    records = list(open_source(SAMPLE))
    assert len(records) == 100 and len({record.key for record in records}) == 100
    assert [i for i, record in enumerate(records) if not record.problem] == [29]
    assert all("no such file" in record.problem for i, record in enumerate(records) if i != 29)
    record = records[29]
    assert record.caption == "Pick up the yellow bottle on the table." and record.control_hz == 30
    assert record.states is not None and record.actions is not None
    assert record.states.shape == record.actions.shape == (221, 26)
    assert np.abs(record.actions - record.states).mean() < 0.1  # commanded joints lead the measured ones [rad]
    assert list(record.videos) == ["static"] and record.facts["robot"] == "Unitree_G1_Inspire"
    verdict = examine(record, FilterConfig(probe_frames=2))
    assert verdict.reason == "" and verdict.videos["static"].frames == 221
    stepped = list(itertools.islice(open_source(SAMPLE), 100))
    assert [again.key for again in stepped] == [before.key for before in records]
