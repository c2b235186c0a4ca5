"""The captioned-video corpora: what a reader yields is what the annotations hold, whatever state they are in."""

from __future__ import annotations

import csv
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from gr2.data_pipeline.readers import corpus_files
from gr2.data_pipeline.readers.corpus_files import index_videos, json_entries
from gr2.data_pipeline.readers.ego4d import Ego4dSource, mean_gap, plain_caption
from gr2.data_pipeline.readers.epic import EpicSource, find_epic, seconds_of
from gr2.data_pipeline.readers.howto100m import (
    HowTo100mSource,
    SpokenLine,
    new_words,
    speech_windows,
    spoken_lines,
)
from gr2.data_pipeline.readers.kinetics import KineticsSource, clip_of, find_kinetics
from gr2.data_pipeline.readers.record import Record, VideoSpan
from gr2.data_pipeline.readers.something import SomethingSource, find_something
from gr2.data_pipeline.readers.source import open_source
from gr2.data_pipeline.video.reader import open_video
from gr2.data_pipeline.video.transcode import cut_video
from gr2.errors import DataError

SAMPLES = Path(__file__).parents[2] / "../shared/real_samples"
EPIC = SAMPLES / "epic100"
needs_epic = pytest.mark.skipif(not EPIC.is_dir(), reason="the EPIC-KITCHENS-100 tables are not beside the checkout")

VIDEO_MISSING = "video missing"
WORDS = "ein Löffel スプーン 🥄"


def image_of(number: int) -> np.ndarray:
    """Draw the bits of a number as eight white or black squares: uint8 `[32 32 3]`."""
    bits = [number >> bit & 1 for bit in range(8)]
    squares = np.array(bits, np.uint8).reshape(2, 4).repeat(16, axis=0).repeat(8, axis=1) * 255
    return np.repeat(squares[..., None], 3, axis=2)


def numbers_in(video: Path | bytes) -> tuple[list[int], float]:
    """Read the numbers that the images of a video show, and its rate [1/s]."""
    with open_video(video) as reader:
        frames = reader.get_batch(range(len(reader)))
        bits = frames[:, 8::16, 4::8].mean(axis=-1).reshape(len(frames), 8) > 128
        return [int(row @ (1 << np.arange(8))) for row in bits], reader.fps


def write_numbered(path: Path, times: Sequence[float], codec: str = "libx264") -> Path:
    """Write a video whose frame i shows the number i at `times[i]` [s], to the millisecond, with B-frames in H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    base = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", base
        stream.options = {"g": "12", "bf": "2"} if codec == "libx264" else {"deadline": "realtime", "cpu-used": "8"}
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(image_of(number), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def at_rate(count: int, fps: float, start: float = 0.0) -> list[float]:
    """List times of frames [s]."""
    return [start + i / fps for i in range(count)]


def touch(path: Path) -> Path:
    """Make a file with the name of a video; readers do not open it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def write_json(path: Path, value: Any, bom: bool = False) -> Path:
    """Write JSON, with the marks that some editors leave: a BOM and CRLF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=False, indent=1)
    path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig") if bom else text.encode())
    return path


def write_table(path: Path, rows: Sequence[dict[str, Any]], bom: bool = False) -> Path:
    """Write a CSV file; CRLF line ends, as the csv module has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def span_of(record: Record) -> VideoSpan:
    """Return the one video of a record, which is a part of a longer one."""
    (video,) = record.videos.values()
    assert isinstance(video, VideoSpan)
    return video


def problems(records: Iterable[Record]) -> Counter[str]:
    """Count the problems by their first words; a record is either whole or has a problem and no video."""
    found: Counter[str] = Counter()
    for record in records:
        assert bool(record.problem) != bool(record.videos)
        found[record.problem.split(":")[0].split(",")[0]] += 1
    return found


def uneven(start: float = 0.0) -> list[float]:
    """List the times of a variable frame rate: 20 frames each at 33, 100, 200 and 20 ms, over and over."""
    return list(np.cumsum([start, *([0.033] * 20 + [0.1] * 20 + [0.2] * 20 + [0.02] * 20) * 2])[:150])


# Parts of long videos


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".ts", "libx264"), (".webm", "libvpx-vp9")])
@pytest.mark.parametrize("written", [at_rate(150, 25), at_rate(150, 25, 3.2), uneven(), uneven(3.2)])
def test_a_cut_holds_the_frames_whose_times_lie_in_it(
    tmp_path: Path, suffix: str, codec: str, written: list[float]
) -> None:
    video = write_numbered(tmp_path / f"long{suffix}", written, codec)
    with av.open(str(video)) as container:
        times = [float(frame.time or 0) for frame in container.decode(video=0)]
    last = times[-1]
    for start, stop in (
        (0.0, times[7]),
        (times[0], times[9]),
        (times[50], times[60]),
        (times[60] + 0.005, times[70] + 0.005),
        (times[101] - 0.0004, times[120] - 0.0004),
        (last - 0.3, last + 5.0),
        (last, last + 1.0),
    ):
        wanted = [i for i, time in enumerate(times) if start - 0.001 <= time < stop - 0.001]
        numbers, fps = numbers_in(cut_video(video, start, stop))
        assert numbers == wanted, (start, stop)
        if len(wanted) > 4:
            pace = (len(wanted) - 1) / (times[wanted[-1]] - times[wanted[0]])
            assert fps == pytest.approx(pace, rel=0.06)


def test_neighboring_cuts_part_a_video(tmp_path: Path) -> None:
    video = write_numbered(tmp_path / "long.mp4", uneven())
    borders = [0.0, 0.9, 1.0, 2.345, 3.0, 6.66, 9.0, 100.0]
    cuts = [numbers_in(cut_video(video, a, b))[0] for a, b in itertools.pairwise(borders)]
    assert [number for cut in cuts for number in cut] == list(range(150))


def test_a_cut_without_frames_is_told(tmp_path: Path) -> None:
    video = write_numbered(tmp_path / "long.mp4", at_rate(50, 25, 2.0))
    for start, stop in ((0.0, 1.0), (4.1, 6.0), (3.0, 3.0)):
        with pytest.raises(DataError, match="shows no frame from"):
            cut_video(video, start, stop)
    (tmp_path / "half.mp4").write_bytes(video.read_bytes()[:900])
    with pytest.raises(DataError, match="truncated or corrupt"):
        cut_video(tmp_path / "half.mp4", 0.0, 1.0)


# JSON of any size, tables, folders


def documents() -> list[Any]:
    """Make JSON values with everything that has a border: escapes, numbers, nesting, empty values."""
    rng = random.Random(0)
    texts = ["", "a", '"', "\\", WORDS, "\u2028", "}{][,:", "x" * 50]
    return [
        {rng.choice(texts) + str(i): rng.choice([i * 1e-7, -i, None, True, texts, {"k": texts}, []]) for i in range(12)}
        for _ in range(20)
    ]


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 30])
def test_json_read_entry_by_entry_is_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, indent: int | None
) -> None:
    monkeypatch.setattr(corpus_files, "_PIECE", piece)
    for document in documents():
        path = tmp_path / "file.json"
        path.write_text(json.dumps(document, ensure_ascii=False, indent=indent), encoding="utf-8-sig")
        assert dict(json_entries(path)) == document
        path.write_text(json.dumps(list(document.values()), indent=indent), encoding="utf-8")
        assert [value for _, value in json_entries(path)] == list(document.values())
        path.write_text(json.dumps({"version": 12, "inner": document, "after": 1}, indent=indent), encoding="utf-8")
        assert list(json_entries(path, inside="inner")) == [("version", 12), *document.items(), ("after", 1)]


@pytest.mark.parametrize("piece", [5, 1 << 20])
def test_json_cut_anywhere_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(corpus_files, "_PIECE", piece)
    data = json.dumps({"a": [1, {"b": "c\n"}], "d": 12, "e": None}).encode()
    path = tmp_path / "file.json"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"file\.json: cannot be read as JSON"):
            list(json_entries(path))
    for hostile in (
        b"[" * 100_000,
        b"{1: 2}",
        b'{"a" 1}',
        b'{"a": 1 "b": 2}',
        b'{"a": 1,}',
        b"\xff\xfe{}",
        b"[1, nope]",
    ):
        path.write_bytes(hostile)
        with pytest.raises(DataError, match="download it again"):
            list(json_entries(path))


def test_one_entry_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_files, "_PIECE", 1000)
    path = write_json(tmp_path / "file.json", {str(i): "x" * 400 for i in range(1000)})
    entries = json_entries(path)
    assert next(entries)[0] == "0"
    text = entries.gi_frame.f_locals["file"]  # type: ignore[attr-defined]
    assert text.buffer.tell() < path.stat().st_size / 2
    assert sum(1 for _ in entries) == 999


def test_videos_are_found_through_links_and_preferred_folders(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere/deep/b.MP4")
    for name in ("clips/a.mp4", "full_scale/a.mp4", "video_540ss/a.mp4", ".cache/c.mp4", "x/.part.mp4", "x/b.webm"):
        touch(tmp_path / "root" / name)
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/x/up").symlink_to(tmp_path / "root")
    found = index_videos(tmp_path / "root", ("full_scale", "video_540ss"))
    assert {stem: file.relative_to(tmp_path / "root").as_posix() for stem, file in found.items()} == {
        "a": "full_scale/a.mp4",
        "b": "linked/deep/b.MP4",
    }


# Something-Something V2

CLIPS = [
    {"id": "78687", "label": f"holding {WORDS}", "template": "Holding [something]", "placeholders": [WORDS]},
    {"id": "2", "label": " "},
    {"id": "78687", "label": "the same id again"},
    {"id": "404", "label": "not downloaded"},
    {"label": "no id"},
    "no entry",
    {"id": "5", "label": ["no", "text"]},
]


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (("something-something-v2-train.json", "something-something-v2-test.json"), ""),
        (("labels/train.json", "labels/test.json"), "20bn-something-something-v2"),
        (("annotations/something-something-v2-train.json", "labels/test.json"), "videos/part_0"),
    ],
)
@pytest.mark.parametrize("bom", [False, True])
def test_something_reads_both_layouts(tmp_path: Path, names: tuple[str, str], folder: str, bom: bool) -> None:
    write_json(tmp_path / names[0], CLIPS, bom)
    write_json(tmp_path / names[1], [{"id": "7"}, {"id": "8"}], bom)
    for name in ("78687", "2", "7", "999"):
        touch(tmp_path / folder / f"{name}.webm")
    source = open_source(tmp_path, camera="front")
    assert isinstance(source, SomethingSource)
    records = list(source)
    assert records == list(source) and len({record.key for record in records}) == len(records) == 9
    assert problems(records) == {
        "": 3,
        VIDEO_MISSING: 2,
        "duplicate id": 1,
        "expected an entry with an id and a label in words; repair it": 3,
    }
    first = records[0]
    assert first.videos == {"front": tmp_path / folder / "78687.webm"} and first.caption == f"holding {WORDS}"
    assert first.facts["template"] == "Holding [something]" and first.facts["placeholders"] == [WORDS]
    assert (first.facts["dataset"], first.facts["split"]) == ("something-something-v2", "train")
    assert [(r.facts["id"], r.facts["split"], r.caption) for r in records if r.videos][1:] == [
        ("2", "train", ""),
        ("7", "test", ""),
    ]
    json.dumps([dict(record.facts) for record in records])


def test_something_truncated_or_foreign_lists_are_refused(tmp_path: Path) -> None:
    data = write_json(tmp_path / "something-something-v2-validation.json", CLIPS).read_bytes()
    (tmp_path / "something-something-v2-validation.json").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="truncated; download it again"):
        open_source(tmp_path)
    write_json(tmp_path / "something-something-v2-validation.json", {"78687": "label"})
    with pytest.raises(DataError, match="expected a JSON list"):
        open_source(tmp_path)
    write_json(tmp_path / "other/labels/train.json", [{"image": 1}])
    assert not find_something(tmp_path / "other")
    with pytest.raises(DataError, match=r"labels/train\.json, found neither"):
        SomethingSource(tmp_path / "other")


# EPIC-KITCHENS-100


def epic_row(number: int, **changes: str) -> dict[str, str]:
    """Make a row of EPIC_100_train.csv."""
    row = {
        "narration_id": f"P01_01_{number}",
        "participant_id": "P01",
        "video_id": "P01_01",
        "narration_timestamp": "",
        "start_timestamp": "00:00:01.00",
        "stop_timestamp": "00:00:02.00",
        "start_frame": "999999",
        "stop_frame": "1000000",
        "narration": f"take {WORDS}",
        "verb": "take",
        "verb_class": "0",
        "noun": "plate",
        "noun_class": "2",
        "all_nouns": "['plate', 'spoon']",
        "all_noun_classes": "[2, 1]",
    }
    return row | changes


@needs_epic
def test_epic_real_tables_without_videos() -> None:
    source = open_source(EPIC)
    assert isinstance(source, EpicSource) and list(source.tables) == ["validation"]
    records = list(source)
    assert problems(records) == {VIDEO_MISSING: 9668}
    assert len({record.key for record in records}) == 9668
    assert len({record.facts["video_id"] for record in records}) == 138


@needs_epic
def test_epic_real_rows_become_spans_of_their_videos(tmp_path: Path) -> None:
    for table in EPIC.glob("*.csv"):
        (tmp_path / table.name).write_bytes(table.read_bytes())
    touch(tmp_path / "P01/videos/P01_11.MP4")
    touch(tmp_path / "P29/P29_05.mp4")
    records = [record for record in open_source(tmp_path) if record.videos]
    assert Counter(record.facts["video_id"] for record in records).keys() == {"P01_11", "P29_05"}
    first = records[0]
    assert span_of(first) == VideoSpan(file=tmp_path / "P01/videos/P01_11.MP4", start=0.0, stop=1.89)
    assert first.caption == "take plate" and first.facts["all_nouns"] == ["plate"]
    assert first.facts["all_noun_classes"] == [2] and first.facts["license"] == "CC BY-NC 4.0"
    # The one real row that passes the end of its video, by 13 ms: less than a frame.
    (last,) = (record for record in records if record.facts["narration_id"] == "P29_05_563")
    with (EPIC / "EPIC_100_video_info.csv").open(newline="") as file:
        durations = {row["video_id"]: float(row["duration"]) for row in csv.DictReader(file)}
    assert span_of(last).stop == durations["P29_05"]
    assert all(span_of(r).start < span_of(r).stop <= durations[r.facts["video_id"]] for r in records)


@pytest.mark.parametrize("place", ["P01/videos/P01_01.MP4", "P01/P01_01.mp4", "P01_01.mkv"])
@pytest.mark.parametrize("folder", ["", "epic-kitchens-100-annotations/"])
def test_epic_finds_videos_wherever_they_are_put(tmp_path: Path, place: str, folder: str) -> None:
    write_table(tmp_path / f"{folder}EPIC_100_train.csv", [epic_row(0)], bom=True)
    test_columns = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp")
    test_row = {name: value for name, value in epic_row(1).items() if name in test_columns}
    write_table(tmp_path / f"{folder}EPIC_100_test_timestamps.csv", [test_row])
    write_numbered(tmp_path / place, at_rate(60, 25))
    trained, tested = open_source(tmp_path)
    assert (trained.facts["split"], tested.facts["split"]) == ("train", "test")
    assert trained.caption == f"take {WORDS}" and tested.caption == ""
    clip = trained.decode()
    assert len(clip.frames) == 25  # type: ignore[union-attr]
    assert numbers_in(span_of(trained).encode().data)[0] == list(range(25, 50))


def test_epic_broken_rows_are_problems(tmp_path: Path) -> None:
    touch(tmp_path / "P01_01.mp4")
    rows = [
        epic_row(0, narration=""),
        epic_row(0),
        epic_row(2, start_timestamp="1.5"),
        epic_row(3, start_timestamp="00:00:03.00"),
        epic_row(4, all_nouns="['plate'"),
        epic_row(5, all_nouns="__import__('os').system('true')"),
        epic_row(6, stop_timestamp="00:00:10.01"),
        epic_row(7, stop_timestamp="00:00:10.5"),
        epic_row(8, start_timestamp="00:00:11.0", stop_timestamp="00:00:12.0"),
        epic_row(9, stop_timestamp="00:00:nan"),
        epic_row(10, video_id="P01_02"),
        epic_row(11, narration_id=""),
    ]
    write_table(tmp_path / "EPIC_100_validation.csv", rows)
    write_table(
        tmp_path / "EPIC_100_video_info.csv", [{"video_id": "P01_01", "duration": 10, "fps": 50, "resolution": ""}]
    )
    records = list(open_source(tmp_path))
    assert [bool(record.videos) for record in records] == [True, *[False] * 5, True, *[False] * 5]
    assert records[0].caption == "" and span_of(records[6]).stop == 10.0
    for record, words in zip(
        [r for r in records if r.problem],
        (
            "duplicate id",
            "expected a time HH:MM:SS.mmm, got '1.5'",
            "expected the start before the stop",
            "all_nouns: expected a list",
            "all_nouns: expected a list",
            "the part ends at 10.50 s, P01_01 lasts 10.00 s",
            "the part ends at 12.00 s",
            "got '00:00:nan'",
            VIDEO_MISSING,
            "narration_id is empty",
        ),
        strict=True,
    ):
        assert words in record.problem


def test_epic_tables_of_another_layout_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "EPIC_100_train.csv", [{"narration_id": "a", "video_id": "b"}])
    with pytest.raises(DataError, match=r"expected the columns .'start_timestamp', 'stop_timestamp', 'narration'"):
        open_source(tmp_path)
    (tmp_path / "EPIC_100_train.csv").write_bytes(b"")
    with pytest.raises(DataError, match="expected the columns"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="found none; copy the annotations"):
        EpicSource(tmp_path / "empty")
    assert find_epic(tmp_path / "empty") == {}
    assert seconds_of("01:02:03.5") == 3723.5


# Ego4D


def narrated(*points: tuple[float, str]) -> dict[str, Any]:
    """Make one pass of narration.json."""
    entries = [{"timestamp_sec": t, "timestamp_frame": round(30 * t), "narration_text": text} for t, text in points]
    return {"narrations": entries, "summaries": []}


def ego4d_narrations() -> dict[str, Any]:
    """Narrate three videos: gaps of 4 s on average, gaps of 2 s, and a single narration; another is not there."""
    first = narrated((0.5, "#C C picks up a cup"), (4.5, f"#O A man X holds {WORDS}"), (8.5, "#C C cuts #unsure"))
    return {
        "uid-a": {"narration_pass_1": first, "narration_pass_2": narrated((2.0, "#C C rests"), (6.0, ""))},
        "uid-b": {"narration_pass_2": narrated((5.0, "#C C walks"), (3.0, "#C C looks around"), (7.0, "#C C sits"))},
        "uid-c": {"status": "redacted", "narration_pass_1": narrated((9.8, "#C C waves"))},
        "uid-missing": {"narration_pass_1": narrated(*((float(t), "#C C waits") for t in range(0, 90, 3)))},
        "uid-silent": {"status": "no narration"},
    }


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("folder", ["", "v2/annotations/"])
def test_ego4d_windows_are_those_of_egoclip(tmp_path: Path, nested: bool, folder: str) -> None:
    content = ego4d_narrations()
    wrapped = {"version": "1", "date": "x", "description": {"a": 1}, "videos": content, "after": []}
    write_json(tmp_path / f"{folder}narration.json", wrapped if nested else content, bom=nested)
    metadata = [{"video_uid": f"uid-{x}", "duration_sec": 10.0, "scenarios": ["Cooking"]} for x in "abc"]
    write_json(tmp_path / f"{folder}ego4d.json", {"date": "x", "videos": metadata})
    for name in ("uid-a", "uid-b", "uid-c"):
        touch(tmp_path / f"v2/full_scale/{name}.mp4")
    source = open_source(tmp_path)
    assert isinstance(source, Ego4dSource)
    records = list(source)
    assert records == list(source) and problems(records) == {"": 9, VIDEO_MISSING: 1}
    # Mean gaps 4, 2 and 3 s, their mean 3 s: a missing video counts, windows do not depend on what is downloaded.
    half = {"uid-a": 4 / 6, "uid-b": 2 / 6, "uid-c": 0.5}
    for record in records:
        if record.videos:
            span, time = span_of(record), record.facts["timestamp_sec"]
            assert span.start == pytest.approx(max(time - half[record.facts["video_uid"]], 0.0))
            assert span.stop == pytest.approx(min(time + half[record.facts["video_uid"]], 10.0))
            assert record.facts["scenarios"] == ["Cooking"]
    assert [record.caption for record in records if record.videos] == [
        "C picks up a cup",
        f"A man X holds {WORDS}",
        "C cuts something",
        "C rests",
        "",
        "C walks",
        "C looks around",
        "C sits",
        "C waves",
    ]
    assert records[2].facts["narration_text"] == "#C C cuts #unsure"
    assert [record.facts.get("pass") for record in records[:4]] == ["narration_pass_1"] * 3 + ["narration_pass_2"]


def test_ego4d_reads_the_manifest_and_any_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "narration.json", {"a": {"narration_pass_1": narrated((1.0, "x"), (2.0, "y"), (2.4, "z"))}})
    write_table(tmp_path / "manifest.csv", [{"video_uid": "a", "duration_sec": "2.0", "scenarios": "['Cooking']"}])
    for place in ("clips/a.mp4", "video_540ss/a.mp4"):
        touch(tmp_path / "v2" / place)
    records = list(open_source(tmp_path))
    assert span_of(records[0]).file == tmp_path / "v2/video_540ss/a.mp4"
    assert span_of(records[1]).stop == 2.0 and records[1].facts["scenarios"] == "['Cooking']"
    assert records[2].problem == ""  # 2.4 s, half a second of window reaches back into the video
    assert (span_of(records[2]).start, span_of(records[2]).stop) == (pytest.approx(1.9), 2.0)


def test_ego4d_late_stream_is_cut_at_the_times_of_the_file(tmp_path: Path) -> None:
    times = at_rate(100, 25, 1.0)
    write_numbered(tmp_path / "a.mp4", times)
    write_json(tmp_path / "narration.json", {"a": {"narration_pass_1": narrated((2.0, "x"), (3.0, "y"))}})
    for record in open_source(tmp_path):
        span = span_of(record)
        assert span.stop - span.start == pytest.approx(1.0)
        wanted = [i for i, time in enumerate(times) if span.start - 0.001 <= time < span.stop - 0.001]
        assert numbers_in(span.encode().data)[0] == wanted and len(wanted) == 25


def test_ego4d_broken_narrations_are_problems(tmp_path: Path) -> None:
    good = narrated((1.0, "#C C a"), (2.0, "#C C b"))
    broken = [{"timestamp_sec": t, "narration_text": "x"} for t in ("soon", None, -1, float("nan"), 99.0)]
    passes = {"narration_pass_1": {"narrations": [*good["narrations"], *broken, "text", {"timestamp_sec": 1.5}]}}
    content = json.dumps({"a": passes, "b": {"narration_pass_1": None}, "c": 1, "d": {"narration_pass_2": good}})
    twice = content[:-1] + ', "d": {"narration_pass_2": {"narrations": []}}}'
    (tmp_path / "narration.json").write_text(twice)
    write_json(tmp_path / "ego4d.json", {"videos": [{"video_uid": "a", "duration_sec": 10}, {"none": 1}, 3]})
    for name in "abcd":
        touch(tmp_path / f"{name}.mp4")
    records = list(open_source(tmp_path))
    found = problems(records)
    assert found[""] == 5 and found["duplicate id"] == 1 and len(records) == 12
    assert sum("timestamp_sec" in record.problem for record in records) == 6
    assert any("(got 'soon')" in record.problem for record in records)


def test_ego4d_without_whole_narrations_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "ego4d.json", {"videos": []})
    with pytest.raises(DataError, match=r"expected narration\.json, found none"):
        open_source(tmp_path)
    data = write_json(tmp_path / "narration.json", ego4d_narrations()).read_bytes()
    (tmp_path / "narration.json").write_bytes(data[:-40])
    with pytest.raises(DataError, match="truncated; download it again"):
        open_source(tmp_path)


def test_narrations_become_plain_captions() -> None:
    for marked, plain in (
        ("#C C picks up a cup", "C picks up a cup"),
        ("#c c  opens the  door. ", "C opens the door."),
        ("#C picks", "C picks"),
        ("#C Cuts bread", "C Cuts bread"),
        ("#O The man Y talks to C", "The man Y talks to C"),
        ("#C C holds #Unsure in his hand", "C holds something in his hand"),
        ("#summary C was in a kitchen", "C was in a kitchen"),
        ("#", ""),
        ("plays in C # major", "plays in C major"),
    ):
        assert plain_caption(marked) == plain
    assert mean_gap({"one": narrated((5.0, "x")), "two": narrated((9.0, "a"), (1.0, "b"), (2.0, "c"))}) == 4.0
    assert mean_gap({"one": None, "two": narrated((5.0, "x"))}) == 0.0


# HowTo100M


def rolling_lines(rng: random.Random) -> list[SpokenLine]:
    """Draw lines as a recognizer gives them: overlapping, repeated, with pauses, some long, some of no length."""
    lines, time = [], 0.0
    for number in range(rng.randrange(1, 40)):
        time += rng.choice([0.0, 0.3, 1.0, 2.0, 3.5, 8.0, 30.0])
        length = rng.choice([0.0, 0.4, 1.5, 4.0, 9.5, 12.0, 300.0])
        lines.append(SpokenLine(start=time, stop=time + length, text=f"w{number} w{number + 1} w{number + 2}"))
    return lines


def test_speech_windows_keep_their_laws() -> None:
    rng = random.Random(0)
    for _ in range(400):
        lines = rolling_lines(rng)
        windows = speech_windows(lines)
        assert all(2.0 - 1e-9 <= window.stop - window.start <= 10.0 + 1e-9 for window in windows)
        assert all(a.stop <= b.start for a, b in itertools.pairwise(windows))
        assert {window.start for window in windows} <= {line.start for line in lines}
        words = [word for window in windows for word in window.text.split()]
        assert list(dict.fromkeys(words)) == [f"w{i}" for i in range(len(lines) + 2)]


def spans(*times: tuple[float, float]) -> list[tuple[float, float]]:
    """Cut windows from lines that last from one time to another [s], each of its own word."""
    lines = [SpokenLine(start=start, stop=stop, text=f"word{start}") for start, stop in times]
    return [(window.start, window.stop) for window in speech_windows(lines)]


def test_speech_is_joined_up_to_ten_seconds_and_to_a_pause() -> None:
    assert spans((0, 4), (4, 8), (8, 12), (12, 14)) == [(0, 8), (8, 14)]
    assert spans((0, 5), (5, 10), (10, 10.5)) == [(0, 10), (10, 12)]
    assert spans((0, 3), (5, 6)) == [(0, 6)] and spans((0, 3), (5.1, 6)) == [(0, 3), (5.1, 7.1)]
    assert spans((0, 1), (1, 300), (300, 303)) == [(0, 10), (300, 303)]


def test_rolled_words_are_said_once() -> None:
    lines = [
        SpokenLine(start=0.0, stop=4.0, text="so today we"),
        SpokenLine(start=2.0, stop=6.0, text="so today we are going to"),
        SpokenLine(start=4.0, stop=8.0, text="are going to bake"),
        SpokenLine(start=8.0, stop=8.5, text="bake"),
        SpokenLine(start=20.0, stop=20.5, text="yes"),
        SpokenLine(start=40.0, stop=80.0, text="music"),
    ]
    assert speech_windows(lines) == [
        SpokenLine(start=0.0, stop=8.5, text="so today we are going to bake"),
        SpokenLine(start=20.0, stop=22.0, text="yes"),
        SpokenLine(start=40.0, stop=50.0, text="music"),
    ]
    assert new_words("it is very", "very good") == "very good"
    assert new_words("STIR the pot", "the Pot now") == "now" and new_words("", "now") == "now"


def test_howto100m_windows_carry_speech_and_categories(tmp_path: Path) -> None:
    rng = random.Random(1)
    lines = rolling_lines(rng)
    entry = {
        "start": [line.start for line in reversed(lines)],
        "end": [line.stop for line in reversed(lines)],
        "text": [f"{WORDS} {line.text}" for line in reversed(lines)],
    }
    captions = {"-a_b-C": entry, "gone": entry, "broken": {"start": [0.0], "end": [], "text": ["x"]}, "bad": 3}
    captions["nan"] = {"start": [0.0, 1.0, 2.0], "end": [1.0, 2.0, 3.0], "text": [float("nan"), " ", ""]}
    captions["late"] = {"start": ["soon"], "end": [2.0], "text": ["x"]}
    write_json(tmp_path / "raw_caption.json", captions, bom=True)
    write_json(tmp_path / "caption.json", {"-a_b-C": {"start": [], "end": [], "text": []}})
    row = {"category_1": "Food", "category_2": "Drinks, hot", "rank": 3, "task_id": 7}
    write_table(tmp_path / "HowTo100M_v1.csv", [{"video_id": name} | row for name in ("-a_b-C", "gone")], bom=True)
    for name in ("-a_b-C.webm", "broken.mkv", "bad.mp4", "nan.mp4", "late.mp4"):
        touch(tmp_path / "videos" / name)
    source = open_source(tmp_path)
    assert isinstance(source, HowTo100mSource) and source.captions.name == "raw_caption.json"
    records = list(source)
    assert records == list(source) and len({record.key for record in records}) == len(records)
    windows = speech_windows(spoken_lines(entry))
    assert [(span_of(r).start, span_of(r).stop, r.caption) for r in records if r.videos] == [
        (window.start, window.stop, window.text) for window in windows
    ]
    assert sum(record.problem == VIDEO_MISSING for record in records) == 1
    assert sum("of one length" in record.problem for record in records) == 2
    assert sum("got 'soon' and 2.0" in record.problem for record in records) == 1
    facts = records[0].facts
    assert (facts["caption_kind"], facts["category"], facts["subcategory"]) == ("asr", "Food", "Drinks, hot")


def test_howto100m_unusable_captions_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "HowTo100M_v1.csv", [{"video_id": "a"}])
    with pytest.raises(DataError, match=r"raw_caption\.json or caption\.json .*found neither"):
        open_source(tmp_path)
    entry = {"start": [0.0], "end": [3.0], "text": ["x"]}
    data = write_json(tmp_path / "caption.json", {"a": entry, "b": entry}).read_bytes()
    assert len(list(open_source(tmp_path))) == 2
    (tmp_path / "caption.json").write_bytes(data[:-25])
    with pytest.raises(DataError, match="truncated; download it again"):
        open_source(tmp_path)
    (tmp_path / "caption.json").write_bytes(data[:-25] + b"}")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        list(open_source(tmp_path))
    write_json(tmp_path / "caption.json", {"a": entry})
    (tmp_path / "HowTo100M_v1.csv").write_text("id,rank\na,1\n")
    with pytest.raises(DataError, match=r"expected the columns .'video_id'.*, got .'id', 'rank'"):
        open_source(tmp_path)
    write_json(tmp_path / "images/caption.json", {"1.jpg": "a dog"})
    assert open_source(tmp_path / "images").kind == "folder"


# Kinetics

YOUTUBE_IDS = ["-3B32lodo2M", "_dbcJuKJQNs", "--_-_--_--_", "a_000001_00", "0_000010_000"]


@pytest.mark.parametrize("youtube_id", YOUTUBE_IDS)
def test_clip_names_are_taken_apart_from_the_right(youtube_id: str) -> None:
    for start, end in ((0, 10), (59, 69), (999989, 999999)):
        assert clip_of(f"{youtube_id}_{start:06d}_{end:06d}") == (youtube_id, start, end)
    for name in (youtube_id, f"{youtube_id}_1_2", "_000001_000002", f"{youtube_id}_000001_0000002x"):
        assert clip_of(name) is None


@pytest.mark.parametrize("place", [lambda label: "", lambda label: "train/", lambda label: f"train/{label}/"])
def test_kinetics_tables_name_the_clips(tmp_path: Path, place: Callable[[str], str]) -> None:
    label = 'playing "air, drums"'
    rows = [
        {"label": label, "youtube_id": name, "time_start": 59, "time_end": 69, "split": "train", "is_cc": i % 2}
        for i, name in enumerate(YOUTUBE_IDS)
    ]
    write_table(tmp_path / "annotations/train.csv", [*rows, rows[0], rows[1] | {"time_start": "soon"}], bom=True)
    tested = {"youtube_id": "lateclip_-_", "time_start": "3.0", "time_end": "13.0", "split": "test"}
    write_table(tmp_path / "annotations/test.csv", [tested, tested | {"youtube_id": "gone"}])
    for name in YOUTUBE_IDS:
        touch(tmp_path / place(label) / f"{name}_000059_000069.mp4")
    touch(tmp_path / "test/lateclip_-__000003_000013.mp4")
    touch(tmp_path / "test/unannotated_000003_000013.mp4")
    source = open_source(tmp_path)
    assert isinstance(source, KineticsSource) and [table.name for table in source.tables] == ["test.csv", "train.csv"]
    records = list(source)
    assert records == list(source) and len({record.key for record in records}) == len(records) == 9
    assert problems(records) == {
        "": 6,
        VIDEO_MISSING: 1,
        "duplicate id": 1,
        "expected a time in seconds from 0 to 999999": 1,
    }
    clips = [record for record in records if record.videos]
    assert [clip.facts["youtube_id"] for clip in clips] == ["lateclip_-_", *YOUTUBE_IDS]
    assert [clip.caption for clip in clips] == ["", *[label] * 5]
    assert [clip.facts["split"] for clip in clips] == ["test", *["train"] * 5]
    assert [clip.facts.get("is_cc") for clip in clips] == [None, "0", "1", "0", "1", "0"]


@pytest.mark.parametrize("above", ["", "kinetics_700_val/"])
def test_kinetics_without_table_takes_the_class_folder(tmp_path: Path, above: str) -> None:
    for i, name in enumerate(YOUTUBE_IDS):
        label = ("air drumming", "zumba_class")[i % 2]
        touch(tmp_path / f"{above}{label}/{name}_000000_000010.mp4")
    touch(tmp_path / f"{above}air drumming/notes.mp4")
    source = open_source(tmp_path)
    assert isinstance(source, KineticsSource) and source.tables == []
    records = list(source)
    assert Counter(record.caption for record in records) == {"air drumming": 3, "zumba class": 2}
    assert {record.facts["youtube_id"] for record in records} == set(YOUTUBE_IDS)
    assert {record.facts.get("split") for record in records} == {"validation" if above else None}


def test_other_folders_are_no_corpus(tmp_path: Path) -> None:
    for name in ("a/one.mp4", "b/two_000001.mp4", "three_000001_000002.mp4"):
        touch(tmp_path / name)
    (tmp_path / "captions.csv").write_text("file,caption\na/one.mp4,one\n")
    write_json(tmp_path / "train.json", [{"id": "1", "template": "x"}])
    assert find_kinetics(tmp_path) == [] and open_source(tmp_path).kind == "folder"
    with pytest.raises(DataError, match="found neither"):
        KineticsSource(tmp_path)
    with pytest.raises(DataError, match="found neither"):
        KineticsSource(tmp_path / "nothing")


def test_a_quote_that_is_never_closed_is_one_sentence(tmp_path: Path) -> None:
    rows = "".join(f"label,id{i},0,10,train\n" for i in range(9000))
    (tmp_path / "train.csv").write_text(
        'label,youtube_id,time_start,time_end,split\n"never closed,a,0,10,train\n' + rows
    )
    with pytest.raises(DataError, match=r"train\.csv: cannot be read as a table"):
        list(open_source(tmp_path))
