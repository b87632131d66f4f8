"""The plots of what is around a network: end to end, GRU forms, scaling, archive, preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fourphase.benchmarks.report.answers_runs import best_archive, headline_pair, headline_text
from fourphase.benchmarks.report.page_parts import columns_of, finding
from fourphase.benchmarks.report.plots_ratios import estimate_of, ratio_finding
from fourphase.benchmarks.report.reading import Row, dig, merged_order, rows_of, status_of
from fourphase.benchmarks.report.svg_base import legend, log_axis, text_width
from fourphase.benchmarks.report.svg_rows import HALF, WIDE, Bar, bar_rows
from fourphase.benchmarks.report.svg_xy import Point, Series, xy_plot
from fourphase.benchmarks.report.words import (
    counted,
    megabytes,
    ratio_text,
    runtime_name,
    significant,
    time_text,
    way_name,
)
from fourphase.export.report_markup import Markup

__all__ = ["archive_plots", "end_to_end_plots", "gru_plots", "preprocess_plots", "scaling_plots"]

_HEIGHT = 280.0
_COLOURS, _STEP_COLOURS = 6, 10
_AXES = {"slices": "slices per phase", "crop": "rows and columns of the crop", "batch": "studies in a batch",
         "width": "channels of the stem"}  # fmt: skip


def end_to_end_plots(section: Row) -> list[Markup]:
    """Warm and cold as stacked steps; ratios."""
    pipelines: Mapping[str, Row] = section.get("pipelines") or {}
    measured = {name: row for name, row in pipelines.items() if status_of(row) == "ok"}
    warm = {name: dig(row, "warm", "steps_ms") for name, row in measured.items() if dig(row, "warm", "steps_ms")}
    cold = {
        name: {step: ms for step, ms in row["cold_ms"].items() if step != "total"}
        for name, row in measured.items() if row.get("cold_ms")
    }  # fmt: skip
    names = merged_order([*warm.values(), *cold.values()])
    totals = {name: dig(measured[name], "warm", "total_ms", "p50") for name in warm}
    firsts = {name: dig(measured[name], "cold_ms", "total") for name in cold}
    return [
        *_steps(
            "Warm, from DICOM to result", warm, totals, names, "Medians of each step; the total is its own median."
        ),
        *_steps("Cold: the first study of a new process", cold, firsts, names, "Imports and loading included."),
        *_pipeline_ratios(section),
    ]


def _steps(
    title: str, steps: Mapping[str, Mapping[str, float]], totals: Mapping[str, float], names: Sequence[str], note: str
) -> list[Markup]:
    if not steps:
        return []
    ordered = sorted(steps, key=lambda name: totals[name] or 0.0)
    bars = [
        Bar(name, step, ms / 1e3, f"s{names.index(step) % _STEP_COLOURS}", f"{name}, {step}: {time_text(ms)}")
        for name in ordered for step, ms in steps[name].items() if ms
    ]  # fmt: skip
    heading = f"{title}: {ordered[0]} takes {time_text(totals[ordered[0]])}"
    if len(ordered) > 1:
        heading += f", {ordered[-1]} {time_text(totals[ordered[-1]])}"
    drawn = bar_rows(heading, "One bar per pipeline, its steps in their order.", "seconds", bars,
                     {name: time_text(totals[name]) for name in ordered}, ordered[0])  # fmt: skip
    key = legend(("square", f"s{index % _STEP_COLOURS}", name) for index, name in enumerate(names))
    return [finding(heading, drawn, note, key)]


def _pipeline_ratios(section: Row) -> list[Markup]:
    pairs = rows_of(section, "ratios")
    if not pairs:
        return []
    rows = [estimate_of(pair, f"{pair['a']} over {pair['b']}") for pair in pairs]
    told = headline_pair(section)
    heading = "No ratio can be quoted"
    if told is not None:
        heading = f"{told['a']} over {told['b']}: {told['ratio']['value']:.1f}×{headline_text(section, told)}"
    words = "Time of one pipeline over another, warm, with 95 % intervals."
    return [ratio_finding(heading, words, "← faster · ratio of times · slower →", rows, pairs, WIDE)]


def gru_plots(section: Row) -> list[Markup]:
    """Per runtime, the ratio of loop over unrolled against the number of slices, one line per hidden size."""
    by_runtime: dict[str, list[Row]] = {}
    for row in rows_of(section, "ratios"):
        if dig(row, "ratio", "low") is not None:
            by_runtime.setdefault(row["runtime"], []).append(row)
    return columns_of(_gru_plot(runtime, rows) for runtime, rows in by_runtime.items())


def _gru_plot(runtime: str, rows: Sequence[Row]) -> Markup:
    hidden = sorted({row["hidden"] for row in rows})
    ends = [row["ratio"][key] for row in rows for key in ("low", "high")]
    slices = sorted({row["slices"] for row in rows})
    right = HALF - 20 - text_width([f"hidden {size}" for size in hidden])
    x = log_axis(slices, 44, right, marks=slices)
    y = log_axis([*ends, 1.0], _HEIGHT - 46, 34, lambda value: f"{value:g}×", room=1.06)
    series = [
        Series(
            [_gru_point(row) for row in sorted(rows, key=lambda row: row["slices"]) if row["hidden"] == size],
            f"q{index % _COLOURS}", f"hidden {size}",
        )
        for index, size in enumerate(hidden)
    ]  # fmt: skip
    values = [row["ratio"]["value"] for row in rows if row["ratio"]["value"] is not None]
    wins = sum(row["ratio"]["low"] > 1 for row in rows if row["ratio"]["value"] is not None)
    sizes = counted(len(values), "size", "sizes")
    told = f"unrolling wins at {wins} of {sizes}" if values else "no ratio can be quoted"
    heading = f"{runtime_name(runtime)}: {told}"
    drawn = xy_plot(heading, "Latency of the loop over that of the unrolled GRU, with 95 % intervals.",
                    (x, "slices (logarithmic)"), (y, "loop over unrolled; above 1, unrolling wins"), series,
                    (HALF, _HEIGHT), [((x.low, 1.0), (x.high, 1.0))])  # fmt: skip
    return finding(heading, drawn)


def _gru_point(row: Row) -> Point:
    ratio = row["ratio"]
    title = f"{row['slices']} slices, hidden {row['hidden']}: {ratio_text(ratio)} {ratio.get('refused') or ''}".strip()
    return Point(row["slices"], ratio["value"], title, ratio["low"], ratio["high"])


def scaling_plots(section: Row) -> list[Markup]:
    """One log-log panel per swept quantity, every network and runtime in it, with fitted lines."""
    by_what: dict[str, list[Row]] = {}
    for sweep in rows_of(section, "sweeps"):
        if any(_measured(sweep)):
            by_what.setdefault(sweep["what"], []).append(sweep)
    return columns_of(_scaling_plot(what, sweeps) for what, sweeps in by_what.items())


def _measured(sweep: Row) -> list[Row]:
    return [point for point in rows_of(sweep, "points") if status_of(point) == "ok" and point.get("latency_ms")]


def _scaling_plot(what: str, sweeps: Sequence[Row]) -> Markup:
    several = len({(sweep["runtime"], sweep["precision"]) for sweep in sweeps}) > 1
    points = [point for sweep in sweeps for point in _measured(sweep)]
    names = [_sweep_name(sweep, several) for sweep in sweeps]
    right = HALF - 20 - text_width(names)
    xs = [point["x"] for point in points]
    x = log_axis(xs, 64, right, marks=xs)
    times = [point["latency_ms"][key] for point in points for key in ("min", "p95")]
    y = log_axis(times, _HEIGHT - 46, 34, time_text)
    series = [Series([_scaling_point(point) for point in _measured(sweep)], f"q{index % _COLOURS}", name,
                     line=_fitted(sweep))
              for index, (sweep, name) in enumerate(zip(sweeps, names, strict=True))]  # fmt: skip
    fits = [
        f"{sweep['network']} with the power of {fit['exponent']:.2f}" for sweep in sweeps if (fit := sweep.get("fit"))
    ]
    label = _AXES.get(what, what)
    heading = f"Over {label}: {fits[0]}" if fits else f"Over {label}: no fit is quoted"
    drawn = xy_plot(heading, "Median latency with its range; lines are fitted powers.", (x, f"{label} (logarithmic)"),
                    (y, "median latency"), series, (HALF, _HEIGHT))  # fmt: skip
    refused = [f"{name}: {sweep.get('reason')}" for name, sweep in zip(names, sweeps, strict=True)
               if sweep.get("fit") is None]  # fmt: skip
    return finding(heading, drawn, f"No fit: {'; '.join(refused)}." if refused else "")


def _sweep_name(sweep: Row, several: bool) -> str:
    fit = sweep.get("fit")
    way = f", {way_name(sweep['runtime'], sweep['precision'])}" if several else ""
    name = sweep["network"].replace("resnet3d-18-medicalnet", "resnet3d-18-mn") + way
    return f"{name}: {fit['exponent']:.2f}" if fit else name


def _scaling_point(point: Row) -> Point:
    latency = point["latency_ms"]
    title = f"{point['x']}: {time_text(latency['p50'])}, {significant(point.get('gmac'))} GMAC, "
    title += f"peak {megabytes(point.get('peak_bytes'))} MB"
    return Point(point["x"], latency["p50"], title, latency["min"], latency["p95"])


def _fitted(sweep: Row) -> list[tuple[float, float]] | None:
    """The fitted power through the points' geometric mean, where least squares on logarithms puts it."""
    fit, points = sweep.get("fit"), _measured(sweep)
    if fit is None:
        return []
    logs = [(point["x"], point["latency_ms"]["p50"]) for point in points]
    product_x = product_y = 1.0
    for a, b in logs:
        product_x *= a ** (1 / len(logs))
        product_y *= b ** (1 / len(logs))
    ends = (min(a for a, _ in logs), max(a for a, _ in logs))
    return [(a, product_y * (a / product_x) ** fit["exponent"]) for a in ends]


def archive_plots(section: Row) -> list[Markup]:
    rows = [row for row in rows_of(section) if status_of(row) == "ok" and row.get("studies_per_hour")]
    if not rows:
        return []
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    names = {
        id(row): f"{row['mode']}, {row['workers']} × {counted(row['threads_each'], 'thread', 'threads')}"
        for row in rows
    }
    bars = [
        Bar(names[id(row)], "", row["studies_per_hour"], f"s{modes.index(row['mode'])}",
            f"{names[id(row)]}: {significant(row['studies_per_hour'])} studies per hour")
        for row in rows
    ]  # fmt: skip
    best = best_archive(section)
    heading = "No way to share the work gave one core's results"
    if best is not None:
        heading = f"{names[id(best)]} is the fastest: {significant(best['studies_per_hour'])} studies per hour"
    strong = "" if best is None else names[id(best)]
    totals = {names[id(row)]: significant(row["studies_per_hour"]) for row in rows}
    drawn = bar_rows(heading, "One bar per way to share the work.", "studies per hour", bars, totals, strong)
    return [finding(heading, drawn)]


def preprocess_plots(section: Row) -> list[Markup]:
    seconds: Mapping[str, float] = section.get("seconds") or {}
    shares: Mapping[str, Mapping[str, float]] = section.get("shares") or {}
    if not seconds:
        return []
    steps = list(dict.fromkeys(step for parts in shares.values() for step in parts))
    bars = [
        Bar(name, step, share * seconds[name], f"s{steps.index(step) % _STEP_COLOURS}",
            f"{name}, {step}: {significant(share * seconds[name])} s")
        for name, parts in shares.items() for step, share in parts.items()
    ]  # fmt: skip
    fastest = min(seconds, key=seconds.__getitem__)
    heading = f"Scan, read and preprocess: {fastest} takes {significant(seconds[fastest])} s"
    totals = {name: f"{significant(value)} s" for name, value in seconds.items()}
    drawn = bar_rows(heading, "One bar per pipeline, its steps in their order.", "seconds", bars, totals, fastest)
    key = legend(("square", f"s{index % _STEP_COLOURS}", step) for index, step in enumerate(steps))
    note = "Medians of runs in turns, each in a process of its own; files in the page cache."
    return [finding(heading, drawn, note, key)]
