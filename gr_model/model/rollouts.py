"""The context of a rollout: predicted frames join, the oldest leave; the robot's states follow its own trajectory.

Times count back from the newest frame, so every frame's time vector changes when one joins. What a frame's keys hold
of frames that it saw must go with the frame that leaves. Only text looks at nothing but text and has no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .context import Context

if TYPE_CHECKING:
    from .world_model import WorldModel


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def own_states(model: WorldModel, context: Context, frame_step: int) -> Float[Tensor, "b g 16"] | None:
    """Return where the model's own trajectory takes the robot by each target frame; None where it cannot.

    Args:
        model: the world model, finetuned to act.
        context: what it acts on; without states there is no trajectory.
        frame_step: control steps from frame to frame; the chunk must reach the last target frame.
    """
    g = model.config.num_targets
    if context.states is None or not 0 < frame_step * g <= model.config.chunk_length:
        return None
    state, chunk = context.states[:, -1], model.act(context)
    after = model.config.slots.after
    return torch.stack([after(state, chunk, frame_step * (i + 1), context.embodiment) for i in range(g)], dim=1)


def beside_without_text(context: Context) -> Context:
    """Append every sample once more, without its text."""

    def two(t: Tensor | None) -> Tensor | None:
        return None if t is None else torch.cat((t, t))

    cameras = context.camera_mask
    return Context(
        codes={name: torch.cat((codes, codes)) for name, codes in context.codes.items()},
        text=torch.cat((context.text, context.text)),
        text_mask=torch.cat((context.text_mask, torch.zeros_like(context.text_mask))),
        states=two(context.states),
        state_mask=two(context.state_mask),
        frame_mask=two(context.frame_mask),
        camera_mask=None if cameras is None else {n: torch.cat((m, m)) for n, m in cameras.items()},
        target_states=two(context.target_states),
        target_state_mask=two(context.target_state_mask),
        embodiment=two(context.embodiment),
    )


def slide(
    context: Context,
    frames: Mapping[str, Int[Tensor, "b g n"]],
    max_context: int,
    moved: Float[Tensor, "b g 16"] | None = None,
) -> Context:
    """Append frames to a context, with the states `moved` or without, and keep the newest `max_context`."""
    codes = {name: torch.cat((old, frames[name]), dim=1)[:, -max_context:] for name, old in context.codes.items()}
    b, g = next(iter(frames.values())).shape[:2]
    h = next(iter(context.codes.values())).shape[1]
    yes = torch.ones(b, h, dtype=torch.bool, device=context.text.device)
    states = state_mask = None
    if context.states is not None:
        keep = yes if context.state_mask is None else context.state_mask
        known = torch.full_like(yes[:, :1], moved is not None).expand(-1, g)
        state_mask = torch.cat((keep, known), dim=1)[:, -max_context:]
        new = context.states[:, -1:].expand(-1, g, -1) if moved is None else moved
        states = torch.cat((context.states, new), dim=1)[:, -max_context:]
    frame_mask = None
    if context.frame_mask is not None:
        ones = yes[:, :1].expand(-1, g)
        frame_mask = torch.cat((context.frame_mask, ones), dim=1)[:, -max_context:]
    return replace(
        context, codes=codes, states=states, state_mask=state_mask, frame_mask=frame_mask,
        target_states=None, target_state_mask=None,
    )  # fmt: skip
