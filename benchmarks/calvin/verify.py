"""Check our tasks, sequences, starts and physics against recordings of the official simulator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...data_pipeline.files import read_json, write_json
from ...errors import DataError
from ..playtable.environment import PlayTable
from ..playtable.tasks import ALL_TASKS
from ..playtable.world import World, WorldState
from .official import OfficialTable, read_info
from .sequences import TASK_NAMES, generate_sequences, initial_scene, official_sequences, state_seed


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What checking one file found: compared cases, how many agree, largest difference, examples of disagreement."""

    kind: str
    cases: int
    agree: int
    largest_difference: float
    disagreements: tuple[str, ...] = ()

    def line(self) -> str:
        """Return one line for people."""
        word = "agree" if self.agree == self.cases else "DISAGREE"
        examples = "; " + ", ".join(self.disagreements[:3]) if self.disagreements else ""
        return (
            f"{self.kind:16s} {self.agree:5d} of {self.cases:5d} {word}, largest difference "
            f"{self.largest_difference:.2g}{examples}"
        )


def tasks_done(start: WorldState, now: WorldState) -> set[str]:
    """Return the names of all tasks that our functions call done."""
    return {name for name, task in ALL_TASKS.items() if task.done(start, now)}


def _check_oracle(file: Path) -> Agreement:
    cases, wrong = read_json(file)["cases"], []
    for case in cases:
        ours = tasks_done(read_info(case["start"]["info"]), read_info(case["end"]["info"]))
        if different := ours ^ set(case["tasks"]):
            wrong.append(f"case {case['id']}: {sorted(different)}")
    return _agreement("oracle cases", len(cases), wrong)


def _check_sequences(file: Path) -> Agreement:
    rows = read_json(file)["sequences"]
    ours = official_sequences() if len(rows) == 1000 else generate_sequences(len(rows))
    wrong = [
        f"sequence {number}"
        for number, (row, one) in enumerate(zip(rows, ours, strict=True))
        if (dict(one.initial_state), list(one.tasks)) != (row["initial_state"], row["tasks"])
    ]
    return _agreement("sequences", len(rows), wrong)


def _check_starts(file: Path) -> Agreement:
    conditions, wrong, largest = read_json(file)["conditions"], [], 0.0
    for number, condition in enumerate(conditions):
        difference = float(np.abs(initial_scene(condition["initial_state"]) - condition["scene_obs"]).max())
        largest = max(largest, difference)
        if difference > 1e-9 or state_seed(condition["initial_state"]) != condition["seed"]:
            wrong.append(f"start {number}")
    return _agreement("initial states", len(conditions), wrong, largest)


def _check_task_table(file: Path) -> Agreement:
    names = list(read_json(file)["tasks"])
    wrong = sorted(set(names) ^ set(TASK_NAMES)) or [
        f"{a} / {b}" for a, b in zip(names, ALL_TASKS, strict=True) if a != b
    ]
    return _agreement("task names", len(names), wrong)


_EARLY_STEPS, _EARLY_TOLERANCE, _LATE_TOLERANCE, _IMAGE_TOLERANCE = 40, 1e-3, 5e-3, 1.0
"""Largest differences that count as agreement: states [m, rad] in the first steps and later, images [gray levels]."""


def _check_rollouts(folder: Path, calvin_root: Path) -> Iterator[Agreement]:
    """Replay recorded relative actions on CALVIN's own files; compare states, images and depth."""
    for file in sorted(folder.glob("rollout_*.npz")):
        with np.load(file, allow_pickle=False) as recorded:
            yield from _replay(file.stem.removeprefix("rollout_"), dict(recorded), calvin_root)


def _replay(scene_name: str, recorded: dict[str, np.ndarray], calvin_root: Path) -> Iterator[Agreement]:
    env = PlayTable(scene_name, calvin_root=calvin_root, render_mode=None)
    try:
        start = {"robot_obs": recorded["neutral_robot_obs"], "scene_obs": recorded["initial_scene_obs"]}
        seen, _ = env.reset(options=start)
        states, images, wrong_states, wrong_images = [], [], [], []
        for step in range(len(recorded["rel_actions"]) + 1):
            if step:
                seen, *_ = env.step(recorded["rel_actions"][step - 1])
            differences = [np.abs(seen[name] - recorded[name][step]).max() for name in ("robot_obs", "scene_obs")]
            states.append(float(max(differences)))
            if states[-1] > (_EARLY_TOLERANCE if step <= _EARLY_STEPS else _LATE_TOLERANCE):
                wrong_states.append(f"step {step}")
            for number in np.flatnonzero(recorded["image_steps"] == step):
                for camera in ("static", "gripper"):
                    difference = env.draw(camera).astype(float) - recorded[f"rgb_{camera}"][number]
                    images.append(float(np.abs(difference).mean()))
                    if images[-1] > _IMAGE_TOLERANCE:
                        wrong_images.append(f"{camera} at step {step}")
    finally:
        env.close()
    yield _agreement(f"rollout {scene_name}", len(states), wrong_states, max(states))
    yield _agreement(f"images {scene_name}", len(images), wrong_images, max(images, default=0.0))


def _check_trajectories(file: Path, calvin_root: Path, *, official: bool = False) -> Iterator[Agreement | str]:
    """Replay commanded relative actions; compare the judge's answers and the states, step by step where recorded.

    Args:
        official: replay in the installed official simulator, too, and compare ours with it.
    """
    ours, theirs, between = _Replays(), _Replays(), _Replays()
    for episode in read_json(file)["episodes"]:
        recorded = _recorded_states(file.parent.parent / "mini_dataset" / episode["split"], episode)
        scene_name = episode["scene"].removeprefix("calvin_scene_")
        states = ours.add(PlayTable(scene_name, calvin_root=calvin_root, render_mode=None), episode, recorded)
        if official:
            # After the first step: the official reset leaves the last gripper command as it was, ours restores it.
            _, *same = theirs.add(OfficialTable(scene_name), episode, recorded)
            between.compare(episode["name"], states, dict(enumerate(same, start=1)), tolerance=0.0)
    yield _agreement("outcomes", ours.answers, ours.wrong_answers)
    yield _agreement("trajectories", len(ours.differences), ours.wrong_states, max(ours.differences, default=0.0))
    if official:
        right, within = theirs.answers - len(theirs.wrong_answers), len(theirs.differences) - len(theirs.wrong_states)
        yield (
            f"the official simulator itself, replayed: {right} of {theirs.answers} outcomes, {within} of "
            f"{len(theirs.differences)} states, largest difference {max(theirs.differences, default=0.0):.2g}"
        )
        yield _agreement("ours, official", len(between.differences), between.wrong_states, max(between.differences))


class _Replays:
    """Replays of recorded trajectories in one simulator, compared with what was recorded."""

    def __init__(self) -> None:
        self.answers = 0
        self.differences: list[float] = []
        self.wrong_answers: list[str] = []
        self.wrong_states: list[str] = []

    def add(self, env: World, episode: Mapping[str, Any], recorded: Mapping[int, _States]) -> list[_States]:
        """Replay an episode from its start, close the world, and return all states."""
        try:
            env.reset(options={name: np.array(episode[f"initial_{name}"]) for name in _STATES})
            worlds, states = [env.world_state()], [_states(env)]
            for action in episode["commanded_rel_actions"]:
                env.step(np.array(action))
                worlds.append(env.world_state())
                states.append(_states(env))
        finally:
            env.close()
        self.compare(episode["name"], states, recorded, tolerance=_EARLY_TOLERANCE)
        for window in episode["windows"]:
            self.answers += 1
            begin, end = window["start"] - episode["start"], window["end"] - episode["start"]
            if tasks_done(worlds[begin], worlds[min(end, len(worlds) - 1)]) != set(window["oracle_on_live_infos"]):
                self.wrong_answers.append(f"{episode['name']}: {window['task']}")
        return states

    def compare(self, name: str, states: list[_States], others: Mapping[int, _States], *, tolerance: float) -> None:
        """Note the differences from other states of the same steps."""
        for step, other in others.items():
            self.differences.append(max(_difference(kind, states[step][kind], other[kind]) for kind in _STATES))
            if self.differences[-1] > tolerance:
                self.wrong_states.append(f"{name} step {step}")


def _states(env: World) -> _States:
    return {"robot_obs": env.robot_obs(), "scene_obs": env.scene_obs()}


_States = Mapping[str, np.ndarray]
_STATES = ("robot_obs", "scene_obs")
_ANGLES = {"robot_obs": (3, 4, 5), "scene_obs": (9, 10, 11, 15, 16, 17, 21, 22, 23)}
"""Where euler angles stand in CALVIN's state vectors."""


def _difference(name: str, ours: Any, theirs: Any) -> float:
    """Return the largest difference of two state vectors [m, rad]; angles are compared the short way round."""
    difference = np.asarray(ours, float) - np.asarray(theirs, float)
    angles = list(_ANGLES[name])
    difference[angles] = (difference[angles] + np.pi) % (2 * np.pi) - np.pi
    return float(np.abs(difference).max())


def _recorded_states(split: Path, episode: Mapping[str, Any]) -> dict[int, _States]:
    """Return step -> recorded states: every frame of the dataset that lies beside the file, and the last state."""
    states: dict[int, _States] = {
        len(episode["commanded_rel_actions"]): {name: episode[f"final_{name}"] for name in _STATES}
    }
    for number in range(episode["start"] + 1, episode["end_inclusive"] + 1):
        frame = split / f"episode_{number:07d}.npz"
        if frame.is_file():
            with np.load(frame, allow_pickle=False) as values:
                states[number - episode["start"]] = {name: values[name] for name in _STATES}
    return states


def _agreement(kind: str, cases: int, wrong: list[str], largest: float = 0.0) -> Agreement:
    return Agreement(
        kind=kind, cases=cases, agree=cases - len(wrong), largest_difference=largest, disagreements=tuple(wrong)
    )


_CHECKS: dict[str, Callable[[Path], Agreement]] = {
    "tasks.json": _check_task_table,
    "oracle_cases.json": _check_oracle,
    "sequences.json": _check_sequences,
    "initial_states.json": _check_starts,
}


def check_folder(folder: Path, calvin_root: Path | None = None, *, official: bool = False) -> Iterator[Agreement | str]:
    """Yield agreements for what is there, and a sentence for each file that is not.

    Raises:
        DataError: the folder holds none of them, or one that cannot be read.
        ConfigError: `calvin_root` is no clone of CALVIN.
    """
    rollouts, trajectories = folder / "rollouts", folder / "trajectories.json"
    if not any(place.exists() for place in (rollouts, trajectories, *(folder / name for name in _CHECKS))):
        names = f"{', '.join(_CHECKS)}, trajectories.json or rollouts"
        raise DataError(f"{folder}: expected {names}, got none; give a folder of recordings.")
    for name, check in _CHECKS.items():
        if not (folder / name).is_file():
            yield f"{name}: not there, skipped"
            continue
        try:
            yield check(folder / name)
        except KeyError as error:
            raise DataError(f"{folder / name}: {error} is missing; record it again.") from error
    replays = ((rollouts, _check_rollouts), (trajectories, partial(_check_trajectories, official=official)))
    for place, replay in replays:
        if not place.exists():
            yield f"{place.name}: not there, skipped"
        elif calvin_root is None:
            yield f"{place.name}: skipped, replaying needs CALVIN's own files (--calvin-root)"
        else:
            yield from replay(place, calvin_root)


def verify(*, folder: Path, calvin_root: Path | None = None, official: bool = False, json: Path | None = None) -> int:
    """Compare tasks, sequences, starts and physics with recordings of the official CALVIN; exit with 1 on a difference.

    Args:
        folder: holds any of tasks.json, oracle_cases.json, sequences.json, initial_states.json, trajectories.json,
            rollouts/.
        calvin_root: a clone of mees/calvin with its submodule, to replay trajectories and rollouts on.
        official: replay the trajectories in the installed calvin_env, too, and compare ours with it.
        json: file for the result.
    """
    results = list(check_folder(folder, calvin_root, official=official))
    for result in results:
        print(result if isinstance(result, str) else result.line(), file=sys.stdout)
    found = [result for result in results if isinstance(result, Agreement)]
    if json is not None:
        write_json(json, [asdict(result) for result in found])
    return int(any(result.agree < result.cases for result in found))
