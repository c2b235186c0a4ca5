"""What can be chosen about a training run: shared by pretraining and finetuning, and what finetuning adds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ...cvae_head.kinds import HeadOptions
from ...data_pipeline.loading.loader import LoaderConfig
from ...errors import ConfigError
from ..model.config import ModelChanges
from .recipe import TrainingConfig

Size = Literal["tiny", "S", "B", "L", "XL"]
Device = Literal["auto", "cpu", "cuda"]
StrategyName = Literal["auto", "ddp", "fsdp"]
LogName = Literal["auto", "csv", "tensorboard", "wandb"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a step is computed; the losses are the same up to rounding.

    Args:
        precision: bf16 computes matrix products in bfloat16, 32 everything in float32; auto takes the faster one.
        compile: fuse the trunk's blocks with torch.compile.
        gradient_checkpointing: compute activations twice instead of keeping them; null does so for L and XL.
    """

    precision: Literal["auto", "32", "bf16"] = "auto"
    compile: bool = False
    gradient_checkpointing: bool | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of a training run.

    Args:
        tokens: folders that `gr2 data tokens` wrote, or their URLs.
        out: folder for the log, the checkpoint and the released model; a stopped run resumes.
        size: tiny (CPU), S, B, L or XL, where the run does not start from a model.
        model: what differs from the size, where the run does not start from a model.
        head: the trajectory head; one unlike that of the model that the run starts from is trained from nothing.
        tokenizer: the image tokenizer that made the tokens: "small" or its folder or file.
        text: the text encoder that made the tokens.
        steps: optimization steps.
        batch_size: windows a batch on each device; a step takes batch_size x accumulate x devices x num_nodes.
        learning_rate: peak learning rate of AdamW; Muon's, for the matrices of trunk and denoising head, is muon_factor
            times that.
        muon_factor: see learning_rate.
        warmup: steps over which the learning rate rises.
        weight_decay: of AdamW and Muon.
        validation_share: share of the videos that is held out, of two or more at least one; 0 holds none out.
        validate_every: steps between metrics on held-out windows; null is a twentieth of the run, 100 at least.
        checkpoint_every: steps between checkpoints; null is the same.
        weight_average: decay of the moving average of the weights that is released; null is 0.998 for finetuning over
            more than 1000 steps, else 0.99; 0 releases the last weights.
        state_share: share of the samples that see the robot's state when they predict frames.
        target_state_share: of those, the share that also sees the state that the trajectory leads to.
        context: frames that the model sees.
        frame_step: frames of the tokens from one frame of a window to the next; windows begin at every frame.
        chunk_length: control steps of a chunk.
        threads: CPU threads, 0 leaves torch's choice.
        device: where to train; auto takes a GPU where there is one.
        devices: processes on each machine, one a GPU; auto takes all of them.
        strategy: ddp keeps all weights on each device, fsdp spreads them; auto is ddp on several devices.
        num_nodes: machines, each of which runs this command (srun or torchrun).
        accumulate: batches a step.
        compute: precision, compilation, and activations kept or computed twice.
        log: beside metrics.csv; auto adds TensorBoard where it is installed.
        loader: shares of the folders, workers, and how far windows are mixed.
        seed: seed of weights, order and masks.
    """

    tokens: list[str]
    out: Path
    size: Size = "tiny"
    model: ModelChanges = ModelChanges()  # noqa: RUF009  (frozen)
    head: HeadOptions = HeadOptions()  # noqa: RUF009  (frozen)
    tokenizer: str = "small"
    text: str = "small"
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    muon_factor: float = 4.0
    warmup: int = 50
    weight_decay: float = 0.05
    validation_share: float = 0.03
    validate_every: int | None = None
    checkpoint_every: int | None = None
    weight_average: float | None = None
    state_share: float = 0.7
    target_state_share: float = 0.7
    context: int = 1
    frame_step: int = 1
    chunk_length: int = 10
    threads: int = 2
    device: Device = "auto"
    devices: int | Literal["auto"] = 1
    strategy: StrategyName = "auto"
    num_nodes: int = 1
    accumulate: int = 1
    compute: ComputeConfig = ComputeConfig()
    log: LogName = "auto"
    loader: LoaderConfig = LoaderConfig()  # noqa: RUF009  (frozen)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ConfigError("--tokens: expected at least one folder, as in --tokens runs/a/tokens.")
        for name in ("steps", "batch_size", "context", "frame_step", "chunk_length", "num_nodes", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}: expected 1 or more, got {getattr(self, name)}.")
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"--validation-share: expected a share of 0 to below 1, got {self.validation_share}.")
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}: expected 1 or more, got {getattr(self, name)}.")
        for name in ("warmup", "weight_decay", "threads", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--{name.replace('_', '-')}: expected 0 or more, got {getattr(self, name)}.")
        for name in ("learning_rate", "muon_factor"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')}: expected a number above 0, got {getattr(self, name)}.")
        for name in ("state_share", "target_state_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--{name.replace('_', '-')}: expected a share of 0 to 1, got {getattr(self, name)}.")

    def recipe(self, *, with_actions: bool, frame_weight: float = 0.3, frame_fraction: float = 1.0) -> TrainingConfig:
        """Return how the steps are taken."""
        average = self.weight_average
        if average is None:
            average = 0.998 if with_actions and self.steps > 1000 else 0.99
        return TrainingConfig(
            with_actions=with_actions,
            frame_weight=frame_weight,
            frame_fraction=frame_fraction,
            learning_rate=self.learning_rate,
            muon_factor=self.muon_factor,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            weight_average=average,
            state_share=self.state_share,
            target_state_share=self.target_state_share,
            accumulate=self.accumulate,
            seed=self.seed,
            **asdict(self.compute),
        )


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Low-rank finetuning.

    Args:
        rank: of the changes of the trunk's linear layers; 0 trains all weights.
        alpha: the changes count `alpha / rank` times.
        bits: in which the frozen weights are kept: 32, 16 (bfloat16), 8 or 4 (NF4; both with torchao).
    """

    rank: int = 0
    alpha: float = 16.0
    bits: Literal[32, 16, 8, 4] = 32

    def __post_init__(self) -> None:
        if self.rank < 0 or not 0 < self.alpha < math.inf:
            raise ConfigError(
                f"--lora: expected a rank of 0 or more and an alpha above 0, got {self.rank} and {self.alpha}."
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """What finetuning adds.

    Args:
        init: the model to start from: a folder, `user/name` of the Hub, or "pretrained" (the shipped one); by default
            none, to start from nothing.
        frame_weight: weight of the frame loss beside the action loss.
        frame_fraction: share of the steps that predict frames too.
        statistics: check the data's against those of `init`, keep the latter, or measure the former unchecked.
        normalization: mean 0 and deviation 1, or the 1 % and 99 % quantiles at -1 and 1.
        evaluate_every: steps after which a snapshot acts, beside the training; the one that succeeds most often is
            released; 0 releases the last step.
        evaluate: how snapshots act: options of `gr2 benchmark calvin`.
        contacts: have the action query say what the hand touches next and when, an auxiliary loss for data with contact
            labels (docs/policies.md).
        keyposes: have the action query say where the arm is to be when its gripper next opens or closes, or at the end,
            an auxiliary loss that takes no labels.
        lora: rank and weight of changes that are trained in place of the trunk's own weights.
    """

    steps: int = 4000
    init: Path | None = None
    frame_weight: float = 0.3
    frame_fraction: float = 1.0
    statistics: Literal["check", "keep", "measure"] = "check"
    normalization: Literal["moments", "quantiles"] = "moments"
    evaluate_every: int = 0
    evaluate: str = "--sequences 20 --num-workers 1"
    contacts: bool = False
    keyposes: bool = False
    lora: LoraOptions = LoraOptions()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluate_every < 0:
            raise ConfigError(f"--evaluate-every: expected steps, or 0 for never, got {self.evaluate_every}.")
        if self.evaluate_every and self.strategy == "fsdp":
            raise ConfigError("--evaluate-every: expected whole weights on each device, got --strategy fsdp; use ddp.")
        if self.lora.rank and self.init is None:
            raise ConfigError("--lora.rank: expected a model to adapt, got none; name it with --init.")
        if self.lora.rank and self.strategy == "fsdp":
            raise ConfigError("--lora.rank: expected whole weights on each device, got --strategy fsdp; use ddp.")
