"""A released model that imagines images: encode the start, let the model continue, decode what it predicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...contracts import Array
from ...embodiment import TOOL_ARM
from ...errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ...gr_model.act.loading import Assembled
    from ...gr_model.model.context import Context
    from ...gr_model.model.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class ImaginedFutures:
    """Predicted frames: camera -> codes `[b f n]` and images uint8 `[b f h w 3]`.

    states: the robot's at each frame, where the model's own trajectory leads `[b f s]`; None without a trajectory.
    """

    codes: Mapping[str, Array]
    images: Mapping[str, Array]
    states: Array | None = None


def expect_frames(parts: Assembled) -> Assembled:
    """Return a model that has learned to predict frames.

    Raises:
        ConfigError: none of its trainings predicted frames.
    """
    if not parts.release.model.predicts:
        raise ConfigError(
            "policy: expected a model that was trained to predict frames, got one that only acts (finetuned from "
            "nothing with --frame-fraction 0); pretrain first, or finetune with frames."
        )
    return parts


class Imagination:
    """Predicts frames from images, texts and, where there are some, the robot's states, where the model is.

    parts: the model with its encoders.
    sampling: how codes are sampled; the likeliest by default.

    Raises:
        ConfigError: none of the model's trainings predicted frames.
    """

    def __init__(self, parts: Assembled, sampling: SamplingConfig | None = None) -> None:
        from ...gr_model.model.sampling import SamplingConfig

        self.parts, self.sampling = expect_frames(parts), sampling or SamplingConfig()

    def encode(self, frames: Array) -> Array:
        """Encode images uint8 `[f h w 3]` into codes `[f n]`."""
        return self.parts.vqgan.encode_frames(frames)

    def decode(self, codes: Array) -> Array:
        """Decode codes `[b f n]` into images uint8 `[b f h w 3]`."""
        frames = self.parts.vqgan.decode_frames(codes.reshape(-1, codes.shape[-1]))
        return frames.reshape(*codes.shape[:2], *frames.shape[1:])

    def read_context(self, images: Mapping[str, Array], texts: Sequence[str], states: Array | None = None) -> Context:
        """Encode what a prediction is made from, on the model's device.

        Args:
            images: camera -> uint8 `[b f h w 3]`, the newest frame last; other cameras are masked out.
            texts: one for each sample, empty for none.
            states: the robot's at each frame `[b f 16]`.
        """
        import torch

        from ...gr_model.model.context import Context

        device = self.parts.release.model.device
        features, mask = self.parts.text.encode(list(texts))
        mask = np.asarray(mask) & np.array([bool(text) for text in texts])[:, None]
        length = max(1, int(mask.any(0).nonzero()[0].max(initial=0)) + 1)
        codes = {}
        for name, frames in images.items():
            b, f = frames.shape[:2]
            found = self.encode(frames.reshape(b * f, *frames.shape[2:]))
            codes[name] = torch.as_tensor(found.reshape(b, f, -1)).long().to(device)
        return Context(
            codes=codes,
            text=torch.as_tensor(features[:, :length]).float().to(device),
            text_mask=torch.as_tensor(mask[:, :length]).to(device),
            states=None if states is None else torch.as_tensor(states).float().to(device),
            embodiment=None if states is None else torch.full((len(states),), self._place(), device=device),
        )

    def _place(self) -> int:
        """Return the place of the simulated arm in the model's configuration."""
        return self.parts.release.model.config.place_of(TOOL_ARM)

    def stream(self, images: Mapping[str, Array], text: str, num_frames: int) -> Iterator[dict[str, Array]]:
        """Yield the codes `[n]` of each camera, frame by frame, after images uint8 `[f h w 3]` of each camera.

        Raises:
            ConfigError: guidance of a model trained without text dropout, or no frame asked for.
        """
        from ...gr_model.model.generation import stream_frames

        context = self.read_context({name: frames[None] for name, frames in images.items()}, [text])
        model = self.parts.release.model
        for frame in stream_frames(model, context, num_frames=num_frames, sampling=self.sampling):
            yield {name: codes[0].cpu().numpy() for name, codes in frame.items()}

    def futures(
        self, first: Mapping[str, Array], texts: Sequence[str], num_frames: int, states: Array | None = None
    ) -> ImaginedFutures:
        """Imagine `num_frames` frames after images `first` (camera -> uint8 `[b h w 3]`), one text each.

        With the robot's `states` `[b 16]` the model's own trajectory shows where the arm is in every frame. A model
        that was only pretrained goes without.
        """
        import torch

        from ...gr_model.model.generation import imagine_frames

        release = self.parts.release
        seen = None if states is None or not release.model.acts else states[:, None]
        context = self.read_context({name: frames[:, None] for name, frames in first.items()}, texts, seen)
        step = 0 if seen is None else release.clocks_of(self._place())[0]
        path: list[Tensor] = []
        with torch.inference_mode():
            predicted = imagine_frames(
                release.model, context, num_frames=num_frames, sampling=self.sampling, frame_step=step,
                follow=path.append,
            )  # fmt: skip
        codes = {name: values.cpu().numpy() for name, values in predicted.items()}
        return ImaginedFutures(
            codes=codes,
            images={name: self.decode(values) for name, values in codes.items()},
            states=torch.cat(path, dim=1)[:, :num_frames].cpu().numpy() if path else None,
        )
