"""What the machine did while something was measured: energy, temperatures, clocks, throttling, and who else was busy.

    with watch() as watcher:
        ...
    watched = watcher.result()

A thread reads every sensor five times a second. What cannot be read here is absent and named in the notes; nothing is
estimated. Energy is that of the whole source (package, rail, board), whoever used it.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from fourphase.benchmarks.latency.sensor_gpu import NvidiaSmi, nvml_probes
from fourphase.benchmarks.latency.sensor_sources import Probe, file_probes, usable_cores
from fourphase.runtime import cuda

__all__ = ["Watched", "Watcher", "counted", "integrated", "watch"]

#: Seconds between readings.
INTERVAL_S = 0.2
#: The kernel counts in ticks of 10 ms: over a shorter time the share of others is mostly rounding.
_SHORTEST_S = 0.5
_ROOT = Path("/")
#: (seconds, value) pairs in the order of time.
Series = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Watched:
    """What was read; a source that is not there has no key.

    Attributes:
        seconds: from the first to the last reading.
        energy_j: source -> joules. Sources may overlap (a board's input rail holds all others): never add them up.
        temperature_c: sensor -> highest. clock_mhz: "cpu", "gpu" -> (lowest, highest) of all readings of all cores.
        throttled: source -> whether it slowed down at any reading, or its counter of such events grew.
        busy_elsewhere: share (0 to 1) of the usable cores' time that other processes and the hypervisor's steal took;
            None if it could not be told.
        notes: what cannot be read here, and why.
    """

    seconds: float
    energy_j: Mapping[str, float] = field(default_factory=dict)
    temperature_c: Mapping[str, float] = field(default_factory=dict)
    clock_mhz: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    throttled: Mapping[str, bool] = field(default_factory=dict)
    busy_elsewhere: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self) | {
            "clock_mhz": {name: list(ends) for name, ends in self.clock_mhz.items()},
            "notes": list(self.notes),
        }


class Watcher:
    """Keeps what a context of `watch` reads."""

    def __init__(self, probes: Sequence[Probe], notes: Sequence[str], root: Path) -> None:
        self._probes, self._notes, self._root = tuple(probes), tuple(notes), root
        self._times: list[float] = []
        self._values: list[list[tuple[float, Sequence[float]]]] = [[] for _ in probes]
        self._cpu: list[_CpuTime | None] = []
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def result(self) -> Watched:
        """What was read. Raises: RuntimeError before the context's end."""
        if not self._ended.is_set():
            raise RuntimeError("the watcher is still watching: ask it after its context")
        energy, throttled = {}, {}
        temperatures: dict[str, float] = {}
        clocks: dict[str, tuple[float, float]] = {}
        for probe, readings in zip(self._probes, self._values, strict=True):
            values = [value for _, found in readings for value in found]
            series = [(when, found[0]) for when, found in readings if found]
            if probe.kind in ("counter", "power") and len(series) > 1:
                energy[probe.name] = counted(series, probe.wraps_at) if probe.kind == "counter" else integrated(series)
            elif probe.kind == "temperature" and values:
                temperatures[probe.name] = max(values)
            elif probe.kind == "clock" and values:
                clocks[probe.name] = (min(values), max(values))
            elif probe.kind in ("count", "flag") and values:
                throttled[probe.name] = values[-1] > values[0] if probe.kind == "count" else any(values)
        busy, notes = self._busy_elsewhere()
        missing = [
            f"{what}: no sensor can be read here"
            for what, found in (("energy", energy), ("temperature", temperatures), ("clock", clocks),
                                ("throttling", throttled))
            if not found
        ]  # fmt: skip
        seconds = self._times[-1] - self._times[0]
        said = (*self._notes, *notes, *missing)
        return Watched(seconds, energy, temperatures, clocks, throttled, busy, said)

    def _begin(self) -> None:
        self._cpu.append(_cpu_time(self._root))
        self._read()

    def _follow(self, interval_s: float) -> None:
        while not self._ended.wait(interval_s):
            self._read()

    def _end(self) -> None:
        self._ended.set()
        self._read()
        self._cpu.append(_cpu_time(self._root))

    def _read(self) -> None:
        with self._lock:
            self._times.append(time.perf_counter())
            for probe, kept in zip(self._probes, self._values, strict=True):
                kept.append((time.perf_counter(), [value for value in probe.read() if math.isfinite(value)]))

    def _busy_elsewhere(self) -> tuple[float | None, tuple[str, ...]]:
        first, last = self._cpu
        if first is None or last is None:
            return None, ("busy_elsewhere: /proc/stat cannot be read here",)
        if last.wall_s - first.wall_s < _SHORTEST_S:
            return None, (f"busy_elsewhere: a run of less than {_SHORTEST_S:g} s tells nothing",)
        return busy_share(first, last), ()


@contextmanager
def watch(
    root: Path = _ROOT,
    *,
    interval_s: float = INTERVAL_S,
    gpu: bool = True,
    before: Callable[[], object] = lambda: None,
) -> Iterator[Watcher]:
    """Watches the machine while the context lasts; a missing sensor is never an error.

    Args:
        root: where `sys` and `proc` lie.
        gpu: also ask the GPU that CUDA uses.
        before: called when the sensors are open, right before the first reading: starting nvidia-smi takes a second,
            in which what was warm cools down.
    """
    probes, notes = file_probes(root)
    close = _nothing
    if gpu:
        on_gpu, close, said = _gpu_probes()
        probes, notes = [*probes, *on_gpu], [*notes, *said]
    try:
        before()
        watcher = Watcher(probes, notes, root)
        thread = threading.Thread(target=watcher._follow, args=(interval_s,), name="sensors", daemon=True)
        watcher._begin()
        thread.start()
        try:
            yield watcher
        finally:
            watcher._end()
            thread.join()
    finally:
        close()


def counted(series: Series, wraps_at: float | None) -> float:
    """How much a counter grew, wrapped around at most once between two readings.

    One that fell without a known range was reset: what it counted since then is all that is known.
    """
    total = 0.0
    for (_, before), (_, after) in pairwise(series):
        total += after - before if after >= before else after + ((wraps_at or before) - before)
    return total


def integrated(series: Series) -> float:
    """The integral over seconds by the trapezoid rule: joules of watts."""
    return sum((one + two) / 2 * (end - start) for (start, one), (end, two) in pairwise(series))


@dataclass(frozen=True)
class _CpuTime:
    """Seconds: the clock's, those that the usable cores were busy, and those that this process's family used."""

    wall_s: float
    busy_s: float
    own_s: float
    cores: int


def busy_share(first: _CpuTime, last: _CpuTime) -> float:
    """The share of the cores' time between two readings that neither was idle nor ours, 0 to 1."""
    offered = (last.wall_s - first.wall_s) * last.cores
    # A child that was never waited for takes its time with it: then ours would seem to shrink.
    own = max(last.own_s - first.own_s, 0.0)
    return min(max((last.busy_s - first.busy_s - own) / offered, 0.0), 1.0)


def _cpu_time(root: Path) -> _CpuTime | None:
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    usable = usable_cores()
    try:
        lines = (root / "proc/stat").read_text(encoding="ascii").splitlines()
        rows = {row[0]: [int(cell) for cell in row[1:]] for row in map(str.split, lines) if row and row[0][:3] == "cpu"}
        # user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user's.
        busy = sum(sum(rows[f"cpu{core}"][:8]) - sum(rows[f"cpu{core}"][3:5]) for core in usable)
        own = family_ticks(root / "proc", os.getpid())
    except (OSError, ValueError, KeyError):
        return None
    return _CpuTime(time.perf_counter(), busy / ticks_per_s, own / ticks_per_s, len(usable))


def family_ticks(proc: Path, pid: int) -> int:
    """CPU time of a process, its descendants and those of them that ended and were waited for, in ticks."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in proc.iterdir():
        if folder.name.isdecimal() and (found := _process(folder / "stat")):
            parents[int(folder.name)], ticks[int(folder.name)] = found
    children: dict[int, list[int]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    family, found_pids = [pid], []
    while family:
        found_pids.append(family.pop())
        family += children.get(found_pids[-1], [])
    return sum(ticks.get(member, 0) for member in found_pids)


def _process(path: Path) -> tuple[int, int] | None:
    """(parent, utime + stime + those of children that were waited for); see proc(5)."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        # The name, in brackets, may hold blanks and brackets itself.
        fields = re.sub(r"^.*\)", "", text, flags=re.S).split()
        return int(fields[1]), sum(int(fields[place]) for place in (11, 12, 13, 14))
    except (OSError, ValueError, IndexError):
        return None  # it has ended meanwhile


def _gpu_probes() -> tuple[list[Probe], Callable[[], None], tuple[str, ...]]:
    """The GPU's sensors, what ends them, and how they were reached or why not."""
    bus = cuda.pci_bus_id()
    if bus is None:
        found = cuda.probe()
        reason = found.reason if found.device is None else "the driver does not say where the GPU sits"
        return [], _nothing, (f"gpu: {reason}",)
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        program = NvidiaSmi(bus)
        probes = program.probes()
        if probes:
            return probes, program.close, ("gpu: read through nvidia-smi; its energy is integrated from its power",)
        program.close()
        return [], _nothing, ("gpu: no nvidia-ml-py and no nvidia-smi that answers",)
    probes = nvml_probes(nvml, bus)
    return probes, _nothing, () if probes else (f"gpu: NVML finds none at {bus}",)


def _nothing() -> None:
    """Nothing was opened."""
