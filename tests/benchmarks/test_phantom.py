import numpy as np
import pytest

from fourphase.benchmarks.phantoms.lesion import make_lesion
from fourphase.benchmarks.phantoms.phantom import BOX_PHASE, KINDS, PHASES, Phantom, make_phantom
from fourphase.runtime.errors import UsageError


def small_grid(phantom: Phantom, reach: float = 60) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    x, y, z = (offset + np.linspace(-reach, reach, 25) for offset in phantom.offset)
    return [x[None, None, :], y[None, :, None], z[:, None, None]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_phantom(kind: str) -> None:
    first, second, other = make_phantom(kind, 11), make_phantom(kind, 11), make_phantom(kind, 12)
    assert first == second != other
    np.testing.assert_array_equal(first.hu("ART", *small_grid(first)), second.hu("ART", *small_grid(second)))


def test_an_open_grid_equals_a_list_of_points() -> None:
    phantom = make_phantom("HCC", 4)
    x, y, z = small_grid(phantom, 150)
    points = [np.ascontiguousarray(part).ravel() for part in np.broadcast_arrays(x, y, z)]
    image = phantom.hu("PV", x, y, z)
    assert image.dtype == np.float32
    np.testing.assert_allclose(phantom.hu("PV", *points), image.ravel(), atol=2e-3)


@pytest.mark.parametrize("seed", range(12))
def test_lesions_lie_within_the_liver_and_contrast_with_it_as_designed(seed: int) -> None:
    phantom = make_phantom(KINDS[seed % 2], seed)
    lesion = phantom.lesion
    centre = [np.array([c], dtype=np.float32) for c in lesion.centre]
    assert phantom.anatomy.liver.distance((centre[0], centre[1], centre[2])).item() < -lesion.reach_mm
    for index, phase in enumerate(PHASES):
        place = np.array(lesion.centre) + phantom.offset + phantom.shifts[index]
        hu = phantom.hu(phase, place[0], place[1], place[2]).item()
        expected = phantom.anatomy.liver_hu[index] + lesion.enhancement.centre[index]
        # The inner pattern adds three sines.
        assert abs(hu - expected) <= 3 * lesion.mosaic[0] + 0.1


@pytest.mark.parametrize("seed", range(12))
def test_the_liver_enhances_like_a_liver(seed: int) -> None:
    native, arterial, portal, delayed = make_phantom("HCC", seed).anatomy.liver_hu
    assert 50 <= native <= 65 <= arterial <= 85 < delayed < portal
    assert 100 <= portal <= 125
    assert 85 <= delayed <= 105


def test_most_of_a_body_slice_is_fat_muscle_and_liver_in_air() -> None:
    phantom = make_phantom("ICC", 2)
    x, y = np.linspace(-200, 200, 200)[None, :], np.linspace(-160, 160, 160)[:, None]
    hu = phantom.hu("PV", x + phantom.offset[0], y + phantom.offset[1], np.full((1, 1), phantom.offset[2]))
    liver = phantom.anatomy.liver_hu[2]
    assert hu[0, 0] == -1000
    assert 0.1 < (abs(hu - liver) < 1).mean() < 0.35
    assert 0.1 < ((hu > -120) & (hu < -90)).mean() < 0.5
    assert 0.003 < (hu > 200).mean() < 0.1


def test_the_aorta_is_brightest_in_the_arterial_phase() -> None:
    phantom = make_phantom("HCC", 6)
    aorta = next(organ for organ in phantom.anatomy.organs if organ.name == "aorta")
    low, high = aorta.shape.bounds
    place = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, 0]) + phantom.offset
    hu = [phantom.hu(phase, place[0], place[1], place[2]).item() for phase in PHASES]
    assert np.argmax(hu) == 1
    np.testing.assert_allclose(hu, aorta.hu, atol=0.1)


def test_breathing_moves_everything_but_the_phase_of_the_box() -> None:
    phantom = make_phantom("HCC", 8)
    assert phantom.shifts[PHASES.index(BOX_PHASE)] == (0, 0, 0)
    assert 0 < max(abs(value) for shift in phantom.shifts for value in shift) < 3
    x, y, z = small_grid(phantom, 40)
    shift = phantom.shifts[0]
    moved = phantom.hu("NC", x + shift[0], y + shift[1], z + shift[2])
    still = Phantom(**{**phantom.__dict__, "shifts": ((0.0, 0.0, 0.0),) * 4}).hu("NC", x, y, z)
    np.testing.assert_allclose(moved, still, atol=0.05)


def test_difficulty_adds_noise() -> None:
    assert make_phantom("HCC", 3, 1.0).noise_hu == pytest.approx(1.6 * make_phantom("HCC", 3, 0.0).noise_hu)
    noises = [make_phantom("HCC", seed, 0.3).noise_hu for seed in range(40)]
    assert 8 < min(noises) < max(noises) < 20


@pytest.mark.parametrize(("kind", "difficulty"), [("FNH", 0.3), ("HCC", 1.5), ("HCC", -0.1)])
def test_impossible_phantoms_are_refused(kind: str, difficulty: float) -> None:
    with pytest.raises(UsageError) as caught:
        make_phantom(kind, 0, difficulty)
    assert caught.value.key == "phantom_kind"


def test_lesion_bounds_are_in_patient_space() -> None:
    phantom = make_phantom("ICC", 9)
    own = phantom.lesion.bounds()
    assert np.allclose(np.subtract(phantom.lesion_bounds.min, own.min), phantom.offset)
    x, y, z = (np.array(phantom.lesion.centre) + phantom.offset).tolist()
    assert phantom.in_lesion(x, y, z)
    assert not phantom.in_lesion(phantom.lesion_bounds.max[0] + 1, y, z)
    assert make_lesion("ICC", np.random.default_rng(0), 0.3).centre == (0, 0, 0)
