"""A policy's next chunk and its running one: seen from the new state, on the clock, for policies that act together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from model_cases import make_model, small_config
from robot_cases import SIX_JOINTS

from gr2.contracts import Observation
from gr2.cvae_head import kinds
from gr2.cvae_head.ensemble import TemporalEnsemble
from gr2.cvae_head.inpainting import soft_mask
from gr2.embodiment import TOOL_ARM
from gr2.errors import ConfigError, PolicyError
from gr2.gr_model.act.opening import policy_maker
from gr2.gr_model.act.policy import GR2Policy, act_together
from gr2.gr_model.model.config import CameraSpec

STEP = 1 / 30


def observe(time: float) -> Observation:
    rng = np.random.default_rng(round(1000 * time))
    quaternion = np.array([0.0, 0.0, 0.0, 1.0]) + 0.1 * rng.normal(size=4)
    return Observation(
        images={name: rng.integers(0, 255, (8, 8, 3), dtype=np.uint8) for name in ("static", "gripper")},
        tool_position=0.1 * rng.normal(size=3),
        tool_quaternion=quaternion / np.linalg.norm(quaternion),
        gripper_opening=1.0,
        gripper_command=1.0,
        joint_positions=np.zeros(7),
        instruction="go",
        time=time,
    )


def make_policy(head: str = "flow", **changes: Any) -> GR2Policy:
    config = kinds.small(head)  # type: ignore[arg-type]
    model = make_model(small_config(chunk_length=8, head=config))

    def encode_text(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((1, 6, 12)), np.array([[True, True, False, False, False, False]])

    return GR2Policy(model, encode_images=lambda images: images, encode_text=encode_text, control_hz=30.0, **changes)


@pytest.fixture(autouse=True)
def codes_without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image tokenizer is not what is tested here."""
    codes = {"static": np.zeros(24, np.int64), "gripper": np.ones(16, np.int64)}
    monkeypatch.setattr("gr2.gr_model.act.policy._encode_all", lambda policy, seen: [dict(codes) for _ in seen])


def test_the_rest_of_a_chunk_is_the_same_motion_seen_from_the_new_state() -> None:
    policy = make_policy(chunking="inpaint", latency=2 * STEP, executed_steps=3)
    assert policy.rest(observe(0.0)) is None
    first = policy.act(observe(0.0))
    later = observe(3 * STEP)
    rest = policy.rest(later)
    assert rest is not None
    chunk, weight = rest
    actions = policy.coding.decode(later.state_vector(), chunk)
    np.testing.assert_allclose(actions[:5, :3], first.positions[3:], atol=1e-6)
    np.testing.assert_allclose(np.abs((actions[:5, 3:7] * first.quaternions[3:]).sum(1)), 1.0, atol=1e-6)
    np.testing.assert_array_equal(actions[:5, 7], first.gripper[3:])
    np.testing.assert_array_equal(weight, soft_mask(8, frozen=2, overlap=5))
    assert policy.rest(observe(8 * STEP)) is None, "the running chunk is over"
    policy.reset()
    assert policy.rest(later) is None


def test_inpainted_chunks_meet_the_frozen_steps() -> None:
    jumps = {}
    for chunking in ("independent", "inpaint"):
        policy = make_policy(chunking=chunking, latency=2 * STEP, executed_steps=3)
        first, second = (policy.act(observe(t)) for t in (0.0, 3 * STEP))
        jumps[chunking] = np.abs(second.positions[:2] - first.positions[3:5]).max()
    assert jumps["inpaint"] < 0.05 < jumps["independent"], "an untrained velocity is near 0: the pull decides"


def test_policies_that_act_together_continue_each_its_own_chunk() -> None:
    times = (0.0, 3 * STEP)
    alone = make_policy(chunking="inpaint")
    expected = [alone.act(observe(t)) for t in times]
    begun, new = make_policy(chunking="inpaint"), make_policy(chunking="inpaint")
    begun.act(observe(times[0]))
    begun.model = new.model = alone.model
    found = act_together([new, begun], [observe(times[0]), observe(times[1])])
    again = act_together([begun, new], [observe(6 * STEP), observe(times[1])])
    np.testing.assert_allclose(found[0].positions, expected[0].positions, atol=1e-5)
    np.testing.assert_allclose(found[1].positions, expected[1].positions, atol=1e-4)
    np.testing.assert_allclose(again[1].positions, expected[1].positions, atol=1e-4)


def test_auto_is_what_the_head_can() -> None:
    assert make_policy("flow", chunking="auto").chunking == "inpaint"
    for head in ("cvae", "regression", "tokens"):
        policy = make_policy(head, chunking="auto")
        assert policy.chunking == "ensemble" and isinstance(policy.ensemble, TemporalEnsemble)
    plain = make_policy("cvae")
    assert plain.chunking == "independent" and plain.ensemble is None


def test_ensembled_chunks_are_averaged() -> None:
    plain, blended = make_policy("cvae"), make_policy("cvae", chunking="ensemble")
    times = (0.0, STEP)
    one, both = [plain.act(observe(t)) for t in times], [blended.act(observe(t)) for t in times]
    np.testing.assert_allclose(both[0].positions, one[0].positions)
    weights = np.exp(-0.01 * np.arange(2))
    mean = (weights[0] * one[0].positions[1:] + weights[1] * one[1].positions[:-1]) / weights.sum()
    np.testing.assert_allclose(both[1].positions[:-1], mean)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="to inpaint, got cvae; choose ensemble or auto"):
        make_policy("cvae", chunking="inpaint")
    with pytest.raises(ConfigError, match="expected one of independent, ensemble, inpaint, auto, got 'smooth'"):
        make_policy("flow", chunking="smooth")
    with pytest.raises(ConfigError, match="expected none beside inpainted chunks"):
        make_policy("flow", chunking="inpaint", ensemble=TemporalEnsemble())
    for latency in (-0.1, 8 * STEP, float("nan")):
        with pytest.raises(ConfigError, match=r"expected 0 to below 0.267 s \(the chunk\)"):
            make_policy("flow", latency=latency)
    for source in ("scripted", "http://127.0.0.1:9", "some.module:Policy"):
        with pytest.raises(PolicyError, match="--chunking auto: expected a released model here, got --policy"):
            policy_maker(source, chunking="auto", expert=lambda: None)  # type: ignore[arg-type,return-value]
    policy = make_policy("cvae")
    policy._running = (policy.coding.decode(observe(0.0).state_vector(), np.zeros((8, 7))), 0.0)
    with pytest.raises(ConfigError, match="expected no running chunk for the head cvae"):
        policy.act(observe(0.0))


def test_a_robot_of_several_continues_its_own_chunk() -> None:
    cameras = tuple(CameraSpec(name=name, grid=(4, 4)) for name in (*TOOL_ARM.cameras, *SIX_JOINTS.cameras))
    config = small_config(cameras=cameras, embodiments=(TOOL_ARM, SIX_JOINTS), head=kinds.small("flow"))
    model = make_model(config)
    for number, robot in enumerate((TOOL_ARM, SIX_JOINTS)):
        policy = GR2Policy(
            model, encode_images=lambda images: images, encode_text=lambda text: (np.ones(1), np.ones(1)),
            control_hz=30.0, chunking="inpaint", embodiment=robot,
        )  # fmt: skip
        state = np.full(robot.state_dim, 0.5)
        seen = [Observation(images={}, instruction="", time=t, state=state) for t in (0.0, STEP)]
        chunk = config.slots.put(np.random.default_rng(0).random((5, policy.coding.width)).round(2), number)
        policy.place(chunk, seen[0])
        rest = policy.rest(seen[1])
        assert rest is not None and rest[0].shape == chunk.shape
        actions = [policy.coding.decode(state, config.slots.own(rows, number)) for rows in (chunk, rest[0])]
        np.testing.assert_allclose(actions[1][:4], actions[0][1:], atol=1e-6)
