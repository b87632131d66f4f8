"""Which series is which contrast phase: overrides, then tags, delays, words and order, which must all agree.

Never a silent guess: what the evidence does not settle ends in PhaseAmbiguous, with a table of the candidates and the
options to type. Pixels are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fourphase.runtime.errors import Notice, PhaseMissing
from fourphase.runtime.geometry import Region
from fourphase.runtime.phase_evidence import Candidate, candidates_of
from fourphase.runtime.phase_manifest import PhaseManifest
from fourphase.runtime.phase_overrides import contradictions, named_by_user
from fourphase.runtime.phase_search import PhaseSearch, Settled
from fourphase.runtime.phase_tokens import CLASSES
from fourphase.runtime.reconstructions import preferred, same_acquisition
from fourphase.runtime.series import Series
from fourphase.runtime.study import Study

__all__ = ["PhaseMatch", "assign_phases"]

#: Series "of equal coverage": the shared part of their extent along the body is at least this part of the whole.
EQUAL_COVERAGE = 0.8


@dataclass(frozen=True, eq=False)
class PhaseMatch:
    """The series taken for a phase, and why: short stable texts such as "description:arteriell"."""

    series: Series
    evidence: tuple[str, ...]


def assign_phases(
    study: Study,
    phases: Sequence[str],
    overrides: Mapping[str, str],
    *,
    site: PhaseManifest | None = None,
    region: Region | None = None,
    thickness_mm: float = 1.0,
) -> tuple[dict[str, PhaseMatch], tuple[Notice, ...]]:
    """Finds the series of every phase the model needs.

    Args:
        study: as read; at least one series.
        phases: names out of NC, ART, PV, DL, in the model's order.
        overrides: phase -> SeriesInstanceUID, SeriesNumber (with "#2" for the second acquisition in it) or subfolder.
        site: what the site's own series descriptions mean.
        region: lesion box with margin; among several reconstructions one that covers it is preferred.
        thickness_mm: the training protocol's, to choose among reconstructions.

    Raises:
        UsageError: an override for a phase the model has not, one series for two phases, or site rules that conflict.
        PhaseMissing: a phase has no series.
        PhaseAmbiguous: evidence contradicts itself or does not settle which series it is.
        GeometryRefused: the series of a phase has no sound geometry.
    """
    search = PhaseSearch(candidates_of(study.series, site), tuple(phases), region, thickness_mm)
    named = named_by_user(search, overrides)
    found, chosen_notices = _found_by_evidence(search, named)
    chosen = {**named, **found}
    notices = [
        *contradictions(named),
        *contradictions(found),
        *chosen_notices,
        *_check_times(search, chosen, set(named)),
    ]
    for candidate in chosen.values():
        if candidate.series.problem is not None:
            raise candidate.series.problem
        notices += candidate.series.warnings
    return {phase: PhaseMatch(chosen[phase].series, chosen[phase].texts) for phase in phases}, tuple(notices)


def _found_by_evidence(search: PhaseSearch, named: Settled) -> tuple[dict[str, Candidate], list[Notice]]:
    """The phases that the user did not name."""
    phases = [phase for phase in search.phases if phase not in named]
    taken = {id(candidate.series) for candidate in named.values()}
    usable = [one for one in _with_order(search, phases) if not one.excluded and id(one.series) not in taken]
    contradictory = [one for one in usable if len(one.claims) > 1 and one.claims & set(phases)]
    if contradictory:
        reason = f"the evidence contradicts itself: {_names(contradictory)}"
        raise search.ambiguous(reason, "evidence_contradicts", named)
    claiming = {phase: [one for one in usable if one.claims == {phase}] for phase in phases}
    _require_all(search, claiming, sum(not one.claims for one in usable), named)
    settled = {**named, **{phase: ones[0] for phase, ones in claiming.items() if len(ones) == 1}}
    found, notices = {}, []
    for phase, ones in claiming.items():
        found[phase] = _one_reconstruction(search, phase, ones, settled)
        if len(ones) > 1:
            message = f"{phase}: {found[phase].series.name} was taken out of {len(ones)} reconstructions"
            notices.append(Notice("reconstruction_chosen", message))
    return found, notices


def _with_order(search: PhaseSearch, phases: Sequence[str]) -> list[Candidate]:
    """The candidates, with the order as evidence where a phase has no other and none objects."""
    order = _order(search)
    claimed = {phase for one in search.candidates if not one.excluded for phase in one.claims}
    if not order or claimed.issuperset(phases) or _against_order(search):
        return search.candidates
    return [
        replace(one, evidence=(*one.evidence, (order[id(one)], "order"))) if id(one) in order else one
        for one in search.candidates
    ]


def _order(search: PhaseSearch) -> dict[int, str]:
    """Rule 4: exactly four candidates of equal coverage at four times are NC, ART, PV, DL: id(candidate) -> phase."""
    four = [one for one in search.candidates if not one.excluded]
    starts = _starts(four)
    if len(four) != len(CLASSES) or None in starts or len(set(starts)) < len(four):
        return {}
    if not _equal_coverage([one.series for one in four]):
        return {}
    return {id(one): phase for one, phase in zip(four, CLASSES, strict=True)}


def _against_order(search: PhaseSearch) -> list[Candidate]:
    """The candidates whose other evidence contradicts the order of acquisition."""
    order = _order(search)
    return [one for one in search.candidates if id(one) in order and one.claims - {order[id(one)]}]


def _equal_coverage(series: Sequence[Series]) -> bool:
    """True if the series share most of their extent along z (LPS)."""
    if any(one.problem is not None for one in series):
        return False
    bounds = [one.geometry.bounds() for one in series]
    shared = min(one.max[2] for one in bounds) - max(one.min[2] for one in bounds)
    whole = max(one.max[2] for one in bounds) - min(one.min[2] for one in bounds)
    return shared >= EQUAL_COVERAGE * whole


def _require_all(
    search: PhaseSearch, claiming: Mapping[str, Sequence[Candidate]], undecided: int, named: Settled
) -> None:
    """Every phase must be claimed.

    Raises:
        PhaseAmbiguous: series without evidence, or further acquisitions of a claimed phase, could be the missing ones.
        PhaseMissing: there is nothing to choose from.
    """
    missing = [phase for phase, ones in claiming.items() if not ones]
    if not missing:
        return
    names = ", ".join(missing)
    spare = undecided + sum(len(ones) - 1 for ones in claiming.values() if not same_acquisition(_starts(ones)))
    if spare >= len(missing):
        settled = {**named, **{phase: ones[0] for phase, ones in claiming.items() if len(ones) == 1}}
        if objecting := _against_order(search):
            reason = f"evidence and acquisition times contradict each other: {_names(objecting)}"
            order = _order(search)
            in_order = {order[id(one)]: one for one in search.candidates if order.get(id(one)) in search.phases}
            raise search.ambiguous(reason, "times_contradict", {**in_order, **named})
        raise search.ambiguous(f"nothing tells which series is {names}", "phase_without_evidence", settled)
    found = {**claiming, **{phase: [one] for phase, one in named.items()}}
    listed = ", ".join(f"{phase} ({_names(found[phase])})" for phase in search.phases if found[phase]) or "none"
    raise PhaseMissing(
        f"no series for phase {names}; found: {listed}",
        "send the missing series too, or name it with --phase, for example "
        + " ".join(f"--phase {phase}=SERIES" for phase in missing),
    )


def _starts(candidates: Sequence[Candidate]) -> list[float | None]:
    return [one.start for one in candidates]


def _names(candidates: Sequence[Candidate]) -> str:
    return ", ".join(one.series.name for one in candidates)


def _one_reconstruction(search: PhaseSearch, phase: str, ones: Sequence[Candidate], settled: Settled) -> Candidate:
    if len(ones) == 1:
        return ones[0]
    names = _names(ones)
    if not same_acquisition(_starts(ones)):
        raise search.ambiguous(f"several acquisitions claim to be {phase}: {names}", "several_acquisitions", settled)
    left, decisive = preferred([one.series for one in ones], search.thickness_mm, search.region)
    if len(left) > 1:
        raise search.ambiguous(f"several equal reconstructions of {phase}: {names}", "several_reconstructions", settled)
    best = next(one for one in ones if one.series is left[0])
    return replace(best, evidence=(*best.evidence, (phase, f"preferred:{decisive}")))


# ---- rule 5: times must rise


def _check_times(search: PhaseSearch, chosen: Settled, named: set[str]) -> list[Notice]:
    """Raises: PhaseAmbiguous if acquisition times contradict the phases; only between two named ones it is a Notice."""
    notices = []
    present = [phase for phase in CLASSES if phase in chosen]
    timed = [(phase, start) for phase in present if (start := chosen[phase].start) is not None]
    for (earlier, first), (later, second) in pairwise(timed):
        if first < second:
            continue
        reason = f"{later} was acquired {first - second:.0f} s before {earlier}" if first > second else ""
        reason = reason or f"{earlier} and {later} were acquired at the same time"
        if not {earlier, later} <= named:
            raise search.ambiguous(f"acquisition times contradict the phases: {reason}", "times_contradict", chosen)
        notices.append(Notice("override_contradicts_times", f"against the phases named with --phase: {reason}"))
    if len(timed) < len(present):
        notices.append(Notice("times_unknown", "acquisition times are missing, so the order is unchecked"))
    return notices
