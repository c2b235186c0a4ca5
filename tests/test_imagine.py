"""Generation: cached decoding equals uncached, memorised frames come back, roll-outs slide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from model_cases import make_batch, make_context, make_model, small_config

from gr2.cvae_head.trajectory import state_after
from gr2.gr_model.context import Targets
from gr2.gr_model.errors import ConfigError
from gr2.gr_model.generation import FrameDecoder, SamplingConfig, imagine, slide
from gr2.gr_model.objectives import read_targets, training_losses

MODES = pytest.mark.parametrize("decoding", ["masked", "raster"])


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("targets", [1, 2])
def test_cached_parallel_decoding_equals_uncached(targets: int, ahead: bool) -> None:
    model = make_model(small_config(num_targets=targets))
    batch = make_batch(model.config)
    context = make_context(model, batch)
    context = replace(context, target_states=batch["states"][:, 2:] if ahead else None)
    packed, valid = read_targets(model, batch, context, 2)
    hidden = valid[..., None] & (torch.rand(packed.shape) < 0.5)
    with torch.no_grad():
        cached = FrameDecoder(model, context).all_positions(packed, hidden)
        _, features = model.predict(context, Targets(packed=packed, masked=hidden), with_actions=False)
        expected = model.frame_logits(features, model.reference(context).expand_as(packed))
        torch.testing.assert_close(cached, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [1, 2])
def test_cached_raster_decoding_equals_uncached(targets: int) -> None:
    model = make_model(small_config("raster", num_targets=targets))
    batch = make_batch(model.config)
    context = make_context(model, batch)
    packed, _ = read_targets(model, batch, context, 2)
    with torch.no_grad():
        decoder = FrameDecoder(model, context)
        cached = [decoder.next_position(packed[:, :, i], i) for i in range(packed.shape[2])]
        _, features = model.predict(context, Targets(packed=packed, masked=None), with_actions=False)
        expected = model.frame_logits(features, model.reference(context).expand_as(packed))
    torch.testing.assert_close(torch.stack(cached, dim=2), expected, atol=1e-5, rtol=1e-5)


@MODES
def test_a_memorised_frame_is_imagined(decoding: Any) -> None:
    config = small_config(decoding, max_context=1)
    model = make_model(config)
    torch.manual_seed(0)
    for block in model.gpt.blocks:
        torch.nn.init.normal_(block.attention.qkv.weight, std=0.02)
    batch = make_batch(config, size=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    model.train()
    for _ in range(250):
        loss = training_losses(model, batch, with_actions=False, with_frames=True)["frame_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    imagined = imagine(model, make_context(model, batch), sampling=SamplingConfig(steps=4))
    right = [(imagined[name] == batch["codes"][name][:, 1:]).float().mean() for name in imagined]
    assert min(right) > 0.95, right
    assert model.training


@MODES
def test_roll_outs_are_reproducible_and_slide(decoding: Any) -> None:
    model = make_model(small_config(decoding, text_dropout=0.1))
    context = make_context(model, make_batch(model.config))
    sampling = SamplingConfig(temperature=1.0, choice_temperature=2.0, guidance=1.5, seed=3)
    first = imagine(model, context, num_frames=3, sampling=sampling)
    again = imagine(model, context, num_frames=3, sampling=sampling)
    other = imagine(model, context, num_frames=3, sampling=SamplingConfig(temperature=1.0, seed=4))
    assert {name: codes.shape for name, codes in first.items()} == {
        "static": (3, 3, 24),
        "gripper": (3, 3, 16),
    }
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["static"], other["static"])
    assert all(codes.min() >= 0 and codes.max() < 20 for codes in first.values())


def test_imagined_frames_have_no_state() -> None:
    model = make_model(small_config())
    context = make_context(model, make_batch(model.config))
    frames = {name: codes[:, :1] + 0 for name, codes in context.codes.items()}
    moved = slide(context, frames, 2)
    assert moved.state_mask is not None
    assert moved.state_mask.tolist() == [[True, False]] * 3
    assert torch.equal(moved.codes["static"][:, 0], context.codes["static"][:, 1])


def test_imagined_frames_follow_the_models_own_trajectory() -> None:
    model = make_model(small_config(max_context=1))
    context = make_context(model, make_batch(model.config))
    assert context.states is not None
    frames = {name: codes[:, :1] + 0 for name, codes in context.codes.items()}
    moved = state_after(context.states[:, -1], model.act(context), 2)[:, None]
    slid = slide(context, frames, 1, moved)
    assert slid.states is not None and slid.state_mask is not None and bool(slid.state_mask.all())
    assert torch.equal(slid.states, moved) and moved.shape == (3, 1, 16)
    with torch.no_grad():  # an untrained model copies; this one looks at the state
        model.copy_gate.bias.zero_()
        model.embed.state.weight.mul_(50)
    first = imagine(model, context, frame_step=2)
    expected = imagine(model, replace(context, target_states=moved))
    assert all(torch.equal(first[name], expected[name]) for name in first)
    with_states = imagine(model, context, num_frames=3, frame_step=2)
    without = imagine(model, context, num_frames=3)
    assert any(not torch.equal(with_states[name][:, :1], without[name][:, :1]) for name in without)
    assert any(not torch.equal(with_states[name][:, 1:], without[name][:, 1:]) for name in without)
    too_far = imagine(model, context, num_frames=3, frame_step=model.config.chunk_length + 1)
    assert all(torch.equal(too_far[name], without[name]) for name in without)


def test_several_target_frames_follow_the_trajectory_step_by_step() -> None:
    model = make_model(small_config(num_targets=2))
    context = make_context(model, make_batch(model.config))
    assert context.states is not None
    with torch.no_grad():
        model.copy_gate.bias.zero_()
        model.embed.state.weight.mul_(50)
        chunk = model.act(context)
    ahead = torch.stack([state_after(context.states[:, -1], chunk, steps) for steps in (2, 4)], dim=1)
    expected = imagine(model, replace(context, target_states=ahead), num_frames=2)
    got = imagine(model, context, num_frames=2, frame_step=2)
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_guidance_needs_text_dropout() -> None:
    model = make_model(small_config())
    with pytest.raises(ConfigError, match="text dropout"):
        imagine(model, make_context(model, make_batch(model.config)), sampling=SamplingConfig(guidance=2.0))
