"""What a prediction is made from, and the target frames as they enter the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Codes = Mapping[str, Int[Tensor, "b f n"]]
"""Camera name -> image codes."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a prediction is made from.

    codes: camera -> int64 `[b h n]`; absent cameras are left out, or switched off per sample in `camera_mask`
        (`[b]`).
    text: `[b l t]` features with `text_mask` `[b l]`; a sample without any text position kept has no
        instruction.
    states: `[b h 16]` or None; `state_mask` `[b h]` and `frame_mask` `[b h]` hide single steps. Masks are
        True = keep.
    target_states: `[b g 16]` or None: where a trajectory takes the robot by each target frame; only target frames see
        them, `target_state_mask` `[b g]` hides single ones.
    embodiment: `[b]`, the place of each sample's robot in the configuration of a model of several, -1 for none;
        states are as wide as the widest of them. A model of one robot needs none.
    """

    codes: Codes
    text: Float[Tensor, "b l t"]
    text_mask: Bool[Tensor, "b l"]
    states: Float[Tensor, "b h 16"] | None = None
    state_mask: Bool[Tensor, "b h"] | None = None
    frame_mask: Bool[Tensor, "b h"] | None = None
    camera_mask: Mapping[str, Bool[Tensor, " b"]] | None = None
    target_states: Float[Tensor, "b g 16"] | None = None
    target_state_mask: Bool[Tensor, "b g"] | None = None
    embodiment: Int[Tensor, " b"] | None = None


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Target frames as they enter the sequence: codes `packed`, each hidden where `masked` is true."""

    packed: Int[Tensor, "b g frame pp"]
    masked: Bool[Tensor, "b g frame pp"] | None


@dataclass(frozen=True, kw_only=True)
class Thought:
    """What the trunk made of an action query, for a head that acts on older ones; ages in frames."""

    output: Float[Tensor, "b d"]
    age: Float[Tensor, " b"]


def random_ages(context: Context) -> Int[Tensor, " b"]:
    """Draw how many frames before the newest one a thought is of, among those that are there."""
    codes = next(iter(context.codes.values()))
    b, h = codes.shape[:2]
    ages = torch.randint(h, (b,), device=codes.device)
    if context.frame_mask is None:
        return ages
    there = context.frame_mask.gather(1, (h - 1 - ages)[:, None])[:, 0]
    return torch.where(there, ages, 0)


def step_before(context: Context, ages: Int[Tensor, " b"]) -> Context:
    """Return the one context step of each sample that is so many frames older than the newest."""

    def take(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return values[torch.arange(len(ages), device=ages.device), values.shape[1] - 1 - ages][:, None]

    return replace(
        context,
        codes={name: codes[torch.arange(len(ages), device=ages.device), codes.shape[1] - 1 - ages][:, None]
               for name, codes in context.codes.items()},
        states=take(context.states),
        state_mask=take(context.state_mask),
        frame_mask=take(context.frame_mask),
    )  # fmt: skip
