"""A layer of language between seeing and acting: the coming motion in words, said first, which anybody may correct.

From what is seen the model says the sub-step of the task and how the tool is about to move ("carry: move arm left and
down, close gripper"). The trajectory head reads these words beside what is seen. In training they follow from the
demonstration; in acting they are the likeliest ones, or those of a correction.

Source: Belkhale et al., RT-H, arXiv 2403.01823; sub-steps before the action as in Wen et al., DexVLA, arXiv 2502.05855.
Not as published: there are words for the axes, the gripper and four sub-steps alone, and they reach the head as
embeddings, not as text.
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

SUB_STEPS = ("reach", "withdraw", "carry", "keep")
"""An open gripper before it closes, one that does not close any more, a closed one before it opens, one to the end."""

OWN = -1
"""In place of a word: the model's own."""

UNCORRECTED = (OWN,) * 5
"""A motion that leaves all words to the model."""

_LEAST, _SHARE = 0.005, 0.4
"""An axis is named from so many [m] on, and from such a share of the widest one on."""

_HIDDEN_SHARE = 0.1
"""How often the words of a sample are hidden in training, so that the head can do without."""

_STILL, _CHOICES = 1, (3, 3, 3, 2, 4)
"""A word of an axis is 0 against it, 1 not along it, 2 along it; of the gripper 0 to close, 1 to open; the sub-step."""


class LanguageMotion(nn.Module):
    """Says the coming motion, and puts words for it beside what a head reads.

    A motion is five numbers: of each axis against it, not along it or along it (0, 1, 2), of the gripper close or open
    (0, 1), and the place in `SUB_STEPS`.

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
        self.scores = nn.Linear(width, sum(_CHOICES))
        self.words = nn.Parameter(0.3 * torch.randn(sum(_CHOICES), width))

    def of_chunk(
        self, chunk: Float[Tensor, "b k c"], mask: Bool[Tensor, "b k"], ahead: Float[Tensor, "b 2 c"] | None = None
    ) -> Int[Tensor, "b 5"]:
        """Return the motion of chunks in physical units.

        Args:
            mask: which steps are there.
            ahead: least and greatest numbers from the chunk's beginning to the episode's end; None takes the chunk for
                all that is left.
        """
        values = chunk[..., self.position.chunk].masked_fill(~mask[..., None], 0)
        last = (mask.sum(1) - 1).clamp(min=0)
        rows = torch.arange(len(chunk), device=chunk.device)
        way = values.sum(1) if self.position.rule != "distance" else values[rows, last]
        least = (_SHARE * way.abs().amax(-1, keepdim=True)).clamp(min=_LEAST)
        axes = _STILL + torch.sign(way) * (way.abs() >= least)
        if self.gripper is None:
            return F.pad(axes, (0, 2)).long()
        grip, there = chunk[..., self.gripper], mask
        if ahead is not None:
            later, there = ahead[..., self.gripper], torch.ones_like(ahead[..., 0], dtype=torch.bool)
        else:
            later = grip
        opens, now = grip[rows, last] > 0.5, grip[:, 0] > 0.5
        changes = ((later > 0.5) != now[:, None]).logical_and(there).any(1)
        sub_step = torch.where(now, torch.where(changes, 0, 1), torch.where(changes, 2, 3))
        return torch.cat((axes, opens[:, None], sub_step[:, None]), dim=1).long()

    def loss(self, condition: Float[Tensor, "b d"], motion: Int[Tensor, "b 5"]) -> Float[Tensor, ""]:
        """Return the cross-entropy of the words [nats]."""
        losses = [F.cross_entropy(s.float(), m) for s, m in zip(self._split(condition), motion.unbind(1), strict=True)]
        return torch.stack(losses if self.gripper is not None else losses[:3]).sum()

    def likeliest(self, condition: Float[Tensor, "b d"]) -> Int[Tensor, "b 5"]:
        """Say the motion."""
        return torch.stack([scores.argmax(-1) for scores in self._split(condition)], dim=1)

    def beside(self, condition: Float[Tensor, "b d"], motion: Int[Tensor, "b 5"]) -> Float[Tensor, "b d"]:
        """Add the words of a motion to what the head reads; in training those of some samples are hidden."""
        first = torch.tensor([sum(_CHOICES[:i]) for i in range(len(_CHOICES))], device=motion.device)
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
        if self.gripper is None:
            return arm
        return f"{SUB_STEPS[motion[4]]}: {arm}, {'open' if motion[3] else 'close'} gripper"

    def parse(self, phrase: str) -> tuple[int, int, int, int, int]:
        """Return the motion that words name, `OWN` where they leave it to the model.

        Raises:
            ConfigError: nothing is named, or both directions of an axis, or two sub-steps.
        """
        words = re.findall(r"[a-z]+", phrase.lower())
        named = [word for word in words if word in OPPOSITES]
        gripper = [number for number, name in enumerate(("close", "open")) if name in words]
        sub_step = [number for number, name in enumerate(SUB_STEPS) if name in words]
        if any(OPPOSITES[word] in named for word in named) or max(len(gripper), len(sub_step)) > 1:
            raise ConfigError(
                f"correction {phrase!r}: expected one direction of an axis and one sub-step, got two; leave one out."
            )
        moves = bool(named) or "still" in words
        if not moves and not gripper and not sub_step:
            raise ConfigError(
                f"correction {phrase!r}: expected a sub-step ({', '.join(SUB_STEPS)}), directions "
                f"({', '.join(OPPOSITES)}), still, or open or close; as in 'carry: move arm left and down, close "
                "gripper'."
            )
        axes = [2 if axis in named else 0 if OPPOSITES[axis] in named else _STILL for axis in self.axes]
        if not moves:
            axes = [OWN] * 3
        return (axes[0], axes[1], axes[2], gripper[0] if gripper else OWN, sub_step[0] if sub_step else OWN)

    def _split(self, condition: Float[Tensor, "b d"]) -> tuple[Tensor, ...]:
        return tuple(self.scores(condition).split(_CHOICES, dim=-1))
