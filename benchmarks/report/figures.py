"""Every figure of a report in one flat table, the CSV: what it is of, value, unit, interval, or why there is none.

Values are as in the JSON. `low` and `high` are a confidence interval for ratios, exponents and accuracy, and the
smallest value and the 95th percentile for latencies; the figure's name says which.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from fourphase.benchmarks.report.document import is_complete
from fourphase.benchmarks.report.reading import Row, candidate_text, dig, rows_of, section_of, status_of

__all__ = ["Figure", "figures_of", "report_csv"]

#: Key of a row of the latency section -> name, unit.
_OF_LATENCY: Mapping[tuple[str, ...], tuple[str, str]] = MappingProxyType(
    {
        ("statistics", "latency_ms", "p99"): ("latency p99", "ms"),
        ("statistics", "latency_ms", "mean"): ("latency mean", "ms"),
        ("statistics", "latency_ms", "cv_percent"): ("coefficient of variation", "%"),
        ("statistics", "studies_per_second"): ("throughput", "studies/s"),
        ("limit", "limit_ms"): ("floor", "ms"),
        ("limit", "times"): ("latency over floor", "x"),
        ("memory", "host_peak_bytes"): ("peak host memory", "bytes"),
        ("memory", "device_peak_bytes"): ("peak device memory", "bytes"),
        ("load_s",): ("load time", "s"),
        ("difference", "max_abs"): ("largest difference from torch FP32", ""),
        ("difference", "relative"): ("relative difference from torch FP32", ""),
    }
)
_ACCURACY = {"auc": "AUC", "accuracy": "accuracy", "f1": "F1", "npv": "NPV"}


@dataclass(frozen=True)
class Figure:
    """One number, or the reason why there is none.

    Attributes:
        case: what tells rows apart beside network, runtime, precision and batch: `64 slices, hidden 256, loop`.
        value: None unless status is "ok".
    """

    section: str
    network: str
    runtime: str
    precision: str
    batch: int | None
    case: str
    figure: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    status: str = "ok"
    reason: str = ""


@dataclass(frozen=True)
class _Of:
    """What figures are of."""

    section: str
    network: str = ""
    runtime: str = ""
    precision: str = ""
    batch: int | None = None
    case: str = ""

    def figure(self, name: str, value: float | None, unit: str, **more: Any) -> Figure:
        return Figure(**{key.name: getattr(self, key.name) for key in fields(self)}, figure=name, value=value,
                      unit=unit, **more)  # fmt: skip

    def gap(self, name: str, unit: str, row: Row) -> Figure:
        return self.figure(name, None, unit, status=status_of(row), reason=str(row.get("reason") or ""))

    def ratio(self, name: str, ratio: Row | None) -> Iterator[Figure]:
        if ratio is None:
            return
        ends = {"low": ratio.get("low"), "high": ratio.get("high")}
        if ratio.get("value") is None:
            yield self.figure(name, None, "x", **ends, status="refused", reason=str(ratio.get("refused") or ""))
        else:
            yield self.figure(name, ratio["value"], "x", **ends)

    def latency(self, row: Row, summary: Row | None) -> Iterator[Figure]:
        """The median, with the smallest value and the 95th percentile."""
        if status_of(row) != "ok" or summary is None:
            yield self.gap("latency p50", "ms", row if status_of(row) != "ok" else {"status": "not measured"})
            return
        yield self.figure("latency p50", summary["p50"], "ms", low=summary.get("min"), high=summary.get("p95"))

    def known(self, name: str, value: Any, unit: str) -> Iterator[Figure]:
        if value is not None:
            yield self.figure(name, value, unit)


def figures_of(report: Row) -> list[Figure]:
    """All figures, in the order of the sections; a section without an end has its own row that says why."""
    found = []
    for name, make in _SECTIONS.items():
        section = section_of(report, name)
        if section and not is_complete(section):
            found.append(_Of(name).gap("section", "", section))
        found += list(make(section))
    return found


def report_csv(report: Row) -> str:
    """The figures as CSV with a head; floats as they are in the JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Figure)]
    writer.writerow(names)
    for figure in figures_of(report):
        writer.writerow(["" if (value := getattr(figure, name)) is None else value for name in names])
    return text.getvalue()


def _latency(section: Row) -> Iterator[Figure]:
    for network, facts in (section.get("networks") or {}).items():
        yield from _Of("latency", network).known("parameters", facts.get("parameters"), "")
        yield from _Of("latency", network).known("arithmetic", facts.get("gmac"), "GMAC")
    for row in rows_of(section):
        of = _Of("latency", row["network"], row["runtime"], row["precision"], row.get("batch"))
        yield from of.latency(row, dig(row, "statistics", "latency_ms"))
        if status_of(row) == "ok":
            for path, (name, unit) in _OF_LATENCY.items():
                yield from of.known(name, dig(row, *path), unit)
            for source, joules in (dig(row, "energy") or {}).items():
                yield from of.known(f"energy per study, {source}", joules, "J")
    for pair in rows_of(section, "pairs"):
        a = pair["a"]
        of = _Of("latency", a["network"], a["runtime"], a["precision"], a.get("batch"))
        yield from of.ratio(f"ratio over {candidate_text(pair['b'])}", pair.get("ratio"))


def _end_to_end(section: Row) -> Iterator[Figure]:
    for name, row in (section.get("pipelines") or {}).items():
        warm, cold = _Of("end-to-end", case=f"{name}, warm"), _Of("end-to-end", case=f"{name}, cold")
        yield from warm.latency(row, dig(row, "warm", "total_ms"))
        for step, ms in (dig(row, "warm", "steps_ms") or {}).items():
            yield from warm.known(f"step {step}", ms, "ms")
        for step, ms in (row.get("cold_ms") or {}).items():
            yield from cold.known("total" if step == "total" else f"step {step}", ms, "ms")
        yield from warm.known("peak memory", row.get("peak_bytes"), "bytes")
    for pair in rows_of(section, "ratios"):
        yield from _Of("end-to-end", case=f"{pair['a']}, warm").ratio(f"ratio over {pair['b']}", pair.get("ratio"))
    for name, far in (section.get("agreement") or {}).items():
        for what, value in far.items() if isinstance(far, Mapping) else ():
            if isinstance(value, int | float):
                yield from _Of("end-to-end", case=name).known(f"largest difference of {what}", value, "")


def _gru(section: Row) -> Iterator[Figure]:
    for row in rows_of(section):
        case = f"{row['slices']} slices, hidden {row['hidden']}, {row['form']}"
        of = _Of("gru", runtime=row["runtime"], case=case)
        yield from of.latency(row, row.get("latency_ms"))
        yield from of.known("preparation", row.get("prepare_s"), "s")
        for key, name, unit in (("nodes", "nodes", ""), ("layers", "layers", ""), ("plan_bytes", "plan", "bytes")):
            yield from of.known(name, row.get(key), unit)
        yield from of.known("relative difference from torch.nn.GRU", dig(row, "difference", "relative"), "")
    for row in rows_of(section, "ratios"):
        of = _Of("gru", runtime=row["runtime"], case=f"{row['slices']} slices, hidden {row['hidden']}")
        yield from of.ratio("ratio of loop over unrolled", row.get("ratio"))
    for row in rows_of(section, "torch_ratios"):
        case = f"{row['slices']} slices, hidden {row['hidden']}, {row['form']}"
        yield from _Of("gru", runtime=row["runtime"], case=case).ratio("ratio over torch", row.get("ratio"))


def _scaling(section: Row) -> Iterator[Figure]:
    for sweep in rows_of(section, "sweeps"):
        names = sweep["network"], sweep["runtime"], sweep["precision"]
        for point in rows_of(sweep, "points"):
            of = _Of("scaling", *names, case=f"{sweep['what']} {point['x']}")
            yield from of.latency(point, point.get("latency_ms"))
            yield from of.known("arithmetic", point.get("gmac"), "GMAC")
            yield from of.known("peak memory", point.get("peak_bytes"), "bytes")
        of, fit = _Of("scaling", *names, case=str(sweep["what"])), sweep.get("fit")
        if fit is None:
            yield of.gap("exponent", "", {"status": "refused", "reason": sweep.get("reason")})
        else:
            yield of.figure("exponent", fit["exponent"], "", low=fit.get("low"), high=fit.get("high"))


def _archive(section: Row) -> Iterator[Figure]:
    for row in rows_of(section):
        case = f"{row['mode']}, {row['workers']} workers of {row['threads_each']} threads"
        of = _Of("archive", case=case)
        if status_of(row) != "ok":
            yield of.gap("studies per hour", "1/h", row)
            continue
        if row.get("studies_per_hour") is None:
            reason = str(row.get("reason") or "no study came to its end")
            yield of.gap("studies per hour", "1/h", {"status": "not measured", "reason": reason})
        yield from of.known("studies per hour", row.get("studies_per_hour"), "1/h")
        yield from of.known("seconds", row.get("seconds"), "s")
        speedup = row.get("speedup")
        if isinstance(speedup, Mapping):
            yield from of.ratio("speed-up", speedup)
        else:
            yield from of.known("speed-up", speedup, "x")
        yield from of.known("efficiency", row.get("efficiency"), "")
        yield from of.known("failed studies", row.get("failed"), "")


def _baselines(section: Row) -> Iterator[Figure]:
    for row in rows_of(section):
        of = _Of("baselines", row["network"], case="phantoms")
        if status_of(row) != "ok":
            yield of.gap("AUC", "", row)
            continue
        for key, name in _ACCURACY.items():
            value = row[key]
            yield of.figure(name, value["value"], "", low=value["low"], high=value["high"])
        difference = row.get("auc_against_four_phase")
        if difference:
            ends = {"low": difference["low"], "high": difference["high"]}
            yield of.figure("AUC minus four-phase's", difference["value"], "", **ends)
        for key, name in (("brier", "Brier score"), ("ece", "expected calibration error")):
            value = row.get(key)
            ends = {"low": value["low"], "high": value["high"]} if isinstance(value, Mapping) else {}
            number = value["value"] if isinstance(value, Mapping) else value
            if number is not None:
                yield of.figure(name, number, "", **ends)
        yield from of.known("parameters", row.get("parameters"), "")
        yield from of.known("training time", row.get("seconds_training"), "s")
        yield from _lowered(row)


def _lowered(row: Row) -> Iterator[Figure]:
    """Of a network's INT8 models; rows of an older schema have none, and no reason."""
    of = _Of("baselines", row["network"], precision="int8", case="phantoms")
    int8 = row.get("int8")
    if int8 is None:
        if row.get("int8_reason"):
            yield of.gap("AUC", "", {"status": "failed", "reason": row["int8_reason"]})
        return
    names = {**_ACCURACY, "brier": "Brier score", "ece": "expected calibration error",
             "auc_against_fp32": "AUC minus FP32's"}  # fmt: skip
    for key, name in names.items():
        value = int8[key]
        yield of.figure(name, value["value"], "", low=value["low"], high=value["high"])
    yield of.figure("flipped decisions", int8["flipped"], "")


def _preprocess(section: Row) -> Iterator[Figure]:
    for name, seconds in (section.get("seconds") or {}).items():
        low, high = dig(section, "spread", name) or (None, None)
        of = _Of("preprocess", case=name)
        yield of.figure("time median", seconds, "s", low=low, high=high)
        yield from of.known("peak memory", dig(section, "peak_mb", name), "MB")
        for step, share in (dig(section, "shares", name) or {}).items():
            yield from of.known(f"share of {step}", share, "")
    yield from _Of("preprocess").ratio("ratio of theirs over ours", section.get("paired_ratio"))


_SECTIONS: Mapping[str, Callable[[Row], Iterator[Figure]]] = MappingProxyType(
    {
        "latency": _latency, "end-to-end": _end_to_end, "gru": _gru, "scaling": _scaling, "archive": _archive,
        "baselines": _baselines, "preprocess": _preprocess,
    }
)  # fmt: skip
