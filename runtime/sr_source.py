"""What the structured report takes from the study: the images it refers to, and whose study it is.

Patient and study come from the header of one image that the model saw; nothing is guessed, a value that DICOM does not
allow is left out. Sequences of the Patient and General Study modules are not copied. No pixel is read.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from fourphase.runtime.dicom_file import RawHeader, SkippedFile, quiet_pydicom, read_raw_header
from fourphase.runtime.errors import InputMissing
from fourphase.runtime.geometry import Region
from fourphase.runtime.headers import CHARACTER_SET, CT_IMAGE, MULTI_FRAME_CT, SOP_INSTANCE, SliceHeader
from fourphase.runtime.sr_codes import clean, cut

if TYPE_CHECKING:
    from fourphase.runtime.pipeline import PreparedStudy
    from fourphase.runtime.series import Series

__all__ = ["Moment", "SourceImage", "SourcePhase", "SourceStudy", "source_phases", "source_study"]

_STUDY_UID = 0x0020000D
#: Type 2 of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): present, empty where unknown.
_REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
#: Copied as they are, because shortened they would name somebody else.
_IDENTITY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientNames"),
    *("ReferringPhysicianName", "PhysiciansOfRecord", "StudyID", "AccessionNumber"),
)
#: Free text -> the length that PS3.5 6.2 allows; cut there.
_TEXTS = {"StudyDescription": 64, "EthnicGroup": 16, "PatientComments": 10240, "DeidentificationMethod": 64}
#: Copied where they look like this.
_FORMATS = {
    "PatientSex": r"[MFO]",
    "TypeOfPatientID": r"TEXT|RFID|BARCODE",
    "PatientAge": r"\d{3}[DWMY]",
    "PatientSize": r"\d{1,2}(\.\d{1,8})?",
    "PatientWeight": r"\d{1,3}(\.\d{1,8})?",
    "QualityControlSubject": r"YES|NO",
    "PatientIdentityRemoved": r"YES|NO",
}
_DATES = ("PatientBirthDate", "StudyDate")
_TIMES = ("PatientBirthTime", "StudyTime")
#: No identifier of a real archive is longer; what is, is an attack.
_LONGEST_IDENTITY = 1024

#: The dates and times by which the report may be dated, best first.
_MOMENTS = (
    ("StudyDate", "StudyTime"),
    ("AcquisitionDate", "AcquisitionTime"),
    ("SeriesDate", "SeriesTime"),
    ("ContentDate", "ContentTime"),
)
_NAMES = (*_REQUIRED, *_IDENTITY, *_TEXTS, *_FORMATS, *_DATES, *_TIMES, *(name for pair in _MOMENTS for name in pair))


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


_TAGS = {keyword: _tag(keyword) for keyword in dict.fromkeys(_NAMES)}


@dataclass(frozen=True)
class SourceImage:
    """One SOP instance; `frames` are its frame numbers from 1, empty for a single-frame image."""

    sop_class_uid: str
    sop_instance_uid: str
    frames: tuple[int, ...] = ()


@dataclass(frozen=True)
class SourcePhase:
    """One phase's series and the part of it that the model saw.

    Attributes:
        frame_of_reference_uid: '' when absent.
        region: the lesion box, LPS mm, without margin.
        images: those with voxels in the box and its margin, in the order of the slices.
    """

    phase: str
    series_instance_uid: str
    frame_of_reference_uid: str
    region: Region
    images: tuple[SourceImage, ...]


@dataclass(frozen=True)
class Moment:
    """A date and a time as DICOM writes them; `known` is False if the study has no date."""

    date: str
    time: str
    known: bool = True


@dataclass(frozen=True, eq=False)
class SourceStudy:
    """Whose study it is.

    Attributes:
        study_uid: StudyInstanceUID.
        attributes: Patient and General Study, text as Unicode; every type 2 attribute is there, possibly empty.
        moment: when the study took place.
    """

    study_uid: str
    attributes: Dataset
    moment: Moment


def source_phases(prepared: PreparedStudy, margin_mm: float) -> tuple[SourcePhase, ...]:
    """The phases in the model's order, each with the images that lie in the lesion box and its margin.

    Raises:
        InputMissing: (10, sr_source_incomplete) an image or series has no UID, or two images share one.
    """
    found = []
    seen: dict[str, str] = {}
    for phase, match in prepared.phases.items():
        series, region = match.series, prepared.box.by_phase[phase]
        if not series.uid:
            raise _incomplete(f"the series of phase {phase} has no SeriesInstanceUID")
        images = _images(_in_region(series, region.grown(margin_mm)))
        for image in images:
            if seen.setdefault(image.sop_instance_uid, series.uid) != series.uid:
                raise _incomplete("images of two series share one SOPInstanceUID")
        found.append(SourcePhase(phase, series.uid, series.frame_of_reference_uid, region, images))
    return tuple(found)


def _in_region(series: Series, region: Region) -> tuple[SliceHeader, ...]:
    """The slices within the region, and the next one on either side: voxels are interpolated between slices."""
    index = series.geometry.index_of(region.corners())[:, 0]
    last = len(series.slices) - 1
    first = min(max(math.floor(index.min()), 0), last)
    return series.slices[first : min(max(math.ceil(index.max()), first), last) + 1]


def _images(headers: tuple[SliceHeader, ...]) -> tuple[SourceImage, ...]:
    """One image per SOP instance; the slices of a multi-frame one become its frame numbers."""
    found: dict[str, SourceImage] = {}
    paths: dict[str, Path] = {}
    for header in headers:
        uid = header.sop_instance_uid
        if not uid:
            raise _incomplete("an image has no SOPInstanceUID")
        if paths.setdefault(uid, header.path) != header.path:
            raise _incomplete("images at different positions share one SOPInstanceUID")
        known = found.get(uid) or SourceImage(header.sop_class_uid or CT_IMAGE, uid)
        multi_frame = header.frames > 1 or known.sop_class_uid in MULTI_FRAME_CT
        found[uid] = replace(known, frames=(*known.frames, header.frame + 1) if multi_frame else ())
    return tuple(replace(image, frames=tuple(sorted(image.frames))) for image in found.values())


def source_study(prepared: PreparedStudy) -> SourceStudy:
    """Reads patient and study from the header of the first phase's first image.

    Text is decoded by its own SpecificCharacterSet (0008,0005), as UTF-8 where the bytes are that whatever the header
    claims, and as Latin-1 where no character set is declared or known.

    Raises:
        InputMissing: (10) the file is gone, another one or has no StudyInstanceUID, or an identifier is absurdly long.
    """
    header = next(iter(prepared.phases.values())).series.slices[0]
    try:
        with quiet_pydicom():
            raw = read_raw_header(header.path, (CHARACTER_SET, SOP_INSTANCE, _STUDY_UID, *_TAGS.values()))
    except SkippedFile:
        raise _incomplete("an image of the study can no longer be read") from None
    if raw.uid(SOP_INSTANCE) != header.sop_instance_uid:
        raise _incomplete("an image of the study was replaced while it was being processed")
    study_uid = raw.uid(_STUDY_UID)
    if not study_uid:
        raise _incomplete("the study has no StudyInstanceUID")
    attributes = Dataset()
    values = dict.fromkeys(_REQUIRED, "") | dict(_values(raw))
    if values.get("PatientIdentityRemoved") == "YES":
        # Type 1C then; the source may say it with codes only, in a sequence.
        values.setdefault("DeidentificationMethod", "as in the source images")
    for keyword, value in values.items():
        tag = _TAGS[keyword]
        attributes[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE)
    return SourceStudy(study_uid, attributes, _moment(raw))


def _values(raw: RawHeader) -> Iterator[tuple[str, str]]:
    """Keyword -> value of what may be copied."""
    for keyword in _IDENTITY:
        text = clean(raw.free_text(_TAGS[keyword]))
        if len(text) > _LONGEST_IDENTITY:
            raise _incomplete(f"{keyword} is {len(text)} characters long")
        if text:
            yield keyword, text
    for keyword, length in _TEXTS.items():
        # A backslash would make it several values (PS3.5 6.2).
        if text := cut(clean(raw.free_text(_TAGS[keyword])).replace("\\", "/"), length):
            yield keyword, text
    for keyword, pattern in _FORMATS.items():
        if re.fullmatch(pattern, text := raw.text(_TAGS[keyword]), re.ASCII):
            yield keyword, text
    for keyword in _DATES:
        yield keyword, _date(raw.text(_TAGS[keyword]))
    for keyword in _TIMES:
        if time := _time(raw.text(_TAGS[keyword])):
            yield keyword, time


def _moment(raw: RawHeader) -> Moment:
    for date_name, time_name in _MOMENTS:
        if date := _date(raw.text(_TAGS[date_name])):
            return Moment(date, _time(raw.text(_TAGS[time_name])) or "000000")
    return Moment("19000101", "000000", known=False)


def _date(text: str) -> str:
    """A DICOM date YYYYMMDD (the old YYYY.MM.DD too), '' if it is none."""
    digits = text.replace(".", "")
    try:
        datetime.datetime.strptime(digits, "%Y%m%d")
    except ValueError:
        return ""
    return digits if re.fullmatch(r"\d{8}", digits, re.ASCII) else ""


def _time(text: str) -> str:
    """A DICOM time HHMMSS.FFFFFF, HHMMSS, HHMM or HH, '' if it is none."""
    digits = text.replace(":", "")
    pattern = r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"
    return digits if re.fullmatch(pattern, digits, re.ASCII) else ""


def _incomplete(cause: str) -> InputMissing:
    return InputMissing(
        f"no DICOM SR can be made: {cause}",
        "use the result's JSON, or export the study again from the archive with its UIDs",
        key="sr_source_incomplete",
    )
