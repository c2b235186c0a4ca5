"""Record demonstrations of Meta-World's experts, some with a disturbed hand: what `gr2 data record` does for it."""

from __future__ import annotations

from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...contracts import Array, Episode
from ...data_pipeline.executors import worker_pool
from ...data_pipeline.store.episodes import write_episode
from ...errors import ConfigError, DataError
from ..demonstrations.resuming import check_configuration, finished_counts, note_finished
from .experts import Expert
from .instructions import TASKS, choose_tasks, sample_instruction
from .package import load
from .simulator import EMBODIMENT, MAX_STEPS, MetaWorld, start_seed

EPISODES_PER_TASK = 50
_DEMONSTRATION = 2
"""What the seeds of demonstrations begin with: no test start is among them (`suite.EVALUATION`)."""

_ATTEMPTS = 10
"""Starts that are tried for an episode before it is given up."""

_BATCH = 8
"""Episodes of a task that a worker records one after another: loading a task's scene takes longer than an episode."""


@dataclass(frozen=True, kw_only=True)
class MetaWorldRecording:
    """What a recording holds; equal configurations give equal recordings.

    tasks: names, among which episodes go round; noise_share: share of episodes with a disturbed hand; image_px: image
    side [px]; frame_stride: control steps from image to image.
    """

    tasks: tuple[str, ...]
    episodes: int
    noise_share: float
    image_px: int
    frame_stride: int
    seed: int


class Disturbance:
    """Errors of the hand: a slowly wandering one, now and then a shove of a few steps.

    The expert sees where it got the hand and corrects it; what it commands is the label.
    """

    def __init__(self, rng: np.random.Generator, active: bool) -> None:
        self.rng, self.active = rng, active
        self._scale = rng.uniform(0.3, 1.0) if active else 0.0
        self._error, self._shove, self._shove_left = np.zeros(3), np.zeros(3), 0

    def __call__(self, action: Array) -> Array:
        """Return the action `[4]` that is carried out in place of `action`; the fingers do what they should."""
        if not self.active:
            return action
        self._error = 0.85 * self._error + self._scale * self.rng.normal(0, 0.2, 3)
        if self._shove_left == 0 and self.rng.random() < 0.02:
            self._shove_left = int(self.rng.integers(3, 8))
            self._shove = self.rng.normal(0, 0.8, 3)
        shove = self._shove if self._shove_left else 0.0
        self._shove_left = max(0, self._shove_left - 1)
        return np.clip(np.append(action[:3] + self._error + shove, action[3]), -1.0, 1.0)


def record_metaworld(
    *,
    out: Path,
    tasks: str = "mt10",
    episodes: int | None = None,
    noise_share: float = 0.7,
    image_size: int = 64,
    frame_stride: int = 5,
    num_workers: int = 2,
    seed: int = 0,
) -> dict[str, int]:
    """Record episodes of Meta-World's experts in `out`; run again to resume where it stopped.

    Args:
        out: folder for the episodes.
        tasks: "mt10", "mt50", or names separated by commas; episode i is of task i modulo their number.
        episodes: how many in all; 50 of each task if not given.
        noise_share: share of episodes with a disturbed hand (labels stay clean).
        image_size: image side [px].
        frame_stride: control steps of 1/80 s from image to image.
        num_workers: processes.
        seed: seed of everything that is sampled.

    Returns:
        Numbers of labeled episodes and of those that were given up.

    Raises:
        ConfigError: an impossible value.
        DataError: `out` holds a recording of another configuration, or no expert succeeded.
        EnvironmentMissing: Meta-World is not installed.
    """
    names = choose_tasks(tasks)
    number = len(names) * EPISODES_PER_TASK if episodes is None else episodes
    if min(number, image_size, frame_stride, num_workers) < 1 or not 0 <= noise_share <= 1:
        raise ConfigError(
            "record: expected at least one episode, pixel, worker and a frame stride of 1 or more, and a share of "
            "disturbed episodes of 0 to 1; fix the numbers."
        )
    load()
    config = MetaWorldRecording(
        tasks=names, episodes=number, noise_share=noise_share, image_px=image_size, frame_stride=frame_stride, seed=seed
    )
    check_configuration(out, {"simulator": "metaworld", **asdict(config), "tasks": list(names)})
    batches = _batches(config, set(finished_counts(out)))
    total = sum(map(len, batches))
    with (
        tqdm(total=number, initial=number - total, desc="record", unit="episode") as bar,
        worker_pool(num_workers) as pool,
    ):
        futures = {pool.submit(_record_episodes, out, config, batch): len(batch) for batch in batches}
        for future in as_completed(futures):
            future.result()
            bar.update(futures[future])
    labeled = sum(counts["labeled"] for counts in finished_counts(out).values())
    if labeled == 0:
        raise DataError(
            f"{out}: expected demonstrations, no expert succeeded in {number} episodes; choose other tasks."
        )
    return {"labeled": labeled, "given_up": number - labeled}


def _batches(config: MetaWorldRecording, finished: set[int]) -> list[list[int]]:
    """Split the missing episodes into batches of one task each, earlier ones first."""
    batches = []
    for place in range(len(config.tasks)):
        mine = [i for i in range(place, config.episodes, len(config.tasks)) if i not in finished]
        batches += [mine[begin : begin + _BATCH] for begin in range(0, len(mine), _BATCH)]
    return sorted(batches)


def _record_episodes(out: Path, config: MetaWorldRecording, numbers: list[int]) -> None:
    """Record some episodes of one task in this process."""
    world = MetaWorld(image_px=config.image_px)
    try:
        for number in numbers:
            found = None
            for attempt in range(_ATTEMPTS):
                found = _attempt(world, config, number, attempt)
                if found is not None:
                    break
            if found is not None and not (out / f"episode_{number:06d}").exists():
                write_episode(out, number, *found, embodiment=EMBODIMENT)
            note_finished(out, number, {"labeled": int(found is not None), "play": 0})
    finally:
        world.close()


def _attempt(
    world: MetaWorld, config: MetaWorldRecording, number: int, attempt: int
) -> tuple[Episode, dict[str, Any]] | None:
    """Let the expert act until its task is done and a few steps more; None where it does not succeed in time."""
    task = config.tasks[number % len(config.tasks)]
    seed = start_seed(_DEMONSTRATION, config.seed, TASKS.index(task), number, attempt)
    rng = np.random.default_rng([config.seed, number, attempt])
    world.reset(options={"task": task, "seed": seed})
    instruction, disturbed = sample_instruction(task, rng), bool(rng.random() < config.noise_share)
    expert, hand, extra = Expert(world), Disturbance(rng, disturbed), int(rng.integers(0, 5))
    images: dict[str, list[Array]] = {name: [] for name in world.cameras}
    states, actions = [], []
    done_at: int | None = None
    for step in range(MAX_STEPS):
        observation = world.observe(instruction, images=step % config.frame_stride == 0)
        for name, image in observation.images.items():
            images[name].append(image)
        action = expert.action()
        states.append(observation.state_vector())
        actions.append(action)
        world.apply_action(hand(action))
        if done_at is None and world.success():
            done_at = step
        if done_at is not None and step >= done_at + extra:
            break
    if done_at is None:
        return None
    episode = Episode(
        images={name: np.stack(frames) for name, frames in images.items()},
        states=np.stack(states).astype(np.float32),
        actions=np.stack(actions).astype(np.float32),
        instruction=instruction,
        control_hz=world.control_hz,
        frame_stride=config.frame_stride,
        source=f"metaworld/{task}/{number}",
    )
    facts = {"task": task, "seed": seed, "attempt": attempt, "disturbed": disturbed, "scripted": True}
    return episode, facts
