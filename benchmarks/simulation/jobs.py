"""Test episodes as jobs: which there are, which are finished, and worker processes for the others.

Results are appended episode by episode, so a stopped evaluation resumes where it was and ends with the same result.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack, closing
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

from tqdm import tqdm

from ...contracts import Chunking, Policy
from ...data_pipeline.executors import worker_pool
from ...data_pipeline.files import write_bytes
from ...errors import ConfigError, DataError, PolicyError
from ...gr_model.act.opening import EXECUTED_STEPS, open_policy
from ...gr_model.act.remote import RemotePolicy
from ...gr_model.act.websocket_policy import WebSocketPolicy
from .control import make_control
from .episodes import as_record, asking_period, last_step, run_chain
from .fit import check_fit, embodiment_of, show_what_it_sees
from .suite import Suite
from .videos import Video

Videos = Literal["none", "failed", "all"]


class Evaluation(Protocol):
    """What is measured: a frozen dataclass of JSON values; equal ones give equal results.

    An evaluation may have more fields, which are looked up and may be absent: `latency`, how long after its observation
    a chunk arrives [s]; `chunking`, how a chunk relates to the running one; `weights`, the policy's fingerprint.
    """

    @property
    def policy(self) -> str:
        """The policy, as users name it."""
        ...

    @property
    def executed_steps(self) -> int:
        """Control steps of each chunk that are carried out; 0 leaves it to the policy."""
        ...

    @property
    def max_steps(self) -> int:
        """Time limit a task in control steps."""
        ...

    def open_suite(self) -> Suite:
        """Open the simulator with the test episodes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """One test episode: the one of index `index` of a kind, under one control."""

    control: str
    kind: str
    index: int

    @property
    def key(self) -> str:
        """Return the name under which the result is kept."""
        return f"{self.control}/{self.kind}/{self.index}"


class Session:
    """Simulator and policies of one evaluation in one process; they stay open from episode to episode."""

    def __init__(self, evaluation: Evaluation) -> None:
        """Open the simulator; policies are opened when they are needed."""
        import torch

        torch.set_num_threads(1)
        self.evaluation, self._suite = evaluation, evaluation.open_suite()
        self._policies: dict[str, Policy] = {}

    def run(self, jobs: Sequence[Job], videos: Videos, folder: Path) -> list[dict[str, Any]]:
        """Run test episodes and return their records.

        Raises:
            PolicyError: the policy was trained on another robot, or is not the one that the evaluation began with.
        """
        records = []
        for control, mine in groupby(jobs, key=lambda job: job.control):
            policy = self._policy(control)
            records += [_run_job(self.evaluation, self._suite, policy, job, videos, folder) for job in mine]
        return records

    def _policy(self, control: str) -> Policy:
        """Return the policy under a control; a server is asked anew who it is, since it may have been restarted."""
        open_one = self._policies.get(control)
        if open_one is not None and not isinstance(open_one, RemotePolicy | WebSocketPolicy):
            return open_one
        if open_one is not None:
            self._policies.pop(control).close()
        policy = self._policies[control] = self._opened(control)
        _check_same(self.evaluation, policy)
        check_fit(policy, self._suite.simulator)
        show_what_it_sees(policy, self._suite.simulator)
        return policy

    def _opened(self, control: str) -> Policy:
        evaluation, suite = self.evaluation, self._suite
        steps, latency = evaluation.executed_steps or None, _latency(evaluation)
        chunking: Chunking = getattr(evaluation, "chunking", "independent")
        reach = last_step(steps or EXECUTED_STEPS, latency, suite.simulator.control_hz)
        return open_policy(
            evaluation.policy, executed_steps=steps, expert=partial(suite.expert, control, reach),
            chunking=chunking, latency=latency, embodiment=embodiment_of(suite.simulator),
            adapt=getattr(suite, "adapt", None),
        )  # fmt: skip

    def close(self) -> None:
        """Close policies and simulator."""
        with closing(self._suite), ExitStack() as stack:
            for policy in self._policies.values():
                stack.callback(policy.close)
            self._policies = {}


def run_jobs(evaluation: Evaluation, jobs: Sequence[Job], videos: Videos, folder: Path) -> list[dict[str, Any]]:
    """Run test episodes in this process and return their records; close simulator and policies.

    Raises:
        PolicyError: the policy was trained on another robot.
    """
    with closing(Session(evaluation)) as session:
        return session.run(jobs, videos, folder)


_sessions: list[Session] = []
"""In a worker process: the one session of its evaluation, once it has begun."""


_failed: list[BaseException] = []
"""In a worker process: why an episode failed, which ends the evaluation."""


def _run_in_worker(evaluation: Evaluation, job: Job, videos: Videos, folder: Path) -> dict[str, Any]:
    """Run one episode in a worker process, whose session stays open for the next one and is closed with it.

    After a failure the episodes that wait in the queue fail alike at once: each could wait a minute for a server that
    does not answer.
    """
    if _failed:
        raise _failed[0]
    try:
        if not _sessions:
            _sessions.append(Session(evaluation))
            atexit.register(_close_session)
        return _sessions[0].run([job], videos, folder)[0]
    except BaseException as error:
        _failed.append(error)
        _close_session()
        raise


def _close_session() -> None:
    if _sessions:
        _sessions.pop().close()


def _check_same(evaluation: Evaluation, policy: Policy) -> None:
    """Refuse a server that now runs another policy than when the evaluation began.

    Raises:
        PolicyError: it states another fingerprint.
    """
    begun, now = getattr(evaluation, "weights", ""), getattr(policy, "fingerprint", "")
    if begun and now and begun != now:
        raise PolicyError(
            f"--policy {evaluation.policy}: expected the policy that the evaluation began with ({begun[:12]}), got "
            f"another one ({now[:12]}); serve the first one again, or choose another --out."
        )


def _latency(evaluation: Evaluation) -> float:
    return float(getattr(evaluation, "latency", 0.0))


def _run_job(
    evaluation: Evaluation, suite: Suite, policy: Policy, job: Job, videos: Videos, folder: Path
) -> dict[str, Any]:
    simulator = suite.simulator
    control = make_control(job.control, simulator, policy)
    chain = list(suite.start(job.kind, job.index))
    control.reset()
    steps = evaluation.executed_steps or policy.executed_steps
    video, latency = Video() if videos != "none" else None, _latency(evaluation)
    limit = suite.time_limit(job.kind) if hasattr(suite, "time_limit") else evaluation.max_steps
    results = run_chain(
        simulator, policy, control, chain, instruction=suite.instruction, executed_steps=steps,
        max_steps=limit, latency=latency, explain=suite.watch, video=video,
    )  # fmt: skip
    if video is not None and (videos == "all" or not results[-1].success):
        period = asking_period(steps, latency, simulator.control_hz)
        video.write(folder / f"{job.key.replace('/', '-')}.mp4", simulator.control_hz / period)
    return {"key": job.key, "chain": chain, "results": as_record(results), "executed_steps": steps} | control.report()


def run_evaluation(
    evaluation: Evaluation,
    jobs: Sequence[Job],
    *,
    file: Path,
    num_workers: int,
    videos: Videos = "none",
    description: str = "act",
) -> dict[str, dict[str, Any]]:
    """Run the jobs that `file` does not hold yet, in worker processes, and return all records by key.

    Raises:
        DataError: `file` holds results of another evaluation, or is damaged.
        Gr2Error: an episode failed; the results before it are kept, and the same call resumes.
    """
    records = _finished(file, evaluation)
    waiting = [job for job in jobs if job.key not in records]
    with (
        tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc=description, unit="episode") as bar,
        file.open("a") as log,
        worker_pool(num_workers) as pool,
    ):
        folder = file.parent / "videos"
        futures = [pool.submit(_run_in_worker, evaluation, job, videos, folder) for job in waiting]
        error: BaseException | None = None
        for future in as_completed(futures):
            if future.cancelled():
                continue
            if (failed := future.exception()) is not None:  # episodes that are under way are still kept
                error = error or failed
                for other in futures:
                    other.cancel()
                continue
            record = future.result()
            records[record["key"]] = record
            log.write(json.dumps(record) + "\n")
            log.flush()
            bar.update()
        if error is not None:
            raise error
    return records


def _finished(file: Path, evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Read the results so far; the first line holds the configuration, that of gr2 0.1.0 without fields added since.

    Files of several parts (`--shard`), one after the other, are one; without results, any configuration is taken.
    """
    config = asdict(evaluation)  # type: ignore[call-overload]
    added = {f.name: f.default for f in fields(evaluation) if f.default is not MISSING}  # type: ignore[arg-type]
    first = json.dumps({"config": config}) + "\n"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(first)
        return {}
    lines = file.read_text().splitlines()
    records = {}
    for number, line in enumerate(lines):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines) - 1:
                break
            raise DataError(f"{file}: line {number + 1} is no JSON; remove the file to begin again.") from None
        if "config" in value or number == 0:  # parts that were concatenated have one each
            if added | value.get("config", {}) != config and len(lines) > 1:
                raise DataError(
                    f"{file}: holds results of {value.get('config')}, asked for {config}; choose another --out."
                )
        else:
            records[value["key"]] = value
    write_bytes(file, (first + "".join(json.dumps(r) + "\n" for r in records.values())).encode())
    return records


def choose_part(jobs: list[Job], shard: str) -> list[Job]:
    """Return every n-th job from the i-th on, for a shard "i/n".

    Raises:
        ConfigError: no such part.
    """
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ConfigError(f"--shard: expected i/n with 1 <= i <= n, as in 2/4, got {shard!r}.")
    return jobs[int(part) - 1 :: int(parts)]
