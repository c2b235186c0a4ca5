"""One optimizer of two: Muon for the trunk's matrices, AdamW for everything else.

Muon moves a matrix by its orthogonalized momentum. So rare directions of the gradient (which word names which block)
learn as fast as common ones. Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural
networks"; the scale that makes rates comparable with AdamW's is that of arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon`, which multiplies in bfloat16, in float32; with Nesterov momentum and AdamW's scale.

    For training in float32, and for processors that emulate bfloat16: it takes them twenty times as long.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move each matrix by its orthogonalized momentum."""
        loss = _loss_of(closure)
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                ahead = p.grad.lerp(state["momentum_buffer"], momentum)
                direction = orthogonalize(ahead, group["ns_coefficients"], group["ns_steps"], group["eps"])
                p.mul_(1 - rate * group["weight_decay"])
                p.add_(direction, alpha=-rate * 0.2 * max(p.shape) ** 0.5)
        return loss


def _loss_of(closure: Callable[[], Any] | None) -> Any:
    """Compute the gradients where a closure does so."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def orthogonalize(
    matrix: Float[Tensor, "m n"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "m n"]:
    """Bring all singular values near 1 by the quintic Newton-Schulz iteration."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Step `torch.optim.Muon` and `torch.optim.AdamW` together; schedulers see the groups of both.

    Args:
        model: whose trainable parameters are optimized.
        matrices: the two-dimensional parameters that Muon takes.
        learning_rate, muon_learning_rate: of AdamW and of Muon.
        weight_decay: of all matrices; vectors (norms, biases, learned tokens) do not decay.
        bfloat16: whether Muon multiplies in bfloat16, as everywhere else, or in float32.
    """

    def __init__(
        self,
        model: nn.Module,
        matrices: list[Tensor],
        *,
        learning_rate: float,
        muon_learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        bfloat16: bool = True,
    ) -> None:
        taken = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
        muon = (torch.optim.Muon if bfloat16 else Float32Muon)(
            matrices, lr=muon_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.parts: tuple[torch.optim.Optimizer, ...] = (adamw, muon)
        super().__init__(self._groups(), {})
        self.param_groups = self._groups()

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step both; the closure computes the gradients and runs once."""
        loss = _loss_of(closure)
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of both."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()
