"""What our reader makes of a hazard: its outcome in words, and how far the network's input is from the undisturbed one.

Read as `fp-run` reads: a zip is unpacked, and a study that changes meanwhile is noticed.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.hazards.hazard import Bound, Case, Hazard
from fourphase.benchmarks.hazards.study import INNER_MARKERS, MARKER_HU, PHASES, SoundStudy
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import FourphaseError, Notice
from fourphase.runtime.pipeline import PreparedStudy, StudyRequest, prepare_study
from fourphase.runtime.study_archive import open_study
from fourphase.runtime.study_snapshot import unchanged

__all__ = ["OurOutcome", "OurReader"]

Float = NDArray[np.float64]

#: As the contract's but coarser: what is measured here does not need more.
CONFIG = PreprocessingConfig(size=(36, 36, 42))
#: Markers are found in the input's widest window.
_WINDOW = CONFIG.windows_hu[0]
#: A marker's voxels lie within this of its place, mm.
_REACH_MM = 9.0


@dataclass(frozen=True)
class OurOutcome:
    """What came out.

    Attributes:
        words: "read", "read: <notices>" or "refused: <code> <key>"; notices that the sound study has too are left out.
        off: of the input where it was read; None if refused.
    """

    words: str
    off: Bound | None

    def is_as_expected(self, hazard: Hazard) -> bool:
        """Whether the words are the hazard's, and what was read is within its bound."""
        right = self.off is None or (self.off.mm <= hazard.bound.mm and self.off.hu <= hazard.bound.hu)
        return right and self.words == hazard.ours


class OurReader:
    """Reads copies of one sound study."""

    def __init__(self, sound: SoundStudy) -> None:
        self._sound = sound

    @cached_property
    def _undisturbed(self) -> tuple[Float, frozenset[str]]:
        prepared, notices = self._read(Case(self._sound, self._sound.study), None)
        return _input_hu(prepared), frozenset(notice.key for notice in notices)

    def outcome(self, hazard: Hazard, case: Case) -> OurOutcome:
        """Reads a case that the hazard has been done to."""
        undisturbed, usual = self._undisturbed
        try:
            prepared, notices = self._read(case, hazard)
        except FourphaseError as error:
            return OurOutcome(f"refused: {error.code} {error.key}", None)
        keys = sorted({notice.key for notice in notices} - usual)
        found = _input_hu(prepared)
        off = Bound(
            self._marker_error(undisturbed, found), float(np.abs(found - undisturbed).mean(axis=(1, 2, 3)).max())
        )
        return OurOutcome(f"read: {', '.join(keys)}" if keys else "read", off)

    def _read(self, case: Case, hazard: Hazard | None) -> tuple[PreparedStudy, list[Notice]]:
        meanwhile = hazard and hazard.meanwhile
        with unchanged(case.root) if meanwhile else nullcontext(), open_study(case.root) as opened:
            if meanwhile:
                meanwhile(case)
            prepared = prepare_study(StudyRequest(opened.folder, self._sound.box_file), PHASES, CONFIG)
            return prepared, [*opened.warnings, *prepared.warnings]

    def _marker_error(self, undisturbed: Float, found: Float) -> float:
        """The largest distance, mm, of a marker from where the undisturbed input has it, over all phases."""
        region = self._sound.box.grown(CONFIG.margin_mm)
        extent = np.array(region.extent_mm)[::-1]
        points = np.moveaxis(np.indices(CONFIG.size), 0, -1) + 0.5
        points = np.array(region.min)[::-1] + points * extent / CONFIG.size
        worst = 0.0
        for phase in range(len(PHASES)):
            for marker in self._sound.markers[:INNER_MARKERS, ::-1]:
                near = ((points - marker) ** 2).sum(axis=-1) < _REACH_MM**2
                places = [_centroid(points[near], volume[phase][near]) for volume in (undisturbed, found)]
                worst = max(worst, float(np.linalg.norm(places[0] - places[1])))
        return worst


def _input_hu(prepared: PreparedStudy) -> Float:
    """HU out of the widest window of the input, float64 (P, T, H, W), clipped to the window."""
    low, high = _WINDOW
    window = prepared.input[:, :, 0].astype(np.float64) * CONFIG.std[0] + CONFIG.mean[0]
    return window * (high - low) + low


def _centroid(points: Float, hu: Float) -> Float:
    """Of what lies above tissue; NaN, which no bound allows, if nothing does."""
    weights = np.clip(hu - MARKER_HU, 0, None)
    with np.errstate(invalid="ignore"):
        return np.asarray((points * weights[:, None]).sum(axis=0) / weights.sum())
