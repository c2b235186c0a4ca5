"""gr2's world model as a LeRobot policy: images and instructions become tokens of frozen encoders on the fly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from gr2.data_pipeline.video.frames import resize_frames
from gr2.errors import ConfigError
from gr2.gr_model.model.context import Context
from gr2.gr_model.model.objectives import read_context, training_losses
from gr2.gr_model.model.texts import TextTable
from gr2.tokenizers.text import TextEncoder, Vocabulary

from .configuration_gr2 import GR2Config
from .networks import Networks, empty_networks, expect_same_robot, make_networks

Batch = Mapping[str, Any]


class GR2Policy(PreTrainedPolicy):
    """A world model that predicts frames and actions together, over a frozen VQGAN and a frozen text tower.

    The encoders are part of the weights of a checkpoint, never of the optimizer. States and actions come and go in the
    units of the dataset: the model normalizes inside, by statistics of chunks measured when the policy is made.

    Args:
        config: of a new policy, or of a checkpoint, whose weights then fill the networks.
        networks: where they are made already.
        dataset_meta: LeRobot's metadata of the dataset; a new policy learns the robot's signals from it.

    Raises:
        ConfigError: the features lack an image, state or action, or the dataset does not fit.
    """

    config_class = GR2Config
    name = "gr2"
    steps: Tensor
    token_ids: Tensor | None

    def __init__(
        self,
        config: GR2Config,
        *,
        dataset_meta: Any = None,
        dataset_stats: Any = None,
        networks: Networks | None = None,
    ) -> None:
        super().__init__(config)
        self.config: GR2Config = config
        config.validate_features()
        if networks is not None:
            pass
        elif config.model:
            networks = empty_networks(config)
            if dataset_meta is not None:
                expect_same_robot(config, Path(dataset_meta.root))
        elif dataset_meta is None:
            raise ShapeError(
                "gr2: expected a dataset, whose robot a new policy is made for, got none; train with lerobot-train, or "
                "load a checkpoint with GR2Policy.from_pretrained."
            )
        else:
            networks = make_networks(config, Path(dataset_meta.root))
        self.model = networks.model
        self.image_tokenizer = networks.image_tokenizer
        self.text_tower = networks.text_tower
        self.register_buffer("token_ids", networks.token_ids)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._text: TextEncoder | None = None
        self.reset()

    @classmethod
    def _load_as_safetensor(cls, model: GR2Policy, model_file: str, map_location: str, strict: bool) -> GR2Policy:
        """Load all weights or none: an encoder that keeps random ones would go unnoticed."""
        return super()._load_as_safetensor(model, model_file, map_location, True)

    def train(self, mode: bool = True) -> GR2Policy:
        """Set the mode of the model; the encoders stay frozen."""
        super().train(mode)
        self.image_tokenizer.eval()
        self.text_tower.eval()
        return self

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Return the model's parameters, vectors without decay; the encoders are not among them."""
        learned = [p for p in self.model.parameters() if p.requires_grad]
        return [
            {"params": [p for p in learned if p.ndim >= 2]},
            {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
        ]

    def update(self) -> None:
        """Count a training step; LeRobot calls this after each."""
        self.steps += 1

    def reset(self) -> None:
        """Forget remembered frames and queued actions."""
        self._queue: deque[Tensor] = deque()
        self._frames: deque[tuple[dict[str, Tensor], Tensor]] = deque(maxlen=self._span)
        self._last: Batch | None = None

    # -- training ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch, and its parts.

        Args:
            batch: images `[b f c h w]` in [0, 1], `observation.state` `[b f s]`, `action` `[b k a]`, their `_is_pad`,
                `task`: b texts.
            reduction: only "mean".

        Raises:
            ConfigError: losses of single samples are asked for.
        """
        if reduction != "mean":
            raise ConfigError(f"--sample_weighting: expected none with gr2, whose loss is a mean, got {reduction!r}.")
        own = self._tokens(batch)
        own["actions"] = batch[ACTION]
        own["action_mask"] = ~_padding(batch, ACTION, batch[ACTION].shape[:2])
        step = int(self.steps) if self.training else None
        losses = training_losses(
            self.model, own, with_actions=True, with_frames=bool(self.config.frame_weight), step=step
        )
        loss = self.config.action_weight * losses["action_loss"]
        if "frame_loss" in losses:
            loss = loss + self.config.frame_weight * losses["frame_loss"]
        return loss, {name: float(value.detach()) for name, value in losses.items()}

    def _tokens(self, batch: Batch) -> dict[str, Any]:
        """Encode what a batch shows; the model reads the texts by their place in it."""
        codes = {camera: self._encode(batch[feature]) for feature, camera in self.config.cameras.items()}
        shape = next(iter(codes.values())).shape[:2]
        states = batch[OBS_STATE].float().reshape(*shape, -1)
        table, ids = self._texts(batch.get("task"), shape[0])
        self.model.set_texts(table)
        padded = torch.zeros(shape, dtype=torch.bool, device=states.device)
        for feature in (*self.config.cameras, OBS_STATE):
            padded |= _padding(batch, feature, shape)
        return {"codes": codes, "text_id": ids, "states": states, "frame_mask": ~padded}

    def _encode(self, images: Tensor) -> Tensor:
        """Return the codes `[b f n]` of images `[b f c h w]` or `[b c h w]` in [0, 1], resized as everywhere in gr2."""
        images = images[:, None] if images.ndim == 4 else images
        pixels = images.flatten(0, 1).mul(255).round().clamp(0, 255).to(torch.uint8)
        frames = pixels.permute(0, 2, 3, 1).cpu().numpy()
        frames = resize_frames(frames, self.image_tokenizer.config.resolution, self.config.image_fit)
        with torch.autocast(images.device.type, enabled=False):  # training's precision is not the encoder's
            codes = self.image_tokenizer.encode_frames(frames)
        return torch.as_tensor(codes, device=images.device).unflatten(0, images.shape[:2])

    def _texts(self, tasks: str | Sequence[str] | None, b: int) -> tuple[TextTable, Tensor]:
        """Return the features of b instructions, and their places; an empty one has none."""
        texts = [tasks] * b if isinstance(tasks, str) else list(tasks or [""] * b)
        features, mask = self.text_encoder.encode(texts)
        longest = self.model.config.text_length
        table = TextTable(torch.as_tensor(features)[:, :longest], torch.as_tensor(mask)[:, :longest])
        return table, torch.tensor([i if text else -1 for i, text in enumerate(texts)], device=self.model.device)

    @property
    def text_encoder(self) -> TextEncoder:
        """Return the text encoder over the tower as its weights are now."""
        if self._text is None:
            ids = self.token_ids
            vocabulary = None if ids is None else Vocabulary(ids.cpu().numpy())
            self._text = TextEncoder(self.text_tower, vocabulary=vocabulary)  # type: ignore[arg-type]
        return self._text

    # -- acting --------------------------------------------------------------------------------------------------

    @property
    def _span(self) -> int:
        """Steps from the oldest context frame to the newest, both counted."""
        assert self.config.frame_step is not None
        return (self.config.n_obs_steps - 1) * self.config.frame_step + 1

    @torch.no_grad()
    def select_action(self, batch: Batch, noise: Tensor | None = None) -> Tensor:
        """Return the next action `[b a]` of a chunk; a new chunk begins where the executed part has ended."""
        self.eval()
        self._remember(batch)
        if not self._queue:
            chunk = self.predict_action_chunk(batch, noise=noise)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.transpose(0, 1))
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: Batch, noise: Tensor | None = None) -> Tensor:
        """Return actions `[b k a]` in the units of the dataset.

        Args:
            batch: the newest images `[b c h w]` and state `[b s]`; earlier ones are remembered from `select_action`.
            noise: standard normal numbers `[b z]` that choose among motions; sampled where None.
        """
        self.eval()
        self._remember(batch)
        context, states = self._context(batch)
        head = self.model.head
        if noise is None:
            noise = torch.randn(len(states), head.noise_dim, device=states.device)
        chunk = self.model.act(context, noise=noise).float().cpu().numpy()
        actions = self.model.config.slots.codings[0].decode(states.cpu().numpy().astype(np.float64), chunk)
        return torch.as_tensor(actions, dtype=torch.float32, device=states.device)

    def _remember(self, batch: Batch) -> None:
        """Keep the images and the state of a step, once."""
        if self._last is batch:
            return
        self._last = batch
        images = {feature: batch[feature] for feature in self.config.cameras}
        self._frames.append((images, batch[OBS_STATE]))

    def _context(self, batch: Batch) -> tuple[Context, Tensor]:
        """Return what the model sees, as many frames as there are so far, and the newest states `[b s]`."""
        kept = list(self._frames)[:: -self.config.frame_step][::-1]
        images = {feature: torch.stack([i[feature] for i, _ in kept], 1) for feature in self.config.cameras}
        states = torch.stack([state for _, state in kept], 1)
        own = self._tokens({**images, OBS_STATE: states, "task": batch.get("task")})
        context, _ = read_context(self.model, own)
        return context, states[:, -1].float()

    def frozen_parameters(self) -> Iterator[Tensor]:
        """Yield the weights that training leaves as they are."""
        yield from self.image_tokenizer.parameters()
        yield from self.text_tower.parameters()


def _networks(config: GR2Config, dataset: Path | None) -> Networks:
    """Make the networks of a checkpoint, which must fit the dataset if there is one, or new ones for the dataset."""
    if config.model:
        if dataset is not None:
            expect_same_robot(config, dataset)
        return empty_networks(config)
    if dataset is None:
        raise ConfigError(
            "gr2: expected a dataset, whose robot a new policy is made for, got none; train with lerobot-train, or "
            "load a checkpoint with GR2Policy.from_pretrained."
        )
    return make_networks(config, dataset)


def _padding(batch: Batch, name: str, shape: Sequence[int]) -> Tensor:
    """Return which steps of a feature lie outside its episode `[b f]`."""
    found = batch.get(f"{name}_is_pad")
    if found is None:
        return torch.zeros(tuple(shape), dtype=torch.bool, device=batch[name].device)
    return found.bool().reshape(tuple(shape))
