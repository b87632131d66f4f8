"""The phantom's organs: shapes in its own coordinates and one HU per phase. The lesion is `lesion`'s.

x runs to the patient's left, y to the back, z to the head; the origin lies in mid body at mid liver.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fourphase.benchmarks.phantoms.lesion import PerPhase
from fourphase.benchmarks.phantoms.shapes import (
    Column,
    Cut,
    Ellipsoid,
    Intersection,
    Outside,
    Point,
    Ribs,
    Shape,
    Slabs,
    Tube,
    Union,
)

__all__ = ["Anatomy", "Organ", "make_anatomy"]

Rng = np.random.Generator

#: (low, high) HU per phase, NC, ART, PV, DL; an organ draws one position in all four ranges, so phases stay consistent.
_HU: dict[str, tuple[tuple[float, float], ...]] = {
    "fat": ((-110, -95),) * 4,
    "muscle": ((50, 58), (54, 62), (58, 68), (58, 66)),
    "lung": ((-880, -830),) * 4,
    "bone": ((150, 230), (155, 235), (165, 245), (160, 240)),
    "cortex": ((420, 620),) * 4,
    "disc": ((70, 95),) * 4,
    "canal": ((20, 32),) * 4,
    "liver": ((50, 65), (66, 84), (102, 124), (86, 104)),
    "aorta": ((38, 46), (250, 340), (140, 172), (105, 128)),
    "portal": ((38, 46), (74, 112), (160, 188), (118, 138)),
    "hepatic": ((38, 46), (60, 76), (140, 166), (114, 132)),
    "spleen": ((44, 52), (98, 132), (114, 130), (94, 108)),
    "kidney": ((28, 36), (130, 175), (160, 195), (150, 185)),
    "medulla": ((26, 34), (60, 85), (130, 165), (140, 180)),
    "pancreas": ((38, 46), (84, 112), (86, 104), (70, 84)),
    "stomach": ((38, 46), (60, 80), (70, 90), (66, 82)),
    "fluid": ((2, 22),) * 4,
    "gas": ((-980, -900),) * 4,
}


@dataclass(frozen=True)
class Organ:
    """A shape with one HU per phase; `edge_mm` is the width of its soft edge."""

    name: str
    shape: Shape
    hu: PerPhase
    edge_mm: float = 1.6


@dataclass(frozen=True)
class Anatomy:
    """A patient without a lesion.

    Attributes:
        organs: painted in this order, later ones over earlier ones.
        body: the skin.
        liver: the liver's shape, which holds the lesion, and its HU per phase.
    """

    organs: tuple[Organ, ...]
    body: Column
    liver: Shape
    liver_hu: PerPhase


def make_anatomy(rng: Rng) -> Anatomy:
    """A random patient."""
    hu = {name: _drawn(ranges, float(rng.uniform())) for name, ranges in _HU.items()}
    build = float(rng.uniform(0.92, 1.08))
    fat = float(rng.uniform(8, 24))
    body = Column((0, 0), (152 * build + fat, 104 * build + fat), float(rng.uniform(2.2, 2.6)))
    wall, cavity = _shrunk(body, fat), _shrunk(body, fat + 15)
    spine_y = cavity.radii[1] - 37
    liver, dome = _liver(cavity, spine_y, build, rng)
    organs = [
        Organ("fat", body, hu["fat"]),
        Organ("muscle", wall, hu["muscle"]),
        Organ("fat", cavity, hu["fat"]),
        *_lungs(cavity, dome, hu, rng),
        *_ribs(wall, hu, rng),
        *_left_side(cavity, build, hu, rng),
        *_bowel(hu, rng),
        Organ("liver", liver, hu["liver"]),
        *_kidneys(build, spine_y, hu),
        *_spine(spine_y, hu, rng),
        *_great_vessels(spine_y, hu, rng),
        *_liver_vessels(liver, spine_y, hu, rng),
    ]
    return Anatomy(tuple(organs), body, liver, hu["liver"])


def _liver(cavity: Column, spine_y: float, build: float, rng: Rng) -> tuple[Shape, Ellipsoid]:
    """The liver, and the right half of the diaphragm that rests on it.

    It fills the cavity's right side beneath the dome, as far as the organs of the left side and the spine.
    """
    top, bottom = float(rng.uniform(66, 84)), float(rng.uniform(-125, -100))
    dome = Ellipsoid((-46 * build, -6, (top + bottom) / 2), (128 * build, 124 * build, (top + bottom) / -2 + top))
    neighbours = Ellipsoid(
        (float(rng.uniform(122, 136)), float(rng.uniform(46, 66)), -50), (float(rng.uniform(120, 134)), 128, 170)
    )
    spine = Column((0, spine_y + 22), (56, 46))
    return Intersection((cavity, dome, Outside(neighbours), Outside(spine)), rounding=14, inset=1.5), dome


def _lungs(cavity: Column, dome: Ellipsoid, hu: dict[str, PerPhase], rng: Rng) -> list[Organ]:
    """Air above both domes of the diaphragm, either side of the mediastinum."""
    left = Ellipsoid((74, 4, -60), (82, 110, float(rng.uniform(112, 136))))
    mediastinum = Column((6, 14), (40, 96), 2.2)
    below = Union((dome, left, mediastinum), rounding=10, outset=2)
    upper = Cut((0, 0, -45), (0, 0, -1))
    return [Organ("lung", Intersection((_shrunk(cavity, 1), Outside(below), upper), 4), hu["lung"], 2.0)]


def _ribs(wall: Column, hu: dict[str, PerPhase], rng: Rng) -> list[Organ]:
    """Ribs in the chest wall; none in front of the upper abdomen."""
    period, fall = float(rng.uniform(27, 32)), float(rng.uniform(0.45, 0.7))
    arch = Cut((0, -40, -25), (0, -0.8, -0.6))
    outer = Ribs(_shrunk(wall, 8), 8.0, 13.0, period, fall)
    inner = Ribs(outer.wall, 4.6, 9.0, period, fall)
    return [
        Organ("rib cortex", Intersection((outer, arch)), hu["cortex"]),
        Organ("rib", Intersection((inner, arch)), hu["bone"]),
    ]


def _spine(y: float, hu: dict[str, PerPhase], rng: Rng) -> list[Organ]:
    """Vertebral bodies and discs, canal, processes, and the muscles along them; `y` is the bodies' centre."""
    period, first = 33.0, float(rng.uniform(0, 33))
    body = Column((0, y), (23, 17), 2.3)
    ring, canal = Column((0, y + 25), (14, 12)), Column((0, y + 25), (9, 7.5))
    levels = [first + period * (n + 0.5) for n in range(-8, 8)]
    spinous = Intersection((Column((0, y + 46), (3.5, 16)), Slabs(period, 22, first + period / 2)))
    transverse = tuple(
        Tube((side * 12, y + 20, level), (side * 38, y + 30, level), (5.5, 3.5)) for level in levels for side in (-1, 1)
    )
    muscles = [Column((side * 34, y + 31), (29, 19), 2.2) for side in (-1, 1)]
    return [
        *(Organ("muscle", muscle, hu["muscle"]) for muscle in muscles),
        *(Organ("process", process, hu["bone"]) for process in transverse),
        Organ("spinous process", spinous, hu["cortex"]),
        Organ("arch", ring, hu["cortex"]),
        Organ("vertebral cortex", body, hu["cortex"]),
        Organ("vertebra", _shrunk(body, 2.4), hu["bone"]),
        Organ("disc", Intersection((body, Slabs(period, 7, first))), hu["disc"]),
        Organ("canal", canal, hu["canal"]),
    ]


def _left_side(cavity: Column, build: float, hu: dict[str, PerPhase], rng: Rng) -> list[Organ]:
    """Stomach with fluid and gas, pancreas, spleen."""
    jitter = rng.uniform(-6, 6, 6)
    stomach: Point = (70 * build + jitter[0], -34 + jitter[1], 6 + jitter[2])
    spleen: Point = (104 * build + jitter[3], 36 + jitter[4], 8 + jitter[5])
    gas = Intersection((Ellipsoid(stomach, (37, 31, 52)), Cut((0, stomach[1] - 8, 0), (0, 1, 0))))
    pancreas = Tube((4, 8, -40), (72, 22, -14), (11, 7))
    return [
        Organ("stomach", Ellipsoid(stomach, (41, 35, 56)), hu["stomach"]),
        Organ("stomach fluid", Ellipsoid(stomach, (37, 31, 52)), hu["fluid"]),
        Organ("stomach gas", gas, hu["gas"]),
        Organ("pancreas", pancreas, hu["pancreas"]),
        Organ("spleen", Intersection((_shrunk(cavity, 2), Ellipsoid(spleen, (30, 46, 52))), 8), hu["spleen"]),
    ]


def _bowel(hu: dict[str, PerPhase], rng: Rng) -> list[Organ]:
    """Loops with fluid below the stomach, and gas in every other one."""
    organs = []
    for index in range(7):
        x, y, z = (float(value) for value in rng.uniform((16, -66, -125), (112, 24, -58)))
        size = float(rng.uniform(13, 20))
        organs.append(Organ("bowel", Ellipsoid((x, y, z), (size, size, 1.4 * size)), hu["stomach"]))
        content = hu["gas"] if index % 2 else hu["fluid"]
        organs.append(Organ("bowel content", Ellipsoid((x, y, z), (size - 3, size - 3, 1.4 * size - 3)), content))
    return organs


def _kidneys(build: float, spine_y: float, hu: dict[str, PerPhase]) -> list[Organ]:
    """The right one reaches up behind the liver."""
    kidneys = [(side * 60 * build, spine_y - 4, low) for side, low in ((-1, -92.0), (1, -70.0))]
    return [
        *(Organ("kidney", Ellipsoid(centre, (28, 25, 52)), hu["kidney"]) for centre in kidneys),
        *(Organ("renal medulla", Ellipsoid(centre, (18, 15, 40)), hu["medulla"]) for centre in kidneys),
    ]


def _great_vessels(spine_y: float, hu: dict[str, PerPhase], rng: Rng) -> list[Organ]:
    """Aorta in front of the spine's left half, inferior vena cava on the right."""
    drift = float(rng.uniform(-8, 8))
    aorta = Tube((12 + drift, spine_y - 30, -300), (12 - drift, spine_y - 28, 300), (11, 12.5))
    cava = Tube((-30, spine_y - 34, -300), (-24, spine_y - 46, 300), (12, 12))
    return [Organ("aorta", aorta, hu["aorta"]), Organ("vena cava", cava, hu["hepatic"])]


def _liver_vessels(liver: Shape, spine_y: float, hu: dict[str, PerPhase], rng: Rng) -> list[Organ]:
    """Portal vein with two orders of branches from the hilum, and three hepatic veins towards the vena cava."""
    hilum: Point = (-16.0, -8.0, -18.0)
    fork: Point = (-48.0, -4.0, -8.0)
    junction: Point = (-26.0, spine_y - 44, 48.0)
    portal = [
        Tube((-2, 16, -70), hilum, (7, 7)),
        Tube(hilum, fork, (6.5, 5.5)),
        Tube(hilum, _near((6, -52, 6), 8, rng), (5, 2.5)),
        Tube(fork, _near((-96, -26, 26), 12, rng), (4.2, 1.8)),
        Tube(fork, _near((-92, 34, 24), 12, rng), (4.2, 1.8)),
        Tube(fork, _near((-88, 16, -56), 12, rng), (4.0, 1.8)),
    ]
    hepatic = [
        Tube(junction, _near((-108, 22, 6), 10, rng), (5.5, 1.8)),
        Tube(junction, _near((-62, -48, 4), 10, rng), (5.0, 1.8)),
        Tube(junction, _near((2, -56, 24), 8, rng), (4.5, 1.8)),
    ]
    return [
        Organ("portal vein", portal[0], hu["portal"]),
        *(Organ("portal branch", Intersection((tube, liver)), hu["portal"]) for tube in portal[1:]),
        *(Organ("hepatic vein", Intersection((tube, liver)), hu["hepatic"]) for tube in hepatic),
    ]


def _drawn(ranges: tuple[tuple[float, float], ...], position: float) -> PerPhase:
    """The same position, 0 to 1, in all four ranges."""
    nc, art, pv, dl = (low + position * (high - low) for low, high in ranges)
    return nc, art, pv, dl


def _shrunk(column: Column, by_mm: float) -> Column:
    (rx, ry) = column.radii
    return replace(column, radii=(rx - by_mm, ry - by_mm))


def _near(point: Point, spread_mm: float, rng: Rng) -> Point:
    x, y, z = (float(value) for value in np.asarray(point) + rng.uniform(-spread_mm, spread_mm, 3))
    return x, y, z
