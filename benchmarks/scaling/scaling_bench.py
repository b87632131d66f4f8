"""How the latency and memory of networks grow with slices, crop, batch and width; the points of a sweep take turns.

Each point runs in a process of its own, so that its peak memory is its own; all processes of a sweep (of every
runtime) are alive at once, and one runs at a time. Before it is timed, a point's outputs are compared with torch's at
that size. Weights are random: this says nothing of accuracy. How cost grows with the number of studies is `archive`'s
question.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.differences import FP32_RTOL, difference
from fourphase.benchmarks.latency.limits import Cost
from fourphase.benchmarks.latency.sensors import watch
from fourphase.benchmarks.latency.statistics import percentile, summary
from fourphase.benchmarks.scaling.apart import Apart, ApartFailed
from fourphase.benchmarks.scaling.cpu_runtimes import usable_threads, why_missing
from fourphase.benchmarks.scaling.models import sized_network
from fourphase.benchmarks.scaling.sweeps import FULL, KINDS, Point, ScalingTable, Size, Sweep, SweepResult
from fourphase.benchmarks.scaling.sweeps import QUICK as QUICK_SWEEPS
from fourphase.export.interface import INPUT
from fourphase.runtime.console import progress

__all__ = ["SCALING_NETWORKS", "ScalingOptions", "run_scaling"]

Floats = NDArray[np.float32]
Key = tuple[str, int]  # runtime, x

#: Ours, and the 3D network of the paper's baselines that costs least. Both take any slices, crop and width.
SCALING_NETWORKS = ("four-phase", "resnet3d-18-medicalnet")
_MEMINFO = Path("/proc/meminfo")
_VALUE_BYTES = 4
#: Copies of the weights while a graph is loaded: the file's bytes, the parsed model, the runtime's own layout.
_WEIGHT_COPIES = 4
_MOST_INFERENCES = 50


@dataclass(frozen=True)
class ScalingOptions:
    """What is measured.

    Attributes:
        networks: names out of SCALING_NETWORKS. runtimes: out of CPU_RUNTIMES. kinds: out of KINDS.
        rounds: of each sweep; each point takes its turn in each.
        round_seconds: as many inferences of a point as fit into this, 1 to 50, make its turn.
    """

    networks: tuple[str, ...] = SCALING_NETWORKS
    runtimes: tuple[str, ...] = ("onnxruntime",)
    kinds: tuple[str, ...] = KINDS
    rounds: int = 6
    round_seconds: float = 0.3
    quick: bool = False

    @property
    def sweeps(self) -> Mapping[str, Sweep]:
        return QUICK_SWEEPS if self.quick else FULL


def run_scaling(options: ScalingOptions, save: Callable[[ScalingTable], None] = lambda table: None) -> ScalingTable:
    """Measures every sweep; `save` gets the table after each. Raises: ExportRefused (25)."""
    table = ScalingTable(options.quick, _settings(options))
    wanted = [options.sweeps[kind] for kind in options.kinds]
    count = len(options.networks) * len(options.runtimes) * sum(len(sweep.xs) for sweep in wanted)
    with progress("measuring sizes", count) as advance:
        for network in options.networks:
            for sweep in wanted:
                table = replace(table, sweeps=[*table.sweeps, *_swept(network, sweep, options, advance)])
                save(table)
    return table


def _settings(options: ScalingOptions) -> dict[str, Any]:
    return {
        "protocol": {"rounds": options.rounds, "round_seconds": options.round_seconds, "order": "points take turns"},
        "threads": usable_threads(),
        "precision": "fp32",
        "reference": "torch eager FP32",
        "sweeps": {kind: asdict(options.sweeps[kind]) for kind in options.kinds},
        "weights": "random",
    }


def _swept(network: str, sweep: Sweep, options: ScalingOptions, advance: Callable[[int], None]) -> list[SweepResult]:
    """One sweep in every runtime, all their points in the same rounds."""
    points: dict[Key, Point] = {}
    ready: dict[Key, Apart] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for x in sweep.xs:
            given = _given(network, sweep.size(x), Path(folder, "model.onnx"))
            for runtime in options.runtimes:
                points[runtime, x], process = _loaded(Point(x, "not measured", gmac=given.gmac), runtime, given)
                if process is not None:
                    ready[runtime, x] = stack.enter_context(process)
                advance(1)
        points |= _in_turns(points, ready, options)
    return [
        SweepResult(sweep, network, runtime, tuple(points[runtime, x] for x in sweep.xs))
        for runtime in options.runtimes
    ]


@dataclass(frozen=True, eq=False)
class _Given:
    """What every runtime is given at one size: the model's file, and torch's outputs; `too_large` says why not."""

    size: Size
    model: Path
    gmac: float
    reference: Mapping[str, Floats]
    too_large: str = ""


def _given(name: str, size: Size, path: Path) -> _Given:
    network = sized_network(name, size.width)
    cost = network.cost(size)
    gmac, too_large = size.batch * cost.gmac, _too_large(cost, size.batch)
    if too_large:
        return _Given(size, path, gmac, {}, too_large)
    network.write(size, path)
    return _Given(size, path, gmac, network.reference(size))


def _loaded(point: Point, runtime: str, given: _Given) -> tuple[Point, Apart | None]:
    """Loads and compares one point in one runtime; its process if it is to be timed."""
    missing = why_missing(runtime)
    if missing or given.too_large:
        return replace(point, status="missing" if missing else "not measured", reason=missing or given.too_large), None
    try:
        process = Apart(runtime, given.model, INPUT, given.size.shape())
    except ApartFailed as failed:
        return replace(point, status="failed", reason=str(failed)), None
    found, wrong = _compared(process.outputs, given.reference)
    point = replace(point, prepare_s=process.prepare_s, peak_bytes=process.peak_bytes, difference=found)
    if wrong:
        process.close()
        return replace(point, status="failed", reason=wrong), None
    return point, process


def _compared(outputs: Mapping[str, Floats], reference: Mapping[str, Floats]) -> tuple[dict[str, Any], str]:
    found = difference(outputs, reference)
    relative = found["relative"]
    if relative is None:
        return found, "its outputs are not finite, or have other shapes than torch's"
    return found, f"off torch by {relative:.1e} of the largest output" if relative > FP32_RTOL else ""


def _too_large(cost: Cost, batch: int) -> str:
    """Why a point is not tried, "" if it fits: every activation at once, and the weights a few times over."""
    needed = _VALUE_BYTES * (_WEIGHT_COPIES * cost.parameters + batch * (cost.activations + cost.inputs_outputs))
    free = _available_bytes()
    if needed <= free:
        return ""
    return f"may need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are available"


def _available_bytes() -> int:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(encoding="ascii"))
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _in_turns(points: Mapping[Key, Point], ready: Mapping[Key, Apart], options: ScalingOptions) -> dict[Key, Point]:
    """The points whose processes are ready, timed."""
    times: dict[Key, list[list[float]]] = {key: [] for key in ready}
    failed: dict[Key, str] = {}
    with watch(gpu=False) as watcher:
        for _ in range(options.rounds):
            for key, process in ready.items():
                if key not in failed:
                    try:
                        times[key].append(process.run(_inferences(process.once_ms, options)))
                    except ApartFailed as error:
                        failed[key] = str(error)
    busy = watcher.result().busy_elsewhere
    return {
        key: replace(points[key], status="failed", reason=failed[key])
        if key in failed
        else replace(_with_times(points[key], times[key], process.peak_bytes), busy_elsewhere=busy)
        for key, process in ready.items()
    }


def _inferences(once_ms: float, options: ScalingOptions) -> int:
    return max(1, min(_MOST_INFERENCES, int(1e3 * options.round_seconds / once_ms)))


def _with_times(point: Point, rounds: list[list[float]], peak_bytes: int) -> Point:
    medians = tuple(percentile(part, 50) for part in rounds)
    times = summary([ms for part in rounds for ms in part])
    return replace(point, status="ok", latency_ms=times, round_medians_ms=medians, peak_bytes=peak_bytes)
