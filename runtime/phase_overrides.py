"""`--phase NC=2`: which series the user means, and what speaks against a phase that the user or the site named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fourphase.runtime.errors import Notice, PhaseMissing, UsageError
from fourphase.runtime.phase_evidence import Candidate
from fourphase.runtime.phase_search import PhaseSearch, Settled
from fourphase.runtime.series import Series

__all__ = ["contradictions", "named_by_user"]


def named_by_user(search: PhaseSearch, overrides: Mapping[str, str]) -> dict[str, Candidate]:
    named: dict[str, Candidate] = {}
    for phase, spec in overrides.items():
        if phase not in search.phases:
            raise UsageError(
                f"--phase names {phase}, but the model's phases are {', '.join(search.phases)}",
                "correct the option",
                key="phase_unknown",
            )
        candidate = _one_series(search, phase, spec)
        if candidate.series in [other.series for other in named.values()]:
            raise UsageError("--phase names one series for two phases", "name another series", key="phase_repeated")
        named[phase] = replace(candidate, evidence=((phase, "override"), *candidate.evidence))
    return named


def _one_series(search: PhaseSearch, phase: str, spec: str) -> Candidate:
    """The one series meant by a UID, else by a number, else by a subfolder; what the table shows always works."""
    matches: list[Candidate] = []
    for fits in (_has_uid, _has_number, _is_in_folder):
        matches = matches or [one for one in search.candidates if fits(one.series, spec)]
    if not matches:
        raise PhaseMissing(
            f"no series fits --phase {phase}=..., given as SeriesInstanceUID, SeriesNumber or subfolder",
            f"the study's series are {', '.join(search.spec(one) for one in search.candidates)}",
            key="override_not_found",
        )
    if len(matches) > 1:
        found = ", ".join(search.spec(one) for one in matches)
        raise search.ambiguous(f"--phase {phase}=... fits several series: {found}", "override_ambiguous")
    return matches[0]


def _has_uid(series: Series, spec: str) -> bool:
    return spec != "" and series.uid == spec


def _has_number(series: Series, spec: str) -> bool:
    number, _, part = spec.partition("#")
    return number.isdecimal() and len(number) <= 12 and series.number == int(number) and part in ("", str(series.part))


def _is_in_folder(series: Series, spec: str) -> bool:
    folder = series.folder
    return folder is not None and spec.strip("/") in (folder, folder.rpartition("/")[2])


def contradictions(named: Settled) -> list[Notice]:
    """What the tags say against the phases that --phase or the site's file gave."""
    notices = []
    for phase, candidate in named.items():
        against = [text for name, text in candidate.evidence if name != phase]
        against += [f"no phase: {candidate.excluded}"] if candidate.excluded else []
        if against:
            overridden = (phase, "override") in candidate.evidence
            who, key = ("--phase", "override") if overridden else ("the phases file", "site_rule")
            message = (
                f"{candidate.series.name} was named as {phase} by {who}, against its evidence: {', '.join(against)}"
            )
            notices.append(Notice(f"{key}_contradicts_tags", message))
    return notices
