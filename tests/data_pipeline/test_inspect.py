"""`gr2 data inspect` counts what is there, names what is broken, and advises only where something is to fix."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.cli.main import main
from gr2.contracts import Episode
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.inspection import inspect as inspection
from gr2.data_pipeline.inspection.caption_tally import CaptionTally, language_of
from gr2.data_pipeline.inspection.inspect import inspect_source
from gr2.data_pipeline.inspection.probe import cost_of_decoding, probe
from gr2.data_pipeline.inspection.source_tally import SourceTally, reason_of
from gr2.data_pipeline.readers.record import Record, VideoBytes, VideoSpan
from gr2.data_pipeline.store.episodes import write_episode
from gr2.data_pipeline.store.shards import list_shards, read_index
from gr2.data_pipeline.tokens import write_token_shards
from gr2.data_pipeline.video.reader import write_video
from gr2.data_pipeline.video.transcode import encode_frames
from gr2.errors import ConfigError, DataError

SHARED = Path(__file__).parents[2] / "../shared"
SAMPLES, MINI = SHARED / "real_samples", SHARED / "calvin/mini_dataset"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="real sample data are not beside the checkout")
needs_mini = pytest.mark.skipif(not MINI.is_dir(), reason="the CALVIN sample is not beside the checkout")

FACTS = {"codebook_size": 256, "grid": [4, 4], "sha256": "fake"}


def noise(num_frames: int, seed: int = 0, size: int = 32) -> np.ndarray:
    """Draw coarse colored noise that changes with each frame: uint8 `[f h w 3]`."""
    coarse = np.random.default_rng(seed).integers(0, 255, (num_frames, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def write_clips(root: Path, count: int = 4, num_frames: int = 12, fps: float = 10) -> Path:
    """Write clips of noise, each with a caption of its own in `captions.csv`."""
    for i in range(count):
        write_video(root / f"clip_{i:02d}.mp4", noise(num_frames, seed=i), fps=fps, pixel_format="yuv420p")
    rows = "".join(f'clip_{i:02d}.mp4,"put the block {i} on the table"\n' for i in range(count))
    (root / "captions.csv").write_text("file,caption\n" + rows)
    return root


def write_recording(root: Path, count: int = 3) -> Path:
    """Record episodes whose states and actions are as they should be."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        states = rng.uniform(0, 0.5, (40, 16)).astype(np.float32)
        states[:, 3:7] = [0, 0, np.sin(0.3), np.cos(0.3)]
        states[:, 5] = np.linspace(0.1, 0.3, 40)
        states[:, 6] = np.sqrt(1 - states[:, 5] ** 2)
        states[:, 3:5] = 0
        states[:, 7:9] = (np.arange(40)[:, None] > 20).astype(np.float32)
        episode = Episode(
            images={"static": noise(20, seed), "gripper": noise(20, seed + 50)},
            states=states,
            actions=np.concatenate([states[:, :7], states[:, 8:9]], axis=1),
            instruction=f"lift the block {seed}",
            control_hz=20.0,
            frame_stride=2,
        )
        write_episode(root, seed, episode, {})
    return root


def advice_of(source: Path, **options: Any) -> list[str]:
    """Inspect a source and return what to fix."""
    return list(inspect_source(source=str(source), **options)["advice"])


def test_a_clean_folder_needs_no_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = inspect_source(source=str(write_clips(tmp_path)))
    assert summary["advice"] == [] and summary["problems"] == []
    assert "what to fix: nothing found" in capsys.readouterr().out
    assert (summary["records"], summary["episodes"], summary["clips"]) == (4, 0, 4)
    assert summary["seconds"]["total"] == pytest.approx(4.8) and summary["fps"] == {"10": 4}
    assert summary["sizes"] == {"32x32": 4} and summary["codecs"] == {"h264": 4}
    assert summary["pixel_formats"] == {"yuv420p": 4} and summary["decoders"] == {"pyav": 4}
    assert summary["captions"]["languages"] == {"English": 4} and summary["captions"]["different"] == 4


def test_episodes_are_measured_and_constant_numbers_named(tmp_path: Path) -> None:
    summary = inspect_source(source=str(write_recording(tmp_path)))
    assert (summary["reader"], summary["version"]) == ("recorded", "gr2-episode-1")
    assert summary["episodes"] == 3 and summary["steps"]["lengths"]["total"] == 120
    assert summary["steps"]["control_hz"] == {"20": 3} and summary["steps"]["state_widths"] == {"16": 3}
    assert summary["cameras"] == {"static": 3, "gripper": 3} and summary["missing_cameras"] == {}
    constant = "Check {}: constant in all records; leave what never moves out of `{}` in a `--spec`."
    assert summary["advice"] == [
        constant.format("states qx, qy", "states"),
        constant.format("actions qx, qy", "actions"),
    ]


def test_suspicious_numbers_are_advised(tmp_path: Path) -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        states = rng.uniform(0, 0.5, (40, 16)).astype(np.float32)
        states[:, 3:7] = [0, 0, 0.6, 0.8]
        states[:, 9:] *= 200
        actions = states[:, :8].copy()
        images = {"static": noise(40, seed)}
        episode = Episode(images=images, states=states, actions=actions, instruction="lift it", control_hz=20.0)
        folder = write_episode(tmp_path, seed, episode, {})
        actions[seed, 0] = np.nan
        np.savez(folder / "steps.npz", states=states, actions=actions)
    lines = "\n".join(advice_of(tmp_path))
    assert "joint 1 [rad]" in lines and "UNITS: looks like degrees" in lines
    assert "Fix actions: 2 rows with NaN or infinity" in lines


def test_missing_captions_are_advised(tmp_path: Path) -> None:
    root = write_clips(tmp_path)
    (root / "captions.csv").write_text("file,caption\nclip_00.mp4,put the cup on the table\n")
    assert advice_of(root) == ["Write the captions that 3 of 4 records lack (75%) with `gr2 data caption`."]
    (root / "captions.csv").unlink()
    assert advice_of(root) == ["Write captions with `gr2 data caption`: no record has any."]


def test_captions_in_other_languages_are_advised(tmp_path: Path) -> None:
    root = write_clips(tmp_path, count=2)
    text = "file,caption\nclip_00.mp4,put the cup on the table\nclip_01.mp4,stelle die Tasse auf den Tisch\n"
    (root / "captions.csv").write_text(text)
    (line,) = advice_of(root)
    assert line.startswith("Translate") and "1 in German" in line


def test_mixed_frame_rates_are_advised_with_what_is_left(tmp_path: Path) -> None:
    root = write_clips(tmp_path, count=2)
    write_video(root / "clip_01.mp4", noise(24, seed=9), fps=20, pixel_format="yuv420p")
    (line,) = advice_of(root)
    assert "(10 to 20 frames a second) with `gr2 data tokens --target-fps 10`." in line
    write_video(root / "clip_01.mp4", noise(24, seed=9), fps=13, pixel_format="yuv420p")
    (line,) = advice_of(root)
    assert "which leaves 10 to 13; for one rate: `ffmpeg" in line


def test_long_clips_are_advised(tmp_path: Path) -> None:
    root = write_clips(tmp_path, count=1, num_frames=70, fps=1)
    (line,) = advice_of(root)
    assert "up to 70 s" in line and "--window-seconds" in line


def test_variable_frame_rate_is_advised(tmp_path: Path) -> None:
    import av

    root = write_clips(tmp_path, count=1)
    with av.open(str(root / "clip_00.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for pixels, tick in zip(noise(12), [0, 1, 2, 5, 6, 7, 11, 12, 13, 17, 18, 19], strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (line,) = advice_of(root)
    assert line.startswith("Encode 1 videos of variable frame rate") and "-fps_mode cfr" in line


@pytest.mark.parametrize(("transfer", "advised"), [("smpte2084", 1), ("arib-std-b67", 1), ("bt709", 0)])
def test_high_dynamic_range_is_advised(tmp_path: Path, transfer: str, advised: int) -> None:
    import av

    root = write_clips(tmp_path, count=1)
    with av.open(str(root / "clip_00.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"x264-params": f"transfer={transfer}"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for pixels in noise(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
    lines = advice_of(root)
    assert len(lines) == advised and all("1 videos of high dynamic range" in line for line in lines)


def test_slow_codec_is_advised_with_the_measured_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    root = write_clips(tmp_path, count=2)
    with av.open(str(root / "clip_00.mp4"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for pixels in noise(12, 7):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())
    monkeypatch.setattr(inspection, "cost_of_decoding", lambda video: 3.2)
    (line,) = advice_of(root)
    assert line.startswith("Encode 1 videos again, mpeg4 takes 3.2 times as long as H.264")
    monkeypatch.setattr(inspection, "cost_of_decoding", lambda video: 1.2)
    assert advice_of(root) == []
    assert 0.05 < cost_of_decoding(root / "clip_01.mp4") < 20


def test_broken_videos_are_grouped_named_and_advised(tmp_path: Path) -> None:
    root = write_clips(tmp_path)
    for name in ("bad_a.mp4", "bad_b.mp4"):
        (root / name).write_bytes((root / "clip_00.mp4").read_bytes()[: 900 + len(name)] + name.encode())
    (root / "empty.mp4").touch()
    with (root / "captions.csv").open("a") as table:
        table.write("bad_a,put the a down\nbad_b,put the b down\nempty,put the c down\n")
    summary = inspect_source(source=str(root))
    assert summary["broken"] == 3 and summary["broken_share"] == round(3 / 7, 4)
    assert [group["count"] for group in summary["problems"]] == [2, 1]
    assert [example["source"] for example in summary["problems"][0]["examples"]] == ["bad_a.mp4", "bad_b.mp4"]
    (line,) = summary["advice"]
    assert "3 found, 42.9%" in line and "--max-dropped" in line


def test_copies_and_leaks_between_splits_are_found_by_content(tmp_path: Path) -> None:
    train = write_clips(tmp_path / "train")
    (tmp_path / "val").mkdir()
    shutil.copy(train / "clip_01.mp4", tmp_path / "val/other_name.mp4")
    shutil.copy(train / "clip_02.mp4", train / "copy.mp4")
    longer = bytearray((train / "clip_03.mp4").read_bytes())
    longer[len(longer) // 2] ^= 1  # the same size, other content
    (train / "nearly.mp4").write_bytes(longer)
    names = [*(f"train/clip_{i:02d}" for i in range(4)), "val/other_name", "train/copy", "train/nearly"]
    (tmp_path / "captions.csv").write_text("file,caption\n" + "".join(f"{n}.mp4,put the {n} down\n" for n in names))
    summary = inspect_source(source=str(tmp_path))
    assert summary["splits"] == {"train": 6, "validation": 1}
    assert summary["repeated"]["records"] == 2 and summary["repeated"]["compared"] == 7
    assert summary["shared_between_splits"]["examples"] == [
        ["train: train/clip_01.mp4", "validation: val/other_name.mp4"]
    ]
    lines = [line for line in summary["advice"] if "identical content" in line or "copies" in line]
    assert len(lines) == 2 and "duplicate-bits" in lines[1]


def test_clips_that_filters_would_drop_are_advised(tmp_path: Path) -> None:
    root = write_clips(tmp_path, count=2)
    write_video(root / "clip_01.mp4", np.full((12, 32, 32, 3), 90, np.uint8), fps=10, pixel_format="yuv420p")
    (line,) = advice_of(root)
    assert "1 static" in line and "clip_01.mp4" in line


def test_annotations_without_their_videos_are_advised(tmp_path: Path) -> None:
    videos = write_clips(tmp_path, count=1)
    entries = [{"id": name, "label": f"putting {name} on the table"} for name in ("clip_00", "absent_1", "absent_2")]
    (videos / "captions.csv").unlink()
    (videos / "something-something-v2-train.json").write_text(json.dumps(entries))
    summary = inspect_source(source=str(videos))
    assert summary["reader"] == "something" and summary["missing_videos"] == 2 and summary["broken"] == 0
    assert summary["licenses"] == {"research only, no redistribution": 3}
    (line,) = summary["advice"]
    assert line.startswith("Copy the files of 2 of 3 annotated entries (67%)")


def test_only_some_clips_are_opened_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_clips(tmp_path, count=9)
    summary = inspect_source(source=str(root), max_clips=3)
    assert summary["probed"] == {"records": 3, "of": 9, "videos": 3} and summary["records"] == 9
    assert summary["seconds"]["is_estimate"] and summary["seconds"]["total"] == pytest.approx(10.8)
    printed = capsys.readouterr().out
    assert "3 of 9 clips, spread evenly; --max-clips 0 opens all" in printed and "about 10.80 s" in printed
    assert inspect_source(source=str(root), max_clips=0)["probed"]["records"] == 9


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11])
def test_chosen_clips_are_spread_over_all(count: int) -> None:
    tally = SourceTally()
    for number in range(10):
        tally.usable.append(10 * number)
    chosen = sorted(tally.choose(count))
    assert len(chosen) == min(count, 10) and set(chosen) <= set(tally.usable)
    assert chosen[0] == 0 and (count == 1 or chosen[-1] == 90)


def test_cameras_that_some_records_lack_are_counted() -> None:
    tally = SourceTally()
    pair, alone = {"a": Path("x.mp4"), "b": Path("y.mp4")}, {"a": Path("z.mp4")}
    records = [Record(key=str(i), videos=videos, source=str(i)) for i, videos in enumerate((pair, alone, alone))]
    assert [steps.problem for steps in tally.watch(records)] == ["", "", ""]
    assert tally.missing_cameras == {"b": 2}


def test_json_holds_what_is_returned(tmp_path: Path) -> None:
    root = write_clips(tmp_path / "in", count=2)
    assert main(["data", "inspect", str(root), "--json", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written == json.loads(json.dumps(inspect_source(source=str(root)))) and written["records"] == 2


def test_wrong_calls_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_clips(tmp_path / "in", count=1)
    assert main(["data", "inspect", str(root), "--json"]) == 2
    assert "--json: expected a file or folder, got nothing" in capsys.readouterr().err
    assert main(["data", "inspect", str(tmp_path / "nowhere")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found none"):
        inspect_source(source=str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="expected at least 0 and 1"):
        inspect_source(source=str(root), max_clips=-1)


def test_workers_find_the_same(tmp_path: Path) -> None:
    root = write_clips(tmp_path, count=3)
    (root / "bad.mp4").write_bytes(b"no video")
    assert inspect_source(source=str(root), num_workers=2) == inspect_source(source=str(root))


def test_long_episodes_of_arrays_are_compared_by_their_pixels(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        np.savez_compressed(tmp_path / f"{name}.npz", images=noise(8, seed), actions=np.eye(8, 4, dtype=np.float32))
    summary = inspect_source(source=str(tmp_path))
    assert summary["reader"] == "arrays" and summary["codecs"] == {"array": 3}
    assert summary["steps"]["state_widths"] == {} and summary["steps"]["action_widths"] == {"4": 3}
    assert summary["repeated"]["examples"] == [["a.npz", "c.npz"]] and summary["repeated"]["not_compared"] == 0


def test_parts_of_long_videos_are_probed_where_they_lie(tmp_path: Path) -> None:
    video = tmp_path / "long.mp4"
    write_video(video, noise(60), fps=10, pixel_format="yuv420p")
    found = probe(VideoSpan(file=video, start=2.0, stop=4.5))
    assert (found.facts.frames, found.facts.fps, found.codec) == (25, 10.0, "h264")
    with pytest.raises(DataError, match="shows no frame there"):
        probe(VideoSpan(file=video, start=7.0, stop=8.0))
    with pytest.raises(DataError, match="missing, truncated or corrupt"):
        probe(VideoSpan(file=tmp_path / "absent.mp4", start=0.0, stop=1.0))


def test_tars_of_others_are_read_as_webdataset(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "in", count=2)
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/00000.tar", "w") as tar:
        for i in range(2):
            tar.add(clips / f"clip_{i:02d}.mp4", f"{i:04d}.mp4")
    (tmp_path / "tars/00001.tar").write_bytes((tmp_path / "tars/00000.tar").read_bytes()[:700])
    summary = inspect_source(source=str(tmp_path / "tars"))
    assert summary["reader"] == "webdataset" and summary["sizes"] == {"32x32": 2}
    assert summary["broken"] == 1 and summary["problems"][0]["examples"][0]["source"].endswith("00001.tar")


def write_own_shards(tmp_path: Path) -> tuple[Path, Path]:
    """Write video shards and token shards of recorded episodes, one sample in each shard."""
    write_recording(tmp_path / "in")
    write_video_shards(source=str(tmp_path / "in"), out=tmp_path / "video", shard_megabytes=1e-6)
    write_token_shards(
        shards=tmp_path / "video",
        out=tmp_path / "tokens",
        encode_images=lambda frames: frames[:, 4::8, 4::8, 0].reshape(len(frames), 16).astype(np.int64),
        encode_texts=None,
        tokenizer_facts=FACTS,
        image_size=32,
    )
    return tmp_path / "video", tmp_path / "tokens"


def test_own_shards_are_recognized_and_verified(tmp_path: Path) -> None:
    video, tokens = write_own_shards(tmp_path)
    found = inspect_source(source=str(video))
    assert (found["reader"], found["version"]) == ("video_shards", "gr2-shard-2")
    assert found["records"] == 3 and found["problems"] == [] and found["details"]["shards"] == 3
    assert found["details"]["windows"] == 3 and found["codecs"] == {"h264": 6}
    found = inspect_source(source=str(tokens))
    assert found["reader"] == "token_shards" and found["problems"] == []
    assert found["details"] == {"shards": 3, "stage": "token_shards", "codebook": 256, "grid": [4, 4]}
    assert found["frames"] == 60 and found["codecs"] == {"codes": 6} and found["steps"]["lengths"]["total"] == 120
    assert not any("shards again" in line for line in found["advice"])


@pytest.mark.parametrize("kind", [0, 1])
def test_each_damage_of_a_shard_is_named(tmp_path: Path, kind: int) -> None:
    folder = write_own_shards(tmp_path)[kind]
    first, second, third = (Path(str(shard)) for shard in list_shards(folder))
    sample = read_index(first)["samples"][0]
    suffix = "actions.npy"
    data = bytearray(first.read_bytes())
    data[sample["members"][suffix][0] + sample["members"][suffix][1] - 1] ^= 0x10
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:1024])
    index = third.with_suffix(".index.json")
    content = json.loads(index.read_text())
    content["samples"][0]["members"]["json"][0] += 512
    index.write_text(json.dumps(content))
    summary = inspect_source(source=str(folder))
    problems = [f"{e['source']} {e['detail']}" for group in summary["problems"] for e in group["examples"]]
    assert any(first.name in s and sample["key"] in s and f"{suffix} has another checksum" in s for s in problems)
    assert any(second.name in s and "is cut off" in s for s in problems)
    assert any(second.name in s and "bytes, got 1024" in s for s in problems)
    assert any(third.name in s and "json has another checksum" in s for s in problems)
    assert any(third.name in s and "disagree on where 1 members lie" in s for s in problems)
    assert summary["broken"] == 3 and "Copy the damaged shards again" in summary["advice"][0]


def test_missing_tars_indexes_and_manifests_are_named(tmp_path: Path) -> None:
    video, tokens = write_own_shards(tmp_path)
    first, second, third = (Path(str(shard)) for shard in list_shards(video))
    first.unlink()
    second.with_suffix(".index.json").write_text("{")
    summary = inspect_source(source=str(video))
    assert summary["records"] == 3 and summary["broken"] == 2
    third.unlink()
    third.with_suffix(".index.json").unlink()
    problems = json.dumps(inspect_source(source=str(video))["problems"])
    assert "the manifest names it, but neither the tar nor its index is there" in problems
    manifest = json.loads((tokens / "manifest.json").read_text())
    (tokens / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    (tokens / "columns/frames.npy").unlink()
    problems = json.dumps(inspect_source(source=str(tokens))["problems"])
    assert "is not finished" in problems and "frames.npy" in problems


def test_codes_outside_of_the_codebook_are_named(tmp_path: Path) -> None:
    _, tokens = write_own_shards(tmp_path)
    manifest = json.loads((tokens / "manifest.json").read_text())
    manifest["tokenizer"]["codebook_size"] = 16
    (tokens / "manifest.json").write_text(json.dumps(manifest))
    summary = inspect_source(source=str(tokens))
    assert summary["broken"] == 3 and "expected less than 16" in summary["problems"][0]["examples"][0]["detail"]


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("put the cup on the table", "English"),
        ("pick up a block and place it in a bowl", "English"),
        ("pour water into a glass", "English"),
        ("stelle die Tasse auf den Tisch", "German"),
        ("pose la tasse sur la table avec une main", "French"),
        ("pon la taza en el cajón y cierra", "Spanish"),
        ("coloque a xícara na mesa com o pano", "Portuguese"),
        ("metti la tazza nella scatola della cucina", "Italian"),
        ("把杯子放在桌子上", "Chinese"),
        ("カップをテーブルの上に置く", "Japanese"),
        ("컵을 테이블 위에 놓아라", "Korean"),
        ("поставь чашку на стол", "Cyrillic script"),
        ("ضع الكوب على الطاولة", "Arabic script"),
        ("pick brown chip bag", "unknown"),
        ("a", "unknown"),
        ("123 !?", "unknown"),
    ],
)
def test_languages_are_told_or_left_unknown(caption: str, language: str) -> None:
    assert language_of(caption) == language


def test_captions_are_counted() -> None:
    tally = CaptionTally()
    for caption in ["lift the cup", "lift the cup ", "", "  ", "open it", "put the red block on the blue block"]:
        tally.add(caption)
    found = tally.summary()
    assert (found["captioned"], found["empty"], found["different"]) == (4, 2, 3)
    assert found["words"] == {"shortest": 2, "median": 3, "longest": 8}
    assert found["most_frequent"][0] == ["lift the cup", 2] and found["languages"] == {"English": 4}


def test_reasons_differ_only_in_kind() -> None:
    one = reason_of("/data/a_1.mp4: frame 12 of 80 cannot be decoded.")
    assert one == reason_of("/data/b/c.mp4: frame 3 of 90 cannot be decoded.") == "frame # of # cannot be decoded."
    assert reason_of("video missing") == "video missing"


def test_video_in_memory_costs_as_much_as_the_same_on_disk(tmp_path: Path) -> None:
    data = encode_frames(iter(noise(16)), 10.0, crf=18, pixel_format="yuv420p")
    (tmp_path / "a.mp4").write_bytes(data)
    for video in (VideoBytes(data=data, suffix=".mp4"), tmp_path / "a.mp4"):
        assert 0.1 < cost_of_decoding(video) < 10  # the same codec, within the noise of timing


@needs_samples
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web", {"records": 2, "fps": {"28": 1, "25": 1}, "sizes": {"340x256": 1, "320x240": 1}, "frames": 444}),
        ("bridge", {"reader": "annotated", "episodes": 2, "fps": {"3": 2}, "frames": 61, "sizes": {"640x480": 2}}),
        ("rt1", {"reader": "annotated", "episodes": 2, "fps": {"3": 2}, "frames": 83, "sizes": {"320x256": 2}}),
        ("bridge_rlds", {"reader": "rlds", "version": "1.0.0", "episodes": 13, "splits": {"train": 13}, "frames": 130}),
        (
            "lerobot_v21_g1",
            {"reader": "lerobot", "version": "v2.1", "episodes": 1, "missing_videos": 99},
        ),
        ("edge", {"records": 5, "broken": 1, "codecs": {"h264": 3, "av1": 1}, "would_be_dropped": {"too_short": 2}}),
        ("hands", {"records": 2, "codecs": {"gif": 2}, "fps": {"10": 2}, "frames": 90}),
        ("npz", {"reader": "arrays", "records": 1, "codecs": {"array": 2}, "frames": 30}),
        ("epic100", {"reader": "epic", "records": 9668, "missing_videos": 9668, "broken": 0}),
    ],
)
def test_real_samples_are_counted_exactly(name: str, expected: dict[str, Any]) -> None:
    summary = inspect_source(source=str(SAMPLES / name))
    assert {key: summary[key] for key in expected} == expected


@needs_samples
def test_copied_split_of_real_episodes_is_a_leak(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "bridge_rlds/1.0.0", tmp_path / "1.0.0")
    train = next((tmp_path / "1.0.0").glob("*-train.tfrecord*"))
    shutil.copy(train, train.with_name(train.name.replace("-train.", "-val.")))
    summary = inspect_source(source=str(tmp_path / "1.0.0"))
    assert summary["splits"] == {"train": 13, "validation": 13}
    assert summary["shared_between_splits"]["records"] == 26
    assert summary["advice"][0].startswith("Remove 26 records with identical content")


@needs_mini
def test_calvin_is_counted_like_the_rest() -> None:
    summary = inspect_source(source=str(MINI))
    assert summary["reader"] == "calvin" and summary["splits"] == {"training": 14, "validation": 3}
    assert summary["frames"] == 694 and summary["captions"]["captioned"] == 17
    assert summary["steps"]["statistics"]["datasets"][0]["states"]["rows"] == 694
    assert summary["shared_between_splits"]["records"] == 0 and summary["advice"] == []


@needs_mini
def test_calvin_frames_in_both_splits_are_found(tmp_path: Path) -> None:
    shutil.copytree(MINI, tmp_path / "d")
    frame = sorted((tmp_path / "d/validation").glob("episode_*.npz"))[5]
    shutil.copy(sorted((tmp_path / "d/training").glob("episode_*.npz"))[9], frame)
    summary = inspect_source(source=str(tmp_path / "d"), max_clips=0)
    assert summary["shared_between_splits"]["records"] == 1 and summary["repeated"]["compared"] == 137
    assert summary["advice"][0].startswith("Remove 1 records with identical content")
