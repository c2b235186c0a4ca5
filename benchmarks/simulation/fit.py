"""Whether a policy was trained on the robot that a simulator offers; checked before the first episode."""

from __future__ import annotations

from dataclasses import replace

from ...contracts import Policy
from ...embodiment import TOOL_ARM, Embodiment
from ...errors import PolicyError
from .simulator import Simulator


def embodiment_of(simulator: Simulator) -> Embodiment:
    """Return what a simulator takes and gives: its own `embodiment`, else `TOOL_ARM` with its cameras and rate."""
    own = getattr(simulator, "embodiment", None)
    if isinstance(own, Embodiment):
        return own
    return replace(TOOL_ARM, name=simulator.name, cameras=simulator.cameras, control_hz=simulator.control_hz)


def show_what_it_sees(policy: Policy, simulator: Simulator) -> None:
    """Have a simulator show the extra cameras that it has and a policy sees, as `target_mask` of PlayTable."""
    extra = [name for name in getattr(simulator, "extra_cameras", ()) if name in getattr(policy, "cameras", ())]
    if extra:
        usual = [name for name in simulator.cameras if name not in extra]
        simulator.cameras = (*usual, *extra)  # type: ignore[misc]


def check_fit(policy: Policy, simulator: Simulator) -> None:
    """Refuse a policy of another robot. A policy that names no embodiment is taken as it is.

    The state and action signals must be the simulator's, and one of the policy's cameras must be there. The control
    rate may differ, since a trajectory carries its own.

    Raises:
        PolicyError: the policy needs other signals, or none of its cameras is there.
    """
    trained = getattr(policy, "embodiment", None)
    if not isinstance(trained, Embodiment):
        return
    offered = embodiment_of(simulator)
    different = offered.signal_differences(trained)
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise PolicyError(
            f"policy: expected the state and action signals of {simulator.name}, got a policy trained on "
            f"{trained.name} ({'; '.join(different[:3])}{more}); evaluate it with `gr2 benchmark actions`, or finetune "
            "it on data of this robot."
        )
    if trained.cameras and not set(trained.cameras) & set(offered.cameras):
        raise PolicyError(
            f"policy: expected one of the cameras {', '.join(offered.cameras)} of {simulator.name}, got a policy that "
            f"sees {', '.join(trained.cameras)}; finetune it on data with these camera names."
        )
