"""Where the arm is to be when its gripper next opens or closes, or at the end: an auxiliary loss on the action query.

A chunk says where the arm goes within a third of a second, a keypose where the task leads it, so that every frame
teaches where things are. It takes nothing but the actions. PerAct (Shridhar et al., arXiv 2209.05451) predicts keyposes
in place of chunks.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...cvae_head.slots import SlotCoding
from ...errors import ConfigError

_RULES = ("distance", "turn")
"""Of commands that are counted from what the state measures, so that they are places, however far ahead."""


class KeyposeOutlook(nn.Module):
    """Says the keypose from the action query.

    columns: of a chunk that are places: positions, turns and joint positions that the state measures, too.

    Args:
        slots: of the robots.
        width: of the action query's output.

    Raises:
        ConfigError: no robot has such commands.
    """

    columns: Tensor

    def __init__(self, slots: SlotCoding, *, width: int) -> None:
        super().__init__()
        found = [at for slot, at in slots.action_slots.items() if slot.rule in _RULES]
        columns = [i for at in found for i in range(at.start, at.stop)]
        if not columns:
            raise ConfigError(
                "--keyposes: expected absolute actions of what the state measures, too (a tool's pose, joint "
                "positions), got none; leave it out."
            )
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.where = nn.Linear(width, len(columns))

    def loss(
        self, condition: Float[Tensor, "b d"], keypose: Float[Tensor, "b c"], known: Bool[Tensor, "b c"]
    ) -> dict[str, Tensor]:
        """Return `keypose_loss`, the mean absolute error in units of the spread of a chunk's last step.

        Args:
            keypose: a chunk's row, normalized as its last step.
            known: numbers that count.
        """
        wanted, counts = keypose[:, self.columns], known[:, self.columns]
        error = (self.where(condition).float() - wanted.masked_fill(~counts, 0)).abs().where(counts, 0)
        return {"keypose_loss": error.sum() / counts.sum().clamp(min=1)}
