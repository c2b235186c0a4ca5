"""A layer of language between seeing and acting: the coming motion in words, said first, which anybody may correct.

From what is seen the model says how the tool is about to move ("move arm left and down, close gripper"). The trajectory
head reads these words beside what is seen. In training they follow from the demonstrated chunk; in acting they are the
likeliest ones, or those of a correction.

Source: Belkhale et al., RT-H, arXiv 2403.01823. Not as published: there are words for the axes and the gripper alone,
and they reach the head as embeddings, not as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from .signals import SignalCoding

OPPOSITES = {"forward": "back", "left": "right", "up": "down"}
OPPOSITES |= {second: first for first, second in OPPOSITES.items()}

OWN = -1
"""In place of a word: the model's own."""

_LEAST, _SHARE = 0.005, 0.4
"""An axis is named from so many [m] on, and from such a share of the widest one on."""

_HIDDEN_SHARE = 0.1
"""How often the words of a sample are hidden in training, so that the head can do without."""

_STILL, _CHOICES = 1, 3
"""A word of an axis is 0 against it, 1 not along it, 2 along it."""


class LanguageMotion(nn.Module):
    """Says the coming motion, and puts words for it beside what a head reads.

    A motion is four numbers: of each axis against it, not along it or along it (0, 1, 2), and of the gripper close or
    open (0, 1).

    Args:
        axes: what the directions of x, y and z of the robot's base are called.
        coding: of a robot whose actions hold positions of one tool.
        width: of what the head reads.

    Raises:
        ConfigError: axes that are no three different ones, or a robot without tool positions.
    """

    def __init__(self, axes: Sequence[str], coding: SignalCoding, *, width: int) -> None:
        super().__init__()
        if len(axes) != 3 or len({frozenset((a, OPPOSITES.get(a, ""))) for a in axes}) != 3 or set(axes) - {*OPPOSITES}:
            raise ConfigError(
                f"--model.motions: expected what x, y and z of the robot's base are called, three of "
                f"{', '.join(OPPOSITES)}, got {', '.join(axes)}; as in right,forward,up."
            )
        positions = [part for part in coding.parts if part.signal.kind == "position" and part.signal.width == 3]
        if len(positions) != 1 or not (positions[0].rule == "distance" or positions[0].signal.reference == "delta"):
            raise ConfigError(
                f"--model.motions: expected actions with positions of one tool, got those of "
                f"{coding.embodiment.name}; leave it out."
            )
        grippers = [part for part in coding.parts if part.rule == "binary"]
        self.axes, self.position = tuple(axes), positions[0]
        self.gripper = grippers[0].chunk.start if len(grippers) == 1 else None
        self.scores = nn.Linear(width, 3 * _CHOICES + 2)
        self.words = nn.Parameter(0.3 * torch.randn(3 * _CHOICES + 2, width))

    def of_chunk(self, chunk: Float[Tensor, "b k c"], mask: Bool[Tensor, "b k"]) -> Int[Tensor, "b 4"]:
        """Return the motion of chunks in physical units; `mask` says which steps are there."""
        values = chunk[..., self.position.chunk].masked_fill(~mask[..., None], 0)
        last = (mask.sum(1) - 1).clamp(min=0)
        rows = torch.arange(len(chunk), device=chunk.device)
        way = values.sum(1) if self.position.rule != "distance" else values[rows, last]
        least = (_SHARE * way.abs().amax(-1, keepdim=True)).clamp(min=_LEAST)
        axes = _STILL + torch.sign(way) * (way.abs() >= least)
        opens = chunk[rows, last, self.gripper] > 0.5 if self.gripper is not None else axes[:, 0] > _CHOICES
        return torch.cat((axes, opens[:, None]), dim=1).long()

    def loss(self, condition: Float[Tensor, "b d"], motion: Int[Tensor, "b 4"]) -> Float[Tensor, ""]:
        """Return the cross-entropy of the four words [nats]."""
        losses = [F.cross_entropy(s.float(), m) for s, m in zip(self._split(condition), motion.unbind(1), strict=True)]
        return torch.stack(losses[:4] if self.gripper is not None else losses[:3]).sum()

    def likeliest(self, condition: Float[Tensor, "b d"]) -> Int[Tensor, "b 4"]:
        """Say the motion."""
        return torch.stack([scores.argmax(-1) for scores in self._split(condition)], dim=1)

    def beside(self, condition: Float[Tensor, "b d"], motion: Int[Tensor, "b 4"]) -> Float[Tensor, "b d"]:
        """Add the words of a motion to what the head reads; in training those of some samples are hidden."""
        first = torch.tensor([0, _CHOICES, 2 * _CHOICES, 3 * _CHOICES], device=motion.device)
        words = self.words[first + motion].sum(1)
        if self.training:
            words = words * (torch.rand(len(words), 1, device=words.device) >= _HIDDEN_SHARE)
        return condition + words.to(condition.dtype)

    def phrase(self, motion: Sequence[int]) -> str:
        """Return a motion in words."""
        names = []
        for axis, choice in zip(self.axes, motion, strict=False):
            names += [axis] if choice > _STILL else [OPPOSITES[axis]] if choice < _STILL else []
        arm = f"move arm {' and '.join(names)}" if names else "hold arm still"
        return arm if self.gripper is None else f"{arm}, {'open' if motion[3] else 'close'} gripper"

    def parse(self, phrase: str) -> tuple[int, int, int, int]:
        """Return the motion that words name, `OWN` where they leave it to the model.

        Raises:
            ConfigError: no direction, nor the gripper, is named, or both directions of an axis.
        """
        words = re.findall(r"[a-z]+", phrase.lower())
        named = [word for word in words if word in OPPOSITES]
        gripper = [number for number, name in enumerate(("close", "open")) if name in words]
        if any(OPPOSITES[word] in named for word in named) or len(gripper) > 1:
            raise ConfigError(f"correction {phrase!r}: expected one direction of an axis, got both; leave one out.")
        moves = bool(named) or "still" in words
        if not moves and not gripper:
            raise ConfigError(
                f"correction {phrase!r}: expected directions ({', '.join(OPPOSITES)}), still, or open or close; as in "
                "'move arm left and down, close gripper'."
            )
        axes = [2 if axis in named else 0 if OPPOSITES[axis] in named else _STILL for axis in self.axes]
        if not moves:
            axes = [OWN] * 3
        return (axes[0], axes[1], axes[2], gripper[0] if gripper else OWN)

    def _split(self, condition: Float[Tensor, "b d"]) -> tuple[Tensor, ...]:
        return tuple(self.scores(condition).split((_CHOICES, _CHOICES, _CHOICES, 2), dim=-1))
