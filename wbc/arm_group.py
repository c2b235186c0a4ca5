"""Several arms on one clock, each followed by a controller of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..contracts import ControlTrajectory, JointCommand
from ..errors import ControlError
from .controller import WholeBodyController
from .other_arms import OtherArm
from .robot.transforms import Array
from .status import EMERGENCY_STOP, PROTECTIVE_STOP
from .stopping import STOP_SHARES
from .validation import REJECTED_ARM


class ArmGroup:
    """Routes trajectories by their `arm` to the controllers of several arms.

    Where `bases` say how they stand, the arms are kept clear of each other: by the `clearance` of each, at all times,
    also on the way on which the other one stops (`other_arms`). An arm that is earlier in `controllers` moves first,
    the later ones make way or hold. Without `bases` the arms do not see each other, and each controller knows the
    obstacles of its own scene only, in the base frame of its own robot.

    When one arm stops for protection or on request, all stop; `reset` releases all.

    controllers: by the name of the arm.
    """

    def __init__(
        self, controllers: Mapping[str, WholeBodyController], bases: Mapping[str, npt.ArrayLike] | None = None
    ) -> None:
        """Take over controllers by the names of their arms.

        Args:
            controllers: by the name of the arm.
            bases: `T_world_base` `[4 4]` of each arm, which maps its base frame to one that all share [m].

        Raises:
            ControlError: no controller, controllers whose ticks differ in duration, or bases that are no poses.
        """
        rates = {controller.config.tick_hz for controller in controllers.values()}
        if len(rates) != 1:
            raise ControlError(
                f"ArmGroup: expected one tick rate for all arms, got {sorted(rates)} Hz for {list(controllers)}; "
                "give every controller the same tick_hz."
            )
        self.controllers = dict(controllers)
        self._bases = None if bases is None else {arm: _pose(arm, bases.get(arm)) for arm in self.controllers}
        self._seen: dict[tuple[str, str], OtherArm] = {}

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
        for arm in self.controllers:
            self._show(arm)

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
        commands = {}
        for arm, controller in self.controllers.items():
            commands[arm] = controller.step(time, seen.get(arm))
            self._show(arm)
        stopped = [arm for arm, command in commands.items() if command.status in (EMERGENCY_STOP, PROTECTIVE_STOP)]
        if stopped and len(stopped) < len(commands):
            for arm in set(commands) - set(stopped):
                self.controllers[arm].emergency_stop()
        return commands

    def emergency_stop(self) -> None:
        """Brake every arm at its emergency acceleration; all stay stopped until `reset`."""
        for controller in self.controllers.values():
            controller.emergency_stop()

    def _show(self, arm: str) -> None:
        """Let all other arms know where this one may be."""
        if self._bases is None:
            return
        for other in self.controllers:
            if other == arm:
                continue
            seen = self._seen.get((other, arm))
            if seen is None or seen.num_capsules != self.controllers[arm].num_capsules:
                seen = self._lay_out(other, arm)
            self.controllers[arm].show(seen)

    def _lay_out(self, watcher: str, arm: str) -> OtherArm:
        """Make one arm watch another one, or watch it again once it has grasped something or let go of it."""
        assert self._bases is not None
        T_base_other = np.asarray(np.linalg.solve(self._bases[watcher], self._bases[arm]), np.float64)
        self._seen[watcher, arm] = OtherArm(T_base_other, self.controllers[arm].num_capsules, len(STOP_SHARES))
        self.controllers[watcher].watch([seen for (who, _), seen in self._seen.items() if who == watcher])
        return self._seen[watcher, arm]


def _pose(arm: str, given: npt.ArrayLike | None) -> Array:
    """Return the pose of a base as `[4 4]`.

    Raises:
        ControlError: none, or no pose.
    """
    pose = np.zeros(0) if given is None else np.array(given, dtype=np.float64)
    rigid = pose.shape == (4, 4) and np.all(np.isfinite(pose)) and np.allclose(pose[3], [0.0, 0.0, 0.0, 1.0])
    if not (rigid and np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6) and np.linalg.det(pose) > 0.0):
        raise ControlError(f"ArmGroup: expected for '{arm}' the pose of its base as [4 4], rigid, got {given!r}.")
    return pose
