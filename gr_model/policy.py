"""From observations to trajectories: the model as a policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..cvae_head.ensemble import TemporalEnsemble
from ..cvae_head.trajectory import to_trajectory
from .context import Context
from .contracts import ActionTrajectory, Array, Observation
from .errors import ConfigError, ShapeError
from .world_model import WorldModel

EncodeImages = Callable[[Array], Array]
"""uint8 `[m h w 3]` -> codes `[m n]`."""

EncodeText = Callable[[Sequence[str]], tuple[Array, Array]]
"""Sentences -> features `[b l t]` and mask `[b l]`."""


class Policy(Protocol):
    """What drives a robot or a simulator.

    executed_steps: poses of a trajectory to be executed before the next call of `act`.
    """

    executed_steps: int

    def reset(self) -> None:
        """Forget the past; called when an episode or a sub-task begins."""
        ...

    def act(self, observation: Observation) -> ActionTrajectory:
        """Return the trajectory that follows `observation`."""
        ...


class GR2Policy:
    """One forward pass a call; frames are never predicted while acting.

    Args:
        encode_images: of the frozen image tokenizer, on pictures of the size it was trained for.
        encode_text: of the frozen text encoder.
        control_hz: rate of the predicted poses [Hz].
        executed_steps: poses to be executed between calls; with a context of more than one frame this is also
            the distance of the remembered frames, so give the distance the model was trained with.
        ensemble: averages overlapping trajectories; None executes the newest.
    """

    def __init__(
        self,
        model: WorldModel,
        *,
        encode_images: EncodeImages,
        encode_text: EncodeText,
        control_hz: float,
        executed_steps: int = 5,
        ensemble: TemporalEnsemble | None = None,
    ) -> None:
        if not 1 <= executed_steps <= model.config.chunk_length:
            raise ConfigError(
                f"GR2Policy.executed_steps: expected 1 to {model.config.chunk_length} (the chunk), got "
                f"{executed_steps}; "
                "execute fewer steps or train a longer chunk."
            )
        self.model = model.eval()
        self.encode_images, self.encode_text = encode_images, encode_text
        self.dt = 1.0 / control_hz
        self.executed_steps = executed_steps
        self.ensemble = ensemble
        self._history: deque[tuple[dict[str, Array], Array]] = deque(maxlen=model.config.max_context)
        self._instruction = ""
        self._text: tuple[Tensor, Tensor] | None = None

    def reset(self) -> None:
        """Forget remembered frames and trajectories."""
        self._history.clear()
        if self.ensemble is not None:
            self.ensemble.reset()

    @torch.inference_mode()
    def act(self, observation: Observation) -> ActionTrajectory:
        """Encode the pictures, predict a chunk, place it at the present tool pose.

        Raises:
            ShapeError: none of the model's cameras is observed.
        """
        self._history.append((self._encode(observation), observation.state_vector()))
        chunk = self.model.act(self.context(observation.instruction))[0].float().cpu().numpy()
        trajectory = to_trajectory(chunk, observation, self.dt)
        return trajectory if self.ensemble is None else self.ensemble.blend(trajectory)

    def context(self, instruction: str) -> Context:
        """Return what the model sees: the remembered frames and states and the sentence."""
        device = self.model.device
        text, text_mask = self._encode_text(instruction)
        cameras = set.intersection(*(set(codes) for codes, _ in self._history))
        codes = {
            name: torch.as_tensor(np.stack([frame[name] for frame, _ in self._history]))[None].to(device)
            for name in cameras
        }
        states = torch.as_tensor(np.stack([state for _, state in self._history]))[None].to(device)
        return Context(codes=codes, text=text, text_mask=text_mask, states=states)

    def _encode(self, observation: Observation) -> dict[str, Array]:
        names = [c.name for c in self.model.config.cameras if c.name in observation.images]
        if not names:
            raise ShapeError(
                f"GR2Policy: expected a picture of one of {[c.name for c in self.model.config.cameras]}, got "
                f"{sorted(observation.images)}; switch the cameras on."
            )
        pictures = [np.asarray(observation.images[name]) for name in names]
        if len({picture.shape for picture in pictures}) == 1:
            codes = list(self.encode_images(np.stack(pictures)))
        else:
            codes = [self.encode_images(picture[None])[0] for picture in pictures]
        return {name: np.asarray(code, np.int64) for name, code in zip(names, codes, strict=True)}

    def _encode_text(self, instruction: str) -> tuple[Tensor, Tensor]:
        if self._text is None or instruction != self._instruction:
            features, mask = self.encode_text([instruction])
            length = min(int(np.sum(mask)), self.model.config.text_length)
            device = self.model.device
            self._text = (
                torch.as_tensor(features[:, : max(length, 1)]).float().to(device),
                torch.as_tensor(mask[:, : max(length, 1)]).to(device),
            )
            self._instruction = instruction
        return self._text
