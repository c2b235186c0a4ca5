"""The starts of CALVIN's test episodes: one task, five of our choice in a row, or an official sequence."""

from __future__ import annotations

import numpy as np

from ...errors import SimulationError
from ..demonstrations.expert_motion import ExpertStyle
from ..demonstrations.experts import act
from ..playtable.feasibility import feasible, sample_prerequisites
from ..playtable.robot import FINGER_OPEN
from ..playtable.sampling import sample_scene
from ..playtable.scenes import NEUTRAL_JOINTS
from ..playtable.tasks import ALL_TASKS, TASKS, task
from ..playtable.world import World
from .sequences import EvaluationSequence, initial_scene

CHAIN_LENGTH = 5


def neutral_robot(env: World) -> np.ndarray:
    """Return the `robot_obs` `[15]` of CALVIN's neutral pose with an open hand."""
    robot_obs = env.robot_obs()
    robot_obs[6], robot_obs[14] = 2 * FINGER_OPEN, 1.0
    robot_obs[7:14] = NEUTRAL_JOINTS
    return robot_obs


def start_state(env: World, scene_obs: np.ndarray) -> None:
    """Start a fresh world with the arm in the neutral pose and the scene `scene_obs` `[24]`."""
    env.reset(options={"robot_obs": neutral_robot(env), "scene_obs": scene_obs})


def _sample_start(env: World, rng: np.random.Generator) -> np.ndarray:
    """Sample a scene, put the world into it and return its `scene_obs`."""
    scene_obs = sample_scene(env.spec_scene, rng)
    env.set_state(neutral_robot(env), scene_obs)
    return scene_obs


def task_start(env: World, name: str, seed: int, index: int) -> np.ndarray:
    """Find a random scene in which a task can be begun, start the world in it and return its `scene_obs`.

    Where a block must be in the hand, on another one or in the drawer, the experts bring it there first.

    Raises:
        SimulationError: no such scene in 500 samples.
    """
    task(name)
    rng = np.random.default_rng([seed, _ORDER.index(name), index])
    for _ in range(500):
        before = sample_prerequisites(name, rng)
        scene_obs = _sample_start(env, rng)
        if not feasible(before[0] if before else name, env.world_state(), env.spec_scene):
            continue
        start_state(env, scene_obs)
        if all(demonstrate(env, earlier) for earlier in before) and feasible(name, env.world_state(), env.spec_scene):
            return scene_obs
    raise SimulationError(f"{name}: no feasible start in 500 samples in scene {env.spec_scene.name}; try another seed.")


_ORDER = [*TASKS, *(name for name in ALL_TASKS if name not in TASKS)]
"""The demonstrated tasks first: their starts stay what they were when others were added."""


def demonstrate(env: World, name: str, *, style: ExpertStyle | None = None, max_steps: int = 200) -> bool:
    """Let the scripted expert do a task from where the world is; return whether it succeeds."""
    start = state = env.world_state()
    if not feasible(name, state, env.spec_scene):
        return False
    for _ in range(max_steps):
        env.step_pose(*act(name, state, env.spec_scene, style or ExpertStyle()))
        state = env.world_state()
        if ALL_TASKS[name].done(start, state):
            return True
    return False


def chain_start(env: World, seed: int, index: int) -> tuple[np.ndarray, list[str]]:
    """Sample and start a scene, and five tasks of different families that can be done one after another from it."""
    rng = np.random.default_rng([seed, 1000, index])
    for _ in range(500):
        scene_obs = _sample_start(env, rng)
        state = env.world_state()
        if chain := _sample_chain([n for n in TASKS if feasible(n, state, env.spec_scene)], rng):
            start_state(env, scene_obs)
            return scene_obs, chain
    raise SimulationError(f"no feasible chain in 500 samples in scene {env.spec_scene.name}; try another seed.")


def _sample_chain(names: list[str], rng: np.random.Generator) -> list[str]:
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(TASKS[name].family, []).append(name)
    chosen: list[str] = []
    for family in rng.permutation(sorted(families)):
        used = {c.split("_")[1] for c in chosen if TASKS[c].family in ("push", "lift")}
        options = [n for n in families[family] if family not in ("push", "lift") or n.split("_")[1] not in used]
        if options:
            chosen.append(options[rng.integers(len(options))])
    return chosen[:CHAIN_LENGTH] if len(chosen) >= CHAIN_LENGTH else []


def sequence_start(env: World, sequence: EvaluationSequence) -> None:
    """Start an official sequence: neutral arm, blocks where its state has them; the places fit scene D alone.

    Raises:
        SimulationError: another scene.
    """
    if env.spec_scene.name != "D":
        raise SimulationError(
            f"Official sequences: expected scene D, got {env.spec_scene.name}; their block places fit no other."
        )
    start_state(env, initial_scene(dict(sequence.initial_state)))
