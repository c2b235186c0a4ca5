"""FSDP: weights, gradients, optimizer states and the weight average spread over processes, and their checkpoints.

torch's `fully_shard` cuts every parameter along its first axis. Muon needs whole matrices: its products of sharded
matrices gather what they need, so that a step is the one of a single process.

A sharded checkpoint is a folder that `torch.distributed.checkpoint` wrote, every process its own file, beside
`run.pt`, which holds the rest. Tensors are named `weights.NAME`, `average.NAME` and `optimizer.PART.NAME.STATE`, so
that any number of processes can read them; `as_one_file` gives the checkpoint of an unsharded run.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from ...errors import CheckpointError
from ..model.world_model import WorldModel
from .averaging import WeightAverage
from .distributed import WholePass
from .optimizer import MuonAdamW

RUN_STATE = "run.pt"

_METADATA_TYPES = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )
} | {
    *(("torch", name) for name in ("Size", "float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8")),
    ("torch", "bool"), ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"), ("pathlib._local", "WindowsPath"),
}  # fmt: skip
"""All that the index of a checkpoint consists of; torch stores it as a pickle, which could name anything else."""


class ShardedRun(Protocol):
    """What a sharded checkpoint holds of a training module."""

    model: WorldModel
    average: WeightAverage | None

    def optimizer_groups(self) -> list[list[list[str]]]:
        """Name the parameters of each group of each part of the optimizer."""
        ...


def shard(whole: WholePass, mesh: DeviceMesh) -> None:
    """Spread the model's parameters over `mesh`, one group a block of the trunk and one for all else."""
    *body, last = whole.model.gpt.blocks
    for block in body:
        fully_shard(block, mesh=mesh)
    fully_shard(last, mesh=mesh)
    register_fsdp_forward_method(last, "extend")  # the trunk calls the last block by this method
    fully_shard(whole, mesh=mesh, reshard_after_forward=True)  # evaluation must leave shards, too


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for `fully_shard`, on CUDA (NCCL) and on CPU (gloo), with the checkpoints of this module."""

    def __init__(self, world_size: int) -> None:
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1)

    @property
    def _training(self) -> ShardedRun:
        return cast("ShardedRun", self.lightning_module)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return nothing: `save_checkpoint` writes the weights itself."""
        return {}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return nothing: `save_checkpoint` writes the states itself."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the folder `filepath`; every process calls."""
        folder = Path(self.broadcast(filepath))
        folder.mkdir(parents=True, exist_ok=True)
        optimizer = cast(MuonAdamW, self.optimizers[0])
        tensors = dict(_tensors(self._training, optimizer))
        dcp.save(dict(tensors), checkpoint_id=folder)
        if self.global_rank == 0:
            checkpoint["state_dict"], checkpoint["optimizer_states"] = {}, []
            checkpoint["parameter_groups"] = [
                [{name: value for name, value in group.items() if name != "params"} for group in part.param_groups]
                for part in optimizer.parts
            ]
            average = checkpoint.get("weight_average")
            if average is not None:
                checkpoint["weight_average"] = {"updates": average["updates"], "values": []}
            torch.save(checkpoint, folder / RUN_STATE)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights, average and optimizer in place, from a sharded folder or from an unsharded file."""
        path = Path(self.broadcast(checkpoint_path))
        module, optimizer = self._training, cast(MuonAdamW, self.optimizers[0])
        if path.is_dir():
            run = read_run_state(path)
            sizes = _stored(path)
            places = {name: tensor for name, tensor in _tensors(module, optimizer, sizes) if name in sizes}
            _expect_all(path, places, sizes)
            _read_tensors(places, path)
            groups = run["parameter_groups"]
        else:
            run = torch.load(path, map_location="cpu", weights_only=True)
            parts = run["optimizer_states"][0]["parts"]
            found = _named(run, module, parts)
            places = {name: tensor for name, tensor in _tensors(module, optimizer, found) if name in found}
            _expect_all(path, places, found)
            with torch.no_grad():
                for name, place in places.items():
                    place.copy_(_like(place, found[name]))
            groups = [part["param_groups"] for part in parts]
        for part, saved in zip(optimizer.parts, groups, strict=True):
            for group, values in zip(part.param_groups, saved, strict=True):
                group.update({name: value for name, value in values.items() if name != "params"})
        if "weight_average" in run and module.average is not None:
            run["weight_average"]["values"] = module.average.values
        return run


def _tensors(
    module: ShardedRun, optimizer: MuonAdamW, stored: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a run by name; with `stored`, make the optimizer states that it names first."""
    names = {id(p): name for name, p in module.model.named_parameters()}
    yield from ((f"weights.{name}", tensor) for name, tensor in module.model.state_dict().items())
    if module.average is not None:
        yield from ((f"average.{name}", value) for name, value in module.average.named_values())
    for number, part in enumerate(optimizer.parts):
        for parameter in (p for group in part.param_groups for p in group["params"]):
            prefix = f"optimizer.{number}.{names[id(parameter)]}."
            state = part.state[parameter] if parameter in part.state or stored else {}
            for key in stored or ():
                if key.startswith(prefix):
                    name = key.removeprefix(prefix)
                    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    state[name] = step if name == "step" else torch.zeros_like(parameter)
            if stored and not state:
                del part.state[parameter]
            yield from ((prefix + name, value) for name, value in state.items())


def _named(run: Mapping[str, Any], module: ShardedRun, parts: list[Any]) -> dict[str, Tensor]:
    """Name the tensors of an unsharded checkpoint as `_tensors` does."""
    found = {f"weights.{name.removeprefix('model.')}": t for name, t in run["state_dict"].items()}
    trainable = [name for name, p in module.model.named_parameters() if p.requires_grad]
    if "weight_average" in run:
        found |= {f"average.{n}": t for n, t in zip(trainable, run["weight_average"]["values"], strict=True)}
    for number, groups in enumerate(module.optimizer_groups()):
        names = [name for group in groups for name in group]
        for index, state in parts[number]["state"].items():
            found |= {f"optimizer.{number}.{names[index]}.{name}": value for name, value in state.items()}
    return found


def _like(place: Tensor, whole: Tensor) -> Tensor:
    if not isinstance(place, DTensor):
        return whole
    return distribute_tensor(whole.to(place.device), place.device_mesh, place.placements)


class _IndexReader(pickle.Unpickler):
    """Read the index of a checkpoint and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _METADATA_TYPES:
            raise pickle.UnpicklingError(f"the index names {module}.{name}")
        return super().find_class(module, name)


def _stored(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Return name -> size and type of the tensors of a sharded checkpoint, before torch reads it.

    Raises:
        CheckpointError: it cannot be read, or is no index of tensors.
    """
    try:
        with (folder / ".metadata").open("rb") as file:
            entries = _IndexReader(file).load().state_dict_metadata
    except (
        OSError,
        EOFError,
        ValueError,
        AttributeError,
        TypeError,
        IndexError,
        KeyError,
        pickle.PickleError,
    ) as error:
        raise CheckpointError(
            f"{folder}: expected a sharded checkpoint, got a folder that cannot be read ({error}); delete it to start "
            "again, or put back a whole one."
        ) from error
    return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def _expect_all(path: Path, places: Mapping[str, Tensor], stored: Mapping[str, Any]) -> None:
    missing, strange = sorted(set(places) - set(stored)), sorted(set(stored) - set(places))
    if missing or strange:
        raise CheckpointError(
            f"{path}: expected the tensors of this configuration, got some others (missing {missing[:3]}, unknown "
            f"{strange[:3]}); use another output folder or the same configuration."
        )


def _read_tensors(places: dict[str, Tensor], folder: Path, *, alone: bool = False) -> None:
    """Fill tensors from the shards.

    Raises:
        CheckpointError: a shard is missing or damaged.
    """
    try:
        dcp.load(places, checkpoint_id=folder, no_dist=alone)
    except (dcp.api.CheckpointException, OSError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{folder}: expected whole shards, got some that cannot be read ({' '.join(str(error).split())[:300]}); "
            "delete the folder to start again, or put back a whole one."
        ) from error


def read_run_state(folder: Path) -> dict[str, Any]:
    """Read what a sharded checkpoint holds beside tensors."""
    return dict(torch.load(folder / RUN_STATE, map_location="cpu", weights_only=True))


def as_one_file(folder: Path, module: ShardedRun, file: Path) -> Path:
    """Write a sharded checkpoint as the file of an unsharded run of the same `module`.

    Raises:
        CheckpointError: it is damaged.
    """
    run, stored = read_run_state(folder), _stored(folder)
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in stored.items()}
    _read_tensors(tensors, folder, alone=True)

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    run["state_dict"] = {f"model.{name}": tensor for name, tensor in under("weights.").items()}
    trainable = [name for name, p in module.model.named_parameters() if p.requires_grad]
    if "weight_average" in run:
        average = under("average.")
        run["weight_average"]["values"] = [average[name] for name in trainable]
    parts = []
    for number, named_groups in enumerate(module.optimizer_groups()):
        names = [name for group in named_groups for name in group]
        state: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(names):
            found = under(f"optimizer.{number}.{name}.")
            if found:
                state[index] = found
        groups, first = [], 0
        for group, named in zip(run["parameter_groups"][number], named_groups, strict=True):
            groups.append(group | {"params": list(range(first, first + len(named)))})
            first += len(named)
        parts.append({"state": state, "param_groups": groups})
    run["optimizer_states"] = [{"parts": parts}]
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    torch.save(run, temporary)
    os.replace(temporary, file)
    return file


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the whole state dict on the CPU of every process; all of them must call."""
    gathered = {}
    for name, tensor in model.state_dict().items():
        gathered[name] = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().clone()
    return gathered
