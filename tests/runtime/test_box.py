from __future__ import annotations

import gzip
import importlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fourphase.runtime.box import check_coverage, fit_box, read_box
from fourphase.runtime.box_file import LesionBox
from fourphase.runtime.errors import BoxInvalid, GeometryRefused, InputMissing
from fourphase.runtime.geometry import Region
from fourphase.runtime.series import Series
from fourphase.runtime.study import read_study
from tests.support.dicom import stored_values, uid, write_phases, write_series

nibabel: Any = importlib.import_module("nibabel")  # its annotations are partial

#: What `write_phases` scans: 16 columns of 1 mm, 16 rows of 1.5 mm, 8 slices of 2.5 mm from (-8, -12, 0).
VOLUME = Region((-8.5, -12.75, -1.25), (7.5, 11.25, 18.75))
BODY: dict[str, Any] = {"space": "LPS_mm", "min": [-4.0, -5.0, 4.0], "max": [3.0, 5.5, 12.0]}


def write_json(folder: Path, body: Any) -> Path:
    path = folder / "box.json"
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return path


def write_mask(folder: Path, labels: NDArray[Any], affine: NDArray[np.float64], name: str = "mask.nii.gz") -> Path:
    """By nibabel; the affine is voxel -> RAS mm."""
    path = folder / name
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


def phases(folder: Path, **elements: Any) -> dict[str, Series]:
    write_phases(folder, **elements)
    return dict(zip(("NC", "ART", "PV", "DL"), read_study(folder).series, strict=True))


def invalid(path: Path, label: int | None = None) -> BoxInvalid:
    with pytest.raises(BoxInvalid) as caught:
        read_box(path, label)
    assert caught.value.code == 16
    assert str(path.parent) not in caught.value.message + caught.value.hint
    return caught.value


def box(low: tuple[float, float, float], high: tuple[float, float, float], **more: Any) -> LesionBox:
    return LesionBox(Region(low, high), "json", **more)


# ---- JSON


def test_json_box(tmp_path: Path) -> None:
    read = read_box(write_json(tmp_path, {**BODY, "frame_of_reference_uid": "1.2.3"}), None)
    assert read.region == Region((-4.0, -5.0, 4.0), (3.0, 5.5, 12.0))
    assert (read.source, read.frame_of_reference_uid) == ("json", "1.2.3")


def test_boxes_per_phase(tmp_path: Path) -> None:
    inner = {"min": [0, 0, 0], "max": [5, 5, 5]}
    outer = {"min": [-1, 0, 0], "max": [4, 5, 9]}
    read = read_box(write_json(tmp_path, {"space": "LPS_mm", "phases": {"NC": inner, "ART": outer}}), None)
    assert read.by_phase == {"NC": Region((0, 0, 0), (5, 5, 5)), "ART": Region((-1, 0, 0), (4, 5, 9))}
    assert read.region == Region((-1, 0, 0), (5, 5, 9))


def test_a_box_for_all_beside_boxes_per_phase_is_not_used(tmp_path: Path) -> None:
    phases_ = {"NC": {"min": [0, 0, 0], "max": [5, 5, 5]}, "ART": {"min": [-1, 0, 0], "max": [4, 5, 9]}}
    whole = {"space": "LPS_mm", "min": [50, 50, 50], "max": [60, 60, 60], "phases": phases_}
    assert read_box(write_json(tmp_path, whole), None).region == Region((-1, 0, 0), (5, 5, 9))
    assert invalid(write_json(tmp_path, {**whole, "max": [60, 60, "x"]})).key == "box_schema"


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("box_space", {"space": "RAS_mm"}),
        ("box_schema", {"space": None}),
        ("box_schema", {"min": None}),
        ("box_schema", {"colour": "red"}),
        ("box_schema", {"min": [0, 0]}),
        ("box_schema", {"min": [0, 0, "0"]}),
        ("box_schema", {"min": [0, 0, True]}),
        ("box_schema", {"min": "0 0 0"}),
        ("box_schema", {"min": [0, 0, 10**400]}),
        ("box_schema", {"frame_of_reference_uid": 7}),
        ("box_schema", {"phases": []}),
        ("box_schema", {"phases": {"NC": {"min": [0, 0, 0]}}}),
        ("box_schema", {"phases": {"NC": {"min": [0, 0, 0], "max": [5, 5, 5], "label": 1}}}),
        ("box_reversed", {"min": [9, 0, 0], "max": [5, 5, 5]}),
        ("box_size", {"min": [0, 0, 0], "max": [5, 5, 1.99]}),
        ("box_size", {"min": [0, 0, 0], "max": [5, 5, 300.1]}),
        ("box_size", {"min": [-1e308, 0, 0], "max": [1e308, 5, 5]}),
        ("box_size", {"phases": {"NC": {"min": [0, 0, 0], "max": [5, 5, 1]}}}),
    ],
)
def test_json_refusals(tmp_path: Path, key: str, change: dict[str, Any]) -> None:
    body = {name: value for name, value in {**BODY, **change}.items() if value is not None}
    assert invalid(write_json(tmp_path, body)).key == key


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{", "NaN", '{"space": "LPS_mm", "min": [NaN, 0, 0], "max": [5, 5, 5]}', "[" * 100_000,
     '{"space": "LPS_mm", "space": "LPS_mm", "min": [0, 0, 0], "max": [5, 5, 5]}', "\0" * 400, "x" * 2**21,
     '{"space": "LPS_mm", "min": [Infinity, 0, 0], "max": [5, 5, 5]}', "1" * 5000],
)  # fmt: skip
def test_malformed_json(tmp_path: Path, text: str) -> None:
    assert invalid(write_json(tmp_path, text)).key in ("box_format", "box_schema")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, number: str) -> None:
    text = f'{{"space": "LPS_mm", "min": [{number}, 0, 0], "max": [5, 5, 5]}}'
    assert "NaN or Infinity" in invalid(write_json(tmp_path, text)).message


@pytest.mark.parametrize("limits", [(2.0, 2.0, 2.0), (300.0, 300.0, 300.0)])
def test_sizes_at_the_limits_are_accepted(tmp_path: Path, limits: tuple[float, float, float]) -> None:
    body = {**BODY, "min": [0.1, 0.2, 0.3], "max": [0.1 + limits[0], 0.2 + limits[1], 0.3 + limits[2]]}
    assert read_box(write_json(tmp_path, body), None).source == "json"


def test_missing_file_is_10_and_folder_too(tmp_path: Path) -> None:
    for path in (tmp_path / "MARKER.json", tmp_path):
        with pytest.raises(InputMissing) as caught:
            read_box(path, None)
        assert "MARKER" not in caught.value.message + caught.value.hint


def test_dicom_boxes_are_refused_by_name(tmp_path: Path) -> None:
    (path, *_) = write_series(tmp_path, stored_values((2, 4, 4)))
    assert "DICOM" in invalid(path).message


# ---- masks

AFFINES = {
    "RAS": np.diag([1.5, 2.0, 2.5, 1.0]),
    "LPS": np.diag([-1.5, -2.0, 2.5, 1.0]),
    "PIR": np.array([[0, 0, 2.5, 7], [-1.5, 0, 0, -3], [0, -2.0, 0, 11], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2"])
@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz", "m.json"])
def test_mask_box_is_its_voxels_with_their_halves(tmp_path: Path, affine: str, dtype: str, name: str) -> None:
    """Against nibabel's affine: corners of the labelled voxels, RAS -> LPS."""
    labels = np.zeros((12, 10, 8), dtype=dtype)
    labels[3:7, 2:6, 4:6] = 1
    labels[3, 2, 4] = 0
    path = write_mask(tmp_path, labels, AFFINES[affine], "m.nii.gz" if name.endswith("gz") else "m.nii")
    path = path.rename(tmp_path / name)
    read = read_box(path, None)
    low, high = np.array([2.5, 1.5, 3.5]), np.array([6.5, 5.5, 5.5])
    corners = np.array([[(low, high)[i >> axis & 1][axis] for axis in range(3)] for i in range(8)])
    expected = nibabel.affines.apply_affine(AFFINES[affine], corners) * [-1, -1, 1]
    np.testing.assert_allclose(read.region.min, expected.min(axis=0), atol=1e-4)
    np.testing.assert_allclose(read.region.max, expected.max(axis=0), atol=1e-4)
    assert read.source == "nifti"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_affine_agrees_with_nibabel(tmp_path: Path, data: st.DataObject) -> None:
    """Rotations through sform or qform; the box holds exactly the labelled voxels."""
    angles = [data.draw(st.floats(-3.1, 3.1)) for _ in range(3)]
    x, y, z = (rotation(axis, angle) for axis, angle in enumerate(angles))
    flip = np.diag([data.draw(st.sampled_from([-1.0, 1.0])), 1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = x @ y @ z @ flip @ np.diag([data.draw(st.floats(0.7, 4)) for _ in range(3)])
    affine[:3, 3] = [data.draw(st.floats(-200, 200)) for _ in range(3)]
    labels = np.zeros((9, 8, 7), dtype=np.uint8)
    voxels = [[data.draw(st.integers(1, size - 2)) for size in labels.shape] for _ in range(3)]
    for i, j, k in voxels:
        labels[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = 1
    image = nibabel.Nifti1Image(labels, affine)
    image.set_sform(affine, code=data.draw(st.sampled_from([0, 1])))
    image.set_qform(affine, code=2)
    nibabel.save(image, tmp_path / "mask.nii")
    loaded = nibabel.load(tmp_path / "mask.nii").affine
    centres = nibabel.affines.apply_affine(loaded, np.argwhere(labels)) * [-1, -1, 1]
    half = np.abs(loaded[:3, :3]).sum(axis=1) / 2
    region = read_box(tmp_path / "mask.nii", None).region
    np.testing.assert_allclose(region.min, centres.min(axis=0) - half, atol=1e-3)
    np.testing.assert_allclose(region.max, centres.max(axis=0) + half, atol=1e-3)


def rotation(axis: int, angle: float) -> NDArray[np.float64]:
    matrix = np.eye(3)
    i, j = [other for other in range(3) if other != axis]
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def two_labels() -> NDArray[np.uint8]:
    labels = np.zeros((12, 10, 8), np.uint8)
    labels[1:5, 1:5, 1:5] = 2
    labels[6:10, 6:9, 5:7] = 7
    return labels


def test_labels(tmp_path: Path) -> None:
    path = write_mask(tmp_path, two_labels(), AFFINES["RAS"])
    error = invalid(path)
    assert error.key == "mask_labels"
    assert "labels: 2, 7" in error.message
    assert "2, 7" in invalid(path, 3).message
    assert read_box(path, 7).region.extent_mm == pytest.approx((6.0, 6.0, 5.0))
    assert read_box(path, 2).region.extent_mm == pytest.approx((6.0, 8.0, 10.0))


def test_scaled_labels(tmp_path: Path) -> None:
    path = write_mask(tmp_path, two_labels(), AFFINES["RAS"], "m.nii")
    raw = bytearray(path.read_bytes())
    struct.pack_into("<2f", raw, 112, 0.5, 1.5)  # 0 -> 1.5: no label
    path.write_bytes(raw)
    assert invalid(path).key == "mask_format"
    struct.pack_into("<2f", raw, 112, 3.0, 0.0)
    path.write_bytes(raw)
    assert "labels: 6, 21" in invalid(path).message


def test_empty_mask(tmp_path: Path) -> None:
    assert invalid(write_mask(tmp_path, np.zeros((8, 8, 8), np.uint8), AFFINES["RAS"])).key == "mask_empty"


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -1.0, 1e30])
def test_masks_that_hold_no_labels(tmp_path: Path, value: float) -> None:
    labels = np.zeros((8, 8, 8), np.float32)
    labels[3, 3, 3] = value
    path = tmp_path / "mask.nii"
    nibabel.save(nibabel.Nifti1Image(labels, AFFINES["RAS"]), path)
    assert invalid(path).key == "mask_format"


@pytest.mark.parametrize(
    ("key", "format_", "offset", "values"),
    [
        ("mask_format", "<h", 70, (128,)),  # RGB
        ("mask_format", "<h", 72, (16,)),  # bits contradict the type
        ("mask_format", "<2h", 40, (4, 12)),  # four dimensions ...
        ("mask_format", "<B", 123, (3,)),  # micrometres
        ("mask_format", "<4s", 344, (b"ni1\0",)),  # two files
        ("mask_format", "<h", 42, (0,)),
        ("mask_limits", "<3h", 42, (4000, 4000, 4000)),
        ("mask_limits", "<h", 42, (5000,)),
        ("mask_damaged", "<h", 46, (9,)),  # more slices than there are
        ("mask_damaged", "<f", 108, (1e9,)),
        ("mask_orientation", "<2h", 252, (0, 0)),
        ("mask_orientation", "<f", 280, (float("nan"),)),
        ("mask_orientation", "<4f", 280, (0, 0, 0, 0)),
        ("mask_orientation", "<2hf", 252, (1, 0, 5.0)),  # no such quaternion
    ],
)
def test_mask_refusals(tmp_path: Path, key: str, format_: str, offset: int, values: tuple[Any, ...]) -> None:
    labels = np.zeros((12, 10, 8), np.uint8)
    labels[3:7, 3:7, 3:7] = 1
    path = write_mask(tmp_path, labels, AFFINES["LPS"], "mask.nii")
    raw = bytearray(path.read_bytes())
    if format_ == "<2h" and offset == 40:
        struct.pack_into("<h", raw, 48, 2)
    struct.pack_into(format_, raw, offset, *values)
    path.write_bytes(raw)
    assert invalid(path).key == key


def test_two_orientations_must_agree(tmp_path: Path) -> None:
    labels = np.zeros((12, 10, 8), np.uint8)
    labels[3:7, 3:7, 3:7] = 1
    image = nibabel.Nifti1Image(labels, AFFINES["LPS"])
    moved = AFFINES["LPS"].copy()
    image.set_qform(moved, code=1)
    nibabel.save(image, tmp_path / "same.nii")
    assert read_box(tmp_path / "same.nii", None).source == "nifti"
    moved[0, 3] += 1.0
    image.set_qform(moved, code=1)
    nibabel.save(image, tmp_path / "moved.nii")
    assert invalid(tmp_path / "moved.nii").key == "mask_orientation"


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_truncated_masks(tmp_path: Path, cut: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (32, 32, 16)).astype(np.uint8)
    for name in ("mask.nii", "mask.nii.gz"):
        path = write_mask(tmp_path, labels, AFFINES["RAS"], name)
        raw = path.read_bytes()
        path.write_bytes(raw[: -min(cut, len(raw) - 10)] if name.endswith("nii") else raw[: len(raw) // 2])
        assert invalid(path).key == "mask_damaged"


def test_a_gzip_bomb_costs_no_memory(tmp_path: Path) -> None:
    header = bytearray(write_mask(tmp_path, np.zeros((8, 8, 8), np.uint8), AFFINES["RAS"], "m.nii").read_bytes()[:352])
    struct.pack_into("<3h", header, 42, 1024, 1024, 2047)
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(bytes(header) + bytes(64 * 2**20)))
    tracemalloc.start()
    assert invalid(path).key == "mask_damaged"
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_masks_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "m.nii"
    if not path.exists():
        write_mask(tmp_path, two_labels(), AFFINES["RAS"], "m.nii")
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    mutant = tmp_path / "mutant"
    mutant.write_bytes(bytes(raw))
    try:
        read_box(mutant, 2)
    except BoxInvalid as error:
        assert error.hint  # noqa: PT017


# ---- fitting


def test_box_within_the_volume(tmp_path: Path) -> None:
    fitted = fit_box(box((-4, -5, 4), (3, 5.5, 12), frame_of_reference_uid=uid("frame")), phases(tmp_path))
    assert fitted.region == Region((-4, -5, 4), (3, 5.5, 12))
    assert set(fitted.by_phase) == {"NC", "ART", "PV", "DL"}
    assert (fitted.clipped_mm, fitted.warnings, fitted.source) == ((0.0, 0.0, 0.0), (), "json")


def test_box_partly_outside_is_clipped(tmp_path: Path) -> None:
    fitted = fit_box(box((-20, -5, 10), (0, 5, 30)), phases(tmp_path))
    assert fitted.region == Region((VOLUME.min[0], -5, 10), (0, 5, VOLUME.max[2]))
    assert fitted.clipped_mm == (11.5, 0.0, 11.25)
    assert [notice.key for notice in fitted.warnings] == ["box_clipped"]


def test_box_at_the_face_is_not_clipped_for_rounding(tmp_path: Path) -> None:
    region = Region((-8.503, 0, 0), (0, 11.2502, 10))
    fitted = fit_box(LesionBox(region, "json"), phases(tmp_path))
    assert (fitted.region, fitted.warnings) == (region, ())


@pytest.mark.parametrize("shift", [(30, 0, 0), (0, 0, -40), (15.0, 0, 0)])
def test_box_outside_is_16(tmp_path: Path, shift: tuple[float, float, float]) -> None:
    low, high = np.array([-5, -5, 5]) + shift, np.array([5, 5, 12]) + shift
    with pytest.raises(BoxInvalid, match="outside the volume scanned in phase NC"):
        fit_box(LesionBox(Region.of(low, high), "json"), phases(tmp_path))


def test_boxes_per_phase_are_held_to_the_study_too(tmp_path: Path) -> None:
    series = phases(tmp_path)
    region = Region((-4, -5, 4), (3, 5, 12))
    every = dict.fromkeys(series, region)
    with pytest.raises(BoxInvalid) as frame:
        fit_box(LesionBox(region, "json", by_phase=every, frame_of_reference_uid="9.9.9"), series)
    with pytest.raises(BoxInvalid) as name:
        fit_box(LesionBox(region, "json", by_phase={**every, "ARTERIAL": region}), series)
    assert (frame.value.key, name.value.key) == ("box_frame_of_reference", "box_phase_unknown")
    three = {phase: one for phase, one in series.items() if phase != "DL"}
    assert set(fit_box(LesionBox(region, "json", by_phase=every), three).by_phase) == set(three)


def test_box_is_clipped_to_what_all_phases_share(tmp_path: Path) -> None:
    series = phases(tmp_path)
    tags: dict[str, Any] = {"SeriesInstanceUID": uid("short"), "SeriesNumber": 9}
    write_series(tmp_path / "short", stored_values((4, 16, 16)), origin=(-8, -12, 5), **tags)
    series["PV"] = next(one for one in read_study(tmp_path).series if one.number == 9)
    fitted = fit_box(box((-4, -5, 0), (3, 5, 10)), series)
    assert fitted.region == Region((-4, -5, 3.75), (3, 5, 10))
    assert set(fitted.by_phase.values()) == {fitted.region}
    with pytest.raises(BoxInvalid, match="phase PV"):
        fit_box(box((-4, -5, -1), (3, 5, 3)), series)


def test_boxes_per_phase_are_clipped_on_their_own(tmp_path: Path) -> None:
    series = {phase: one for phase, one in phases(tmp_path).items() if phase in ("NC", "ART")}
    regions = {"NC": Region((-4, -5, 0), (3, 5, 10)), "ART": Region((-4, -5, 4), (3, 5, 22))}
    whole = Region((-4, -5, 0), (3, 5, 22))
    fitted = fit_box(LesionBox(whole, "json", by_phase=regions), series)
    assert fitted.by_phase == {"NC": regions["NC"], "ART": Region((-4, -5, 4), (3, 5, 18.75))}
    assert fitted.clipped_mm == (0.0, 0.0, 3.25)
    with pytest.raises(BoxInvalid, match="no box for phase ART"):
        fit_box(LesionBox(whole, "json", by_phase={"NC": regions["NC"]}), series)


def test_oblique_volume_has_corners_that_are_outside(tmp_path: Path) -> None:
    turn = np.cos(np.pi / 4)
    turned: dict[str, Any] = {"ImageOrientationPatient": [turn, turn, 0, -turn, turn, 0], "PixelSpacing": [2, 2]}
    series = phases(tmp_path, origin=(0, -20, 0), **turned)
    middle = np.array([0.0, 1.2, 9.0])
    assert fit_box(LesionBox(Region.of(middle - 3, middle + 3), "json"), series).clipped_mm == (0, 0, 0)
    corner = np.array([18.0, -17.0, 9.0])
    with pytest.raises(BoxInvalid, match="outside"):
        fit_box(LesionBox(Region.of(corner - 1.5, corner + 1.5), "json"), series)


# ---- frames of reference


def test_frames_that_differ_are_14_unless_boxes_come_per_phase(tmp_path: Path) -> None:
    series = phases(tmp_path)
    write_phases(tmp_path, ["PV"], FrameOfReferenceUID="1.2.3")
    series["PV"] = next(one for one in read_study(tmp_path).series if one.number == 4)
    region = Region((-4, -5, 4), (3, 5, 12))
    with pytest.raises(GeometryRefused) as caught:
        fit_box(LesionBox(region, "json"), series)
    assert caught.value.key == "frame_of_reference_differs"
    assert fit_box(LesionBox(region, "json", by_phase=dict.fromkeys(series, region)), series).region == region


def test_box_of_another_frame_is_16(tmp_path: Path) -> None:
    with pytest.raises(BoxInvalid) as caught:
        fit_box(box((-4, -5, 4), (3, 5, 12), frame_of_reference_uid="1.2.3"), phases(tmp_path))
    assert caught.value.key == "box_frame_of_reference"


def test_no_frame_needs_agreeing_geometry(tmp_path: Path) -> None:
    series = phases(tmp_path, FrameOfReferenceUID=None)
    lesion = box((-4, -5, 4), (3, 5, 12))
    assert [notice.key for notice in fit_box(lesion, series).warnings] == ["frame_of_reference_missing"]
    for change in ({"origin": (-4, -12, 0)}, {"PixelSpacing": [1.8, 1.2]}, {"origin": (-8, -12, 12)}):
        write_phases(tmp_path, ["PV"], FrameOfReferenceUID=None, **change)
        moved = {**series, "PV": next(one for one in read_study(tmp_path).series if one.number == 4)}
        with pytest.raises(GeometryRefused) as caught:
            fit_box(lesion, moved)
        assert caught.value.key == "frame_of_reference_missing"


# ---- masks against the study


def mask_affine(signs: tuple[int, int, int]) -> NDArray[np.float64]:
    """The grid of `write_series`, (i, j, k) along LPS x, y, z, times signs; RAS needs (-1, -1, 1)."""
    affine = np.diag([*np.array(signs) * [1.0, 1.5, 2.5], 1.0])
    affine[:3, 3] = np.array(signs) * [-8.0, -12.0, 0.0]
    return affine


def test_mask_and_json_give_the_same_box(tmp_path: Path) -> None:
    labels = np.zeros((16, 16, 8), np.uint8)
    labels[4:11, 5:12, 2:5] = 1
    series = phases(tmp_path / "study")
    region = fit_box(read_box(write_mask(tmp_path, labels, mask_affine((-1, -1, 1))), None), series).region
    np.testing.assert_allclose(region.min, [-4.5, -5.25, 3.75], atol=1e-5)
    np.testing.assert_allclose(region.max, [2.5, 5.25, 11.25], atol=1e-5)


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, 1), (-1, 1, 1), (-1, -1, -1)])
def test_mirrored_masks_are_refused(tmp_path: Path, signs: tuple[int, int, int]) -> None:
    """RAS and LPS confused, or z upside down: the box would still lie within the volume."""
    labels = np.zeros((40, 40, 8), np.uint8)
    labels[16:24, 16:24, 1:6] = 1
    affine = mask_affine(signs)
    for number in (2, 3):
        tags: dict[str, Any] = {"SeriesInstanceUID": uid("big", number), "SeriesNumber": number}
        write_series(tmp_path / "big" / str(number), stored_values((8, 40, 40)), **tags)
    series = dict(zip(("NC", "ART"), read_study(tmp_path / "big").series, strict=True))
    with pytest.raises(BoxInvalid) as caught:
        fit_box(read_box(write_mask(tmp_path, labels, affine), None), series)
    assert caught.value.key == "mask_mirrored"


# ---- coverage


def series_with(tmp_path: Path, *missing: int) -> Series:
    for index, path in enumerate(write_series(tmp_path, stored_values((20, 8, 8)), origin=(-4, -6, 0))):
        if index in missing:
            path.unlink()
    (series,) = read_study(tmp_path).series
    return series


def test_no_gap_no_notice(tmp_path: Path) -> None:
    assert check_coverage(series_with(tmp_path), Region((-3, -5, 5), (3, 5, 40))) == ()


@pytest.mark.parametrize(("z", "refused"), [(9.9, False), (10.1, True), (14.9, True), (15.1, False)])
def test_a_missing_slice_is_14_only_where_it_is_needed(tmp_path: Path, z: float, refused: bool) -> None:
    """Slice 5 at 12.5 mm is missing: nothing is known between 10 and 15 mm."""
    series = series_with(tmp_path, 5)
    region = Region((-3, -5, z), (3, 5, 40)) if z > 12.5 else Region((-3, -5, 2), (3, 5, z))
    if refused:
        with pytest.raises(GeometryRefused, match=r"5\.00 mm apart instead of 2\.50 mm") as caught:
            check_coverage(series, region)
        assert caught.value.key == "slices_missing"
    else:
        assert [notice.key for notice in check_coverage(series, region)] == ["slices_missing_elsewhere"]


def test_a_margin_beyond_the_volume_is_told(tmp_path: Path) -> None:
    (notice,) = check_coverage(series_with(tmp_path), Region((-3, -5, -4.25), (3, 5, 40)))
    assert notice.key == "margin_outside_volume"
    assert "3.0 mm" in notice.message
