"""What the rules for phases share: the candidates, what to type for each, and the error that asks a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fourphase.runtime.errors import PhaseAmbiguous
from fourphase.runtime.geometry import Region
from fourphase.runtime.phase_evidence import Candidate
from fourphase.runtime.phase_tokens import CLASSES

__all__ = ["PhaseSearch", "Settled"]

#: The candidate of each phase that is certain.
Settled: TypeAlias = Mapping[str, Candidate]


@dataclass(frozen=True, eq=False)
class PhaseSearch:
    """All candidates, the phases to find, and what chooses among reconstructions."""

    candidates: list[Candidate]
    phases: tuple[str, ...]
    region: Region | None
    thickness_mm: float

    def spec(self, candidate: Candidate) -> str:
        """What to type after `--phase NC=`: the number if it is the only one, else the UID."""
        series = candidate.series
        same = [one for one in self.candidates if (one.series.number, one.series.part) == (series.number, series.part)]
        if series.number is not None and len(same) == 1:
            return str(series.number) if series.part is None else f"{series.number}#{series.part}"
        return series.uid or "SUBFOLDER"

    def table(self) -> list[dict[str, str]]:
        first = min((one.start for one in self.candidates if one.start is not None), default=0.0)
        return [
            {
                "series": self.spec(one),
                "slices": str(len(one.series.slices)),
                "start": _with_unit(None if one.start is None else one.start - first, "s"),
                "thickness": _with_unit(one.series.tags.thickness_mm, "mm"),
                "phase": " or ".join(name for name in CLASSES if name in one.claims) or "unknown",
                "evidence": f"no phase: {one.excluded}" if one.excluded else ", ".join(one.texts) or "none",
            }
            for one in self.candidates
        ]

    def ambiguous(self, reason: str, key: str, chosen: Settled | None = None) -> PhaseAmbiguous:
        """The error with the table and a proposal to type: what is settled, then what is left in order of time."""
        proposal = {phase: self.spec(candidate) for phase, candidate in (chosen or {}).items()}
        left = [one for one in self.candidates if not one.excluded and self.spec(one) not in proposal.values()]
        for phase in self.phases:
            if phase not in proposal:
                claiming = [one for one in left if phase in one.claims] or [one for one in left if not one.claims]
                proposal[phase] = self.spec(claiming[0]) if claiming else "SERIES"
                left = [one for one in left if one not in claiming[:1]]
        options = " ".join(f"--phase {phase}={proposal[phase]}" for phase in self.phases)
        return PhaseAmbiguous(reason, f"look at the series, correct and add: {options}", key=key, table=self.table())


def _with_unit(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{value:g} {unit}"
