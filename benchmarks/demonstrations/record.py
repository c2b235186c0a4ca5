"""Record scripted demonstrations and unlabeled play: chains of skills, with disturbed hands and clean labels."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from ...contracts import Policy
from ...data_pipeline.curation.ingest import write_video_shards
from ...data_pipeline.executors import worker_pool
from ...data_pipeline.store.episodes import write_episode
from ...embodiment import TOOL_ARM
from ...errors import ConfigError, DataError
from ..metaworld.record import record_metaworld
from ..playtable.cameras import CALVIN_PX, CameraConfig
from ..playtable.environment import CAMERAS, PlayTable
from ..playtable.feasibility import feasible
from ..playtable.instructions import sample_instruction, training_annotations
from ..playtable.scenes import scene
from ..playtable.targets import TARGET_MASK, target_parts
from ..playtable.tasks import ALL_TASKS, choose_tasks
from ..playtable.world import WorldState
from ..simulation.control import make_control
from .calvin_pieces import SHORTEST, join_pieces, write_piece
from .disturbance import Hand
from .expert_motion import ExpertStyle
from .experts import act
from .next_task import choose_next, deal, dealable, deals_again, emphasis_of, hand_is_free
from .resuming import as_kept, check_configuration, finished_counts, note_finished
from .tape import Tape

Layout = Literal["episodes", "shards", "calvin"]

_STRIDES: dict[Layout, int] = {"episodes": 5, "shards": 5, "calvin": 1}
"""Control steps from image to image."""

SEGMENTS_PER_CHAIN = 6
_MAX_STEPS = 200
POLICY_STEPS = (5, 240)
"""Range of control steps for which a policy drives: into most skills, which take 20 to 40, and far into some, so that
it lets blocks go in the wrong place."""

_SHORTEST = 15
"""Fewest steps of a correction: a policy that is nearly done needs none."""


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What a recording holds; equal configurations give equal recordings.

    tasks: "demonstrated", "all" or names; layout: of the files; chains: how many chains of up to six skills, or 0 for
    as many as it takes to get `episodes` labeled ones; play_share: share of chains kept whole and without an
    instruction; noise_share, slip_share: shares of segments with a disturbed hand, and with one that opens for a
    moment; image_px: image side [px], 0 for CALVIN's two; frame_stride: control steps from image to image; policy:
    folder of the policy that drives the first part of each skill, or ""; policy_steps: range of the control steps that
    it drives; calvin_root: clone, or ""; emphasis: factors of the tasks' weights; generated: how many generated scenes
    there are beside `scenes`; target_mask: whether a camera shows the target; contacts: whether touches are noted.
    """

    scenes: str
    tasks: str
    layout: Layout
    chains: int
    episodes: int
    play_share: float
    noise_share: float
    image_px: int
    frame_stride: int
    policy: str
    calvin_root: str
    seed: int
    emphasis: dict[str, float] = field(default_factory=dict)
    generated: int = 0
    policy_steps: tuple[int, int] = POLICY_STEPS
    slip_share: float = 0.0
    target_mask: bool = False
    contacts: bool = False

    @property
    def scene_names(self) -> list[str]:
        """The scenes, among which chains go round."""
        return [*self.scenes, *(f"R{number}" for number in range(self.generated))]


class _Pilot:
    """Lets a learned policy drive the first part of a skill, so that the expert goes on from where it gets.

    Half of the skills are driven through the whole-body control, half through CALVIN's: they go astray differently.
    Nothing is recorded while it drives: the expert says where to go from where the hand is, so what it says along the
    policy's path follows that path, and a chunk of it would teach to go on like this.

    Source: DAgger, Ross, Gordon and Bagnell, arXiv 1011.0686; that only what the expert does itself is learned from, as
    in HG-DAgger, Kelly et al., arXiv 1810.02890.
    """

    def __init__(
        self, env: PlayTable, policy: Policy, instruction: str, steps: tuple[int, int], rng: np.random.Generator
    ) -> None:
        """Draw how many of `steps` it drives, the logarithm evenly, and under which control."""
        self.env, self.policy, self.instruction = env, policy, instruction
        self.steps = int(np.exp(rng.uniform(*np.log(steps))))
        self.control = make_control("wbc" if rng.random() < 0.5 else "calvin", env)
        policy.reset()

    def drive(self, step: int) -> None:
        """Advance by one control step; the policy is asked again as often as it wants."""
        if step == 0:
            self.control.reset()
        if step % self.policy.executed_steps == 0:
            self.control.follow(self.policy.act(self.env.observe(self.instruction)))
        self.control.step()


def _run_segment(
    env: PlayTable, task: str, tape: Tape, config: RecordConfig, rng: np.random.Generator, pilot: _Pilot | None
) -> bool:
    """Let the expert act until its task is done and a few steps more, and the pilot before it; return success."""
    start: WorldState = env.world_state()
    style, disturbed = ExpertStyle.sample(rng), rng.random() < config.noise_share
    hand = Hand(rng, disturbed, slips=config.slip_share > 0.0 and rng.random() < config.slip_share)
    stride = 0 if config.layout == "calvin" else config.frame_stride
    extra, done_at, state = int(rng.integers(0, 5)), None, start
    for step in range(_MAX_STEPS + (0 if pilot is None else pilot.steps)):
        if pilot is not None and step < pilot.steps and done_at is None:
            pilot.drive(step)
        else:
            position, quaternion, gripper = act(task, state, env.spec_scene, style)
            tape.record(env, position, quaternion, gripper, stride=stride)
            env.step_pose(*hand(position, quaternion), hand.grip(gripper))
            if config.contacts:
                for part in sorted(link or body for body, link in env.touching(env.robot.uid)):
                    tape.touched.setdefault(part, len(tape.actions) - 1)
        state = env.world_state()
        if done_at is None and ALL_TASKS[task].done(start, state):
            done_at = step
        if done_at is not None and step >= done_at + extra:
            return True
    return False


def _hold(env: PlayTable, tape: Tape) -> None:
    """Hold the last commanded pose until the piece is as long as CALVIN's loaders want."""
    position, quaternion, gripper = tape.actions[-1][:3], tape.actions[-1][3:7], float(tape.actions[-1][7])
    while len(tape.robot_obs) < SHORTEST:
        tape.shoot(env)
        env.apply(position, quaternion, gripper)


def _record_chain(
    env: PlayTable, config: RecordConfig, chain: int, policy: Policy | None
) -> Iterator[tuple[Tape, str, dict[str, Any]]]:
    """Yield tape, instruction and facts of the pieces of one chain: labeled segments, or one piece of play."""
    rng = np.random.default_rng([config.seed, chain])
    env.reset()
    env.task = ""
    play = rng.random() < config.play_share
    whole, task, success = Tape.empty(), None, False
    names, upcoming = choose_tasks(config.tasks), list[str]()
    annotations = training_annotations(Path(config.calvin_root)) if config.calvin_root else None
    for segment in range(SEGMENTS_PER_CHAIN):
        if upcoming and not (success and feasible(upcoming[0], env.world_state(), env.spec_scene)):
            upcoming = []
        if segment == 0 or (not upcoming and not play and deals_again(env, names, success=success, rng=rng)):
            free = success and hand_is_free(env)
            upcoming = deal(env, names, rng, keep_arm=free, emphasis=config.emphasis)
        task = upcoming.pop(0) if upcoming else choose_next(env, names, task, rng, config.emphasis)
        if task is None:
            break
        tape = whole if play else Tape.empty()
        if config.target_mask and not play:
            env.begin(task)
        instruction = sample_instruction(task, rng, annotations)
        pilot = None
        if policy is not None and not play:
            drawn = np.random.default_rng([config.seed, chain, segment])
            pilot = _Pilot(env, policy, instruction, config.policy_steps, drawn)
        target = sorted(link or body for body, link in target_parts(task, env.world_state()))
        success = _run_segment(env, task, tape, config, rng, pilot)
        facts = {
            "scene": env.spec_scene.name,
            "task": task,
            "chain": chain,
            "segment": segment,
            "scripted": True,
        }
        if config.contacts:
            facts |= {"contacts": list(tape.touched.items()), "target": target}
        if not play and success and len(tape.actions) >= (1 if pilot is None else _SHORTEST):
            if config.layout == "calvin":
                _hold(env, tape)
                tape.note(env)
            yield tape, instruction, facts
        if play and not success:
            break
    if play and len(whole.states) > 2 * config.frame_stride:
        facts = {"scene": env.spec_scene.name, "task": None, "chain": chain, "segment": 0, "scripted": True}
        if config.layout == "calvin":
            whole.note(env)
        yield whole, "", facts


def _record_chains(out: Path, config: RecordConfig, scene_name: str, chains: list[int]) -> None:
    """Record some chains of one scene in this process."""
    sizes = (config.image_px, config.image_px) if config.image_px else CALVIN_PX
    camera = CameraConfig(static_px=sizes[0], gripper_px=sizes[1])
    root = Path(config.calvin_root) if config.calvin_root else None
    env = PlayTable(scene_name, camera=camera, calvin_root=root, render_mode=None)
    if config.target_mask:
        env.cameras = (*CAMERAS, TARGET_MASK)
    policy = _load_policy(config.policy, config.frame_stride) if config.policy else None
    try:
        for chain in chains:
            counts = {"labeled": 0, "play": 0}
            for number, (tape, instruction, facts) in enumerate(_record_chain(env, config, chain, policy)):
                index = chain * SEGMENTS_PER_CHAIN + number
                counts["labeled" if instruction else "play"] += 1
                if config.layout == "calvin":
                    write_piece(
                        out, index, images={n: np.stack(f) for n, f in tape.images.items()},
                        depths={n: np.stack(f) for n, f in tape.depths.items()},
                        robot_obs=np.stack(tape.robot_obs), scene_obs=np.stack(tape.scene_obs), instruction=instruction,
                        task=facts["task"] or "", scene=scene_name,
                    )  # fmt: skip
                elif not (out / f"episode_{index:06d}").exists():
                    source = f"playtable/{scene_name}/{chain}/{facts['segment'] if instruction else 'play'}"
                    write_episode(out, index, tape.episode(instruction, config.frame_stride, source), facts)
            note_finished(out, chain, counts)
    finally:
        env.close()


def _load_policy(source: str, executed_steps: int) -> Policy:
    import torch

    from ...gr_model.act.loading import load_policy

    torch.set_num_threads(1)
    return load_policy(source, executed_steps=executed_steps, embodiment=TOOL_ARM)


def _batches(config: RecordConfig, chains: int, finished: set[int], size: int = 8) -> list[tuple[str, list[int]]]:
    """Split the chains into batches of one scene each; chain i happens in scene i modulo the number of scenes."""
    batches = []
    names = config.scene_names
    for position, name in enumerate(names):
        mine = [c for c in range(position, chains, len(names)) if c not in finished]
        batches += [(name, mine[begin : begin + size]) for begin in range(0, len(mine), size)]
    return sorted(batches, key=lambda batch: batch[1])


def record(
    *,
    out: Path,
    simulator: Literal["playtable", "metaworld"] = "playtable",
    scenes: str = "D",
    generated: int = 0,
    tasks: str | None = None,
    chains: int = 200,
    episodes: int | None = None,
    layout: Layout = "episodes",
    play_share: float = 0.08,
    noise_share: float = 0.7,
    slip_share: float = 0.0,
    image_size: int | None = None,
    frame_stride: int | None = None,
    target_mask: bool = False,
    contacts: bool = False,
    policy: str = "",
    policy_steps: tuple[int, int] = POLICY_STEPS,
    emphasis: Path | None = None,
    calvin_root: Path | None = None,
    num_workers: int = 2,
    seed: int = 0,
) -> dict[str, int]:
    """Record scripted demonstrations in a simulator; run again to resume where it stopped.

    Args:
        out: folder for the episodes, or the split of a CALVIN data set, as in task_D_D/training.
        simulator: "metaworld" takes tasks, episodes, layout, noise_share, image_size, frame_stride, num_workers, seed.
        scenes: letters of the scenes to use, e.g. ABCD.
        generated: number of generated scenes to use beside them: furniture of A to C put together anew, other colors.
        tasks: "demonstrated" (17, the default), "all" (34), or names with commas; of Meta-World mt10, mt50, or names.
        chains: number of chains of up to six skills.
        episodes: labeled episodes at least, in place of `chains`; of Meta-World how many in all (50 of each task).
        layout: "episodes" (videos) for `gr2 data shards`, "shards" to run that at once (both lie in `out`), or
            "calvin" (one npz a frame), which every CALVIN loader and `gr2 data shards` read.
        play_share: share of chains kept whole, without an instruction.
        noise_share: share of skills acted with a disturbed hand (labels stay clean).
        slip_share: share of skills in which the hand opens for a moment: a block falls and is taken up again.
        image_size: image side [px]; by default 64, and 200 and 84 in CALVIN's layout, which 0 gives, too.
        frame_stride: control steps (30 Hz, Meta-World 80) from image to image; by default 5, in CALVIN's layout 1.
        target_mask: record a third camera, too: what the skill is about, white on black (docs/policies.md).
        contacts: note which parts of the scene the hand touches, when, and which the skill is about (docs/policies.md).
        policy: folder of a released model that drives the first part of each skill, before the recording (DAgger).
        policy_steps: range of the control steps that it drives; `[90, 300]` records what to do after it failed.
        emphasis: `results.json` of `gr2 benchmark calvin`: tasks that failed more often there are recorded more often.
        calvin_root: a clone of mees/calvin, whose assets and training annotations are used instead of ours.
        num_workers: processes.
        seed: seed of everything that is sampled.

    Returns:
        Numbers of labeled episodes and of pieces of play (of Meta-World those given up), and the seconds it took.

    Raises:
        ConfigError: an impossible value.
        DataError: `out` holds a recording of another configuration.
    """
    started, place = time.monotonic(), out / "episodes" if layout == "shards" else out
    if simulator == "metaworld":
        _only_shared_options(layout, {"scenes": scenes, "generated": generated, "chains": chains, "policy": policy,
            "play_share": play_share, "target_mask": target_mask, "contacts": contacts, "policy_steps": policy_steps,
            "slip_share": slip_share, "emphasis": emphasis, "calvin_root": calvin_root})  # fmt: skip
        found = record_metaworld(
            out=place, tasks=tasks or "mt10", episodes=episodes, noise_share=noise_share, num_workers=num_workers,
            image_size=64 if image_size is None else image_size, frame_stride=frame_stride or 5, seed=seed,
        )  # fmt: skip
    else:
        config = RecordConfig(
            scenes=scenes, tasks=tasks or "demonstrated", layout="calvin" if layout == "calvin" else "episodes",
            chains=0 if episodes else chains, episodes=episodes or 0, play_share=play_share, noise_share=noise_share,
            image_px=image_size if image_size is not None else 0 if layout == "calvin" else 64, policy=str(policy),
            frame_stride=_STRIDES[layout] if frame_stride is None else frame_stride, calvin_root=str(calvin_root or ""),
            emphasis=emphasis_of(emphasis) if emphasis else {}, policy_steps=policy_steps, slip_share=slip_share,
            target_mask=target_mask, contacts=contacts, seed=seed, generated=generated,
        )  # fmt: skip
        _check(config, min(chains, num_workers, config.frame_stride, 1 if episodes is None else episodes))
        found = _record_playtable(place, config, num_workers)
    if layout == "shards":
        write_video_shards(source=str(place), out=out / "shards", num_workers=num_workers)
    return found | {"seconds": round(time.monotonic() - started)}


def _only_shared_options(layout: Layout, given: Mapping[str, object]) -> None:
    """Refuse what says nothing to Meta-World."""
    usual: Mapping[str, object] = record.__kwdefaults__ or {}
    others = [f"--{name.replace('_', '-')}" for name, value in given.items() if value != usual[name]]
    others += ["--layout calvin"] if layout == "calvin" else []
    if others:
        raise ConfigError(
            f"--simulator metaworld: expected only options that both simulators have, got {', '.join(others)}; leave "
            "out what is PlayTable's."
        )


def _check(config: RecordConfig, smallest: int) -> None:
    """Refuse a recording that cannot be; `smallest` is the least of the numbers that must be positive."""
    for letter in config.scenes:
        scene(letter)
    if not (config.scenes or config.generated) or config.generated < 0 or smallest < 1:
        raise ConfigError(
            "record: expected at least one scene, chain, episode, worker and a frame stride of 1 or more."
        )
    if not 1 <= config.policy_steps[0] <= config.policy_steps[1]:
        found = list(config.policy_steps)
        raise ConfigError(f"--policy-steps: expected two numbers of 1 or more, the smaller one first, got {found}.")
    if config.generated and config.calvin_root:
        raise ConfigError("--generated: expected no --calvin-root, which has the scenes A to D alone; leave one out.")
    if config.layout == "calvin" and config.frame_stride != 1:
        raise ConfigError(
            f"--frame-stride: CALVIN's layout holds every step, got {config.frame_stride}; leave the option out."
        )
    for name, wanted in (("target-mask", config.target_mask), ("contacts", config.contacts)):
        if wanted and config.layout == "calvin":
            raise ConfigError(f"--{name}: CALVIN's layout has no place for it; choose another --layout.")
    if not dealable(choose_tasks(config.tasks)):
        raise ConfigError(
            f"--tasks {config.tasks}: expected what must be done before one of them, too; add tasks that lift."
        )
    if config.calvin_root:
        training_annotations(Path(config.calvin_root))


def _record_playtable(out: Path, config: RecordConfig, num_workers: int) -> dict[str, int]:
    """Record in PlayTable; return the numbers of labeled episodes and pieces of play."""
    check_configuration(out, as_kept(config))
    counts = _record_all(out, config, num_workers)
    if config.layout == "calvin":
        join_pieces(out, Path(config.calvin_root) if config.calvin_root else None)
    return {kind: sum(c[kind] for c in counts.values()) for kind in ("labeled", "play")}


def _record_all(out: Path, config: RecordConfig, num_workers: int) -> dict[int, dict[str, int]]:
    """Record what is missing in worker processes; return the counts of all chains."""
    with tqdm(desc="record", unit="chain") as bar, worker_pool(num_workers) as pool:
        wanted = config.chains or _chains_for(config.episodes)
        while True:
            finished = finished_counts(out)
            bar.total, bar.n = wanted, len(finished)
            batches = _batches(config, wanted, set(finished))
            futures = {pool.submit(_record_chains, out, config, name, mine): len(mine) for name, mine in batches}
            for future in as_completed(futures):
                future.result()
                bar.update(futures[future])
            counts = finished_counts(out)
            missing = config.episodes - sum(c["labeled"] for number, c in counts.items() if number < wanted)
            if missing <= 0:
                break
            if all(c["labeled"] == 0 for c in counts.values()):
                raise DataError(
                    f"{out}: expected demonstrations, none of {wanted} chains gave one; choose other --tasks."
                )
            wanted += _chains_for(missing)
    return counts


def _chains_for(episodes: int) -> int:
    """Return how many chains hold so many labeled episodes at most: more may be needed."""
    return -(-episodes // SEGMENTS_PER_CHAIN)
