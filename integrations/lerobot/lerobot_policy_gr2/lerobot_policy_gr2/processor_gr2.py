"""What is done to a batch before and after gr2's policy: devices and batches alone, for the model normalizes inside."""

from __future__ import annotations

from typing import Any

from lerobot.processor import PolicyAction, PolicyProcessorPipeline
from lerobot.processor.factory import make_default_pre_post_processors
from torch import Tensor

from .configuration_gr2 import GR2Config


def make_gr2_pre_post_processors(
    config: GR2Config, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]:
    """Return LeRobot's usual steps; `normalization_mapping` leaves all numbers as they are."""
    return make_default_pre_post_processors(config, dataset_stats)
