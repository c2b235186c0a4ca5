"""Time works in interleaved rounds: rates, ratios by wall and by processor time, memory, share of the device's peak."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...gr_model.train.throughput import device_peak
from ..metrics.rounds import Rate, compare_rates
from ..metrics.statistics import bootstrap_mean

Ratio = tuple[float, float, float]
"""Mean of the ratios round by round, and its 95 % bootstrap interval."""

_LEAST_S = 0.25
"""A work is repeated within a round until it took so long [s]; shorter times measure the scheduler."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how everything of one run is computed, ours and the others' alike.

    compile_mode: of `torch.compile` for the trunks in training; None leaves them as they are.
    """

    device: torch.device
    bfloat16: bool
    rounds: int
    compile_mode: str | None = None

    def autocast(self) -> AbstractContextManager[object]:
        """Compute matrix products in bfloat16 where the setting asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Something that is timed: `step` does it once and returns how many items it did."""

    step: Callable[[], int]
    flops_per_item: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one work.

    processor_ratio: ratio to the reference by processor time, which other load on the machine moves less.
    peak_mb: memory a step takes beyond what was held before it [MB].
    utilization: share of the device's peak, or, on a CPU, of what one large matrix product reaches.
    """

    unit: str
    rate: Rate
    processor_ratio: Ratio | None
    peak_mb: float | None
    utilization: float | None

    def text(self) -> str:
        """Write the row in one line."""
        rate = self.rate
        text = f"{rate.median:>11,.4g} {self.unit} ({rate.low:,.4g} to {rate.high:,.4g})"
        if rate.ratio is not None and self.processor_ratio is not None:
            text += f"  wall {_interval(rate.ratio)}  processor {_interval(self.processor_ratio)}"
        if self.peak_mb is not None:
            text += f"  +{self.peak_mb:,.0f} MB"
        if self.utilization is not None:
            text += f"  {100 * self.utilization:.0f} % of peak"
        return text


@dataclass
class _Clock:
    """Call a work a few times, wait until the device has done it, and note both kinds of rates."""

    work: Work
    device: torch.device
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def __call__(self) -> int:
        wall, processor = time.perf_counter(), time.process_time()
        items = 0
        while items == 0 or time.perf_counter() - wall < _LEAST_S:
            items += self.work.step()
            _wait(self.device)
        self.wall.append(items / (time.perf_counter() - wall))
        self.processor.append(items / max(time.process_time() - processor, 1e-9))
        return items


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of works that were timed in the same rounds."""

    rows: dict[str, Row]
    wall: dict[str, list[float]]
    processor: dict[str, list[float]]

    def ratio(self, name: str, other: str) -> tuple[Ratio, Ratio]:
        """Return how many times as fast `name` is as `other`: by wall time, by processor time."""
        return (
            ratio_of(self.wall[name], self.wall[other]),
            ratio_of(self.processor[name], self.processor[other]),
        )


def ratio_of(rates: list[float], others: list[float]) -> Ratio:
    """Return the mean ratio of rates paired by round, with its bootstrap interval."""
    interval = bootstrap_mean([a / b for a, b in zip(rates, others, strict=True)])
    return interval.as_metric()


def measure(works: Mapping[str, Work], unit: str, reference: str, setting: Setting) -> Table:
    """Time every work once a round, after a round that does not count; then take the memory of one more step each."""
    clocks = {name: _Clock(work, setting.device) for name, work in works.items()}
    rates = compare_rates(clocks, setting.rounds, reference)
    wall = {name: clock.wall[1:] for name, clock in clocks.items()}
    processor = {name: clock.processor[1:] for name, clock in clocks.items()}
    peak = peak_flops(setting) if any(work.flops_per_item for work in works.values()) else None
    rows = {}
    for name, work in works.items():
        flops = work.flops_per_item
        rows[name] = Row(
            unit=unit,
            rate=rates[name],
            processor_ratio=None if name == reference else ratio_of(processor[name], processor[reference]),
            peak_mb=peak_memory_mb(work.step, setting.device),
            utilization=None if flops is None or peak is None else rates[name].median * flops / peak,
        )
    return Table(rows=rows, wall=wall, processor=processor)


def peak_flops(setting: Setting) -> float | None:
    """Return the peak [FLOP/s]: of a CUDA device by its name (None: unknown), of a CPU by a large matrix product."""
    if setting.device.type == "cuda":
        return device_peak(torch.cuda.get_device_name(setting.device)) if setting.bfloat16 else None
    size, seconds = 1024, []
    a = torch.randn(size, size, dtype=torch.bfloat16 if setting.bfloat16 else torch.float32)
    for _ in range(6):
        begin = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / float(np.median(seconds[1:]))


def peak_memory_mb(step: Callable[[], int], device: torch.device) -> float | None:
    """Run a step; return the most memory held during it beyond what was held before [MB], None where unknown.

    On a CPU this is resident memory as Linux counts it, after unused memory is handed back.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        _wait(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident_kb("VmRSS")
    except (OSError, AttributeError, TypeError):
        return None
    step()
    return (_resident_kb("VmHWM") - before) * 1024 / 1e6


def _resident_kb(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _interval(ratio: Ratio) -> str:
    value, low, high = ratio
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
