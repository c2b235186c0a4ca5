"""Options of gr2's policy under LeRobot, and what its weights' shapes follow from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig

from gr2.data_pipeline.video.frames import ImageFit
from gr2.errors import ConfigError
from gr2.gr_model.model.release import read_record, release_folder

_NEW = {"n_obs_steps": 1, "chunk_size": 10, "frame_step": 5}
"""What a new model has where nothing is asked for; a release has its own."""


@PreTrainedConfig.register_subclass("gr2")
@dataclass
class GR2Config(PreTrainedConfig):
    """How gr2's model is made, trained and asked.

    Args:
        release: the gr2 model that training begins with: "pretrained" (shipped), the folder of a release, or
            `user/name` on the Hugging Face Hub. Empty is a new model.
        n_obs_steps: context frames.
        chunk_size: predicted actions.
        n_action_steps: actions of a chunk that are executed.
        frame_step: steps of the dataset from one frame of the model to the next; the frame that it predicts is as far
            ahead. These three are the release's own where there is one.
        size: tiny (CPU), S, B, L or XL, of a new model.
        head: trajectory head (cvae, regression, flow, diffusion, tokens); empty is that of the size or release.
        tokenizer, text: frozen encoders of a new model, as `gr2 data tokens` takes them.
        image_fit: how images become squares, of a new model: crop, pad or stretch.
        statistics: "measure" those of the dataset, or "keep" those of a finetuned release.
        frame_weight: weight of the loss of predicted frames; 0 trains actions alone and reads no future frame.
        action_weight: weight of the loss of the actions.
        optimizer_lr, optimizer_weight_decay, optimizer_grad_clip_norm, scheduler_warmup_steps: AdamW with a cosine.
        cameras: feature -> camera of gr2, inferred from the dataset: the last part of a name, `static` for a lone one.
        model, image_tokenizer, text_encoder, tokenizer_fingerprint, text_fingerprint: shapes and identity of the
            networks, written when the policy is made; checkpoints keep them.
    """

    n_obs_steps: int | None = None  # type: ignore[assignment]
    chunk_size: int | None = None
    n_action_steps: int = 5
    frame_step: int | None = None

    release: str = ""
    size: str = "tiny"
    head: str = ""
    tokenizer: str = "small"
    text: str = "small"
    image_fit: str = "crop"
    statistics: str = "measure"

    frame_weight: float = 0.3
    action_weight: float = 1.0

    optimizer_lr: float = 1e-3
    optimizer_weight_decay: float = 0.05
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 50

    cameras: dict[str, str] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    image_tokenizer: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, Any] = field(default_factory=dict)
    tokenizer_fingerprint: str = ""
    text_fingerprint: str = ""

    # gr2 normalizes inside the model, step by step of a chunk and seen from the state at its beginning
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        found = _NEW
        if self.release and not self.model:
            record = read_record(release_folder(self.release))
            shape = record["model"]
            found = {
                "n_obs_steps": int(shape["max_context"]),
                "chunk_size": int(shape["chunk_length"]),
                "frame_step": int(record["frame_step"]),
            }
        for name, value in found.items():
            asked = getattr(self, name)
            if self.release and not self.model and asked not in (None, value):
                raise ConfigError(
                    f"--policy.{name}: expected {value} as in {self.release}, got {asked}; leave it out, or start a "
                    "new model without --policy.release."
                )
            if asked is None:
                setattr(self, name, value)
            elif asked < 1:
                raise ConfigError(f"--policy.{name}: expected 1 or more, got {asked}; change it.")
        if not 1 <= self.n_action_steps <= self.horizon:
            raise ConfigError(
                f"--policy.n_action_steps: expected 1 to {self.horizon} (chunk_size), got {self.n_action_steps}; "
                "execute fewer actions or predict a longer chunk."
            )
        if self.image_fit not in get_args(ImageFit):
            raise ConfigError(
                f"--policy.image_fit: expected one of {', '.join(get_args(ImageFit))}, got {self.image_fit!r}."
            )
        if self.statistics not in ("measure", "keep") or (self.statistics == "keep" and not self.release):
            raise ConfigError(
                f"--policy.statistics: expected measure, or keep beside --policy.release, got {self.statistics!r}."
            )
        if self.frame_weight < 0 or self.action_weight <= 0:
            raise ConfigError(
                "--policy.frame_weight and action_weight: expected at least 0 and more than 0, got "
                f"{self.frame_weight} and {self.action_weight}; change them."
            )

    @property
    def horizon(self) -> int:
        """Return the actions of a chunk."""
        assert self.chunk_size is not None
        return self.chunk_size

    @property
    def observation_delta_indices(self) -> list[int]:
        """Return the steps of the context frames and of the frame to predict, from the newest context frame."""
        assert self.frame_step is not None
        context = [-self.frame_step * back for back in reversed(range(self.n_obs_steps))]
        return context + ([self.frame_step] if self.frame_weight else [])

    @property
    def action_delta_indices(self) -> list[int]:
        """Return the steps of the chunk; its first action follows the newest context frame."""
        return list(range(self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        """Return nothing: rewards are not read."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return AdamW as gr2 sets it; the frozen encoders are not part of it."""
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=(0.9, 0.95),
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineAnnealingWithWarmupSchedulerConfig:
        """Return a cosine over the whole run."""
        return CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)

    def validate_features(self) -> None:
        """Check that there are images, a state and an action.

        Raises:
            ConfigError: one is missing.
        """
        for name, there in (
            ("an image", bool(self.image_features)),
            ("observation.state", self.robot_state_feature is not None),
            ("action", self.action_feature is not None),
        ):
            if not there:
                got = sorted({**(self.input_features or {}), **(self.output_features or {})})
                raise ConfigError(f"gr2: expected {name} among the features, got {got}; use a dataset that has it.")
