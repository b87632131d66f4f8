"""The tables of a report, the same in Markdown and on the page: what each section says in numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fourphase.benchmarks.report.reading import Row, dig, merged_order, rows_of, section_of, status_of
from fourphase.benchmarks.report.tables_latency import latency_tables
from fourphase.benchmarks.report.text_table import Table
from fourphase.benchmarks.report.words import (
    DASH,
    difference_text,
    megabytes,
    paired_text,
    ratio_text,
    runtime_name,
    significant,
    way_name,
)

__all__ = ["tables_of"]

_FIGURES = {"auc": "AUC", "accuracy": "accuracy", "f1": "F1", "npv": "NPV"}
#: Whether a mode of the archive gave what one core alone gave.
_SAME: Mapping[bool | None, str] = MappingProxyType({True: "yes", False: "NO"})


def tables_of(report: Row) -> dict[str, list[Table]]:
    """Section -> its tables; a section that is not there has none."""
    made = {name: make(section_of(report, name)) for name, make in _TABLES.items()}
    return {name: [table for table in tables if table.rows] for name, tables in made.items()}


def _end_to_end(section: Row) -> list[Table]:
    pipelines: Mapping[str, Row] = section.get("pipelines") or {}
    measured = {name: row for name, row in pipelines.items() if status_of(row) == "ok"}
    steps = merged_order(dig(row, "warm", "steps_ms") or () for row in measured.values())
    cold = merged_order(row.get("cold_ms") or () for row in measured.values())
    others = list(dict.fromkeys(pair["b"] for pair in rows_of(section, "ratios")))
    ratios = {(pair["a"], pair["b"]): pair.get("ratio") for pair in rows_of(section, "ratios")}
    firsts = list(dict.fromkeys(a for a, _ in ratios))
    agreement = {name: far for name, far in (section.get("agreement") or {}).items() if isinstance(far, Mapping)}
    far_names = list(dict.fromkeys(what for far in agreement.values() for what, value in far.items() if _real(value)))
    far_heads = [name.replace("_", " ") for name in far_names]
    return [
        Table("Warm, ms", ("pipeline", *steps, "total p50", "min", "p95", "peak MB"), [
            (name, *(significant(dig(row, "warm", "steps_ms", step)) for step in steps),
             *(significant(dig(row, "warm", "total_ms", key)) for key in ("p50", "min", "p95")),
             megabytes(row.get("peak_bytes")))
            for name, row in measured.items()
        ], note="Medians over the rounds; the steps' medians need not add up to the total's."),
        Table("Cold, ms", ("pipeline", *cold), [
            (name, *(significant(dig(row, "cold_ms", step)) for step in cold)) for name, row in measured.items()
        ], note="The first study of a new process."),
        Table("Ratios, warm", ("a", *(f"over {other}" for other in others)), [
            (name, *(ratio_text(ratios.get((name, other))) for other in others)) for name in firsts
        ], note="Above 1, a takes longer; 95 % intervals."),
        Table("Largest differences from the plain pipeline", ("pipeline", *far_heads), [
            (name, *(significant(far.get(what)) if _real(far.get(what)) else DASH for what in far_names))
            for name, far in agreement.items()
        ]),
    ]  # fmt: skip


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _gru(section: Row) -> list[Table]:
    ratios = {(row["runtime"], row["slices"], row["hidden"]): row.get("ratio") for row in rows_of(section, "ratios")}
    # An engine may be built where nothing runs it: what building it took is measured.
    rows = [row for row in rows_of(section) if status_of(row) == "ok" or row.get("prepare_s") is not None]
    torch = {(row["runtime"], row["form"], row["slices"], row["hidden"]): row.get("ratio")
             for row in rows_of(section, "torch_ratios")}  # fmt: skip
    sizes = sorted({key[3] for key in torch})
    hidden = sorted({key[2] for key in ratios})
    places = list(dict.fromkeys((key[0], key[1]) for key in ratios))
    return [
        Table("Loop over unrolled", ("runtime", "slices", *(f"hidden {size}" for size in hidden)), [
            (runtime_name(runtime), str(slices), *(ratio_text(ratios.get((runtime, slices, size))) for size in hidden))
            for runtime, slices in places
        ], note="Above 1, the loop takes longer; 95 % intervals.", words=("runtime",)),
        Table("Over torch eager", ("runtime", "form", "slices", *(f"hidden {size}" for size in sizes)), [
            (runtime_name(runtime), form, str(slices),
             *(ratio_text(torch.get((runtime, form, slices, size))) for size in sizes))
            for runtime, form, slices in dict.fromkeys(key[:3] for key in torch)
        ], folded=True, words=("runtime", "form"), note="Below 1, it is faster than torch's GRU of the same size."),
        Table("Each form", ("runtime", "form", "slices", "hidden", "p50 ms", "min", "p95", "preparation s", "nodes",
                            "layers", "plan MB", "difference"), [
            (runtime_name(row["runtime"]), row["form"], str(row["slices"]), str(row["hidden"]),
             *(significant(dig(row, "latency_ms", key)) for key in ("p50", "min", "p95")),
             significant(row.get("prepare_s")), *(_count(row.get(key)) for key in ("nodes", "layers")),
             megabytes(row.get("plan_bytes")), significant(dig(row, "difference", "relative")))
            for row in rows
        ], folded=True, words=("runtime", "form"), note="The difference is relative, from torch.nn.GRU."),
    ]  # fmt: skip


def _count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def _scaling(section: Row) -> list[Table]:
    sweeps = rows_of(section, "sweeps")
    fits = [
        (sweep["what"], sweep["network"], way_name(sweep["runtime"], sweep["precision"]), _exponent(sweep.get("fit")),
         significant(dig(sweep, "fit", "r_squared"), 4),
         str(sweep.get("statement") or sweep.get("reason") or ""))
        for sweep in sweeps
    ]  # fmt: skip
    points = [
        (sweep["what"], sweep["network"], str(point["x"]),
         *(significant(dig(point, "latency_ms", key)) for key in ("p50", "min", "p95")),
         significant(point.get("gmac")), megabytes(point.get("peak_bytes")))
        for sweep in sweeps for point in rows_of(sweep, "points") if status_of(point) == "ok"
    ]  # fmt: skip
    words = ("over", "network", "in", "which says")
    return [
        Table("Exponents", ("over", "network", "in", "exponent", "R²", "which says"), fits, words=words,
              note="Latency = a · x^exponent, least squares on logarithms, 95 % interval."),
        Table("Points", ("over", "network", "x", "p50 ms", "min", "p95", "GMAC", "peak MB"), points, folded=True,
              words=words),
    ]  # fmt: skip


def _exponent(fit: Row | None) -> str:
    return "refused" if fit is None else f"{fit['exponent']:.2f} ({fit['low']:.2f}–{fit['high']:.2f})"


def _archive(section: Row) -> list[Table]:
    rows = [row for row in rows_of(section) if status_of(row) == "ok"]
    return [
        Table("Throughput", ("mode", "workers", "threads each", "seconds", "studies per hour", "speed-up",
                             "efficiency", "failed", "one core's results"), [
            (row["mode"], str(row["workers"]), str(row["threads_each"]), significant(row.get("seconds")),
             significant(row.get("studies_per_hour")), _speedup(row.get("speedup")), significant(row.get("efficiency")),
             str(row.get("failed", DASH)), _SAME.get(row.get("same_results"), DASH))
            for row in rows
        ], note=" ".join(str(line) for line in section.get("explanation") or ()))
    ]  # fmt: skip


def _speedup(value: Row | float | None) -> str:
    return ratio_text(value) if isinstance(value, Mapping) else significant(value)


def _baselines(section: Row) -> list[Table]:
    rows = [row for row in rows_of(section) if status_of(row) == "ok"]
    paper = section.get("paper") or {}
    figures = [
        (row["network"], _interval(row.get("auc")), _difference(row.get("auc_against_four_phase")),
         *(_interval(row.get(name)) for name in (*list(_FIGURES)[1:], "brier", "ece")),
         _count(row.get("parameters")),
         significant(row.get("seconds_training")))
        for row in rows
    ]  # fmt: skip
    lowered = [
        (row["network"], _interval(int8.get("auc")), _difference(int8.get("auc_against_fp32")),
         _count(int8.get("flipped")), *(_interval(int8.get(name)) for name in (*list(_FIGURES)[1:], "brier", "ece")))
        for row in rows if (int8 := row.get("int8"))
    ]  # fmt: skip
    others = (*list(_FIGURES.values())[1:], "Brier", "ECE")
    facts = [(f"{name} of the paper", f"{100 * paper[key]:.2f} %") for key, name in _FIGURES.items() if key in paper]
    return [
        Table("On synthetic phantoms", ("network", "AUC", "minus four-phase's", *others, "parameters", "training s"),
              figures, note=" ".join([str(section.get("warning") or ""),
                                      *(f"{note[:1].upper()}{note[1:]}." for note in section.get("notes") or ())])),
        Table("In INT8, on the same phantoms", ("network", "AUC", "minus FP32's", "flipped", *others), lowered,
              note="Flipped: phantoms that INT8 decides otherwise than FP32." if lowered else ""),
        Table("The paper's, on its patients: not comparable", ("figure", "value"), facts if rows else []),
    ]  # fmt: skip


def _interval(value: Row | float | None) -> str:
    if isinstance(value, Mapping):
        return f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})"
    return DASH if value is None else f"{value:.3f}"


def _difference(value: Row | None) -> str:
    return DASH if value is None else difference_text(value)


def _preprocess(section: Row) -> list[Table]:
    seconds: Mapping[str, float] = section.get("seconds") or {}
    steps = list(dict.fromkeys(step for shares in (section.get("shares") or {}).values() for step in shares))
    rows = [
        (name, significant(value), *(significant(end) for end in dig(section, "spread", name) or (None, None)),
         significant(dig(section, "peak_mb", name)),
         *(f"{100 * (dig(section, 'shares', name, step) or 0):.0f} %" for step in steps))
        for name, value in seconds.items()
    ]  # fmt: skip
    far = f"inputs differ by at most {significant(section.get('max_difference'))}"
    note = f"{paired_text(section.get('paired_ratio'))}; {far}." if rows else ""
    return [Table("Scan, read and preprocess", ("pipeline", "s", "fastest", "slowest", "peak MB", *steps), rows, note)]


_TABLES: Mapping[str, Callable[[Row], list[Table]]] = MappingProxyType(
    {
        "latency": latency_tables, "end-to-end": _end_to_end, "gru": _gru, "scaling": _scaling,
        "archive": _archive, "baselines": _baselines, "preprocess": _preprocess,
    }
)  # fmt: skip
