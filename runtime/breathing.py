"""How far the tissue around the lesion moves between phases: one box serves all phases, but the patient breathes.

A translation per phase against one reference phase, from a coarse grid around the lesion (`translation` compares, here
is what is compared). It warns and never corrects: what the network sees stays what the box says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.box import FittedBox
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import FourphaseError, Notice
from fourphase.runtime.geometry import Region
from fourphase.runtime.organ import organ_around
from fourphase.runtime.series import Series
from fourphase.runtime.slices import OUTSIDE_HU, RegionGrid, sample_region
from fourphase.runtime.translation import (
    BORDER,
    EdgeField,
    Match,
    Template,
    best_translation,
    edge_field,
    make_template,
)

__all__ = ["BreathingShift", "estimate_shifts"]

Vector = tuple[float, float, float]
Volume = NDArray[np.float32]

#: The phase in which most boxes are drawn.
PREFERRED_REFERENCE = "PV"
WARN_MM = 5.0
#: Along x, y, z: what breathing does to a liver, and how much tissue around the box's centre is compared.
SEARCH_MM: Vector = (15.0, 15.0, 30.0)
LEAST_HALF_MM, MOST_HALF_MM = 58.0, 75.0
#: Grid spacing; coarser for large boxes, so that a grid holds no more than about this many samples.
SPACING_MM, MOST_SAMPLES = 3.0, 150_000
#: A match is no measurement below this score, or if another shift, this far from it, comes this close to its score.
LEAST_SCORE, RIVAL_APART_MM, RIVAL_DROP, RIVAL_SHARE = 0.25, 6.0, 0.05, 0.94


@dataclass(frozen=True)
class BreathingShift:
    """Where each phase has the tissue that the reference has around the lesion.

    Attributes:
        reference: the phase that the others are compared with.
        shift_mm: phase -> (x, y, z) LPS mm by which its tissue lies away from the reference's (with a box per phase:
            relative to the boxes' centres); None where that cannot be told; zero for the reference.
        score: phase -> similarity there, -1 to 1 (1 for the reference); None where nothing could be compared.
        unreliable: phase -> why there is no shift.
        warnings: shifts above 5 mm, and slices that could not be read.
    """

    reference: str
    shift_mm: Mapping[str, Vector | None]
    score: Mapping[str, float | None]
    unreliable: Mapping[str, str]
    warnings: tuple[Notice, ...]

    def to_dict(self) -> dict[str, Any]:
        """The result's `breathing` section, to a tenth of a millimetre."""
        shifts = {phase: shift and [round(value, 1) + 0.0 for value in shift] for phase, shift in self.shift_mm.items()}
        section: dict[str, Any] = {"reference": self.reference, "shift_mm": shifts}
        return section | ({"unreliable": dict(self.unreliable)} if self.unreliable else {})


def estimate_shifts(series: Mapping[str, Series], box: FittedBox, config: PreprocessingConfig) -> BreathingShift:
    """Compares every phase with the reference: PV, or the first where there is none.

    Args:
        series: phase -> its series; at least one.
        box: fitted to them.
        config: the model's; only its margin is used.

    Raises: nothing of its own: what cannot be read or compared is unreliable, with the reason.
    """
    reference = PREFERRED_REFERENCE if PREFERRED_REFERENCE in series else next(iter(series))
    grid = _grid(box.by_phase[reference], config.margin_mm)
    volumes = {phase: _sampled(one, box.by_phase[phase], grid) for phase, one in series.items()}
    template = _template(volumes[reference], box.by_phase[reference], config.margin_mm, grid)
    shifts: dict[str, Vector | None] = {reference: (0.0, 0.0, 0.0)}
    scores: dict[str, float | None] = {reference: 1.0}
    unreliable: dict[str, str] = {}
    for phase, volume in volumes.items():
        if phase != reference:
            shifts[phase], scores[phase], reason = _compared(template, volume, grid)
            unreliable |= {phase: reason} if reason else {}
    notices = [*_unread(volumes), *_moved(shifts, reference)]
    ordered = {phase: shifts[phase] for phase in series}
    return BreathingShift(reference, ordered, {phase: scores[phase] for phase in series}, unreliable, tuple(notices))


@dataclass(frozen=True)
class _Grid:
    """Samples around a box's centre, and how many of them a displacement may span; (x, y, z)."""

    counts: tuple[int, int, int]
    search: tuple[int, int, int]
    spacing_mm: float

    def around(self, region: Region) -> RegionGrid:
        centre = (np.array(region.min) + np.array(region.max)) / 2
        x, y, z = centre - np.array(self.counts) * self.spacing_mm / 2
        return RegionGrid((float(x), float(y), float(z)), self.counts, self.spacing_mm)


def _grid(region: Region, margin_mm: float) -> _Grid:
    half = np.clip(np.array(region.grown(margin_mm).extent_mm) / 2, LEAST_HALF_MM, MOST_HALF_MM)
    volume = float(np.prod(2 * (half + np.array(SEARCH_MM))))
    spacing = max(SPACING_MM, (volume / MOST_SAMPLES) ** (1 / 3))
    search = [math.ceil(limit / spacing) for limit in SEARCH_MM]
    x, y, z = (2 * (math.ceil(extent / spacing) + limit + BORDER) for extent, limit in zip(half, search, strict=True))
    return _Grid((x, y, z), (search[0], search[1], search[2]), spacing)


def _sampled(series: Series, region: Region, grid: _Grid) -> Volume | FourphaseError:
    try:
        return sample_region(series, grid.around(region), step_mm=grid.spacing_mm, average=True).hu
    except FourphaseError as fault:
        return fault


def _edges(hu: Volume, grid: _Grid) -> EdgeField:
    return edge_field(hu, hu < OUTSIDE_HU / 2, grid.spacing_mm)


def _template(hu: Volume | FourphaseError, region: Region, margin_mm: float, grid: _Grid) -> Template | str:
    """The organ around the lesion in the reference, or why there is none."""
    if isinstance(hu, FourphaseError):
        return f"the reference could not be read ({hu.key})"
    core = hu[(slice(BORDER, -BORDER),) * 3]
    half = (np.array(region.extent_mm[::-1]) / 2 + margin_mm) / grid.spacing_mm
    z, y, x = (np.abs(np.arange(n) - (n - 1) / 2) <= max(h, 1) for n, h in zip(core.shape, half, strict=True))
    organ = organ_around(core, z[:, None, None] & y[:, None] & x)
    return make_template(_edges(hu, grid), organ, grid.search[::-1]) or "no edges in the reference"


def _compared(
    template: Template | str, hu: Volume | FourphaseError, grid: _Grid
) -> tuple[Vector | None, float | None, str]:
    """(shift, score, why there is no shift or '')."""
    if isinstance(template, str):
        return None, None, template
    if isinstance(hu, FourphaseError):
        return None, None, f"could not be read ({hu.key})"
    match = best_translation(template, _edges(hu, grid), RIVAL_APART_MM / grid.spacing_mm)
    if match is None:
        return None, None, "too few edges in common"
    if reason := _doubt(match):
        return None, match.score, reason
    return _vector(match, grid.spacing_mm), match.score, ""


def _doubt(match: Match) -> str:
    if match.score < LEAST_SCORE:
        return "too little in common"
    if match.rival > min(RIVAL_SHARE * match.score, match.score - RIVAL_DROP):
        return "several shifts fit equally well"
    return "the shift is beyond what is searched" if match.at_limit else ""


def _vector(match: Match, spacing_mm: float) -> Vector:
    z, y, x = (value * spacing_mm for value in match.shift)
    return x, y, z


def _unread(volumes: Mapping[str, Volume | FourphaseError]) -> list[Notice]:
    """Slices beyond the box need not be readable for a result, but somebody should know."""
    return [
        Notice("breathing_unread", f"the tissue around the lesion in phase {phase} could not be read: {fault.key}")
        for phase, fault in volumes.items()
        if isinstance(fault, FourphaseError)
    ]


def _moved(shifts: Mapping[str, Vector | None], reference: str) -> list[Notice]:
    message = (
        "around the lesion, phase {} lies {:.0f} mm away from {} (x {:+.0f}, y {:+.0f}, z {:+.0f} mm); "
        "check that the box holds the lesion in every phase"
    )
    return [
        Notice("breathing_shift", message.format(phase, math.dist(shift, (0, 0, 0)), reference, *shift))
        for phase, shift in shifts.items()
        if shift and math.dist(shift, (0, 0, 0)) > WARN_MM
    ]
