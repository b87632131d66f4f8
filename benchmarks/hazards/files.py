"""Hazards of files and headers: what else lies in the folder, how files are named, in which characters."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
    XRayRadiationDoseSRStorage,
)

from fourphase.benchmarks.hazards.hazard import Case, Hazard, change_all, other_uid
from fourphase.benchmarks.hazards.study import HURT, Grid
from fourphase.benchmarks.phantoms.dicom_writer import fill, save, set_pixels

__all__ = ["FILES"]

STUDY, ENHANCED = "tests/runtime/test_study.py::", "tests/runtime/test_enhanced.py::"


def _nested(case: Case) -> None:
    for number, path in enumerate(case.paths()):
        target = case.series / "a b" / str(number % 3) / f"{number * 7919 % 1009}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)


def _no_preamble(case: Case) -> None:
    """The bare data set, as old archives write it."""
    for path in case.paths():
        raw = path.read_bytes()
        path.write_bytes(raw[144 + int.from_bytes(raw[140:144], "little") :])


def _dicomdir(case: Case) -> None:
    directory = Dataset()
    fill(directory, {"FileSetID": "DISC", "FileSetConsistencyFlag": 0})
    directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
    directory.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
    directory.DirectoryRecordSequence = Items([])
    _write(case.series / "DICOMDIR", directory, MediaStorageDirectoryStorage)


def _write(path: Path, dataset: Dataset, sop_class: UID) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.1.3680043.10.{len(path.name)}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    dcmwrite(path, dataset, enforce_file_format=True)


def _localizer(case: Case) -> None:
    """In the series itself, as some scanners store it."""
    grid = Grid.around(case.sound.centre, (1, 0, 0, 0, 0, -1), offsets=[0.0])
    image = case.sound.dataset(HURT, grid, 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    image.SOPInstanceUID = other_uid("localizer")
    save(case.series / "LOCALIZER", image)


def _screen_capture(case: Case) -> None:
    image = case.sound.dataset(HURT, case.sound.grid, 0, SOPClassUID=SecondaryCaptureImageStorage)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(image, keyword)
    del image.RescaleIntercept
    fill(image, {"ConversionType": "WSD", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]})
    image.SOPInstanceUID = other_uid("capture")
    set_pixels(image, np.full((64, 64), 90, dtype=np.uint8))
    save(case.series / "CAPTURE", image)


def _dose_sheet(case: Case) -> None:
    report = Dataset()
    first = dcmread(case.path(0), stop_before_pixels=True)
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(report, keyword, first[keyword].value)
    fill(report, {"SOPClassUID": XRayRadiationDoseSRStorage, "SOPInstanceUID": "1.2.826.0.1.3680043.10.77"})
    fill(report, {"Modality": "SR", "ValueType": "CONTAINER", "SeriesNumber": 99})
    _write(case.series / "DOSE", report, XRayRadiationDoseSRStorage)


def _text(case: Case, charset: Sequence[str] | None, description: bytes) -> None:
    """SeriesDescription as these bytes, whatever the character set makes of them."""

    def edit(dataset: Dataset) -> None:
        if charset is None:
            del dataset.SpecificCharacterSet
        else:
            dataset.SpecificCharacterSet = list(charset)
        dataset.SeriesDescription = "D" * len(description)

    change_all(case.paths(), edit)
    for path in case.paths():
        raw = path.read_bytes()
        assert raw.count(b"D" * len(description)) == 1
        path.write_bytes(raw.replace(b"D" * len(description), description))


_JAPANESE = "肝臓 門脈相".encode("iso2022_jp")
_CHINESE = "肝脏 门脉期 ".encode("gb18030")
_GERMAN = "Leber portalvenös ".encode("latin-1")


def _enhanced(case: Case) -> None:
    """The series as one Enhanced CT image (PS3.3 A.38), all of its geometry per frame."""
    slices = [dcmread(path) for path in case.paths()]
    shutil.rmtree(case.series)
    image = slices[0]
    frames = [_groups(one) for one in slices]
    image.PixelData = b"".join(one.PixelData for one in slices)
    for keyword in (*_PER_FRAME, "ImageType", "AcquisitionDate", "AcquisitionTime", "AcquisitionNumber"):
        delattr(image, keyword)
    fill(image, {"SOPClassUID": EnhancedCTImageStorage, "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]})
    image.NumberOfFrames = len(slices)
    image.SharedFunctionalGroupsSequence = Items([Dataset()])
    image.PerFrameFunctionalGroupsSequence = Items(frames)
    save(case.series / "ALL", image)


_PER_FRAME = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
}


def _groups(source: Dataset) -> Dataset:
    groups: dict[str, Dataset] = {}
    for keyword, sequence in _PER_FRAME.items():
        setattr(groups.setdefault(sequence, Dataset()), keyword, source[keyword].value)
    moment = f"{source.AcquisitionDate}{source.AcquisitionTime}"
    groups["FrameContentSequence"] = _item(FrameAcquisitionDateTime=moment, FrameAcquisitionNumber=1)
    frame_type = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    groups["CTImageFrameTypeSequence"] = _item(FrameType=frame_type, VolumeBasedCalculationTechnique="NONE")
    return _item(**{sequence: Items([item]) for sequence, item in groups.items()})


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    fill(item, elements)
    return item


FILES = (
    Hazard(
        "nested",
        "files in folders of folders, called .jpg",
        _nested,
        "read",
        STUDY + "test_walks_nested_folders_and_follows_no_links",
    ),
    Hazard(
        "no_preamble",
        "files without preamble and file meta information",
        _no_preamble,
        "read",
        STUDY + "test_files_without_preamble_are_found",
    ),
    Hazard(
        "dicomdir", "a DICOMDIR among the slices", _dicomdir, "read", STUDY + "test_real_dicomdir_is_skipped_by_class"
    ),
    Hazard("localizer", "a localizer in the series", _localizer, "read", STUDY + "test_skips_with_the_reason"),
    Hazard(
        "dose_sheet",
        "a dose report (SR) in the series",
        _dose_sheet,
        "read",
        STUDY + "test_a_dose_sheet_and_a_presentation_state_are_skipped",
    ),
    Hazard(
        "screen_capture",
        "a screen capture in the series",
        _screen_capture,
        "read",
        STUDY + "test_skips_with_the_reason",
    ),
    Hazard(
        "charset_japanese",
        "Japanese description, ISO 2022 IR 87",
        partial(_text, charset=("", "ISO 2022 IR 87"), description=_JAPANESE),
        "read",
        STUDY + "test_descriptions_in_their_character_set",
    ),
    Hazard(
        "charset_chinese",
        "Chinese description, GB18030",
        partial(_text, charset=("GB18030",), description=_CHINESE),
        "read",
        STUDY + "test_descriptions_in_their_character_set",
    ),
    Hazard(
        "charset_missing",
        "umlauts without SpecificCharacterSet",
        partial(_text, charset=None, description=_GERMAN),
        "read",
        STUDY + "test_character_set_trouble_stops_nothing",
    ),
    Hazard(
        "charset_wrong",
        "umlauts in Latin-1 that claim to be UTF-8",
        partial(_text, charset=("ISO_IR 192",), description=_GERMAN),
        "read",
        STUDY + "test_character_set_trouble_stops_nothing",
    ),
    Hazard(
        "enhanced",
        "a phase as one enhanced multi-frame image",
        _enhanced,
        "read",
        ENHANCED + "test_frames_equal_single_files_bit_for_bit",
    ),
)
