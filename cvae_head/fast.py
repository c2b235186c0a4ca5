"""A small, quick controller beside a large, slow model: it acts on the newest image and the model's last thought.

The trunk thinks now and then; what it makes of the action query (the thought) arrives late and grows old. This network
reads the newest image and state itself, the thought, and its age. In training the thought is one of an earlier frame,
at random.

Source: HiRT, arXiv 2410.05273 (a slow vision-language model conditions a fast policy on its latest latent, of a random
age in training); Helix, Figure AI, 2025 (7 to 9 Hz and 200 Hz).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .head import ChunkShape, Condition, Reads, Seen, TrunkShape
from .learned_tokens import TokenLearner
from .networks import ChunkDenoiser, Denoiser, time_features

_TOKENS = 4
"""Learned tokens that the newest image becomes."""

_LONGEST = 8.0
"""Age [frames] at which the features of ages repeat."""


class FastDenoiser(Denoiser):
    """A perceptron over the chunk, conditioned on the newest image and state and on a thought of some age."""

    reads: Reads = "late"

    def __init__(self, shape: ChunkShape, trunk: TrunkShape, *, width: int, num_blocks: int) -> None:
        super().__init__()
        features = time_features(torch.zeros(1)).shape[-1]
        self.seen, self.state = nn.Linear(trunk.width, width), nn.Linear(trunk.width, width)
        self.learn = TokenLearner(width, _TOKENS)
        self.image, self.thought = nn.Linear(_TOKENS * width, width), nn.Linear(trunk.width, width)
        self.age = nn.Linear(features, width)
        self.denoise = ChunkDenoiser(
            length=shape.length, columns=shape.width, condition_dim=width, network="mlp", width=width, heads=1,
            num_blocks=num_blocks,
        )  # fmt: skip

    def condition(self, seen: Seen) -> Float[Tensor, "b w"]:
        """Merge what is seen now with the thought."""
        assert seen.thought is not None and seen.age is not None
        x = self.seen(seen.tokens)
        image = self.image(self.learn(x, seen.keep).flatten(1))
        state = self.state(seen.tokens[:, -1]) * seen.keep[:, -1:]
        age = self.age(time_features(seen.age / _LONGEST).to(x.dtype))
        out: Tensor = image + state + self.thought(seen.thought) + age
        return out

    def forward(
        self, chunk: Float[Tensor, "r k c"], condition: Condition, time: Float[Tensor, " r"]
    ) -> Float[Tensor, "r k c"]:
        """Transform noisy chunks."""
        assert isinstance(condition, Seen)
        merged = self.condition(condition)
        out: Tensor = self.denoise(chunk, merged.repeat_interleave(len(chunk) // len(merged), 0), time)
        return out

    def at_times(self, condition: Condition, times: Sequence[float]) -> list[Callable[[Tensor], Tensor]]:
        """Return the network at each time as a function of chunks `[b k c]`; the condition is computed once."""
        assert isinstance(condition, Seen)
        return self.denoise.at_times(self.condition(condition), times)
