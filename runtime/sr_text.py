"""The sentences of the structured report, for a person who reads it in a viewer. No content item is made here."""

from __future__ import annotations

from collections.abc import Sequence

from fourphase.runtime.geometry import Region
from fourphase.runtime.result import StudyResult
from fourphase.runtime.sr_codes import clean, phase_code
from fourphase.runtime.sr_source import SourcePhase

__all__ = ["answer", "box_texts", "phase_text"]


def answer(result: StudyResult) -> str:
    """The predicted class and every probability: "HCC (HCC 91.2%, ICC 8.8%)"."""
    percent = ", ".join(f"{clean(name)} {value:.1%}" for name, value in result.probabilities.items())
    return f"{clean(result.label)} ({percent})"


def box_texts(phases: Sequence[SourcePhase]) -> list[str]:
    """Size and place of the lesion box; with a box per phase, one sentence each."""
    if len({phase.region for phase in phases}) == 1:
        return [_box(phases[0].region)]
    return [f"{phase_code(phase.phase).meaning}: {_box(phase.region)}" for phase in phases]


def _box(region: Region) -> str:
    sides = zip("xyz", region.min, region.max, strict=True)
    spans = ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, low, high in sides)
    size = " x ".join(f"{extent:.1f}" for extent in region.extent_mm)
    return f"{size} mm; {spans} mm (x to the left, y to the back, z to the head)"


def phase_text(phase: SourcePhase, result: StudyResult) -> str:
    """Which series was taken for a phase, how many of its slices the model needed, and why that series."""
    record = result.phases[phase.phase]
    number = "series without number" if record.series_number is None else f"series {record.series_number}"
    used = sum(len(image.frames) or 1 for image in phase.images)
    why = f"; taken because of {', '.join(record.evidence)}" if record.evidence else ""
    return f"{phase_code(phase.phase).meaning}: {number}, {used} of {record.slices} slices used{why}"
