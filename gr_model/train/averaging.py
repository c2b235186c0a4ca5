"""An exponential moving average of the weights, evaluated and released instead of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of a module's trainable parameters.

    The decay starts low and rises to `decay`, so that short runs are not averaged with their beginning.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.module = module
        self.values: list[Tensor] = [p.detach().clone() for p in self._parameters()]

    def _parameters(self) -> list[Tensor]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def named_values(self) -> list[tuple[str, Tensor]]:
        """Return the average of each parameter by the parameter's name."""
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        return list(zip(names, self.values, strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = [p.detach() for p in self._parameters()]
        self.values = [v.to(p.device) for v, p in zip(self.values, parameters, strict=True)]
        torch._foreach_lerp_(self.values, parameters, 1 - decay)

    @torch.no_grad()
    def _swap(self) -> None:
        for value, parameter in zip(self.values, self._parameters(), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Overwrite the module's weights by the average."""
        for value, parameter in zip(self.values, self._parameters(), strict=True):
            parameter.copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the module for the duration of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, object]:
        """Return the average and its age."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state_dict`."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        for value, saved in zip(self.values, state["values"], strict=True):  # type: ignore[call-overload]
            if saved is not value:
                value.copy_(saved)
