"""Webdataset tars of other writers, and of our own, are read as a source."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from gr2.contracts import Episode
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.readers.source import open_source
from gr2.data_pipeline.store.episodes import write_episode
from gr2.data_pipeline.video.transcode import encode_frames
from gr2.errors import DataError


def frames(seed: int, count: int = 8) -> np.ndarray:
    """Draw coarse noise: uint8 `[f h w 3]`."""
    coarse = np.random.default_rng(seed).integers(0, 255, (count, 4, 6, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], mode: str = "w") -> None:
    """Write a tar of members in this order; of a list, one name may come twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_captions_stand_in_text_or_json_and_cameras_in_names(tmp_path: Path) -> None:
    videos = [encode_frames(frames(seed), 8.0) for seed in range(4)]
    write_tar(
        tmp_path / "in/00000.tar",
        {
            "000000000.mp4": videos[0],
            "000000000.txt": b" a dog runs\n",
            "000000000.json": json.dumps({"caption": "not this one", "key": "000000000"}).encode(),
            "000000001.mp4": videos[1],
            "000000001.json": json.dumps({"caption": "a cat sleeps", "url": "x"}).encode(),
        },
    )
    write_tar(tmp_path / "in/00001.tar", {"a.static.mp4": videos[2], "a.gripper.mp4": videos[3], "b.json": b"{broken"})
    records = list(open_source(tmp_path / "in"))
    assert [(r.caption, list(r.videos)) for r in records] == [
        ("a dog runs", ["static"]),
        ("a cat sleeps", ["static"]),
        ("", ["static", "gripper"]),
        ("", []),
    ]
    assert "cannot be read" in records[3].problem and len({record.key for record in records}) == 4
    clip = records[1].decode()
    assert clip.fps == 8.0 and np.abs(clip.frames.astype(int) - frames(1)).mean() < 2
    assert [r.key for r in open_source(str(tmp_path / "in/{00000..00001}.tar"))] == [r.key for r in records]


def test_own_shards_come_back_as_the_episodes_they_hold(tmp_path: Path) -> None:
    steps = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    episode = Episode(images={"static": frames(0)}, states=steps, actions=steps, instruction="lift it", control_hz=8.0)
    write_episode(tmp_path / "in", 0, episode, {"task": "lift"})
    write_video_shards(source=str(tmp_path / "in"), out=tmp_path / "shards")
    (record,) = open_source(tmp_path / "shards")
    assert record.caption == "lift it" and record.control_hz == 8.0 and record.facts["task"] == "lift"
    found = record.decode()
    assert isinstance(found, Episode) and np.array_equal(found.actions, steps)


def test_broken_and_missing_tars_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/0.tar", {"a.mp4": encode_frames(frames(0), 8.0), "a.txt": b"x", "b.mp4": b"y" * 2000})
    whole = (tmp_path / "in/0.tar").read_bytes()
    (tmp_path / "in/0.tar").write_bytes(whole[: len(whole) // 2])
    records = list(open_source(tmp_path / "in"))
    assert "0.tar: cannot be read" in records[-1].problem
    with pytest.raises(DataError, match=r"nowhere\.tar: no such file"):
        open_source(tmp_path / "nowhere.tar")


def test_archives_beside_a_corpus_are_not_taken_for_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "archive.tar", {"x.mp4": b"1"})
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/train.json").write_text('[{"id": "1", "label": "open it", "template": "", "placeholders": []}]')
    assert open_source(tmp_path).kind == "something"


def test_names_of_members_are_split_where_they_make_sense(tmp_path: Path) -> None:
    write_tar(tmp_path / "takes.tar.gz", [
        ("take 0.5 (clean).mp4", b"a"), ("take 0.5 (clean).txt", b"one"), ("._take.mp4", b"x"),
        ("take 1.5.mp4", b"b"), ("take 1.5.txt", b"two"),
        ("d/clip.0.mp4", b"c"), ("d/clip.1.mp4", b"d"), ("d/clip.json", b'{"caption": "three"}'),
        ("d/e.gripper.mp4", b"e"), ("d/e.static.mp4", b"f"),
    ], "w:gz")  # fmt: skip
    found = [(record.caption, list(record.videos)) for record in open_source(tmp_path)]
    assert found == [("one", ["static"]), ("two", ["static"]), ("three", ["0", "1"]), ("", ["gripper", "static"])]


def test_a_member_twice_or_apart_costs_its_own_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [
        ("a.mp4", b"a"), ("b.mp4", b"b"), ("b.mp4", b"b"), ("c.mp4", b"c"), ("a.txt", b"words"), ("d.mp4", b"d"),
    ])  # fmt: skip
    records = list(open_source(tmp_path / "x.tar"))
    assert [record.source.rpartition(": ")[2] for record in records] == ["a", "b", "c", "a", "d"]
    assert [record.problem.rpartition("; ")[2] for record in records] == [
        "", "write the tar again, each name once", "", "sort the tar by name", "",
    ]  # fmt: skip
    assert len({record.key for record in records}) == 5
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[:2000])  # ends in the middle of the second header
    *whole, broken = open_source(tmp_path / "x.tar")
    assert "cannot be read" in broken.problem and not any(record.problem for record in whole)
