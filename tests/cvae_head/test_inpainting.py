"""Inpainting: the next chunk meets the frozen steps of the running one and keeps its mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gr2.cvae_head.denoising import DenoisingHead
from gr2.cvae_head.diffusion import DiffusionConfig
from gr2.cvae_head.flow import FlowConfig
from gr2.cvae_head.inpainting import MAX_GUIDANCE, Running, guide, soft_mask
from gr2.cvae_head.kinds import HeadConfig
from gr2.cvae_head.two_ways import train_two_ways

FROZEN, LEFT, COUNT = 4, 9, 64
CONFIGS: dict[str, HeadConfig] = {
    "flow": FlowConfig(network="mlp", width=128, blocks=2),
    "diffusion": DiffusionConfig(network="mlp", width=128, blocks=2),
}
_TRAINED: dict[str, DenoisingHead] = {}


def trained(kind: str) -> DenoisingHead:
    """Return a head that passes a tree on its left or on its right, trained once."""
    if kind not in _TRAINED:
        head = train_two_ways(CONFIGS[kind], steps=400)
        assert isinstance(head, DenoisingHead)
        _TRAINED[kind] = head
    return _TRAINED[kind]


def side(chunk: torch.Tensor) -> torch.Tensor:
    """Return on which side of the tree each path passes."""
    return chunk[:, 5, 1].sign()


def test_the_mask_falls_from_the_frozen_steps_to_the_end_of_the_running_chunk() -> None:
    weight = soft_mask(10, frozen=3, overlap=7)
    share = (7 - np.arange(3, 7)) / (7 - 3 + 1)
    np.testing.assert_allclose(weight[3:7], share * (np.exp(share) - 1) / (np.e - 1))
    assert (weight[:3] == 1).all() and (weight[7:] == 0).all() and (np.diff(weight[2:8]) < 0).all()
    assert soft_mask(10, frozen=9, overlap=2).tolist() == [1, 1, *[0] * 8]


def test_the_pull_is_the_gradient_of_the_weighted_distance() -> None:
    torch.manual_seed(0)
    noisy, matrix = torch.randn(2, 4, 3), torch.randn(3, 3)
    weight, target = torch.rand(2, 4), torch.randn(2, 4, 3)
    running = Running(chunk=target, weight=weight)
    found = guide(lambda x, c: torch.tanh(x @ matrix) + c, noisy, torch.zeros(1), running, signal=0.5, noise=0.5)
    start = noisy.clone().requires_grad_()
    clean = torch.tanh(start @ matrix)
    (-0.5 * (weight[..., None] * (target - clean).square()).sum()).backward()
    assert start.grad is not None
    torch.testing.assert_close(found, clean.detach() + 0.5 * 2.0 * start.grad)  # (0.25 + 0.25) / 0.25 = 2
    first = guide(lambda x, c: x, noisy, torch.zeros(1), running, signal=0.0, noise=1.0)
    torch.testing.assert_close(first, noisy + MAX_GUIDANCE * weight[..., None] * (target - noisy))


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_next_chunk_meets_the_frozen_steps_and_keeps_the_side(kind: str) -> None:
    head = trained(kind)
    condition = torch.ones(COUNT, 8)
    noise = torch.randn(2, COUNT, head.noise_dim, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():  # as in acting
        first, free = head.sample(condition, noise[0]), head.sample(condition, noise[1])
        weight = torch.as_tensor(soft_mask(10, frozen=FROZEN, overlap=LEFT), dtype=torch.float32)
        running = Running(chunk=first, weight=weight.expand(COUNT, -1))
        following = head.sample(condition, noise[1], running=running)
    switched = (side(first) != side(free)).float().mean()
    assert 0.25 < switched < 0.75, "independent chunks switch sides by chance"
    assert (side(first) == side(following)).float().mean() > 0.9
    apart, met = ((chunk - first)[:, :FROZEN].abs().mean() for chunk in (free, following))
    assert met < 0.05 and met < 0.33 * apart


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_chunk_without_weight_is_free(kind: str) -> None:
    head = trained(kind)
    condition, noise = torch.ones(3, 8), torch.randn(3, head.noise_dim, generator=torch.Generator().manual_seed(1))
    running = Running(chunk=torch.full((3, 10, 2), 7.0), weight=torch.zeros(3, 10))
    torch.testing.assert_close(
        head.sample(condition, noise, running=running), head.sample(condition, noise), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_an_embodiment_lacks_pulls_nothing(kind: str) -> None:
    head = trained(kind)
    condition, noise = torch.ones(2, 8), torch.randn(2, head.noise_dim, generator=torch.Generator().manual_seed(1))
    present, answers = torch.tensor([[True, False], [True, True]]), []
    for filling in (0.0, 5.0):
        chunk = torch.zeros(2, 10, 2)
        chunk[0, :, 1] = filling
        answers.append(head.sample(condition, noise, present, running=Running(chunk=chunk, weight=torch.ones(2, 10))))
    assert torch.equal(answers[0], answers[1])
