"""What a command calls: a function whose parameters are its options, or one whose parameter `options` holds them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

Target = Callable[..., object]
"""A plain function with typed keyword-only parameters; returns an exit status, anything else is success."""


def options_class(target: Target) -> type | None:
    """Return the class of the one parameter `options` that holds all options of a target, None for plain functions."""
    if list(inspect.signature(target).parameters) != ["options"]:
        return None
    found: type = get_type_hints(target)["options"]
    return found


def call(target: Target, values: Mapping[str, Any]) -> object:
    """Call a target with options by name."""
    options = options_class(target)
    return target(**values) if options is None else target(options(**values))
