"""Two ways round a tree in equal numbers: which heads follow one of them, and which average both and hit the tree.

Source: the multimodality test of Diffusion Policy, arXiv 2303.04137, section IV-A.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..contracts import Array
from ..layers import Block
from .head import ChunkShape, Condition, TrajectoryHead, TrunkShape
from .kinds import HeadConfig, make_head
from .tokens import TokensConfig, TokensHead

_LENGTH = 10
_SHAPE = ChunkShape(length=_LENGTH, width=2)
_CONDITION = 8


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A round obstacle; lengths in units of the way."""

    center: tuple[float, float]
    radius: float

    def distance(self, paths: Array) -> Array:
        """Return the least distance of paths `[m k 2]` from the trunk, below 0 where they hit it."""
        return np.linalg.norm(paths - np.asarray(self.center), axis=-1).min(-1) - self.radius


TREE = Tree(center=(1.0, 0.0), radius=0.35)


@dataclass(frozen=True, kw_only=True)
class TwoWays:
    """Shares of paths that hit the tree, and that pass it on its left and on its right."""

    hits: float
    left: float
    right: float


def demonstrate(count: int, rng: np.random.Generator) -> Array:
    """Return paths `[m k 2]` from the left edge to the right one; a coin decides on which side of the tree."""
    along = np.linspace(0.0, 2.0, _LENGTH)
    side = rng.choice([-1.0, 1.0], size=(count, 1))
    height = rng.uniform(0.8, 1.0, size=(count, 1))
    across = side * height * np.sin(np.pi * along / 2)
    return np.stack((np.broadcast_to(along, across.shape), across), axis=-1)


class _TokensAlone(TrajectoryHead):
    """The head of tokens with a small trunk of its own, which it has in common with the frames otherwise."""

    def __init__(self, config: TokensConfig, *, width: int = 64, num_blocks: int = 2) -> None:
        super().__init__(_SHAPE)
        self.head = TokensHead(config, width=width, shape=_SHAPE)
        self.noise_dim = self.head.noise_dim
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(num_blocks))

    def _read(self, tokens: Tensor) -> Tensor:
        x = self.head.inputs(tokens)
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        for block in self.blocks:
            x = block(x, seen)
        return x

    def loss(
        self, condition: Condition, target: Tensor, mask: Tensor, *, step: int | None = None, kept: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the losses of the head; there is one condition only, which says nothing."""
        return self.head.loss(self._read(self.head.tokenize(target)).flatten(1), target, mask, step=step, kept=kept)

    def sample(self, condition: Condition, noise: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """Sample token after token."""
        assert noise is not None
        tokens = torch.zeros(len(condition), 0, dtype=torch.long)
        for number in range(self.head.num_tokens):
            following = self.head.sample_token(self._read(tokens)[:, -1], noise[:, number])
            tokens = torch.cat((tokens, following[:, None]), dim=1)
        return self.head.detokenize(tokens)


def _make(config: HeadConfig) -> TrajectoryHead:
    if isinstance(config, TokensConfig):
        return _TokensAlone(config)
    return make_head(config, trunk=TrunkShape(width=_CONDITION), shape=_SHAPE)


def train_two_ways(config: HeadConfig, *, steps: int = 800, batch_size: int = 64, seed: int = 0) -> TrajectoryHead:
    """Train a head on demonstrations of both ways, all seen from one place."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    head = _make(config)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    condition, mask = torch.ones(batch_size, _CONDITION), torch.ones(batch_size, _LENGTH, 2, dtype=torch.bool)
    for step in range(steps):
        target = torch.as_tensor(demonstrate(batch_size, rng), dtype=torch.float32) - torch.tensor([1.0, 0.0])
        optimizer.zero_grad()
        head.loss(condition, target, mask, step=step)["action_loss"].backward()
        optimizer.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def walk(head: TrajectoryHead, *, count: int, seed: int = 0) -> Array:
    """Return paths `[m k 2]` that a trained head takes, each with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, head.noise_dim, generator=generator)
    chunk = head.sample(torch.ones(count, _CONDITION), noise)
    return (chunk + torch.tensor([1.0, 0.0])).numpy()


def judge(head: TrajectoryHead, *, count: int, seed: int = 0) -> TwoWays:
    """Let a trained head walk, and count."""
    paths = walk(head, count=count, seed=seed)
    hit = TREE.distance(paths) < 0
    left = ~hit & (paths[:, _LENGTH // 2, 1] > 0)
    return TwoWays(hits=float(hit.mean()), left=float(left.mean()), right=float((~hit & ~left).mean()))
