"""gr2's CALVIN for vla-eval: `gr2.benchmarks.calvin.vla_eval:CalvinBenchmark`, with the official initial scenes.

Observations and actions are those of vla-eval 0.8's own CALVIN, so its model servers drive it unchanged. Different are
the simulator (ours, without hydra and a data set) and the start of each sequence. vla-eval hashes the description of a
start as UTF-8, the official code as UTF-16-LE, and the hash seeds the places of the blocks. `vla_eval` is imported when
the class is first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from ...contracts import Array
from ...errors import ConfigError, EnvironmentMissing, PolicyError
from ..playtable.cameras import CALVIN_PX, CameraConfig, Renderer
from ..playtable.environment import PlayTable
from ..playtable.instructions import evaluation_instructions
from .episodes import sequence_start
from .interface import calvin_action
from .sequences import SEQUENCE_LENGTH, official_sequences

MAX_STEPS = 360
"""Control steps that a task may take."""

_IMAGE_PX = CALVIN_PX[0]


def __getattr__(name: str) -> Any:
    if name == "CalvinBenchmark":
        return _benchmark_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class CalvinChain:
    """A sequence of five tasks in vla-eval's terms: observations, actions and when a task is done.

    Args:
        calvin_root: clone of mees/calvin whose assets and instructions are used, ours without.
        renderer: tiny (CPU) or egl.
        absolute: whether actions are poses (xyz, axis-angle; a gripper above 0 closes) or are added to the pose last
            commanded (xyz, euler angles; above 0 opens).
        max_steps: control steps that a task may take.
    """

    def __init__(self, *, calvin_root: Path | None, renderer: Renderer, absolute: bool, max_steps: int) -> None:
        camera = CameraConfig(static_px=CALVIN_PX[0], gripper_px=CALVIN_PX[1], renderer=renderer)
        self.world = PlayTable("D", camera=camera, calvin_root=calvin_root, render_mode=None)
        self.absolute, self.max_steps = absolute, max_steps
        self._instructions = evaluation_instructions(calvin_root, "trained")
        self._commanded = np.zeros(6)

    def begin(self, index: int) -> None:
        """Start the official sequence of an index."""
        sequence = official_sequences()[index]
        sequence_start(self.world, sequence)
        self.tasks, self.completed, self.steps, self.restarted = sequence.tasks, 0, 0, False
        self._begin_task()

    def _begin_task(self) -> None:
        self.steps = 0
        self._commanded = self.world.robot_obs()[:6]
        self.world.begin(self.tasks[self.completed])

    @property
    def over(self) -> bool:
        """Whether all tasks are done, or the time of one is up."""
        return self.completed >= SEQUENCE_LENGTH or self.steps >= self.max_steps

    def step(self, action: Mapping[str, Any]) -> bool:
        """Carry out an action and return whether the present task was done by it.

        Raises:
            PolicyError: it is no action.
        """
        self.world.apply_action(self._pose(_seven(action)))
        self.steps += 1
        if not self.world.success():
            return False
        self.completed += 1
        if self.completed < SEQUENCE_LENGTH:
            self._begin_task()
            self.restarted = True
        return True

    def _pose(self, values: Array) -> Array:
        """Return the pose to be commanded, `[8]` as `World.apply_action` takes it; single precision, as there."""
        if self.absolute:
            pose = np.concatenate([values[:3], Rotation.from_rotvec(values[3:6]).as_euler("xyz"), -values[6:]])
            pose[6] = 1.0 if pose[6] >= 0 else -1.0
        else:
            pose = np.concatenate([self._commanded, [0.0]]) + values
            pose[3:6] = (pose[3:6] + np.pi) % (2 * np.pi) - np.pi
            pose[6] = 1.0 if pose[6] > 0 else -1.0
            self._commanded = pose[:6]
        single = pose.astype(np.float32).astype(float)
        return calvin_action((single[:3], single[3:6], single[6:]))

    def observe(self, *, wrist: bool, state: bool) -> dict[str, Any]:
        """Return the observation of a model server; after a task was done it says so once."""
        images = {"rgb_static": self.world.draw("static")}
        if wrist:
            small = Image.fromarray(self.world.draw("gripper"))
            images["rgb_gripper"] = np.asarray(small.resize((_IMAGE_PX, _IMAGE_PX), Image.Resampling.BILINEAR))
        task = self.tasks[min(self.completed, SEQUENCE_LENGTH - 1)]
        observation: dict[str, Any] = {"images": images, "task_description": self._instructions[task]}
        if state:
            seen = self.world.robot_obs()
            observation["states"] = np.concatenate([seen[:7], seen[14:15]]).astype(np.float32)
        if self.restarted:
            observation["episode_restart"], self.restarted = True, False
        return observation


def _seven(action: Mapping[str, Any]) -> Array:
    values = np.asarray(action.get("actions", action.get("action")), dtype=object)
    try:
        numbers = np.asarray(values, float).reshape(-1)[:7]
    except (TypeError, ValueError) as error:
        raise PolicyError(f"action: expected 7 numbers, got {values!r:.80}; check the model server.") from error
    if numbers.shape != (7,) or not np.all(np.isfinite(numbers)):
        raise PolicyError(f"action: expected 7 finite numbers, got {numbers!r:.120}; check the model server.")
    return numbers


class CalvinSequences:
    """The official 1000 sequences of CALVIN in gr2's simulator: the methods of a `StepBenchmark` of vla-eval.

    Args:
        num_sequences: how many, from the first.
        send_wrist_image: whether observations hold the gripper camera, enlarged to 200 px.
        send_state: whether they hold tool position, euler angles, finger width and last gripper action.
        absolute_action: whether actions are poses of the world.
        ep_len: control steps that a task may take, 360 if not given.
        calvin_root: clone of mees/calvin, for its assets and instructions; ours without.
        renderer: tiny or egl.
    """

    render_backends = frozenset({"gpu", "cpu"})
    _recorder: Any

    @classmethod
    def configure_render(cls, mode: str) -> dict[str, str]:
        """Return nothing: the renderer is chosen by a parameter."""
        return {}

    def __init__(
        self,
        num_sequences: int = 1000,
        send_wrist_image: bool = False,
        send_state: bool = False,
        absolute_action: bool = False,
        ep_len: int | None = None,
        calvin_root: str | None = None,
        renderer: Literal["tiny", "egl"] = "tiny",
    ) -> None:
        super().__init__()
        if not 1 <= num_sequences <= len(official_sequences()):
            raise ConfigError(f"num_sequences: expected 1 to 1000, got {num_sequences}; fix the number.")
        self.num_sequences, self.wrist, self.state = num_sequences, send_wrist_image, send_state
        self.chain = CalvinChain(
            calvin_root=None if calvin_root is None else Path(calvin_root), renderer=renderer,
            absolute=absolute_action, max_steps=ep_len or MAX_STEPS,
        )  # fmt: skip

    def cleanup(self) -> None:
        """Close the simulator."""
        self.chain.world.close()

    def get_tasks(self) -> list[dict[str, Any]]:
        """Return the sequences."""
        rows = enumerate(official_sequences()[: self.num_sequences])
        return [{"name": f"seq_{i:04d}", "seq_idx": i, "eval_sequence": list(row.tasks)} for i, row in rows]

    def reset(self, task: dict[str, Any]) -> None:
        """Start a sequence."""
        self.chain.begin(int(task["seq_idx"]))

    def step(self, action: Any) -> Any:
        """Carry out an action."""
        from vla_eval.benchmarks.base import StepResult

        chain, task = self.chain, self.chain.world.task
        done = chain.step(action)
        info = {"success": chain.completed >= SEQUENCE_LENGTH, "completed": chain.completed}
        self._recorder.record_step(
            reward=float(done), done=chain.over, success=info["success"], completed_subtasks=chain.completed,
            subtask=task,
        )  # fmt: skip
        return StepResult(obs=None, reward=float(done), done=chain.over, info=info)

    def make_obs(self, raw_obs: Any, task: dict[str, Any]) -> dict[str, Any]:
        """Return the observation of a model server."""
        observation = self.chain.observe(wrist=self.wrist, state=self.state)
        self._recorder.record_video(observation["images"]["rgb_static"])
        return observation

    def get_step_result(self, step_result: Any) -> dict[str, Any]:
        """Return how many tasks were done in a row."""
        completed = self.chain.completed
        return {"success": completed >= SEQUENCE_LENGTH, "completed_subtasks": completed}

    def get_metric_keys(self) -> dict[str, str]:
        """Return what is averaged over sequences."""
        return {"success": "mean", "completed_subtasks": "mean"}

    def get_metadata(self) -> dict[str, Any]:
        """Return the control steps that a sequence may take."""
        return {"max_steps": self.chain.max_steps * SEQUENCE_LENGTH}

    def get_hold_action(self, last_action: Any) -> Any:
        """Return the action that stays: the last pose, or no motion with the gripper as it is."""
        from vla_eval.benchmarks.base import repeat_last_hold

        if self.chain.absolute:
            return repeat_last_hold(last_action, 7)
        held = np.zeros(7)
        held[6] = 1.0 if last_action is None else _seven(last_action)[6]
        return {"actions": held}

    def get_action_spec(self) -> dict[str, Any]:
        """Return the columns of an action."""
        from vla_eval import specs

        if self.chain.absolute:
            kinds = (specs.POSITION_ABSOLUTE, specs.ROTATION_AA, specs.GRIPPER_CLOSE_POS)
        else:
            kinds = (specs.POSITION_DELTA, specs.ROTATION_EULER, specs.GRIPPER_CLOSE_NEG)
        return dict(zip(("position", "rotation", "gripper"), kinds, strict=True))

    def get_observation_spec(self) -> dict[str, Any]:
        """Return what an observation holds."""
        from vla_eval import specs

        spec = {"rgb_static": specs.IMAGE_RGB, "language": specs.LANGUAGE}
        spec |= {"rgb_gripper": specs.IMAGE_RGB} if self.wrist else {}
        return spec | ({"state": specs.STATE_EEF_POS_EULER_GRIP} if self.state else {})


@cache
def _benchmark_class() -> type:
    """Return the class that vla-eval finds.

    Raises:
        EnvironmentMissing: vla-eval is not installed.
    """
    try:
        from vla_eval.benchmarks.base import StepBenchmark
    except ImportError as error:
        raise EnvironmentMissing(
            f"gr2's CALVIN for vla-eval: expected the package vla-eval beside gr2, got {error}; pip install vla-eval."
        ) from error
    return type("CalvinBenchmark", (CalvinSequences, StepBenchmark), {"__doc__": CalvinSequences.__doc__})
