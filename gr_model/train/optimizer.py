"""One optimizer of two: Muon for the matrices of trunk and denoising head, AdamW for everything else.

Muon moves a matrix by its orthogonalized momentum. So rare directions of the gradient (which word names which block)
learn as fast as common ones. Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural
networks"; the scale that makes rates comparable with AdamW's is that of arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...errors import CheckpointError
from ..model.world_model import WorldModel
from .lora import rank_of


def muon_matrices(model: WorldModel) -> list[Tensor]:
    """Return the weights that Muon trains: no frozen ones, and none of the thin matrices of LoRA."""
    trunk = [] if rank_of(model) else [p for p in model.gpt.parameters() if p.ndim == 2]
    return trunk + model.head.muon_matrices()


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with Nesterov momentum and AdamW's scale, in a precision of choice and in fewer products.

    bfloat16: multiply in it, all matrices of one shape together: the many small products of a narrow trunk take a
        third of the time. Otherwise everything is float32: for training in it, and for processors that emulate
        bfloat16, which takes them twenty times as long.
    """

    def __init__(self, matrices: list[Tensor], *, bfloat16: bool, **options: Any) -> None:
        super().__init__(matrices, adjust_lr_fn="match_rms_adamw", **options)
        self.bfloat16 = bfloat16

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move each matrix by its orthogonalized momentum."""
        loss = _loss_of(closure)
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            ahead: dict[Tensor, Tensor] = {}
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                ahead[p] = p.grad.lerp(state["momentum_buffer"], momentum)
            for some in self._alike(ahead):
                together = len(some) > 1
                moving = torch.stack([ahead[p] for p in some]) if together else ahead[some[0]]
                moving = moving.bfloat16() if self.bfloat16 else moving
                moving = orthogonalize(moving, group["ns_coefficients"], group["ns_steps"], group["eps"])
                for p, direction in zip(some, moving if together else [moving], strict=True):
                    p.mul_(1 - rate * group["weight_decay"])
                    p.add_(direction, alpha=-rate * 0.2 * max(p.shape) ** 0.5)
        return loss

    def _alike(self, matrices: Iterable[Tensor]) -> list[list[Tensor]]:
        """Group what is orthogonalized together: in float32, and where matrices are spread (FSDP), each is alone."""
        groups: dict[Any, list[Tensor]] = {}
        for p in matrices:
            groups.setdefault(p.shape if self.bfloat16 and not isinstance(p, DTensor) else p, []).append(p)
        return list(groups.values())


def _loss_of(closure: Callable[[], Any] | None) -> Any:
    """Compute the gradients where a closure does so."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def orthogonalize(
    matrices: Float[Tensor, "... m n"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Float[Tensor, "... m n"]:
    """Bring all singular values of a matrix, or of each of a stack, near 1 by the quintic Newton-Schulz iteration."""
    a, b, c = coefficients
    add_product = torch.addmm if matrices.ndim == 2 else torch.baddbmm
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT.contiguous() if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


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
        self.parts: tuple[torch.optim.Optimizer, ...] = (adamw,)
        if matrices:  # LoRA leaves it none of the trunk
            muon = BatchedMuon(matrices, lr=muon_learning_rate, weight_decay=weight_decay, bfloat16=bfloat16)
            self.parts += (muon,)
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
        """Restore the states of both.

        Raises:
            CheckpointError: they are of another division of the weights.
        """
        saved = [[len(group["params"]) for group in part["param_groups"]] for part in state_dict["parts"]]
        ours = [[len(group["params"]) for group in part.param_groups] for part in self.parts]
        if saved != ours:
            raise CheckpointError(
                f"resume: expected optimizers of {ours} weights, got {saved} from another version of gr2, which "
                "divides them differently; finish the run with that version, or go on from its weights in another "
                "output folder (--init)."
            )
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()
