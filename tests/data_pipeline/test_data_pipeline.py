"""The stages from a dataset to token shards: nothing is lost without a reason, nothing is done twice."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_cases import contents, run_and_kill

from gr2.contracts import Episode
from gr2.data_pipeline.curation.filters import FilterConfig
from gr2.data_pipeline.curation.ingest import cut_windows, write_video_shards
from gr2.data_pipeline.executors import Executor, ordered_map
from gr2.data_pipeline.files import load_array, read_json, text_encoding, write_json
from gr2.data_pipeline.loading.token_store import TokenStore
from gr2.data_pipeline.readers.source import open_source
from gr2.data_pipeline.readers.tfrecord import read_records
from gr2.data_pipeline.store.episodes import write_episode
from gr2.data_pipeline.store.shards import (
    ShardWriter,
    list_shards,
    read_indexed,
    read_samples,
)
from gr2.data_pipeline.tokens import write_token_shards
from gr2.data_pipeline.video.reader import open_video, write_video
from gr2.errors import ConfigError, DataError, WorkerDied
from gr2.gr_model.model.release import load_release
from gr2.tokenizers.weight_files import read_state_dict

SAMPLES = Path(__file__).parents[2] / "../shared/real_samples"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="real sample videos are not beside the checkout")

FACTS = {"codebook_size": 256, "grid": [4, 4], "sha256": "fake"}
KEEP_ALL = FilterConfig(min_frames=1, min_seconds=0, min_motion=0)


def encode_images(frames: np.ndarray) -> np.ndarray:
    """Stand in for the image tokenizer: the red values of a 4 x 4 grid of pixels."""
    return frames[:, 8::16, 8::16, 0].reshape(len(frames), 16).astype(np.int64)


def encode_texts(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Stand in for the text encoder: the length of each text."""
    lengths = np.array([len(text) for text in texts], np.float32)
    return np.broadcast_to(lengths[:, None, None], (len(lengths), 4, 3)), np.ones((len(lengths), 4), bool)


def noise(num_frames: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """Draw coarse colored noise that changes with each frame: uint8 `[f h w 3]`."""
    coarse = np.random.default_rng(seed).integers(0, 255, (num_frames, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)


def write_folder(root: Path, count: int) -> None:
    """Write short videos `clip_00.mp4` and so on, a static one and a broken one, with a table of captions."""
    for i in range(count):
        write_video(root / f"clip_{i:02d}.mp4", noise(12, seed=i), fps=10)
    write_video(root / "static.mp4", np.full((12, 64, 64, 3), 90, np.uint8), fps=10)
    (root / "broken.mp4").write_bytes((root / "clip_00.mp4").read_bytes()[:1500])
    rows = "".join(f'clip_{i:02d}.mp4,"push, block {i}"\n' for i in range(count))
    (root / "captions.csv").write_text("file,caption\n" + rows)


def test_shards_are_plain_webdataset_with_true_offsets(tmp_path: Path) -> None:
    import webdataset

    wanted = {f"sample-{i}-{'x' * 90}": {"static.mp4": os.urandom(700 * i + 1), "json": b"{}"} for i in range(9)}
    with ShardWriter(tmp_path, max_bytes=8000) as writer:
        for key, members in wanted.items():
            writer.write(key, members)
            if writer.is_full:
                writer.finish_shard()
    shards = list_shards(tmp_path)
    assert len(shards) > 2 and all(shard.stat().st_size < 8000 + 8000 + 10240 for shard in shards)
    plain = list(webdataset.WebDataset([str(s) for s in shards], shardshuffle=False))
    assert [sample["__key__"] for sample in plain] == list(wanted)
    assert all(sample["static.mp4"] == wanted[sample["__key__"]]["static.mp4"] for sample in plain)
    assert [sample["__key__"] for sample in read_samples(tmp_path)] == list(wanted)
    assert dict(pair for shard in shards for pair in read_indexed(shard)) == wanted


def write_same_key_twice(out: Path) -> None:
    """Write two samples of one name."""
    with ShardWriter(out, max_bytes=100) as writer:
        writer.write("a", {"json": b"{}"})
        writer.write("a", {"json": b"{}"})


def test_writer_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got the last one again"):
        write_same_key_twice(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no dots"), ShardWriter(tmp_path, max_bytes=100) as writer:
        writer.write("a.b", {"json": b"{}"})


def test_filters_count_and_name_what_they_drop(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 3)
    write_video(tmp_path / "in/short.mp4", noise(3), fps=10)
    manifest = write_video_shards(source=tmp_path / "in", out=tmp_path / "out")
    assert manifest["counts"]["records"] == 6 and manifest["counts"]["kept"] == 3
    assert manifest["counts"]["dropped"] == {"undecodable": 1, "static": 1, "too_short": 1}
    assert {reason: examples[0]["source"] for reason, examples in manifest["examples"].items()} == {
        "undecodable": "broken.mp4",
        "static": "static.mp4",
        "too_short": "short.mp4",
    }
    for sample in read_samples(tmp_path / "out"):
        description = json.loads(sample["json"])
        source = tmp_path / "in" / description["source"]
        assert sample["static.mp4"] == source.read_bytes()
        assert description["caption"] == f"push, block {int(source.stem[-2:])}"
        assert description["windows"] == [{"start": 0, "stop": 12, "caption": description["caption"]}]
    (tmp_path / "only_static").mkdir()
    shutil.copy(tmp_path / "in/static.mp4", tmp_path / "only_static")
    with pytest.raises(DataError, match=r"static\.mp4: mean frame difference"):
        write_video_shards(source=tmp_path / "only_static", out=tmp_path / "none")


def test_tables_of_any_encoding_and_of_hugging_face_are_read(tmp_path: Path, capsys) -> None:
    for name in ("a.mp4", "train/b.mp4"):
        write_video(tmp_path / name, noise(12), fps=10)
    captions = {"a.mp4": "Schließe die Tür", "gone": "öffne"}
    text = "file,caption\n" + "".join(f"{name},{caption}\n" for name, caption in captions.items())
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1"):
        text_encoding.cache_clear()
        (tmp_path / "captions.csv").write_bytes(text.encode(encoding))
        (tmp_path / "train/metadata.jsonl").write_text('{"file_name": "b.mp4", "text": "pick"}\n')
        found = {record.source: record for record in open_source(tmp_path)}
        assert [found[name].caption for name in ("a.mp4", "train/b.mp4")] == ["Schließe die Tür", "pick"]
        assert found["gone"].problem == "video missing" and found["gone"].missing  # a row that matches no file
        assert ("read as Latin-1" in capsys.readouterr().err) == (encoding == "latin-1")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/again").symlink_to(tmp_path / "train")
    assert [record.source for record in open_source(tmp_path / "linked")] == ["again/b.mp4"]


def test_tables_of_excel_and_paths_of_windows(tmp_path: Path) -> None:
    for name in ("a.mp4", "train/b.mp4"):
        write_video(tmp_path / name, noise(12), fps=10)
    for text in (
        "File;Caption\n./a.mp4;open, then close\ntrain\\b.mp4;pick\n",
        "filename\tText\na.mp4\topen, then close\ntrain/b.mp4\tpick\n",
        'file,caption\na.mp4,"open, then close"\ntrain/b.mp4,pick\n',
    ):
        (tmp_path / "captions.csv").write_text(text)
        assert [record.caption for record in open_source(tmp_path)] == ["open, then close", "pick"]
    (tmp_path / "captions.csv").write_text('file,caption\na.mp4,"open\ntrain/b.mp4,pick\n')
    with pytest.raises(DataError, match="expected quotes in pairs"):
        list(open_source(tmp_path))
    (tmp_path / "captions.csv").rename(tmp_path / "annotations.csv")
    (tmp_path / "annotations.csv").write_text("path;description\na.mp4;open, then close\n")
    assert [record.caption for record in open_source(tmp_path)] == ["open, then close", ""]


def test_pointers_of_git_lfs_are_called_that(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
    for name in ("a.mp4", "a.tfrecord-00000-of-00001"):
        (tmp_path / name).write_text(pointer)
    with pytest.raises(DataError, match="run `git lfs pull`"):
        open_video(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="run `git lfs pull`"):
        next(read_records(tmp_path / "a.tfrecord-00000-of-00001"))
    for name in ("info.json", "config.json", "text.safetensors"):
        (tmp_path / name).write_text(pointer)
    for read in (read_json, read_state_dict):
        with pytest.raises(DataError, match="run `git lfs pull`"):
            read(tmp_path / "info.json")
    with pytest.raises(DataError, match="run `git lfs pull`"):
        load_release(tmp_path)


def test_names_that_are_no_utf8_are_read_and_shown(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    write_video(tmp_path / "a.mp4", noise(4), fps=10)
    os.rename(tmp_path / "a.mp4", tmp_path / name)
    (record,) = open_source(tmp_path)
    assert record.source == "caf\\udce9.mp4" and record.decode().frames.shape[0] > 0
    write_json(tmp_path / "names.json", [name])
    assert read_json(tmp_path / "names.json") == [name]


def test_tables_of_captions_say_what_they_lack_and_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "a.mp4", noise(4), fps=10)
    (tmp_path / "metadata.csv").write_text("a.mp4,open the drawer\n")
    with pytest.raises(DataError, match="the first line has the columns"):
        list(open_source(tmp_path))
    (tmp_path / "metadata.csv").write_text("file_name,text\na.mp4,one\na.mp4,two\n")
    assert [record.caption for record in open_source(tmp_path)] == ["one"]
    assert "1 files have several captions" in capsys.readouterr().err
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    assert [record.caption for record in open_source(tmp_path)] == [""]


def test_windows_cover_a_long_video_once() -> None:
    for num_frames, fps, longest in (
        (1000, 29.97, 10.0),
        (1, 3.0, 60.0),
        (600, 10.0, 60.0),
        (601, 10.0, 60.0),
    ):
        windows = cut_windows(num_frames, fps, longest)
        assert [i for start, stop in windows for i in range(start, stop)] == list(range(num_frames))
        assert all((stop - start) / fps <= longest for start, stop in windows)
    assert len(cut_windows(600, 10.0, 60.0)) == 1 and len(cut_windows(601, 10.0, 60.0)) == 2


@pytest.mark.parametrize("after", [0, 4, 7])
def test_killed_stages_go_on_to_the_same_bytes(tmp_path: Path, after: int) -> None:
    write_folder(tmp_path / "in", 8)
    clip = (tmp_path / "in/clip_00.mp4").stat().st_size
    video = {"source": tmp_path / "in", "shard_megabytes": 2.5 * clip / 1e6}
    whole = write_video_shards(out=tmp_path / "whole", **video)
    assert len(whole["shards"]) >= 3
    run_and_kill(write_video_shards, after, {"out": tmp_path / "killed", **video})
    (tmp_path / "killed/.manifest.json.1.tmp").write_text("half a manifest")
    (tmp_path / "killed/shard-000009.tar").write_text("a tar without an index")
    assert write_video_shards(out=tmp_path / "killed", **video) == whole
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")

    tokens = {
        "shards": tmp_path / "whole",
        "encode_images": encode_images,
        "encode_texts": encode_texts,
        "tokenizer_facts": FACTS,
        "image_size": 64,
    }
    write_token_shards(out=tmp_path / "tokens", **tokens)
    run_and_kill(write_token_shards, after, {"out": tmp_path / "tokens_killed", **tokens})
    with pytest.raises(DataError, match="not finished"):
        TokenStore.open([tmp_path / "tokens_killed"], ["static"])
    write_token_shards(out=tmp_path / "tokens_killed", **tokens)
    assert contents(tmp_path / "tokens_killed") == contents(tmp_path / "tokens")


def test_workers_that_encode_a_shard_each_write_the_same_tokens(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 6)
    clip = (tmp_path / "in/clip_00.mp4").stat().st_size
    write_video_shards(source=str(tmp_path / "in"), out=tmp_path / "video", shard_megabytes=1.5 * clip / 1e6)
    assert len(list_shards(tmp_path / "video")) > 1
    options = {
        "shards": tmp_path / "video",
        "encode_images": encode_images,
        "encode_texts": encode_texts,
        "tokenizer_facts": FACTS,
        "image_size": 64,
    }
    write_token_shards(out=tmp_path / "alone", **options)
    write_token_shards(out=tmp_path / "spread", num_workers=2, shard_each=True, **options)
    assert contents(tmp_path / "spread") == contents(tmp_path / "alone")


def test_a_kill_between_the_last_shard_and_the_manifest_loses_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 3)
    clip = (tmp_path / "in/clip_00.mp4").stat().st_size
    options = {"source": str(tmp_path / "in"), "out": tmp_path / "out", "shard_megabytes": 1.5 * clip / 1e6}
    whole = write_video_shards(**options)
    before = contents(tmp_path / "out")
    running = json.loads(before["manifest.json"]) | {"status": "running"}
    (tmp_path / "out/manifest.json").write_text(json.dumps(running))
    assert write_video_shards(**options) == whole and contents(tmp_path / "out") == before


def test_a_damaged_sample_is_named_before_it_is_used(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 3)
    write_video_shards(source=str(tmp_path / "in"), out=tmp_path / "out")
    (shard,) = list_shards(tmp_path / "out")
    data = bytearray(shard.read_bytes())
    data[data.index(b"push, block 1")] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"clip_01_mp4-\w+\.json: expected the checksum 0x\w+, got 0x\w+; the shard is"):
        list(read_indexed(shard))


def test_finished_stage_is_skipped_and_other_parameters_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 2)
    first = write_video_shards(source=tmp_path / "in", out=tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert write_video_shards(source=tmp_path / "in", out=tmp_path / "out", num_workers=2) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == stamps
    with pytest.raises(DataError, match="filters changed"):
        write_video_shards(source=tmp_path / "in", out=tmp_path / "out", filters=KEEP_ALL)
    again = write_video_shards(
        source=tmp_path / "in", out=tmp_path / "out", filters=KEEP_ALL, overwrite=True, num_workers=2
    )
    assert again["counts"]["kept"] == 3 and again["counts"]["dropped"] == {"undecodable": 1}


def test_changed_source_is_noticed_when_a_stage_goes_on(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 6)
    options = {"source": tmp_path / "in", "out": tmp_path / "out", "shard_megabytes": 1e-6}
    run_and_kill(write_video_shards, 3, options)
    (tmp_path / "in/clip_00.mp4").unlink()
    with pytest.raises(DataError, match="source has changed"):
        write_video_shards(**options)


def recorded_episode(num_steps: int, stride: int, seed: int, instruction: str) -> Episode:
    """Make an episode of noise."""
    rng = np.random.default_rng(seed)
    num_frames = -(-num_steps // stride)
    return Episode(
        images={"static": noise(num_frames, seed=seed), "gripper": noise(num_frames, 32, seed + 100)},
        states=rng.normal(size=(num_steps, 16)).astype(np.float32),
        actions=rng.normal(size=(num_steps, 8)).astype(np.float32),
        instruction=instruction,
        control_hz=20.0,
        frame_stride=stride,
    )


def test_long_episodes_become_windows_with_their_own_steps(tmp_path: Path) -> None:
    episode = recorded_episode(97, 4, 0, "lift it")
    write_episode(tmp_path / "in", 0, episode, {"task": "lift"})
    write_video_shards(source=tmp_path / "in", out=tmp_path / "video", window_seconds=2.0)
    manifest = write_token_shards(
        shards=tmp_path / "video",
        out=tmp_path / "tokens",
        encode_images=encode_images,
        encode_texts=encode_texts,
        tokenizer_facts=FACTS,
        image_size=64,
    )
    assert manifest["counts"]["windows"] == 3 and manifest["counts"]["frames"] == 25
    samples = list(read_samples(tmp_path / "tokens"))
    codes = np.concatenate([load_array(sample["codes.static.npy"]) for sample in samples])
    with open_video(tmp_path / "in/episode_000000/static.mp4") as reader:
        assert np.array_equal(codes, encode_images(reader.get_batch(range(25))))
    for member, values in (("states.npy", episode.states), ("actions.npy", episode.actions)):
        assert np.array_equal(np.concatenate([load_array(sample[member]) for sample in samples]), values)
    for sample in samples:
        description = json.loads(sample["json"])
        assert description["num_frames"] == -(-len(load_array(sample["states.npy"])) // 4)
        assert description["video"] == "episode_000000"


def test_a_video_greater_than_a_shard_becomes_clips_of_every_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "in/long.mp4", noise(95), fps=10)
    (tmp_path / "in/long.txt").write_text("a long afternoon")
    write_video(tmp_path / "in/short.mp4", noise(12, seed=5), fps=10)
    size = (tmp_path / "in/long.mp4").stat().st_size
    manifest = write_video_shards(
        source=str(tmp_path / "in"), out=tmp_path / "out", window_seconds=2.0, shard_megabytes=0.5 * size / 1e6
    )
    assert manifest["counts"]["kept"] == 6 and manifest["counts"]["frames"] == 107
    *parts, short = read_samples(tmp_path / "out")
    assert all(shard.stat().st_size < size for shard in list_shards(tmp_path / "out"))
    frames = []
    for part in parts:
        assert json.loads(part["json"])["caption"] == "a long afternoon"
        with open_video(part["static.mp4"]) as reader:
            frames.append(reader.get_batch(range(len(reader))))
    with open_video(tmp_path / "in/long.mp4") as reader:
        whole = reader.get_batch(range(95))
    assert np.abs(np.concatenate(frames).astype(int) - whole).mean() < 2
    assert short["static.mp4"] == (tmp_path / "in/short.mp4").read_bytes()
    (tmp_path / "in/long.mp4").write_bytes((tmp_path / "in/long.mp4").read_bytes()[: size // 2])
    broken = write_video_shards(source=str(tmp_path / "in"), out=tmp_path / "again", shard_megabytes=0.2 * size / 1e6)
    assert broken["counts"]["dropped"] == {"unreadable": 1}


def test_thinner_frames_keep_their_steps(tmp_path: Path) -> None:
    write_episode(tmp_path / "in", 0, recorded_episode(100, 2, 0, "lift it"), {})
    write_video_shards(source=tmp_path / "in", out=tmp_path / "video")
    write_token_shards(
        shards=tmp_path / "video",
        out=tmp_path / "tokens",
        encode_images=encode_images,
        encode_texts=encode_texts,
        tokenizer_facts=FACTS,
        image_size=64,
        target_fps=5.0,
    )
    (sample,) = read_samples(tmp_path / "tokens")
    description = json.loads(sample["json"])
    assert (description["fps"], description["frame_stride"], description["num_frames"]) == (5.0, 4, 25)
    with open_video(tmp_path / "in/episode_000000/static.mp4") as reader:
        assert np.array_equal(load_array(sample["codes.static.npy"]), encode_images(reader.get_batch(range(0, 50, 2))))


def test_jitter_changes_the_colors_of_a_clip_alike(tmp_path: Path) -> None:
    for number in range(2):
        write_episode(tmp_path / "in", number, recorded_episode(24, 2, number, "lift it"), {})
    write_video_shards(source=tmp_path / "in", out=tmp_path / "video", filters=KEEP_ALL)

    def brightness(frames: np.ndarray) -> np.ndarray:
        return frames.astype(int).mean((1, 2, 3))[:, None].repeat(16, 1).astype(int)

    stage: dict[str, Any] = {
        "shards": tmp_path / "video", "encode_images": brightness, "encode_texts": encode_texts,
        "tokenizer_facts": FACTS, "image_size": 64,
    }  # fmt: skip
    codes = {}
    for name, options in {
        "plain": {},
        "a": {"jitter": 0.5},
        "b": {"jitter": 0.5},
        "c": {"jitter": 0.5, "seed": 1},
    }.items():
        manifest = write_token_shards(out=tmp_path / name, **options, **stage)
        assert ("jitter" in manifest["parameters"]) == (name != "plain")
        samples = list(read_samples(tmp_path / name))
        codes[name] = [load_array(sample["codes.static.npy"]) for sample in samples]
    assert all(np.array_equal(x, y) for x, y in zip(codes["a"], codes["b"], strict=True))
    ratios = {
        name: [c[:, 0] / p[:, 0] for c, p in zip(codes[name], codes["plain"], strict=True)] for name in ("a", "c")
    }
    for clip in ratios["a"] + ratios["c"]:
        assert clip.std() < 0.05 < abs(clip.mean() - 1)  # all frames alike
    assert abs(ratios["a"][0].mean() - ratios["a"][1].mean()) > 0.05  # each clip by itself
    assert abs(ratios["a"][0].mean() - ratios["c"][0].mean()) > 0.05
    with pytest.raises(DataError, match=str(tmp_path / "a")):
        write_token_shards(out=tmp_path / "a", jitter=0.2, **stage)
    with pytest.raises(ConfigError, match="--jitter"):
        write_token_shards(out=tmp_path / "d", jitter=1.0, **stage)


def test_tokens_of_an_earlier_version_are_those_of_the_same_tokenizer(tmp_path: Path, capsys: Any) -> None:
    write_folder(tmp_path / "in", 1)
    write_video_shards(source=tmp_path / "in", out=tmp_path / "video", filters=KEEP_ALL)
    stage: dict[str, Any] = {
        "shards": tmp_path / "video", "out": tmp_path / "tokens", "encode_images": encode_images,
        "encode_texts": encode_texts, "image_size": 64,
    }  # fmt: skip
    before = write_token_shards(tokenizer_facts=FACTS | {"text_fingerprint": "ab"}, **stage)
    facts = {"codebook_size": 256, "grid": [4, 4], "image_fingerprint": "fake.3c00", "text_fingerprint": "ab.3c00"}
    assert write_token_shards(tokenizer_facts=facts, **stage) == before
    with pytest.raises(DataError, match="tokenizer changed"):
        write_token_shards(tokenizer_facts=facts | {"image_fingerprint": "other.3c00"}, **stage)
    with pytest.raises(ConfigError, match="--image-fit crop, asked for pad"):
        write_token_shards(tokenizer_facts=facts, image_fit="pad", **stage)
    manifest = json.loads((tmp_path / "tokens" / "manifest.json").read_text())
    del manifest["parameters"]["tokenizer"]["image_fit"], manifest["tokenizer"]["image_fit"]
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps(manifest))
    assert write_token_shards(tokenizer_facts=facts, **stage) == manifest
    assert "stay squeezed" in capsys.readouterr().out


def test_tokenizer_that_contradicts_its_facts_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 1)
    write_video_shards(source=tmp_path / "in", out=tmp_path / "video")
    for facts in (
        {"codebook_size": 16, "grid": [4, 4]},
        {"codebook_size": 256, "grid": [8, 8]},
        {"grid": [4, 4]},
    ):
        with pytest.raises(ConfigError, match="expected"):
            write_token_shards(
                shards=tmp_path / "video",
                out=tmp_path / "tokens",
                encode_images=encode_images,
                encode_texts=encode_texts,
                tokenizer_facts=facts,
                image_size=64,
                overwrite=True,
            )


def test_captions_come_from_json_or_text_beside_the_video(tmp_path: Path) -> None:
    for name in ("a.mp4", "sub/b.gif", "c.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not decoded by a reader")
    (tmp_path / "c.txt").write_text("a hand\n")
    (tmp_path / "captions.json").write_text('[{"file": "a", "label": "pour water"}, {"id": "b.gif", "text": "cut"}]')
    records = list(open_source(tmp_path))
    assert [(r.source, r.caption) for r in records] == [
        ("a.mp4", "pour water"),
        ("c.webm", "a hand"),
        ("sub/b.gif", "cut"),
    ]
    assert len({record.key for record in records}) == 3
    (tmp_path / "captions.json").write_text('[{"clip": "a"}]')
    with pytest.raises(DataError, match="rename the columns"):
        list(open_source(tmp_path))


@needs_samples
def test_every_real_file_is_kept_or_named(tmp_path: Path) -> None:
    manifest = write_video_shards(
        source=SAMPLES, out=tmp_path / "video", filters=KEEP_ALL, shard_megabytes=1.0, num_workers=2
    )
    assert manifest["counts"]["kept"] == 13
    assert manifest["counts"]["dropped"] == {"undecodable": 1}
    assert manifest["examples"]["undecodable"][0]["source"] == "edge/corrupted.mp4"
    tokens = write_token_shards(
        shards=tmp_path / "video",
        out=tmp_path / "tokens",
        encode_images=encode_images,
        encode_texts=encode_texts,
        tokenizer_facts=FACTS,
        image_size=64,
        num_workers=2,
    )
    assert tokens["counts"]["windows"] == 13 and tokens["counts"]["dropped"] == {}
    assert tokens["counts"]["frames"] == manifest["counts"]["frames"]
    assert all(load_array(sample["codes.static.npy"]).dtype == np.uint8 for sample in read_samples(tmp_path / "tokens"))


@needs_samples
@pytest.mark.parametrize(("name", "caption"), [("rt1", "pick brown chip bag"), ("bridge", "Place the cloth")])
def test_robot_annotations_give_captions_states_and_actions(tmp_path: Path, name: str, caption: str) -> None:
    records = list(open_source(SAMPLES / name))
    assert len(records) == 2 and any(record.caption.startswith(caption) for record in records)
    for record in records:
        assert record.states is not None and record.actions is not None
        assert len(record.states) == len(record.actions) and record.actions.shape[1] == 7
        assert not record.actions[-1, :-1].any()
    manifest = write_video_shards(source=SAMPLES / name, out=tmp_path / "out")
    assert manifest["counts"]["kept"] == manifest["counts"]["with_actions"] == 2


def _vanish(number: int) -> int:
    os._exit(number)


def test_a_worker_that_dies_is_told_in_a_sentence() -> None:
    with pytest.raises(WorkerDied, match="run the same command again"):
        list(ordered_map(_vanish, [3, 3, 3], Executor(num_workers=2)))


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("results.csv", "videoid,contentUrl,page_dir,name\na,http://x,0,open it\nz,http://y,1,shut it\n"),
        ("OpenVid.tsv", "video\tcaption\na.mp4\topen it\n"),
        ("annotations.json", '[{"video": "./a.mp4", "caption": ["open it", "shut it"]}]'),
        ("info.json", '{"videos": [{"video_id": "a"}], "sentences": [{"video_id": "a", "caption": "open it"}]}'),
        ("texts.json", '{"a": {"caption": "open it"}}'),
        ("texts.jsonl", '{"path": "sub/../a.mp4"}\n{"path": "a.mp4", "text": "open it"}\n'),
        ("parts.csv", "video,start,end,caption\na.mp4,0,1,open it\n"),
        ("notes.csv", "a.mp4,open it\n"),
    ],
)
def test_tables_of_any_name_caption_the_videos_that_are_there(tmp_path: Path, name: str, table: str) -> None:
    write_video(tmp_path / "a.mp4", noise(4), fps=10)
    (tmp_path / name).write_text(table)
    (record,) = open_source(tmp_path)
    known = not name.startswith(("parts", "notes"))
    assert record.caption == ("open it" if known else "")


def test_videos_in_parquet_rows_are_read_with_their_captions(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", noise(4), fps=10)
    video = {"bytes": (tmp_path / "a.mp4").read_bytes(), "path": "x.mp4"}
    place = tmp_path / "set" / "data"
    place.mkdir(parents=True)
    rows = pa.table({"video": [video, {"bytes": None, "path": "gone.mp4"}], "text": ["open it", "shut it"]})
    pq.write_table(rows, place / "train-00000-of-00001.parquet")
    for path in (tmp_path / "set", place / "train-00000-of-00001.parquet"):
        first, second = open_source(path)
        assert first.caption == "open it" and first.decode().frames.shape[:1] == (4,)
        assert not second.videos and second.key != first.key
    (place / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="expected a folder"):
        list(open_source(place / "train-00000-of-00001.parquet"))
