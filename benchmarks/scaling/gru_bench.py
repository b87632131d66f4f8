"""ONNX's GRU operator against its unrolled form, per runtime, over steps and hidden size, in turns.

Every form is compared with torch's GRU before it is timed: a wrong one is "failed" and has no latency. All candidates
of one size (both forms of every runtime, and torch) take part in the same rounds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fourphase.benchmarks.latency.sensors import watch
from fourphase.benchmarks.latency.statistics import (
    Measurement,
    Protocol,
    Sample,
    measure_interleaved,
    percentile,
    summary,
)
from fourphase.benchmarks.latency.torch_timer import Inference, Transfers, own_stream, timed, use_strict_fp32
from fourphase.benchmarks.latency.worker import why_failed
from fourphase.benchmarks.scaling.cpu_runtimes import CPU_RUNTIMES, LoadedGraph, load_graph, usable_threads, why_missing
from fourphase.benchmarks.scaling.gru_engines import ENGINE_RUNTIMES, EngineBudget, gru_engine
from fourphase.benchmarks.scaling.gru_graphs import FORMS, INPUT, OUTPUT, GruCase, GruGraphs, gru_graphs, why_wrong
from fourphase.benchmarks.scaling.gru_table import TORCH, GruRow, GruTable
from fourphase.runtime.console import progress
from fourphase.runtime.cuda import probe

__all__ = ["GRU_RUNTIMES", "QUICK_GRU", "GruOptions", "run_gru"]

GRU_RUNTIMES = (TORCH, *CPU_RUNTIMES, *ENGINE_RUNTIMES)
Candidates = dict[tuple[str, str], Callable[[], Sample]]


@dataclass(frozen=True)
class GruOptions:
    """What is measured.

    Attributes:
        runtimes: names out of GRU_RUNTIMES.
        slices, hidden: every pair of them; hidden sizes in the order in which engines get the time there is for them.
        inputs: features per step.
        engine_seconds: time for building engines, all together.
    """

    runtimes: tuple[str, ...] = GRU_RUNTIMES
    slices: tuple[int, ...] = (16, 32, 64, 128, 256)
    hidden: tuple[int, ...] = (256, 128, 512)
    inputs: int = 512
    engine_seconds: float = 60.0
    protocol: Protocol = field(default=Protocol(warmup_s=0.03, seconds=0.45, iterations=27, rounds=9))
    quick: bool = False


#: For rehearsals: shows that the code runs, not how fast.
QUICK_GRU = GruOptions(
    slices=(4, 8), hidden=(8,), inputs=16, engine_seconds=10, quick=True,
    protocol=Protocol(warmup_s=0, seconds=0, iterations=10, rounds=5),
)  # fmt: skip


def run_gru(options: GruOptions, save: Callable[[GruTable], None] = lambda table: None) -> GruTable:
    """Measures every size; `save` gets the table after each."""
    use_strict_fp32()
    table = GruTable(options.quick, _settings(options))
    cases = [GruCase(slices, hidden, options.inputs) for hidden in options.hidden for slices in options.slices]
    budget, rows = EngineBudget(options.engine_seconds), list[GruRow]()
    with progress("measuring the GRU's forms", len(cases)) as advance:
        for case in cases:
            rows += _measured(gru_graphs(case), options, budget)
            table = replace(table, rows=sorted(rows, key=_order))
            save(table)
            advance(1)
    return table


def _order(row: GruRow) -> tuple[int, int, int, int]:
    return GRU_RUNTIMES.index(row.runtime), row.hidden, row.slices, FORMS.index(row.form)


def _settings(options: GruOptions) -> dict[str, Any]:
    return {
        "protocol": asdict(options.protocol),
        "threads": usable_threads(),
        "torch_threads": torch.get_num_threads(),
        "torch_device": _device().type,
        "precision": "fp32",
        "batch": 1,
        "inputs": options.inputs,
        "slices": list(options.slices),
        "hidden": list(options.hidden),
        "engine_seconds": options.engine_seconds,
        "reference": "torch.nn.GRU in float64",
        "gmac": {f"{hidden}": GruCase(1, hidden, options.inputs).gmac for hidden in options.hidden},
        "gmac_is": "per step, by hidden size",
    }


def _device() -> torch.device:
    return torch.device("cuda" if probe().device is not None and torch.cuda.is_available() else "cpu")


def _measured(graphs: GruGraphs, options: GruOptions, budget: EngineBudget) -> list[GruRow]:
    """The rows of one size."""
    rows: dict[tuple[str, str], GruRow] = {}
    candidates: Candidates = {}
    for runtime in options.runtimes:
        for form in FORMS if runtime != TORCH else FORMS[:1]:
            nodes = None if runtime == TORCH else len(graphs.models[form].graph.node)
            row = GruRow(runtime, form, graphs.case.slices, graphs.case.hidden, "not measured", nodes=nodes)
            row, candidate = _prepared(row, graphs, budget)
            rows[runtime, form] = row
            if candidate is not None:
                candidates[runtime, form] = candidate
    named = {f"{runtime} {form}": candidate for (runtime, form), candidate in candidates.items()}
    with watch(gpu=False) as watcher:
        found = measure_interleaved(named, options.protocol)
    busy = watcher.result().busy_elsewhere
    for key in candidates:
        rows[key] = replace(_with_times(rows[key], found[" ".join(key)]), busy_elsewhere=busy)
    return list(rows.values())


def _prepared(row: GruRow, graphs: GruGraphs, budget: EngineBudget) -> tuple[GruRow, Callable[[], Sample] | None]:
    """Loads and checks one candidate: its row so far, and what runs it once; None if it is not to be timed."""
    if row.runtime in ENGINE_RUNTIMES:
        return gru_engine(row, graphs, budget)
    if row.runtime == TORCH:
        return _in_torch(row, graphs)
    missing = why_missing(row.runtime)
    if missing:
        return replace(row, status="missing", reason=missing), None
    try:
        loaded = load_graph(row.runtime, graphs.models[row.form].SerializeToString())
        state = loaded.run({INPUT: graphs.sequence})[OUTPUT]
    except Exception as error:  # the runtimes' exceptions share no base class
        return replace(row, status="failed", reason=why_failed(error)["reason"]), None
    found, wrong = why_wrong(state, graphs.reference)
    row = replace(row, prepare_s=loaded.prepare_s, layers=loaded.layers, difference=found)
    if wrong:
        return replace(row, status="failed", reason=wrong), None
    return row, _on_cpu(loaded, graphs)


def _on_cpu(loaded: LoadedGraph, graphs: GruGraphs) -> Callable[[], Sample]:
    inputs: Mapping[str, Any] = {INPUT: graphs.sequence}
    return timed(Inference(_nothing, lambda: _ignore(loaded.run(inputs)), _nothing), None)


def _in_torch(row: GruRow, graphs: GruGraphs) -> tuple[GruRow, Callable[[], Sample] | None]:
    device = _device()
    # A copy: the module itself stays on the CPU for the next size.
    module, transfers = copy.deepcopy(graphs.module).to(device), Transfers(torch.from_numpy(graphs.sequence), device)
    stream, results = own_stream(device), list[torch.Tensor]()

    def compute() -> None:
        with torch.no_grad():
            results[:] = [module(transfers.input)]

    once = timed(Inference(transfers.upload, compute, lambda: transfers.download(results)), stream)
    once()
    found, wrong = why_wrong(transfers.outputs[0].numpy(), graphs.reference)
    row = replace(row, difference=found)
    return (replace(row, status="failed", reason=wrong), None) if wrong else (row, once)


def _with_times(row: GruRow, measurement: Measurement) -> GruRow:
    if measurement.error is not None:
        return replace(row, status="failed", reason=why_failed(measurement.error)["reason"])
    rounds: Sequence[Sequence[float]] = [[sample.latency_ms for sample in part] for part in measurement.rounds]
    medians = tuple(percentile(part, 50) for part in rounds)
    times = summary([ms for part in rounds for ms in part])
    return replace(row, status="ok", latency_ms=times, round_medians_ms=medians)


def _ignore(outputs: object) -> None:
    """The outputs are made; nobody needs them."""


def _nothing() -> None:
    """On the CPU nothing is copied."""
