"""The loader: partition over ranks, exact resume, windows equal to a slow reference; the normaliser."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from gr2.data_pipeline.files import array_bytes, write_bytes, write_json
from gr2.data_pipeline.loader import WindowLoader
from gr2.data_pipeline.normalize import Normalizer, compute_statistics, statistics_table
from gr2.data_pipeline.shards import ShardWriter
from gr2.data_pipeline.shuffle import permute
from gr2.data_pipeline.stages import Tally, begin_stage, finish_stage
from gr2.data_pipeline.token_store import TokenStore
from gr2.gr_model.errors import ConfigError, DataError, ShapeError

FACTS = {"codebook_size": 1000, "grid": [2, 3], "image_size": 64}
SENTENCES = ["", "lift it", "push it"]


def write_tokens(out: Path, episodes: list[dict], facts: dict = FACTS) -> Path:
    """Write token shards of random codes; an episode names cameras, frames, stride, steps and caption."""
    rng = np.random.default_rng(len(episodes))
    begin_stage(out, "token_shards", {}, overwrite=False)
    with ShardWriter(out, max_bytes=4000) as writer:
        for i, episode in enumerate(episodes):
            members = {
                f"codes.{camera}.npy": array_bytes(rng.integers(0, 1000, (episode["frames"], 6)).astype(np.uint16))
                for camera in episode["cameras"]
            }
            if episode["steps"]:
                members["states.npy"] = array_bytes(rng.normal(size=(episode["steps"], 5)).astype(np.float32))
                members["actions.npy"] = array_bytes(rng.normal(size=(episode["steps"], 4)).astype(np.float32))
            description = {
                "caption": episode["caption"],
                "frame_stride": episode["stride"],
                "num_frames": episode["frames"],
                "cameras": episode["cameras"],
                "video": f"{out.name}-{i // 2}",
            }
            writer.write(f"episode_{i}", members | {"json": json.dumps(description).encode()})
            if writer.is_full:
                writer.finish_shard()
    features = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((1, 4, 2), np.float32)
    write_bytes(out / "texts.safetensors", save({"features": features, "mask": np.ones((3, 4), bool)}))
    write_json(out / "texts.json", {"sentences": SENTENCES})
    finish_stage(out, "token_shards", {}, Tally(), {"tokenizer": facts})
    return out


def robot_episodes(count: int, stride: int = 3) -> list[dict]:
    """Describe labelled episodes of different lengths, every third without a sentence."""
    return [
        {
            "cameras": ["static", "gripper"],
            "frames": -(-(20 + 7 * i) // stride),
            "stride": stride,
            "steps": 20 + 7 * i,
            "caption": SENTENCES[i % 3],
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


OPTIONS = {"num_frames": 4, "frame_step": 2, "chunk_length": 5, "seed": 3, "context": 2}


def reference(store: TokenStore, episode: int, anchor: int) -> dict:
    """Collect one window by plain loops."""
    window: dict = {"static": [], "gripper": [], "frame": [], "state": [], "action": [], "action_mask": []}
    frames, stride = int(store.num_frames[episode]), int(store.frame_stride[episode])
    first_step, steps = int(store.step_offsets[episode]), int(store.num_steps[episode])
    for j in range(4):
        time = anchor + (j - 1) * 2
        inside = min(max(time, 0), frames - 1)
        window["frame"].append(time == inside)
        for camera in ("static", "gripper"):
            offset = int(store.frame_offsets[camera][episode])
            if offset >= 0:
                window[camera].append(store.codes[camera][offset + inside])
        window["state"].append(store.states[first_step + inside * stride] if steps else np.zeros(5))
    for j in range(5):
        step = anchor * stride + j
        window["action_mask"].append(step < steps)
        window["action"].append(store.actions[first_step + min(step, steps - 1)] if steps else np.zeros(4))
    return window


def test_windows_equal_a_slow_reference(store: TokenStore) -> None:
    loader = WindowLoader(store, batch_size=16, **OPTIONS)
    pairs = [(e, a) for e in range(len(store)) for a in (0, 1, 2, int(store.num_frames[e]) - 1)]
    episode, anchor = np.array(pairs).T
    batch = loader.gather(episode, anchor)
    for i, (e, a) in enumerate(pairs):
        expected = reference(store, e, a)
        for camera in ("static", "gripper"):
            assert bool(batch["camera_mask"][camera][i]) == bool(expected[camera])
            if expected[camera]:
                assert np.array_equal(batch["codes"][camera][i], expected[camera])
        assert batch["frame_mask"][i].tolist() == expected["frame"]
        assert np.array_equal(batch["states"][i], np.array(expected["state"], np.float32))
        assert np.array_equal(batch["actions"][i], np.array(expected["action"], np.float32))
        assert batch["action_mask"][i].tolist() == expected["action_mask"]
        assert batch["state_mask"][i].tolist() == [f and store.num_steps[e] > 0 for f in expected["frame"]]
        assert int(batch["text_id"][i]) == store.text_id[e]
    assert batch["codes"]["static"].dtype == torch.int64 and batch["actions"].dtype == torch.float32


def draws(loader: WindowLoader, count: int) -> list[tuple[int, int]]:
    """Give the (episode, anchor) pairs of the next batches."""
    found: list[tuple[int, int]] = []
    gather = loader.gather
    loader.gather = lambda e, a: (found.extend(zip(e.tolist(), a.tolist(), strict=True)), gather(e, a))[1]
    for _ in itertools.islice(loader, count):
        pass
    return found


@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_partition_an_epoch_in_equal_steps(store: TokenStore, world_size: int) -> None:
    options = OPTIONS | {"batch_size": 4, "world_size": world_size}
    loaders = [WindowLoader(store, rank=rank, **options) for rank in range(world_size)]
    assert len({len(loader) for loader in loaders}) == 1
    seen = [pair for loader in loaders for pair in draws(loader, len(loader))]
    assert len(set(seen)) == len(seen)
    assert loaders[0].num_windows - len(seen) < 4 * world_size
    anchors = store.num_frames - np.where(store.num_steps > 0, 0, 2)
    assert loaders[0].num_windows == anchors.sum()
    assert all(0 <= anchor < anchors[episode] for episode, anchor in seen)
    again = draws(WindowLoader(store, **options), len(loaders[0]))
    assert again == seen[: len(again)]
    second_epoch = draws(loaders[0], len(loaders[0]))
    assert second_epoch != again and len(set(second_epoch)) == len(second_epoch)


def same(a: dict, b: dict) -> bool:
    """Compare two batches exactly."""
    return all(same(a[name], b[name]) if isinstance(a[name], dict) else torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stop", [0, 3, 40])
def test_resume_gives_the_very_next_batch(store: TokenStore, stop: int) -> None:
    options = OPTIONS | {"batch_size": 8, "weights": [1.0, 2.0]}
    stream = iter(WindowLoader(store, **options))
    whole = list(itertools.islice(stream, 50))
    loader = WindowLoader(store, **options)
    for _ in itertools.islice(loader, stop):
        pass
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = WindowLoader(store, **options)
    next(iter(resumed))
    resumed.load_state_dict(state)
    rest = list(itertools.islice(resumed, 50 - stop))
    assert all(same(a, b) for a, b in zip(whole[stop:], rest, strict=True))
    with pytest.raises(DataError, match="seed"):
        WindowLoader(store, **(options | {"seed": 4})).load_state_dict(state)


def test_resume_with_other_ranks_takes_only_what_is_left(store: TokenStore) -> None:
    loader = WindowLoader(store, batch_size=4, **OPTIONS)
    before = draws(loader, 6)
    after = []
    for rank in range(2):
        other = WindowLoader(store, batch_size=4, rank=rank, world_size=2, **OPTIONS)
        other.load_state_dict(loader.state_dict())
        after += draws(other, (loader.num_windows - 24) // 8)
    assert len(set(before + after)) == len(before + after)


def test_weights_choose_the_share_of_each_source(store: TokenStore) -> None:
    loader = WindowLoader(store, batch_size=8, weights=[3.0, 1.0], **OPTIONS)
    seen = draws(loader, len(loader))
    robot = [pair for pair in seen if store.source_id[pair[0]] == 0]
    assert len(robot) / len(seen) == pytest.approx(0.75, abs=0.04)
    counts = np.unique(robot, axis=0, return_counts=True)[1]
    assert counts.max() - counts.min() <= 2  # every window of a source comes round before any comes again
    only = WindowLoader(store, batch_size=8, weights=[0.0, 1.0], **OPTIONS)
    assert {int(store.source_id[episode]) for episode, _ in draws(only, 20)} == {1}
    with pytest.raises(ConfigError, match="2 weights"):
        WindowLoader(store, batch_size=8, weights=[1.0], **OPTIONS)


def test_splits_divide_videos_and_labels_select_episodes(store: TokenStore) -> None:
    def videos(split: str) -> set[str]:
        loader = WindowLoader(store, batch_size=2, split=split, validation_fraction=0.4, **OPTIONS)
        return {store.videos[episode] for episode, _ in draws(loader, len(loader))}

    assert videos("train") and videos("validation")
    assert not videos("train") & videos("validation")
    assert videos("train") | videos("validation") == set(store.videos)
    labelled = WindowLoader(store, batch_size=2, labelled_only=True, **OPTIONS)
    chosen = {episode for episode, _ in draws(labelled, len(labelled))}
    assert chosen == {i for i in range(8) if SENTENCES[i % 3]}


def test_store_refuses_what_does_not_fit(tmp_path: Path) -> None:
    one = write_tokens(tmp_path / "one", web_clips(2))
    other = write_tokens(tmp_path / "other", web_clips(2), FACTS | {"sha256": "different"})
    with pytest.raises(DataError, match="sha256 differ"):
        TokenStore.open([one, other], ["static"])
    with pytest.raises(DataError, match=r"found only \['static'\]"):
        TokenStore.open([one], ["wrist"])
    store = TokenStore.open([one], ["static"])
    with pytest.raises(DataError, match="at least 64 windows"):
        WindowLoader(store, batch_size=64, **OPTIONS)
    with pytest.raises(ConfigError, match="context"):
        WindowLoader(store, batch_size=2, **(OPTIONS | {"context": 5}))


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000, 4097])
def test_permutation_is_one_to_one(size: int) -> None:
    orders = [permute(np.arange(size), size, seed) for seed in (0, 1, 2**62)]
    assert all(np.array_equal(np.sort(order), np.arange(size)) for order in orders)
    if size >= 16:
        assert not np.array_equal(orders[0], orders[1])
    if size >= 1000:
        assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 0.1


@pytest.mark.parametrize("mode", ["mean_std", "quantile"])
def test_normaliser_inverts_and_leaves_masked_dimensions(mode: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 5)) * [3, 0.01, 0, 1, 1] + [1, -2, 7, 0, 0]
    rows[:, 3] = rng.random(4000) > 0.5  # gripper
    rows[:, 4] = rng.random(4000) > 0.995  # quantiles coincide
    statistics = compute_statistics([rows[:100], rows[100:]])
    normalizer = Normalizer.fit(statistics, mode, unchanged=[3])
    assert normalizer.mask.tolist() == [True, True, False, False, True]
    x = rows.astype(np.float32)
    y = normalizer.apply(x)
    assert np.isfinite(y).all() and np.array_equal(y[:, 2:4], x[:, 2:4])
    assert np.abs(normalizer.invert(y) - x).max() < 1e-5
    if mode == "mean_std":
        assert np.abs(y[:, :2].mean(0)).max() < 1e-2 and np.abs(y[:, :2].std(0) - 1).max() < 1e-2
    else:
        assert np.abs(np.quantile(y[:, :2], [0.01, 0.99], axis=0) - [[-1], [1]]).max() < 1e-2
    again = Normalizer.from_dict(json.loads(json.dumps(normalizer.to_dict())))
    tensor = torch.from_numpy(x)
    assert torch.allclose(again.apply(tensor), torch.from_numpy(y), atol=1e-6)
    assert torch.allclose(again.invert(again.apply(tensor)), tensor, atol=1e-5)


def test_normaliser_warns_and_refuses() -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 2))
    rows[7, 1] = 500
    statistics = compute_statistics([rows])
    table = statistics_table(statistics, Normalizer.fit(statistics), ["x [m]", "y [m]"]).splitlines()
    assert "OUTLIERS" in table[3] and "OUTLIERS" not in table[2]
    with pytest.raises(ShapeError, match="last axis"):
        Normalizer.fit(statistics).apply(rows[:, :1])
    with pytest.raises(ShapeError, match=r"\[1\] hold NaN"):
        compute_statistics([np.array([[0.0, np.nan]])])
    with pytest.raises(DataError, match="at least one row"):
        compute_statistics([])
    with pytest.raises(DataError, match="one length"):
        Normalizer.from_dict({"mode": "mean_std", "offset": [0.0], "scale": [1.0]})
