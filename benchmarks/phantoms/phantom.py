"""A four-phase liver phantom as closed formulas: HU at any point of patient space, in any of four contrast phases.

Organs (`anatomy`) and one lesion (`lesion`), everything random from one seed. It looks like a liver CT and has a known
truth; it does not model physics (beam hardening, partial volume in thick slices, reconstruction) and says nothing about
diagnostic accuracy. Noise and voxel grids: `scan`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.phantoms.anatomy import Anatomy, make_anatomy
from fourphase.benchmarks.phantoms.lesion import KINDS, PHASES, Lesion, make_lesion
from fourphase.benchmarks.phantoms.shapes import Field, Grid, Point, Shape, extent_of, overlap, paint
from fourphase.runtime.errors import UsageError
from fourphase.runtime.geometry import Region

__all__ = ["BOX_PHASE", "KINDS", "PHASES", "Phantom", "make_phantom"]

Number = float | np.floating | NDArray[np.floating]

AIR_HU = -1000.0
#: The phase in which the lesion has its place and is outlined; the other phases are shifted by breathing.
BOX_PHASE = "PV"
#: Breathing between phases, mm; small, because one lesion box serves all phases.
_MOST_SHIFT: Point = (1.0, 1.2, 2.4)
_LESION_TRIES = 300


@dataclass(frozen=True)
class Phantom:
    """A patient with one lesion, in four phases.

    Attributes:
        kind: "HCC" or "ICC".
        seed, difficulty: what made it.
        offset: from the phantom's own coordinates (z = 0 in mid liver, y = 0 in mid body) to patient space, LPS mm.
        shifts: breathing per phase, LPS mm; zero in `BOX_PHASE`.
        noise_hu: standard deviation of the scans' noise.
        anatomy: the organs.
        lesion: outline and enhancement; painted last.
    """

    kind: str
    seed: int
    difficulty: float
    offset: Point
    shifts: tuple[Point, Point, Point, Point]
    noise_hu: float
    anatomy: Anatomy
    lesion: Lesion

    def hu(self, phase: str, x: Number, y: Number, z: Number) -> Field:
        """HU without noise at points in patient space.

        Args:
            phase: one of `PHASES`.
            x, y, z: LPS mm, arrays that broadcast against each other (an open grid is fastest).

        Returns: float32, the broadcast shape.
        """
        index = PHASES.index(phase)
        grid = self._own(x, y, z, self.shifts[index])
        canvas = np.full(np.broadcast_shapes(*(axis.shape for axis in grid)), AIR_HU, dtype=np.float32)
        seen = extent_of(grid)
        for organ in self.anatomy.organs:
            if overlap(organ.shape.bounds, seen, organ.edge_mm):
                paint(canvas, grid, organ.shape, organ.hu[index], organ.edge_mm)
        self.lesion.paint(canvas, grid, index, self.anatomy.liver_hu[index])
        return canvas

    def in_lesion(self, x: Number, y: Number, z: Number) -> NDArray[np.bool_]:
        """Whether points in patient space lie within the lesion's outline, in `BOX_PHASE`."""
        return self.lesion.level(self._own(x, y, z, self.shifts[PHASES.index(BOX_PHASE)])) <= 1

    @property
    def entropy(self) -> tuple[int, int]:
        """What everything else that is random about this patient (protocol, noise, UIDs) is seeded with."""
        return self.seed, KINDS.index(self.kind)

    @cached_property
    def lesion_bounds(self) -> Region:
        """The smallest box around the lesion's outline in patient space, in `BOX_PHASE`."""
        own, (x, y, z) = self.lesion.bounds(), self.offset
        (a, b, c), (u, v, w) = own.min, own.max
        return Region((a + x, b + y, c + z), (u + x, v + y, w + z))

    def _own(self, x: Number, y: Number, z: Number, shift: Point) -> Grid:
        """Patient space -> the phantom's own coordinates; subtracted in float64, because offsets may be large."""
        u, v, w = (
            (np.asarray(axis, dtype=np.float64) - offset - moved).astype(np.float32)
            for axis, offset, moved in zip((x, y, z), self.offset, shift, strict=True)
        )
        return u, v, w


def make_phantom(kind: str, seed: int, difficulty: float = 0.3) -> Phantom:
    """A random patient with a lesion of a kind ("HCC" or "ICC").

    Args:
        seed: everything random follows from it and from `kind`; the same arguments give the same phantom.
        difficulty: 0 (textbook lesions, quiet scans) to 1 (enhancement shared with the other kind, noisy scans).

    Raises: UsageError for an unknown kind or a difficulty outside 0 to 1.
    """
    if kind not in KINDS or not 0 <= difficulty <= 1:
        raise UsageError(
            f"there is no phantom of kind {kind!r} and difficulty {difficulty}",
            f"kinds are {' and '.join(KINDS)}, difficulty runs from 0 to 1",
            key="phantom_kind",
        )
    rng = np.random.default_rng([seed, KINDS.index(kind), 0])
    anatomy = make_anatomy(rng)
    lesion = make_lesion(kind, rng, difficulty)
    lesion = replace(lesion, centre=_lesion_centre(anatomy.liver, lesion.reach_mm, rng))
    shifts = [_point(rng.uniform(-1, 1, 3) * _MOST_SHIFT) for _ in PHASES]
    shifts[PHASES.index(BOX_PHASE)] = (0.0, 0.0, 0.0)
    return Phantom(
        kind=kind,
        seed=seed,
        difficulty=difficulty,
        offset=_point(rng.uniform((-15, -190, -400), (15, 40, 400))),
        shifts=(shifts[0], shifts[1], shifts[2], shifts[3]),
        noise_hu=float(rng.uniform(8, 16)) * (1 + 0.6 * difficulty),
        anatomy=anatomy,
        lesion=lesion,
    )


def _lesion_centre(liver: Shape, reach_mm: float, rng: np.random.Generator) -> Point:
    """A random place where the lesion fits into the liver; for a very large one, the deepest place found."""
    points = rng.uniform((-130, -90, -60), (30, 70, 60), (_LESION_TRIES, 3))
    x, y, z = (points[:, axis].astype(np.float32) for axis in range(3))
    room = -liver.distance((x, y, z)) - np.float32(reach_mm + 2)
    fitting = np.flatnonzero(room > 0)
    chosen = int(fitting[0]) if len(fitting) else int(np.argmax(room))
    return _point(points[chosen])


def _point(values: NDArray[np.float64]) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z
