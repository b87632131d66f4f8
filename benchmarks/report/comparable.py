"""What of a section can be compared with another run of it: each row by its identity, with its times or its AUC."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fourphase.benchmarks.report.reading import Row, dig, rows_of, status_of
from fourphase.runtime.errors import InputMissing

__all__ = ["COMPARABLE", "Comparable", "comparables_of"]


@dataclass(frozen=True)
class Comparable:
    """One row of one run.

    Attributes:
        identity: what it is of; the same in both runs.
        median: in any unit; None if it was not measured.
        rounds: medians of rounds, () where none were kept.
        cv_percent: of single runs, None where it is not known (of one run, say).
        interval: of an accuracy (low, high); then `median` is the accuracy.
    """

    identity: tuple[str, ...]
    status: str
    reason: str
    median: float | None = None
    rounds: tuple[float, ...] = ()
    cv_percent: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        return ", ".join(self.identity)


def comparables_of(section: Row) -> dict[tuple[str, ...], Comparable]:
    """Identity -> row, of a section whose schema is in COMPARABLE.

    Raises: InputMissing (10, section_malformed) for rows that are not as that schema has them.
    """
    schema = str(section["schema"]).partition("/")[0]
    try:
        return {row.identity: row for row in COMPARABLE[schema](section)}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputMissing(
            f"the rows of a {schema} cannot be read ({type(error).__name__})", "measure it again",
            key="section_malformed",
        ) from error  # fmt: skip


def _timed(identity: tuple[str, ...], row: Row, summary: Row | None, rounds: Any = None) -> Comparable:
    if status_of(row) != "ok" or not summary:
        status = status_of(row) if status_of(row) != "ok" else "not measured"
        return Comparable(identity, status, str(row.get("reason") or ""))
    median, times = float(summary["p50"]), tuple(float(value) for value in rounds or ())
    if not all(0 < time < math.inf for time in (median, *times)):
        raise ValueError(f"{identity} holds a time that is none")
    # A spread of exactly 0 is that of one run.
    return Comparable(identity, "ok", "", median, times, summary.get("cv_percent") or None)


def _latency(section: Row) -> Iterator[Comparable]:
    for row in rows_of(section):
        statistics = row.get("statistics") or {}
        identity = (row["network"], row["runtime"], row["precision"], f"batch {row.get('batch', 1)}")
        yield _timed(identity, row, statistics.get("latency_ms"), statistics.get("round_medians_ms"))


def _end_to_end(section: Row) -> Iterator[Comparable]:
    for name, row in (section.get("pipelines") or {}).items():
        warm = row.get("warm") or {}
        yield _timed((name, "warm"), row, warm.get("total_ms"), warm.get("round_medians_ms"))


def _gru(section: Row) -> Iterator[Comparable]:
    for row in rows_of(section):
        identity = (row["runtime"], row["form"], f"{row['slices']} slices", f"hidden {row['hidden']}")
        yield _timed(identity, row, row.get("latency_ms"), row.get("round_medians_ms"))


def _scaling(section: Row) -> Iterator[Comparable]:
    for sweep in rows_of(section, "sweeps"):
        for point in rows_of(sweep, "points"):
            identity = (sweep["network"], sweep["runtime"], sweep["precision"], f"{sweep['what']} {point['x']}")
            yield _timed(identity, point, point.get("latency_ms"), point.get("round_medians_ms"))


def _archive(section: Row) -> Iterator[Comparable]:
    for row in rows_of(section):
        identity = (row["mode"], f"{row['workers']} workers", f"{row['threads_each']} threads each")
        # Seconds per study, so that runs of different lengths can be compared.
        rate, seconds = row.get("studies_per_hour"), row.get("seconds")
        each = 3600 / rate / seconds if rate and seconds else None
        rounds = [value * each for value in row.get("rounds_s") or ()] if each else ()
        yield _timed(identity, row, {"p50": 3600 / rate} if rate else None, rounds)


def _preprocess(section: Row) -> Iterator[Comparable]:
    for name, seconds in (section.get("seconds") or {}).items():
        low, high = dig(section, "spread", name) or (seconds, seconds)
        # Half of the range of a few runs stands for their deviation.
        summary = {"p50": seconds, "cv_percent": 50 * (high - low) / seconds}
        yield _timed((name,), {}, summary, dig(section, "runs", name))


def _baselines(section: Row) -> Iterator[Comparable]:
    for row in rows_of(section):
        identity = (row["network"], "AUC")
        if status_of(row) != "ok":
            yield Comparable(identity, status_of(row), str(row.get("reason") or ""))
        else:
            auc = row["auc"]
            yield Comparable(identity, "ok", "", auc["value"], interval=(auc["low"], auc["high"]))
        if dig(section, "settings", "int8"):
            yield _int8(row)


def _int8(row: Row) -> Comparable:
    identity, int8 = (row["network"], "AUC in INT8"), row.get("int8")
    if int8 is None:
        status = "failed" if status_of(row) == "ok" else status_of(row)
        return Comparable(identity, status, str(row.get("int8_reason") or row.get("reason") or ""))
    auc = int8["auc"]
    return Comparable(identity, "ok", "", auc["value"], interval=(auc["low"], auc["high"]))


#: Schema without its version -> the rows of such a section.
COMPARABLE: Mapping[str, Callable[[Row], Iterator[Comparable]]] = MappingProxyType(
    {
        "fourphase.latency": _latency, "fourphase.end-to-end": _end_to_end, "fourphase.gru": _gru,
        "fourphase.scaling": _scaling, "fourphase.archive": _archive, "fourphase.preprocess-bench": _preprocess,
        "fourphase.baselines": _baselines,
    }
)  # fmt: skip
