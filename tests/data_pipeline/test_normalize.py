"""Normalization that cannot go wrong: exact statistics, faults that are found, checkpoints that refuse other data."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_cases import make_model, small_config
from robot_cases import SO101
from safetensors.torch import save_file

from gr2.cli.main import main
from gr2.contracts import Observation
from gr2.cvae_head.signals import coding_of
from gr2.data_pipeline.files import array_bytes, write_json
from gr2.data_pipeline.statistics.check import contradictions, state_contradiction
from gr2.data_pipeline.statistics.datasets import DatasetAccumulator, DatasetStatistics, state_layout
from gr2.data_pipeline.statistics.normalize import Normalizer, RowAccumulator, RowStatistics, measure_rows
from gr2.data_pipeline.statistics.steps import measure_steps, read_shard_steps
from gr2.data_pipeline.statistics.table import statistics
from gr2.data_pipeline.store.shards import ShardWriter
from gr2.embodiment import TOOL_ARM
from gr2.errors import CheckpointError, ConfigError, DataError, ShapeError
from gr2.gr_model.act.loading import ReleasedPolicy
from gr2.gr_model.model.normalization import (
    Standardize,
    Statistics,
    choose_normalization,
    measure_statistics,
    read_normalization,
)
from gr2.gr_model.model.release import RECORD, config_from_dict, load_release, save_release
from gr2.gr_model.model.world_model import WorldModel

SAMPLES = Path(__file__).parents[2] / "../shared/real_samples"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples are not beside the checkout")


def skewed(num_rows: int, seed: int = 0) -> np.ndarray:
    """Draw rows of five different distributions, one of them constant."""
    rng = np.random.default_rng(seed)
    columns = [rng.normal(1e3, 1e-3, num_rows), rng.exponential(2, num_rows), np.full(num_rows, 7.0)]
    return np.stack([*columns, rng.random(num_rows) > 0.5, rng.random(num_rows) > 0.995], axis=1)


def random_steps(num_steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw states `[t 16]` and actions `[t 8]` of one arm: it moves little by little, the fingers follow commands."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(scale=0.02, size=(num_steps, 3)), axis=0)
    angle = np.cumsum(rng.normal(scale=0.05, size=num_steps))
    command = (np.arange(num_steps) // 10 + seed) % 2
    zero = np.zeros(num_steps)
    pose = np.column_stack([0.4 + np.tanh(walk) * 0.3, zero, zero, np.sin(angle / 2), np.cos(angle / 2)])
    opening = np.clip(0.9 * command + rng.normal(scale=0.02, size=num_steps), 0, 1)
    joints = np.tanh(np.cumsum(rng.normal(scale=0.05, size=(num_steps, 7)), axis=0)) + [0, 0.5, 0, -2, 0, 2, 0.8]
    return (
        np.column_stack([pose, opening, command, joints]).astype(np.float32),
        np.column_stack([pose + rng.normal(scale=0.001, size=(num_steps, 7)) * [1, 1, 1, 0, 0, 0, 0], command]).astype(
            np.float32
        ),
    )


def measure(seeds: range | list[int], change=None, name: str = "arm") -> DatasetStatistics:
    """Measure episodes of 60 steps; `change` may alter states and actions in place."""
    accumulator = DatasetAccumulator(name)
    for seed in seeds:
        states, actions = random_steps(60, seed)
        if change is not None:
            change(states, actions)
        accumulator.add(states, actions, f"episode_{seed}")
    return accumulator.result()


def write_shards(out: Path, seeds: range | list[int], change=None, stage: str = "token_shards") -> Path:
    """Write shards of episodes beside videos that nobody can decode."""
    with ShardWriter(out, max_bytes=100_000) as writer:
        for seed in seeds:
            states, actions = random_steps(60, seed)
            if change is not None:
                change(states, actions)
            members = {
                "static.mp4": b"no video",
                "states.npy": array_bytes(states),
                "actions.npy": array_bytes(actions),
            }
            writer.write(f"episode_{seed}", members | {"json": b'{"caption": "go", "facts": {}}'})
            if writer.is_full:
                writer.finish_shard()
    write_json(out / "manifest.json", {"format": "gr2-stage-1", "stage": stage, "status": "complete"})
    return out


def scale(kind: int, columns: slice, factor: float, offset: float = 0.0):
    """Make a change of some columns of states (0) or actions (1)."""

    def change(*parts: np.ndarray) -> None:
        parts[kind][:, columns] = parts[kind][:, columns] * factor + offset

    return change


def same_statistics(a: RowStatistics, b: RowStatistics) -> bool:
    """Compare to the last bit."""
    return a.to_dict() == b.to_dict()


def test_statistics_equal_numpy_and_do_not_depend_on_the_division() -> None:
    rows = skewed(20_000)
    whole = measure_rows(rows)
    assert np.array_equal(whole.mean, rows.mean(axis=0)) and np.array_equal(whole.std, rows.std(axis=0))
    for name, p in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
        assert np.array_equal(whole.quantiles[name], np.quantile(rows, p, axis=0))
    pieces = RowAccumulator()
    for part in np.split(rows, [0, 1, 2, 700, 9000, 9001]):
        pieces.add(part)
    parts = pieces.result()
    assert np.allclose(parts.mean, whole.mean, rtol=1e-14) and np.allclose(parts.std, whole.std, rtol=1e-7, atol=1e-15)
    assert all(np.array_equal(parts.quantiles[name], whole.quantiles[name]) for name in whole.quantiles)
    assert np.array_equal(parts.min, whole.min) and np.array_equal(parts.max, whole.max) and parts.rows == 20_000
    # the deviation is a millionth of the mean: naive sums of squares would give anything
    assert whole.std[0] == pytest.approx(1e-3, rel=0.05) == parts.std[0]


def test_quantiles_of_long_streams_come_from_a_uniform_sample_of_fixed_size() -> None:
    num_rows, kept = 400_000, 5_000
    values = np.arange(num_rows, dtype=np.float64)[:, None]  # sorted: a sample of the beginning would be far off

    def quantiles(block: int) -> np.ndarray:
        accumulator = RowAccumulator(sample_rows=kept)
        for start in range(0, num_rows, block):
            accumulator.add(values[start : start + block])
        assert len(accumulator._sample) == kept
        result = accumulator.result()
        assert result.mean[0] == pytest.approx((num_rows - 1) / 2, rel=1e-12) and result.max[0] == num_rows - 1
        return np.array([result.quantiles[name][0] for name in ("q01", "q05", "q50", "q95", "q99")])

    probabilities = np.array([0.01, 0.05, 0.5, 0.95, 0.99])
    expected_error = np.sqrt(probabilities * (1 - probabilities) / kept)
    error = np.abs(quantiles(10_000) / num_rows - probabilities)
    assert (error < 4 * expected_error).all(), error / expected_error
    assert np.array_equal(quantiles(10_000), quantiles(7_777))


def test_statistics_refuse_what_is_no_matrix_of_numbers() -> None:
    accumulator = RowAccumulator()
    accumulator.add(np.zeros((3, 2)))
    with pytest.raises(ShapeError, match=r"expected rows \(t, 2\), got shape \(3, 4\)"):
        accumulator.add(np.zeros((3, 4)))
    with pytest.raises(ShapeError, match=r"\[1\] hold NaN"):
        accumulator.add(np.array([[0.0, np.nan]]))
    with pytest.raises(DataError, match="at least one row"):
        RowAccumulator().result()
    plain = measure_rows(skewed(50)).to_dict()
    assert same_statistics(RowStatistics.from_dict(json.loads(json.dumps(plain))), measure_rows(skewed(50)))
    for broken in ({}, None, [1], plain | {"std": [1.0]}, plain | {"q99": [np.nan] * 5}, plain | {"mean": "a"}):
        with pytest.raises(DataError, match="statistics: expected"):
            RowStatistics.from_dict(broken)


@pytest.mark.parametrize("mode", ["moments", "quantiles"])
def test_normalizer_inverts_and_leaves_grippers_and_constants(mode: str) -> None:
    rows = skewed(4000)
    normalizer = Normalizer.fit(measure_rows(rows), mode, unchanged=[3])
    y = normalizer.apply(rows)
    assert np.isfinite(y).all() and np.array_equal(y[:, 3], rows[:, 3]) and (y[:, 2] == 0).all()
    assert np.abs(normalizer.invert(y) - rows).max() < 1e-9
    if mode == "moments":
        assert np.abs(y[:, :2].mean(0)).max() < 1e-6 and np.abs(y[:, :2].std(0) - 1).max() < 1e-6
    else:
        assert np.abs(np.quantile(y[:, :2], [0.01, 0.99], axis=0) - [[-1], [1]]).max() < 1e-6
        assert np.array_equal(np.unique(y[:, 4]), [-1, 1])  # both quantiles are 0: the range takes their place
    layer = Standardize(5)
    layer.set(normalizer.offset.tolist(), normalizer.scale.tolist())
    tensor = torch.from_numpy(rows).float()[:, 1:]
    part = Standardize(4)
    part.set(normalizer.offset[1:].tolist(), normalizer.scale[1:].tolist())
    assert torch.allclose(part(tensor), torch.from_numpy(y[:, 1:]).float(), atol=1e-5)
    assert torch.allclose(part.invert(part(tensor)), tensor, atol=1e-5)
    assert set(layer.state_dict()) == {"mean", "std"}


def test_buffers_of_the_model_are_what_they_were() -> None:
    """Numpy's mean and deviation, bit for bit; where that is under 1e-5, 1 for a state, 0.001 for an action."""
    from gr2.embodiment import TOOL_ARM

    states = np.stack([random_steps(60, seed)[0][:40] for seed in range(20)]).reshape(-1, 16).astype(np.float64)
    actions = np.stack([random_steps(60, seed)[1][i : i + 10] for seed in range(20) for i in range(40)]).astype(
        np.float64
    )
    mask = np.arange(10)[None] < np.arange(800)[:, None] % 11 + 1
    got = measure_statistics(states, actions, mask)
    coding = coding_of(TOOL_ARM)
    features, poses = coding.features(states), coding.encode(states, actions)[..., :6]
    deviation = features.std(axis=0)
    assert got.state_mean == tuple(features.mean(axis=0).tolist())
    assert got.state_std == tuple(np.where(deviation < 1e-5, 1.0, deviation).tolist())
    for step in range(10):
        rows = poses[mask[:, step], step]
        assert got.action_mean[step] == tuple(rows.mean(axis=0).tolist())
        deviation = rows.std(axis=0)
        assert got.action_std[step] == tuple(np.where(deviation < 1e-5, 1e-3, deviation).tolist())
    by_range = measure_statistics(states, actions, mask, mode="quantiles")
    normal = (features - by_range.state_mean) / by_range.state_std
    assert np.allclose(np.quantile(normal[:, :3], [0.01, 0.99], axis=0), [[-1] * 3, [1] * 3])
    assert Statistics.from_dict(json.loads(json.dumps(got.to_dict()))) == got


def test_faults_are_found_with_their_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def break_one(states: np.ndarray, actions: np.ndarray) -> None:
        states[3, 0] = np.nan
        states[20:, 3:7] *= -1
        states[7, 3:7] *= 1.5
        states[:, 9] = np.where(np.arange(60) % 2, 3.1, -3.1)
        states[:, 10] = np.degrees(1.0)
        states[5, 11] = 100.0 if actions[0, 7] else states[5, 11]  # in one of the two
        states[:, 7] *= 255
        actions[:, 0] *= 1000

    shards = write_shards(tmp_path, [1, 2], break_one)
    assert main(["data", "statistics", str(shards), "--json", str(tmp_path / "out" / "s.json")]) == 0
    printed = capsys.readouterr().out
    (dataset,) = json.loads((tmp_path / "out" / "s.json").read_text())["datasets"]
    assert dataset["warnings"] == [
        "states: 2 rows with NaN or infinity, left out, in episode_1, episode_2",
        "states: 2 rows whose quaternion is not of length 1: normalize it",
        "states: 2 sign flips between successive quaternions: q and -q are one rotation, their mean is none",
    ]
    notes = dict(zip(dataset["states"]["names"], dataset["states"]["notes"], strict=True))
    assert notes["joint 1 [rad]"] == ["WRAPS 114 times at +-pi: unwrap, or give rotations without a jump"]
    assert notes["joint 2 [rad]"] == ["constant", "UNITS: looks like degrees, expected [rad]"]
    assert notes["joint 3 [rad]"] == ["OUTLIERS: broken rows?"]
    assert notes["gripper opening"][1].startswith("GRIPPER OUTSIDE 0..1") and notes["y [m]"] == []
    assert dataset["actions"]["notes"][0] == ["UNITS: looks like [mm] or [cm], expected [m]"]
    assert dataset["states"]["rows"] == 118 and dataset["actions"]["rows"] == 120
    assert "WARNING" in printed and "WRAPS 114" in printed and "gripper, unchanged" in printed
    swapped = write_shards(tmp_path / "swapped", [1], scale(1, slice(7, 8), -1, 1))
    assert main(["data", "statistics", str(swapped)]) == 0
    assert "commanded to open, the gripper closes" in capsys.readouterr().out


def test_records_that_cannot_be_used_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ShardWriter(tmp_path, max_bytes=1 << 30) as writer:
        states, actions = random_steps(60, 0)
        whole = {"states.npy": array_bytes(states), "actions.npy": array_bytes(actions), "json": b"{}"}
        writer.write("good", whole)
        writer.write("narrow", whole | {"states.npy": array_bytes(states[:, :7])})
        writer.write("truncated", whole | {"actions.npy": array_bytes(actions)[:-50]})
        writer.write("text", whole | {"json": b"{"})
        writer.write("video", {"json": b"{}"})
        writer.write("pickled", whole | {"states.npy": b"\x80\x04K\x01."})
        writer.write("words", whole | {"states.npy": array_bytes(np.array([["a"]]))})
    summary = statistics(source=tmp_path)
    assert (summary["records"], summary["without_steps"], sum(summary["broken"].values())) == (6 + 1, 1, 5)
    assert any("expected 16 numbers a step" in reason for reason in summary["broken"])
    assert [example["record"] for example in summary["broken_examples"]] == [
        "narrow", "truncated", "text", "pickled", "words",
    ]  # fmt: skip
    assert "5 broken" in capsys.readouterr().out
    with pytest.raises(DataError, match="no such file or folder"):
        statistics(source=tmp_path / "absent")
    damaged = tmp_path / "shard-000000.tar"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    with pytest.raises(DataError, match="shard"):
        statistics(source=tmp_path)
    write_json(tmp_path / "manifest.json", {"status": "running"})
    with pytest.raises(DataError, match="not finished"):
        statistics(source=tmp_path)


def test_one_dataset_has_one_fingerprint_in_every_form(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / "record" / f"episode_{number:06d}"
        folder.mkdir(parents=True)
        states, actions = random_steps(60, number)
        np.savez(folder / "steps.npz", states=states.astype(np.float64), actions=actions)
        (folder / "static.mp4").write_bytes(b"no video")
        facts = {"instruction": "", "control_hz": 30.0, "frame_stride": 1, "fps": 30.0, "cameras": ["static"]}
        write_json(folder / "episode.json", {"format": "gr2-episode-1", "facts": {}, **facts})
    recorded = statistics(source=tmp_path / "record")["datasets"][0]
    shards = write_shards(tmp_path / "shards", range(3), stage="video_shards")
    (measured,) = measure_steps(read_shard_steps(shards), "shards").statistics().values()
    assert measured.fingerprint == recorded["fingerprint"] == measure(range(3)).fingerprint
    assert RowStatistics.from_dict(recorded["states"]).to_dict() == measured.states.to_dict()
    others = {measure([0, 2, 1]).fingerprint, measure(range(2)).fingerprint, measure(range(4)).fingerprint}
    assert len(others | {measured.fingerprint}) == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            scale(0, slice(0, 3), 1000),
            r"states, x \[m\]: up to 0\.\d+ in training, up to \d+(\.\d)? here \(other units",
        ),
        (
            scale(1, slice(0, 3), 100),
            r"actions, x \[m\]: up to 0\.\d+ in training, up to \d+(\.\d+)? here \(other units",
        ),
        (scale(0, slice(9, 16), 180 / np.pi), r"states, joint \d \[rad\]: up to .* \(other units: degrees"),
        (scale(0, slice(7, 9), 255), r"states, gripper command: from 0 to 1 in training, from 0 to 255 here"),
        (scale(1, slice(7, 8), 2, -1), r"actions, gripper command: from 0 to 1 in training, from -1 to 1 here"),
        (scale(1, slice(7, 8), -1), r"actions, gripper command: from 0 to 1 in training, from -1 to -?0 here"),
        (
            scale(0, slice(7, 8), 0.08),
            r"states, gripper opening: from 0 to 0\.9\d+ in training, from 0 to 0\.07\d+ here",
        ),
        (scale(1, slice(7, 8), -1, 1), r"commanded to open, the opening changed by \+0\.89 in training, -0\.89 here"),
        (scale(0, slice(2, 3), 1, 2), r"states, z \[m\]: from .* in training \(1 % to 99 %\), 2\.\d+ on average here"),
    ],
)
def test_other_conventions_contradict_in_both_directions(change, reason: str) -> None:
    stored, new = measure(range(12)), measure(range(12, 24), change)
    found = contradictions(stored, new)
    assert found
    assert any(re.search(reason, one) for one in found), found
    assert contradictions(new, stored)
    assert not contradictions(new, new) and not contradictions(stored, stored)


def test_small_differences_pass() -> None:
    stored = measure(range(12))

    def harmless(states: np.ndarray, actions: np.ndarray) -> None:
        states[:, 3:7] *= -1  # the same rotations
        states[:, 7] = states[:, 7] * 1.05 - 0.02
        states[:, :3] += 0.1
        actions[:, :3] += 0.1

    def still(states: np.ndarray, actions: np.ndarray) -> None:
        states[:], actions[:] = states[0], actions[0]
        states[:, 7:9] = actions[:, 7:8] = 1.0

    for new in (measure([40]), measure(range(30, 60)), measure(range(12), harmless), measure([3], still)):
        assert contradictions(stored, new) == []
    width = DatasetAccumulator("narrow")
    width.add(np.zeros((9, 7)), None, "one")
    assert contradictions(stored, width.result()) == ["states: 16 numbers a step in training, 7 here"]


def save(folder: Path, datasets: dict[str, DatasetStatistics]) -> None:
    """Write a release of a small finetuned model."""
    model = make_model(small_config())
    model.set_statistics(
        Statistics(
            state_mean=(0.1,) * 11, state_std=(2.0,) * 11, action_mean=((0.01,) * 6,) * 5, action_std=((0.02,) * 6,) * 5
        )
    )
    save_release(
        folder, model, tokenizer="v", text="t", frame_step=5, control_hz=30.0, provenance={}, datasets=datasets
    )


def test_a_release_keeps_the_statistics_of_its_data(tmp_path: Path) -> None:
    one = measure(range(3), name="runs/a")
    save(tmp_path, {one.fingerprint: one})
    (again,) = load_release(tmp_path).datasets.values()
    assert again.to_dict() == one.to_dict() and again.name == "runs/a" and again.state_gripper == (7, 8)
    record = json.loads((tmp_path / RECORD).read_text())
    write_json(tmp_path / RECORD, {name: value for name, value in record.items() if name != "datasets"})
    assert load_release(tmp_path).datasets == {}
    for broken in ([], {"a": 1}, {"a": record["datasets"][one.fingerprint] | {"states": {"rows": 3}}}):
        write_json(tmp_path / RECORD, record | {"datasets": broken})
        with pytest.raises(CheckpointError, match="statistics: expected"):
            load_release(tmp_path)


def test_a_release_of_0_1_0_loads(tmp_path: Path) -> None:
    record = json.loads((Path(__file__).parents[1] / "golden" / "release_0_1_0.json").read_text())
    assert not {"datasets", "acts", "embodiments"} & {*record, *record["model"]}
    model = WorldModel(config_from_dict(record["model"]), statistics=Statistics.from_dict(record["statistics"]))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    sha256 = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    write_json(tmp_path / RECORD, record | {"sha256": sha256})
    release = load_release(tmp_path)
    assert release.datasets == {} and release.model.acts and release.control_hz == 30
    assert [robot.name for robot in release.model.config.embodiments] == [TOOL_ARM.name]
    assert release.model.config.head.kind == "cvae" and not release.model.config.head.sample_latent  # z = 0


FRESH = Statistics.neutral(11, 5)
FRESH = replace(FRESH, state_mean=(1 / 3,) * 11)


def choose(out: Path, tokens: list[Path], choice: str = "check", init: Path | None = None):
    """Begin or continue a run without training; `statistics.json` appears as it does in training."""
    out.mkdir(exist_ok=True)
    start = None if init is None else load_release(init).normalization
    return choose_normalization(choice, tokens=tokens, out=out, init=init, start=start, measure=lambda: FRESH)


def test_starting_from_a_model_of_other_data_needs_a_word(tmp_path: Path) -> None:
    first = write_shards(tmp_path / "first", range(6))
    alike = write_shards(tmp_path / "alike", range(6, 12))
    other = write_shards(tmp_path / "other", range(6), scale(0, slice(9, 16), 180 / np.pi))
    init = tmp_path / "init"
    save(init, dict(choose(tmp_path / "run", [first]).datasets))
    assert choose(tmp_path / "a", [alike, first], init=init).statistics == FRESH
    with pytest.raises(CheckpointError) as refused:
        choose(tmp_path / "b", [alike, other], init=init)
    message = str(refused.value)
    assert "/other: expected data like those" in message and "joint" in message and "--statistics measure" in message
    assert "up to" in message and "\n" not in message
    assert not (tmp_path / "b" / "statistics.json").exists()
    measured = choose(tmp_path / "b", [other], "measure", init)
    assert measured.statistics == FRESH and len(measured.datasets) == 1
    kept = choose(tmp_path / "c", [other], "keep", init)
    assert kept.statistics == load_release(init).model.get_statistics() and len(kept.datasets) == 2
    with pytest.raises(ConfigError, match="expected --init with a finetuned model"):
        choose(tmp_path / "d", [other], "keep")


def test_a_run_that_goes_on_keeps_its_statistics_to_the_last_bit(tmp_path: Path) -> None:
    first, other = write_shards(tmp_path / "first", range(6)), write_shards(tmp_path / "other", range(5))
    out = tmp_path / "run"
    begun = choose(out, [first])
    written = (out / "statistics.json").read_bytes()
    (out / "last.ckpt").write_bytes(b"")
    again = choose(out, [first])
    assert again.statistics == begun.statistics and (out / "statistics.json").read_bytes() == written
    assert {k: d.to_dict() for k, d in again.datasets.items()} == {k: d.to_dict() for k, d in begun.datasets.items()}
    for choice in ("check", "measure"):
        with pytest.raises(CheckpointError, match=r"1 sets of 360 steps then, 1 of 300 now.*--statistics keep"):
            choose(out, [other], choice)
    assert choose(out, [other], "keep").statistics == begun.statistics
    assert read_normalization(tmp_path) is None
    (out / "statistics.json").write_text('{"model": {}}')
    with pytest.raises(CheckpointError, match="train again"):
        choose(out, [first])


def write_trainable(out: Path, num_episodes: int, change=None) -> Path:
    """Write token shards that the shipped tokenizers might have made, of random codes."""
    from gr2.data_pipeline.store.shards import finished_shards
    from gr2.data_pipeline.store.stages import Tally, begin_stage
    from gr2.data_pipeline.tokens import finish_token_shards
    from gr2.gr_model.train.tokenizer_stages import tokenizer_facts
    from gr2.tokenizers.text_weights import load_text_encoder
    from gr2.tokenizers.weights import load_vqgan

    encoder, rng = load_text_encoder("small"), np.random.default_rng(0)
    facts = tokenizer_facts(load_vqgan("small"), encoder)
    num_codes = facts["grid"][0] * facts["grid"][1]
    begin_stage(out, "token_shards", {}, overwrite=False)
    with ShardWriter(out, max_bytes=1 << 30) as writer:
        for number in range(num_episodes):
            states, actions = random_steps(60, number)
            if change is not None:
                change(states, actions)
            codes = rng.integers(0, facts["codebook_size"], (12, num_codes)).astype(np.uint16)
            members = {f"codes.{camera}.npy": array_bytes(codes) for camera in ("static", "gripper")}
            members |= {"states.npy": array_bytes(states), "actions.npy": array_bytes(actions), "json": b"{}"}
            row = {"frames": 12, "stride": 5, "steps": 60, "cameras": ["static", "gripper"], "state_dim": 16}
            row |= {"action_dim": 8, "code_bytes": num_codes * 2, "text": 0, "video": f"v{number}"}
            writer.write(f"episode_{number}", members, row)
        writer.finish_shard({"sentences": ["push it"]})
    finish_token_shards(out, {}, Tally(), [tar.name for tar in finished_shards(out)], facts, encoder.encode)
    return out


def test_finetuning_keeps_and_guards_the_statistics_of_its_data(tmp_path: Path) -> None:
    from gr2.gr_model.train.options import FinetuneOptions
    from gr2.gr_model.train.stages import finetune

    options = {"steps": 2, "batch_size": 4, "threads": 1, "device": "cpu"}
    data, run = write_trainable(tmp_path / "data", 60), tmp_path / "run"
    other = write_trainable(tmp_path / "other", 60, scale(0, slice(9, 16), 180 / np.pi))
    finetune(FinetuneOptions(tokens=[data], out=run, **options))
    release = load_release(run)
    assert set(release.datasets) == {measure(range(60)).fingerprint}
    record = json.loads((run / RECORD).read_text())
    finetune(FinetuneOptions(tokens=[data], out=run, **options))
    again = json.loads((run / RECORD).read_text())
    assert (again["statistics"], again["datasets"]) == (record["statistics"], record["datasets"])
    with pytest.raises(CheckpointError, match=r"data that this run began with, got others .*joint"):
        finetune(FinetuneOptions(tokens=[other], out=run, **options))
    with pytest.raises(CheckpointError, match=r"degrees or .*--statistics measure"):
        finetune(FinetuneOptions(tokens=[other], out=tmp_path / "next", init=run, **options))
    finetune(FinetuneOptions(tokens=[other], out=tmp_path / "next", init=run, statistics="keep", **options))
    kept = load_release(tmp_path / "next")
    assert kept.model.get_statistics() == release.model.get_statistics() and len(kept.datasets) == 2


def test_every_process_normalizes_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that each measured their own part of the windows trained on targets that differed by a percent."""
    from gr2.gr_model.train.distributed import Distribution
    from gr2.gr_model.train.options import FinetuneOptions
    from gr2.gr_model.train.stages import finetune

    data, found = write_trainable(tmp_path / "data", 20), []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        monkeypatch.setattr(Distribution, "rank", rank)
        monkeypatch.setattr(Distribution, "world_size", world)
        out = tmp_path / f"{rank}of{world}"
        finetune(FinetuneOptions(tokens=[data], out=out, steps=1, batch_size=4, threads=1, device="cpu"))
        begun = read_normalization(out)
        assert begun is not None
        found.append(begun.statistics)
    assert found[0] == found[1] == found[2]


def observation(state: np.ndarray) -> Observation:
    """Make an observation of a state, with an image of each camera."""
    return Observation(
        images={"static": np.zeros((8, 8, 3), np.uint8)}, tool_position=state[:3], tool_quaternion=state[3:7],
        gripper_opening=float(state[7]), gripper_command=float(state[8]), joint_positions=state[9:], instruction="go",
        time=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("column", "factor", "message"),
    [(0, 1000, "x [m]"), (7, 255, "gripper opening"), (8, -1, "gripper command"), (9, 57.3, "")],
)
def test_a_policy_refuses_states_of_other_units(tmp_path: Path, column: int, factor: float, message: str) -> None:
    one = measure(range(6))
    save(tmp_path, {one.fingerprint: one})

    def encode_images(frames: np.ndarray) -> np.ndarray:
        return np.zeros((len(frames), 24), np.int64)

    def encode_text(texts: object) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((1, 6, 12), np.float32), np.ones((1, 6), bool)

    policy = ReleasedPolicy(
        load_release(tmp_path), encode_images=encode_images, encode_text=encode_text, executed_steps=1
    )
    state = random_steps(60, 99)[0][15]
    state[7:9] = 1.0
    assert len(policy.act(observation(state)).positions) == 5
    state[column] *= factor
    if not message:  # the model does not read joints, so that their unit cannot harm
        assert len(policy.act(observation(state)).positions) == 5
        assert state_contradiction({"one": one}, np.where(np.arange(16) == 9, 90.0, state), range(16)).startswith(
            "joint 1 [rad]"
        )
        return
    with pytest.raises(ShapeError) as refused:
        policy.act(observation(state))
    assert message in str(refused.value) and "in training" in str(refused.value)
    assert len(policy.history) == 1


def test_layouts_name_every_number() -> None:
    assert len(state_layout(16).names) == 16 and state_layout(16).gripper == (7, 8)
    assert state_layout(5, [4]).gripper == (4,) and state_layout(5).gripper == ()
    with pytest.raises(DataError, match="from 0 to 4, got"):
        state_layout(5, [5])


@needs_samples
def test_real_episodes_have_their_known_metrics() -> None:
    rt1 = statistics(source=SAMPLES / "rt1")
    (dataset,) = rt1["datasets"]
    assert (rt1["records"], dataset["states"]["rows"], len(dataset["states"]["names"])) == (2, 83, 9)
    # the tool's rotation passes w = 0 and is stored with the other sign from there on
    assert any("1 sign flips" in warning for warning in dataset["warnings"])
    assert dataset["action_gripper"] == [6] and dataset["actions"]["max"][6] == 1.0
    rlds = statistics(source=SAMPLES / "bridge_rlds")
    (dataset,) = rlds["datasets"]
    assert (rlds["records"], dataset["actions"]["rows"], dataset["action_gripper"]) == (13, 130, [6])
    # small rotations beside an open gripper are no quaternion
    assert dataset["state_gripper"] == [6] and dataset["warnings"] == []
    (bridge,) = statistics(source=SAMPLES / "bridge")["datasets"]
    assert bridge["states"]["rows"] == 61 and bridge["actions"]["notes"][6] == ["gripper, unchanged"]


@needs_samples
def test_statistics_of_a_lerobot_dataset_are_those_it_states_itself() -> None:
    root = SAMPLES / "lerobot_v21_g1"
    summary = statistics(source=root)
    (dataset,) = summary["datasets"]
    assert (summary["records"], sum(summary["broken"].values()), len(summary["broken"])) == (100, 99, 1)
    stated = [json.loads(line) for line in (root / "meta/episodes_stats.jsonl").read_text().splitlines()]
    (episode,) = [entry["stats"] for entry in stated if entry["episode_index"] == 29]
    for kind, key in (("states", "observation.state"), ("actions", "action")):
        assert dataset[kind]["rows"] == 221 == episode[key]["count"][0]
        for name in ("mean", "std", "min", "max"):
            assert np.allclose(dataset[kind][name], episode[key][name], rtol=1e-4, atol=1e-6), (kind, name)


def test_an_action_that_never_changes_is_answered_as_it_was() -> None:
    rng = np.random.default_rng(0)
    coding = coding_of(SO101)
    states, actions = rng.normal(size=(40, SO101.state_dim)), rng.normal(size=(40, 3, SO101.action_dim))
    states[:, 2] = actions[..., 2] = 0.25
    measured = measure_statistics(states, actions, coding=coding)
    assert np.allclose(np.array(measured.action_std)[:, 2], 1e-3) and np.min(measured.action_std[0][:2]) > 0.5
