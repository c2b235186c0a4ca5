"""A policy at work, as a rerun recording: what it saw, what the model had predicted, its chunks, and the controller."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...contracts import ActionTrajectory, Array, Observation, Policy, Trajectory
from ...errors import CheckpointError, ConfigError
from ...gr_model.act.opening import EXECUTED_STEPS, open_policy
from ...wbc.robot.kinematics import Kinematics
from ..calvin.suite import CalvinSuite, ControlMode
from ..playtable.cameras import CameraConfig
from ..playtable.environment import PlayTable
from ..playtable.tasks import task as find_task
from ..simulation.control import Control, WbcControl, make_control
from ..simulation.episodes import last_step, run_task
from ..simulation.fit import check_fit, embodiment_of
from .recording import Recording

if TYPE_CHECKING:
    from ..imagine.imagination import Imagination


class _Watched:
    """A policy whose observations and chunks are written down."""

    def __init__(self, policy: Policy, recording: Recording) -> None:
        self._policy, self._recording = policy, recording
        self.executed_steps = policy.executed_steps
        self.begins: Observation | None = None

    def reset(self) -> None:
        """Forget what was seen."""
        self._policy.reset()

    def act(self, observation: Observation) -> Trajectory:
        """Answer, and write down what was seen and answered."""
        if self.begins is None:
            self.begins = observation
        for name, image in observation.images.items():
            self._recording.image(f"real/{name}", image)
        chunk = self._policy.act(observation)
        if isinstance(chunk, ActionTrajectory):
            self._recording.path("robot/chunk", np.asarray(chunk.positions), chunk=True)
        return chunk

    def close(self) -> None:
        """Close the policy."""
        self._policy.close()


def record_rollout(
    policy: str, task: str, out: Path, *, scene: str, control: ControlMode, max_steps: int, image_size: int, seed: int
) -> str:
    """Let a policy do a task in the simulator and write the recording; return what it shows.

    The frames that the model predicts from the first observation stand beside the real ones at their times.
    """
    name = find_task(task).name
    camera = CameraConfig(static_px=image_size, gripper_px=image_size)
    with closing(CalvinSuite(PlayTable(scene, camera=camera, render_mode=None), seed=seed)) as suite:
        simulator = suite.simulator
        expert = partial(suite.expert, control, last_step(EXECUTED_STEPS, 0.0, simulator.control_hz))
        actor = open_policy(policy, expert=expert, embodiment=embodiment_of(simulator))
        check_fit(actor, simulator)
        rows = [[f"{kind}/{name}" for name in simulator.cameras] for kind in ("real", "predicted")]
        plots = ["joints", "margin", "tool"]
        with closing(actor), Recording(out, name=name, cameras=rows, plots=plots, spatial=True) as recording:
            watched = _Watched(actor, recording)
            suite.start(name, 0)
            mode = make_control(control, simulator)
            mode.reset()
            robot = _Robot(simulator, mode, recording)
            instruction = suite.instruction(name)
            recording.at(0.0)
            recording.words("instruction", instruction)
            result = run_task(
                simulator, watched, mode, name, instruction=instruction, max_steps=max_steps, watch=robot.see
            )
            recording.event("events", "done" if result.success else "time is up")
            if watched.begins is not None and (dream := _dream(policy)) is not None:
                _predict(dream, watched.begins, result.steps, simulator.control_hz, recording)
    return f"{instruction}: {'done' if result.success else 'not done'} after {result.steps} steps"


class _Robot:
    """Writes down the arm and the controller before every control step."""

    def __init__(self, simulator: Any, control: Control, recording: Recording) -> None:
        self._simulator, self._control, self._recording = simulator, control, recording
        self._kinematics, self._path = Kinematics(simulator.arm), list[Array]()
        self._status = ""

    def see(self, step: int) -> None:
        """Write down the state before a control step."""
        arm, recording = self._simulator.arm, self._recording
        recording.at(step / self._simulator.control_hz)
        joints, velocities = self._simulator.joint_state()
        recording.robot("robot/arm", arm, self._kinematics, joints)
        tool = self._kinematics.forward(joints).tool[:3, 3]
        self._path.append(tool)
        recording.path("robot/tool", np.stack(self._path))
        recording.numbers("joints", joints)
        margins = np.minimum(joints - arm.lower, arm.upper - joints)
        recording.numbers("margin/joint_limit_rad", [float(margins.min())])
        recording.numbers("margin/velocity_share", [1 - float((np.abs(velocities) / arm.velocity).max())])
        recording.numbers("tool", tool)
        if isinstance(self._control, WbcControl) and (status := self._control.controller.status) != self._status:
            self._status = status
            recording.event("events", f"controller: {status}")


def _dream(policy: str) -> Imagination | None:
    """Return the model of a policy as what predicts frames; None where it is no released model."""
    from ...gr_model.act.loading import assemble
    from ..imagine.imagination import Imagination

    try:
        return Imagination(assemble(policy))
    except (CheckpointError, ConfigError):  # no released model, or one that only acts
        return None


def _predict(dream: Imagination, first: Observation, steps: int, control_hz: float, recording: Recording) -> None:
    """Write down the frames that the model predicts after the first observation, by its own trajectory."""
    distance = dream.parts.release.frame_step
    images = {name: np.asarray(image)[None] for name, image in first.images.items()}
    futures = dream.futures(images, [first.instruction], max(1, -(-steps // distance)), first.state_vector()[None])
    for name, frames in futures.images.items():
        for number, frame in enumerate(frames[0], start=1):
            recording.at(number * distance / control_hz)
            recording.image(f"predicted/{name}", frame)
