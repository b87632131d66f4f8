from __future__ import annotations

import importlib
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from fourphase.runtime import elements, rtstruct_box
from fourphase.runtime.box import fit_box, read_box
from fourphase.runtime.errors import BoxInvalid, MixedStudies
from fourphase.runtime.geometry import Region
from fourphase.runtime.study import read_study
from tests.support.dicom import uid, write_phases
from tests.support.segments import contour, write_rtstruct

nibabel: Any = importlib.import_module("nibabel")  # its annotations are partial

#: A rectangle on planes 2.5 mm apart.
DEPTHS = (5.0, 7.5, 10.0)
EXPECTED = Region((-4.0, -5.0, 3.75), (3.0, 5.5, 11.25))


def rectangle(
    z: float, low: tuple[float, float] = (-4, -5), high: tuple[float, float] = (3, 5.5)
) -> NDArray[np.float64]:
    (left, front), (right, back) = low, high
    return np.array([[left, front, z], [right, front, z], [right, back, z], [left, back, z]])


def rtstruct(folder: Path, **options: Any) -> Path:
    return write_rtstruct(folder / "rt.dcm", {"lesion": [contour(rectangle(z)) for z in DEPTHS]}, **options)


def drawn(folder: Path, *contours: NDArray[np.float64], **elements: Any) -> Path:
    return write_rtstruct(folder / "rt.dcm", {"MARKER": [contour(points, **elements) for points in contours]})


def invalid(path: Path, label: int | None = None, roi: str | None = None) -> BoxInvalid:
    with pytest.raises(BoxInvalid) as caught:
        read_box(path, label, roi)
    shown = f"{caught.value.message} {caught.value.hint} {caught.value.table}"
    assert "MARKER" not in shown
    assert str(path.parent) not in shown
    return caught.value


def assert_same(region: Region, expected: Region, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(region.min, expected.min, atol=tolerance)
    np.testing.assert_allclose(region.max, expected.max, atol=tolerance)


# ---- encodings


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
)
def test_every_encoding_gives_the_hull_with_half_a_plane_distance(tmp_path: Path, syntax: str, undefined: bool) -> None:
    read = read_box(rtstruct(tmp_path, transfer_syntax=syntax, undefined=undefined, series=["1.2.3", "1.2.4"]), None)
    assert_same(read.region, EXPECTED)
    assert (read.source, read.frame_of_reference_uid, read.study_uid) == ("rtstruct", uid("frame"), uid("study"))
    assert (read.series_uids, read.warnings) == (("1.2.3", "1.2.4"), ())


def test_files_without_preamble_or_meta_information(tmp_path: Path) -> None:
    path = rtstruct(tmp_path, transfer_syntax=ImplicitVRLittleEndian)
    raw = path.read_bytes()
    for start in (132, raw.index(b"\x08\0\x16\0")):
        path.write_bytes(raw[start:])
        assert_same(read_box(path, None).region, EXPECTED)


@pytest.mark.filterwarnings("ignore:The value for the data element:UserWarning")
def test_long_contours(tmp_path: Path) -> None:
    """Beyond 65,534 bytes a value does not fit into VR DS and is written as UN."""
    angle = np.linspace(0, 2 * np.pi, 9000, endpoint=False)
    circles = [np.stack([20 * np.cos(angle), 30 * np.sin(angle), np.full_like(angle, z)], axis=1) for z in DEPTHS]
    path = drawn(tmp_path, *circles)
    assert path.read_bytes().count(b"UN\0\0") == 3
    assert_same(read_box(path, None).region, Region((-20, -30, 3.75), (20, 30, 11.25)))


def test_contours_along_voxels_give_the_box_of_the_nifti_mask(tmp_path: Path) -> None:
    labels = np.zeros((16, 16, 8), np.uint8)
    labels[4:11, 5:12, 2:5] = 1
    affine = np.diag([-1.0, -1.5, 2.5, 1.0])
    affine[:3, 3] = [8, 12, 0]
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "mask.nii.gz")
    planes = [rectangle(z, (-8 + 3.5, -12 + 4.5 * 1.5), (-8 + 10.5, -12 + 11.5 * 1.5)) for z in DEPTHS]
    assert_same(read_box(drawn(tmp_path, *planes), None).region, read_box(tmp_path / "mask.nii.gz", None).region, 1e-4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_planes_of_any_orientation(tmp_path: Path, data: st.DataObject) -> None:
    """Against the corners of the slab that holds all planes."""
    turn = np.linalg.qr(np.array([[data.draw(st.floats(-1, 1)) for _ in range(3)] for _ in range(3)]) + np.eye(3) * 3)[
        0
    ]
    distance, count = data.draw(st.floats(1, 9)), data.draw(st.integers(2, 6))
    width, height = data.draw(st.floats(3, 40)), data.draw(st.floats(3, 40))
    origin = np.array([data.draw(st.floats(-300, 300)) for _ in range(3)])
    square = np.array([[0, 0, 0], [width, 0, 0], [width, height, 0], [0, height, 0]])
    planes = [origin + (square + np.array([0, 0, k * distance])) @ turn.T for k in range(count)]
    random.Random(count).shuffle(planes)
    ends = (-distance / 2, (count - 0.5) * distance)
    corners = origin + np.array([[x, y, z] for x in (0, width) for y in (0, height) for z in ends]) @ turn.T
    region = read_box(drawn(tmp_path, *planes), None).region
    assert_same(region, Region.of(corners.min(axis=0), corners.max(axis=0)), 0.01)


# ---- which ROI


def test_a_roi_is_chosen_by_number_or_name(tmp_path: Path) -> None:
    lesion = [contour(rectangle(z)) for z in DEPTHS]
    liver = [contour(rectangle(z, (-40, -50), (30, 55))) for z in DEPTHS]
    rois = {"Läsion 1": lesion, "MARKER": liver, "marker": liver}
    path = write_rtstruct(
        tmp_path / "rt.dcm", rois, kinds=("GTV", "ORGAN", "MUELLER"), SpecificCharacterSet="ISO_IR 100"
    )
    for choice in ((1, None), (None, "Läsion 1"), (None, " LÄSION 1"), (1, "läsion 1")):
        assert_same(read_box(path, *choice).region, EXPECTED)
    assert read_box(path, None, "MARKER").region.min[0] == -40
    for label, roi in ((None, None), (7, None), (None, "other"), (1, "MARKER")):
        error = invalid(path, label, roi)
        assert error.key == "mask_labels"
        assert [row["number"] for row in error.table] == ["1", "2", "3"]
        assert [row["type"] for row in error.table] == ["GTV", "ORGAN", "no standard type"]
    assert [row["number"] for row in invalid(path, None, "Marker").table] == ["2", "3"]


def test_two_rois_of_one_number_are_no_choice(tmp_path: Path) -> None:
    dataset = dcmread(write_rtstruct(tmp_path / "rt.dcm", {"a": [contour(rectangle(5))], "b": [contour(rectangle(9))]}))
    dataset.StructureSetROISequence[1].ROINumber = 1
    dataset.save_as(tmp_path / "rt.dcm")
    assert invalid(tmp_path / "rt.dcm", 1).key == "mask_labels"


def test_the_frame_of_reference_is_that_of_the_roi(tmp_path: Path) -> None:
    dataset = dcmread(rtstruct(tmp_path, series=["1.2.3"]))
    dataset.FrameOfReferenceUID = "1.2.999"
    (other,) = dcmread(rtstruct(tmp_path, series=["1.2.4"], frame="1.2.9")).ReferencedFrameOfReferenceSequence
    dataset.ReferencedFrameOfReferenceSequence.append(other)
    dataset.save_as(tmp_path / "two.dcm")
    read = read_box(tmp_path / "two.dcm", None)
    assert (read.frame_of_reference_uid, read.series_uids) == (uid("frame"), ("1.2.3",))
    dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = ""
    dataset.save_as(tmp_path / "none.dcm")
    assert read_box(tmp_path / "none.dcm", None).frame_of_reference_uid == ""
    del dataset.ReferencedFrameOfReferenceSequence[1]
    dataset.save_as(tmp_path / "one.dcm")
    assert read_box(tmp_path / "one.dcm", None).frame_of_reference_uid == uid("frame")


# ---- planes


@pytest.mark.parametrize(
    ("depths", "distance"),
    [((0, 5, 10, 40, 45), 5.0), ((0, 2.5, 9), 2.5), ((0, 3, 3, 6), 3.0), ((0, 0.05, 3, 3.05), 2.95)],
)
def test_the_plane_distance_is_the_lower_median(tmp_path: Path, depths: tuple[float, ...], distance: float) -> None:
    region = read_box(drawn(tmp_path, *map(rectangle, depths)), None).region
    assert region.min[2] == pytest.approx(min(depths) - distance / 2)
    assert region.max[2] == pytest.approx(max(depths) + distance / 2)


def test_one_plane_is_refused_unless_the_file_says_how_thick_it_is(tmp_path: Path) -> None:
    assert invalid(drawn(tmp_path, rectangle(5))).key == "contour_planes"
    assert invalid(drawn(tmp_path, rectangle(5), ContourSlabThickness="50")).key == "contour_planes"
    assert invalid(drawn(tmp_path, rectangle(5), ContourSlabThickness="0")).key == "contour_planes"
    read = read_box(drawn(tmp_path, rectangle(5), ContourSlabThickness="3"), None)
    assert_same(read.region, Region((-4, -5, 3.5), (3, 5.5, 6.5)))
    assert [notice.key for notice in read.warnings] == ["box_thickness_claimed"]


def test_planes_that_are_none(tmp_path: Path) -> None:
    assert invalid(drawn(tmp_path, rectangle(0), rectangle(20))).key == "contour_planes"
    tilted = rectangle(5) + np.array([[0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]])
    assert invalid(drawn(tmp_path, rectangle(0), tilted)).key == "contour_planes"
    twisted = rectangle(5) + np.array([[0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 1]])
    assert invalid(drawn(tmp_path, twisted, rectangle(0))).key == "contour_planes"


def test_holes_and_single_points_are_within_the_hull(tmp_path: Path) -> None:
    hole, point = rectangle(7.5, (-1, -1), (1, 1)), np.array([[4.0, 0, 7.5]])
    contours = [contour(rectangle(z)) for z in DEPTHS]
    contours += [contour(hole, "CLOSEDPLANAR_XOR"), contour(point), contour(np.zeros((0, 3)))]
    region = read_box(write_rtstruct(tmp_path / "rt.dcm", {"lesion": contours}), None).region
    assert_same(region, Region((-4.0, -5.0, 3.75), (4.0, 5.5, 11.25)))


# ---- refusals


@pytest.mark.parametrize("kind", ["POINT", "OPEN_PLANAR", "OPEN_NONPLANAR", "MARKER", ""])
def test_other_contours_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    error = invalid(drawn(tmp_path, *map(rectangle, DEPTHS), kind=kind))
    assert error.key == "contour_type"
    assert (kind if kind in ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR") else "unknown") in error.message


def test_an_offset_is_refused(tmp_path: Path) -> None:
    assert invalid(drawn(tmp_path, rectangle(5), ContourOffsetVector=[0, 0, 1])).key == "contour_type"
    read_box(drawn(tmp_path, *map(rectangle, DEPTHS), ContourOffsetVector=[0, 0, 0]), None)


@pytest.mark.parametrize("text", [b"NaN", b"inf", b"1e99", b"1_0", b"1,0", b"1 1", b"", b"1\\2", b"--1", b"nan\\1\\2"])
def test_points_that_are_no_coordinates(tmp_path: Path, text: bytes) -> None:
    path = drawn(tmp_path, *map(rectangle, DEPTHS))
    dataset = dcmread(path)
    element = dataset.ROIContourSequence[0].ContourSequence[1]
    points = element.ContourData
    element.ContourData = [*points[:3], "77777.5", *points[4:]]
    dataset.save_as(path)
    raw = path.read_bytes()
    assert raw.count(b"77777.5") == 1
    path.write_bytes(raw.replace(b"77777.5", text.ljust(7)))
    assert invalid(path).key == "contour_points"


def test_a_count_that_lies(tmp_path: Path) -> None:
    assert invalid(drawn(tmp_path, rectangle(5), NumberOfContourPoints=5)).key == "contour_points"
    dataset = dcmread(drawn(tmp_path, rectangle(5)))
    item = dataset.ROIContourSequence[0].ContourSequence[0]
    del item.NumberOfContourPoints
    item.ContourData = item.ContourData[:-1]
    dataset.save_as(tmp_path / "rt.dcm")
    assert invalid(tmp_path / "rt.dcm").key == "contour_points"


def test_nothing_drawn(tmp_path: Path) -> None:
    assert invalid(write_rtstruct(tmp_path / "rt.dcm", {})).key == "mask_empty"
    assert invalid(write_rtstruct(tmp_path / "rt.dcm", {"lesion": []})).key == "mask_empty"
    assert invalid(drawn(tmp_path, np.array([[0, 0, 5.0], [3, 0, 5]]), np.array([[0, 0, 7.5]]))).key == "mask_empty"


def test_small_and_large_lesions_are_refused(tmp_path: Path) -> None:
    assert invalid(drawn(tmp_path, *(rectangle(z, (0, 0), (1, 9)) for z in DEPTHS))).key == "box_size"
    assert invalid(drawn(tmp_path, *(rectangle(z, (0, 0), (301, 9)) for z in DEPTHS))).key == "box_size"


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = drawn(tmp_path, *map(rectangle, DEPTHS))
    monkeypatch.setattr(rtstruct_box, "MOST_POINTS", 11)
    assert invalid(path).key == "mask_limits"
    monkeypatch.setattr(rtstruct_box, "MOST_POINTS", 12)
    read_box(path, None)
    monkeypatch.setattr(rtstruct_box, "MOST_POINTS", 2)
    assert invalid(path).key == "mask_limits"


def test_a_file_that_is_not_read_to_its_end(tmp_path: Path) -> None:
    """48 MiB of contours that are not wanted, and the wanted ones behind."""
    path = rtstruct(tmp_path)
    raw = path.read_bytes()
    start = raw.index(b"\x06\x30\x39\x00SQ")
    length = (48 * 2**20).to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(raw[:start] + b"\x06\x30\x30\x00UN\0\0" + length)
        file.seek(48 * 2**20, 1)
        file.write(raw[start:])
    assert invalid(path).key == "mask_limits"


def test_many_empty_items_are_over_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items of eight bytes each, within a sequence that is read: each could cost an object."""
    item = b"\xfe\xff\x00\xe0\0\0\0\0"
    path = rtstruct(tmp_path)
    raw = path.read_bytes()
    start = raw.index(b"\x06\x30\x80\x00SQ")
    path.write_bytes(raw[:start] + b"\x06\x30\x80\x00SQ\0\0\xff\xff\xff\xff" + item * 300_000)
    monkeypatch.setattr(elements, "ELEMENT_LIMIT", 50_000)
    assert invalid(path).key == "mask_limits"


@pytest.mark.parametrize("depth", [30, 5000])
def test_deep_nesting_is_damage(tmp_path: Path, depth: int) -> None:
    path = rtstruct(tmp_path)
    raw = path.read_bytes()
    start = raw.index(b"\x06\x30\x39\x00SQ")
    opened = b"\x06\x30\x39\x00SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(raw[:start] + opened * depth)
    assert invalid(path).key == "mask_damaged"


@pytest.mark.parametrize("undefined", [False, True])
def test_a_truncated_file_never_loses_contours(tmp_path: Path, undefined: bool) -> None:
    """Cut anywhere within the contours: refused, not a smaller box."""
    path = rtstruct(tmp_path, undefined=undefined)
    raw = path.read_bytes()
    for end in range(raw.index(b"\x06\x30\x39\x00SQ") + 8, len(raw), 7):
        path.write_bytes(raw[:end])
        assert invalid(path).key in ("mask_damaged", "mask_empty")


@pytest.mark.parametrize("undefined", [False, True])
def test_flipped_bytes_end_in_an_error_or_a_box(tmp_path: Path, undefined: bool) -> None:
    rng = random.Random(3)
    whole = rtstruct(tmp_path, undefined=undefined).read_bytes()
    target = tmp_path / "mutant.dcm"
    refused = 0
    for _ in range(300):
        raw = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        target.write_bytes(raw)
        started = time.perf_counter()
        try:
            read_box(target, 1)
        except BoxInvalid:
            refused += 1
        assert time.perf_counter() - started < 2
    assert refused > 60


# ---- against the study


def test_against_the_study(tmp_path: Path) -> None:
    write_phases(tmp_path / "study")
    series = dict(zip(("NC", "ART", "PV", "DL"), read_study(tmp_path / "study").series, strict=True))
    drawn_on = uid("series", "ART")
    fitted = fit_box(read_box(rtstruct(tmp_path, series=[drawn_on]), None), series)
    assert_same(fitted.region, EXPECTED)
    assert (fitted.source, fitted.drawn_on, fitted.warnings) == ("rtstruct", ("ART",), ())
    for change, key in (
        ({"PatientID": "OTHER"}, "box_of_another_patient"),
        ({"StudyInstanceUID": "1.2"}, "box_of_another_study"),
    ):
        with pytest.raises(MixedStudies) as caught:
            fit_box(read_box(rtstruct(tmp_path, **change), None), series)
        assert caught.value.key == key
    with pytest.raises(BoxInvalid, match="another frame of reference"):
        fit_box(read_box(rtstruct(tmp_path, frame="1.2.3"), None), series)
