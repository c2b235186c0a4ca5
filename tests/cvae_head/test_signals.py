"""Signals of any robot: rotations of every convention, features, chunks, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gr2.contracts import ActionTrajectory, JointTrajectory, SignalTrajectory
from gr2.cvae_head.rotations import from_quaternion, to_quaternion
from gr2.cvae_head.signals import SignalCoding, coding_of, place_chunk
from gr2.embodiment import TOOL_ARM, Embodiment, Signal
from gr2.errors import ShapeError

CONVENTIONS = ("quaternion_xyzw", "quaternion_wxyz", "rotation_vector", "rotation_6d", "matrix",
               "euler_xyz", "euler_ZYX", "euler_XYZ", "euler_zyz")  # fmt: skip
JOINTS = (
    Signal(name="joint_positions", width=5, kind="joint_position"),
    Signal(name="gripper", width=1, kind="gripper", binary=False),
)
ARM = Embodiment(name="so101", state=JOINTS, action=JOINTS, control_hz=30)
EULER = Embodiment(
    name="bridge",
    state=(
        Signal(name="tool_position", width=3, kind="position"),
        Signal(name="tool_rotation", width=3, kind="rotation", rotation="euler_xyz"),
        Signal(name="gripper", width=1, kind="gripper"),
    ),
    action=(
        Signal(name="tool_position", width=3, kind="position"),
        Signal(name="tool_rotation", width=4, kind="rotation", rotation="quaternion_wxyz"),
        Signal(name="gripper", width=1, kind="gripper", binary=True),
    ),
    control_hz=5,
)
DELTA = Embodiment(
    name="delta",
    state=EULER.state,
    action=(
        Signal(name="tool_position", width=3, kind="position", reference="delta"),
        Signal(name="tool_rotation", width=3, kind="rotation", rotation="euler_xyz", reference="delta"),
        Signal(name="elbow", width=6, kind="rotation", rotation="rotation_6d"),
        Signal(name="base", width=2, kind="base_velocity"),
    ),
    control_hz=10,
)


def turns(count: int, seed: int = 0) -> np.ndarray:
    quaternions: np.ndarray = Rotation.random(count, random_state=seed).as_quat()
    return quaternions


def numbers(signals: tuple[Signal, ...], count: int, seed: int) -> np.ndarray:
    """Random numbers of signals, rotations valid."""
    rng = np.random.default_rng(seed)
    parts = []
    for i, signal in enumerate(signals):
        if signal.kind == "rotation":
            parts.append(from_quaternion(turns(count, seed + i), signal.rotation))
        elif signal.binary:
            parts.append(rng.integers(0, 2, (count, signal.width)).astype(float))
        else:
            parts.append(rng.normal(size=(count, signal.width)))
    return np.concatenate(parts, axis=-1)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_rotations_come_back_from_every_convention(convention: str) -> None:
    q = turns(200)
    stored = from_quaternion(q, convention)
    for read in (to_quaternion(stored, convention), to_quaternion(torch.tensor(stored), convention).numpy()):
        np.testing.assert_allclose(np.abs((read * q).sum(-1)), 1, atol=1e-12)


def test_the_usual_arm_is_coded_as_in_the_first_release() -> None:
    """Distance, rotation vector of `R_target R_current^T` and gripper; columns of the rotation matrix as features."""
    states, actions = numbers(TOOL_ARM.state, 20, 1), numbers(TOOL_ARM.action, 60, 2).reshape(20, 3, 8)
    coding = coding_of(TOOL_ARM)
    assert (coding.num_features, coding.width, coding.shape(3).binary) == (11, 7, (6,))
    columns = Rotation.from_quat(states[:, 3:7]).as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(20, 6)
    features = np.concatenate([states[:, :3], columns, states[:, 7:9]], axis=1)
    np.testing.assert_allclose(coding.features(states), features, atol=1e-12)
    with_joints = np.concatenate([features, states[:, 9:]], axis=1)
    np.testing.assert_allclose(coding_of(TOOL_ARM, True).features(states), with_joints, atol=1e-12)
    chunk = coding.encode(states, actions)
    for i, j in np.ndindex(20, 3):
        turn = Rotation.from_quat(actions[i, j, 3:7]) * Rotation.from_quat(states[i, 3:7]).inv()
        np.testing.assert_allclose(chunk[i, j, 3:6], turn.as_rotvec(), atol=1e-9)
    np.testing.assert_allclose(chunk[..., :3], actions[..., :3] - states[:, None, :3])
    np.testing.assert_array_equal(chunk[..., 6], actions[..., 7])
    after = coding.after(states, chunk, 2)
    np.testing.assert_allclose(after[:, :3], actions[:, 1, :3], atol=1e-12)
    np.testing.assert_allclose(np.abs((after[:, 3:7] * actions[:, 1, 3:7]).sum(-1)), 1, atol=1e-12)
    np.testing.assert_allclose(after[:, 7], 0.5 * (states[:, 7] + actions[:, 1, 7]), atol=1e-12)
    np.testing.assert_array_equal(after[:, 8:], np.concatenate([actions[:, 1, 7:], states[:, 9:]], axis=1))
    assert coding.read_columns == tuple(range(9))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 1e-3, 1.0, np.pi - 1e-6])
def test_rotation_of_any_size_survives(angle: float) -> None:
    state, action = np.zeros(16), np.zeros((1, 8))
    state[6] = 1
    action[0, 3:7] = Rotation.from_rotvec([0, angle, 0]).as_quat()
    chunk = coding_of(TOOL_ARM).encode(state, action)
    np.testing.assert_allclose(chunk[0, 3:6], [0, angle, 0], rtol=1e-6, atol=1e-12)


def test_signs_of_quaternions_do_not_matter() -> None:
    states, actions = numbers(TOOL_ARM.state, 50, 5), numbers(TOOL_ARM.action, 100, 6).reshape(50, 2, 8)
    flipped_states, flipped_actions = states.copy(), actions.copy()
    flipped_states[:, 3:7] *= -1
    flipped_actions[..., 3:7] *= -1
    coding = coding_of(TOOL_ARM)
    np.testing.assert_allclose(coding.features(states), coding.features(flipped_states))
    flipped = coding.encode(flipped_states, flipped_actions)
    np.testing.assert_allclose(coding.encode(states, actions), flipped, atol=1e-9)


def test_a_placed_chunk_gives_the_tool_poses_back() -> None:
    states, actions = numbers(TOOL_ARM.state, 10, 7), numbers(TOOL_ARM.action, 40, 8).reshape(10, 4, 8)
    coding = coding_of(TOOL_ARM)
    for state, action in zip(states, actions, strict=True):
        trajectory = place_chunk(coding, coding.encode(state, action), state, dt=1 / 30, start_time=2.0)
        assert isinstance(trajectory, ActionTrajectory) and trajectory.start_time == 2.0
        np.testing.assert_allclose(trajectory.positions, action[:, :3], atol=1e-6)
        np.testing.assert_allclose(np.abs((trajectory.quaternions * action[:, 3:7]).sum(-1)), 1, atol=1e-6)
        np.testing.assert_array_equal(trajectory.gripper, action[:, 7])


@pytest.mark.parametrize("robot", [TOOL_ARM, ARM, EULER, DELTA], ids=lambda robot: robot.name)
def test_chunks_give_the_actions_back(robot: Embodiment) -> None:
    coding = SignalCoding(robot)
    states = numbers(robot.state, 20, 3)
    actions = numbers(robot.action, 80, 4).reshape(20, 4, -1)
    chunk = coding.encode(states, actions)
    assert chunk.shape == (20, 4, coding.width)
    back = coding.decode(states, chunk)
    for signal, at in zip(robot.action, robot.action_slices().values(), strict=True):
        ours, theirs = back[..., at], actions[..., at]
        if signal.kind == "rotation":
            ours, theirs = (to_quaternion(values, signal.rotation) for values in (ours, theirs))
            np.testing.assert_allclose(np.abs((ours * theirs).sum(-1)), 1, atol=1e-9)
        else:
            np.testing.assert_allclose(ours, theirs, atol=1e-9)
    torch_chunk = coding.encode(torch.tensor(states), torch.tensor(actions))
    np.testing.assert_allclose(torch_chunk.numpy(), chunk, atol=1e-9)


def test_what_is_measured_is_learned_from_where_it_is() -> None:
    coding = SignalCoding(ARM)
    states = numbers(ARM.state, 5, 0)
    still = np.repeat(states[:, None], 3, axis=1)
    chunk = coding.encode(states, still)
    np.testing.assert_allclose(chunk[..., :5], 0, atol=1e-12)
    np.testing.assert_allclose(chunk[..., 5], still[..., 5])  # a gripper is learned as it is
    assert [part.rule for part in SignalCoding(EULER).parts] == ["distance", "turn", "binary"]
    assert [part.rule for part in SignalCoding(DELTA).parts] == ["plain", "step_turn", "rotation", "plain"]
    assert SignalCoding(DELTA).shape(2).width == 3 + 3 + 6 + 2


def test_a_trajectory_has_the_form_and_the_clock_of_its_robot() -> None:
    state = numbers(EULER.state, 1, 0)[0]
    action = numbers(EULER.action, 4, 1)
    coding = SignalCoding(EULER)
    placed = place_chunk(coding, coding.encode(state, action), state, dt=0.2, start_time=1.0)
    assert isinstance(placed, ActionTrajectory) and placed.dt == 0.2
    np.testing.assert_allclose(placed.positions, action[:, :3], atol=1e-9)
    known = to_quaternion(action[:, 3:7], "quaternion_wxyz")
    np.testing.assert_allclose(np.abs((placed.quaternions * known).sum(-1)), 1, atol=1e-9)
    np.testing.assert_array_equal(placed.gripper, action[:, 7])
    joints = place_chunk(SignalCoding(ARM), np.zeros((4, 6)), np.ones(6), dt=0.1, start_time=0.0)
    assert isinstance(joints, JointTrajectory) and joints.gripper is not None
    np.testing.assert_allclose(joints.positions, 1)
    other = place_chunk(SignalCoding(DELTA), np.zeros((4, 14)) + 0.5, np.zeros(7), dt=0.1, start_time=0.0)
    assert isinstance(other, SignalTrajectory) and other.values.shape == (4, 14)


def test_numbers_of_another_robot_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"state: expected a last axis of 6, got shape \(7,\)"):
        SignalCoding(ARM).encode(np.zeros(7), np.zeros((2, 6)))
    with pytest.raises(ShapeError, match="actions: expected a last axis of 6"):
        SignalCoding(ARM).encode(np.zeros(6), np.zeros((2, 7)))
