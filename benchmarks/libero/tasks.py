"""LIBERO's suites, their time limits, and which of their tasks a user asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...errors import ConfigError

TIME_LIMITS: Mapping[str, int] = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Control steps of 1/20 s after which an episode of a suite has failed. Source: OpenVLA, `run_libero_eval.py`; openpi,
its LIBERO example. LIBERO's own training code stops at 600."""

SETTLING_STEPS = 10
"""Control steps without a move before a policy is asked, in which things fall into place. Source: as above."""

INITIAL_STATES = 50
"""Official initial states of each task."""


def choose_tasks(text: str, tasks: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return tasks as `suite/name`, each once.

    Args:
        text: names separated by commas: suites, `suite/index`, `suite/name`, or names alone.
        tasks: suite -> names of its tasks, in order.

    Raises:
        ConfigError: a suite, index or name that is not there, or a name that several suites have.
    """
    found = [task for part in text.split(",") for task in _tasks_of(part.strip(), tasks)]
    return tuple(dict.fromkeys(found))


def _tasks_of(part: str, tasks: Mapping[str, Sequence[str]]) -> Iterator[str]:
    suite, slash, name = part.partition("/")
    if suite in tasks and not slash:
        yield from (f"{suite}/{name}" for name in tasks[suite])
        return
    if not slash:
        suite, name = "", part
    name = name.replace(" ", "_")
    if suite in tasks and name.isdigit() and int(name) < len(tasks[suite]):
        name = tasks[suite][int(name)]
    matches = [f"{s}/{name}" for s, names in tasks.items() if suite in ("", s) and name in names]
    if len(matches) != 1:
        got = f"{part!r}, which is in {', '.join(matches)}" if matches else repr(part)
        raise ConfigError(
            f"--tasks: expected suites ({', '.join(tasks)}), suite/index, or names of tasks, got {got}; separate "
            "several by commas."
        )
    yield matches[0]
