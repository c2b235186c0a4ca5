"""Find the policy that a user names: shipped, trained, remote, a class of their own, or a simulator's experts."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import ModuleType

from ...contracts import ActionTrajectory, Chunking, JointTrajectory, Observation, Policy, SignalTrajectory, Trajectory
from ...embodiment import Embodiment
from ...errors import CheckpointError, Gr2Error, PolicyError
from ...hub import names_repository
from .remote import RemotePolicy
from .vla_eval_policy import VlaEvalPolicy
from .websocket_policy import OpenpiPolicy, WebSocketPolicy

SCRIPTED = "scripted"

EXECUTED_STEPS = 5
"""Control steps of each chunk that a policy which does not say wants carried out."""


def open_policy(
    source: str,
    *,
    executed_steps: int | None = None,
    expert: Callable[[], Policy] | None = None,
    chunking: Chunking = "independent",
    latency: float = 0.0,
    embodiment: str | Embodiment | None = None,
    adapt: Callable[[object], Policy] | None = None,
) -> Policy:
    """Return the policy called `source`; who opens it closes it.

    Args:
        source: "pretrained"; a folder with a released model, or `user/name` of one on the Hugging Face Hub;
            "scripted" (the experts, which read the simulator's state); "http://host:port" of `gr2 serve`;
            "openpi://host:port" or "vla-eval://host:port", with "?map=" and a map where the server is not ours; or
            "package.module:name" or "file.py:name", a class or function that makes, without arguments, an object with
            `reset()` and `act(Observation) -> ActionTrajectory`.
        executed_steps: control steps of each chunk carried out before the next call; None leaves it to the policy.
        expert: makes the scripted policy, where there is a simulator that has one.
        chunking: how a chunk of a released model relates to the running one.
        latency: how long after its observation a chunk of a released model becomes available [s].
        embodiment: the robot to act for, where a released model serves several: its name, or one that it must fit.
        adapt: makes a policy of an object of a user's file that has another interface.

    Raises:
        ConfigError: a released model that does not know the robot.
        PolicyError: there is no such module or name, or it makes something else.
    """
    make = policy_maker(
        source, executed_steps=executed_steps, expert=expert, chunking=chunking, latency=latency,
        embodiment=embodiment, adapt=adapt,
    )  # fmt: skip
    return make()


def policy_maker(
    source: str,
    *,
    executed_steps: int | None = None,
    device: str = "cpu",
    expert: Callable[[], Policy] | None = None,
    chunking: Chunking = "independent",
    latency: float = 0.0,
    embodiment: str | Embodiment | None = None,
    adapt: Callable[[object], Policy] | None = None,
) -> Callable[[], Policy]:
    """Return what makes policies called `source`, each with a past of its own; a released model is loaded once.

    Args:
        source: as for `open_policy`.
        executed_steps: as for `open_policy`.
        device: where a released model runs.
        expert: makes the scripted policy, where there is a simulator that has one.
        chunking: how a chunk of a released model relates to the running one.
        latency: how long after its observation a chunk of a released model becomes available [s].
        embodiment: as for `open_policy`.
        adapt: as for `open_policy`.

    Raises:
        PolicyError: there is no such module or name, no simulator for the experts, chunks that are not gr2's are to be
            continued, or what is to be adapted is not of a user's file.
    """
    remote, mine = _is_remote(source), is_of_user(source)
    if adapt is not None and not mine:
        raise PolicyError(f"--interface: expected --policy file.py:Class, got {source}; leave --interface out.")
    place, _, name = source.rpartition(":")
    if chunking != "independent" and (source == SCRIPTED or remote or mine):
        raise PolicyError(
            f"--chunking {chunking}: expected a released model here, got --policy {source}, whose chunks are made "
            "elsewhere; leave it out" + (", and give it to `gr2 serve`." if remote else ".")
        )
    if source == SCRIPTED:
        if expert is None:
            raise PolicyError(
                "--policy scripted: expected a policy that needs no simulator, got the experts, which read a "
                "simulator's state; name another policy."
            )
        return expert
    if remote:
        return _remote_maker(source, executed_steps, embodiment)
    if mine:
        return partial(_checked, _find(place, name, source), name, source, executed_steps, adapt)
    from .loading import assemble, policy_of

    parts = assemble(source).to(device)
    return partial(
        policy_of,
        parts,
        executed_steps=executed_steps or EXECUTED_STEPS,
        chunking=chunking,
        latency=latency,
        embodiment=embodiment,
    )


def policy_fingerprint(source: str, *, embodiment: Embodiment | None = None) -> str:
    """Return what tells a policy from others of the same name, so that their results are not mixed.

    Of a released model the SHA-256 of its weights; of a user's policy that of its source file, of the modules beside it
    that it imports, and, where the class or function has a `fingerprint` (a text, or a method without arguments), of
    that; of a server what it states. Empty for the experts and for a server that states none.

    Args:
        source: as for `open_policy`.
        embodiment: the robot to act for, on which the map of a server may depend.

    Raises:
        CheckpointError: a folder without a released model.
        EnvironmentMissing: no server answers.
        PolicyError: there is no such module or name, or its `fingerprint` is no text.
    """
    if source == SCRIPTED:
        return ""
    if _is_remote(source):
        with closing(_remote_maker(source, None, embodiment)()) as policy:
            return policy.fingerprint
    if is_of_user(source):
        place, _, name = source.rpartition(":")
        module = _module(place, source)
        stated = _stated(_member(module, name, source), source)
        sources = b"".join(file.read_bytes() for file in _sources(module))
        return hashlib.sha256(sources + stated.encode()).hexdigest()
    from ..model.release import release_folder

    weights = release_folder(source) / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(
            f"--policy {source}: expected a folder with a released model, got one without model.safetensors; name the "
            'folder that `gr2 finetune` wrote, "pretrained", "scripted", a server (http://host:port, openpi://, '
            "vla-eval://), or file.py:Class."
        )
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def _sources(module: ModuleType) -> list[Path]:
    """Return the source of a user's module and of the modules in its folder that it uses, itself first."""
    place = Path(module.__file__ or "").parent
    found: dict[Path, None] = {}
    waiting = [module]
    while waiting:
        one = waiting.pop()
        file = Path(getattr(one, "__file__", None) or "")
        if file in found or not file.is_file() or place not in file.parents or "site-packages" in file.parts:
            continue
        found[file] = None
        used = [value if isinstance(value, ModuleType) else _home(value) for value in vars(one).values()]
        waiting += [value for value in used if isinstance(value, ModuleType)]
    return [*list(found)[:1], *sorted(list(found)[1:])]


def _home(value: object) -> ModuleType | None:
    """Return the module that a class or function comes from, None for other values."""
    name = getattr(value, "__module__", None)
    return sys.modules.get(name) if isinstance(name, str) else None


def _stated(factory: Callable[[], object], source: str) -> str:
    """Return the fingerprint that a user's class or function states, "" where it states none."""
    stated = getattr(factory, "fingerprint", "")
    try:
        stated = stated() if callable(stated) else stated
    except Exception as error:
        raise PolicyError(f"--policy {source}: fingerprint() failed: {error!r}; make it a static method.") from error
    if not isinstance(stated, str):
        raise PolicyError(
            f"--policy {source}: expected `fingerprint` to be a text or a static method that returns one, got "
            f"{type(stated).__name__}."
        )
    return stated


def _is_remote(source: str) -> bool:
    return source.startswith(("http://", "https://", "openpi://", "vla-eval://"))


def _remote_maker(
    source: str, executed_steps: int | None, embodiment: str | Embodiment | None
) -> Callable[[], RemotePolicy | WebSocketPolicy]:
    """Return what connects to a server."""
    if source.startswith("http"):
        return partial(RemotePolicy, source)
    robot = embodiment if isinstance(embodiment, Embodiment) else None
    kind = OpenpiPolicy if source.startswith("openpi") else VlaEvalPolicy
    return partial(kind, source, executed_steps=executed_steps, robot=robot)


def is_of_user(source: str) -> bool:
    """Return whether a policy's name is of a user's class or function: "file.py:name" or "package.module:name"."""
    elsewhere = _is_remote(source) or names_repository(source)
    return ":" in source and not elsewhere and not Path(source).exists()


def _find(place: str, name: str, source: str) -> Callable[[], object]:
    """Import a user's module and return what makes the policy."""
    return _member(_module(place, source), name, source)


def _member(module: ModuleType, name: str, source: str) -> Callable[[], object]:
    factory = getattr(module, name, None)
    if not callable(factory):
        place = source.rpartition(":")[0]
        raise PolicyError(f"--policy {source}: expected a class or function {name!r} in {place}, found none there.")
    return factory  # type: ignore[no-any-return]


def _checked(
    factory: Callable[[], object],
    name: str,
    source: str,
    executed_steps: int | None,
    adapt: Callable[[object], Policy] | None,
) -> CheckedPolicy:
    """Make a user's policy."""
    try:
        made = factory()
    except Exception as error:
        raise PolicyError(f"--policy {source}: {name}() failed: {error!r}; it must work without arguments.") from error
    if adapt is not None:
        made = adapt(made)
    missing = [method for method in ("reset", "act") if not callable(getattr(made, method, None))]
    if missing:
        raise PolicyError(
            f"--policy {source}: expected an object with reset() and act(observation), got {type(made).__name__} "
            f"without {' and '.join(missing)}."
        )
    wrapper = CheckedBatchPolicy if callable(getattr(made, "act_together", None)) else CheckedPolicy
    return wrapper(made, source, executed_steps)  # type: ignore[arg-type]


def _module(place: str, source: str) -> ModuleType:
    if "://" in source or source.rpartition(":")[2].isdecimal():
        raise PolicyError(
            f"--policy {source}: expected the address of a server as http://host:8000 (gr2 serve), openpi://host:8000 "
            "or vla-eval://host:8000; say which by its beginning."
        )
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


class CheckedPolicy:
    """A user's policy whose answers are checked, so that a mistake is named where it happens; `close` may be absent."""

    def __init__(self, policy: Policy, source: str, executed_steps: int | None) -> None:
        self.policy, self.source = policy, source
        own: int = getattr(policy, "executed_steps", EXECUTED_STEPS)
        self.executed_steps = executed_steps or own
        self.uses_images = bool(getattr(policy, "uses_images", True))
        self.simulator_actions = bool(getattr(policy, "simulator_actions", False))
        trained = getattr(policy, "embodiment", None)
        self.embodiment = trained if isinstance(trained, Embodiment) else None

    def reset(self) -> None:
        """Begin an episode or sub-task."""
        self.policy.reset()

    def act(self, observation: Observation) -> Trajectory:
        """Return the user's trajectory.

        Raises:
            PolicyError: it failed, or is no trajectory.
        """
        try:
            answer: object = self.policy.act(observation)
        except Gr2Error as error:
            raise PolicyError(f"--policy {self.source}: act() failed: {error}") from error
        except Exception as error:
            raise PolicyError(f"--policy {self.source}: act() failed: {error!r}.") from error
        return self._check(answer, "act")

    def close(self) -> None:
        """Close the user's policy where it can be closed."""
        close = getattr(self.policy, "close", None)
        if callable(close):
            close()

    def _check(self, answer: object, method: str) -> Trajectory:
        if isinstance(answer, SignalTrajectory) and len(answer.values):
            return answer
        if isinstance(answer, JointTrajectory) and len(answer.positions):
            return answer
        if not isinstance(answer, ActionTrajectory) or len(answer.positions) == 0:
            got = "an empty trajectory" if isinstance(answer, Trajectory) else type(answer).__name__
            raise PolicyError(f"--policy {self.source}: expected {method}() to return an ActionTrajectory, got {got}.")
        return answer


class CheckedBatchPolicy(CheckedPolicy):
    """A user's policy that can act together with others of its kind."""

    def act_together(self, policies: Sequence[CheckedPolicy], observations: Sequence[Observation]) -> list[Trajectory]:
        """Return the trajectories of the user's policies, one for each observation.

        Raises:
            PolicyError: it failed, or an answer is missing or no trajectory.
        """
        together: Callable[..., Sequence[object]] = self.policy.act_together  # type: ignore[attr-defined]
        try:
            answers = list(together([one.policy for one in policies], observations))
        except Exception as error:
            raise PolicyError(f"--policy {self.source}: act_together() failed: {error!r}.") from error
        if len(answers) != len(observations):
            raise PolicyError(
                f"--policy {self.source}: expected act_together() to return {len(observations)} trajectories, got "
                f"{len(answers)}."
            )
        return [self._check(answer, "act_together") for answer in answers]
