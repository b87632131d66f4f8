from dataclasses import replace

import numpy as np
import pytest

from fourphase.benchmarks.phantoms.phantom import BOX_PHASE, KINDS, make_phantom
from fourphase.benchmarks.phantoms.scan import correlated_noise, lesion_voxels, make_scans
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import UsageError
from fourphase.runtime.preprocess import VoxelWindow


@pytest.mark.parametrize("seed", range(25))
def test_every_phase_covers_the_lesion_with_its_margin(seed: int) -> None:
    phantom = make_phantom(KINDS[seed % 2], seed)
    for slices in (None, 60):
        scans = make_scans(phantom, slices=slices)
        box = lesion_voxels(phantom, scans[BOX_PHASE]).box
        region = box.grown(PreprocessingConfig().margin_mm)
        for scan in scans.values():
            bounds = scan.geometry.bounds()
            assert np.less_equal(bounds.min, region.min).all()
            assert np.greater_equal(bounds.max, region.max).all()
            assert slices is None or scan.shape[0] == slices


def test_protocols_vary_within_the_realistic() -> None:
    scans = [make_scans(make_phantom("HCC", seed))["ART"] for seed in range(40)]
    assert {scan.thickness for scan in scans} >= {1.0, 2.5, 5.0}
    assert len({scan.shape[1] for scan in scans}) > 2
    assert any(scan.slice_spacing < scan.thickness for scan in scans)
    assert all(0.6 < scan.pixel_spacing[0] < 2.9 for scan in scans)
    assert max(4 * np.prod(scan.shape) * 2 for scan in scans) <= 30e6


def test_a_window_is_a_part_of_the_whole() -> None:
    phantom = replace(make_phantom("ICC", 3), noise_hu=0.0)
    scan = make_scans(phantom, matrix=96, slices=20)["PV"]
    whole = scan.voxels(phantom, scan.all_voxels)
    window = VoxelWindow(slice(3, 17), slice(20, 70), slice(10, 50))
    np.testing.assert_array_equal(scan.voxels(phantom, window), whole[3:17, 20:70, 10:50])
    x, y, z = scan.centres(scan.all_voxels)
    np.testing.assert_allclose(whole, np.clip(phantom.hu("PV", x, y, z), -1024, 3071), atol=0.51)


def test_noise_has_the_phantoms_size_and_neighbours_share_it() -> None:
    for smoothness in (0.0, 0.5, 0.9):
        noise = correlated_noise(np.random.default_rng(0), (12, 200, 210), smoothness)
        assert noise.shape == (12, 200, 210)
        assert noise.std() == pytest.approx(1, abs=0.01)
        share = smoothness / 2
        # Two neighbours' kernels (share, 1, share) overlap in two places.
        expected = 2 * share / (1 + 2 * share * share)
        assert (noise[..., 1:] * noise[..., :-1]).mean() == pytest.approx(expected, abs=0.01)
        assert (noise[1:] * noise[:-1]).mean() == pytest.approx(0, abs=0.01)


def test_a_scans_noise_can_be_repeated_and_differs_between_phases() -> None:
    phantom = make_phantom("HCC", 5)
    scans, quiet = make_scans(phantom, matrix=96, slices=20), replace(phantom, noise_hu=0.0)
    window = scans["NC"].all_voxels
    still = {phase: replace(scan, noise_hu=0.0).voxels(quiet, window) for phase, scan in scans.items()}
    noise = {phase: scan.voxels(phantom, window) - still[phase] for phase, scan in scans.items()}
    soft = np.abs(still["NC"]) < 300
    assert noise["NC"][soft].std() == pytest.approx(phantom.noise_hu, rel=0.02)
    assert abs(np.corrcoef(noise["NC"][soft], noise["ART"][soft])[0, 1]) < 0.02
    np.testing.assert_array_equal(scans["NC"].voxels(phantom, window), still["NC"] + noise["NC"])


@pytest.mark.parametrize("seed", range(8))
def test_the_mask_is_the_voxels_whose_centre_lies_within(seed: int) -> None:
    phantom = make_phantom(KINDS[seed % 2], seed)
    scan = make_scans(phantom, matrix=128)[BOX_PHASE]
    lesion = lesion_voxels(phantom, scan)
    whole = phantom.in_lesion(*scan.centres(scan.all_voxels))
    drawn = np.zeros(scan.shape, dtype=bool)
    drawn[lesion.window.slices, lesion.window.rows, lesion.window.columns] = lesion.mask
    np.testing.assert_array_equal(drawn, whole)
    voxel = np.array([scan.pixel_spacing[1], scan.pixel_spacing[0], scan.slice_spacing])
    indices = np.argwhere(whole)[:, ::-1]
    np.testing.assert_allclose(lesion.box.min, scan.origin + (indices.min(axis=0) - 0.5) * voxel, atol=1e-3)
    np.testing.assert_allclose(lesion.box.max, scan.origin + (indices.max(axis=0) + 0.5) * voxel, atol=1e-3)


@pytest.mark.parametrize(("matrix", "slices"), [(16, None), (5000, None), (None, 3), (None, 10**6)])
def test_impossible_sizes_are_refused(matrix: int | None, slices: int | None) -> None:
    with pytest.raises(UsageError) as caught:
        make_scans(make_phantom("HCC", 0), matrix, slices)
    assert caught.value.key == "phantom_size"
