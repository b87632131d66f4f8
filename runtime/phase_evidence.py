"""What speaks for a phase in one series' headers, and when each series was acquired.

Evidence is a short stable text such as "injection_delay:35s"; whether it suffices is `phases`'s question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fourphase.runtime.phase_manifest import IGNORE, PhaseManifest, SiteRule
from fourphase.runtime.phase_tokens import class_of_description, no_phase_word
from fourphase.runtime.series import Series

__all__ = ["Candidate", "candidates_of"]

DAY = 86400.0

#: ContrastBolusAgentPhase (0018,9344), PS3.3 C.8.15.3.9.
AGENT_PHASES = {"PRE_CONTRAST": "NC", "ARTERIAL": "ART", "PORTAL_VENOUS": "PV", "VENOUS": "PV", "DELAYED": "DL"}
#: ContrastBolusAgent (0018,0010) that says no agent was given.
NO_AGENT = ("none", "no", "no contrast", "without", "without contrast", "ohne", "kein", "aucun", "sans", "nessuno")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A series and what is known about its phase.

    Attributes:
        start: seconds since a moment common to the study; None when unknown.
        evidence: (phase, text), strongest first.
        excluded: the word by which it is no contrast phase at all (scout, lung, MPR ...).
        site_phase: the phase that the site's phases.toml gives it; it overrules what the tags say.
    """

    series: Series
    start: float | None
    evidence: tuple[tuple[str, str], ...]
    excluded: str | None
    site_phase: str | None = None

    @property
    def claims(self) -> frozenset[str]:
        """The phases its evidence names: none, one, or several that contradict each other."""
        if self.site_phase is not None:
            return frozenset({self.site_phase})
        return frozenset(phase for phase, _ in self.evidence)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(text for _, text in self.evidence)


def candidates_of(series: Sequence[Series], site: PhaseManifest | None = None) -> list[Candidate]:
    """Every series with its evidence, in the order of acquisition; unknown times last.

    Raises: UsageError (2) if a description fits two phases of the site's file.
    """
    starts = _common_starts(series)
    found = [_candidate(one, start, site) for one, start in zip(series, starts, strict=True)]
    return sorted(found, key=lambda candidate: (candidate.start is None, candidate.start or 0.0))


def _candidate(series: Series, start: float | None, site: PhaseManifest | None) -> Candidate:
    description, timed = series.tags.description, start is not None
    rule = site.rule_for(description) if site else None
    if rule is None:
        evidence = [*_tag_evidence(series, timed=timed), *_word_evidence(description)]
        return Candidate(series, start, tuple(evidence), no_phase_word(description))
    return _by_rule(rule, series, start, _tag_evidence(series, timed=timed))


def _by_rule(rule: SiteRule, series: Series, start: float | None, tags: Sequence[tuple[str, str]]) -> Candidate:
    """The site's rule in the place of the general words; what the tags say stays visible beside it."""
    if rule.phase == IGNORE:
        return Candidate(series, start, tuple(tags), f"site:{rule.pattern}")
    evidence = ((rule.phase, f"site:{rule.pattern}"), *tags)
    return Candidate(series, start, evidence, None, rule.phase)


def _word_evidence(description: str) -> list[tuple[str, str]]:
    named = class_of_description(description)
    return [(named[0], f"description:{named[1]}")] if named is not None else []


def _tag_evidence(series: Series, *, timed: bool) -> list[tuple[str, str]]:
    tags = series.tags
    found = []
    if tags.agent_phase in AGENT_PHASES:
        found.append((AGENT_PHASES[tags.agent_phase], f"agent_phase:{tags.agent_phase.lower()}"))
    if tags.agent.casefold() in NO_AGENT:
        found.append(("NC", "agent:none"))
    delay = _injection_delay(series) if timed else None
    phase = _phase_of_delay(delay) if delay is not None else None
    if delay is not None and phase is not None:
        found.append((phase, f"injection_delay:{delay:.0f}s"))
    return found


def _injection_delay(series: Series) -> float | None:
    """AcquisitionTime - ContrastBolusStartTime in seconds, within half a day either way (midnight may lie between)."""
    bolus, times = series.tags.bolus_start, [header.acquired_time for header in series.slices]
    known = [time for time in times if time is not None]
    if bolus is None or not known:
        return None
    delays = [(time - bolus + DAY / 2) % DAY - DAY / 2 for time in known]
    return min(delays)


def _phase_of_delay(seconds: float) -> str | None:
    """The gaps between the ranges, and the border of 50 s itself, are unknown."""
    if seconds < 0:
        return "NC"
    if 15 <= seconds < 50:
        return "ART"
    if 50 < seconds <= 110:
        return "PV"
    return "DL" if seconds >= 120 else None


def _common_starts(series: Sequence[Series]) -> list[float | None]:
    """First AcquisitionTime of each series in seconds from a common moment (SeriesTime and ContentTime mislead).

    Dates count only if every series has one; without, times more than half a day apart lie across midnight. Times that
    are all the same were overwritten by an anonymiser and are taken as unknown.
    """
    slices = [header for one in series for header in one.slices]
    dated = all(header.acquired_day is not None for header in slices if header.acquired_time is not None)
    starts = [_start(one, dated) for one in series]
    known = [start for start in starts if start is not None]
    if len(known) > 1 and len(set(known)) == 1:
        return [None] * len(starts)
    if not dated and known and max(known) - min(known) > DAY / 2:
        starts = [start + DAY if start is not None and start < DAY / 2 else start for start in starts]
    return starts


def _start(series: Series, dated: bool) -> float | None:
    moments = [
        header.acquired_time + (DAY * header.acquired_day if dated and header.acquired_day is not None else 0.0)
        for header in series.slices
        if header.acquired_time is not None
    ]
    return min(moments, default=None)
