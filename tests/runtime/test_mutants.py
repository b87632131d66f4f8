"""What `fp-bench mutants` found: each defect of the reader once, as small as it can be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourphase.runtime.box import check_coverage
from fourphase.runtime.errors import GeometryRefused, PixelDataError
from fourphase.runtime.geometry import Region
from fourphase.runtime.pixels import read_hu
from fourphase.runtime.preprocess import VoxelWindow
from fourphase.runtime.series import Series
from fourphase.runtime.study import Study, read_study
from tests.support.dicom import stored_values, write_series

WHOLE = VoxelWindow(slice(0, 8), slice(0, 24), slice(0, 24))


def only(study: Study) -> Series:
    (series,) = study.series
    return series


def keys(series: Series) -> list[str]:
    return [notice.key for notice in series.warnings]


# ---- a header that lost an element is damaged, not another kind of image


@pytest.mark.parametrize("lost", ["Modality", "PhotometricInterpretation"])
def test_slices_without_a_type_1_element_are_said_to_be_skipped(tmp_path: Path, lost: str) -> None:
    """They were counted as "not_ct" and "colour", which nobody is told of."""
    write_series(tmp_path / "a", stored_values((8, 24, 24)))
    elements: dict[str, Any] = {lost: None}
    write_series(tmp_path / "b", stored_values((1, 24, 24), 1), origin=(-8, -12, 60), **elements)
    study = read_study(tmp_path)
    assert study.skipped == {"damaged": 1}
    assert [notice.key for notice in study.warnings] == ["files_skipped"]


@pytest.mark.parametrize(
    ("start", "skip", "spoilt", "reason"),
    [(b"\x08\0\x60\0CS", 2, b"C\x01", "damaged"), (b"\x08\0\x16\0UI", 0, b"\xff\0", "no_pixel_data")],
)
def test_an_unreadable_class_or_modality_is_said(
    tmp_path: Path, start: bytes, skip: int, spoilt: bytes, reason: str
) -> None:
    """The value of a modality, and the length of a class, which then swallows what follows: both were "not_ct"."""
    write_series(tmp_path / "a", stored_values((8, 24, 24)))
    (path,) = write_series(tmp_path / "b", stored_values((1, 24, 24), 1), origin=(-8, -12, 60))
    content = path.read_bytes()
    place = content.index(start) + len(start) + skip
    path.write_bytes(content[:place] + spoilt + content[place + 2 :])
    study = read_study(tmp_path)
    assert study.skipped == {reason: 1}
    assert [notice.key for notice in study.warnings] == ["files_skipped"]


def test_other_modalities_and_colour_are_not_said(tmp_path: Path) -> None:
    write_series(tmp_path / "a", stored_values((8, 24, 24)))
    write_series(tmp_path / "b", stored_values((1, 24, 24)), origin=(-8, -12, 60), Modality="MR")
    write_series(tmp_path / "c", stored_values((1, 24, 24)), origin=(-8, -12, 90), PhotometricInterpretation="RGB")
    study = read_study(tmp_path)
    assert study.skipped == {"colour": 1, "not_ct": 1}
    assert study.warnings == ()


# ---- every second slice is missing: the distances are even


@pytest.mark.parametrize(("step", "said"), [(2.5, False), (4.5, False), (5.0, True), (12.5, True)])
def test_slices_two_thicknesses_apart_are_said(tmp_path: Path, step: float, said: bool) -> None:
    write_series(tmp_path, stored_values((8, 24, 24)), step=(0, 0, step), SliceThickness="2.5")
    assert keys(only(read_study(tmp_path))) == ["slices_far_apart"] * said


@pytest.mark.parametrize("thickness", [None, "0", "-1", "text"])
def test_a_thickness_that_says_nothing_changes_nothing(tmp_path: Path, thickness: str | None) -> None:
    for path in write_series(tmp_path, stored_values((8, 24, 24)), step=(0, 0, 9), SliceThickness="7.77777"):
        value = "" if thickness is None else thickness
        path.write_bytes(path.read_bytes().replace(b"7.77777 ", value.encode().ljust(8)))
    series = only(read_study(tmp_path))
    assert keys(series) == []
    assert series.geometry.slice_spacing == pytest.approx(9)


def test_slices_far_apart_beside_damaged_files_are_refused(tmp_path: Path) -> None:
    """Two pieces of evidence: what lies between them was there and cannot be read."""
    paths = write_series(tmp_path, stored_values((9, 24, 24)))
    for path in paths[1::2]:
        path.write_bytes(path.read_bytes()[:200])
    series = only(read_study(tmp_path))
    with pytest.raises(GeometryRefused) as caught:
        _ = series.geometry
    assert caught.value.key == "slice_lost"


# ---- a turned volume ends before its bounds do


def test_a_margin_beyond_a_turned_volume_is_said(tmp_path: Path) -> None:
    """Turned by 20 degrees about x; its axis-aligned bounds reach 4.1 mm further than its last face."""
    angle = math.radians(20)
    column = (0, math.cos(angle), math.sin(angle))
    normal = np.array([0, -math.sin(angle), math.cos(angle)])
    write_series(
        tmp_path,
        stored_values((8, 24, 24)),
        origin=(0, 0, 0),
        step=(2.5 * normal).tolist(),
        ImageOrientationPatient=[1, 0, 0, *(f"{value:.10f}" for value in column)],
        PixelSpacing=[1, 1],
    )
    series = only(read_study(tmp_path))
    centre = np.array([11.5, 0, 0]) + 11.5 * np.array(column) + 8.75 * normal
    half = np.array([2.0, 2.0, 8.0])
    reach = abs(normal[1]) * 2 + abs(normal[2]) * 8  # of the region along the normal; the last face lies at 10 mm
    assert check_coverage(series, Region.of(centre - half, centre + half)) == ()
    far = half + np.array([0, 0, (10 - reach + 0.5) / abs(normal[2])])
    region = Region.of(centre - far, centre + far)
    assert np.less_equal(series.geometry.bounds().min, region.min).all()
    assert np.greater_equal(series.geometry.bounds().max, region.max).all()
    (notice,) = check_coverage(series, region)
    assert notice.key == "margin_outside_volume"
    assert "0.5 mm" in notice.message


# ---- values that are scaled wrongly


@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleIntercept": lambda index: "-1024" if index != 3 else "-1020"},
        {"RescaleSlope": lambda index: "1" if index != 3 else "1.01"},
        {"BitsStored": lambda index: 12 if index != 3 else 11, "HighBit": 11},
    ],
)
def test_slices_that_are_scaled_differently_are_said(tmp_path: Path, elements: dict[str, Any]) -> None:
    write_series(tmp_path / "a", stored_values((8, 24, 24)), **elements)
    assert "rescale_differs" in keys(only(read_study(tmp_path / "a")))


def test_fewer_stored_bits_at_the_same_place_are_no_other_scaling(tmp_path: Path) -> None:
    """Some archives write for each slice how many bits it needs."""
    bits: dict[str, Any] = {"BitsStored": lambda index: 12 - index % 2, "HighBit": lambda index: 11 - index % 2}
    write_series(tmp_path, stored_values((8, 24, 24)), **bits)
    assert keys(only(read_study(tmp_path))) == []


def test_a_slice_scaled_far_from_its_neighbours_is_refused(tmp_path: Path) -> None:
    """Uncompressed series were not looked at; 700 HU is what a lost minus sign or digit makes."""
    write_series(tmp_path, stored_values((8, 24, 24)), RescaleIntercept=lambda i: "-1024" if i != 3 else "-324")
    with pytest.raises(PixelDataError) as caught:
        read_hu(only(read_study(tmp_path)), WHOLE)
    assert caught.value.key == "slice_implausible"
    assert "slice 4 of 8" in caught.value.message


@pytest.mark.parametrize("slope", ["1e-300", "0.0009", "-0.0009", "1e-30"])
def test_a_slope_that_makes_everything_the_same_is_refused(tmp_path: Path, slope: str) -> None:
    write_series(tmp_path, stored_values((8, 24, 24)), RescaleSlope=slope)
    with pytest.raises(PixelDataError) as caught:
        read_hu(only(read_study(tmp_path)), WHOLE)
    assert caught.value.key == "rescale_invalid"


@pytest.mark.parametrize("intercept", ["0", "1024"])
def test_a_lost_intercept_is_refused(tmp_path: Path, intercept: str) -> None:
    """Tissue would be at 1074 HU; two in five voxels of dense bone are still accepted."""
    values = stored_values((8, 24, 24))
    write_series(tmp_path / "lost", values, RescaleIntercept=intercept)
    with pytest.raises(PixelDataError) as caught:
        read_hu(only(read_study(tmp_path / "lost")), WHOLE)
    assert caught.value.key == "hu_implausible"
    values[:, :, :9] = 2524
    write_series(tmp_path / "bone", values)
    assert np.mean(read_hu(only(read_study(tmp_path / "bone")), WHOLE) == 1500) == pytest.approx(9 / 24)


def test_values_that_do_not_start_at_the_lowest_bit_are_said(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((8, 24, 24)), HighBit=12)
    assert keys(only(read_study(tmp_path))) == ["high_bit_unusual"]
