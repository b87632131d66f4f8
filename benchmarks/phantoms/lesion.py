"""The phantom's lesion: an irregular outline and how it enhances in the four phases.

Hepatocellular carcinoma (HCC): brighter than the liver in the arterial phase, darker in the portal venous and delayed
phases (washout), sometimes with a bright capsule. Intrahepatic cholangiocarcinoma (ICC): a dark centre with an arterial
rim, filling in from the rim until the delayed phase. These are the major features of LI-RADS v2018 and LR-M.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.phantoms.shapes import Field, Grid, Point, coverage, crop, window_of
from fourphase.runtime.geometry import Region

__all__ = ["KINDS", "PHASES", "Enhancement", "Lesion", "PerPhase", "make_lesion"]

#: One number per phase, in the order of `PHASES`.
PerPhase = tuple[float, float, float, float]

PHASES = ("NC", "ART", "PV", "DL")
KINDS = ("HCC", "ICC")

#: HU relative to the surrounding liver, (low, high) per phase.
_RANGES: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
    "HCC": {
        "centre": ((-16, -4), (25, 62), (-30, -12), (-34, -15)),
        "rim": ((0, 0), (-8, 6), (-2, 2), (-2, 2)),
        "capsule": ((0, 0), (0, 0), (8, 20), (18, 34)),
    },
    "ICC": {
        "centre": ((-22, -8), (-30, -8), (-50, -26), (-12, 14)),
        "rim": ((0, 3), (32, 62), (10, 32), (-10, 0)),
        "capsule": ((0, 0), (0, 0), (0, 0), (0, 0)),
    },
}
_CAPSULE_SHARE = 0.45
#: At difficulty 1 up to this much of a lesion's enhancement is the other kind's: an ideal reader's AUC is then 0.92.
_MOST_MIXED = 0.62
_SURFACE_DIRECTIONS = 4_000


@dataclass(frozen=True)
class Enhancement:
    """HU relative to the liver per phase: of the centre, of the rim relative to the centre, of a capsule on top."""

    centre: PerPhase
    rim: PerPhase
    capsule: PerPhase

    def mixed(self, other: Enhancement, share: float) -> Enhancement:
        """This enhancement with `share` (0 to 1) of another one's."""
        pairs = ((self.centre, other.centre), (self.rim, other.rim), (self.capsule, other.capsule))
        centre, rim, capsule = (_per_phase(_blend(a, b, share) for a, b in zip(*p, strict=True)) for p in pairs)
        return Enhancement(centre, rim, capsule)


@dataclass(frozen=True)
class Lesion:
    """A lesion in the phantom's own coordinates.

    Attributes:
        kind: "HCC" or "ICC".
        centre: LPS mm, without the study's offset and the phase's breathing shift.
        radii: of the ellipsoid beneath the bumps, mm.
        bumps: (unit direction, amplitude): with c the cosine of the angle to the direction, the outline grows by
            amplitude * (c^2 + c^3 / 2 - 1 / 3).
        enhancement: HU relative to the liver.
        rim_start: where the rim begins, as a share of the way from the centre to the outline.
        mosaic: HU amplitude of the smooth inner pattern, and its three wave vectors in 1 / mm.
        edge_mm: over how many mm the lesion passes into the liver.
    """

    kind: str
    centre: Point
    radii: Point
    bumps: tuple[tuple[Point, float], ...]
    enhancement: Enhancement
    rim_start: float
    mosaic: tuple[float, tuple[Point, ...]]
    edge_mm: float

    @property
    def reach_mm(self) -> float:
        """No point of the outline is further than this from the centre."""
        return max(self.radii) * (1 + sum(1.2 * abs(amplitude) for _, amplitude in self.bumps))

    def bounds(self) -> Region:
        """The smallest box around the outline, from many directions, LPS mm."""
        surface = np.asarray(self.centre) + self._surface()
        low, high = surface.min(axis=0), surface.max(axis=0)
        return Region((float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2])))

    def level(self, grid: Grid) -> Field:
        """0 at the centre, 1 on the outline, more outside."""
        u, v, w = self._scaled(grid)
        length: Field = np.sqrt(u * u + v * v + w * w)
        scale: Field = np.reciprocal(np.maximum(length, np.float32(1e-6)))
        level: Field = length / self._outline((u * scale, v * scale, w * scale))
        return level

    def paint(self, canvas: Field, grid: Grid, phase: int, liver_hu: float) -> None:
        """Fills the lesion of a phase into `canvas` in place."""
        centre, reach = np.asarray(self.centre), self.reach_mm
        low, high = (centre - reach).tolist(), (centre + reach).tolist()
        window = window_of(grid, ((low[0], low[1], low[2]), (high[0], high[1], high[2])), self.edge_mm, canvas.shape)
        if window is None:
            return
        inner = (crop(grid[0], window), crop(grid[1], window), crop(grid[2], window))
        level = self.level(inner)
        mean_radius = sum(self.radii) / 3
        cover = coverage((level - 1) * np.float32(mean_radius), self.edge_mm)
        # Assigned by index, because of a single point canvas[window] is a copy.
        canvas[window] += cover * (np.float32(liver_hu) + self._profile(level, inner, phase) - canvas[window])

    def _scaled(self, grid: Grid) -> Grid:
        """Coordinates relative to the centre, in radii of the ellipsoid."""
        (x, y, z), (cx, cy, cz), (rx, ry, rz) = grid, self.centre, self.radii
        return (x - np.float32(cx)) / rx, (y - np.float32(cy)) / ry, (z - np.float32(cz)) / rz

    def _outline(self, unit: Grid) -> Field:
        """How far out the outline is in a direction, as a share of the ellipsoid."""
        total = np.ones(np.broadcast_shapes(*(part.shape for part in unit)), dtype=np.float32)
        for direction, amplitude in self.bumps:
            cosine = _along(unit, direction, (0.0, 0.0, 0.0))
            total += np.float32(amplitude) * (cosine * cosine * (1 + cosine / 2) - np.float32(1 / 3))
        return total

    def _profile(self, level: Field, grid: Grid, phase: int) -> Field:
        """HU relative to the liver at a level (see `level`): centre, rim, capsule and inner pattern."""
        enhancement = self.enhancement
        start = np.float32(self.rim_start)
        towards_rim = np.clip((level - start + np.float32(0.1)) / np.float32(0.2), 0, 1)
        rise = towards_rim * towards_rim * (3 - 2 * towards_rim)
        capsule = np.clip(1 - np.abs(level - np.float32(0.93)) / np.float32(0.09), 0, 1)
        amplitude, waves = self.mosaic
        pattern = sum((np.sin(_along(grid, wave, self.centre)) for wave in waves), np.float32(0))
        profile: Field = (
            np.float32(enhancement.centre[phase])
            + np.float32(enhancement.rim[phase]) * rise
            + np.float32(enhancement.capsule[phase]) * capsule
            + np.float32(amplitude) * pattern
        )
        return profile

    def _surface(self) -> NDArray[np.float64]:
        """Points of the outline relative to the centre, (directions, 3), on a Fibonacci sphere."""
        turn = np.arange(_SURFACE_DIRECTIONS) * np.pi * (3 - np.sqrt(5))
        w = 1 - 2 * (np.arange(_SURFACE_DIRECTIONS) + 0.5) / _SURFACE_DIRECTIONS
        ring = np.sqrt(1 - w * w)
        unit = np.stack([ring * np.cos(turn), ring * np.sin(turn), w], axis=1)
        grid = (unit[:, 0].astype(np.float32), unit[:, 1].astype(np.float32), unit[:, 2].astype(np.float32))
        return np.asarray(unit * self._outline(grid)[:, None] * np.asarray(self.radii))


def make_lesion(kind: str, rng: np.random.Generator, difficulty: float) -> Lesion:
    """A random lesion of a kind, centred at the origin; the caller gives it its place."""
    size = float(rng.uniform(9, 28))
    radii = _point(size * rng.uniform(0.85, 1.15, 3))
    bumps = tuple((_unit(rng), float(rng.uniform(-0.14, 0.18))) for _ in range(3))
    other = KINDS[1 - KINDS.index(kind)]
    # Drawn in a fixed order, so that a seed's outline does not depend on the difficulty.
    own, foreign = _enhancement(kind, rng), _enhancement(other, rng)
    share = float(rng.uniform(0, 1)) * _MOST_MIXED * difficulty
    waves = tuple(_point(rng.normal(0, 1, 3) * 2.2 / size) for _ in range(3))
    return Lesion(
        kind=kind,
        centre=(0.0, 0.0, 0.0),
        radii=radii,
        bumps=bumps,
        enhancement=own.mixed(foreign, share),
        rim_start=float(rng.uniform(0.62, 0.82)),
        mosaic=(float(rng.uniform(0, 3.5)), waves),
        edge_mm=float(rng.uniform(1.5, 3.0)),
    )


def _enhancement(kind: str, rng: np.random.Generator) -> Enhancement:
    ranges = _RANGES[kind]
    centre, rim, capsule = (
        _per_phase(float(rng.uniform(low, high)) for low, high in ranges[part]) for part in ("centre", "rim", "capsule")
    )
    has_capsule = float(rng.uniform()) < _CAPSULE_SHARE
    return Enhancement(centre, rim, capsule if has_capsule else (0.0, 0.0, 0.0, 0.0))


def _per_phase(values: Iterator[float]) -> PerPhase:
    nc, art, pv, dl = values
    return nc, art, pv, dl


def _blend(own: float, other: float, share: float) -> float:
    return (1 - share) * own + share * other


def _along(grid: Grid, wave: Point, centre: Point) -> Field:
    parts = [(axis - np.float32(c)) * np.float32(k) for axis, k, c in zip(grid, wave, centre, strict=True)]
    angle: Field = parts[0] + parts[1] + parts[2]
    return angle


def _unit(rng: np.random.Generator) -> Point:
    direction = rng.normal(size=3)
    return _point(direction / np.linalg.norm(direction))


def _point(values: NDArray[np.float64]) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z
