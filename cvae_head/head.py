"""What a trajectory head is: it learns chunks given a condition, and turns a condition and noise into a chunk.

The condition is what the trunk makes of the action query, or, for heads that bring their own way of looking, all that
is seen. A chunk `[b k c]` has k steps of c numbers. Continuous columns are normalized; binary ones (a gripper's
command) are 0 or 1 in training and the probability of 1 when a head answers. The model owns the statistics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ChunkShape:
    """Steps k and columns c of a chunk, and which columns are binary."""

    length: int
    width: int
    binary: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.length < 1 or self.width < 1 or not set(self.binary) <= set(range(self.width)):
            raise ConfigError(
                f"ChunkShape: expected positive sizes and binary columns below the width, got {self.length} x "
                f"{self.width} and {self.binary}; correct the signals of the action."
            )

    @property
    def size(self) -> int:
        """Numbers of a chunk."""
        return self.length * self.width

    @property
    def continuous(self) -> tuple[int, ...]:
        """The columns that are not binary."""
        return tuple(i for i in range(self.width) if i not in self.binary)


@dataclass(frozen=True, kw_only=True)
class TrunkShape:
    """What a head knows of the trunk: the width of what it reads, blocks, attention heads of each, context steps."""

    width: int
    depth: int = 1
    heads: int = 1
    max_context: int = 1


Reads = Literal["query", "context", "layers", "late"]
"""What a head's condition is: outputs of the action query; `Seen`; `Seen` with the trunk's keys and values; the newest
step of `Seen` with an action query's output of some age."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All that is seen, embedded, for heads that do without the action query.

    text: the instruction; tokens: frame and state of each of `num_steps` context steps, in order. Masks are True =
        keep.
    layers: keys and values of text and tokens, side by side, in each block of the trunk; empty unless asked for.
    thought, age: the action query's output for an earlier frame, and how many frames ago that was; unless asked for,
        None.
    """

    text: Float[Tensor, "b l d"]
    text_keep: Bool[Tensor, "b l"]
    tokens: Float[Tensor, "b n d"]
    keep: Bool[Tensor, "b n"]
    num_steps: int
    layers: tuple[Float[Tensor, "2 b heads m h"], ...] = ()
    thought: Float[Tensor, "b d"] | None = None
    age: Float[Tensor, " b"] | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.tokens)

    def map(self, function: Callable[[Tensor], Tensor]) -> Seen:
        """Return the same with a function applied to every tensor."""
        return Seen(
            text=function(self.text),
            text_keep=function(self.text_keep),
            tokens=function(self.tokens),
            keep=function(self.keep),
            num_steps=self.num_steps,
            layers=tuple(map(function, self.layers)),
            thought=None if self.thought is None else function(self.thought),
            age=None if self.age is None else function(self.age),
        )

    @property
    def everything(self) -> tuple[Float[Tensor, "b m d"], Bool[Tensor, "b m"]]:
        """Text and tokens side by side, and which are there."""
        return torch.cat((self.text, self.tokens), dim=1), torch.cat((self.text_keep, self.keep), dim=1)


Condition = Float[Tensor, "b d"] | Seen
"""What a chunk follows from: outputs of the action query, side by side, or all that is seen."""


def query_of(condition: Condition) -> Float[Tensor, "b d"]:
    """Return the outputs of the action query, for networks that read nothing else."""
    assert not isinstance(condition, Seen), "this network reads the action query"
    return condition


class TrajectoryHead(nn.Module, ABC):
    """Learns and predicts chunks.

    reads: what the condition is.
    noise_dim: how many standard normal numbers an answer takes; 0 for a head that knows one answer only.
    num_queries: positions of the sequence whose outputs are the condition.
    num_products: how often the weights are multiplied with a row for one sample of a training batch.
    """

    reads: Reads = "query"
    noise_dim: int = 0
    num_queries: int = 1
    num_products: int = 1

    def __init__(self, shape: ChunkShape) -> None:
        super().__init__()
        self.shape = shape
        binary = torch.zeros(shape.width, dtype=torch.bool)
        binary[list(shape.binary)] = True
        self.register_buffer("binary", binary, persistent=False)

    binary: Tensor

    @abstractmethod
    def loss(
        self,
        condition: Condition,
        target: Float[Tensor, "b k c"],
        mask: Bool[Tensor, "b k c"],
        *,
        step: int | None = None,
        kept: Float[Tensor, " c"] | None = None,
    ) -> dict[str, Tensor]:
        """Compare with the true chunk.

        Args:
            condition: what the head reads.
            target: the true chunk.
            mask: True = keep; a number that is padding or absent in this embodiment is left out.
            step: of the training, for weights that change; None is after all of it.
            kept: what sums over kept numbers are divided by, column by column, as `counts` counts: the mean over all
                batches of an optimization step, on all processes, so that they add up to one large batch. None counts
                this mask.

        Returns:
            Scalars, among them `action_loss`, which is minimized.
        """

    def counts(self, mask: Bool[Tensor, "b k c"]) -> Float[Tensor, " c"]:
        """Return how many numbers of each column the loss is averaged over."""
        return mask.sum((0, 1)).double()

    @abstractmethod
    def sample(
        self,
        condition: Condition,
        noise: Float[Tensor, "b z"] | None = None,
        present: Bool[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b k c"]:
        """Answer with a chunk; equal noise gives equal chunks.

        Args:
            condition: what the head reads.
            noise: standard normal numbers, `noise_dim` a sample; None is zeros: the most typical answer.
            present: True = keep; a column that is absent in the embodiment of a sample has any value in the answer, and
                must not change the others. None keeps all.
        """

    def muon_matrices(self) -> list[Tensor]:
        """Return the weights that Muon trains; AdamW takes all others."""
        return []

    def warning(self, losses: Mapping[str, float]) -> str:
        """Return what is wrong with a head whose mean losses over some steps are these; empty where nothing is."""
        return ""

    def signed(self, target: Float[Tensor, "b k c"]) -> Float[Tensor, "b k c"]:
        """Turn binary columns from 0 and 1 into -1 and 1, for heads that treat all columns alike."""
        return torch.where(self.binary, 2 * target - 1, target)

    def unsigned(self, chunk: Float[Tensor, "b k c"]) -> Float[Tensor, "b k c"]:
        """Undo `signed`; what lies outside becomes 0 or 1."""
        return torch.where(self.binary, (0.5 * (chunk + 1)).clamp(0, 1), chunk)

    def expect_noise(self, condition: Condition, noise: Tensor | None, size: int | None = None) -> Float[Tensor, "b z"]:
        """Return the noise, `size` zeros a sample (default: `noise_dim`) where there is none."""
        like = condition.tokens if isinstance(condition, Seen) else condition
        return like.new_zeros(len(like), size or self.noise_dim) if noise is None else noise.to(like)
