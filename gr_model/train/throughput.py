"""How much a training step computes, and what share of a device's peak that is (model FLOPs utilization, MFU)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..model.config import ModelConfig
from ..model.gpt import count_parameters
from ..model.sequence import SequenceLayout, make_layout
from ..model.world_model import WorldModel

DEVICE_PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("A40", 150e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)
"""Part of a device's name, dense bfloat16 operations a second [FLOP/s].

Source: NVIDIA's data sheets of these products, halved where they state the metric with sparsity; GeForce: the
"Ada" and "Ampere GA102" white papers, FP32 accumulation; A10G: aws.amazon.com/ec2/instance-types/g5.
"""


def device_peak(name: str) -> float | None:
    """Return the dense bfloat16 peak [FLOP/s] of the device called `name`, None where it is not known."""
    words = name.replace("-", " ").split()
    for known, peak in DEVICE_PEAKS:
        parts = known.split()
        if all(part in words for part in parts):
            return peak
    return None


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What one sequence costs in training.

    tokens: positions of the sequence.
    flops: floating point operations [FLOP], forward and backward; recomputation is not counted, as usual for MFU.
    """

    tokens: float
    flops: float


def step_cost(model: WorldModel, *, text_length: int, with_frames: bool, with_actions: bool) -> StepCost:
    """Count the matrix products of one training sequence.

    For n positions of which r are read, width d and depth L (a product `[m k] [k n]` is 2 m k n FLOP):

        blocks     (L - 1) (24 n d^2 + 4 n^2 d)     qkv 6, out 2, perceptron 16; scores and values 4
        last one   4 n d^2 + 20 r d^2 + 4 r n d     keys and values everywhere, the rest where it is read
        embedding  2 i p^2 c d + 2 t e d            i codes' positions of p^2 vectors of c, t text positions of e
        codes      s (2 F + 2 p^2 w V)              s scored positions, F weights to p^2 features of w, V codes
        chunk      2 H                              H weights of the trajectory head, once for each of its tokens

    The backward pass costs twice the forward pass, so that a step is three times the sum. Targets that are hidden are
    an expected value: the share u of a frame is hidden with u = cos(pi x / 2), x uniform.

    Source: Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Chowdhery et al. 2022, arXiv 2204.02311, appendix B.
    """
    config = model.config
    layout = make_layout(
        config,
        text_length=text_length,
        num_context=config.max_context,
        with_frames=with_frames,
        with_action=with_actions,
    )
    n, d = layout.length, config.width
    read = len(layout.positions("action", "target"))
    if with_actions and not with_frames and model.head.reads == "context":
        forward = _embedding(config, layout) + 2.0 * count_parameters(model.head) * model.head.num_products
        return StepCost(tokens=n, flops=3 * forward)  # nothing reads the trunk
    body = (config.depth - 1) * (24 * n * d**2 + 4 * n**2 * d)
    last = 4 * n * d**2 + 20 * read * d**2 + 4 * read * n * d
    forward = float(body + last) + _embedding(config, layout) + (_codes(model) if with_frames else 0.0)
    if with_actions:
        forward += 2.0 * count_parameters(model.head) * model.head.num_products
    return StepCost(tokens=n, flops=3 * forward)


def rate_metrics(sequences_per_s: float, cost: StepCost, peak: float | None) -> dict[str, float]:
    """Turn the sequences a second of one device into metrics of its log; MFU only where its peak is known."""
    metrics = {"tokens_per_s": sequences_per_s * cost.tokens}
    if peak is not None:
        metrics["mfu"] = sequences_per_s * cost.flops / peak
    return metrics


def _embedding(config: ModelConfig, layout: SequenceLayout) -> float:
    frames = config.max_context + layout.num_targets + (1 if layout.num_targets else 0)  # the reference, too
    image = 2.0 * frames * layout.frame_length * config.codes_per_position * config.codebook_dim * config.width
    return image + 2.0 * layout.text_length * config.text_dim * config.width


def _codes(model: WorldModel) -> float:
    config, pp = model.config, model.config.codes_per_position
    positions = config.num_targets * sum(rows * columns for rows, columns in config.packed_grids)
    if config.decoding == "masked":
        hidden = np.cos(0.5 * math.pi * (np.arange(1000) + 0.5) / 1000)
        scored = positions * float(np.mean(1 - (1 - hidden) ** pp))
    else:
        scored = float(positions)
    features = sum(p.numel() for p in model.frame_features.parameters() if p.ndim == 2)
    gate = config.width * pp
    return config.scored_share * scored * 2 * (features + gate + pp * config.head_dim * config.codebook_size)
