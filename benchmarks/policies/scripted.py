"""The scripted expert behind the interface of a policy: the ceiling that a learned policy is compared with."""

from __future__ import annotations

import numpy as np

from ...contracts import ActionTrajectory, Observation
from ..demonstrations.expert_motion import ExpertStyle
from ..demonstrations.experts import act
from ..playtable.environment import CONTROL_HZ, PlayTable
from ..playtable.scenes import ROBOT_BASE
from ..playtable.world import World


class ScriptedPolicy:
    """Plans a chunk by letting the expert act in a simulator of its own; it reads the simulator's state, not images.

    The experts cannot read instructions: they do the task that was begun in the world.

    Args:
        env: the world it acts in.
        chunk_length: poses of a chunk.
    """

    executed_steps = 5
    uses_images = False

    def __init__(self, env: World, *, chunk_length: int = 10) -> None:
        self.env, self.chunk_length = env, chunk_length
        self.planning_env = PlayTable(env.spec_scene.name, calvin_root=env.calvin_root, render_mode=None)
        self.style = ExpertStyle()

    def reset(self) -> None:
        """Nothing is remembered from chunk to chunk."""

    def act(self, observation: Observation) -> ActionTrajectory:
        """Return the poses that the expert would command in the planning simulator."""
        self.planning_env.set_state(self.env.robot_obs(), self.env.scene_obs())
        positions, quaternions, gripper = [], [], []
        for _ in range(self.chunk_length):
            command = act(self.env.task, self.planning_env.world_state(), self.planning_env.spec_scene, self.style)
            positions.append(command[0] - ROBOT_BASE)
            quaternions.append(command[1])
            gripper.append(command[2])
            self.planning_env.step_pose(*command)
        return ActionTrajectory(
            positions=np.array(positions),
            quaternions=np.array(quaternions),
            gripper=np.array(gripper),
            dt=1 / CONTROL_HZ,
            start_time=observation.time,
        )

    def close(self) -> None:
        """Close the planning simulator."""
        self.planning_env.close()
