"""Forward kinematics, Jacobian and manipulability of a serial arm, in numpy fast enough for a 200 Hz loop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .robots import RobotModel
from .transforms import Array, hat, matrix_from_rpy, pose_matrix

SINGULAR, BEND = 1e-4, 0.05
"""Manipulability below which a posture is singular, and how far a joint is bent to leave it [rad]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmPose:
    """Where everything is at one joint vector, or at many along a leading axis; all in the base frame.

    frames: `[j+1 4 4]` poses of the links, the base first.
    tool: `[4 4]` pose of the tool, `T_base_tool`.
    axes: `[j 3]` joint axes; moments: `[j 3]` velocity at the base origin for a unit speed of each joint [m].
    jacobian: `[6 j]` maps joint velocities [rad/s] to the tool's `[v; w]` [m/s, rad/s], in base axes at the
        tool point.
    """

    frames: Array
    tool: Array
    axes: Array
    moments: Array
    jacobian: Array


def cross(a: Array, b: Array) -> Array:
    """Return the cross products along the last axis of `[... 3]`; several times quicker than `np.cross`."""
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    first = ay * bz - az * by
    product = np.empty((*first.shape, 3))
    product[..., 0] = first
    product[..., 1] = az * bx - ax * bz
    product[..., 2] = ax * by - ay * bx
    return product


class Kinematics:
    """Kinematics of one robot model."""

    def __init__(self, robot: RobotModel) -> None:
        """Precompute the constant joint frames of `robot`."""
        self.robot = robot
        origins = [
            pose_matrix(p, matrix_from_rpy(a)) for p, a in zip(robot.joint_positions, robot.joint_rpys, strict=True)
        ]
        self._origins = np.stack(origins)
        self._origins_x = self._origins[:, :, 0].copy()
        self._origins_y = self._origins[:, :, 1].copy()
        self._tool = pose_matrix(robot.tool_position, matrix_from_rpy(robot.tool_rpy))
        order = np.arange(robot.num_joints)
        self._earlier, self._later = np.minimum.outer(order, order), np.maximum.outer(order, order)
        self._before = (order[:, None] < order[None, :])[..., None].astype(np.float64)

    def forward(self, q: Array) -> ArmPose:
        """Place every link and the tool at joint positions `q` `[j]` [rad]."""
        cosine, sine = np.cos(q)[:, None], np.sin(q)[:, None]
        local = self._origins.copy()
        local[:, :, 0] = cosine * self._origins_x + sine * self._origins_y
        local[:, :, 1] = cosine * self._origins_y - sine * self._origins_x
        frames = np.empty((len(q) + 1, 4, 4))
        frame = frames[0] = np.eye(4)
        for index in range(len(q)):
            frame = np.dot(frame, local[index], out=frames[index + 1])
        tool = np.dot(frame, self._tool)
        axes = frames[1:, :3, 2]
        moments = cross(frames[1:, :3, 3], axes)
        jacobian = np.empty((6, len(q)))
        jacobian[:3] = (moments + axes @ hat(tool[:3, 3])).T
        jacobian[3:] = axes.T
        return ArmPose(frames=frames, tool=tool, axes=axes, moments=moments, jacobian=jacobian)

    def forward_many(self, q: Array, *, jacobians: bool = True) -> ArmPose:
        """Place every link and the tool at many joint vectors `q` `[m j]` [rad] at once.

        Without `jacobians` these are left empty, which is quicker where only places matter.
        """
        count, joints = q.shape
        cosine, sine = np.cos(q)[..., None], np.sin(q)[..., None]
        local = np.empty((count, joints, 4, 4))
        local[:] = self._origins
        local[..., 0] = cosine * self._origins_x + sine * self._origins_y
        local[..., 1] = cosine * self._origins_y - sine * self._origins_x
        frames = np.empty((count, joints + 1, 4, 4))
        frames[:, 0] = np.eye(4)
        for index in range(joints):
            np.matmul(frames[:, index], local[:, index], out=frames[:, index + 1])
        tool = frames[:, -1] @ self._tool
        axes = frames[:, 1:, :3, 2]
        moments = cross(frames[:, 1:, :3, 3], axes)
        jacobian = np.empty((count, 6, joints) if jacobians else (0, 6, joints))
        if not jacobians:
            return ArmPose(frames=frames, tool=tool, axes=axes, moments=moments, jacobian=jacobian)
        jacobian[:, :3] = (moments + cross(axes, tool[:, None, :3, 3])).transpose(0, 2, 1)
        jacobian[:, 3:] = axes.transpose(0, 2, 1)
        return ArmPose(frames=frames, tool=tool, axes=axes, moments=moments, jacobian=jacobian)

    def jacobian_derivatives(self, jacobian: Array) -> Array:
        """Return `[... j 6 j]`: entry i is the derivative of `jacobian` `[... 6 j]` by joint i [1/rad].

        For joints i and m the linear part is `w_a x v_b` with a the earlier and b the later of the two, and
        the angular part is `w_i x w_m` where i comes before m, else zero.
        """
        columns = np.moveaxis(jacobian, -1, -2)
        v, w = columns[..., :3], columns[..., 3:]
        linear = cross(w[..., self._earlier, :], v[..., self._later, :])
        angular = cross(w[..., :, None, :], w[..., None, :, :]) * self._before
        return np.moveaxis(np.concatenate([linear, angular], axis=-1), -1, -2)

    def manipulability_gradient(self, jacobian: Array) -> tuple[float, Array]:
        """Return `m = sqrt(det(J J'))` and its gradient `[j]` [1/rad]; zero gradient at an exact singularity."""
        measures, gradients = self.manipulability_gradients(jacobian[None])
        return float(measures[0]), gradients[0]

    def manipulability_gradients(self, jacobians: Array) -> tuple[Array, Array]:
        """Return the measures `[m]` and gradients `[m j]` [1/rad] of many Jacobians `[m 6 j]`.

        Source: T. Yoshikawa 1985; the gradient is `m tr((J J')^-1 dJ/dq_i J')`.
        """
        square = jacobians @ np.moveaxis(jacobians, -1, -2)
        measures = _measures(square)
        regular = measures > 1e-9
        square = np.where(regular[:, None, None], square, np.eye(6))
        pseudo_inverses = np.linalg.solve(square, jacobians)
        derivatives = self.jacobian_derivatives(jacobians)
        slopes = np.matmul(
            derivatives.reshape(*derivatives.shape[:2], -1), pseudo_inverses.reshape(len(jacobians), -1, 1)
        )[..., 0]
        return measures, slopes * np.where(regular, measures, 0.0)[:, None]


def _measures(squares: Array) -> Array:
    return np.sqrt(np.maximum(np.linalg.det(squares), 0.0))


def manipulabilities(jacobians: Array) -> Array:
    """Return Yoshikawa's measures `[m]` of many Jacobians `[m 6 j]`."""
    return _measures(jacobians @ np.moveaxis(jacobians, -1, -2))


def manipulability(jacobian: Array) -> float:
    """Return Yoshikawa's measure `sqrt(det(J J'))` of a Jacobian `[6 j]`; 0 at a singularity."""
    return math.sqrt(max(float(np.linalg.det(jacobian @ jacobian.T)), 0.0))


def away_from_singularity(kinematics: Kinematics, q: Array, lower: Array, upper: Array) -> Array:
    """Return joints `[j]` [rad] to begin a search from: `q` or, where that is singular, with the best joint bent.

    At an exact singularity no small motion of the joints helps, so that a search from there would not begin to move.
    An arm with fewer than six joints is left as it is: its measure is always 0.

    Args:
        kinematics: of the arm; q: `[j]` [rad].
        lower, upper: `[j]` limits that the bent joint keeps [rad].
    """
    if len(q) < 6 or kinematics.manipulability_gradient(kinematics.forward(q).jacobian)[0] > SINGULAR:
        return q
    tried = q + BEND * np.concatenate([np.eye(len(q)), -np.eye(len(q))])
    measures, _ = kinematics.manipulability_gradients(kinematics.forward_many(tried).jacobian)
    inside = np.all((tried >= lower) & (tried <= upper), axis=1)
    bent: Array = tried[int(np.where(inside, measures, -1.0).argmax())]
    return bent
