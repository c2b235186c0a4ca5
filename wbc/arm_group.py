"""Several arms on one clock, each followed by a controller of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy.typing as npt

from ..contracts import ControlTrajectory, JointCommand
from ..errors import ControlError
from .controller import WholeBodyController
from .status import EMERGENCY_STOP, PROTECTIVE_STOP
from .validation import REJECTED_ARM


class ArmGroup:
    """Routes trajectories by their `arm` to the controllers of several arms.

    The arms are NOT kept clear of each other: each controller knows its own links and the obstacles of its own scene,
    in the base frame of its own robot. Give each a workspace that the others stay out of, or hand one arm to another
    as obstacles by `update_scene`. When one arm stops for protection or on request, all stop; `reset` releases all.

    controllers: by the name of the arm.
    """

    def __init__(self, controllers: Mapping[str, WholeBodyController]) -> None:
        """Take over controllers by the names of their arms.

        Raises:
            ControlError: no controller, or controllers whose ticks differ in duration.
        """
        rates = {controller.config.tick_hz for controller in controllers.values()}
        if len(rates) != 1:
            raise ControlError(
                f"ArmGroup: expected one tick rate for all arms, got {sorted(rates)} Hz for {list(controllers)}; "
                "give every controller the same tick_hz."
            )
        self.controllers = dict(controllers)

    def reset(self, joint_positions: Mapping[str, npt.ArrayLike], gripper: Mapping[str, float], time: float) -> None:
        """Start every arm from its measured state, at rest; also releases a stop.

        Args:
            joint_positions: `[j]` measured [rad], by arm.
            gripper: measured opening, 0 to 1, by arm.
            time: [s].

        Raises:
            ControlError: an arm without a state, or one that cannot start from it.
        """
        missing = [arm for arm in self.controllers if arm not in joint_positions or arm not in gripper]
        if missing:
            raise ControlError(
                f"reset: expected joints and a gripper for {list(self.controllers)}, got none for {missing}."
            )
        for arm, controller in self.controllers.items():
            controller.reset(joint_positions[arm], gripper[arm], time)

    def accept(self, trajectory: ControlTrajectory) -> str:
        """Hand a chunk to the controller of its arm; return what became of it, `rejected_arm` where there is none."""
        arm = getattr(trajectory, "arm", None)
        if not isinstance(arm, str) or arm not in self.controllers:
            return REJECTED_ARM
        return self.controllers[arm].accept(trajectory)

    def step(self, time: float, measured: Mapping[str, npt.ArrayLike] | None = None) -> dict[str, JointCommand]:
        """Compute the command of every arm for the end of the tick that begins at `time` [s].

        Args:
            time: [s].
            measured: `[j]` measured joints [rad] of the arms that have them, as for the controller of one arm.
        """
        seen = {} if measured is None else measured
        commands = {arm: controller.step(time, seen.get(arm)) for arm, controller in self.controllers.items()}
        stopped = [arm for arm, command in commands.items() if command.status in (EMERGENCY_STOP, PROTECTIVE_STOP)]
        if stopped and len(stopped) < len(commands):
            for arm in set(commands) - set(stopped):
                self.controllers[arm].emergency_stop()
        return commands

    def emergency_stop(self) -> None:
        """Brake every arm at its emergency acceleration; all stay stopped until `reset`."""
        for controller in self.controllers.values():
            controller.emergency_stop()
