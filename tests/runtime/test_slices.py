from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fourphase.runtime import slices
from fourphase.runtime.slices import OUTSIDE_HU, RegionGrid, sample_region
from fourphase.runtime.study import read_study
from tests.support.dicom import write_series
from tests.support.volumes import ORIENTATIONS, grid

SHAPE, SPACING = (30, 40, 44), (1.0, 0.8, 0.7)


@pytest.mark.parametrize(("row", "column"), ORIENTATIONS[::4])
@pytest.mark.parametrize(("average", "step_mm"), [(False, 0.0), (True, 0.0), (True, 3.0)])
def test_a_ramp_stays_a_ramp(
    tmp_path: Path, row: tuple[float, ...], column: tuple[float, ...], average: bool, step_mm: float
) -> None:
    """Means of blocks and interpolation between slices change nothing linear: closed form, in any orientation."""
    geometry = grid(SHAPE, row=row, column=column, spacing=SPACING)
    k, r, c = np.meshgrid(*(np.arange(count) for count in SHAPE), indexing="ij")
    points = k[..., None] * geometry.normal + r[..., None] * geometry.column_direction * 0.8
    points = points + c[..., None] * geometry.row_direction * 0.7
    origin = -points.reshape(-1, 3).mean(axis=0)
    weights = np.array([2.0, -3.0, 5.0])
    stored = np.rint((points + origin) @ weights * 8 + 1500).astype(np.uint16)
    orientation = [float(value) for value in (*row, *column)]
    step = geometry.normal.tolist()
    write_series(
        tmp_path, stored, origin=origin, step=step, ImageOrientationPatient=orientation, PixelSpacing=[0.8, 0.7]
    )
    (series,) = read_study(tmp_path).series
    where = RegionGrid((-6.0, -7.0, -5.0), (5, 4, 6), 2.2)
    sampled = sample_region(series, where, step_mm=step_mm, average=average)
    assert sampled.step == (3 if step_mm else 1)
    z, y, x = (low + (np.arange(count) + 0.5) * 2.2 for low, count in ((-5.0, 6), (-7.0, 4), (-6.0, 5)))
    expected = (2 * x - 3 * y[:, None] + 5 * z[:, None, None]) * 8 + 476
    np.testing.assert_allclose(sampled.hu, expected, atol=1.0)


def test_beyond_the_volume_is_marked(tmp_path: Path) -> None:
    write_series(tmp_path, np.full((8, 16, 16), 1064, np.uint16))
    (series,) = read_study(tmp_path).series
    hu = sample_region(series, RegionGrid((-4.0, -4.0, -10.0), (4, 4, 10), 2.0), average=True).hu
    outside = hu < OUTSIDE_HU / 2
    z = -10 + (np.arange(10) + 0.5) * 2
    assert outside[z < -1.25].all()
    np.testing.assert_allclose(hu[z > -1.25], 40, atol=0.05)


def test_no_more_slices_than_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, np.full((20, 16, 16), 1064, np.uint16))
    (series,) = read_study(tmp_path).series
    monkeypatch.setattr(slices, "NATIVE_SLICES", 7)
    whole = RegionGrid((-4.0, -4.0, 0.0), (4, 4, 20), 2.4)
    assert sample_region(series, whole).step == 3
    assert sample_region(series, RegionGrid((-4.0, -4.0, 20.0), (4, 4, 1), 2.4)).step == 1


def test_a_single_slice_in_reach(tmp_path: Path) -> None:
    """Slices 40 mm apart, a region that only the lowest of them reaches."""
    write_series(tmp_path, np.full((4, 16, 16), 1064, np.uint16), step=(0, 0, 40))
    (series,) = read_study(tmp_path).series
    hu = sample_region(series, RegionGrid((-4.0, -4.0, -25.0), (4, 4, 4), 2.0), average=True).hu
    assert (hu < OUTSIDE_HU / 2).all(axis=(1, 2)).tolist() == [True, True, False, False]
