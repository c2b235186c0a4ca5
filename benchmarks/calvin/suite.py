"""CALVIN as a suite of test episodes: its simulators, starts, instructions and experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from ...contracts import Chunking, Policy
from ..playtable.cameras import CALVIN_PX, CameraConfig, Renderer
from ..playtable.environment import PlayTable
from ..playtable.instructions import Wording, evaluation_instructions
from ..playtable.tasks import ALL_TASKS
from ..playtable.world import World
from ..policies.scripted import ScriptedPolicy
from .episodes import chain_start, sequence_start, task_start
from .failures import TaskWatch
from .interface import CalvinModelPolicy, Interface
from .official import OfficialTable
from .sequences import official_sequences

ControlMode = Literal["wbc", "calvin"]
"""Our whole-body controller, or CALVIN's own control."""

Backend = Literal["gr2", "official"]

_CHUNK_LENGTH = 10
"""Poses that the experts plan where a control looks farther ahead than what it executes."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured; equal configurations and policies give equal results.

    weights: fingerprint of the policy, so that results of others are not resumed with; calvin_root: clone whose
    assets and instructions are used, or "" for ours; executed_steps: control steps of each chunk that are carried
    out, 0 for as many as the policy says; max_steps: time limit a task [1/30 s]; image_px: image side of both
    cameras [px], 0 for CALVIN's own; fast_drawing: light arm without shadows where CALVIN's files are used;
    backend: our simulator ("gr2") or the installed official one; latency: how long after its observation a chunk
    arrives [s]; chunking: how a chunk of a released model relates to the running one; wording: of the instructions;
    controller: fingerprint of our controller's settings, so that results under others are not resumed with;
    interface: how a policy of a user's file is called.
    """

    policy: str
    weights: str
    scene: str
    calvin_root: str
    executed_steps: int
    max_steps: int
    image_px: int
    renderer: Renderer
    fast_drawing: bool
    backend: Backend
    seed: int
    latency: float = 0.0
    chunking: Chunking = "independent"
    wording: Wording = "trained"
    controller: str = ""
    interface: Interface = "gr2"

    @property
    def root(self) -> Path | None:
        """The clone of CALVIN, None where ours is used."""
        return Path(self.calvin_root) if self.calvin_root else None

    def open_world(self) -> World:
        """Open the simulator of this backend."""
        static_px, gripper_px = (self.image_px, self.image_px) if self.image_px else CALVIN_PX
        camera = CameraConfig(
            static_px=static_px, gripper_px=gripper_px, fast=self.fast_drawing, renderer=self.renderer
        )
        if self.backend == "official":
            return OfficialTable(self.scene, camera=camera)
        return PlayTable(self.scene, camera=camera, calvin_root=self.root, render_mode=None)

    def open_suite(self) -> CalvinSuite:
        """Open the simulator with the test episodes of this seed."""
        return CalvinSuite(
            self.open_world(),
            seed=self.seed,
            instructions_root=self.root,
            wording=self.wording,
            interface=self.interface,
        )


class CalvinSuite:
    """CALVIN's test episodes in a simulator of its world.

    Args:
        world: the simulator; `close` closes it.
        seed: seed of the random starts.
        instructions_root: clone of CALVIN whose validation instructions are used; ours where it is None.
        wording: of our instructions.
        interface: how a policy of a user's file is called.
    """

    def __init__(
        self,
        world: World,
        *,
        seed: int,
        instructions_root: Path | None = None,
        wording: Wording = "trained",
        interface: Interface = "gr2",
    ) -> None:
        self.simulator, self.seed = world, seed
        self.adapt = partial(CalvinModelPolicy, world=world) if interface == "calvin" else None
        self._instructions = evaluation_instructions(instructions_root, wording)

    def start(self, kind: str, index: int) -> Sequence[str]:
        """Start the official sequence ("sequence") or chain of our own ("chain") of this index, or a task from a random
        start; return its tasks."""
        if kind == "sequence":
            sequence = official_sequences()[index]
            sequence_start(self.simulator, sequence)
            return sequence.tasks
        if kind == "chain":
            return chain_start(self.simulator, self.seed, index)[1]
        task_start(self.simulator, kind, self.seed, index)
        return [kind]

    def instruction(self, task: str) -> str:
        """Return the instruction of a task."""
        return self._instructions[task]

    def watch(self, task: str) -> TaskWatch:
        """Return what watches a task that begins now: the states that are judged after its steps."""
        world = self.simulator
        return TaskWatch(task, ALL_TASKS[task].family, world, look=lambda: world.judged)

    def expert(self, control: str, executed_steps: int) -> Policy:
        """Return the scripted policy; under CALVIN's control it plans no farther than what is executed."""
        length = _CHUNK_LENGTH if control == "wbc" else executed_steps
        return ScriptedPolicy(self.simulator, chunk_length=length)

    def close(self) -> None:
        """Close the simulator."""
        self.simulator.close()
