from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
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

from fourphase.runtime.dicom_file import HEAD_BYTES
from fourphase.runtime.errors import FourphaseError, GeometryRefused, InputMissing, MixedStudies, NoUsableCT
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
        ("multi_frame", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}),
        ("multi_frame", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.2"}),
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


def test_only_multi_frame_is_refused_by_name(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values((2, 8, 8)), SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1")
    with pytest.raises(NoUsableCT) as caught:
        read_study(tmp_path)
    assert caught.value.key == "multi_frame_unsupported"


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
    write_series(tmp_path, stored_values((2, 6, 10)), PixelSpacing=[3.0, 1.0])
    bounds = only_series(read_study(tmp_path)).geometry.bounds()
    assert bounds.extent_mm[:2] == (10.0, 18.0)


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
