"""Find the policy that a user names: shipped, trained, scripted, remote, or a class of their own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from ...contracts import ActionTrajectory, Observation
from ...errors import PolicyError
from ...gr_model.act.policy import Policy
from ..simulation.world import World
from .scripted import ScriptedPolicy

SCRIPTED = "scripted"


def open_policy(source: str, env: World, *, executed_steps: int = 5) -> Policy:
    """Return the policy called `source`, ready to act in `env`.

    Args:
        source: "pretrained"; a folder with a released model; "scripted" (the experts, which read the simulator's
            state); "http://host:port" of `gr2 serve`; or "package.module:name" or "file.py:name", a class or function
            that makes, without arguments, an object with `reset()` and `act(Observation) -> ActionTrajectory`.
        env: the world it acts in.
        executed_steps: control steps of each chunk carried out before the next call.

    Raises:
        PolicyError: there is no such module or name, or it makes something else.
    """
    if source == SCRIPTED:
        return ScriptedPolicy(env)
    if source.startswith(("http://", "https://")):
        from ...gr_model.act.remote import RemotePolicy

        return RemotePolicy(source)
    place, colon, name = source.rpartition(":")
    if colon and not Path(source).exists():
        return _CheckedPolicy(_make(place, name, source), source, executed_steps)
    from ...gr_model.act.loading import load_policy

    return load_policy(source, executed_steps=executed_steps)


def _make(place: str, name: str, source: str) -> Policy:
    """Import a user's module and make the policy."""
    module = _module(place, source)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise PolicyError(f"--policy {source}: expected a class or function {name!r} in {place}, found none there.")
    try:
        made = factory()
    except Exception as error:
        raise PolicyError(f"--policy {source}: {name}() failed: {error!r}; it must work without arguments.") from error
    missing = [method for method in ("reset", "act") if not callable(getattr(made, method, None))]
    if missing:
        raise PolicyError(
            f"--policy {source}: expected an object with reset() and act(observation), got {type(made).__name__} "
            f"without {' and '.join(missing)}."
        )
    return made  # type: ignore[no-any-return]


def _module(place: str, source: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(f"gr2_user_policy_{Path(place).stem}", place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise PolicyError(f"--policy {source}: expected a Python file {place}, found none; check the path.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except PolicyError:
        raise
    except Exception as error:
        raise PolicyError(f"--policy {source}: {place} cannot be imported: {error!r}.") from error


class _CheckedPolicy:
    """A user's policy whose answers are checked, so that a mistake is named where it happens."""

    def __init__(self, policy: Policy, source: str, executed_steps: int) -> None:
        self.policy, self.source = policy, source
        self.executed_steps = int(getattr(policy, "executed_steps", executed_steps))

    def reset(self) -> None:
        """Begin an episode or sub-task."""
        self.policy.reset()

    def act(self, observation: Observation) -> ActionTrajectory:
        """Return the user's trajectory, or say what is wrong with it."""
        try:
            answer: object = self.policy.act(observation)
        except Exception as error:
            raise PolicyError(f"--policy {self.source}: act() failed: {error!r}.") from error
        if not isinstance(answer, ActionTrajectory) or len(answer.positions) == 0:
            got = "an empty trajectory" if isinstance(answer, ActionTrajectory) else type(answer).__name__
            raise PolicyError(f"--policy {self.source}: expected act() to return an ActionTrajectory, got {got}.")
        return answer
