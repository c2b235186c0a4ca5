"""What the hand touches next and when, said from the action query: an auxiliary loss on contact labels.

It makes the model look at the part that the instruction is about, as affordances do in LEMON (Yang et al., arXiv
2312.08963), and takes nothing but labels of time: no masks, no geometry.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

UNKNOWN = -1
"""In place of a part: nobody knows."""

_BOUNDS = (0, 10, 20, 40)
"""Control steps that divide the time until the touch: touched already, then ever later."""


class ContactOutlook(nn.Module):
    """Names the part that the hand is to touch and how soon, one of five spans of time.

    Args:
        parts: names of the parts.
        width: of the action query's output.
    """

    def __init__(self, parts: Sequence[str], *, width: int) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.which, self.when = nn.Linear(width, len(self.parts)), nn.Linear(width, len(_BOUNDS) + 1)

    def loss(
        self, condition: Float[Tensor, "b d"], part: Int[Tensor, " b"], steps: Int[Tensor, " b"]
    ) -> dict[str, Tensor]:
        """Return `contact_loss`, the cross-entropies of part and time [nats], and `contact_accuracy` of the part.

        Args:
            part: place in `parts`, `UNKNOWN` leaves a sample out.
            steps: control steps until it is touched, 0 or less once it was.
        """
        known = part != UNKNOWN
        count = known.sum().clamp(min=1)
        span = torch.bucketize(steps, torch.tensor(_BOUNDS, device=steps.device))
        which, when = self.which(condition).float(), self.when(condition).float()
        losses = F.cross_entropy(which, part.clamp(min=0), reduction="none")
        losses = losses + F.cross_entropy(when, span, reduction="none")
        right = (which.argmax(-1) == part) & known
        return {
            "contact_loss": losses.where(known, 0).sum() / count,
            "contact_accuracy": right.sum() / count,
        }
