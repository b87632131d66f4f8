from __future__ import annotations

import importlib
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from fourphase.runtime.box import fit_box, read_box
from fourphase.runtime.errors import BoxInvalid, MixedStudies
from fourphase.runtime.geometry import Region
from fourphase.runtime.series import Series
from fourphase.runtime.study import read_study
from tests.support.dicom import stored_values, uid, write_phases, write_series
from tests.support.segments import FOR_HIGHDICOM, contour, rewritten, write_rtstruct, write_seg

nibabel: Any = importlib.import_module("nibabel")  # its annotations are partial

SHAPE = (8, 16, 16)
#: Columns of 1 mm from x = -8, rows of 1.5 mm from y = -12, slices of 2.5 mm from z = 0: voxels 2:5, 4:9, 5:12.
EXPECTED = Region((-3.5, -6.75, 3.75), (3.5, 0.75, 11.25))


def images(folder: Path, shape: tuple[int, int, int] = SHAPE, **options: Any) -> list[Path]:
    return write_series(folder / "images", stored_values(shape), **{**FOR_HIGHDICOM, **options})


def lesion() -> NDArray[np.uint8]:
    """A diamond in its slices, so that rows and columns have different ends."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[3, 4:9, 8] = mask[3, 6, 5:12] = mask[2:5, 6, 8] = 1
    return mask


def seg(folder: Path, mask: NDArray[Any] | None = None, **options: Any) -> Path:
    mask = lesion() if mask is None else mask
    kind = options.get("kind", "BINARY")
    return write_seg(
        folder / "seg.dcm", images(folder), mask.astype(float) if kind == "FRACTIONAL" else mask, **options
    )


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


# ---- kinds and encodings


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        *((kind, ExplicitVRLittleEndian) for kind in ("BINARY", "FRACTIONAL", "LABELMAP")),
        *((kind, ImplicitVRLittleEndian) for kind in ("BINARY", "FRACTIONAL", "LABELMAP")),
        *((kind, DeflatedExplicitVRLittleEndian) for kind in ("BINARY", "FRACTIONAL", "LABELMAP")),
        *((kind, RLELossless) for kind in ("FRACTIONAL", "LABELMAP")),
    ],
)
@pytest.mark.parametrize("omit", [True, False])
def test_every_encoding_gives_the_voxels_with_their_halves(tmp_path: Path, kind: str, syntax: str, omit: bool) -> None:
    native = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
    path = seg(tmp_path, kind=kind, transfer_syntax=native, omit_empty_frames=omit)
    if syntax != native:
        dataset = dcmread(path)
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        dataset.save_as(path)
    read = read_box(path, None)
    assert_same(read.region, EXPECTED)
    assert (read.source, read.frame_of_reference_uid, read.study_uid) == ("dicom-seg", uid("frame"), uid("study"))
    assert (read.series_uids, read.warnings) == ((uid("series"),), ())


def test_the_name_means_nothing(tmp_path: Path) -> None:
    assert_same(read_box(seg(tmp_path).rename(tmp_path / "box.nii.gz"), None).region, EXPECTED)


def test_a_segmentation_and_a_nifti_mask_give_the_same_box(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.5, 2.5, 1.0])
    affine[:3, 3] = [8, 12, 0]
    nibabel.save(nibabel.Nifti1Image(lesion().T, affine), tmp_path / "mask.nii.gz")
    assert_same(read_box(seg(tmp_path), None).region, read_box(tmp_path / "mask.nii.gz", None).region, 1e-4)


def test_odd_frames_are_packed_without_a_gap(tmp_path: Path) -> None:
    """7 x 5 voxels: frames start within bytes; a single voxel must be found in each."""
    paths = images(tmp_path, (8, 7, 5))
    for slice_, row, column in [(0, 0, 0), (3, 6, 4), (7, 2, 1)]:
        mask = np.zeros((8, 7, 5), np.uint8)
        mask[slice_, row : row + 2, column : column + 2] = 1
        mask[slice_, max(row - 1, 0), max(column - 1, 0)] = 1
        rows, columns = np.nonzero(mask[slice_])
        region = read_box(write_seg(tmp_path / "seg.dcm", paths, mask, omit_empty_frames=False), None).region
        low = (-8 + columns.min() - 0.5, -12 + 1.5 * rows.min() - 0.75, 2.5 * slice_ - 1.25)
        high = (-8 + columns.max() + 0.5, -12 + 1.5 * rows.max() + 0.75, 2.5 * slice_ + 1.25)
        assert_same(region, Region(low, high))


def test_wide_labels(tmp_path: Path) -> None:
    """16-bit label maps, uncompressed and by pydicom's RLE encoder, whose first byte plane is the high one."""
    for syntax in (ExplicitVRLittleEndian, RLELossless):
        dataset = dcmread(seg(tmp_path, kind="LABELMAP", omit_empty_frames=False))
        cells = np.where(dataset.pixel_array == 1, 258, 513).astype("<u2")
        dataset.SegmentSequence[-1].SegmentNumber = 258
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelData = 15, cells.tobytes()
        if syntax == RLELossless:
            dataset.compress(RLELossless)
        dataset.save_as(tmp_path / "wide.dcm")
        assert_same(read_box(tmp_path / "wide.dcm", 258).region, EXPECTED)


def test_fractional_counts_from_half_of_the_largest_value_on(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE)
    mask[2:5, 4:9, 5:12] = 0.5
    mask[2:5, 1:14, 1:14] = np.maximum(mask[2:5, 1:14, 1:14], 99 / 200)
    path = write_seg(tmp_path / "seg.dcm", images(tmp_path), mask, kind="FRACTIONAL", max_fractional_value=200)
    assert set(np.unique(dcmread(path).pixel_array)) == {0, 99, 100}
    assert_same(read_box(path, None).region, EXPECTED)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_orientation_and_spacing(tmp_path: Path, data: st.DataObject) -> None:
    """Against the corners of every voxel, computed one by one."""
    angles = [data.draw(st.floats(-3.1, 3.1)) for _ in range(3)]
    turn = np.linalg.qr(rotation(0, angles[0]) @ rotation(1, angles[1]) @ rotation(2, angles[2]))[0]
    row, column = turn[:, 0], turn[:, 1]
    dy, dx, dz = (data.draw(st.floats(0.6, 5)) for _ in range(3))
    step = np.cross(row, column) * dz * data.draw(st.sampled_from([-1, 1]))
    paths = images(
        tmp_path,
        (4, 9, 7),
        origin=[data.draw(st.integers(-300, 300)) / 7 for _ in range(3)],
        step=step,
        ImageOrientationPatient=[f"{value:.10f}" for value in (*row, *column)],
        PixelSpacing=[f"{dy:.10f}", f"{dx:.10f}"],
        SliceThickness="9",
    )
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((4, 9, 7)) > 0.9
    mask[1:3, 2:5, 3:5] = True
    region = read_box(write_seg(tmp_path / "seg.dcm", paths, mask.astype(np.uint8)), None).region
    signs = np.array([[i >> axis & 1 for axis in range(3)] for i in range(8)]) - 0.5
    corners = []
    for k, j, i in np.argwhere(mask):
        origin = np.array(dcmread(paths[k]).ImagePositionPatient, dtype=float)
        around = signs @ np.stack([row * dx, column * dy, step])
        corners.append(origin + i * dx * row + j * dy * column + around)
    points = np.concatenate(corners)
    assert_same(region, Region.of(points.min(axis=0), points.max(axis=0)), 1e-4)


def rotation(axis: int, angle: float) -> NDArray[np.float64]:
    matrix = np.eye(3)
    i, j = [other for other in range(3) if other != axis]
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


# ---- several segments


def several(folder: Path, names: tuple[str, ...], **options: Any) -> Path:
    """One segment per name, the first as `lesion`, the others elsewhere."""
    masks = np.zeros((*SHAPE, len(names)), np.uint8)
    masks[..., 0] = lesion()
    for index in range(1, len(names)):
        masks[:, 1:5, 2 * index : 2 * index + 2, index] = 1
    return write_seg(folder / "seg.dcm", images(folder), masks, names=names, **options)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_segment_is_chosen_by_number_or_name(tmp_path: Path, kind: str) -> None:
    """Sparse: `lesion` has frames on three slices, the other segment on all."""
    masks = np.zeros((*SHAPE, 2), np.uint8)
    masks[..., 0], masks[:, 1:3, 1:4, 1] = lesion(), 1
    path = write_seg(tmp_path / "seg.dcm", images(tmp_path), masks, kind=kind, names=("HCC Läsion", "liver"))
    for choice in ((1, None), (None, "HCC Läsion"), (None, "hcc läsion "), (1, "HCC LÄSION")):
        assert_same(read_box(path, *choice).region, EXPECTED)
    assert_same(read_box(path, 2).region, Region((-7.5, -11.25, -1.25), (-4.5, -8.25, 18.75)))


def test_an_unclear_choice_is_listed_by_number_and_code(tmp_path: Path) -> None:
    path = several(tmp_path, ("MARKER a", "MARKER b", "marker B"))
    for choice in ((None, None), (4, None), (None, "other"), (2, "MARKER a"), (None, "marker b")):
        error = invalid(path, *choice)
        assert error.key == "mask_labels"
        assert {row["type"] for row in error.table} == {"SCT 4147007"}
    assert [row["number"] for row in invalid(path).table] == ["1", "2", "3"]
    assert [row["number"] for row in invalid(path, None, "MARKER B").table] == ["2", "3"]
    assert_same(read_box(path, None, "MARKER a").region, EXPECTED)


def test_codes_that_may_be_text_are_not_shown(tmp_path: Path) -> None:
    dataset = dcmread(several(tmp_path, ("a", "b")))
    for item, code in zip(dataset.SegmentSequence, (("MARKER", "SCT"), ("123", "MARKER")), strict=True):
        coded = item.SegmentedPropertyTypeCodeSequence[0]
        coded.CodeValue, coded.CodingSchemeDesignator = code
    dataset.save_as(tmp_path / "seg.dcm")
    assert {row["type"] for row in invalid(tmp_path / "seg.dcm").table} == {"no standard code"}


def test_names_need_a_file_that_has_them(tmp_path: Path) -> None:
    (tmp_path / "box.json").write_text("{}")
    assert invalid(tmp_path / "box.json", None, "lesion").key == "roi_without_names"
    nibabel.save(nibabel.Nifti1Image(lesion(), np.eye(4)), tmp_path / "mask.nii.gz")
    assert invalid(tmp_path / "mask.nii.gz", None, "lesion").key == "roi_without_names"


# ---- the thickness of slices


def test_the_smallest_distance_of_frames_is_that_of_the_slices(tmp_path: Path) -> None:
    """Two spots, 12.5 mm apart, with every frame between left out; of each, two slices."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[[0, 1, 6, 7], 4:9, 5:12] = 1
    region = read_box(seg(tmp_path, mask), None).region
    assert_same(region, Region((-3.5, -6.75, -1.25), (3.5, 0.75, 18.75)))


def test_another_segments_frames_tell_the_distance(tmp_path: Path) -> None:
    masks = np.zeros((*SHAPE, 2), np.uint8)
    masks[3, 4:9, 5:12, 0] = masks[:, 1:3, 1:4, 1] = 1
    path = write_seg(tmp_path / "seg.dcm", images(tmp_path, SliceThickness="1"), masks, names=("a", "b"))
    read = read_box(path, 1)
    assert_same(read.region, Region((-3.5, -6.75, 6.25), (3.5, 0.75, 8.75)))
    assert [notice.key for notice in read.warnings] == ["box_thickness_unsure"]


def test_all_frames_count_on_one_grid(tmp_path: Path) -> None:
    """The lesion shows on every other slice, the other segment on all."""
    masks = np.zeros((*SHAPE, 2), np.uint8)
    masks[[1, 3, 5], 4:9, 5:12, 0] = masks[:, 1:3, 1:4, 1] = 1
    path = write_seg(tmp_path / "seg.dcm", images(tmp_path), masks, names=("a", "b"))
    assert_same(read_box(path, 1).region, Region((-3.5, -6.75, 1.25), (3.5, 0.75, 13.75)))


def test_grids_that_do_not_fit_are_not_mixed(tmp_path: Path) -> None:
    """The second segment's frames are moved by 1 mm, as if drawn on another series."""
    masks = np.zeros((*SHAPE, 2), np.uint8)
    masks[..., 0], masks[:, 1:3, 1:4, 1] = lesion(), 1
    dataset = dcmread(write_seg(tmp_path / "seg.dcm", images(tmp_path), masks, names=("a", "b")))
    for item in dataset.PerFrameFunctionalGroupsSequence:
        if item.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2:
            item.PlanePositionSequence[0].ImagePositionPatient[2] += 1.0
    dataset.save_as(tmp_path / "seg.dcm")
    assert_same(read_box(tmp_path / "seg.dcm", 1).region, EXPECTED)


def test_one_slice_is_as_thick_as_it_says(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3, 4:9, 5:12] = 1
    path = seg(tmp_path, mask)
    read = read_box(path, None)
    assert_same(read.region, Region((-3.5, -6.75, 6.25), (3.5, 0.75, 8.75)))
    assert [notice.key for notice in read.warnings] == ["box_thickness_claimed"]
    dataset = dcmread(path)
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness
    dataset.save_as(path)
    assert invalid(path).key == "mask_geometry"


def test_frames_far_apart_are_no_slices(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[[0, 6], 4:9, 5:12] = 1
    read = read_box(seg(tmp_path, mask), None)
    assert_same(read.region, Region((-3.5, -6.75, -1.25), (3.5, 0.75, 16.25)))
    assert [notice.key for notice in read.warnings] == ["box_thickness_claimed"]


# ---- refusals


def test_empty_segments(tmp_path: Path) -> None:
    assert invalid(seg(tmp_path, np.zeros(SHAPE, np.uint8), omit_empty_frames=False)).key == "mask_empty"
    dataset = dcmread(seg(tmp_path))
    dataset.SegmentSequence[0].SegmentNumber = 9
    dataset.save_as(tmp_path / "no_frames.dcm")
    assert invalid(tmp_path / "no_frames.dcm").key == "mask_empty"
    assert invalid(rewritten(seg(tmp_path), tmp_path / "none.dcm", "SegmentSequence")).key == "mask_empty"


@pytest.mark.parametrize(
    ("key", "elements"),
    [
        ("mask_tiled", {"TotalPixelMatrixColumns": 4096}),
        ("mask_format", {"BitsAllocated": 8, "BitsStored": 8}),
        ("mask_format", {"SegmentationType": "FRACTIONAL"}),
        ("mask_format", {"SegmentationType": "MARKER"}),
        ("mask_format", {"SamplesPerPixel": 3}),
        ("mask_format", {"PixelRepresentation": 1}),
        ("mask_limits", {"Rows": 4097}),
        ("mask_limits", {"NumberOfFrames": 20_001}),
        ("mask_damaged", {"NumberOfFrames": 4}),
        ("mask_damaged", {"NumberOfFrames": 0}),
        ("mask_damaged", {"Rows": 17}),
        ("mask_damaged", {"Columns": 8}),
        ("box_format", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.5"}),
    ],
)
def test_refusals(tmp_path: Path, key: str, elements: dict[str, Any]) -> None:
    assert invalid(rewritten(seg(tmp_path), tmp_path / "changed.dcm", **elements)).key == key


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_other_transfer_syntaxes_are_refused(tmp_path: Path, syntax: str) -> None:
    """RLE is no encoding of single bits."""
    dataset = dcmread(seg(tmp_path))
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate([b"\0" * 64] * 3)
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.save_as(tmp_path / "changed.dcm")
    error = invalid(tmp_path / "changed.dcm")
    assert error.key == ("mask_format" if syntax == RLELossless else "mask_syntax")
    assert syntax == RLELossless or syntax in error.message


def shared(dataset: Dataset) -> Any:
    return dataset.SharedFunctionalGroupsSequence[0]


def frame(dataset: Dataset, index: int = 1) -> Any:
    return dataset.PerFrameFunctionalGroupsSequence[index]


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("mask_geometry", lambda d: frame(d).__delattr__("PlanePositionSequence")),
        ("mask_geometry", lambda d: shared(d).__delattr__("PixelMeasuresSequence")),
        ("mask_geometry", lambda d: shared(d).__delattr__("PlaneOrientationSequence")),
        ("mask_geometry", lambda d: setattr(frame(d).PlanePositionSequence[0], "ImagePositionPatient", ["1e9", 0, 0])),
        ("mask_geometry", lambda d: setattr(shared(d).PixelMeasuresSequence[0], "PixelSpacing", [0, 1])),
        ("mask_geometry", lambda d: setattr(shared(d).PixelMeasuresSequence[0], "PixelSpacing", [-1, 1])),
        ("mask_geometry", lambda d: shared(d).PixelMeasuresSequence.append(Dataset())),
        (
            "mask_orientation",
            lambda d: setattr(shared(d).PlaneOrientationSequence[0], "ImageOrientationPatient", [1, 0, 0, 0.7, 0.7, 0]),
        ),
        ("mask_damaged", lambda d: shared(d).__delattr__("SegmentIdentificationSequence")),
        ("mask_damaged", lambda d: d.PerFrameFunctionalGroupsSequence.pop()),
        ("mask_damaged", lambda d: d.SharedFunctionalGroupsSequence.append(Dataset())),
        ("mask_damaged", lambda d: d.SegmentSequence[0].__delattr__("SegmentNumber")),
        ("mask_damaged", lambda d: d.__delattr__("PixelData")),
        ("mask_tiled", lambda d: setattr(frame(d), "PlanePositionSlideSequence", [Dataset()])),
    ],
)
def test_impossible_geometry(tmp_path: Path, key: str, change: Any) -> None:
    dataset = dcmread(seg(tmp_path))
    change(dataset)
    dataset.save_as(tmp_path / "changed.dcm")
    assert invalid(tmp_path / "changed.dcm").key == key


def test_frames_that_are_not_parallel(tmp_path: Path) -> None:
    dataset = dcmread(seg(tmp_path))
    turned = Dataset()
    turned.ImageOrientationPatient = [0, 1, 0, -1, 0, 0]
    frame(dataset).PlaneOrientationSequence = [turned]
    dataset.save_as(tmp_path / "turned.dcm")
    assert invalid(tmp_path / "turned.dcm").key == "mask_orientation"


def test_a_position_that_is_no_number(tmp_path: Path) -> None:
    path = seg(tmp_path)
    raw = path.read_bytes()
    assert raw.count(b"-8\\-12\\7.5") == 1
    path.write_bytes(raw.replace(b"-8\\-12\\7.5", b"-8\\-12\\NaN"))
    assert invalid(path).key == "mask_geometry"


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_truncated_pixels(tmp_path: Path, kind: str) -> None:
    path = seg(tmp_path, kind=kind, transfer_syntax=ExplicitVRLittleEndian if kind == "BINARY" else RLELossless)
    raw = path.read_bytes()
    for cut in (2, 40, len(raw) // 2, len(raw) - 200):
        path.write_bytes(raw[:-cut])
        assert invalid(path).key == "mask_damaged"


def test_claims_cost_no_memory(tmp_path: Path) -> None:
    """Runs of 100 bytes that would unpack to 50,000 times their frame, and 48 million claimed voxels."""
    dataset = dcmread(seg(tmp_path, kind="LABELMAP", transfer_syntax=RLELossless))
    head = np.zeros(16, "<u4")
    head[:2] = 1, 64
    dataset.PixelData = encapsulate([head.tobytes() + b"\x9d\x01" * 2**17] * dataset.NumberOfFrames)
    dataset.save_as(tmp_path / "bomb.dcm")
    huge = rewritten(seg(tmp_path), tmp_path / "huge.dcm", Rows=4096, Columns=4096)
    tracemalloc.start()
    for path in (tmp_path / "bomb.dcm", huge):
        assert invalid(path).key == "mask_damaged"
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


def test_flipped_bytes_end_in_an_error_or_a_box(tmp_path: Path) -> None:
    rng = random.Random(5)
    native = seg(tmp_path).read_bytes()
    packed = seg(tmp_path, kind="LABELMAP", transfer_syntax=RLELossless).read_bytes()
    target = tmp_path / "mutant.dcm"
    refused = 0
    for number in range(240):
        raw = bytearray(native if number % 2 else packed)
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        target.write_bytes(raw[: rng.randrange(len(raw))] if number % 10 == 0 else raw)
        started = time.perf_counter()
        try:
            read_box(target, 1)
        except BoxInvalid:
            refused += 1
        assert time.perf_counter() - started < 2
    assert refused > 24


# ---- against the study


def phases(folder: Path, **elements: Any) -> tuple[dict[str, Series], dict[str, list[Path]]]:
    written = write_phases(folder / "study", **{**FOR_HIGHDICOM, **elements})
    return dict(zip(("NC", "ART", "PV", "DL"), read_study(folder / "study").series, strict=True)), written


def test_the_phase_it_was_drawn_on(tmp_path: Path) -> None:
    series, written = phases(tmp_path, PatientID="Müller-7")
    fitted = fit_box(read_box(write_seg(tmp_path / "seg.dcm", written["PV"], lesion()), None), series)
    assert_same(fitted.region, EXPECTED)
    assert (fitted.source, fitted.drawn_on, fitted.warnings) == ("dicom-seg", ("PV",), ())


def test_drawn_on_a_series_that_is_no_phase(tmp_path: Path) -> None:
    series, written = phases(tmp_path)
    path = write_seg(tmp_path / "seg.dcm", written["PV"], lesion())
    del series["PV"]
    fitted = fit_box(read_box(path, None), series)
    assert [notice.key for notice in fitted.warnings] == ["box_drawn_elsewhere"]
    bare = rewritten(path, tmp_path / "bare.dcm", "FrameOfReferenceUID", "ReferencedSeriesSequence")
    notices = fit_box(read_box(bare, None), series).warnings
    assert [notice.key for notice in notices] == ["box_frame_of_reference_missing"]


@pytest.mark.parametrize(
    ("error", "key", "change"),
    [
        (MixedStudies, "box_of_another_patient", {"PatientID": "MARKER-OTHER"}),
        (MixedStudies, "box_of_another_study", {"StudyInstanceUID": "1.2.3"}),
        (BoxInvalid, "box_frame_of_reference", {"FrameOfReferenceUID": "1.2.3"}),
    ],
)
def test_a_lesion_of_someone_else(tmp_path: Path, error: type[Exception], key: str, change: dict[str, Any]) -> None:
    series, written = phases(tmp_path)
    path = write_seg(tmp_path / "seg.dcm", written["PV"], lesion())
    box = read_box(rewritten(path, tmp_path / "other.dcm", **change), None)
    assert "MARKER" not in repr(box)
    with pytest.raises(error) as caught:
        fit_box(box, series)
    assert getattr(caught.value, "key", "") == key
    assert "MARKER" not in str(caught.value)


def test_anonymised_identifiers_contradict_nothing(tmp_path: Path) -> None:
    series, written = phases(tmp_path)
    path = write_seg(tmp_path / "seg.dcm", written["PV"], lesion())
    empty = rewritten(path, tmp_path / "empty.dcm", PatientID="", StudyInstanceUID="")
    assert_same(fit_box(read_box(empty, None), series).region, EXPECTED)


def test_lesions_within_the_study_folder_disturb_nothing(tmp_path: Path) -> None:
    _, written = phases(tmp_path)
    before = read_study(tmp_path / "study")
    write_seg(tmp_path / "study" / "seg.dcm", written["PV"], lesion())
    square = np.array([[0, 0, 5], [5, 0, 5], [5, 5, 5.0]])
    write_rtstruct(tmp_path / "study" / "rt.dcm", {"lesion": [contour(square)] * 2000}, undefined=True)
    after = read_study(tmp_path / "study")
    assert [series.uid for series in after.series] == [series.uid for series in before.series]
    assert (after.skipped, after.warnings) == ({"not_ct": 2}, ())
