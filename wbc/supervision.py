"""Watch the measured joints: slow down when they lag behind the commands, stop when they lag too far."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from .limits import shortest_turn
from .robot.transforms import Array
from .status import EventLog


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionConfig:
    """Thresholds of the supervision.

    warn_angle: following error [rad] from which the arm slows down; stop_angle: from which it stops.
    slow_scale: share of the speed while slowed; ramp: change of that share in a second [1/s].
    max_bad_measurements: measurements in a row that are not finite or of another shape, before the arm stops.
    restart_jump: following error [rad] beyond which a standing arm takes no chunk.
    max_gap: time without a tick [s] after which the reference is dropped and the arm holds.

    Source: Kinova Gen3 user guide (following error: warning at 3 degrees, fault at 5).
    """

    warn_angle: float = math.radians(3.0)
    stop_angle: float = math.radians(5.0)
    slow_scale: float = 0.5
    ramp: float = 2.0
    max_bad_measurements: int = 5
    restart_jump: float = 0.05
    max_gap: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 < self.warn_angle < self.stop_angle:
            raise ConfigError(
                f"supervision: expected 0 < warn_angle < stop_angle, got {self.warn_angle} and {self.stop_angle} rad."
            )


class Supervision:
    """Following-error supervision of one arm; `scale` is the share of the speed that the reference may run at."""

    def __init__(self, config: SupervisionConfig, dt: float, endless: npt.NDArray[np.bool_]) -> None:
        """Begin at full speed.

        Args:
            config: thresholds.
            dt: duration of a tick [s].
            endless: `[j]` joints without stops; whichever turn they are measured in, the nearest one counts.
        """
        self.config, self.dt, self._endless = config, dt, endless
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        self.scale, self.error, self.slowed, self._bad = 1.0, 0.0, False, 0

    def see(self, commanded: Array, measured: npt.ArrayLike | None, time: float, log: EventLog) -> str:
        """Compare measured with commanded joints `[j]` [rad]; return why the arm must stop, or an empty string."""
        if measured is not None:
            values = _numbers(measured, len(commanded))
            if values is None:
                self._bad += 1
                log.record(
                    time, "measurement", f"expected {len(commanded)} finite joint positions, got {measured!r:.80}"
                )
                if self._bad > self.config.max_bad_measurements:
                    return f"{self._bad} unusable measurements in a row"
            else:
                self._bad = 0
                self.error = float(np.abs(shortest_turn(values - commanded, self._endless)).max())
                if self.error > self.config.stop_angle:
                    return f"a joint is {math.degrees(self.error):.1f} degrees from its command"
                self._watch(time, log)
        target = self.config.slow_scale if self.slowed else 1.0
        step = self.config.ramp * self.dt
        self.scale = min(max(target, self.scale - step), self.scale + step)
        return ""

    def _watch(self, time: float, log: EventLog) -> None:
        """Slow down above the warning angle; return to full speed below four fifths of it."""
        if not self.slowed and self.error > self.config.warn_angle:
            self.slowed = True
            log.record(time, "following_error", f"{math.degrees(self.error):.1f} degrees, slowing down")
        elif self.slowed and self.error < 0.8 * self.config.warn_angle:
            self.slowed = False
            log.record(time, "following_error_over", f"{math.degrees(self.error):.1f} degrees, back to full speed")


def _numbers(values: npt.ArrayLike, count: int) -> Array | None:
    """Return finite numbers `[count]`, or None."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return array if array.shape == (count,) and bool(np.all(np.isfinite(array))) else None
