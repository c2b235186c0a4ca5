"""A policy for each client of a server: what waits at the same moment is answered together if the policies can."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ...contracts import Observation, Policy, Trajectory
from ...embodiment import Embodiment
from ...errors import ServerBusy

FORGET_AFTER = 3600.0
"""A session that has not asked for so long [s] is forgotten."""

IDLE_AFTER = 300.0
"""A session that has not asked for so long [s] makes room for a new one where there is none left."""


@dataclass
class _Session:
    policy: Policy
    last_seen: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)


_Waiting = tuple[Policy, Observation, "Future[Trajectory]"]


class PolicyServer:
    """A policy for each session: a thread gathers what waits and answers it, in one go where the policy offers that.

    One session is answered one observation after another, in the order in which they came.

    Args:
        make: makes the policy of a new session; all are of one kind.
        max_batch: most observations in one go.
        max_wait: how long the first one waits for others [s].
        max_sessions: most sessions at once.

    reads: the state signals that the policies read, None where they do not say.
    """

    def __init__(
        self,
        make: Callable[[], Policy],
        *,
        max_batch: int = 64,
        max_wait: float = 0.002,
        max_sessions: int = 256,
    ) -> None:
        self.make, self.max_batch, self.max_wait, self.max_sessions = make, max_batch, max_wait, max_sessions
        self._spare: Policy | None = make()  # the first session gets it
        self.executed_steps = self._spare.executed_steps
        trained = getattr(self._spare, "embodiment", None)
        self.embodiment = trained if isinstance(trained, Embodiment) else None
        self.image_size: int | None = getattr(self._spare, "image_size", None)
        coding = getattr(self._spare, "coding", None)
        self.reads: tuple[str, ...] | None = None if coding is None else tuple(s.name for s in coding.read)
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue()
        threading.Thread(target=self._answer, daemon=True).start()

    def describe(self) -> dict[str, Any]:
        """Return what a client must send and gets, as JSON values; null where the policy does not say.

        `cameras` are names; `image_size` is the side [px] that images of any size are resized to; `state` and `action`
        list signals with their widths, kinds and units; `control_hz` is the rate of a trajectory's rows.
        """
        robot = None if self.embodiment is None else self.embodiment.to_dict()
        names = ("cameras", "state", "action", "control_hz")
        return {name: None if robot is None else robot[name] for name in names} | {
            "executed_steps": self.executed_steps,
            "image_size": self.image_size,
            "embodiment": robot,
        }

    def reset(self, session: str) -> None:
        """Begin an episode of a session."""
        found = self._session(session)
        with found.lock:
            found.policy.reset()

    def act(self, session: str, observation: Observation) -> Trajectory:
        """Wait for the trajectory of a session's observation."""
        found = self._session(session)
        with found.lock:
            future: Future[Trajectory] = Future()
            self._waiting.put((found.policy, observation, future))
            return future.result()

    def end(self, session: str) -> None:
        """Forget a session and close its policy; nothing where there is none."""
        with self._lock:
            found = self._sessions.pop(session, None)
        if found is not None:
            with found.lock:
                found.policy.close()

    def close(self) -> None:
        """Close the policies of all sessions."""
        self._waiting.put(None)
        with self._lock:
            policies = [session.policy for session in self._sessions.values()]
            policies += [] if self._spare is None else [self._spare]
            self._sessions, self._spare = {}, None
        for policy in policies:
            policy.close()

    def _session(self, name: str) -> _Session:
        with self._lock:
            now = time.monotonic()
            found = self._sessions.get(name)
            if found is None:
                self._make_room(now)
                policy, self._spare = self._spare or self.make(), None
                found = self._sessions[name] = _Session(policy)
            found.last_seen = now
            return found

    def _make_room(self, now: float) -> None:
        """Forget sessions that ended without a word.

        Raises:
            ServerBusy: there are as many as there may be, and all are in use.
        """
        age = {name: now - session.last_seen for name, session in self._sessions.items() if not session.lock.locked()}
        old = [name for name, idle in age.items() if idle > FORGET_AFTER]
        if not old and len(self._sessions) >= self.max_sessions:
            oldest = max(age, key=age.__getitem__, default="")
            if not oldest or age[oldest] < IDLE_AFTER:
                raise ServerBusy(
                    f"gr2 serve: expected at most {self.max_sessions} sessions at once, got one more; end one, or "
                    "start the server with a larger --max-clients."
                )
            old = [oldest]
        for name in old:
            self._sessions.pop(name).policy.close()

    def _answer(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            until = time.monotonic() + self.max_wait
            while len(batch) < self.max_batch:
                try:
                    waiting = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if waiting is None:  # closing: answer what has been asked, then stop
                    self._waiting.put(None)
                    break
                batch.append(waiting)
            self._answer_batch(batch)

    def _answer_batch(self, batch: Sequence[_Waiting]) -> None:
        policies, observations, futures = zip(*batch, strict=True)
        together = getattr(policies[0], "act_together", None)
        if together is None or len(batch) == 1:
            self._answer_alone(batch)
            return
        try:
            answers: Sequence[Trajectory] = together(policies, observations)
        except Exception:  # whoever sent something unusable gets the error, the others their answer
            self._answer_alone(batch)
            return
        for future, answer in zip(futures, answers, strict=True):
            future.set_result(answer)

    @staticmethod
    def _answer_alone(batch: Sequence[_Waiting]) -> None:
        for policy, observation, future in batch:
            try:
                future.set_result(policy.act(observation))
            except BaseException as error:  # a policy that calls sys.exit() ends its request, not the server
                future.set_exception(error)
