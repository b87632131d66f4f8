"""Two runs side by side: what became slower, faster, was lost or found, beyond the noise of both.

Rows are matched by identity. What is judged are medians of times, and the AUC of accuracy runs; sizes, memory and
ratios are not. Both runs must be of one machine, one number of threads, one scale and one study. The more rows, the
wider the interval of each, so that all of them together are wrongly called changed in 1 comparison of 20 at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fourphase.benchmarks.report.comparability import check_comparable, other_changes
from fourphase.benchmarks.report.comparable import COMPARABLE, Comparable, comparables_of
from fourphase.benchmarks.report.document import SCHEMA, is_complete
from fourphase.benchmarks.report.reading import Row
from fourphase.benchmarks.report.sections import SECTIONS
from fourphase.benchmarks.report.welch import FEWEST_ROUNDS, Change, change_of_rounds, change_of_spreads
from fourphase.runtime.errors import InputMissing, UsageError

__all__ = ["REGRESSIONS", "CompareResult", "Pair", "compare"]

#: Verdicts that make the command fail.
REGRESSIONS = ("slower", "lost", "less accurate")
#: Verdicts in the order of the table.
_ORDER = ("lost", "less accurate", "slower", "faster", "more accurate", "unchanged", "found", "absent")
#: Of calling any row changed that is not, shared by all rows (Bonferroni).
_RISK = 0.05


@dataclass(frozen=True)
class Pair:
    """One row in both runs.

    Attributes:
        verdict: "slower", "faster", "unchanged"; "less accurate", "more accurate"; "lost" (measured in OLD only),
            "found" (in NEW only), "absent" (in neither).
        old, new: medians (geometric means of the rounds' medians where there are rounds) in the unit of the section,
            or AUCs.
        ratio: NEW over OLD; of an AUC, the difference instead.
        noise: beyond which a ratio counts; of an AUC, and where it is not known, None.
        noise_from: "rounds", "spread", "tolerance" (what the data say is less), "unknown" (too few rounds and no
            spread: then a row counts as unchanged), or "intervals" of an AUC.
        reason: why it is lost or absent, or that its noise is not known.
    """

    section: str
    row: str
    verdict: str
    old: float | None = None
    new: float | None = None
    ratio: float | None = None
    noise: float | None = None
    noise_from: str = ""
    reason: str = ""


@dataclass(frozen=True)
class CompareResult:
    """All rows, the worst first.

    Attributes:
        confidence: of each row's interval.
        changed: what else differs between the runs: versions, settings, folds; machines if that was asked for.
    """

    pairs: tuple[Pair, ...]
    tolerance: float
    confidence: float
    quick: bool
    changed: tuple[str, ...]
    machine: Mapping[str, Any]

    @property
    def regressions(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.verdict in REGRESSIONS)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        counts = {verdict: sum(pair.verdict == verdict for pair in self.pairs) for verdict in _ORDER}
        return {
            "schema": "fourphase.compare/1",
            "machine": dict(self.machine),
            "quick": self.quick,
            "settings": {"tolerance": self.tolerance, "confidence": self.confidence},
            "counts": counts,
            "changed": list(self.changed),
            "rows": [asdict(pair) for pair in self.pairs],
        }


def compare(old: Row, new: Row, *, tolerance: float = 0.05, other_machine: bool = False) -> CompareResult:
    """Compares two JSON objects of one schema: two sections, or two reports.

    Args:
        tolerance: a smaller change is never one, whatever the rounds say: 0.05 is 5 %.
        other_machine: compare even though the machines differ.

    Raises: UsageError (2) for different schemas, and as `check_comparable`; InputMissing (10) for objects that hold
        nothing to compare or rows that cannot be read.
    """
    sections = _matched(old, new)
    differ = check_comparable(old, new, sections, other_machine=other_machine)
    couples = [couple for name, (one, other) in sections.items() for couple in _couples(name, one, other)]
    if not couples:
        raise InputMissing("the two files have no rows", "compare reports in which something was measured",
                           key="nothing_to_compare")  # fmt: skip
    confidence = 1 - _RISK / max(sum(couple.timed for couple in couples), 1)
    pairs = [_judged(couple, tolerance, confidence) for couple in couples]
    ordered = sorted(pairs, key=lambda pair: (_ORDER.index(pair.verdict), -_size(pair)))
    changed = (*differ, *other_changes(old, new, sections))
    machine = new.get("machine") if isinstance(new.get("machine"), Mapping) else {}
    return CompareResult(tuple(ordered), tolerance, confidence, bool(new.get("quick")), changed, machine or {})


def _matched(old: Row, new: Row) -> dict[str, tuple[Row, Row]]:
    """Section -> it in both; one that did not come to its end counts as it is, one that is not there as {}."""
    schemas = [str(one.get("schema", "")) for one in (old, new)]
    if schemas[0] != schemas[1]:
        raise UsageError(
            f"OLD is a {schemas[0] or 'nothing'}, NEW a {schemas[1] or 'nothing'}",
            "compare two files of one kind",
            key="schema_differs",
        )
    if schemas[0] == SCHEMA:
        return {
            name: (old["sections"].get(name) or {}, new["sections"].get(name) or {})
            for name in SECTIONS
            if old["sections"].get(name) or new["sections"].get(name)
        }
    kind = _kind(old)
    if kind not in COMPARABLE:
        raise InputMissing(
            f"a {kind or 'file without a schema'} cannot be compared",
            f"give two of {', '.join(COMPARABLE)} or two reports",
            key="schema_unknown",
        )
    name = next(name for name, section in SECTIONS.items() if section.schema == kind)
    return {name: (old, new)}


@dataclass(frozen=True)
class _Couple:
    """One row as both runs have it."""

    section: str
    old: Comparable
    new: Comparable

    @property
    def timed(self) -> bool:
        return self.old.median is not None and self.new.median is not None and not self.old.interval


def _couples(name: str, old: Row, new: Row) -> Iterator[_Couple]:
    before, after = (_rows(name, section) for section in (old, new))
    # A section that is gone as a whole says why its rows are.
    gone = "" if new and is_complete(new) else str(new.get("reason") or "the section was not measured")
    for identity in dict.fromkeys((*before, *after)):
        one = before.get(identity) or Comparable(identity, "absent", "not in OLD")
        other = after.get(identity) or Comparable(identity, "absent", gone or "not in NEW")
        yield _Couple(name, one, other)


def _rows(name: str, section: Row) -> dict[tuple[str, ...], Comparable]:
    """None of a section that has not begun, or was ended because it is of another kind."""
    return comparables_of(section) if _kind(section) == SECTIONS[name].schema else {}


def _kind(run: Row) -> str:
    return str(run.get("schema", "")).partition("/")[0]


def _judged(couple: _Couple, tolerance: float, confidence: float) -> Pair:
    section, old, new = couple.section, couple.old, couple.new
    if old.median is None or new.median is None:
        if old.median is not None:
            reason = f"{new.status}: {new.reason}".rstrip(": ")
            return Pair(section, old.name, "lost", old=old.median, reason=reason)
        if new.median is not None:
            return Pair(section, old.name, "found", new=new.median)
        return Pair(section, old.name, "absent", reason=new.reason)
    if old.interval and new.interval:
        return _judged_accuracy(section, old, new)
    change = _change(old, new, confidence)
    if change is None:
        return Pair(section, old.name, "unchanged", old.median, new.median, new.median / old.median, None, "unknown",
                    "its noise is not known")  # fmt: skip
    noise, noise_from = (change.noise, change.noise_from) if change.noise > tolerance else (tolerance, "tolerance")
    verdict = "slower" if change.ratio > 1 + noise else "faster" if change.ratio < 1 / (1 + noise) else "unchanged"
    return Pair(section, old.name, verdict, change.old, change.new, change.ratio, noise, noise_from)


def _change(old: Comparable, new: Comparable, confidence: float) -> Change | None:
    """None where neither enough rounds nor a spread say what the noise is."""
    if min(len(old.rounds), len(new.rounds)) >= FEWEST_ROUNDS:
        return change_of_rounds(old.rounds, new.rounds, confidence)
    if old.cv_percent is None or new.cv_percent is None:
        return None
    assert old.median is not None
    assert new.median is not None
    return change_of_spreads(old.median, new.median, old.cv_percent, new.cv_percent, confidence)


def _judged_accuracy(section: str, old: Comparable, new: Comparable) -> Pair:
    """An AUC has changed if the two intervals have nothing in common."""
    assert old.median is not None
    assert new.median is not None
    assert old.interval is not None
    assert new.interval is not None
    less, more = new.interval[1] < old.interval[0], new.interval[0] > old.interval[1]
    verdict = "less accurate" if less else "more accurate" if more else "unchanged"
    return Pair(section, old.name, verdict, old.median, new.median, new.median - old.median, None, "intervals")


def _size(pair: Pair) -> float:
    """How large a change is, whichever its direction."""
    if pair.ratio is None:
        return 0.0
    if pair.noise_from == "intervals":
        return abs(pair.ratio)
    return max(pair.ratio, 1 / pair.ratio)
