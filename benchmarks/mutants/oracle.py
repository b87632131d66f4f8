"""What an accepted mutant's changed input is due to: judged from the truth and from pydicom's reading of the files.

The reader under test only tells which files and frames it used, and where it put them; whether that is right is decided
here, from the phantom's closed form. What a file says of itself comes from pydicom. Slow: only for changed inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.mutants.mutant import Mutant
from fourphase.benchmarks.mutants.said import SCALING, said_by, said_of_sound
from fourphase.benchmarks.mutants.study import COLUMNS, ROWS, SPACING, STEP_MM, BaseStudy
from fourphase.runtime.phases import PhaseMatch

__all__ = ["ORDER", "judge"]

Float = NDArray[np.float64]
Place = tuple[str, int]

#: From the contract: along the normal, of a pixel sideways, relative of a spacing, of a direction.
NORMAL_MM = max(0.1, 0.02 * STEP_MM)
SIDEWAYS_MM = 0.5 * np.array(SPACING[::-1])
SPACING_RATIO, DIRECTION = 1e-4, 1e-3
MARGIN_MM = 10.0
#: Notices that say that the volume ends within the margin, that slices lie far apart, that distances beyond the margin
#: are irregular.
END_SAID = {"margin_outside_volume", "box_clipped"}
FAR_SAID = {"slices_far_apart"}
IRREGULAR_SAID = {"slices_missing_elsewhere"}

#: What a change can be due to, the worst first.
ORDER = (
    *("wrong", "unexplained", "missing, said", "order exchanged", "other phase throughout", "consistent change"),
    *("scaling", "pixels", "within tolerance"),
)


@dataclass(frozen=True, eq=False)
class Used:
    """A slice that the reader used: what it really is (None: nothing known), and where it was put."""

    origin: Place | None
    claimed: Float
    said: Mapping[str, Any]


def judge(
    base: BaseStudy, mutant: Mutant, phases: Mapping[str, PhaseMatch], notices: Collection[str]
) -> tuple[str, str]:
    """(one of ORDER, what exactly) for a mutant that was accepted with another input than the sound study's.

    Args:
        phases: what the reader used; its files are read again.
        notices: keys of the notices that the sound study has not.
    """
    places = _places(base, mutant)
    found: list[tuple[str, str]] = []
    for phase, match in phases.items():
        geometry = match.series.geometry
        used = [
            Used(_origin(header.path, header.frame, places), position, said_by(header.path.read_bytes(), header.frame))
            for header, position in zip(match.series.slices, geometry.positions, strict=True)
        ]
        grid = np.concatenate([geometry.row_direction, geometry.column_direction])
        shape = (geometry.rows, geometry.columns)
        found += [
            (kind, f"{phase}: {what}")
            for kind, what in _of_phase(base, phase, used, grid, geometry.pixel_spacing, shape, notices)
        ]
    return min(found, key=lambda one: ORDER.index(one[0])) if found else ("unexplained", "nothing differs")


def _places(base: BaseStudy, mutant: Mutant) -> dict[bytes, tuple[str, int | None]]:
    """Digest of a file's content -> what it really is."""
    places = {}
    for name, content in mutant.change.files.items():
        if isinstance(content, bytes) and name in base.places:
            places[hashlib.sha256(content).digest()] = base.places[name]
    places |= {hashlib.sha256(content).digest(): base.places[name] for name, content in base.files.items()}
    return places


def _origin(path: Path, frame: int, places: Mapping[bytes, tuple[str, int | None]]) -> Place | None:
    place = places.get(hashlib.sha256(path.read_bytes()).digest())
    return None if place is None else (place[0], frame if place[1] is None else place[1])


def _of_phase(
    base: BaseStudy,
    phase: str,
    used: Sequence[Used],
    grid: Float,
    spacing: tuple[float, float],
    shape: tuple[int, int],
    notices: Collection[str],
) -> list[tuple[str, str]]:
    """Everything of one phase that is not as it really is."""
    foreign = {one.origin[0] if one.origin else "?" for one in used} - {phase}
    if len(foreign) == 1 and "?" not in foreign and all(one.origin and one.origin[0] != phase for one in used):
        return [("other phase throughout", f"it is {foreign.pop()}")]
    near = [one for one in used if _is_needed(base, one.claimed) or _belongs(base, phase, one)]
    strange = [one for one in near if one.origin is None or one.origin[0] != phase]
    if strange:
        return [("wrong", f"{len(strange)} foreign slices")]
    own = [(one.origin[1], one) for one in near if one.origin is not None]
    indices = [index for index, _ in own]
    if len(set(indices)) < len(indices):
        return [("wrong", "a slice is used twice")]
    found = _missing(base, [one.origin[1] for one in used if one.origin is not None], notices)
    found += _grids(base, near, grid, spacing, shape)
    found += _positions(base, own, used, notices)
    found += _values(base, phase, own)
    return found


def _depths(base: BaseStudy) -> tuple[float, float]:
    """Of box and margin, along the normal."""
    corners = base.box.grown(MARGIN_MM).corners() @ base.truth.normal
    return float(corners.min()), float(corners.max())


def _is_needed(base: BaseStudy, position: Float) -> bool:
    low, high = _depths(base)
    return bool(low - STEP_MM < position @ base.truth.normal < high + STEP_MM)


def _belongs(base: BaseStudy, phase: str, one: Used) -> bool:
    """True for the phase's own slices that are needed where they really are."""
    own = one.origin is not None and one.origin[0] == phase
    return own and one.origin is not None and _is_needed(base, base.truth.positions[one.origin[1]])


def _missing(base: BaseStudy, indices: Sequence[int], notices: Collection[str]) -> list[tuple[str, str]]:
    needed = [
        index
        for index, position in enumerate(base.truth.positions)
        if _is_needed(base, position) and index not in indices
    ]
    if not needed:
        return []
    inner = [index for index in needed if indices and min(indices) < index < max(indices)]
    missed = {"inner": FAR_SAID} if inner else {}
    missed |= {"outer": END_SAID | FAR_SAID} if len(inner) < len(needed) else {}
    if any(said.isdisjoint(notices) for said in missed.values()):
        return [("wrong", f"slices {needed} are missing")]
    return [("missing, said", f"slices {needed} are missing")]


def _grids(
    base: BaseStudy, near: Sequence[Used], grid: Float, spacing: tuple[float, float], shape: tuple[int, int]
) -> list[tuple[str, str]]:
    """Orientation, spacing and size, as used, as pydicom reads them, and as they really are."""
    spacings = np.array([one.said.get("PixelSpacing", spacing) for one in near])
    directions = np.array([one.said.get("ImageOrientationPatient", grid) for one in near])
    sizes = {(one.said.get("Rows", shape[0]), one.said.get("Columns", shape[1])) for one in near} | {shape}
    if (np.abs(spacings / spacing - 1) > 1.001 * SPACING_RATIO).any():
        return [("wrong", "a slice says another pixel spacing than is used")]
    if (np.abs(directions - grid) > 2 * DIRECTION).any():
        return [("wrong", "a slice says another orientation than is used")]
    if len(sizes) > 1:
        return [("wrong", "a slice says another size than is used")]
    changed = []
    if np.abs(np.divide(spacing, SPACING) - 1).max() > SPACING_RATIO:
        changed.append("pixel spacing")
    if np.abs(grid - base.truth.orientation).max() > DIRECTION:
        changed.append("orientation")
    if shape != (ROWS, COLUMNS):
        changed.append("size")
    return [("consistent change", f"all slices say another {' and '.join(changed)}")] if changed else []


def _positions(
    base: BaseStudy, own: Sequence[tuple[int, Used]], used: Sequence[Used], notices: Collection[str]
) -> list[tuple[str, str]]:
    """Every slice's place against where it really is."""
    if not own:
        return [("wrong", "no slice within box and margin")]
    indices = np.array([index for index, _ in own])
    claimed = np.array([one.claimed for _, one in own])
    said = np.array([one.said.get("ImagePositionPatient", one.claimed) for _, one in own])
    if np.abs(said - claimed).max() > 1e-3:
        return [("wrong", "a slice says another position than is used")]
    off = claimed - base.truth.positions[indices]
    if not np.abs(off).any():
        return []
    if _is_within(base, off):
        return [("within tolerance", f"positions off by up to {np.abs(off).max():.3g} mm")]
    if (np.diff(indices) < 0).any() and (np.diff(indices) > 0).any():
        known = np.abs(claimed[:, None] - base.truth.positions).sum(axis=2).min(axis=1)
        return [("order exchanged" if known.max() < NORMAL_MM else "wrong", "slices are at each other's places")]
    steps = np.diff(claimed @ base.truth.normal)
    line = np.polynomial.polynomial.polyfit(indices, off, min(1, len(indices) - 1))
    rest = off - np.polynomial.polynomial.polyval(indices, line).T
    if _is_within(base, rest):
        every = len(used) == len(own) or _all_follow(base, used, line) or IRREGULAR_SAID.intersection(notices)
        return [("consistent change" if every else "wrong", f"positions off by up to {np.abs(off).max():.3g} mm")]
    even = np.abs(steps - np.median(steps)).max() <= 1.01 * NORMAL_MM
    sideways = np.abs(_split(base, rest)[1]) <= SIDEWAYS_MM
    return [("within tolerance" if even and sideways.all() else "wrong", f"off by up to {np.abs(off).max():.3g} mm")]


def _all_follow(base: BaseStudy, used: Sequence[Used], line: Float) -> bool:
    """True if the slices beyond box and margin are displaced as those within."""
    indices = np.array([one.origin[1] for one in used if one.origin is not None])
    claimed = np.array([one.claimed for one in used if one.origin is not None])
    off = claimed - base.truth.positions[indices]
    return _is_within(base, off - np.polynomial.polynomial.polyval(indices, line).T)


def _split(base: BaseStudy, off: Float) -> tuple[Float, Float]:
    """Displacements (slices, 3) along the normal, and along row and column."""
    row, column = base.truth.orientation[:3], base.truth.orientation[3:]
    return off @ base.truth.normal, np.stack([off @ row, off @ column], axis=1)


def _is_within(base: BaseStudy, off: Float) -> bool:
    along, sideways = _split(base, off)
    return bool((np.abs(along) <= 1.01 * NORMAL_MM).all() and (np.abs(sideways) <= 1.01 * SIDEWAYS_MM).all())


def _values(base: BaseStudy, phase: str, own: Sequence[tuple[int, Used]]) -> list[tuple[str, str]]:
    """Scaling and stored pixels against the sound files', both read by pydicom."""
    sound = said_of_sound(base, phase)
    found = []
    for index, one in own:
        before = sound[index]
        changed = [name for name in SCALING if one.said.get(name) != before.get(name)]
        if changed:
            found.append(("scaling", f"slice {index} says another {', '.join(changed)}"))
        elif one.said.get("TransferSyntax") != before.get("TransferSyntax"):
            found.append(("pixels", f"slice {index} says another transfer syntax"))
        elif one.said.get("Pixels") != before.get("Pixels"):
            found.append(("pixels", f"slice {index} holds other pixels"))
    return found
