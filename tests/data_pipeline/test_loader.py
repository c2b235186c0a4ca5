"""The loader: windows equal to a slow reference, partition over ranks, exact resume with any number of workers."""

import http.server
import itertools
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from gr2.data_pipeline.embodiments import EmbodimentTally
from gr2.data_pipeline.files import array_bytes, load_array
from gr2.data_pipeline.loading.loader import BatchLoader, LoaderConfig
from gr2.data_pipeline.loading.order import BLOCKS_MIXED, WindowOrder
from gr2.data_pipeline.loading.shuffle import permute
from gr2.data_pipeline.loading.token_store import TokenStore
from gr2.data_pipeline.loading.token_windows import TokenWindows, in_split
from gr2.data_pipeline.store.shards import ShardWriter, finished_shards, list_shards, read_indexed
from gr2.data_pipeline.store.stages import Tally, begin_stage
from gr2.data_pipeline.tokens import finish_token_shards
from gr2.embodiment import Embodiment, Signal
from gr2.errors import ConfigError, DataError

FACTS = {"codebook_size": 1000, "grid": [2, 3], "image_size": 64}
TEXTS = ["", "lift it", "push it"]
ROBOT = Embodiment(
    name="robot",
    cameras=("static", "gripper"),
    state=(Signal(name="joint_positions", width=5, kind="joint_position"),),
    action=(Signal(name="joint_positions", width=4, kind="joint_position"),),
    control_hz=30.0,
)


def encode_texts(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Stand in for the text encoder: the place of each text in `TEXTS`."""
    numbers = np.array([TEXTS.index(text) for text in texts], np.float32)
    return numbers[:, None, None] * np.ones((1, 4, 2), np.float32), np.ones((len(texts), 4), bool)


def write_tokens(out: Path, episodes: list[dict], facts: dict = FACTS, *, texts: bool = True) -> Path:
    """Write token shards of random codes; an episode names cameras, frames, stride, steps and caption.

    Args:
        texts: write the features of the texts, too.
    """
    rng = np.random.default_rng(len(episodes))
    begin_stage(out, "token_shards", {}, overwrite=False)
    robots = EmbodimentTally()
    with ShardWriter(out, max_bytes=4000) as writer:
        for i, episode in enumerate(episodes):
            members = {
                f"codes.{camera}.npy": array_bytes(rng.integers(0, 1000, (episode["frames"], 6)).astype(np.uint16))
                for camera in episode["cameras"]
            }
            if episode["steps"]:
                states, actions = (rng.normal(size=(episode["steps"], n)).astype(np.float32) for n in (5, 4))
                members |= {"states.npy": array_bytes(states), "actions.npy": array_bytes(actions)}
                robots.add(ROBOT, episode["cameras"], states, actions)
            has_steps = bool(episode["steps"])
            row = {name: episode[name] for name in ("frames", "stride", "steps", "cameras")}
            row |= {"state_dim": 5 * has_steps, "action_dim": 4 * has_steps, "code_bytes": 12}
            row |= {"text": TEXTS.index(episode["caption"]), "video": f"{out.name}-{i // 2}"}
            row |= {"embodiment": 0 if has_steps else -1}
            writer.write(f"episode_{i}", members | {"json": b"{}"}, row)
            if writer.is_full:
                writer.finish_shard({"sentences": TEXTS, "embodiments": robots.to_list()})
        writer.finish_shard({"sentences": TEXTS, "embodiments": robots.to_list()})
    names = [shard.name for shard in finished_shards(out)]
    finish_token_shards(out, {"texts": texts}, Tally(), names, facts, encode_texts if texts else None)
    return out


def robot_episodes(count: int, stride: int = 3) -> list[dict]:
    """Describe labeled episodes of different lengths, every third without a text."""
    return [
        {
            "cameras": ["static", "gripper"],
            "frames": -(-(20 + 7 * i) // stride),
            "stride": stride,
            "steps": 20 + 7 * i,
            "caption": TEXTS[i % 3],
        }
        for i in range(count)
    ]


def web_clips(count: int) -> list[dict]:
    """Describe clips without steps, seen by one camera."""
    return [
        {"cameras": ["static"], "frames": 9 + i, "stride": 1, "steps": 0, "caption": "push it"} for i in range(count)
    ]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    """Open robot episodes beside clips without steps."""
    robot = write_tokens(tmp_path / "robot", robot_episodes(8))
    web = write_tokens(tmp_path / "web", web_clips(11))
    return TokenStore.open([robot, web], ["static", "gripper"])


WINDOWS = {"num_frames": 4, "frame_step": 2, "chunk_length": 5, "context": 2}


def make_loader(store: TokenStore, batch_size: int, seed: int = 3, **options) -> BatchLoader:
    """Make a loader; options of windows and of the loader side by side."""
    chosen = {name: options.pop(name) for name in list(options) if name in (*WINDOWS, "split", "labeled_only")}
    windows = TokenWindows(store, validation_fraction=0.4, **(WINDOWS | chosen))
    config = {name: options.pop(name) for name in list(options) if name in ("weights", "num_workers", "shuffle_block")}
    return BatchLoader(windows, batch_size=batch_size, seed=seed, config=LoaderConfig(**config), **options)


def all_samples(store: TokenStore) -> list[dict]:
    """Read every episode of a store through the indexes of its shards."""
    samples = []
    for folder in store.folders:
        for shard in list_shards(folder.folder):
            samples += [
                {n: load_array(m) for n, m in members.items() if n != "json"} for _, members in read_indexed(shard)
            ]
    return samples


def reference(store: TokenStore, sample: dict, episode: int, anchor: int) -> dict:
    """Collect one window by plain loops."""
    window: dict = {"static": [], "gripper": [], "frame": [], "state": [], "action": [], "action_mask": []}
    frames, stride = int(store.num_frames[episode]), int(store.frame_stride[episode])
    steps = len(sample["actions.npy"]) if "actions.npy" in sample else 0
    for j in range(4):
        time = anchor + (j - 1) * 2
        inside = min(max(time, 0), frames - 1)
        window["frame"].append(time == inside)
        for camera in ("static", "gripper"):
            if f"codes.{camera}.npy" in sample:
                window[camera].append(sample[f"codes.{camera}.npy"][inside])
        window["state"].append(sample["states.npy"][inside * stride] if steps else np.zeros(5))
    for j in range(5):
        step = anchor * stride + j
        window["action_mask"].append(step < steps)
        window["action"].append(sample["actions.npy"][min(step, steps - 1)] if steps else np.zeros(4))
    return window


def test_windows_equal_a_slow_reference(store: TokenStore) -> None:
    pairs = [(e, a) for e in range(len(store)) for a in (0, 1, 2, int(store.num_frames[e]) - 1)]
    episodes, anchors = np.array(pairs).T
    batch = TokenWindows(store, look_ahead=True, **WINDOWS).gather(episodes, anchors)
    samples = all_samples(store)
    for i, (e, a) in enumerate(pairs):
        expected = reference(store, samples[e], e, a)
        for camera in ("static", "gripper"):
            assert bool(batch["camera_mask"][camera][i]) == bool(expected[camera])
            if expected[camera]:
                assert np.array_equal(batch["codes"][camera][i], expected[camera])
        assert batch["frame_mask"][i].tolist() == expected["frame"]
        assert np.array_equal(batch["states"][i], np.array(expected["state"], np.float32))
        assert np.array_equal(batch["actions"][i], np.array(expected["action"], np.float32))
        assert batch["action_mask"][i].tolist() == expected["action_mask"]
        if store.num_steps[e]:
            ahead = samples[e]["actions.npy"][min(a * store.frame_stride[e], store.num_steps[e] - 1) :]
            assert np.array_equal(batch["actions_ahead"][i], np.stack((ahead.min(0), ahead.max(0))).astype(np.float32))
        assert batch["state_mask"][i].tolist() == [f and store.num_steps[e] > 0 for f in expected["frame"]]
        text = int(batch["text_id"][i])
        assert store.text(text) == (TEXTS[e % 3] if e < 8 else "push it")
        assert store.text_features[0][text, 0, 0] == TEXTS.index(store.text(text))
    assert batch["codes"]["static"].dtype == torch.int64 and batch["actions"].dtype == torch.float32
    assert store.key(0).endswith("robot: episode_0") and store.key(18).endswith("web: episode_10")


def draws(loader: BatchLoader, count: int) -> list[tuple[int, int]]:
    """Give the (episode, anchor) pairs of the next batches."""
    found: list[tuple[int, int]] = []
    gather = loader.dataset.gather

    def noted(episodes: np.ndarray, windows: np.ndarray, draw: int) -> dict:
        found.extend(zip(episodes.tolist(), windows.tolist(), strict=True))
        return gather(episodes, windows, draw)

    loader.dataset.gather = noted  # type: ignore[method-assign]
    for _ in itertools.islice(loader, count):
        pass
    return found


@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_partition_an_epoch_in_equal_steps(store: TokenStore, world_size: int) -> None:
    loaders = [make_loader(store, 4, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(loader) for loader in loaders}) == 1
    seen = [pair for loader in loaders for pair in draws(loader, len(loader))]
    assert len(set(seen)) == len(seen)
    assert loaders[0].num_windows - len(seen) < 4 * world_size
    anchors = store.num_frames - np.where(store.num_steps > 0, 0, 2)
    assert loaders[0].num_windows == anchors.sum()
    assert all(0 <= anchor < anchors[episode] for episode, anchor in seen)
    again = draws(make_loader(store, 4, world_size=world_size), len(loaders[0]))
    assert again == seen[: len(again)]
    second_epoch = draws(loaders[0], len(loaders[0]))
    assert second_epoch != again and len(set(second_epoch)) == len(second_epoch)


def same(a: dict, b: dict) -> bool:
    """Compare two batches exactly."""
    return all(same(a[name], b[name]) if isinstance(a[name], dict) else torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("block", [0, 2])
def test_ten_stops_resume_with_the_very_next_batch(store: TokenStore, block: int) -> None:
    options = {"weights": None if block else [1.0, 2.0], "shuffle_block": block}
    whole = list(itertools.islice(make_loader(store, 8, **options), 50))
    for stop in np.random.default_rng(block).integers(0, 45, 10).tolist():
        loader = make_loader(store, 8, **options)
        for _ in itertools.islice(loader, stop):
            pass
        state = json.loads(json.dumps(loader.state_dict()))
        resumed = make_loader(store, 8, **options)
        next(iter(resumed))
        resumed.load_state_dict(state)
        assert all(same(a, b) for a, b in zip(whole[stop:], itertools.islice(resumed, 50 - stop), strict=True))
    for other in ({"seed": 4}, {"shuffle_block": block + 1}):
        with pytest.raises(DataError, match=next(iter(other))):
            make_loader(store, 8, **(options | other)).load_state_dict(state)


def test_workers_change_nothing_in_the_stream(store: TokenStore) -> None:
    whole = list(itertools.islice(make_loader(store, 8), 30))
    loader = make_loader(store, 8, num_workers=2)
    assert all(same(a, b) for a, b in zip(whole[:7], itertools.islice(loader, 7), strict=True))
    resumed = make_loader(store, 8, num_workers=1)
    resumed.load_state_dict(loader.state_dict())
    assert all(same(a, b) for a, b in zip(whole[7:20], itertools.islice(resumed, 13), strict=True))
    alone = make_loader(store, 8)
    alone.load_state_dict(resumed.state_dict())
    assert all(same(a, b) for a, b in zip(whole[20:], itertools.islice(alone, 10), strict=True))


def test_resume_with_other_ranks_takes_only_what_is_left(store: TokenStore) -> None:
    loader = make_loader(store, 4)
    before = draws(loader, 6)
    after = []
    for rank in range(2):
        other = make_loader(store, 4, rank=rank, world_size=2)
        other.load_state_dict(loader.state_dict())
        after += draws(other, (loader.num_windows - 24) // 8)
    assert len(set(before + after)) == len(before + after)


def test_weights_choose_the_share_of_each_source(store: TokenStore) -> None:
    loader = make_loader(store, 8, weights=[3.0, 1.0])
    seen = draws(loader, len(loader))
    robot = [pair for pair in seen if pair[0] < 8]
    assert len(robot) / len(seen) == pytest.approx(0.75, abs=0.04)
    counts = np.unique(robot, axis=0, return_counts=True)[1]
    assert counts.max() - counts.min() <= 2  # every window of a source comes round before any comes again
    only = make_loader(store, 8, weights=[0.0, 1.0])
    assert min(episode for episode, _ in draws(only, 20)) >= 8
    with pytest.raises(ConfigError, match="2 weights"):
        make_loader(store, 8, weights=[1.0])


@pytest.mark.parametrize(("size", "block"), [(5000, 7), (5000, 100), (300, 100), (4999, 250)])
def test_blocks_are_mixed_but_every_window_comes_once(size: int, block: int) -> None:
    order = WindowOrder(np.ones(size, np.int64), [0], seed=1, shuffle_block=block)
    first, second = (order.windows(epoch, np.arange(size))[0] for epoch in (0, 1))
    assert np.array_equal(np.sort(first), np.arange(size)) and not np.array_equal(first, second)
    together = block * BLOCKS_MIXED
    if size > 2 * together:
        assert len(np.unique(first[:together] // block)) == BLOCKS_MIXED
        assert np.abs(np.diff(first[:together])).mean() > block  # neighbors in the stream come from different blocks


def test_splits_divide_videos_and_labels_select_episodes(store: TokenStore) -> None:
    def videos(split: str) -> set[int]:
        loader = make_loader(store, 2, split=split)
        return {int(store.column("video")[episode]) for episode, _ in draws(loader, len(loader))}

    assert videos("train") and videos("validation")
    assert not videos("train") & videos("validation")
    assert videos("train") | videos("validation") == set(store.column("video").tolist())
    labeled = make_loader(store, 2, labeled_only=True)
    chosen = {episode for episode, _ in draws(labeled, len(labeled))}
    assert chosen == {i for i in range(8) if TEXTS[i % 3]}


def test_a_code_beyond_the_codebook_is_refused_with_its_episode(tmp_path: Path) -> None:
    small = write_tokens(tmp_path / "small", web_clips(2), FACTS | {"codebook_size": 300})
    store = TokenStore.open([small], ["static"])
    with pytest.raises(DataError, match=r"episode_.*expected codes below 300.*camera static"):
        store.read_codes("static", np.array([0, 1]), np.arange(5)[None].repeat(2, 0))


def test_tokens_of_squares_join_those_of_earlier_versions(tmp_path: Path) -> None:
    before = write_tokens(tmp_path / "before", web_clips(2))
    now = write_tokens(tmp_path / "now", web_clips(2), FACTS | {"image_fit": "crop"})
    with pytest.raises(DataError, match=r"now: images that are no squares were made such by `crop`.*`stretch`"):
        TokenStore.open([before, now], ["static"])
    manifest = json.loads((now / "manifest.json").read_text())
    (now / "manifest.json").write_text(json.dumps(manifest | {"is_square": True}))
    for folders in ([before, now], [now, before]):
        assert "image_fit" not in TokenStore.open(folders, ["static"]).tokenizer
    assert TokenStore.open([now], ["static"]).tokenizer["image_fit"] == "crop"


def test_store_refuses_what_does_not_fit(tmp_path: Path) -> None:
    one = write_tokens(tmp_path / "one", web_clips(2))
    other = write_tokens(tmp_path / "other", web_clips(2), FACTS | {"sha256": "different"})
    with pytest.raises(DataError, match="image_fingerprint differ"):
        TokenStore.open([one, other], ["static"])
    with pytest.raises(DataError, match=r"found only \['static'\]"):
        TokenStore.open([one], ["wrist"])
    store = TokenStore.open([one], ["static"])
    with pytest.raises(DataError, match="at least 64 windows"):
        make_loader(store, 64)
    with pytest.raises(ConfigError, match="context"):
        make_loader(store, 2, context=5)


def test_truncated_shard_and_broken_column_are_named(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "web", web_clips(5))
    shard = finished_shards(folder)[0]
    shard.write_bytes(shard.read_bytes()[:1024])
    store = TokenStore.open([folder], ["static"])
    with pytest.raises(DataError, match=rf"{shard.name}: expected \d+ bytes at \d+, got \d+; the shard is truncated"):
        for _ in itertools.islice(make_loader(store, 2), 20):
            pass
    (folder / "columns/frames.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"frames\.npy: cannot be read as a column"):
        TokenStore.open([folder], ["static"])


def test_texts_alone_give_the_same_batches_and_say_that_features_are_missing(tmp_path: Path) -> None:
    robot = write_tokens(tmp_path / "robot", robot_episodes(5))
    store = TokenStore.open([robot, write_tokens(tmp_path / "features/web", web_clips(4))], ["static"])
    bare = TokenStore.open([robot, write_tokens(tmp_path / "alone/web", web_clips(4), texts=False)], ["static"])
    assert store.has_text_features and not bare.has_text_features
    assert [bare.text(number) for number in range(6)] == TEXTS * 2
    for options in ({}, {"labeled_only": True}):
        pairs = zip(make_loader(store, 2, **options), make_loader(bare, 2, **options), strict=False)
        assert all(same(a, b) for a, b in itertools.islice(pairs, 9))
    assert len(store.text_features[0]) == 6
    with pytest.raises(DataError, match="alone/web: expected text features, got texts alone"):
        _ = bare.text_features


def test_texts_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "web", web_clips(2), texts=False)
    store = TokenStore.open([folder], ["static"])
    for number in (-1, 3):
        with pytest.raises(DataError, match=f"text_id below 3, got {number}"):
            store.text(number)
    data = "".join(TEXTS).encode()
    for broken, reason in ((data[:-2], "it ends after 12 bytes"), (b"\xff" * len(data), "can't decode byte 0xff")):
        (folder / "columns/sentence_bytes.npy").write_bytes(array_bytes(np.frombuffer(broken, np.uint8)))
        store = TokenStore.open([folder], ["static"])
        assert store.text(0) == ""
        with pytest.raises(DataError, match=rf"web: text 2 cannot be read from sentence_bytes\.npy \(.*{reason}"):
            store.text(2)


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gr2.data_pipeline.loading.token_store._OPEN_FILES", 3)
    folders = [write_tokens(tmp_path / name, robot_episodes(6)) for name in "abcd"]
    assert sum(len(finished_shards(folder)) for folder in folders) > 8
    before = len(list(Path("/proc/self/fd").iterdir()))
    store = TokenStore.open(folders, ["static"])
    for _ in itertools.islice(make_loader(store, 4), 20):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3


def test_a_shard_written_again_is_read_anew(tmp_path: Path) -> None:
    for count in (2, 3):  # the codes differ, too
        shutil.rmtree(tmp_path / "web", ignore_errors=True)
        store = TokenStore.open([write_tokens(tmp_path / "web", web_clips(count))], ["static"])
        codes, _ = store.read_codes("static", np.array([0]), np.arange(9)[None])
        assert np.array_equal(codes[0], all_samples(store)[0]["codes.static.npy"])


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def web_address(tmp_path: Path) -> Iterator[str]:
    """Serve the folder `tmp_path` as a plain web server does."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_shards_by_url_give_the_batches_of_the_folder(
    tmp_path: Path, web_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GR2_CACHE", str(tmp_path / "cache"))
    folder = write_tokens(tmp_path / "robot", robot_episodes(6))
    local = make_loader(TokenStore.open([folder], ["static"]), 4)
    remote = make_loader(TokenStore.open([f"{web_address}/robot"], ["static"]), 4, num_workers=1)
    assert all(same(a, b) for a, b in zip(itertools.islice(local, 9), itertools.islice(remote, 9), strict=True))
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    pattern = f"{web_address}/robot/shard-{{000000..000001}}.tar"
    assert [k for s in list_shards(pattern) for k, _ in read_indexed(s)] == [
        k for s in finished_shards(folder)[:2] for k, _ in read_indexed(s)
    ]
    with pytest.raises(DataError, match=r"nowhere/manifest\.json: cannot be read"):
        TokenStore.open([f"{web_address}/nowhere"], ["static"])


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000, 4097])
def test_permutation_is_one_to_one(size: int) -> None:
    orders = [permute(np.arange(size), size, seed) for seed in (0, 1, 2**62)]
    assert all(np.array_equal(np.sort(order), np.arange(size)) for order in orders)
    if size >= 16:
        assert not np.array_equal(orders[0], orders[1])
    if size >= 1000:
        assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 0.1


def test_two_videos_are_enough_to_hold_one_out() -> None:
    videos = np.array([2**63, 2**63, 2**62, 2**62 + 1], np.uint64)
    assert in_split(videos, "validation", 0.03).tolist() == [False, False, True, False]
    assert in_split(videos, "train", 0.03).tolist() == [True, True, False, True]
    assert in_split(videos, "train", 0.0).all() and in_split(videos[:2], "train", 0.03).all()  # one video alone
    many = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)
    assert np.array_equal(in_split(many, "validation", 0.03), many < 0.03 * 2**64)
