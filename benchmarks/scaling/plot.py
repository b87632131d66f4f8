"""Draws what `fp-bench gru` and `scaling` measured, one PNG each. Needs matplotlib (extra [report])."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourphase.benchmarks.scaling.gru_table import GruRatio, GruTable
from fourphase.benchmarks.scaling.sweeps import ScalingTable, SweepResult
from fourphase.runtime.atomic import write_file

__all__ = ["plot_gru", "plot_scaling"]

_MARKERS = ("o", "s", "^", "D", "v")
_REHEARSAL = "REHEARSAL (--quick): not a measurement"


def plot_gru(table: GruTable, path: Path) -> None:
    """Loop over unrolled against the number of steps: a panel per runtime, a line per hidden size, with intervals.

    A ratio that is not quoted (noisy, too few rounds) is its interval alone, dotted, without a marker.

    Raises: ModuleNotFoundError without matplotlib (the command names the extra), OutputNotWritable.
    """
    ratios = [ratio for ratio in table.ratios() if ratio.ratio.low is not None]
    runtimes = list(dict.fromkeys(ratio.runtime for ratio in ratios)) or ["nothing"]
    figure = _figure(5.2 * len(runtimes), 4.4)
    for axes, runtime in zip(figure.subplots(1, len(runtimes), squeeze=False)[0], runtimes, strict=True):
        of_runtime = [ratio for ratio in ratios if ratio.runtime == runtime]
        hidden = sorted({ratio.hidden for ratio in of_runtime})
        for index, size in enumerate(hidden):
            _draw_ratios(axes, [ratio for ratio in of_runtime if ratio.hidden == size], index, len(hidden))
        _finish_ratios(axes, runtime, sorted({ratio.slices for ratio in of_runtime}))
    figure.supylabel("time of the loop / time of the unrolled form", fontsize=10)
    threads, inputs = table.settings["threads"], table.settings["inputs"]
    sizes = f"GRU, {inputs} features a step, batch 1, FP32, {threads} threads"
    figure.suptitle(_title(f"{sizes}: above 1, the loop is slower (dotted: noisy)", table.quick), fontsize=10)
    _write(figure, path)


def _draw_ratios(axes: Any, ratios: Sequence[GruRatio], index: int, lines: int) -> None:
    """One hidden size; the lines are set a little apart, so that their intervals do not lie on each other."""
    shift = 1.04 ** (index - (lines - 1) / 2)
    colour, marker = f"C{index}", _MARKERS[index % len(_MARKERS)]
    for ratio in ratios:
        x = ratio.slices * shift
        style = ":" if ratio.ratio.value is None else "-"
        axes.plot([x, x], [ratio.ratio.low, ratio.ratio.high], style, color=colour, linewidth=1.4)
    quoted = [(ratio.slices * shift, ratio.ratio.value) for ratio in ratios if ratio.ratio.value is not None]
    xs, values = [x for x, _ in quoted], [value for _, value in quoted]
    axes.plot(xs, values, marker=marker, markersize=5, linewidth=1, color=colour, label=f"hidden {ratios[0].hidden}")


def _finish_ratios(axes: Any, runtime: str, steps: Sequence[int]) -> None:
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    axes.set(title=runtime, xlabel="steps (slices)")
    if axes.lines[1:]:
        axes.legend(fontsize=8)


def plot_scaling(table: ScalingTable, path: Path) -> None:
    """Log-log panels, a row per network and a column per kind: medians, spread of the rounds, fitted line.

    Raises: as `plot_gru`.
    """
    networks = list(dict.fromkeys(sweep.network for sweep in table.sweeps))
    kinds = list(dict.fromkeys(sweep.sweep.what for sweep in table.sweeps))
    figure = _figure(3.9 * len(kinds), 3.7 * len(networks) + 0.4)
    panels = figure.subplots(len(networks), len(kinds), squeeze=False)
    for row, network in zip(panels, networks, strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            shown = [sweep for sweep in table.sweeps if (sweep.network, sweep.sweep.what) == (network, kind)]
            _draw_panel(axes, shown)
    threads = table.settings["threads"]
    figure.suptitle(_title(f"latency and what it grows with, FP32, {threads} threads", table.quick), fontsize=11)
    _write(figure, path)


def _draw_panel(axes: Any, sweeps: Sequence[SweepResult]) -> None:
    from matplotlib.ticker import LogLocator, ScalarFormatter

    for index, sweep in enumerate(sweeps):
        _draw_sweep(axes, sweep, index)
    first = sweeps[0]
    held = ", ".join(f"{name} {size}" for name, size in first.to_dict()["held"].items())
    axes.set(xscale="log", yscale="log", xlabel=first.sweep.what, ylabel="latency, ms")
    axes.set_title(f"{first.network}\n{held}", fontsize=9)
    axes.set_xticks(first.sweep.xs, [str(x) for x in first.sweep.xs])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.margins(y=0.15)
    axes.grid(which="major", color="0.9", linewidth=0.6)
    axes.legend(fontsize=8, loc="best")


def _draw_sweep(axes: Any, sweep: SweepResult, index: int) -> None:
    colour, marker = f"C{index}", _MARKERS[index % len(_MARKERS)]
    law, _ = sweep.law()
    xs = [point.x for point in sweep.timed]
    medians = [point.latency_ms["p50"] for point in sweep.timed if point.latency_ms is not None]
    label = f"{sweep.runtime}: no fit" if law is None else f"{sweep.runtime}: {sweep.sweep.what}^{law.exponent:.2f}"
    if law is not None:
        label += f" ({law.low:.2f} to {law.high:.2f})"
        axes.plot(xs, [law.at(x) for x in xs], color=colour, linewidth=1)
    rounds = [point.round_medians_ms for point in sweep.timed]
    down = [middle - min(part) for middle, part in zip(medians, rounds, strict=True)]
    up = [max(part) - middle for middle, part in zip(medians, rounds, strict=True)]
    spread = [[max(value, 0) for value in down], [max(value, 0) for value in up]]
    axes.errorbar(xs, medians, spread, fmt=marker, markersize=4.5, capsize=2.5, color=colour, label=label)


def _title(text: str, quick: bool) -> str:
    return f"{_REHEARSAL}\n{text}" if quick else text


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())
