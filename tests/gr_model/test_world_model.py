"""Laws of the sequence and of the world model: what must not be seen changes nothing, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import make_batch, make_context, make_model, small_config

from gr2.cvae_head.head import Seen
from gr2.cvae_head.kinds import HeadOptions
from gr2.errors import ConfigError, ShapeError
from gr2.gr_model.model import objectives, presets
from gr2.gr_model.model.config import ModelChanges, ModelConfig
from gr2.gr_model.model.context import Context, Targets
from gr2.gr_model.model.gpt import count_parameters
from gr2.gr_model.model.objectives import (
    _show_states,
    evaluation_metrics,
    permute_codes,
    read_context,
    read_targets,
    training_losses,
)
from gr2.gr_model.model.sequence import make_layout, pack_codes, sees, unpack_codes
from gr2.gr_model.model.world_model import WorldModel
from gr2.layers import Attention

MODES = pytest.mark.parametrize("decoding", ["masked", "raster", "queries"])
HEADS = pytest.mark.parametrize(
    "head",
    [
        HeadOptions(),
        HeadOptions(kind="flow", network="expert", width=16),
        HeadOptions(kind="diffusion", network="dit", width=16, heads=2),
        HeadOptions(kind="flow", network="fast", width=16),
        HeadOptions(kind="cvae", network="detr", width=16, film=True),
        HeadOptions(kind="bins"),
    ],
    ids=lambda head: head.network or head.kind or "default",
)


def with_head(options: HeadOptions, config: ModelConfig) -> WorldModel:
    """A model whose head has no layer of zeros, as new ones do."""
    model = make_model(replace(config, head=options.apply(config.head)))
    for parameter in model.head.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def outputs(model: WorldModel, context: Context) -> tuple[Any, torch.Tensor]:
    """Trunk outputs at every position of the full sequence, and its layout."""
    layout = model.layout(context, with_frames=True, with_action=True)
    packed = torch.zeros(len(context.text), 1, layout.frame_length, model.config.codes_per_position, dtype=torch.long)
    x, mask = model.assemble(layout, context, Targets(packed=packed, masked=None))
    with torch.no_grad():
        return layout, model.gpt(x, mask, torch.arange(layout.length))


@pytest.mark.parametrize(
    ("preset", "millions"),
    [(presets.size_s, 30), (presets.size_b, 95), (presets.size_l, 312), (presets.size_xl, 719)],
)
def test_sizes_have_the_published_counts(preset: Any, millions: float) -> None:
    with torch.device("meta"):
        model = WorldModel(preset())
    assert count_parameters(model) / 1e6 == pytest.approx(millions, rel=0.03)
    body = 12 * model.config.width**2 + 13 * model.config.width
    assert all(count_parameters(block) == body for block in model.gpt.blocks)


def test_tiny_takes_few_positions() -> None:
    config = presets.tiny()
    layout = make_layout(config, text_length=1, num_context=1, with_frames=False, with_action=True)
    assert layout.length == 1 + 2 * 17 + 2
    assert count_parameters(WorldModel(config)) < 1.6e6


def test_packing_inverts_and_keeps_neighbors_together() -> None:
    codes = torch.randint(100, (2, 3, 4 * 6))
    packed = pack_codes(codes, (4, 6), 2)
    assert torch.equal(unpack_codes(packed, (4, 6), 2), codes)
    grid = codes.unflatten(-1, (4, 6))
    assert torch.equal(packed[0, 0, 4], grid[0, 0, 2:4, 2:4].flatten())
    np.testing.assert_array_equal(pack_codes(codes.numpy(), (4, 6), 2), packed.numpy())


@MODES
def test_mask_follows_the_rules(decoding: Any) -> None:
    layout = make_layout(small_config(decoding), text_length=3, num_context=2, with_frames=True, with_action=True)
    owner = {i: group for group in layout.groups for i in range(group.start, group.start + group.length)}
    for q in range(layout.length):
        for m in range(layout.length):
            allowed = sees(owner[q], owner[m])
            same_frame = owner[q].kind == owner[m].kind and owner[q].time == owner[m].time
            if decoding == "raster" and same_frame and owner[q].camera is not None:
                allowed = allowed and m <= q
            assert layout.mask[q, m] == allowed, (owner[q], owner[m])
    assert layout.mask[:, layout.of_kind("action")[0].start].sum() == 1
    assert layout.attributes[layout.positions("text")].sum() == 3


@MODES
@pytest.mark.parametrize("kind", ["frame", "state", "action", "target_state", "target"])
@pytest.mark.parametrize("time", [0, 1])
def test_hidden_groups_change_nothing(decoding: Any, kind: Any, time: int) -> None:
    model = make_model(small_config(decoding))
    context = make_context(model, make_batch(model.config))
    context = replace(context, target_states=torch.randn(3, 1, 16))
    layout = model.layout(context, with_frames=True, with_action=True)
    key = next(g for g in layout.of_kind(kind) if g.time == time or kind in ("action", "target_state", "target"))
    packed = torch.zeros(3, 1, layout.frame_length, 4, dtype=torch.long)
    x, mask = model.assemble(layout, context, Targets(packed=packed, masked=None))
    changed = x.clone()
    changed[:, key.slice] = torch.randn_like(changed[:, key.slice])
    read = torch.arange(layout.length)
    with torch.no_grad():
        before, after = model.gpt(x, mask, read), model.gpt(changed, mask, read)
    for query in layout.groups:
        same = torch.equal(before[:, query.slice], after[:, query.slice])
        assert same != _reaches(layout, query, key), (query.kind, query.time, key.kind, key.time)


def _reaches(layout: Any, query: Any, key: Any) -> bool:
    """Whether information may flow from `key` to `query` in any number of layers."""
    reach = layout.mask
    for _ in range(2):
        reach = reach @ layout.mask
    return bool(reach[query.slice, key.slice].any())


@MODES
def test_earlier_codes_do_not_see_later_ones(decoding: Any) -> None:
    model = make_model(small_config(decoding))
    batch = make_batch(model.config)
    context = make_context(model, batch)
    packed, _ = read_targets(model, batch, context, 2)
    changed = packed.clone()
    changed[:, :, 9] = (changed[:, :, 9] + 1) % 20
    with torch.no_grad():
        features = [
            model.predict(context, Targets(packed=p, masked=None), with_actions=False)[1] for p in (packed, changed)
        ]
    same = [torch.equal(features[0][:, :, i], features[1][:, :, i]) for i in range(packed.shape[2])]
    expected = [decoding == "raster" and i < 9 for i in range(packed.shape[2])]
    assert same == expected


@HEADS
@MODES
def test_acting_alone_equals_acting_with_frames(decoding: Any, head: HeadOptions) -> None:
    model = with_head(head, small_config(decoding))
    batch = make_batch(model.config)
    context = make_context(model, batch)
    packed, valid = read_targets(model, batch, context, 2)
    hidden = valid[..., None].expand_as(packed) if decoding == "masked" else None
    targets = Targets(packed=packed, masked=hidden)
    with torch.no_grad():
        alone, _ = model.predict(context, None, with_actions=True)
        joint, frames = model.predict(context, targets, with_actions=True)
        _, frames_alone = model.predict(context, targets, with_actions=False)
    if isinstance(alone, Seen):
        assert isinstance(joint, Seen)
        alone, joint = alone.tokens, joint.tokens
    torch.testing.assert_close(alone, joint, atol=1e-5, rtol=0)
    torch.testing.assert_close(frames, frames_alone, atol=1e-5, rtol=0)


def test_keys_and_values_that_a_head_reads_are_those_of_the_trunk() -> None:
    model = with_head(HeadOptions(kind="flow", network="expert", width=16), small_config())
    context = make_context(model, make_batch(model.config))
    layout = model.layout(context, with_frames=False, with_action=False)
    with torch.no_grad():
        seen = model.seen(context)
        x, mask = model.assemble(layout, context, None)
        past = model.gpt.make_past(x, layout.length)
        model.gpt.extend(x, mask, past)
    assert seen.num_steps == 2 and seen.text.shape[1] + seen.tokens.shape[1] == layout.length
    torch.testing.assert_close(seen.layers, past)


@HEADS
def test_absent_inputs_change_nothing(head: HeadOptions) -> None:
    model = with_head(head, small_config())
    batch = make_batch(model.config)
    context = make_context(model, batch)

    def act(context: Context) -> torch.Tensor:
        with torch.no_grad():
            return model.act(context)

    off = torch.zeros(3, dtype=torch.bool)
    other = {**context.codes, "gripper": (context.codes["gripper"] + 1) % 20}
    hidden = replace(context, camera_mask={"gripper": off})
    torch.testing.assert_close(act(hidden), act(replace(hidden, codes=other)), atol=0, rtol=0)
    left_out = replace(context, codes={"static": context.codes["static"]}, camera_mask=None)
    torch.testing.assert_close(act(left_out), act(hidden), atol=1e-5, rtol=0)

    no_state = replace(context, states=None)
    masked = replace(context, state_mask=torch.zeros(3, 2, dtype=torch.bool))
    torch.testing.assert_close(act(no_state), act(masked), atol=0, rtol=0)
    assert not torch.equal(act(no_state), act(context))

    text = context.text.clone()
    text[~context.text_mask] = 99.0
    torch.testing.assert_close(act(replace(context, text=text)), act(context), atol=0, rtol=0)
    shorter = replace(context, text=context.text[:2], text_mask=context.text_mask[:2])
    assert shorter.text.shape[1] == 5
    nothing = replace(context, text_mask=torch.zeros_like(context.text_mask))
    torch.testing.assert_close(act(nothing), act(replace(nothing, text=text * 2)), atol=0, rtol=0)

    first = torch.tensor([[False, True]]).expand(3, -1)
    one_frame = replace(context, codes={n: c[:, 1:] for n, c in context.codes.items()}, states=context.states[:, 1:])
    one_frame = replace(one_frame, frame_mask=None, state_mask=None)
    torch.testing.assert_close(act(replace(context, frame_mask=first)), act(one_frame), atol=1e-5, rtol=0)


def test_explicit_attention_equals_the_fused_kernel() -> None:
    """On a CPU in bfloat16, gradients are those of explicit products; without them the kernel is fused."""
    torch.manual_seed(0)
    attention = Attention(32, 4)
    x = torch.randn(3, 9, 32)
    mask = torch.ones(9, 9).tril().bool()[None, None]
    whole = attention(x, mask)
    some = attention(x, mask[:, :, [2, 7]], queries=torch.tensor([2, 7]))
    torch.testing.assert_close(some, whole[:, [2, 7]], atol=1e-6, rtol=1e-5)
    small, x = attention.bfloat16(), x.bfloat16()
    with torch.no_grad():
        fused = small(x, mask)
    explicit = small(x, mask)
    for result in (fused, explicit):
        torch.testing.assert_close(result.float(), whole, atol=2e-2, rtol=2e-2)


def test_the_trajectory_head_never_sees_the_states_ahead() -> None:
    model = make_model(small_config())
    context = make_context(model, make_batch(model.config))
    packed = torch.zeros(3, 1, model.layout(context, with_frames=True, with_action=True).frame_length, 4)
    targets = Targets(packed=packed.long(), masked=None)
    ahead = replace(context, target_states=torch.randn(3, 1, 16))
    with torch.no_grad():
        (action, frames), (other_action, other_frames) = (
            model.predict(c, targets, with_actions=True) for c in (context, ahead)
        )
    assert action is not None and torch.equal(action, other_action)
    assert frames is not None and not torch.equal(frames, other_frames)


def test_states_are_shown_to_a_share_of_the_samples() -> None:
    model = make_model(small_config()).train()
    batch = make_batch(model.config, size=4000)
    batch["state_mask"][:1000] = False
    context, h = read_context(model, batch)
    torch.manual_seed(0)
    shown = _show_states(model, context, batch, h, (0.7, 0.7))
    assert shown.state_mask is not None and shown.target_state_mask is not None
    now, ahead = shown.state_mask[:, -1].float(), shown.target_state_mask[:, 0].float()
    assert now[:1000].sum() == ahead[:1000].sum() == 0
    for share, expected in ((now[1000:].mean(), 0.7), (ahead[1000:].mean(), 0.49)):
        assert abs(float(share) - expected) < 0.03
    assert not bool(((ahead == 1) & (now == 0)).any())
    assert shown.target_states is not None
    assert torch.equal(shown.target_states[1000:], batch["states"][1000:, h : h + 1])
    assert not shown.target_states[:1000].any()  # what is masked may be anything, NaN too
    assert _show_states(model.eval(), context, batch, h, (0.7, 0.7)) is context


def test_renamed_codes_keep_what_stands_still() -> None:
    codes = {"static": torch.randint(50, (64, 3, 24)), "gripper": torch.randint(50, (64, 3, 16))}
    codes["static"][:, 1] = codes["static"][:, 0]
    torch.manual_seed(0)
    assert all(torch.equal(permute_codes(codes, 50, 0.0)[c], codes[c]) for c in codes)
    renamed = permute_codes(codes, 50, 0.5)
    assert torch.equal(renamed["static"][:, 1], renamed["static"][:, 0])
    changed = (renamed["static"] != codes["static"]).flatten(1).float().mean(1)
    assert 0.3 < (changed == 0).float().mean() < 0.7 and changed.max() > 0.8
    for row in range(64):  # one new name for a code, in all frames and cameras
        new_names = {}
        for camera in codes:
            pairs = zip(codes[camera][row].flatten().tolist(), renamed[camera][row].flatten().tolist(), strict=True)
            for old, new in pairs:
                assert new_names.setdefault(old, new) == new


def test_codes_are_renamed_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(objectives, "permute_codes", lambda codes, *rest: asked.append(rest) or dict(codes))
    model = make_model(small_config(code_permutation=0.25))
    batch = make_batch(model.config)
    evaluation_metrics(model, batch, with_actions=False, with_frames=True)
    training_losses(model.eval(), batch, with_actions=False, with_frames=True)
    assert asked == []
    training_losses(model.train(), batch, with_actions=False, with_frames=True)
    assert asked == [(20, 0.25)]


def test_metrics_of_a_perfect_copy() -> None:
    model = make_model(small_config())
    batch = make_batch(model.config)
    batch["codes"] = {name: codes[:, :1].repeat(1, 3, 1) for name, codes in batch["codes"].items()}
    metrics = evaluation_metrics(model, batch, with_actions=True, with_frames=True)
    assert metrics["copy_accuracy"] == 1
    assert metrics["changed_accuracy"] == 0
    assert all(torch.isfinite(value) for value in metrics.values())


def test_changes_of_a_size_change_what_they_name_and_nothing_else() -> None:
    config = presets.size_s()
    assert ModelChanges().apply(config) == config
    changed = ModelChanges(decoding="raster", token_packing=4, dropout=0.0, code_permutation=0.5).apply(config)
    assert config.dropout > 0 and changed.dropout == 0
    assert changed == replace(config, decoding="raster", token_packing=4, dropout=0.0, code_permutation=0.5)
    with pytest.raises(ConfigError, match="divisible by p = 3"):
        ModelChanges(token_packing=3).apply(config)


def test_unusable_input_is_refused() -> None:
    model = make_model(small_config())
    with pytest.raises(ShapeError, match="target frames"):
        training_losses(model, make_batch(model.config, targets=0), with_actions=True, with_frames=True)
    with pytest.raises(ShapeError, match="text_id"):
        training_losses(
            model,
            make_batch(model.config) | {"text_id": torch.tensor([9, 0, 0])},
            with_actions=True,
            with_frames=False,
        )
    with pytest.raises(ShapeError, match="codebook"):
        WorldModel(small_config(), codebook=torch.zeros(3, 8))
    with pytest.raises(ConfigError, match="divisible by p = 4"):
        small_config(token_packing=4)
