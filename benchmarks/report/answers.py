"""The plain answers of a report, in sentences made from its numbers. What was not measured is not spoken of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fourphase.benchmarks.report.answers_latency import latency_answers
from fourphase.benchmarks.report.answers_runs import archive_answers, end_to_end_answers
from fourphase.benchmarks.report.reading import Row, rows_of, section_of, status_of
from fourphase.benchmarks.report.words import counted, difference_text, listed, runtime_name, significant, way_name

__all__ = ["Answer", "answers_of"]

_SWEEPS = {"slices": "slices", "crop": "the crop's edge", "batch": "the batch", "width": "the network's width"}


@dataclass(frozen=True)
class Answer:
    """One finding, and the section with its numbers."""

    section: str
    text: str


def answers_of(report: Row) -> list[Answer]:
    return [Answer(name, text) for name, make in _SECTIONS.items() for text in make(section_of(report, name))]


def _gru(section: Row) -> Iterator[str]:
    by_runtime: dict[str, list[Row]] = {}
    for row in rows_of(section, "ratios"):
        by_runtime.setdefault(row["runtime"], []).append(row.get("ratio") or {})
    for runtime, ratios in by_runtime.items():
        told = [ratio for ratio in ratios if ratio.get("value") is not None]
        if not told:
            continue
        ends = [f"{end(ratio['value'] for ratio in told):.2f}" for end in (min, max)]
        unrolled, loop = sum(ratio["low"] > 1 for ratio in told), sum(ratio["high"] < 1 for ratio in told)
        yield (
            f"GRU in {runtime_name(runtime)}: the loop takes {' to '.join(dict.fromkeys(ends))} times as long as the "
            f"unrolled form. Of {counted(len(ratios), 'size', 'sizes')}, unrolling wins at {unrolled} and the loop at "
            f"{loop}; {len(ratios) - unrolled - loop} cannot be told."
        )


def _scaling(section: Row) -> Iterator[str]:
    grown: dict[tuple[str, str, str], list[str]] = {}
    for sweep in rows_of(section, "sweeps"):
        fit = sweep.get("fit")
        if fit is not None:
            what = f"{_SWEEPS.get(sweep['what'], sweep['what'])} to the power of {fit['exponent']:.2f} "
            place = sweep["network"], sweep["runtime"], sweep["precision"]
            grown.setdefault(place, []).append(f"{what}({fit['low']:.2f} to {fit['high']:.2f})")
    for (network, *way), powers in grown.items():
        yield f"The latency of {network} in {way_name(*way)} grows with {listed(powers)}."


def _baselines(section: Row) -> Iterator[str]:
    rows = {row["network"]: row for row in rows_of(section) if status_of(row) == "ok"}
    yield from _against_ours(rows)
    yield from _int8(list(rows.values()))


def _against_ours(rows: Mapping[str, Row]) -> Iterator[str]:
    ours = rows.get("four-phase")
    if ours is None:
        return
    auc = ours["auc"]
    differences = [row["auc_against_four_phase"] for row in rows.values() if row.get("auc_against_four_phase")]
    above, below = sum(one["low"] > 0 for one in differences), sum(one["high"] < 0 for one in differences)
    text = (
        f"On synthetic phantoms, at a small scale, four-phase has an AUC of {auc['value']:.3f} "
        f"({auc['low']:.3f} to {auc['high']:.3f})."
    )
    if differences:
        others = counted(len(differences), "other network", "other networks")
        text += (
            f" Of {others}, {above} {'has' if above == 1 else 'have'} a larger one on the same phantoms and {below} a "
            f"smaller one; {len(differences) - above - below} cannot be told apart from it."
        )
    yield f"{text} This says nothing about patients."


def _int8(rows: Sequence[Row]) -> Iterator[str]:
    changes = {row["network"]: row["int8"]["auc_against_fp32"] for row in rows if row.get("int8")}
    if not changes:
        return
    lower, higher = (sum(one["high"] < 0 for one in changes.values()), sum(one["low"] > 0 for one in changes.values()))
    worst = min(changes, key=lambda name: changes[name]["value"])
    yield (
        f"INT8 against FP32 on the same phantoms: the 95 % interval of the AUC's change lies below 0 for {lower} of "
        f"{counted(len(changes), 'network', 'networks')} and above 0 for {higher}; the lowest change is {worst}'s, "
        f"{difference_text(changes[worst])}."
    )


def _preprocess(section: Row) -> Iterator[str]:
    seconds: dict[str, Any] = dict(section.get("seconds") or {})
    if len(seconds) > 1 and section.get("slices") and section.get("repeats"):
        first, other = list(seconds)[:2]
        yield (
            f"Scanning, reading and preprocessing a study of {section['slices']:,} slices takes "
            f"{significant(seconds[first])} s in {first}, {significant(seconds[other])} s in {other} (medians of "
            f"{section['repeats']} runs)."
        )


_SECTIONS: Mapping[str, Callable[[Row], Iterator[str]]] = MappingProxyType(
    {
        "latency": latency_answers, "end-to-end": end_to_end_answers, "gru": _gru, "scaling": _scaling,
        "archive": archive_answers, "baselines": _baselines, "preprocess": _preprocess,
    }
)  # fmt: skip
