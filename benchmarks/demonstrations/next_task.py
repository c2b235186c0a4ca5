"""Which task a demonstration is of: what can be begun where the world is, or what the scene is arranged for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..playtable.environment import PlayTable
from ..playtable.feasibility import drawer_is_open, feasible, prerequisites, sample_prerequisites
from ..playtable.robot import FINGER_OPEN
from ..playtable.sampling import sample_joints, sample_scene
from ..playtable.tasks import ALL_TASKS, COLORS

_TASK_WEIGHT = {"drawer": 1.0, "slider": 1.0, "lightbulb": 1.0, "led": 1.0, "push": 5.0, "lift": 3.0,
                "rotate": 2.0, "push_into": 2.0, "unstack": 6.0, "place": 8.0, "stack": 8.0}  # fmt: skip
"""How often a family is sampled. Few states allow a push, and what can be done with a block in the hand only then."""

_DEAL_WEIGHT = {"drawer": 3.0, "slider": 4.0, "lightbulb": 2.5, "led": 2.5, "push": 3.0, "lift": 2.0,
                "rotate": 2.5, "push_into": 4.0, "unstack": 4.0, "place": 2.0, "stack": 4.0}  # fmt: skip
"""The same where a scene is arranged for a task and for what the experts do before it, which is lifting mostly."""

_NEEDS_BLOCK_IN_HAND = ("place", "stack")
_DEAL_SHARE = 0.5
"""How often the scene is arranged again before a skill, for a task sampled by its weight; few states allow a push."""


def emphasis_of(results: Path) -> dict[str, float]:
    """Return a factor for the weight of each task: its failure rate in a `results.json` of `gr2 benchmark calvin`, over
    all controls, plus `LEAST_EMPHASIS`. Tasks that were not tried are taken to fail as often as not.

    Raises:
        DataError: no such results.
    """
    try:
        controls = json.loads(results.read_text())["controls"].values()
        rows = [row for c in controls for kind in ("tasks", "attempts") for row in c[kind].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{results}: expected results.json of `gr2 benchmark calvin`, got another file.") from error
    done, tried = Counter[str](), Counter[str]()
    for task, row in rows:
        done[task] += row["success"]
        tried[task] += row["total"]
    return {name: LEAST_EMPHASIS + (1 - done[name] / tried[name] if tried[name] else 0.5) for name in ALL_TASKS}


LEAST_EMPHASIS = 0.2
"""Factor of a task that never fails."""


def _sample_task(
    names: Sequence[str],
    rng: np.random.Generator,
    family_weight: Mapping[str, float],
    emphasis: Mapping[str, float],
) -> str:
    weights = np.array([family_weight[ALL_TASKS[name].family] * emphasis.get(name, 1.0) for name in names])
    return names[rng.choice(len(names), p=weights / weights.sum())]


def choose_next(
    env: PlayTable,
    names: Sequence[str],
    previous: str | None,
    rng: np.random.Generator,
    emphasis: Mapping[str, float],
) -> str | None:
    """Sample a task that can be begun from where the world is, other than the one before."""
    state, spec = env.world_state(), env.spec_scene
    names = [n for n in names if n != previous and feasible(n, state, spec)]
    return _sample_task(names, rng, _TASK_WEIGHT, emphasis) if names else None


def dealable(names: Sequence[str]) -> list[str]:
    """Return the tasks for which a scene can be arranged: what must be done before them is among `names`, too."""
    return [name for name in names if all(set(prerequisites(name, color)) <= set(names) for color in COLORS)]


def deal(
    env: PlayTable,
    names: Sequence[str],
    rng: np.random.Generator,
    *,
    keep_arm: bool,
    emphasis: Mapping[str, float],
) -> list[str]:
    """Sample a task by its weight, put the scene into a state in which it can be begun, and return the task, after
    those that the experts must do before it.

    Args:
        names: of which `dealable` leaves some.
        keep_arm: whether the arm stays where it is.
        emphasis: factors of the tasks' weights, 1 where a task has none.
    """
    names = dealable(names)
    weights = _DEAL_WEIGHT if any(prerequisites(name, COLORS[0]) for name in names) else _TASK_WEIGHT
    spec, robot_obs = env.spec_scene, env.robot_obs()
    if not keep_arm:
        robot_obs[6], robot_obs[14] = 2 * FINGER_OPEN, 1.0
        robot_obs[7:14] = sample_joints(rng)
    while True:
        wanted = _sample_task(names, rng, weights, emphasis)
        upcoming = [*sample_prerequisites(wanted, rng), wanted]
        for _ in range(100):
            env.set_state(robot_obs, sample_scene(spec, rng))
            state = env.world_state()
            if feasible(upcoming[0], state, spec) and ("place_in_drawer" not in upcoming or drawer_is_open(state)):
                return upcoming


def _can_use_what_it_holds(env: PlayTable, names: Sequence[str]) -> bool:
    """Return whether the block in the hand allows a task that no deal can begin."""
    wanted = [n for n in names if ALL_TASKS[n].family in _NEEDS_BLOCK_IN_HAND]
    state = env.world_state() if wanted else None
    return state is not None and any(feasible(name, state, env.spec_scene) for name in wanted)


def deals_again(env: PlayTable, names: Sequence[str], *, success: bool, rng: np.random.Generator) -> bool:
    """Return whether the scene is arranged again before the next skill."""
    return (not success or rng.random() < _DEAL_SHARE) and not _can_use_what_it_holds(env, names)


def hand_is_free(env: PlayTable) -> bool:
    """Return whether the hand is clear of everything that a new deal could put in its place."""
    _, y, z = env.world_state().tool_position
    return bool(z > 0.5 and y < -0.08)
