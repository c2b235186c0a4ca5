"""Several processes compute what one does, signals and kills cost nothing, and the metrics before a run are right.

Run as a program, this file is one training run: `python test_distributed.py '{"out": ..., "steps": ...}'`; Lightning
starts it once more for each further process.
"""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from model_cases import make_batch, make_model, small_config

from gr2.cli.failures import describe_failure
from gr2.cvae_head.regression import RegressionConfig
from gr2.errors import CheckpointError, ConfigError, DataError, EnvironmentMissing
from gr2.gr_model.model import presets
from gr2.gr_model.model.config import ModelConfig
from gr2.gr_model.model.objectives import count_kept, training_losses
from gr2.gr_model.model.texts import TextTable
from gr2.gr_model.model.world_model import WorldModel
from gr2.gr_model.train.distributed import Distribution
from gr2.gr_model.train.loop import train
from gr2.gr_model.train.memory_estimate import estimate_memory
from gr2.gr_model.train.metrics_log import open_sinks
from gr2.gr_model.train.module import TrainingModule
from gr2.gr_model.train.preemption import EXIT_STATUS, Preempted, StopRequest
from gr2.gr_model.train.recipe import TrainingConfig
from gr2.gr_model.train.throughput import device_peak, step_cost


class PartLoader:
    """A process's rows of endless global batches, resumable; `slow` waits before each batch [s]."""

    def __init__(
        self, config: ModelConfig, size: int, *, rank: int, world_size: int, states: bool, slow: float, bad_step: int
    ) -> None:
        self.config, self.size, self.rank, self.world_size = config, size, rank, world_size
        self.states, self.slow, self.bad_step, self.position = states, slow, bad_step, 0
        self.ragged = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            whole = make_batch(self.config, self.size * self.world_size, seed=self.position)
            whole["episode"] = 100 * self.position + torch.arange(self.size * self.world_size)
            if self.position == self.bad_step:
                whole["actions"][-1, 0, 0] = torch.nan
            if self.ragged:
                whole |= ragged_masks(self.config, len(whole["text_id"]))
            if not self.states:
                whole = {name: value for name, value in whole.items() if name not in ("states", "state_mask")}
            self.position += 1
            time.sleep(self.slow)
            yield rows(whole, slice(self.rank * self.size, (self.rank + 1) * self.size))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def rows(value: Any, chosen: slice) -> Any:
    if isinstance(value, dict):
        return {name: rows(item, chosen) for name, item in value.items()}
    return value[chosen]


def ragged_masks(config: ModelConfig, size: int) -> dict[str, Any]:
    """Chunks that end early, target frames and cameras that are missing, unevenly over the samples of a batch."""
    k, frames = config.chunk_length, config.max_context + config.num_targets
    lengths = (torch.arange(size) ** 2 // 4) % (k + 1)
    frame_mask = torch.ones(size, frames, dtype=torch.bool)
    frame_mask[: size // 2 - 1, -1] = False
    cameras = {camera.name: torch.ones(size, dtype=torch.bool) for camera in config.cameras}
    cameras["gripper"][-2:] = False
    return {"action_mask": torch.arange(k) < lengths[:, None], "frame_mask": frame_mask, "camera_mask": cameras}


def exact_config(actions: bool) -> ModelConfig:
    """A model whose losses draw nothing at random, so that parts of a batch add up to the whole."""
    return small_config(decoding="raster", head=RegressionConfig(network="mlp", width=32)) if actions else (
        small_config(decoding="raster")
    )  # fmt: skip


def run(
    *, out: str, steps: int = 50, batch_size: int = 4, devices: int = 1, strategy: Any = "auto", actions: bool = False,
    accumulate: int = 1, random: bool = False, slow: float = 0.0, bad_step: int = -1, stop_after: int | None = None,
    average: float = 0.9, checkpoint_every: int = 10, ragged: bool = False,
) -> TrainingModule:  # fmt: skip
    """Train on the CPU."""
    torch.set_num_threads(1)
    distribution = Distribution(device="cpu", devices=devices, strategy=strategy)
    config = exact_config(actions)
    if random:
        config = small_config(dropout=0.1, token_dropout=0.1, scored_share=0.5)
    settings = TrainingConfig(
        with_actions=actions, frame_fraction=0.5 if random else 0.0, warmup=5, precision="32", accumulate=accumulate,
        weight_average=average,
    )  # fmt: skip
    module = TrainingModule(make_model(config).train(), settings, steps=steps)
    loader = PartLoader(
        config, batch_size, rank=distribution.rank, world_size=distribution.world_size, states=actions, slow=slow,
        bad_step=bad_step,
    )  # fmt: skip
    loader.ragged = ragged
    validation = [make_batch(config, 4, seed=9999)]
    train(
        module=module, loader=loader, validation=validation, out=Path(out), batch_size=batch_size, log_every=1,
        validate_every=25, checkpoint_every=checkpoint_every, distribution=distribution, stop_after=stop_after,
        name_episode=lambda number: f"shard-7/{number}",
    )  # fmt: skip
    if distribution.rank == 0:
        torch.save(module.use_average().state_dict(), Path(out) / "released.pt")
    return module


def start(**options: Any) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "TORCHELASTIC"))}
    environment = known | {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, json.dumps(options)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def read_losses(out: Path) -> dict[int, str]:
    with (out / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file)}


def await_step(out: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (out / "metrics.csv").is_file() and max(read_losses(out), default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} within 60 s")


def assert_close(left: dict[int, str], right: dict[int, str], steps: int = 50) -> None:
    assert len(left) == len(right) == steps
    assert max(abs(float(left[step]) - float(right[step])) for step in left) < 1e-4


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Folders of one-process runs on batches of 8: pretraining (False) and actions (True)."""
    folders = {actions: tmp_path_factory.mktemp(f"alone_{actions}") for actions in (False, True)}
    for actions, out in folders.items():
        run(out=str(out), batch_size=8, actions=actions)
    return folders


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a pretraining run of two FSDP processes on batches of 4, stopped at step 40."""
    out = tmp_path_factory.mktemp("sharded")
    status, errors = finish(start(out=str(out), devices=2, strategy="fsdp", stop_after=40))
    assert status == 0, errors
    return out


def check_replicas(alone: Path, out: Path, *, actions: bool) -> None:
    status, errors = finish(start(out=str(out), devices=2, strategy="ddp", actions=actions))
    assert status == 0, errors
    assert "global batch 8 = 4 windows x 1 accumulated x 2 processes" in errors
    assert_close(read_losses(alone), read_losses(out))


def test_two_replicas_train_like_one_process_with_the_doubled_batch(alone: dict[bool, Path], tmp_path: Path) -> None:
    check_replicas(alone[True], tmp_path, actions=True)


@pytest.mark.nightly
def test_two_replicas_pretrain_like_one_process(alone: dict[bool, Path], tmp_path: Path) -> None:
    check_replicas(alone[False], tmp_path, actions=False)


@pytest.mark.parametrize(("actions", "ragged"), [(False, False), (True, True)])
def test_accumulated_batches_train_like_one_batch(tmp_path: Path, actions: bool, ragged: bool) -> None:
    losses = []
    for size, accumulate in ((8, 1), (2, 4)):
        config = exact_config(actions)
        settings = TrainingConfig(
            with_actions=actions, warmup=2, precision="32", accumulate=accumulate, state_share=1, target_state_share=1
        )
        module = TrainingModule(make_model(config), settings, steps=6)
        out = tmp_path / str(size)
        loader = Parts(config, size, states=actions)
        loader.ragged = ragged
        train(module=module, loader=loader, validation=[], out=out, batch_size=size, log_every=1)
        losses.append(read_losses(out))
    assert_close(*losses, steps=6)


def test_replicas_with_uneven_padding_train_like_one_process(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 6, "actions": True, "ragged": True}
    run(out=str(tmp_path / "alone"), batch_size=8, **options)
    status, errors = finish(start(out=str(tmp_path / "two"), devices=2, strategy="ddp", **options))
    assert status == 0, errors
    assert_close(read_losses(tmp_path / "alone"), read_losses(tmp_path / "two"), steps=6)


def test_equal_counts_leave_the_losses_as_they_are() -> None:
    model = make_model(exact_config(True))
    batch = make_batch(model.config, 4) | ragged_masks(model.config, 4)
    kept = count_kept(model, batch, with_actions=True)
    alone = training_losses(model, batch, with_actions=True, with_frames=True)
    weighed = training_losses(model, batch, with_actions=True, with_frames=True, kept=kept)
    assert all(torch.equal(alone[name], weighed[name]) for name in alone)


class Parts(PartLoader):
    """Batches of 8, whole or in parts one after the other."""

    def __init__(self, config: ModelConfig, size: int, *, states: bool) -> None:
        super().__init__(config, size, rank=0, world_size=1, states=states, slow=0.0, bad_step=-1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            whole = make_batch(self.config, 8, seed=self.position * self.size // 8)
            if self.ragged:
                whole |= ragged_masks(self.config, 8)
            if not self.states:
                whole = {name: value for name, value in whole.items() if name not in ("states", "state_mask")}
            first = self.position * self.size % 8
            self.position += 1
            yield rows(whole, slice(first, first + self.size))


def test_shards_train_like_one_process_which_can_go_on_from_them(
    alone: dict[bool, Path], sharded: Path, tmp_path: Path
) -> None:
    folder = sharded / "last.ckpt"
    assert sum(file.suffix == ".distcp" for file in folder.iterdir()) == 2
    out = tmp_path / "run"
    shutil.copytree(sharded, out)
    run(out=str(out), batch_size=8)
    assert (out / "last.ckpt").is_file()
    assert_close(read_losses(alone[False]), read_losses(out))
    wanted, got = (torch.load(path / "released.pt") for path in (alone[False], out))
    assert wanted.keys() == got.keys()
    assert max(float((got[name] - tensor).abs().max()) for name, tensor in wanted.items()) < 2e-3


@pytest.mark.nightly
def test_shards_go_on_from_shards_and_from_a_file(alone: dict[bool, Path], sharded: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded, tmp_path / "shards")
    run(out=str(tmp_path / "file"), batch_size=8, stop_after=40)
    for name in ("shards", "file"):
        status, errors = finish(start(out=str(tmp_path / name), devices=2, strategy="fsdp"))
        assert status == 0, errors
        assert (tmp_path / name / "last.ckpt").is_dir()
        assert_close(read_losses(alone[False]), read_losses(tmp_path / name))
        wanted, got = (torch.load(path / "released.pt") for path in (alone[False], tmp_path / name))
        assert max(float((got[key] - tensor).abs().max()) for key, tensor in wanted.items()) < 2e-3


def test_damaged_shards_are_refused(sharded: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded, tmp_path / "run")
    (tmp_path / "run" / "last.ckpt" / "run.pt").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(out=str(tmp_path / "run"), batch_size=8)
    shutil.copy(sharded / "last.ckpt" / "run.pt", tmp_path / "run" / "last.ckpt")
    index = tmp_path / "run" / "last.ckpt" / ".metadata"
    for content in (b"not a checkpoint", b"", pickle.dumps(os.getcwd)):
        index.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            run(out=str(tmp_path / "run"), batch_size=8)
    shutil.copy(sharded / "last.ckpt" / ".metadata", index)
    next(index.parent.glob("*.distcp")).write_bytes(b"short")
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(out=str(tmp_path / "run"), batch_size=8)


RANDOM = {"steps": 16, "actions": True, "random": True}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an undisturbed run with every kind of randomness."""
    out = tmp_path_factory.mktemp("unbroken")
    run(out=str(out), **RANDOM)
    return out


def assert_same_run(left: Path, right: Path) -> None:
    assert read_losses(left) == read_losses(right)
    wanted, got = (torch.load(path / "released.pt") for path in (left, right))
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())


def test_killed_run_repeats_the_same_losses(unbroken: Path, tmp_path: Path) -> None:
    process = start(out=str(tmp_path), slow=0.15, checkpoint_every=3, **RANDOM)
    await_step(tmp_path, 5)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert max(read_losses(tmp_path)) < 16
    run(out=str(tmp_path), **RANDOM)
    assert_same_run(unbroken, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_at_the_next_step_and_asks_to_be_requeued(unbroken: Path, tmp_path: Path, number: int) -> None:
    process = start(out=str(tmp_path), slow=0.15, checkpoint_every=1000, **RANDOM)
    await_step(tmp_path, 3)
    process.send_signal(number)
    status, errors = finish(process)
    assert status == EXIT_STATUS == 75
    assert "the same command resumes" in errors
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert 3 <= saved < 16 and saved == max(read_losses(tmp_path))
    run(out=str(tmp_path), **RANDOM)
    assert_same_run(unbroken, tmp_path)


@pytest.mark.nightly
def test_signal_to_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    options = {"out": str(tmp_path), "devices": 2, "strategy": "ddp", "steps": 60}
    process = start(**options, slow=0.1, checkpoint_every=1000)
    await_step(tmp_path, 3)
    process.send_signal(signal.SIGUSR1)
    assert finish(process)[0] == EXIT_STATUS
    status, errors = finish(start(**options))
    assert status == 0, errors
    run(out=str(tmp_path / "alone"), steps=60, batch_size=8)
    assert_close(read_losses(tmp_path / "alone"), read_losses(tmp_path), 60)


def test_nan_names_its_episode_and_changes_nothing(tmp_path: Path) -> None:
    options = {"steps": 8, "actions": True, "average": 0.0, "checkpoint_every": 1}
    with pytest.raises(DataError, match=r"at step 5 from episode 503 \(shard-7/503\): actions not finite;") as caught:
        run(out=str(tmp_path / "bad"), bad_step=5, **options)
    frames = (entry.frame for entry in caught.traceback if entry.path == Path(__file__) and entry.name == "run")
    module = next(frames).f_locals["module"]
    run(out=str(tmp_path / "good"), stop_after=5, **options)
    saved = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("bad", "good")]
    assert [state["global_step"] for state in saved] == [5, 5]
    for name, tensor in module.model.state_dict().items():
        assert torch.equal(tensor, saved[1]["state_dict"][f"model.{name}"]), name
        assert torch.equal(tensor, saved[0]["state_dict"][f"model.{name}"]), name


@pytest.mark.nightly
def test_nan_on_another_process_is_named_on_the_first(tmp_path: Path) -> None:
    status, errors = finish(start(out=str(tmp_path), devices=2, strategy="ddp", steps=8, actions=True, bad_step=5))
    assert status in (1, -signal.SIGKILL)
    assert "from episode 507 (shard-7/507): actions not finite" in errors


def test_gradient_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    config = exact_config(True)
    settings = TrainingConfig(frame_fraction=0.0, precision="32")
    module = TrainingModule(make_model(config), settings, steps=3)
    module.model.gpt.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    loader = PartLoader(config, 4, rank=0, world_size=1, states=True, slow=0.0, bad_step=-1)
    with pytest.raises(DataError, match="finite gradient"):
        train(module=module, loader=loader, validation=[], out=tmp_path, batch_size=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.model.state_dict().items())


def test_numbers_of_processes_are_checked() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Distribution(devices=0)
    with pytest.raises(ConfigError, match="at least 1"):
        TrainingConfig(accumulate=0)
    assert Distribution(device="cpu", devices="auto").world_size == 1
    assert Distribution(device="cpu", devices=4, num_nodes=2).world_size == 8
    config = exact_config(False)
    loader = PartLoader(config, 4, rank=1, world_size=2, states=False, slow=0.0, bad_step=-1)
    module = TrainingModule(make_model(config), TrainingConfig(with_actions=False), steps=1)
    with pytest.raises(ConfigError, match="process 0 of 1, got one for 1 of 2"):
        train(module=module, loader=loader, validation=[], out=Path("unused"), batch_size=4)


def test_rank_follows_what_started_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    four = Distribution(device="cpu", devices=2, num_nodes=2)
    assert four.rank == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("NODE_RANK", "1")
    assert four.rank == 3
    assert Distribution(device="cpu").rank == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "2")
    assert four.rank == 2


def test_accumulation_cannot_change_within_a_run(tmp_path: Path) -> None:
    run(out=str(tmp_path), steps=4, stop_after=2)
    with pytest.raises(CheckpointError, match="--accumulate 1"):
        run(out=str(tmp_path), steps=4, accumulate=2)


def test_stop_request_gives_the_signals_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        request.listen()
        assert not request.came
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.came
    assert signal.getsignal(signal.SIGTERM) is before
    assert describe_failure(Preempted("stopped.")) == ("stopped.", 75)


@pytest.mark.parametrize("decoding", ["masked", "raster"])
@pytest.mark.parametrize(("frames", "actions"), [(True, True), (True, False), (False, True)])
def test_counted_operations_are_those_of_torch(decoding: Any, frames: bool, actions: bool) -> None:
    for config in (small_config(decoding), presets.tiny(decoding=decoding)):
        torch.manual_seed(0)
        model = WorldModel(config).train()
        model.set_texts(TextTable(torch.randn(4, 6, config.text_dim), torch.ones(4, 6, dtype=torch.bool)))
        batch = make_batch(config, 32)
        # torch counts the products of plain attention, not those of its fused kernel for CPUs
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            losses = training_losses(model, batch, with_actions=actions, with_frames=frames)
            sum(value for name, value in losses.items() if name in ("frame_loss", "action_loss")).backward()  # type: ignore[union-attr]
        cost = step_cost(model, text_length=6, with_frames=frames, with_actions=actions)
        assert cost.flops * 32 == pytest.approx(counter.get_total_flops(), rel=0.08)


def test_peaks_of_known_devices() -> None:
    assert device_peak("NVIDIA H200") == device_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert device_peak("NVIDIA H100 PCIe") == 756e12
    assert device_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert device_peak("NVIDIA L4") == 121e12 and device_peak("NVIDIA L40S") == 362e12
    assert device_peak("Some CPU") is None


def test_estimated_memory_is_that_of_the_tensors() -> None:
    config = replace(presets.tiny(), scored_share=1.0)
    model = WorldModel(config).train()
    model.set_texts(TextTable(torch.randn(4, 6, config.text_dim), torch.ones(4, 6, dtype=torch.bool)))
    options: dict[str, Any] = {
        "batch_size": 32, "text_length": 6, "with_actions": True, "weight_average": True, "bfloat16": False,
        "fused_attention": False,
    }  # fmt: skip
    needed = estimate_memory(model, **options)
    assert needed.weights == needed.gradients == sum(p.nbytes for p in model.parameters())
    optimizer = TrainingModule(model, TrainingConfig(), steps=1).configure_optimizers()["optimizer"]
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = training_losses(model, make_batch(config, 32), with_actions=True, with_frames=True)
    assert 0.5 < needed.activations / sum(kept.values()) < 2
    (losses["frame_loss"] + losses["action_loss"]).backward()
    optimizer.step()
    states = sum(v.nbytes for part in optimizer.parts for state in part.state.values() for v in state.values())
    assert needed.optimizer == pytest.approx(states, rel=0.01)
    model.gpt.gradient_checkpointing = True
    assert estimate_memory(model, **options).activations < needed.activations
    assert estimate_memory(model, **options, shards=4).weights == needed.weights / 4
    assert needed.warning(needed.total) is None
    assert "--strategy fsdp" in str(needed.warning(needed.total / 2))


def test_too_little_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("gr2.gr_model.train.loop.device_memory", lambda device: 1e5)
    with pytest.warns(UserWarning, match="may run out of memory"):
        run(out=str(tmp_path), steps=1)
    assert "memory on each device: about" in capsys.readouterr().err


def test_logs_beside_the_csv_file(tmp_path: Path) -> None:
    assert open_sinks("csv", tmp_path, resume_step=0) == []
    if find_spec("wandb") is None:
        with pytest.raises(EnvironmentMissing, match=r"pip install 'gr2\[wandb"):
            open_sinks("wandb", tmp_path, resume_step=0)
    if find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    [sink] = open_sinks("auto", tmp_path, resume_step=0)
    sink.add(1, {"train/loss": 0.5})
    sink.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_checkpointed_activations_change_no_loss(tmp_path: Path) -> None:
    losses = []
    for checkpointing in (False, True):
        config = exact_config(False)
        settings = TrainingConfig(with_actions=False, precision="32", gradient_checkpointing=checkpointing)
        module = TrainingModule(make_model(config), settings, steps=3)
        loader = PartLoader(config, 4, rank=0, world_size=1, states=False, slow=0.0, bad_step=-1)
        out = tmp_path / str(checkpointing)
        train(module=module, loader=loader, validation=[], out=out, batch_size=4, log_every=1)
        losses.append(read_losses(out))
    assert losses[0] == losses[1]


if __name__ == "__main__":
    try:
        run(**json.loads(sys.argv[1]))
    except Exception as error:
        failure = describe_failure(error)
        if failure is None:
            raise
        print(failure[0], file=sys.stderr)
        sys.exit(failure[1])
