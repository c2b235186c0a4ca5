"""From codes, text features and states to the vectors of the sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ShapeError
from .config import ModelConfig
from .normalization import Standardize
from .sequence import SequenceLayout, attribute_sizes, pack_codes

_USUAL_HZ = 10.0
"""Control rate [Hz] whose logarithm is the origin of the rate's embedding."""


class TokenEmbedding(nn.Module):
    """Embed every group of a `SequenceLayout`.

    Image codes enter as their frozen codebook vectors, p x p of them concatenated, through one linear layer.
    A row of zeros is appended to the codebook: it stands for begin tokens, dropped codes and masked codes.
    A model of several embodiments reads beside a state which of its slots are there, and the control rate.
    """

    vectors: Tensor
    present: Tensor
    log_rates: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.register_buffer("vectors", torch.zeros(config.codebook_size + 1, config.codebook_dim))
        self.image = nn.Linear(config.codes_per_position * config.codebook_dim, d)
        self.before = nn.Linear(config.codes_per_position * config.codebook_dim, d)
        self.text = nn.Linear(config.text_dim, d)
        n, robots = config.state_dim, config.embodiments
        self.state = nn.Linear(2 * n if config.is_mixture else n, d)
        self.state_normalizer = Standardize(*[len(robots)] * config.is_mixture, n)
        sizes = attribute_sizes(config.packed_grids, config.max_context, config.num_targets)
        self.attributes = nn.Parameter(0.3 * torch.randn(sum(sizes.values()), d))
        self.masked = nn.Parameter(0.3 * torch.randn(d))
        self.no_text = nn.Parameter(0.3 * torch.randn(d))
        self.rate = nn.Linear(1, d) if config.is_mixture else None
        rates = [math.log(robot.control_hz / _USUAL_HZ) for robot in robots]
        self.register_buffer("log_rates", torch.tensor([*rates, 0.0])[:, None], persistent=False)
        self.register_buffer("present", config.slots.present_states(), persistent=False)

    def set_codebook(self, codebook: Float[Tensor, "v c"]) -> None:
        """Copy the tokenizer's codebook, scaled to zero mean and unit deviation over all its numbers.

        Raises:
            ShapeError: another size than the configuration states.
        """
        expected = (self.config.codebook_size, self.config.codebook_dim)
        if tuple(codebook.shape) != expected:
            raise ShapeError(
                f"codebook: expected shape {expected}, got {tuple(codebook.shape)}; "
                "use the tokenizer that the model's configuration names."
            )
        codebook = codebook.detach().float()
        scale = codebook.std().clamp(min=1e-12)
        self.vectors[:-1] = ((codebook - codebook.mean()) / scale).to(self.vectors.device)

    @property
    def null_code(self) -> int:
        """Index of the row of zeros."""
        return self.config.codebook_size

    def arrange(self, codes: Mapping[str, Int[Tensor, "b f n"]]) -> Int[Tensor, "b f frame pp"]:
        """Pack the codes of all cameras into frames, each led by a begin token; absent cameras are null."""
        first = next(iter(codes.values()), None)
        if first is None:
            raise ShapeError("codes: expected at least one camera, got none; pass image codes of a camera.")
        b, f = first.shape[:2]
        pp = self.config.codes_per_position
        begin = first.new_full((b, f, 1, pp), self.null_code)
        parts: list[Tensor] = []
        for camera in self.config.cameras:
            n = camera.grid[0] * camera.grid[1]
            here = codes.get(camera.name)
            if here is None:
                parts += [begin, begin.expand(-1, -1, n // pp, -1)]
                continue
            if here.shape != (b, f, n):
                raise ShapeError(
                    f"codes[{camera.name}]: expected shape {(b, f, n)}, got {tuple(here.shape)}; "
                    f"the model was built for a grid of {camera.grid}."
                )
            if not here.is_cuda and here.numel() and (here.min() < 0 or here.max() >= self.null_code):
                raise ShapeError(  # on a GPU the question would stop the queue; loaders check what they read
                    f"codes[{camera.name}]: expected values in [0, {self.null_code}), got {int(here.min())} to "
                    f"{int(here.max())}; check that codes and model are of the same tokenizer."
                )
            parts += [begin, pack_codes(here, camera.grid, self.config.token_packing)]  # type: ignore[arg-type,list-item]
        return torch.cat(parts, dim=2)

    def drop_codes(self, packed: Int[Tensor, "b f frame pp"]) -> Int[Tensor, "b f frame pp"]:
        """Replace codes by the null code with probability `token_dropout`, in training."""
        if not self.training or self.config.token_dropout == 0:
            return packed
        drop = torch.rand(packed.shape, device=packed.device) < self.config.token_dropout
        return packed.masked_fill(drop, self.null_code)

    def frames(
        self, packed: Int[Tensor, "*n pp"], masked: Bool[Tensor, "*n pp"] | None = None
    ) -> Float[Tensor, "*n d"]:
        """Embed arranged codes; `masked` ones are hidden, and add their share of the mask vector to their position."""
        if masked is not None:
            packed = packed.masked_fill(masked, self.null_code)
        x = self.image(F.embedding(packed, self.vectors).flatten(-2))
        return x if masked is None else x + masked.to(x.dtype).mean(-1, keepdim=True) * self.masked

    def targets(
        self,
        packed: Int[Tensor, "b g frame pp"],
        masked: Bool[Tensor, "b g frame pp"] | None,
        reference: Int[Tensor, "b 1 frame pp"],
    ) -> Float[Tensor, "b g frame d"]:
        """Embed target frames beside the codes that they are expected to repeat."""
        return self.frames(packed, masked) + self.references(reference)

    def references(self, reference: Int[Tensor, "b 1 frame pp"]) -> Float[Tensor, "b 1 frame d"]:
        """Embed the codes that target frames are expected to repeat."""
        return self.before(F.embedding(reference, self.vectors).flatten(-2))

    def states(
        self, states: Float[Tensor, "b f s"], embodiment: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b f d"]:
        """Embed robot states."""
        features = self.config.slots.features(states.float(), embodiment)
        if embodiment is None or self.rate is None:
            return self.state(self.state_normalizer(features))
        present = self.present[embodiment][:, None].expand_as(features).to(features.dtype)
        x = self.state_normalizer(features, embodiment) * present
        return self.state(torch.cat((x, present), dim=-1)) + self.rates(embodiment)[:, None]

    def rates(self, embodiment: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Embed the logarithm of the control rates of a mixture's embodiments."""
        assert self.rate is not None
        return self.rate(self.log_rates[embodiment])

    def prefix(self, text: Float[Tensor, "b l t"], dropped: Bool[Tensor, " b"] | None = None) -> Float[Tensor, "b l d"]:
        """Embed text features; samples `dropped` carry the no-text embedding instead."""
        x = self.text(text.to(self.text.weight.dtype))
        return x if dropped is None else torch.where(dropped[:, None, None], self.no_text.to(x.dtype), x)

    def positions(self, layout: SequenceLayout, attributes: Float[Tensor, "n a"]) -> Float[Tensor, "n d"]:
        """Sum the learned vectors of every position's kind, camera, time, row and column."""
        assert attributes.shape[0] == layout.length
        return attributes @ self.attributes
