"""Multi-frame CT against the same study as single frames: positions, times, phases and HU are the same, bit for bit."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)

from fourphase.runtime import elements, enhanced, frames
from fourphase.runtime.box import check_coverage
from fourphase.runtime.elements import MalformedData, TooManyElements, walk
from fourphase.runtime.errors import FourphaseError, GeometryRefused, NoUsableCT, PixelDataError
from fourphase.runtime.geometry import Region
from fourphase.runtime.phases import assign_phases
from fourphase.runtime.pixels import read_hu
from fourphase.runtime.preprocess import VoxelWindow
from fourphase.runtime.series import Series
from fourphase.runtime.study import read_study
from tests.support.dicom import COMPRESSED, DESCRIPTIONS, copied, file_bytes, slice_dataset, stored_values, uid
from tests.support.enhanced import agent, enhanced_dataset, item, usage

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
SHAPE = (6, 40, 48)
STEP = 2.5
ORDER = [3, 0, 5, 1, 4, 2]

Values = NDArray[np.uint16]


def slices_of(values: Values, **tags: Any) -> list[Dataset]:
    """Axial slices; `tags` may be functions of the slice's index."""
    slices = []
    for index, plane in enumerate(values):
        chosen = {keyword: value(index) if callable(value) else value for keyword, value in tags.items()}
        slices.append(slice_dataset(plane, (-8, -12, STEP * index), **{"SeriesDescription": "arteriell", **chosen}))
    return slices


def write(folder: Path, *datasets: Dataset, syntax: str = ExplicitVRLittleEndian, **options: Any) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.x" for number in range(len(datasets))]
    for path, dataset in zip(paths, datasets, strict=True):
        path.write_bytes(file_bytes(dataset, syntax, **options))
    return paths


def only(folder: Path) -> Series:
    (series,) = read_study(folder).series
    return series


def whole(series: Series) -> VoxelWindow:
    return VoxelWindow(slice(0, len(series.slices)), slice(0, series.geometry.rows), slice(0, series.geometry.columns))


def assert_same(found: Series, expected: Series) -> None:
    """Everything but where the pixels are and what a UID of one instance is."""
    assert found.problem is None
    assert expected.problem is None
    np.testing.assert_array_equal(found.geometry.positions, expected.geometry.positions)
    np.testing.assert_array_equal(found.geometry.normal, expected.geometry.normal)
    for name in ("pixel_spacing", "acquisition_number", "acquired_day", "acquired_time", "slope", "intercept"):
        assert [getattr(one, name) for one in found.slices] == [getattr(one, name) for one in expected.slices], name
    for name in ("description", "number", "study_uid", "patient", "thickness_mm", "kernel", "frame_of_reference_uid"):
        assert getattr(found.tags, name) == getattr(expected.tags, name), name
    mine, other = read_hu(found, whole(found)), read_hu(expected, whole(expected))
    assert mine.dtype == other.dtype
    assert mine.tobytes() == other.tobytes()


# ---- the same as single frames


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED])
def test_frames_equal_single_files_bit_for_bit(tmp_path: Path, syntax: str) -> None:
    slopes = [1.0, 0.95, 1.05, 1.0, 1.1, 1.0]  # tissue stays at 50 HU, so that no slice stands out
    tags: dict[str, Any] = {
        "RescaleSlope": lambda index: slopes[index],
        "RescaleIntercept": lambda index: round(50 - 1074 * slopes[index], 2),
        "AcquisitionTime": lambda index: f"10150{index}.5",
    }
    singles = slices_of(stored_values(SHAPE), **tags)
    write(tmp_path / "single", *singles, syntax=syntax)
    write(tmp_path / "multi", enhanced_dataset([singles[i] for i in ORDER]), syntax=syntax)
    assert_same(only(tmp_path / "multi"), only(tmp_path / "single"))
    assert [header.frame for header in only(tmp_path / "multi").slices] == np.argsort(ORDER).tolist()


def test_hu_equal_pydicoms_array(tmp_path: Path) -> None:
    """Independent of our single-frame reader: pydicom's frames, in the order of the positions in the file."""
    (path,) = write(tmp_path, enhanced_dataset([slices_of(stored_values(SHAPE))[i] for i in ORDER]))
    dataset = pydicom.dcmread(path)
    groups = dataset.PerFrameFunctionalGroupsSequence
    depths = [float(one.PlanePositionSequence[0].ImagePositionPatient[2]) for one in groups]
    expected = dataset.pixel_array[np.argsort(depths)].astype(int) - 1024
    series = only(tmp_path)
    window = VoxelWindow(slice(1, 5), slice(3, 30), slice(5, 41))
    np.testing.assert_array_equal(read_hu(series, window), expected[1:5, 3:30, 5:41])


@pytest.mark.parametrize("table", ["none", "basic", "extended"])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_offset_tables(tmp_path: Path, syntax: str, table: str) -> None:
    singles = slices_of(stored_values(SHAPE))
    write(tmp_path / "single", *singles)
    write(tmp_path / "multi", enhanced_dataset(singles), syntax=syntax, table=table)
    assert_same(only(tmp_path / "multi"), only(tmp_path / "single"))


def test_several_fragments_per_frame_need_a_table(tmp_path: Path) -> None:
    singles = slices_of(stored_values(SHAPE))
    write(tmp_path / "single", *singles)
    write(tmp_path / "table", enhanced_dataset(singles), syntax=JPEGLSLossless, table="basic", fragments=3)
    assert_same(only(tmp_path / "table"), only(tmp_path / "single"))
    write(tmp_path / "none", enhanced_dataset(singles), syntax=JPEGLSLossless, fragments=3)
    assert refused(tmp_path / "none").key == "pixel_data_damaged"


def refused(folder: Path) -> PixelDataError:
    series = only(folder)
    with pytest.raises(PixelDataError) as caught:
        read_hu(series, whole(series))
    return caught.value


@pytest.mark.parametrize(
    "shared",
    [
        (),
        ("PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence"),
        ("CTImageFrameTypeSequence", "CTReconstructionSequence"),
    ],
)
def test_a_group_may_be_shared(tmp_path: Path, shared: tuple[str, ...]) -> None:
    singles = slices_of(stored_values(SHAPE))
    write(tmp_path / "single", *singles)
    write(tmp_path / "multi", enhanced_dataset(singles, shared=shared))
    assert_same(only(tmp_path / "multi"), only(tmp_path / "single"))


def test_a_frames_own_group_wins_over_the_shared_one(tmp_path: Path) -> None:
    singles = slices_of(stored_values(SHAPE))
    dataset = enhanced_dataset(singles)
    wrong = item(RescaleSlope="7", RescaleIntercept="7", RescaleType="HU")
    dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [wrong]
    dataset.SharedFunctionalGroupsSequence[0].PlanePositionSequence = [item(ImagePositionPatient=[9, 9, 9])]
    write(tmp_path / "single", *singles)
    write(tmp_path / "multi", dataset)
    assert_same(only(tmp_path / "multi"), only(tmp_path / "single"))


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", NATIVE[:3])
def test_sequences_of_undefined_length_and_long_headers(tmp_path: Path, syntax: str, undefined: bool) -> None:
    singles = slices_of(stored_values((60, 8, 8)))
    dataset = enhanced_dataset(singles)
    dataset.PatientComments = "x" * 2000
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        groups.is_undefined_length_sequence_item = undefined
        for element in groups:
            element.is_undefined_length = undefined
    dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = undefined
    write(tmp_path / "single", *singles)
    write(tmp_path / "multi", dataset, syntax=syntax)
    assert_same(only(tmp_path / "multi"), only(tmp_path / "single"))


def test_ct_image_storage_with_groups_is_read(tmp_path: Path) -> None:
    singles = slices_of(stored_values(SHAPE))
    write(tmp_path / "single", *singles)
    write(tmp_path / "multi", enhanced_dataset(singles, SOPClassUID=CTImageStorage))
    assert_same(only(tmp_path / "multi"), only(tmp_path / "single"))


def test_concatenated_files_come_together(tmp_path: Path) -> None:
    singles = slices_of(stored_values(SHAPE))
    parts = [
        enhanced_dataset(singles[a:b], ConcatenationUID=uid("whole"), InConcatenationNumber=number)
        for number, (a, b) in enumerate([(0, 2), (2, 3), (3, 6)], 1)
    ]
    write(tmp_path / "single", *singles)
    paths = write(tmp_path / "multi", *parts)
    assert_same(only(tmp_path / "multi"), only(tmp_path / "single"))
    paths[1].unlink()
    with pytest.raises(GeometryRefused, match="misses slices"):
        check_coverage(only(tmp_path / "multi"), Region((0, 0, 3), (5, 5, 7)))


def test_exact_copies_of_frames_are_dropped(tmp_path: Path) -> None:
    singles = slices_of(stored_values(SHAPE))
    write(tmp_path / "single", *singles)
    write(tmp_path / "multi", enhanced_dataset(singles), enhanced_dataset(singles[1:3]))
    series = only(tmp_path / "multi")
    assert [notice.key for notice in series.warnings] == ["duplicate_slices"]
    assert_same(series, only(tmp_path / "single"))


def test_frames_at_one_place_with_other_pixels_are_no_copies(tmp_path: Path) -> None:
    first, second = slices_of(stored_values(SHAPE)), slices_of(stored_values(SHAPE, 1))
    write(tmp_path, enhanced_dataset([*first, *second]))
    problem = only(tmp_path).problem
    assert problem is not None
    assert problem.key == "slices_overlap"


def test_legacy_converted_by_highdicom(tmp_path: Path) -> None:
    """Written by another's hand: attributes without a place of their own lie in the unassigned groups."""
    legacy = pytest.importorskip("highdicom.legacy")
    tags: dict[str, Any] = {
        "InstanceNumber": lambda index: index + 1,
        "AcquisitionTime": lambda index: f"10150{index}",
        "ContrastBolusAgent": "none",
        "ContrastBolusStartTime": "101440",
        "StudyDate": "20200101",
        "StudyTime": "101000",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "AccessionNumber": "",
        "StudyID": "1",
        "Manufacturer": "ACME",
        "ReferringPhysicianName": "",
        "ContentDate": "20200101",
        "ContentTime": "101500",
        "SeriesDate": "20200101",
        "SeriesTime": "101500",
        "PatientPosition": "HFS",
        "PositionReferenceIndicator": "",
    }
    singles = slices_of(stored_values(SHAPE), **tags)
    paths = write(tmp_path / "single", *singles)
    read = [pydicom.dcmread(path) for path in paths]
    converted = legacy.LegacyConvertedEnhancedCTImage(read[::-1], uid("converted"), 7, uid("instance"), 1)
    (tmp_path / "multi").mkdir()
    converted.save_as(tmp_path / "multi" / "x")
    found, expected = only(tmp_path / "multi"), only(tmp_path / "single")
    assert converted.SOPClassUID == LegacyConvertedEnhancedCTImageStorage
    assert (found.uid, found.number) == (uid("converted"), 7)
    assert (found.tags.agent, found.tags.bolus_start) == ("none", expected.tags.bolus_start)
    assert_same(_numbered(found, expected), expected)


def _numbered(found: Series, expected: Series) -> Series:
    """The converter gives the series a number and a description of its own."""
    import dataclasses

    tags = dataclasses.replace(found.tags, number=expected.number, description=expected.tags.description)
    return dataclasses.replace(found, tags=tags)


# ---- all phases in one file


def four_phases(**by_phase: Callable[[str, int], Any]) -> list[Dataset]:
    """Slices of the four phases, one SeriesInstanceUID; `by_phase` gives tags from the phase and its number."""
    found = []
    for number, (phase, (_, seconds)) in enumerate(DESCRIPTIONS.items(), 1):
        minutes, seconds = divmod(15 * 60 + seconds, 60)
        tags = {"AcquisitionTime": f"10{minutes:02d}{seconds:02d}", "SeriesDescription": "Leber"}
        tags |= {keyword: value(phase, number) for keyword, value in by_phase.items()}
        found += slices_of(stored_values((8, 16, 16), number), **tags)
    return found


PHASES = tuple(DESCRIPTIONS)


def shuffled(dataset: Dataset) -> Dataset:
    """The frames in another order."""
    order = np.random.default_rng(0).permutation(dataset.NumberOfFrames)
    planes = np.frombuffer(dataset.PixelData, np.uint16).reshape(-1, dataset.Rows, dataset.Columns)
    mixed = copied(dataset)
    mixed.PixelData = planes[order].tobytes()
    mixed.PerFrameFunctionalGroupsSequence = Items([dataset.PerFrameFunctionalGroupsSequence[i] for i in order])
    return mixed


@pytest.mark.parametrize("kind", ["number", "time", "agent phase"])
def test_four_phases_in_one_file_are_told_apart(tmp_path: Path, kind: str) -> None:
    """By any one of the tags; which phase is which then follows from the agent's phase or from the order in time."""
    numbers = {"AcquisitionNumber": (lambda phase, number: number) if kind == "number" else (lambda phase, number: 1)}
    dataset = enhanced_dataset(four_phases(**numbers))
    names = dict(zip(PHASES, ("PRE_CONTRAST", "ARTERIAL", "PORTAL_VENOUS", "DELAYED"), strict=True))
    for index, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        content = groups.FrameContentSequence[0]
        if kind == "agent phase":
            groups.ContrastBolusUsageSequence = usage(ContrastBolusAgentPhase=names[PHASES[index // 8]])
            content.FrameAcquisitionDateTime = "20200101101500"
    write(tmp_path, shuffled(dataset))
    study = read_study(tmp_path)
    assert [series.part for series in study.series] == [1, 2, 3, 4]
    matches, _ = assign_phases(study, PHASES, {})
    for number, phase in enumerate(PHASES, 1):
        hu = read_hu(matches[phase].series, whole(matches[phase].series))
        np.testing.assert_array_equal(hu, stored_values((8, 16, 16), number).astype(int) - 1024)


def test_temporal_positions_alone_tell_acquisitions_apart(tmp_path: Path) -> None:
    """All else being equal, which phase is which is not known then, but no slice gets among others."""
    same = {"AcquisitionNumber": lambda phase, number: 1, "AcquisitionTime": lambda phase, number: "101500"}
    dataset = enhanced_dataset(four_phases(**same))
    for index, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        groups.FrameContentSequence[0].TemporalPositionIndex = 1 + index // 8
    write(tmp_path, shuffled(dataset))
    found = {read_hu(series, whole(series)).tobytes() for series in read_study(tmp_path).series}
    expected = [stored_values((8, 16, 16), number).astype(np.int16) - 1024 for number in range(1, 5)]
    assert found == {hu.tobytes() for hu in expected}


def test_four_phases_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    same = {"AcquisitionNumber": lambda phase, number: 1, "AcquisitionTime": lambda phase, number: "101500"}
    write(tmp_path, shuffled(enhanced_dataset(four_phases(**same))))
    problem = only(tmp_path).problem
    assert problem is not None
    assert problem.key == "slices_overlap"


def test_one_file_per_phase(tmp_path: Path) -> None:
    for number, (phase, (description, _)) in enumerate(DESCRIPTIONS.items()):
        singles = four_phases()[8 * number : 8 * number + 8]
        for single in singles:
            single.SeriesDescription, single.SeriesInstanceUID, single.SeriesNumber = description, uid(phase), number
        write(tmp_path / phase, enhanced_dataset(singles))
    matches, _ = assign_phases(read_study(tmp_path), PHASES, {})
    assert {phase: match.series.uid for phase, match in matches.items()} == {phase: uid(phase) for phase in PHASES}


# ---- contrast


def tags_of(folder: Path, dataset: Dataset) -> Any:
    write(folder, dataset)
    return only(folder).tags


def test_the_agents_phase_and_start(tmp_path: Path) -> None:
    dataset = enhanced_dataset(slices_of(stored_values(SHAPE)))
    dataset.ContrastBolusAgentSequence = Items([agent("101425"), agent("090000", 2)])
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.ContrastBolusUsageSequence = usage(ContrastBolusAgentAdministered="YES", ContrastBolusAgentPhase="ARTERIAL")
    tags = tags_of(tmp_path, dataset)
    assert (tags.agent_phase, tags.agent, tags.bolus_start) == ("ARTERIAL", "", 10 * 3600 + 14 * 60 + 25)


def test_an_agent_not_yet_given_is_none(tmp_path: Path) -> None:
    dataset = enhanced_dataset(slices_of(stored_values(SHAPE)), ContrastBolusAgent="Iomeron")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.ContrastBolusUsageSequence = usage(ContrastBolusAgentAdministered="NO")
    assert tags_of(tmp_path, dataset).agent == "NONE"


def test_agents_that_disagree_are_no_evidence(tmp_path: Path) -> None:
    dataset = enhanced_dataset(slices_of(stored_values(SHAPE)))
    dataset.ContrastBolusAgentSequence = Items([agent("101425"), agent("090000", 2)])
    both = [
        item(ContrastBolusAgentNumber=number, ContrastBolusAgentAdministered="YES", ContrastBolusAgentPhase=phase)
        for number, phase in ((1, "ARTERIAL"), (2, "DELAYED"))
    ]
    dataset.SharedFunctionalGroupsSequence[0].ContrastBolusUsageSequence = Items(both)
    tags = tags_of(tmp_path, dataset)
    assert tags.agent_phase == "ARTERIAL\\DELAYED"
    assert tags.bolus_start is None


def test_frame_acquisition_wins_over_frame_reference_time(tmp_path: Path) -> None:
    dataset = enhanced_dataset(slices_of(stored_values(SHAPE)))
    assert {one.acquired_time for one in _slices(tmp_path / "a", dataset)} == {36900.0}
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        del groups.FrameContentSequence[0].FrameAcquisitionDateTime
        groups.FrameContentSequence[0].FrameReferenceDateTime = "20200102101600.25+0100"
    assert {one.acquired_time for one in _slices(tmp_path / "b", dataset)} == {36960.25}


def _slices(folder: Path, dataset: Dataset) -> Sequence[Any]:
    write(folder, dataset)
    return only(folder).slices


# ---- what is no slice


@pytest.mark.parametrize(
    ("reason", "frame_type", "technique"),
    [
        ("localizer", ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"], "NONE"),
        ("derived", ["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"], "NONE"),
        ("derived", ["DERIVED", "PRIMARY", "MPR", "NONE"], "NONE"),
        ("derived", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "MAX_IP"),
    ],
)
def test_frames_are_skipped_one_by_one(tmp_path: Path, reason: str, frame_type: list[str], technique: str) -> None:
    singles = slices_of(stored_values(SHAPE))
    odd = slice_dataset(stored_values((1, 40, 48))[0], (0, 0, 500), SeriesDescription="arteriell")
    dataset = enhanced_dataset([odd, *singles, odd], ImageType=["MIXED", "PRIMARY", "VOLUME", "MIXED"])
    for index in (0, 7):
        frame = dataset.PerFrameFunctionalGroupsSequence[index].CTImageFrameTypeSequence[0]
        frame.FrameType, frame.VolumeBasedCalculationTechnique = frame_type, technique
    write(tmp_path / "multi", dataset)
    write(tmp_path / "single", *singles)
    assert read_study(tmp_path / "multi").skipped == {reason: 2}
    assert_same(only(tmp_path / "multi"), only(tmp_path / "single"))


@pytest.mark.parametrize(
    ("reason", "elements"),
    [
        ("multi_frame", {"SharedFunctionalGroupsSequence": None, "PerFrameFunctionalGroupsSequence": None}),
        ("damaged", {"PerFrameFunctionalGroupsSequence": None}),
        ("damaged", {"NumberOfFrames": 5}),
        ("damaged", {"NumberOfFrames": 7}),
        ("damaged", {"NumberOfFrames": None}),
        ("over_limits", {"NumberOfFrames": 10_001}),
        ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]}),
        ("not_ct", {"Modality": "MR"}),
    ],
)
@pytest.mark.parametrize("sop_class", [None, CTImageStorage])
def test_files_are_skipped_with_the_reason(
    tmp_path: Path, reason: str, elements: dict[str, Any], sop_class: str | None
) -> None:
    singles = slices_of(stored_values(SHAPE))
    given = {**elements, **({"SOPClassUID": sop_class} if sop_class else {})}
    if sop_class and "NumberOfFrames" in elements and elements["NumberOfFrames"] is None:
        reason = "no_geometry"  # then it is an ordinary image, whose place is not at the top level
    write(tmp_path / "multi", enhanced_dataset(singles, **given))
    with pytest.raises(NoUsableCT) as caught:
        read_study(tmp_path / "multi")
    assert f"(files skipped: {reason} 1)" in caught.value.message
    assert caught.value.key == "no_usable_ct"


@pytest.mark.parametrize("group", ["PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"])
def test_geometry_at_the_top_level_is_not_believed(tmp_path: Path, group: str) -> None:
    singles = slices_of(stored_values(SHAPE))
    top = {keyword: singles[0][keyword].value for keyword in ("ImagePositionPatient", "ImageOrientationPatient")}
    dataset = enhanced_dataset(singles, **top, PixelSpacing=[1.5, 1.0])
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        del groups[group]
    write(tmp_path, dataset)
    with pytest.raises(NoUsableCT, match="no_geometry 6"):
        read_study(tmp_path)


def test_a_missing_rescale_is_refused(tmp_path: Path) -> None:
    dataset = enhanced_dataset(slices_of(stored_values(SHAPE)), RescaleSlope="1", RescaleIntercept="-1024")
    del dataset.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence
    write(tmp_path, dataset)
    assert refused(tmp_path).key == "rescale_invalid"


def test_two_items_in_a_group_are_damage(tmp_path: Path) -> None:
    dataset = enhanced_dataset(slices_of(stored_values(SHAPE)))
    dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence.append(item(ImagePositionPatient=[0, 0, 0]))
    write(tmp_path, dataset)
    with pytest.raises(NoUsableCT, match="damaged"):
        read_study(tmp_path)


# ---- pixels that are not what the header says


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("cut", [1, 12, 700])
def test_a_file_that_is_still_written_is_15(tmp_path: Path, syntax: str, cut: int) -> None:
    (path,) = write(tmp_path, enhanced_dataset(slices_of(stored_values(SHAPE))), syntax=syntax)
    path.write_bytes(path.read_bytes()[:-cut])
    error = refused(tmp_path)
    assert error.code == 15
    assert error.key in ("pixel_data_truncated", "pixel_data_damaged")


@pytest.mark.parametrize("table", ["basic", "extended"])
def test_a_lying_offset_table_is_damage(tmp_path: Path, table: str) -> None:
    (path,) = write(tmp_path, enhanced_dataset(slices_of(stored_values(SHAPE))), syntax=RLELossless, table=table)
    raw = bytearray(path.read_bytes())
    pixels = raw.rindex(b"\xe0\x7f\x10\x00OB")
    place = pixels + 20 + 8 if table == "basic" else raw.index(b"\xe0\x7f\x01\x00OV") + 12 + 16
    raw[place] ^= 2
    path.write_bytes(bytes(raw))
    assert "offset table" in refused(tmp_path).message


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
@pytest.mark.parametrize("extra", [-1, 1])
def test_another_number_of_frames_than_said_is_damage(tmp_path: Path, syntax: str, extra: int) -> None:
    values = stored_values((7, 40, 48))
    dataset, other = enhanced_dataset(slices_of(values[:6])), slices_of(values[: 6 + extra])
    dataset.PixelData = b"".join(one.PixelData for one in other)
    write(tmp_path, dataset, syntax=syntax)
    assert refused(tmp_path).key.startswith("pixel_data")


def test_only_the_needed_frames_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    write(tmp_path, enhanced_dataset(slices_of(stored_values((20, 40, 48)))), syntax=JPEGLSLossless)
    series, read, real = only(tmp_path), [0], os.pread

    def counted(descriptor: int, count: int, offset: int) -> bytes:
        read[0] += count
        return real(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", counted)
    read_hu(series, VoxelWindow(slice(4, 6), slice(0, 40), slice(0, 48)))
    assert read[0] < 3 * 40 * 48 * 2


def test_many_fragments_end_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAGMENTS_PER_FRAME", 2)
    write(tmp_path, enhanced_dataset(slices_of(stored_values(SHAPE))), syntax=RLELossless, table="basic", fragments=3)
    assert "fragments" in refused(tmp_path).message


def test_a_frame_larger_than_its_pixels_is_not_read(tmp_path: Path) -> None:
    (path,) = write(tmp_path, enhanced_dataset(slices_of(stored_values(SHAPE))), syntax=RLELossless)
    raw = path.read_bytes()
    start = raw.rindex(b"\xe0\x7f\x10\x00OB") + 20
    (length,) = struct.unpack_from("<I", raw, start + 4)
    fat = raw[: start + 4] + struct.pack("<I", length + 100_000) + raw[start + 8 : start + 8 + length] + b"\0" * 100_000
    path.write_bytes(fat + raw[start + 8 + length :])
    assert "larger" in refused(tmp_path).message


# ---- hostile headers


def test_item_bombs_end_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 MB of empty items, which pydicom would turn into gigabytes of objects."""
    monkeypatch.setattr(elements, "ELEMENT_LIMIT", 50_000)
    good = file_bytes(enhanced_dataset(slices_of(stored_values(SHAPE))))
    start = good.index(b"\x00\x52\x29\x92SQ")
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 5_000_000
    bomb = good[:start] + b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\0\0\0\0" + good[start:]
    (tmp_path / "bomb").write_bytes(bomb)
    began = time.perf_counter()
    with pytest.raises(NoUsableCT, match="over_limits 1"):
        read_study(tmp_path)
    assert time.perf_counter() - began < 5


def test_a_thousand_frames_are_read_in_time(tmp_path: Path) -> None:
    """The bound is loose: it takes a fifth of a second."""
    dataset = enhanced_dataset(slices_of(stored_values((99, 4, 4))))
    each = dataset.PerFrameFunctionalGroupsSequence
    positions = [item(ImagePositionPatient=["0", "0", str(index)]) for index in range(990)]
    many = []
    for index, position in enumerate(positions):
        groups = copied(each[index % 99])
        groups.PlanePositionSequence = Items([position])
        many.append(groups)
    dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = Items(many), 990
    dataset.PixelData = dataset.PixelData * 10
    write(tmp_path, dataset)
    began = time.perf_counter()
    assert len(only(tmp_path).slices) == 990
    assert time.perf_counter() - began < 4


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(syntax=st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless]), data=st.data())
def test_damaged_multi_frame_files_never_crash(
    tmp_path_factory: pytest.TempPathFactory, syntax: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("mutant")
    (path,) = write(folder, enhanced_dataset(slices_of(stored_values((4, 8, 8)))), syntax=syntax)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(132, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))]))
    try:
        for series in read_study(folder).series:
            if series.problem is None:
                assert read_hu(series, whole(series)).max() <= 3071
    except FourphaseError as error:
        if error.code not in (11, 15):
            raise


# ---- the walk

TAGS = st.sampled_from([0x00080060, 0x00100010, 0x00181210, 0x00200032, 0x00280010, 0x00291010])
VALUES = st.text(st.sampled_from("0123456789"), min_size=1, max_size=12)


@st.composite
def nested(draw: st.DrawFn, depth: int = 0) -> Dataset:
    dataset = Dataset()
    for tag in draw(st.lists(TAGS, max_size=4, unique=True)):
        if tag == 0x00280010:
            dataset.add_new(tag, "US", draw(st.integers(0, 65535)))
        else:
            dataset.add_new(tag, "LO", draw(VALUES))
    for tag in (0x00081140, 0x00209113) if depth < 3 else ():
        if draw(st.booleans()):
            dataset.add_new(tag, "SQ", Items(draw(st.lists(nested(depth + 1), max_size=3))))
            dataset[tag].is_undefined_length = draw(st.booleans())
    dataset.is_undefined_length_sequence_item = draw(st.booleans())
    return dataset


def plain(dataset: Dataset, wanted: Any, order: str) -> dict[int, Any]:
    """What the walk should find, from pydicom's objects."""
    found: dict[int, Any] = {}
    for element in dataset:
        tag = int(element.tag)
        if tag not in wanted:
            continue
        if element.VR == "SQ":
            found[tag] = [plain(one, wanted[tag], order) for one in element.value]
        elif element.VR == "US":
            found[tag] = struct.pack(f"{order}H", element.value)
        else:
            text = str(element.value).encode()
            found[tag] = text + b" " * (len(text) % 2)
    return found


@settings(max_examples=150)
@given(dataset=nested(), implicit=st.booleans(), little=st.booleans())
def test_the_walk_finds_what_pydicom_wrote(dataset: Dataset, implicit: bool, little: bool) -> None:
    implicit = implicit and little
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, little
    write_dataset(buffer, dataset)
    leaf: Any = {0x00080060: None, 0x00280010: None}
    wanted: Any = {0x00100010: None, 0x00200032: None, 0x00209113: {**leaf, 0x00209113: leaf}}
    data = buffer.getvalue()
    found, end = walk(data, 0, wanted, little=little, implicit=implicit)
    assert end == len(data)
    assert found == plain(dataset, wanted, "<" if little else ">")


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_the_walk_through_garbage_ends(garbage: bytes, little: bool, implicit: bool) -> None:
    try:
        _, end = walk(garbage, 0, enhanced.WANTED, little=little, implicit=implicit)
        assert 0 <= end <= len(garbage) + 8
    except (MalformedData, TooManyElements):
        pass


def test_deep_sequences_are_refused() -> None:
    level = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with pytest.raises(MalformedData):
        walk(level * 10_000, 0, {}, little=True, implicit=False)


def test_dciodvfy_reads_the_test_object(tmp_path: Path) -> None:
    """The synthetic object is an enhanced CT to others too; which attributes it leaves out does not matter."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    (path,) = write(tmp_path, enhanced_dataset(slices_of(stored_values(SHAPE))))
    outcome = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    assert "EnhancedCTImage" in outcome.stderr + outcome.stdout
    wrong = ("PlanePosition", "PlaneOrientation", "PixelMeasures", "PixelValueTransformation", "sequence item")
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("Error") and "Missing" not in line]
    assert not [line for line in errors if any(word in line for word in wrong)], errors


def test_pydicom_reads_the_test_object() -> None:
    dataset = enhanced_dataset(slices_of(stored_values(SHAPE)))
    read = pydicom.dcmread(io.BytesIO(file_bytes(dataset, JPEGLSLossless, table="basic", fragments=2)))
    np.testing.assert_array_equal(read.pixel_array, stored_values(SHAPE))
