"""Where a run computes: one process or many, whole weights on each (DDP) or a share of them on each (FSDP).

    gr2 pretrain --devices 8                                one machine, Lightning starts the processes
    srun gr2 pretrain --devices 8 --num-nodes 4             SLURM starts one process a device
    torchrun --nproc_per_node 8 $(which gr2) pretrain --devices 8

Every process takes `batch_size` windows a batch, so that the global batch of a step is
batch_size x accumulate x devices x num_nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...errors import ConfigError, EnvironmentMissing
from ..model.world_model import WorldModel

Device = Literal["auto", "cpu", "cuda"]
StrategyName = Literal["auto", "ddp", "fsdp"]
Result = TypeVar("Result")


def choose_accelerator(device: Device) -> str:
    """Return Lightning's name of a device.

    Raises:
        EnvironmentMissing: CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentMissing(
            "--device cuda: expected a CUDA device, found none; `gr2 doctor` reports what is missing, "
            "--device cpu runs here."
        )
    return {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[device]


def torch_device(device: Device) -> str:
    """Return torch's name of a device; auto takes a GPU where there is one.

    Raises:
        EnvironmentMissing: CUDA is asked for and absent.
    """
    on_gpu = choose_accelerator(device) == "gpu" or (device == "auto" and torch.cuda.is_available())
    return "cuda" if on_gpu else "cpu"


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """The processes of a run.

    device: what they compute on; devices: processes on each machine, "auto" for one on each GPU.
    strategy: "ddp" keeps all weights on every device; "fsdp" keeps a share of the weights, gradients and optimizer
        states on each and gathers one block at a time; "auto" is DDP where there are several processes.
    num_nodes: machines.
    """

    device: Device = "auto"
    devices: int | Literal["auto"] = 1
    strategy: StrategyName = "auto"
    num_nodes: int = 1

    def __post_init__(self) -> None:
        if self.num_nodes < 1 or (self.devices != "auto" and self.devices < 1):
            raise ConfigError(
                f"--devices {self.devices} --num-nodes {self.num_nodes}: expected at least 1 of each; change the "
                "numbers."
            )
        gpus = torch.cuda.device_count() if self.device != "cpu" else 0
        if self.devices != "auto" and gpus and self.devices > gpus:
            raise ConfigError(
                f"--devices {self.devices}: expected at most the {gpus} GPUs of this machine; ask for fewer, or for "
                "more machines with --num-nodes."
            )

    @property
    def processes_per_node(self) -> int:
        """Count the processes of a machine."""
        if self.devices != "auto":
            return self.devices
        return max(torch.cuda.device_count(), 1) if self.device != "cpu" else 1

    @property
    def world_size(self) -> int:
        """Count all processes."""
        return self.processes_per_node * self.num_nodes

    @property
    def sharded(self) -> bool:
        """Return whether the weights are spread over the processes."""
        return self.strategy == "fsdp"

    @property
    def rank(self) -> int:
        """Number this process among all, from what started it: SLURM, torchrun or Lightning."""
        if self.world_size == 1:
            return 0
        environment = cluster_environment()
        if environment is not None:
            return environment.global_rank()
        started = LightningEnvironment()
        return started.node_rank() * self.processes_per_node + started.local_rank()

    def describe(self, batch_size: int, accumulate: int) -> str:
        """Return in one line how the global batch comes about."""
        kind = "sharded (FSDP)" if self.sharded else "replicated (DDP)" if self.world_size > 1 else "on one device"
        return (
            f"global batch {batch_size * accumulate * self.world_size} = {batch_size} windows x {accumulate} "
            f"accumulated x {self.world_size} processes, weights {kind}"
        )


def cluster_environment() -> TorchElasticEnvironment | SLURMEnvironment | None:
    """Return what started the processes, None where Lightning does.

    Requeueing is left to the exit status (see `preemption`).
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None


def among_many() -> bool:
    """Return whether other processes take part in this run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def any_rank(flags: Tensor) -> Callable[[], list[bool]]:
    """Begin to ask all processes for flags `[n]`; return what waits for the answer: whether each is set on any of them.

    All of them must call both. What they do in between hides the time that the answer takes.
    """
    among = flags.to(torch.int32)
    asked = dist.all_reduce(among, op=dist.ReduceOp.MAX, async_op=True) if among_many() else None

    def answer() -> list[bool]:
        if asked is not None:
            asked.wait()
        return [bool(value) for value in among.tolist()]

    return answer


def mean_tensor(values: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes; all of them must call."""
    if not among_many():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def mean_over_ranks(metrics: dict[str, float], device: torch.device) -> dict[str, float]:
    """Average metrics over the processes; all of them must call with the same names."""
    if not among_many():
        return metrics
    tensor = torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(metrics, (tensor / dist.get_world_size()).tolist(), strict=True))


def gather_texts(text: str) -> list[str]:
    """Return the texts of all processes; all of them must call."""
    if not among_many():
        return [text]
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return texts


def full(tensor: Tensor) -> Tensor:
    """Return a whole tensor: gathered where it is spread over processes, all of which must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class WholePass(nn.Module):
    """Any function of the model as the forward pass of one module, so that FSDP gathers the weights around it."""

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[WorldModel], Result]) -> Result:
        """Return `function(model)`."""
        return function(self.model)
