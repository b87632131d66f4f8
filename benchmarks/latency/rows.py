"""From what was played to what is reported: a row per candidate, and the ratio of each pair.

A row's statistics are of all its samples, whatever the group. One that gives wrong outputs is failed and in no pair:
a fast wrong answer is no win. Numbers in, JSON types out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.differences import FP32_RTOL, difference
from fourphase.benchmarks.latency.candidate import Candidate
from fourphase.benchmarks.latency.groups import Group, group_pairs
from fourphase.benchmarks.latency.ratio import paired_ratio, refused_if_busy
from fourphase.benchmarks.latency.statistics import Measurement, statistics
from fourphase.benchmarks.latency.turns import Played, PlayedGroup

__all__ = ["empty_row", "measured_row", "merged_watches", "pairs_of"]

Floats = NDArray[np.float32]

#: Medians of a candidate's groups that differ by more than this are said.
_DRIFT = 0.10
#: A waiting worker that uses more of a core than this is said to disturb the others.
_IDLE = 0.02
_EMPTY = ("statistics", "limit", "difference", "memory", "load_s", "energy", "watched", "idle_cpu")


def empty_row(candidate: Candidate, status: str, reason: str, device: str = "cpu") -> dict[str, Any]:
    """A row with nothing measured. `status`: "missing", "failed" or "not measured"; `device`: where it would run."""
    head = {**candidate.to_dict(), "device": device, "status": status, "reason": reason}
    return {**head, **dict.fromkeys(_EMPTY), "drift": "", "note": ""}


def measured_row(
    candidate: Candidate, games: Sequence[Played], reference: Mapping[str, Floats], device: str = "cpu"
) -> dict[str, Any]:
    """The row of a candidate that played in these groups, without its limit.

    One that failed in any of them, or whose outputs are wrong, is failed; what it had by then is in the row.

    Args:
        reference: eager FP32's outputs, by name.
    """
    failed = next((game.failed for game in games if game.failed), None)
    status, reason = ("failed", failed.reason) if failed else ("ok", "")
    row = empty_row(candidate, status, reason, device)
    started = [game.started for game in games if game.started]
    turns = [turn for game in games for turn in game.turns]
    if started:
        row["load_s"], row["note"] = started[0].load_s, started[0].note
        outputs = {name: np.asarray(values, np.float32) for name, values in started[0].outputs.items()}
        row["difference"] = difference(outputs, reference) if set(outputs) == set(reference) else None
        row["memory"] = _most([*(one.memory for one in started), *(turn.memory for turn in turns)])
        wrong = _why_wrong(candidate.precision, row["difference"])
        if wrong and not failed:
            row["status"], row["reason"] = "failed", wrong
    if not turns:
        return row
    measurement = Measurement([list(turn.samples) for turn in turns], sum(turn.wall_s for turn in turns))
    studies = len(measurement.samples) * candidate.batch
    row["statistics"] = statistics(measurement, candidate.batch)
    row["watched"] = merged_watches([turn.watched for turn in turns])
    energy = row["watched"]["energy_j"]
    row["energy"] = {source: joules / studies for source, joules in energy.items()} or None
    row["idle_cpu"] = _idle_cpu(games)
    if row["idle_cpu"] is not None and row["idle_cpu"] > _IDLE:
        disturbs = f"while it waited for its turn it used {row['idle_cpu']:.0%} of a core"
        row["note"] = "; ".join(filter(None, (row["note"], disturbs)))
    row["drift"] = _drift(games)
    return row


def _why_wrong(precision: str, found: Mapping[str, Any] | None) -> str:
    """Why outputs are wrong, "" if they are not; what a lowered model may lose, its own self-check judges."""
    if found is None:
        return "it gives other outputs than the reference"
    relative = found["relative"]
    if relative is None:
        return "its outputs are not finite, or have other shapes than torch's"
    if precision == "fp32" and relative > FP32_RTOL:
        return f"off torch FP32 by {relative:.1e} of the largest output, more than {FP32_RTOL:g}"
    return ""


def _most(memories: Sequence[Mapping[str, int | None]]) -> dict[str, int | None]:
    """The peaks of all processes of a candidate."""
    names = ("host_peak_bytes", "device_peak_bytes")
    found = {name: [value for one in memories if (value := one.get(name)) is not None] for name in names}
    return {name: max(values, default=None) for name, values in found.items()}


def _idle_cpu(games: Sequence[Played]) -> float | None:
    """Cores used while waiting. The wait before a first turn is left out: others were loading, it had just run."""
    waits = [turn.waited for game in games for turn in game.turns[1:]]
    seconds = sum(waited for waited, _ in waits)
    return sum(used for _, used in waits) / seconds if seconds > 0 else None


def _drift(games: Sequence[Played]) -> str:
    medians = [median(game.medians_ms) for game in games if game.turns]
    if len(medians) < 2 or max(medians) <= min(medians) * (1 + _DRIFT):
        return ""
    return f"its groups' medians differ: {', '.join(f'{one:.4g}' for one in medians)} ms"


def merged_watches(watches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the sensors said in several turns as if it had been one: sums, extremes, and means weighted by time."""
    energy: dict[str, float] = {}
    hottest: dict[str, float] = {}
    clocks: dict[str, list[float]] = {}
    throttled: dict[str, bool] = {}
    for one in watches:
        for name, joules in one["energy_j"].items():
            energy[name] = energy.get(name, 0.0) + joules
        for name, value in one["temperature_c"].items():
            hottest[name] = max(value, hottest.get(name, value))
        for name, (low, high) in one["clock_mhz"].items():
            known = clocks.get(name, [low, high])
            clocks[name] = [min(low, known[0]), max(high, known[1])]
        for name, value in one["throttled"].items():
            throttled[name] = value or throttled.get(name, False)
    # A source that one turn lacks has no sum.
    whole = {name: value for name, value in energy.items() if all(name in one["energy_j"] for one in watches)}
    busy = [(one["seconds"], one["busy_elsewhere"]) for one in watches if one["busy_elsewhere"] is not None]
    seconds = sum(part for part, _ in busy)
    return {
        "seconds": sum(one["seconds"] for one in watches),
        "energy_j": whole,
        "temperature_c": hottest,
        "clock_mhz": clocks,
        "throttled": throttled,
        "busy_elsewhere": sum(part * share for part, share in busy) / seconds if seconds else None,
        "notes": list(dict.fromkeys(said for one in watches for said in one["notes"])),
    }


def pairs_of(group: Group, result: PlayedGroup, wrong: Collection[Candidate] = ()) -> list[dict[str, Any]]:
    """The ratios of what was measured in turns in one group, or the reasons why there are none.

    Args:
        wrong: candidates that take part in no pair, since they compute something else.
    """
    whole = [candidate for candidate, game in result.played.items() if game.is_whole and candidate not in wrong]
    pairs = []
    for a, b, kind in group_pairs(group, whole):
        ratio = paired_ratio(result.played[a].medians_ms, result.played[b].medians_ms)
        ratio = refused_if_busy(ratio, result.busy_elsewhere)
        pairs.append({"a": a.to_dict(), "b": b.to_dict(), "kind": kind, "ratio": ratio.to_dict()})
    return pairs
