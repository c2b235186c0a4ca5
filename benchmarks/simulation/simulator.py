"""What evaluation, rollouts and control need of a simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from ...contracts import Array, JointCommand, Observation
from ...embodiment import Embodiment
from ...wbc.robot.robots import RobotModel


class Simulator(Protocol):
    """A simulated robot among things, and the judge of its tasks.

    What moves it is stated by `PoseSimulator` (tool poses), `JointSimulator` (joints as well) or `SignalSimulator`
    (actions of any kind); it is one of them. A simulator may have three more members, which are looked up and may be
    absent: `embodiment`, the cameras and signals that a policy must fit (else those of `TOOL_ARM` with the cameras and
    the rate below), `extra_cameras`, which it can show beside `cameras` where a policy sees them; and
    `apply_action(values)`, which advances by one control step by an action in the simulator's own
    terms.
    """

    @property
    def name(self) -> str:
        """The simulator's name."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """The names of the cameras, which are those of the observations."""
        ...

    @property
    def control_hz(self) -> float:
        """Control steps a second; `apply` advances by one."""
        ...

    @property
    def task(self) -> str:
        """The task that was begun last."""
        ...

    def reset(self, *, options: Mapping[str, Any] | None = None) -> Any:
        """Start an episode; `options` describe the initial state in the simulator's own terms."""

    def begin(self, task: str) -> None:
        """Begin a task in the present state, by which its success is judged."""

    def success(self) -> bool:
        """Return whether the task that was begun last is done."""
        ...

    def observe(self, instruction: str, *, images: bool = True) -> Observation:
        """Return what a policy sees, in the robot base frame; without images where they are not wanted."""
        ...

    def draw(self, camera: str, *, px: int | None = None) -> Array:
        """Draw one camera: uint8 `[px px 3]`, at its own size unless another is asked for."""
        ...

    def close(self) -> None:
        """Release the simulator."""


class PoseSimulator(Simulator, Protocol):
    """A simulator whose robot is commanded by tool poses."""

    def apply(self, position: Array, quaternion: Array, gripper: float) -> None:
        """Advance by one control step towards a tool pose with the simulator's own control.

        Args:
            position: `[3]` [m], robot base frame.
            quaternion: `[4]` xyzw.
            gripper: opening, above 0.5 is open.
        """


@runtime_checkable
class SignalSimulator(Simulator, Protocol):
    """A simulator whose actions are the signals of its embodiment."""

    @property
    def embodiment(self) -> Embodiment:
        """The cameras, state and action signals and rate that a policy must fit."""
        ...

    def apply_action(self, values: Array) -> None:
        """Advance by one control step by an action `[a]` in the order of the embodiment's action signals."""

    def hold_action(self, last: Array | None) -> Array:
        """Return the action `[a]` that keeps the robot still after the action `last`, None right after a reset."""
        ...


@runtime_checkable
class JointSimulator(PoseSimulator, Protocol):
    """A simulator whose joints can be commanded, which our whole-body controller needs."""

    @property
    def joint_hz(self) -> float:
        """Joint commands a second, a multiple of `control_hz`."""
        ...

    @property
    def arm(self) -> RobotModel:
        """The simulated arm, its tool frame the one of the observations."""
        ...

    @property
    def gripper_command(self) -> float:
        """The last commanded opening."""
        ...

    def joint_state(self) -> tuple[Array, Array]:
        """Return measured positions `[j]` [rad] and velocities `[j]` [rad/s]."""
        ...

    def step_joints(self, commands: Sequence[JointCommand]) -> None:
        """Advance by one control step with `joint_hz / control_hz` joint commands."""
