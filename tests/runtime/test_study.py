from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from fourphase.runtime import elements
from fourphase.runtime.box import check_coverage
from fourphase.runtime.dicom_file import HEAD_BYTES, quiet_pydicom
from fourphase.runtime.errors import FourphaseError, GeometryRefused, InputMissing, MixedStudies, NoUsableCT
from fourphase.runtime.geometry import Region, SeriesGeometry
from fourphase.runtime.headers import Findings, read_slice_headers
from fourphase.runtime.pixels import read_hu
from fourphase.runtime.preprocess import VoxelWindow
from fourphase.runtime.series import Series
from fourphase.runtime.study import Study, read_study
from tests.support.dicom import file_bytes, slice_dataset, stored_values, uid, write_phases, write_series


def only_series(study: Study) -> Series:
    assert len(study.series) == 1
    return study.series[0]


def keys(series: Series) -> set[str]:
    return {notice.key for notice in series.warnings}


# ---- the folder


def test_missing_folder_is_10(tmp_path: Path) -> None:
    with pytest.raises(InputMissing) as caught:
        read_study(tmp_path / "MARKER")
    assert "MARKER" not in caught.value.message + caught.value.hint


def test_file_instead_of_folder_is_10(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputMissing, match="not a folder"):
        read_study(tmp_path / "file")


def test_empty_folder_and_text_files_are_11(tmp_path: Path) -> None:
    with pytest.raises(NoUsableCT, match="no files"):
        read_study(tmp_path)
    (tmp_path / "MARKER.txt").write_text("text" * 100)
    (tmp_path / "empty").touch()
    with pytest.raises(NoUsableCT, match="not_dicom 2") as caught:
        read_study(tmp_path)
    assert "MARKER" not in caught.value.message


def test_walks_nested_folders_and_follows_no_links(tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_series(study / "a" / "b" / "c", stored_values((4, 8, 8)))
    elsewhere = tmp_path / "elsewhere"
    write_series(elsewhere, stored_values((4, 8, 8)), SeriesInstanceUID=uid("other"))
    (study / "link").symlink_to(elsewhere)
    (study / "file_link").symlink_to(next(elsewhere.iterdir()))
    os.mkfifo(study / "fifo")
    read = read_study(study)
    assert len(only_series(read).slices) == 4
    assert read.skipped == {"symlink": 2, "special_file": 1}


def test_names_and_order_of_files_mean_nothing(tmp_path: Path) -> None:
    values = stored_values((5, 8, 8))
    write_series(tmp_path / "one", values)
    paths = write_series(tmp_path / "two", values)
    for path, name in zip(paths, ["z.txt", "DICOMDIR", "0", "b.jpg", "ä"], strict=True):
        path.rename(tmp_path / "two" / name)
    first, second = only_series(read_study(tmp_path / "one")), only_series(read_study(tmp_path / "two"))
    assert [one.sop_instance_uid for one in first.slices] == [one.sop_instance_uid for one in second.slices]


def test_unreadable_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_series(tmp_path, stored_values((4, 8, 8)))
    real = os.open

    def refuse(path: Path, flags: int) -> int:
        if Path(path) == paths[-1]:
            raise PermissionError
        return real(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    study = read_study(tmp_path)
    assert study.skipped == {"unreadable": 1}
    assert [notice.key for notice in study.warnings] == ["files_skipped"]


# ---- what is no CT slice


@pytest.mark.parametrize(
    ("reason", "elements"),
    [
        ("not_ct", {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}),
        ("not_ct", {"Modality": "PT"}),
        ("secondary_capture", {"SOPClassUID": SecondaryCaptureImageStorage}),
        ("secondary_capture", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
        ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("derived", {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MPR"]}),
        ("derived", {"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE", "MIP"]}),
        ("colour", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
        ("colour", {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("multi_frame", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1", "NumberOfFrames": 1}),
        ("multi_frame", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.2", "NumberOfFrames": 1}),
        ("multi_frame", {"NumberOfFrames": 2}),
        ("not_hounsfield", {"RescaleType": "Z_EFF"}),
        ("no_geometry", {"ImagePositionPatient": None}),
        ("no_geometry", {"ImageOrientationPatient": None}),
        ("no_geometry", {"PixelSpacing": None}),
        ("no_geometry", {"Rows": None}),
    ],
)
def test_skips_with_the_reason(tmp_path: Path, reason: str, elements: dict[str, Any]) -> None:
    write_series(tmp_path / "good", stored_values((3, 8, 8)))
    write_series(tmp_path / "other", stored_values((2, 8, 8)), SeriesInstanceUID=uid("other"), **elements)
    study = read_study(tmp_path)
    assert len(only_series(study).slices) == 3
    assert study.skipped == {reason: 2}


def test_frames_without_a_place_are_told(tmp_path: Path) -> None:
    """CT Image Storage of several frames but no functional groups: nobody knows where they lie."""
    write_series(tmp_path, stored_values((3, 8, 8)))
    write_series(tmp_path / "many", stored_values((1, 8, 8)), NumberOfFrames=5, SeriesInstanceUID=uid("many"))
    assert read_study(tmp_path).warnings[0].message.endswith("multi_frame 1")


def test_derived_axial_slices_are_kept(tmp_path: Path) -> None:
    """Lossless recompression and anonymisers write DERIVED too."""
    write_series(tmp_path, stored_values((3, 8, 8)), ImageType=["DERIVED", "PRIMARY", "AXIAL"])
    assert len(only_series(read_study(tmp_path)).slices) == 3


def test_a_single_slice_is_no_series(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((1, 8, 8)))
    with pytest.raises(NoUsableCT, match="single_slice 1"):
        read_study(tmp_path)


def test_bolus_tracking_at_one_position_is_no_series(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((5, 8, 8)), step=(0, 0, 0), AcquisitionNumber=lambda index: index)
    with pytest.raises(NoUsableCT, match="single_slice 5"):
        read_study(tmp_path)


def test_header_that_ends_before_its_pixels_is_skipped(tmp_path: Path) -> None:
    paths = write_series(tmp_path, stored_values((4, 8, 8)))
    raw = paths[0].read_bytes()
    paths[0].write_bytes(raw[: raw.index(b"\xe0\x7f\x10\x00")])
    study = read_study(tmp_path)
    assert study.skipped == {"no_pixel_data": 1}
    assert study.warnings[0].key == "files_skipped"


def test_real_dicomdir_is_skipped_by_class(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((3, 8, 8)))
    source = get_testdata_file("DICOMDIR", read=False)
    assert source is not None
    (tmp_path / "renamed").write_bytes(Path(str(source)).read_bytes())
    assert read_study(tmp_path).skipped == {"dicomdir": 1}


# ---- encodings


@pytest.mark.parametrize("preamble", [True, False])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_files_without_preamble_are_found(tmp_path: Path, syntax: str, preamble: bool) -> None:
    for index, plane in enumerate(stored_values((3, 8, 8))):
        dataset = slice_dataset(plane, (0, 0, index))
        (tmp_path / str(index)).write_bytes(file_bytes(dataset, syntax, preamble=preamble))
    series = only_series(read_study(tmp_path))
    assert len(series.slices) == 3
    assert series.slices[0].pixels.transfer_syntax == syntax


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_big_endian_and_deflated_headers(tmp_path: Path, syntax: str) -> None:
    write_series(tmp_path, stored_values((3, 8, 10)), transfer_syntax=syntax, PixelPaddingValue=7)
    series = only_series(read_study(tmp_path))
    header = series.slices[0]
    assert (header.rows, header.columns, header.pixels.padding) == (8, 10, (7, 7))
    assert header.pixels.transfer_syntax == syntax


def test_deflate_bomb_is_bounded(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((3, 8, 8)))
    bomb = slice_dataset(np.zeros((4000, 8000), np.uint16), (0, 0, 0), SOPInstanceUID=uid("bomb"))
    (tmp_path / "bomb").write_bytes(file_bytes(bomb, DeflatedExplicitVRLittleEndian))
    assert (tmp_path / "bomb").stat().st_size < 200_000
    assert read_study(tmp_path).skipped == {"over_limits": 1}


def test_long_header_is_read_beyond_the_head(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((3, 8, 8)), PatientComments="x" * 10_000, ImageComments="y" * 10_000)
    write_series(
        tmp_path / "longer",
        stored_values((3, 8, 8)),
        SeriesInstanceUID=uid("longer"),
        LookupTableIDs=None,
        EncapsulatedDocument=b"\0" * (2 * HEAD_BYTES),
    )
    study = read_study(tmp_path)
    assert [len(series.slices) for series in study.series] == [3, 3]


def test_real_big_endian_and_compressed_headers_are_read() -> None:
    """Files that ship with pydicom: CT of several vendors, some with a group length before the pixels."""
    folder = Path(str(get_testdata_file("CT_small.dcm", read=False))).parent / "dicomdirtests" / "98892001"
    study = read_study(folder)
    assert {series.number: len(series.slices) for series in study.series} == {5: 5}
    assert study.skipped["localizer"] == 2


@pytest.mark.parametrize(
    ("charset", "description"),
    [
        ("ISO_IR 192", "Spätphase"),
        ("ISO_IR 100", "Spätphase"),
        ("GB18030", "动脉期"),
        ("ISO_IR 192", "動脈相"),
        (["", "ISO 2022 IR 87"], "動脈相"),
        (["", "ISO 2022 IR 149"], "동맥기"),
    ],
)
def test_descriptions_in_their_character_set(tmp_path: Path, charset: str | list[str], description: str) -> None:
    write_series(tmp_path, stored_values((2, 8, 8)), SpecificCharacterSet=charset, SeriesDescription=description)
    assert only_series(read_study(tmp_path)).tags.description == description


@pytest.mark.parametrize("charset", ["ISO_IR 999", "", "GB18030"])
def test_character_set_trouble_stops_nothing(tmp_path: Path, charset: str) -> None:
    for path in write_series(tmp_path, stored_values((2, 8, 8)), SeriesDescription="Spätphase"):
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"ISO_IR 100", charset.encode().ljust(10)))
    assert len(only_series(read_study(tmp_path)).slices) == 2


def test_nothing_is_warned_or_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = write_series(tmp_path, stored_values((3, 8, 8)), SeriesNumber=3)
    raw = paths[0].read_bytes()
    paths[0].write_bytes(raw.replace(b"ISO_IR 100", b"MARKER_CS "))
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        read_study(tmp_path)
    assert not caught
    assert not caplog.records


# ---- one patient, one study


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID"])
def test_two_patients_or_studies_are_17(tmp_path: Path, keyword: str) -> None:
    write_phases(tmp_path, ["NC", "ART"])
    write_phases(tmp_path, ["PV"], **{keyword: "1.2.3.777"})
    with pytest.raises(MixedStudies) as caught:
        read_study(tmp_path)
    assert "777" not in caught.value.message + caught.value.hint


def test_a_localizer_of_another_patient_is_ignored(tmp_path: Path) -> None:
    write_series(tmp_path / "a", stored_values((3, 8, 8)))
    write_series(
        tmp_path / "b",
        stored_values((3, 8, 8)),
        PatientID="other",
        SeriesInstanceUID=uid("b"),
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    assert len(read_study(tmp_path).series) == 1


def test_empty_uids_fall_back_to_folder_and_grid(tmp_path: Path) -> None:
    anonymous: dict[str, Any] = {"StudyInstanceUID": "", "SeriesInstanceUID": "", "PatientID": "", "SeriesNumber": None}
    write_series(tmp_path / "a", stored_values((4, 8, 8)), **anonymous)
    write_series(tmp_path / "b", stored_values((5, 8, 8), 1), **anonymous)
    write_series(tmp_path / "b", stored_values((3, 8, 8), 2), name="X", PixelSpacing=[2, 2], **anonymous)
    study = read_study(tmp_path)
    assert sorted(len(series.slices) for series in study.series) == [3, 4, 5]
    assert all(series.problem is None for series in study.series)


def test_uids_that_are_no_uids_count_as_empty(tmp_path: Path) -> None:
    """They would be printed, and may be names."""
    for path in write_series(tmp_path, stored_values((3, 8, 8)), SeriesInstanceUID="1.22.333"):
        path.write_bytes(path.read_bytes().replace(b"1.22.333", b"MARKER^A"))
    assert only_series(read_study(tmp_path)).uid == ""


def test_study_digest_ignores_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_series(tmp_path / name, stored_values((4, 8, 8)), name=name, StudyInstanceUID="")
    first, second = read_study(tmp_path / "a").uid, read_study(tmp_path / "b").uid
    assert first == second != ""
    write_series(tmp_path / "c", stored_values((4, 8, 8), 1), StudyInstanceUID="")
    assert read_study(tmp_path / "c").uid != first


# ---- series


@pytest.mark.parametrize("step", [(0, 0, 2.5), (0, 0, -2.5)])
def test_sorted_by_position_not_by_number(tmp_path: Path, step: tuple[float, float, float]) -> None:
    write_series(tmp_path, stored_values((6, 8, 8)), step=step, InstanceNumber=lambda index: (index * 5) % 6)
    depths = only_series(read_study(tmp_path)).geometry.depths
    np.testing.assert_allclose(np.diff(depths), 2.5)


@pytest.mark.parametrize("same_uid", [True, False])
def test_exact_copies_are_dropped_with_a_notice(tmp_path: Path, same_uid: bool) -> None:
    values = stored_values((4, 8, 8))
    write_series(tmp_path / "a", values)
    write_series(tmp_path / "b", values[1:3], origin=(-8, -12, 2.5), SOPInstanceUID=None if same_uid else "1.2.3")
    series = only_series(read_study(tmp_path))
    assert len(series.slices) == 4
    assert series.problem is None
    assert "duplicate_slices" in keys(series)
    assert series.part is None


def test_same_instance_uid_with_other_pixels_is_no_copy(tmp_path: Path) -> None:
    write_series(tmp_path / "a", stored_values((3, 8, 8)), SOPInstanceUID=lambda index: uid(index))
    write_series(tmp_path / "b", stored_values((3, 8, 8), 1), SOPInstanceUID=lambda index: uid(index))
    problem = only_series(read_study(tmp_path)).problem
    assert problem is not None
    assert problem.key == "slices_overlap"


@pytest.mark.parametrize(
    "tags",
    [
        [{"AcquisitionNumber": 2}, {"AcquisitionNumber": 1, "AcquisitionTime": "101400"}],
        [{"AcquisitionTime": "101535"}, {"AcquisitionTime": "101500"}],
        [  # every slice has a time of its own
            {"AcquisitionTime": lambda index: f"1016{index:02d}"},
            {"AcquisitionTime": lambda index: f"1015{index:02d}"},
        ],
    ],
)
def test_two_acquisitions_in_one_series_are_separated(tmp_path: Path, tags: list[dict[str, Any]]) -> None:
    early, late = stored_values((5, 8, 8), 1), stored_values((5, 8, 8), 2)
    write_series(tmp_path / "late", late, **tags[0])
    write_series(tmp_path / "early", early, **tags[1])
    first, second = read_study(tmp_path).series
    assert (first.part, second.part) == (1, 2)
    assert (first.folder, second.folder) == ("early", "late")
    assert first.problem is None
    assert second.problem is None


def test_times_without_a_pause_separate_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "a", stored_values((5, 8, 8), 1), AcquisitionTime=lambda index: f"10150{index}")
    write_series(tmp_path / "b", stored_values((5, 8, 8), 2), AcquisitionTime=lambda index: f"10150{5 + index}")
    problem = only_series(read_study(tmp_path)).problem
    assert problem is not None
    assert problem.key == "slices_overlap"


def test_step_and_shoot_numbers_do_not_separate_slices(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((5, 8, 8)), AcquisitionNumber=lambda index: index)
    assert len(only_series(read_study(tmp_path)).slices) == 5


def test_overlap_that_nothing_tells_apart_is_kept_as_problem(tmp_path: Path) -> None:
    write_series(tmp_path / "a", stored_values((4, 8, 8), 1))
    write_series(tmp_path / "b", stored_values((4, 8, 8), 2))
    write_series(tmp_path / "c", stored_values((4, 8, 8), 3), SeriesInstanceUID=uid("good"), SeriesNumber=2)
    bad, good = read_study(tmp_path).series
    assert good.problem is None
    assert bad.problem is not None
    with pytest.raises(GeometryRefused, match="series 1"):
        _ = bad.geometry


@pytest.mark.parametrize(
    ("key", "elements"),
    [
        ("mixed_pixel_spacing", {"PixelSpacing": lambda index: [1.5, 1.0 if index else 1.01]}),
        (
            "mixed_orientation",
            {"ImageOrientationPatient": lambda index: [1, 0, 0, 0, 1, 0] if index else [1, 0, 0, 0, 0, 1]},
        ),
        ("mixed_frame_of_reference", {"FrameOfReferenceUID": lambda index: uid(index > 2)}),
        ("orientation_invalid", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}),
        ("orientation_invalid", {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}),
        ("pixel_spacing_invalid", {"PixelSpacing": [0, 1]}),
        ("slice_displaced", {"ImagePositionPatient": lambda index: [3.0 * (index == 2), 0, 2 * index]}),
    ],
)
def test_faults_stay_on_the_series(tmp_path: Path, key: str, elements: dict[str, Any]) -> None:
    write_series(tmp_path, stored_values((6, 8, 8)), **elements)
    series = next(one for one in read_study(tmp_path).series if len(one.slices) > 1)
    assert series.problem is not None
    assert series.problem.key == key


def test_mixed_sizes_are_a_problem(tmp_path: Path) -> None:
    write_series(tmp_path / "a", stored_values((3, 8, 8)))
    write_series(tmp_path / "b", stored_values((3, 8, 9)), origin=(-8, -12, 7.5))
    problem = only_series(read_study(tmp_path)).problem
    assert problem is not None
    assert problem.key == "mixed_size"


def test_spacing_written_with_fewer_digits_is_the_same(tmp_path: Path) -> None:
    write_series(
        tmp_path,
        stored_values((3, 8, 8)),
        PixelSpacing=lambda index: ["0.7421875", "0.7421875"] if index else ["0.742188"] * 2,
    )
    assert only_series(read_study(tmp_path)).problem is None


def test_tilt_is_told(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((6, 8, 8)), step=(0, 0.5, 2.5))
    series = only_series(read_study(tmp_path))
    assert keys(series) == {"gantry_tilt"}
    assert "11.3 degrees" in series.warnings[0].message
    assert series.problem is None


def test_directions_become_exact_unit_vectors(tmp_path: Path) -> None:
    write_series(
        tmp_path, stored_values((3, 8, 8)), ImageOrientationPatient=["0.9998", "0.02", "0", "-0.02", "0.9998", "0"]
    )
    geometry = only_series(read_study(tmp_path)).geometry
    axes = np.stack([geometry.row_direction, geometry.column_direction, geometry.normal])
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("key", "elements"),
    [
        ("monochrome1", {"PhotometricInterpretation": "MONOCHROME1"}),
        ("lossy_compression", {"LossyImageCompression": "01"}),
        ("padding_in_tissue", {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 1000}),
    ],
)
def test_doubtful_pixels_are_told(tmp_path: Path, key: str, elements: dict[str, Any]) -> None:
    write_series(tmp_path, stored_values((2, 8, 8)), **elements)
    assert keys(only_series(read_study(tmp_path))) == {key}


def test_pixel_spacing_is_row_spacing_first(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((3, 6, 10)), PixelSpacing=[3.0, 1.0])
    bounds = only_series(read_study(tmp_path)).geometry.bounds()
    assert bounds.extent_mm[:2] == (10.0, 18.0)


# ---- one slice that is not as the others

#: The whole of every stack below, and more.
EVERYTHING = Region((-100, -100, -100), (100, 100, 100))
TILTS = [(0.0, 0.0, 2.5), (0.0, 0.4, 2.5)]


def accepted(folder: Path) -> SeriesGeometry | None:
    """The grid of the one series, if a box anywhere in it would be sampled."""
    series = only_series(read_study(folder))
    if series.problem is not None:
        return None
    try:
        check_coverage(series, EVERYTHING)
    except GeometryRefused:
        return None
    return series.geometry


def at(place: int, count: int, changed: Any, usual: Any) -> Any:
    return lambda index: changed if index == place % count else usual


def moved(place: int, count: int, step: Sequence[float], by: Sequence[float]) -> dict[str, Any]:
    """ImagePositionPatient of a stack of which one slice lies elsewhere."""
    positions = [np.add((-8, -12, 0), np.multiply(index, step)) for index in range(count)]
    positions[place] = positions[place] + by
    return {"ImagePositionPatient": lambda index: [f"{value:.6f}" for value in positions[index]]}


@pytest.mark.parametrize("step", TILTS)
@pytest.mark.parametrize("count", [3, 4, 5, 9])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_displaced_slice_is_refused_wherever_it_lies(
    tmp_path: Path, count: int, place: int, step: tuple[float, float, float]
) -> None:
    """Along the normal by more than max(0.1 mm, 2 %), sideways by more than half a pixel (dx = 1, dy = 1.5 mm)."""
    values = stored_values((count, 8, 8))
    write_series(tmp_path / "as scanned", values, step=step)
    assert accepted(tmp_path / "as scanned") is not None
    for number, by in enumerate([(0, 0, 0.12), (0, 0, -0.12), (0.6, 0, 0), (-0.6, 0, 0), (0, 0.9, 0), (0, -0.9, 0)]):
        folder = tmp_path / str(number)
        write_series(folder, values, **moved(place, count, step, by))
        assert accepted(folder) is None, by


def test_two_slices_confirm_nothing(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((2, 8, 8)))
    problem = only_series(read_study(tmp_path)).problem
    assert problem is not None
    assert problem.key == "too_few_slices"


@pytest.mark.parametrize("place", [0, 3, -1])
@pytest.mark.parametrize(
    "change",
    [
        {"PixelSpacing": ([1.5, 1.001], [1.5, 1.0])},
        {"ImageOrientationPatient": ([1, 0.002, 0, -0.002, 1, 0], [1, 0, 0, 0, 1, 0])},
        {"Rows": (7, 8)},
        {"Columns": (9, 8)},
        {"FrameOfReferenceUID": (uid("other"), uid("frame"))},
        {"SeriesInstanceUID": (uid("other"), uid("series"))},
        {"SeriesInstanceUID": ("", uid("series"))},
        {"SeriesNumber": (9, 1)},
        {"StudyInstanceUID": (uid("other"), uid("study"))},
        {"SOPClassUID": ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2")},
        {"SOPClassUID": (SecondaryCaptureImageStorage, "1.2.840.10008.5.1.4.1.1.2")},
        {"Modality": ("MR", "CT")},
        {"ImageType": (["ORIGINAL", "PRIMARY", "LOCALIZER"], ["ORIGINAL", "PRIMARY", "AXIAL"])},
        {"ImagePositionPatient": ([0, 0, 900], None)},
        {"ImagePositionPatient": ("", None)},
        {"PixelSpacing": ("", [1.5, 1.0])},
    ],
)
def test_a_slice_with_another_header_cannot_slip_away(
    tmp_path: Path, place: int, change: dict[str, tuple[Any, Any]]
) -> None:
    """At the ends too, where no gap tells that a slice is gone."""
    ((keyword, (changed, usual)),) = change.items()
    given = {keyword: at(place, 6, changed, usual)}
    if keyword == "ImagePositionPatient":
        lie = place % 6
        given = {keyword: lambda index: changed if index == lie else [-8, -12, 2.5 * index]}
    write_series(tmp_path, stored_values((6, 8, 8)), **given)
    assert accepted(tmp_path) is None


@pytest.mark.parametrize("place", [0, 3, -1])
@pytest.mark.parametrize(
    "change",
    [
        {"PixelSpacing": ([1.50004, 1.00003], [1.5, 1.0])},
        {"ImageOrientationPatient": ([1, 0.0005, 0, -0.0005, 1, 0], [1, 0, 0, 0, 1, 0])},
        {"AcquisitionNumber": (2, 1)},
        {"AcquisitionTime": ("120000", "101500")},
    ],
)
def test_a_difference_within_tolerance_changes_nothing(
    tmp_path: Path, place: int, change: dict[str, tuple[Any, Any]]
) -> None:
    ((keyword, (changed, usual)),) = change.items()
    values = stored_values((6, 8, 8))
    write_series(tmp_path / "same", values)
    write_series(tmp_path / "other", values, **{keyword: at(place, 6, changed, usual)})
    same, other = accepted(tmp_path / "same"), accepted(tmp_path / "other")
    assert same is not None
    assert other is not None
    assert same.pixel_spacing == other.pixel_spacing
    np.testing.assert_array_equal(same.row_direction, other.row_direction)
    np.testing.assert_array_equal(same.positions, other.positions)


def test_a_single_image_elsewhere_takes_nothing_from_a_series(tmp_path: Path) -> None:
    """A bolus-tracking image and a localizer within the stack are no lost slices."""
    write_series(tmp_path / "a", stored_values((6, 8, 8)))
    other: dict[str, Any] = {"SeriesInstanceUID": uid("other"), "SeriesNumber": 9, "SeriesDescription": "tracking"}
    write_series(tmp_path / "b", stored_values((1, 8, 8)), origin=(-8, -12, 15), **other)
    write_series(
        tmp_path / "c", stored_values((1, 8, 8)), origin=(-8, -12, 6), ImageType=["ORIGINAL", "X", "LOCALIZER"]
    )
    assert accepted(tmp_path) is not None


@pytest.mark.parametrize(
    "tags",
    [
        {"AcquisitionNumber": lambda index: 1 + index % 2},
        {"AcquisitionTime": lambda index: f"10{15 + index % 2}00"},
    ],
)
def test_two_acquisitions_between_each_other_are_separated(tmp_path: Path, tags: dict[str, Any]) -> None:
    """Half a step apart they look like one series of thinner slices."""
    write_series(tmp_path, stored_values((12, 8, 8)), step=(0, 0, 1.25), **tags)
    series = read_study(tmp_path).series
    assert [(one.part, len(one.slices), one.problem) for one in series] == [(1, 6, None), (2, 6, None)]
    for one in series:
        np.testing.assert_allclose(np.diff(one.geometry.depths), 2.5)


def test_acquisitions_between_each_other_that_cannot_be_parted_are_refused(tmp_path: Path) -> None:
    numbers = [1, 2, 1, 2, 1, None, 1, 2]
    write_series(tmp_path, stored_values((8, 8, 8)), AcquisitionNumber=lambda index: numbers[index])
    problem = only_series(read_study(tmp_path)).problem
    assert problem is not None
    assert problem.key == "acquisitions_interleaved"


# ---- orientations

ORIENTATIONS = {
    "head first supine": (1, 0, 0, 0, 1, 0),
    "feet first supine": (-1, 0, 0, 0, 1, 0),
    "head first prone": (-1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (0.8, 0, -0.6, 0, 1, 0),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_every_orientation_puts_voxels_where_they_were_scanned(tmp_path: Path, name: str, sign: int) -> None:
    """A plane of HU through patient space is found again at the voxels' places, whatever the order of the slices."""
    row, column = np.array(ORIENTATIONS[name][:3], float), np.array(ORIENTATIONS[name][3:], float)
    normal, origin = np.cross(row, column), np.array([-20.0, -30.0, 40.0])
    k, j, i = np.meshgrid(np.arange(5), np.arange(6), np.arange(8), indexing="ij")
    places = origin + 2.0 * k[..., None] * sign * normal + 1.5 * j[..., None] * column + 1.0 * i[..., None] * row
    stored = np.rint(1000 + places @ [3.0, 5.0, 7.0]).astype(np.uint16)
    step = 2.0 * sign * normal
    write_series(tmp_path, stored, origin=list(origin), step=list(step), ImageOrientationPatient=[*row, *column])
    series = only_series(read_study(tmp_path))
    hu = read_hu(series, VoxelWindow(slice(0, 5), slice(0, 6), slice(0, 8)))
    index = series.geometry.index_of(places.reshape(-1, 3))
    np.testing.assert_allclose(index, np.rint(index), atol=1e-6)
    found = hu[tuple(np.rint(index).astype(int).T)]
    np.testing.assert_array_equal(found, stored.reshape(-1).astype(int) - 1024)


# ---- real files

REAL = sorted(Path(str(get_testdata_file("CT_small.dcm", read=False))).parent.rglob("*.dcm"))


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files_are_slices_or_skipped(path: Path) -> None:
    """Every file that ships with pydicom; what is a CT slice, and where, is pydicom's word."""
    found = Findings()
    with quiet_pydicom():
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        is_ct = dataset.get("SOPClassUID") == "1.2.840.10008.5.1.4.1.1.2" and "ImagePositionPatient" in dataset
        localizer = "LOCALIZER" in (dataset.get("ImageType") or [])
        read_slice_headers(path, "", found)
    assert len(found.slices) == int(is_ct and not localizer)
    assert sum(found.skipped.values()) == 1 - len(found.slices)
    for header in found.slices:
        assert header.position == tuple(float(value) for value in dataset.ImagePositionPatient)
        assert header.pixel_spacing == tuple(float(value) for value in dataset.PixelSpacing)
        assert header.slope == float(dataset.RescaleSlope)


def test_a_folder_with_a_dicomdir_works_from_the_files(tmp_path: Path) -> None:
    """The directory is ignored by its class; that it names files that are not there does not matter."""
    source = Path(str(get_testdata_file("DICOMDIR", read=False))).parent
    shutil.copytree(source / "98892001", tmp_path / "98892001")
    shutil.copy(source / "DICOMDIR", tmp_path / "DICOMDIR")
    study = read_study(tmp_path)
    assert study.skipped["dicomdir"] == 1
    assert {series.number: len(series.slices) for series in study.series} == {5: 5}


def test_a_dose_sheet_and_a_presentation_state_are_skipped(tmp_path: Path) -> None:
    """By class, whatever modality they claim."""
    write_series(tmp_path, stored_values((3, 8, 8)))
    for number, sop_class in enumerate(["88.67", "88.22", "11.1", "88.59", "7.3"]):
        dataset = slice_dataset(stored_values((1, 8, 8))[0], (0, 0, 90 + 9 * number), SeriesInstanceUID=uid("sheets"))
        dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{sop_class}"
        (tmp_path / f"sheet{number}").write_bytes(file_bytes(dataset))
    assert read_study(tmp_path).skipped == {"not_ct": 4, "secondary_capture": 1}


def test_items_without_end_cost_neither_time_nor_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of 40 MB of empty items, plain and deflated to a few kB: pydicom would make an object of each."""
    monkeypatch.setattr(elements, "ELEMENT_LIMIT", 50_000)
    write_series(tmp_path, stored_values((3, 8, 8)))
    for syntax in (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        dataset = slice_dataset(stored_values((1, 8, 8))[0], (0, 0, 50))
        dataset.add_new(0x00091010, "UN", b"\xfe\xff\x00\xe0\0\0\0\0" * 5_000_000)
        raw = bytearray(file_bytes(dataset, ExplicitVRLittleEndian))
        start = raw.index(b"\x09\x00\x10\x10UN") + 8
        raw[start : start + 4] = b"\xff\xff\xff\xff"
        if syntax == DeflatedExplicitVRLittleEndian:
            raw = deflated(bytes(raw))
            assert len(raw) < 200_000
        (tmp_path / f"bomb{len(raw)}").write_bytes(raw)
    began = time.perf_counter()
    assert read_study(tmp_path).skipped == {"over_limits": 2}
    assert time.perf_counter() - began < 5


def deflated(raw: bytes) -> bytearray:
    """An Explicit VR Little Endian file written again as deflated."""
    start = 144 + int.from_bytes(raw[140:144], "little")
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = squeeze.compress(raw[start:]) + squeeze.flush()
    meta = raw[:start].replace(ExplicitVRLittleEndian.encode().ljust(20, b"\0"), b"1.2.840.10008.1.2.1.99")
    meta = meta.replace(b"UI\x14\x00" + b"1.2.840.10008.1.2.1.99", b"UI\x16\x001.2.840.10008.1.2.1.99")
    length = int.from_bytes(raw[140:144], "little") + len(meta) - start
    return bytearray(meta[:140] + length.to_bytes(4, "little") + meta[144:] + body)


# ---- hostile headers


def slices_or_code(folder: Path) -> int | str:
    try:
        return sum(len(series.slices) for series in read_study(folder).series)
    except FourphaseError as error:
        return str(error.code)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    """Flipped, cut and inserted bytes: a study or a FourphaseError, nothing else."""
    good = file_bytes(slice_dataset(stored_values((1, 4, 4))[0], (0, 0, 0), SeriesDescription="ä"))
    other = file_bytes(slice_dataset(stored_values((1, 4, 4))[0], (0, 0, 2)))
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(raw)) | st.just(len(raw)))
    (tmp_path / "mutant").write_bytes(bytes(raw[:length]))
    (tmp_path / "good").write_bytes(other)
    assert slices_or_code(tmp_path) in (2, "11", "17")


def test_deep_sequences_and_lying_lengths_do_not_crash(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((2, 8, 8)))
    start = b"\0" * 128 + b"DICM"
    nested = (
        b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
        + b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" * 3000
    )
    lying = b"\x08\x00\x16\x00UI\xff\xff1.2" + b"\x08\x00\x60\x00UN\0\0\xfe\xff\xff\xffCT"
    (tmp_path / "nested").write_bytes(start + nested)
    (tmp_path / "lying").write_bytes(start + lying)
    assert len(only_series(read_study(tmp_path)).slices) == 2
