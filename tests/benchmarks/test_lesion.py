from dataclasses import replace

import numpy as np
import pytest

from fourphase.benchmarks.phantoms.lesion import KINDS, PHASES, Lesion, make_lesion

LIVER_HU = 100.0


def plain(kind: str, seed: int, difficulty: float = 0.0) -> Lesion:
    """A lesion without inner pattern."""
    lesion = make_lesion(kind, np.random.default_rng(seed), difficulty)
    return replace(lesion, mosaic=(0.0, lesion.mosaic[1]))


def hu_along_x(lesion: Lesion, phase: str, levels: list[float]) -> list[float]:
    """HU relative to the liver where the level has these values, from the centre towards the patient's left."""
    zero = np.zeros(1, dtype=np.float32)
    edge = 1 / lesion.level((np.ones(1, dtype=np.float32), zero, zero)).item()
    x = np.array(levels, dtype=np.float32) * np.float32(edge)
    canvas = np.full(len(levels), LIVER_HU, dtype=np.float32)
    lesion.paint(canvas, (x, zero, zero), PHASES.index(phase), LIVER_HU)
    return [float(value) - LIVER_HU for value in canvas]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", PHASES)
def test_the_centre_has_the_parameters_hu(kind: str, phase: str) -> None:
    lesion = plain(kind, 5)
    expected = lesion.enhancement.centre[PHASES.index(phase)]
    assert hu_along_x(lesion, phase, [0.0])[0] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", PHASES)
def test_the_rim_has_the_parameters_hu(kind: str, phase: str) -> None:
    lesion = replace(plain(kind, 5), rim_start=0.6, edge_mm=0.1)
    index, enhancement = PHASES.index(phase), lesion.enhancement
    # 0.93 is the capsule's middle, and the rim is complete from 0.7 on.
    expected = enhancement.centre[index] + enhancement.rim[index] + enhancement.capsule[index]
    assert hu_along_x(lesion, phase, [0.93])[0] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("seed", range(30))
def test_enhancement_patterns_are_those_of_the_two_kinds(seed: int) -> None:
    hcc, icc = plain("HCC", seed), plain("ICC", seed)
    assert hu_along_x(hcc, "ART", [0.0])[0] > 20
    assert hu_along_x(hcc, "PV", [0.0])[0] < -10
    assert hu_along_x(hcc, "DL", [0.0])[0] < -10
    centre, rim = hu_along_x(icc, "ART", [0.0, 0.9])
    assert rim > 5 > 0 > centre
    delayed, portal = hu_along_x(icc, "DL", [0.0])[0], hu_along_x(icc, "PV", [0.0])[0]
    assert delayed > portal + 10


@pytest.mark.parametrize("seed", range(20))
def test_bounds_hold_the_outline_and_touch_it(seed: int) -> None:
    lesion = make_lesion(KINDS[seed % 2], np.random.default_rng(seed), 0.3)
    reach = lesion.reach_mm
    step = 0.5
    axis = np.arange(-reach, reach, step, dtype=np.float32)
    inside = lesion.level((axis[None, None, :], axis[None, :, None], axis[:, None, None])) <= 1
    bounds = lesion.bounds()
    for patient_axis, others in ((0, (0, 1)), (1, (0, 2)), (2, (1, 2))):
        hit = axis[inside.any(axis=others)]
        assert bounds.min[patient_axis] - 0.05 <= hit[0] <= bounds.min[patient_axis] + 2 * step
        assert bounds.max[patient_axis] - 2 * step <= hit[-1] <= bounds.max[patient_axis] + 0.05


def test_radii_and_volume_are_realistic() -> None:
    extents = [max(make_lesion("ICC", np.random.default_rng(seed), 0.3).bounds().extent_mm) for seed in range(100)]
    assert 14 < min(extents) < 25
    assert 55 < max(extents) < 85


def test_difficulty_mixes_the_kinds_and_leaves_the_outline_alone() -> None:
    for seed in range(20):
        easy, hard = plain("HCC", seed), plain("HCC", seed, 1.0)
        assert easy.bounds() == hard.bounds()
        assert hard.enhancement.centre[1] < easy.enhancement.centre[1]
    arterial = [plain("HCC", seed, 1.0).enhancement.centre[1] for seed in range(60)]
    assert min(arterial) < 10 < max(arterial)


def test_a_lesion_fades_into_the_liver_at_its_edge() -> None:
    lesion = plain("HCC", 3)
    inside, outside = hu_along_x(lesion, "ART", [0.8, 1.3])
    assert inside > 20
    assert outside == 0
