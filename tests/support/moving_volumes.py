"""A body whose liver moves between phases while its wall stays, as closed formulas and as DICOM series.

>>> write_moving_phases(tmp_path, {"ART": (0.0, 0.0, 12.0)})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.support.dicom import DESCRIPTIONS, uid, write_series

__all__ = ["LESION_MM", "SHAPE", "SPACING", "moving_body", "write_moving_phases"]

Float: TypeAlias = NDArray[Any]
Vector: TypeAlias = Sequence[float]

#: Half the lesion's size; it lies at the origin.
LESION_MM = 12.0
SHAPE, SPACING = (60, 68, 74), (3.0, 3.0, 3.0)
#: HU per phase: lung, fat, muscle, liver, vessels, lesion, gallbladder.
ENHANCEMENT = {
    "NC": (-850, -100, 55, 60, 40, 45, 10),
    "ART": (-850, -100, 60, 75, 110, 120, 10),
    "PV": (-850, -100, 65, 115, 180, 85, 10),
    "DL": (-850, -100, 62, 95, 120, 75, 10),
}


def moving_body(
    phase: str, x: Float, y: Float, z: Float, shift: Vector = (0, 0, 0), *, wall_moves: bool = False
) -> Float:
    """HU at points in LPS mm: liver under a dome of lung, with vessels, a lesion and a gallbladder, in a chest wall.

    Args:
        shift: how far everything but the wall lies from its place.
        wall_moves: the wall as well: what another table position looks like.
    """
    lung, fat, muscle, liver, vessel, lesion, bile = ENHANCEMENT[phase]
    u, v, w = x - shift[0], y - shift[1], z - shift[2]
    hu = np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), float(lung))
    dome = ((u - 10) / 90) ** 2 + ((v + 5) / 85) ** 2 + ((w + 60) / 105) ** 2
    hu = _painted(hu, dome - 1, liver, 60)
    hu = _painted(hu, ((u - 75) / 40) ** 2 + ((v - 10) / 45) ** 2 + ((w + 55) / 70) ** 2 - 1, fat, 30)
    hu = _painted(hu, -w - 62 + 0.2 * u, fat, 1)
    for start, direction, radius in VESSELS:
        hu = _painted(hu, _to_line((u, v, w), start, direction) - radius, vessel, 1)
    hu = _painted(hu, np.sqrt((u - 25) ** 2 + (v + 35) ** 2 + (w + 40) ** 2) - 15, bile, 1)
    hu = _painted(hu, np.sqrt(u * u + v * v + w * w) - LESION_MM, lesion, 1)
    p, q, r = (u, v, w) if wall_moves else (x, y, z)
    wall = np.sqrt((p / 1.1) ** 2 + q**2) - 78
    hu = _painted(hu, -wall, muscle, 1)
    hu = _painted(hu, 9 - wall + 0 * r, fat, 1)
    ribs = np.maximum(np.abs(wall - 5) - 3, np.abs((r + 0.5 * q) % 28 - 14) - 5)
    return _painted(hu, ribs, 420, 1)


VESSELS = (
    ((-10, 10, -20), (1.0, 0.4, 0.5), 5.0),
    ((-30, -20, 5), (0.3, 1.0, -0.6), 4.0),
    ((15, 0, -10), (0.2, -0.6, 1.0), 4.5),
    ((-25, 25, -30), (-0.5, 0.3, 1.0), 3.5),
    ((30, -15, -30), (1.0, 0.8, 0.1), 4.0),
)


def _painted(hu: Float, level: Float, value: float, scale_mm: float) -> Float:
    """`value` where `level` is negative, with an edge of about 2 mm; `scale_mm` makes millimetres of the level."""
    share = np.clip(0.5 - level * scale_mm / 2, 0, 1)
    return hu + share * (value - hu)


def _to_line(point: tuple[Float, Float, Float], start: Vector, direction: Vector) -> Float:
    """Distance to a line, mm."""
    along = np.array(direction) / np.linalg.norm(direction)
    offset = [p - s for p, s in zip(point, start, strict=True)]
    projected = sum(o * a for o, a in zip(offset, along, strict=True))
    return np.asarray(np.sqrt(sum((o - projected * a) ** 2 for o, a in zip(offset, along, strict=True))))


def write_moving_phases(
    folder: Path,
    shifts: Mapping[str, Vector],
    *,
    noise_hu: float = 15.0,
    thickness: Mapping[str, float] | None = None,
    phases: Sequence[str] = tuple(DESCRIPTIONS),
    wall_moves: bool = False,
    **elements: Any,
) -> None:
    """Axial series of every phase, `SHAPE` voxels of `SPACING` around the lesion; each phase has its own noise.

    Args:
        thickness: distance of slices where it is not `SPACING[0]`; the scanned range stays the same.
        elements: as for `write_series`.
    """
    for number, phase in enumerate(phases, 2):
        step = (thickness or {}).get(phase, SPACING[0])
        slices = round(SHAPE[0] * SPACING[0] / step)
        z, y, x = (
            step_mm * (np.arange(count) - (count - 1) / 2)
            for step_mm, count in zip((step, *SPACING[1:]), (slices, *SHAPE[1:]), strict=True)
        )
        hu = moving_body(phase, x, y[:, None], z[:, None, None], shifts.get(phase, (0, 0, 0)), wall_moves=wall_moves)
        hu = hu + np.random.default_rng(number).normal(0, noise_hu, hu.shape)
        description, seconds = DESCRIPTIONS[phase]
        defaults: dict[str, Any] = {
            "SeriesInstanceUID": uid("moving", phase),
            "SeriesNumber": number,
            "SeriesDescription": description,
            "AcquisitionTime": f"10{15 + seconds // 60:02d}{seconds % 60:02d}",
            "PixelSpacing": list(SPACING[1:]),
        }
        stored = np.clip(np.rint(hu + 1024), 0, 4095).astype(np.uint16)
        origin = (float(x[0]), float(y[0]), float(z[0]))
        write_series(folder / f"s{number}", stored, origin=origin, step=(0, 0, step), **{**defaults, **elements})
