"""Sample codes from logits: temperature, the k likeliest, the likeliest share, guidance by the text, seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import ConfigError

_PROBABILITIES_AT_ONCE = 1 << 22
"""Probabilities held at a time while codes are sampled; 16384 codes at each place of a batch would fill the memory."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How codes are sampled, in masked and in raster decoding alike.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest code.
        top_k: only the k likeliest codes are sampled; 0 for all.
        top_p: only the likeliest codes that together hold this share of the probability are sampled, one at least. It
            is measured after `temperature` and `top_k`; 1 for all.
        guidance: 1 for none; above, predictions are pushed away from those without text, w of `l0 + w (l - l0)` (needs
            text dropout in training). Source: classifier-free guidance, arXiv 2207.12598, on logits.
        passes: decoding steps of a frame in masked decoding. Two are enough for the likeliest codes; sampled ones need
            more, as the codes of a step do not know of each other.
        choice_temperature: scale of the Gumbel noise on the confidences that decide which codes masked decoding keeps;
            falls to 0.
        draft_rows: most rows (samples x positions) of a step of raster decoding, which takes drafts of the next codes
            along and keeps those that it would have sampled; 1 takes none. The codes are the same, up to rounding.
        seed: of all random numbers. Each sample has its own stream of them, so what stands beside it changes nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    passes: int = 2
    choice_temperature: float = 0.0
    draft_rows: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "choice_temperature", "guidance"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, "a finite number of at least 0", value)
        _require(self.top_k >= 0, "top_k", "a number of codes, or 0 for all", self.top_k)
        _require(0 < self.top_p <= 1, "top_p", "a share above 0 and up to 1", self.top_p)
        _require(self.passes >= 1, "passes", "at least 1", self.passes)
        _require(self.draft_rows >= 1, "draft_rows", "at least 1", self.draft_rows)

    @property
    def guided(self) -> bool:
        """Whether predictions without text are needed beside those with it."""
        return self.guidance != 1.0


class SampleNoise:
    """Random seeds for the codes of the samples of a batch, each sample with a generator of its own.

    They are made on the CPU: the same seed gives the same numbers on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def seeds(self, shape: Sequence[int], device: torch.device) -> Int[Tensor, "b ..."]:
        """Sample seeds of `shape` for each sample."""
        rows = [torch.randint(1 << 62, tuple(shape), generator=generator) for generator in self.generators]
        return torch.stack(rows).to(device)


def guide(logits: Float[Tensor, "bb *n v"], guidance: float) -> Float[Tensor, "b *n v"]:
    """Combine predictions with text (first half of the batch) and without (second half); 1 takes them as they are."""
    if guidance == 1.0:
        return logits
    with_text, without_text = logits.chunk(2)
    return without_text + guidance * (with_text - without_text)


def probabilities(logits: Float[Tensor, "*n v"], sampling: SamplingConfig) -> Float[Tensor, "*n v"]:
    """Return the probabilities that codes are sampled with, float64; temperature 0 leaves the first likeliest."""
    logits = logits.double()
    # At temperature 0, and where only one code is left, the first of equals wins, as in argmax.
    if sampling.temperature == 0 or sampling.top_k == 1:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    p = ((logits - logits.amax(-1, keepdim=True)) / sampling.temperature).softmax(-1)
    if not sampling.top_k and sampling.top_p == 1:
        return p
    ordered, order = p.sort(stable=True, dim=-1, descending=True)
    if sampling.top_k:
        ordered[..., sampling.top_k :] = 0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered * (before < sampling.top_p)
    return torch.zeros_like(p).scatter_(-1, order, ordered / ordered.sum(-1, keepdim=True))


def gumbel(seeds: Int[Tensor, "*n"], count: int) -> Float[Tensor, "*n count"]:
    """Return `count` numbers of the standard Gumbel distribution for each seed.

    Source: SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), a stream a seed.
    """
    x = torch.arange(1, count + 1, device=seeds.device) * _signed(0x9E3779B97F4A7C15) + seeds[..., None]
    x = x.bitwise_xor_(_right(x, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    x = x.bitwise_xor_(_right(x, 27)).mul_(_signed(0x94D049BB133111EB))
    x = x.bitwise_xor_(_right(x, 31))
    uniform = _right(x, 41).float().add_(0.5).mul_(2.0**-23)  # 23 bits and a half: neither 0 nor 1 in float32
    return uniform.log_().neg_().log_().neg_()


def _signed(bits: int) -> int:
    """Read 64 bits as a number with a sign."""
    return bits - (1 << 64) if bits >> 63 else bits


def _right(x: Int[Tensor, "*n"], places: int) -> Int[Tensor, "*n"]:
    """Shift 64 bits to the right and fill in zeros."""
    return (x >> places).bitwise_and_((1 << (64 - places)) - 1)


def sample_codes(
    logits: Float[Tensor, "*n v"], sampling: SamplingConfig, seeds: Int[Tensor, "*n"] | None
) -> Int[Tensor, "*n"]:
    """Sample codes, each with the Gumbel noise of a seed of its own; None is enough at temperature 0.

    Logits that differ a little give the same code from the same seed most of the time.
    """
    if sampling.temperature == 0 or sampling.top_k == 1:
        return logits.argmax(-1)
    assert seeds is not None, "sampling needs random numbers"
    v = logits.shape[-1]
    rows = max(1, _PROBABILITIES_AT_ONCE // v)
    narrow = sampling.top_k or sampling.top_p < 1
    parts = []
    for some, numbers in zip(logits.flatten(0, -2).split(rows), seeds.flatten().split(rows), strict=True):
        some = some.float() - some.float().amax(-1, keepdim=True)
        scores = probabilities(some, sampling).log() if narrow else some / sampling.temperature
        parts.append((scores + gumbel(numbers, v)).argmax(-1))
    return torch.cat(parts).view(seeds.shape)


def _require(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"SamplingConfig.{name}: expected {expected}, got {got}; change the value.")
