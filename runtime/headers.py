"""One file's header -> one CT slice, or the reason why the file is none.

Only what a single file can tell is decided here; whether slices fit together is `series`'s question. InstanceNumber,
SpacingBetweenSlices, ProtocolName and StudyDescription are never read: they mislead.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from fourphase.runtime.dicom_file import DEFLATED, RawHeader, SkippedFile, read_raw_header

__all__ = ["PixelFormat", "SeriesTags", "SliceHeader", "read_slice_header"]

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
#: Enhanced CT and Legacy Converted Enhanced CT: every slice in one file.
MULTI_FRAME_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
#: Values of ImageType (0008,0008) that, in a DERIVED image, mean reformatted or computed pixels.
REFORMATTED = re.compile(r"\b(?:MPR|CPR|MIP|MINIP|VRT|SSD|3D|REFORMATTED|PROJECTION IMAGE|SUBTRACTION)\b")
#: RescaleType (0028,1054): HU, unspecified (US) or absent; not iodine maps, effective Z or the like.
HOUNSFIELD_TYPES = ("", "HU", "US")

#: No coordinate of a patient is further out; beyond, arithmetic overflows before a check can speak.
LARGEST_MM = 1e6

CHARACTER_SET, IMAGE_TYPE, SOP_CLASS, SOP_INSTANCE = 0x00080005, 0x00080008, 0x00080016, 0x00080018
ACQUISITION_DATE, ACQUISITION_DATETIME, ACQUISITION_TIME = 0x00080022, 0x0008002A, 0x00080032
MODALITY, SERIES_DESCRIPTION, PATIENT_ID = 0x00080060, 0x0008103E, 0x00100020
CONTRAST_AGENT, CONTRAST_PHASE, CONTRAST_START = 0x00180010, 0x00189344, 0x00181042
SLICE_THICKNESS, KERNEL = 0x00180050, 0x00181210
STUDY_UID, SERIES_UID, SERIES_NUMBER, ACQUISITION_NUMBER = 0x0020000D, 0x0020000E, 0x00200011, 0x00200012
POSITION, ORIENTATION, FRAME_OF_REFERENCE = 0x00200032, 0x00200037, 0x00200052
SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS = 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011
PIXEL_SPACING, BITS_ALLOCATED, BITS_STORED, HIGH_BIT = 0x00280030, 0x00280100, 0x00280101, 0x00280102
SIGNED, PADDING, PADDING_LIMIT = 0x00280103, 0x00280120, 0x00280121
INTERCEPT, SLOPE, RESCALE_TYPE, LOSSY = 0x00281052, 0x00281053, 0x00281054, 0x00282110

_SERIES = (
    *(CHARACTER_SET, IMAGE_TYPE, SERIES_DESCRIPTION, PATIENT_ID, STUDY_UID, SERIES_UID, SERIES_NUMBER),
    *(FRAME_OF_REFERENCE, CONTRAST_AGENT, CONTRAST_PHASE, CONTRAST_START, SLICE_THICKNESS, KERNEL),
)
_PIXELS = (BITS_ALLOCATED, BITS_STORED, HIGH_BIT, SIGNED, PADDING, PADDING_LIMIT, PHOTOMETRIC, LOSSY)
_TAGS = (
    *_SERIES,
    *_PIXELS,
    *(SOP_CLASS, SOP_INSTANCE, MODALITY, ACQUISITION_DATE, ACQUISITION_DATETIME, ACQUISITION_TIME, ACQUISITION_NUMBER),
    *(POSITION, ORIENTATION, PIXEL_SPACING, SAMPLES, FRAMES, ROWS, COLUMNS, INTERCEPT, SLOPE, RESCALE_TYPE),
)


@dataclass(frozen=True)
class SeriesTags:
    """What a header says about its series, the same in every slice as a rule. Text in it may name the patient.

    Attributes:
        patient: digest of PatientID, '' when empty: only equality is ever needed.
        study_uid, uid, number, description: StudyInstanceUID, SeriesInstanceUID, SeriesNumber, SeriesDescription.
        frame_of_reference_uid: '' when absent.
        image_type: values of ImageType, upper case.
        agent, agent_phase: ContrastBolusAgent (0018,0010), ContrastBolusAgentPhase (0018,9344); '' when absent.
        bolus_start: ContrastBolusStartTime (0018,1042) in seconds of the day.
        thickness_mm: SliceThickness; a preference among reconstructions, never geometry.
        kernel: ConvolutionKernel, upper case.
    """

    patient: str = field(repr=False)
    study_uid: str
    uid: str
    number: int | None
    description: str = field(repr=False)
    frame_of_reference_uid: str
    image_type: tuple[str, ...]
    agent: str = field(repr=False)
    agent_phase: str
    bolus_start: float | None
    thickness_mm: float | None
    kernel: str


@dataclass(frozen=True)
class PixelFormat:
    """How stored values become numbers (PS3.5 8.1, PS3.3 C.7.6.3).

    Attributes:
        transfer_syntax: UID.
        little_endian: byte order of native pixel data.
        bits_allocated, bits_stored, high_bit: 0 when absent.
        signed: PixelRepresentation (0028,0103) is 1.
        padding: lowest and highest stored value that means "no pixel here" (0028,0120 and 0028,0121).
        photometric: MONOCHROME1 or MONOCHROME2.
        lossy: LossyImageCompression (0028,2110) says that values were changed.
    """

    transfer_syntax: str
    little_endian: bool
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None
    photometric: str
    lossy: bool


@dataclass(frozen=True)
class SliceHeader:
    """One slice of a CT series, pixels not read.

    Attributes:
        path: the file; folder: its folder relative to the study. Neither is ever printed.
        position: ImagePositionPatient, centre of the first voxel, LPS mm.
        orientation: ImageOrientationPatient, row direction then column direction.
        pixel_spacing: (dy, dx) in mm.
        acquired_day, acquired_time: AcquisitionDate as day number, AcquisitionTime in seconds of the day.
        slope, intercept: stored value -> HU; NaN when absent or not a number.
        pixel_offset: byte offset of the PixelData element.
    """

    path: Path = field(repr=False)
    folder: str = field(repr=False)
    tags: SeriesTags
    sop_instance_uid: str
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, float]
    rows: int
    columns: int
    acquisition_number: int | None
    acquired_day: int | None
    acquired_time: float | None
    pixels: PixelFormat
    slope: float
    intercept: float
    pixel_offset: int

    @property
    def is_deflated(self) -> bool:
        return self.pixels.transfer_syntax == DEFLATED


def read_slice_header(path: Path, folder: str) -> SliceHeader:
    """Reads one file's header; call it within `dicom_file.quiet_pydicom`.

    Args:
        path: a regular file.
        folder: the file's folder relative to the study, which groups slices when UIDs are empty.

    Raises:
        SkippedFile: with the reason why the file is no usable CT slice.
    """
    raw = read_raw_header(path, _TAGS)
    _refuse_other_objects(raw)
    if raw.pixel_offset is None:
        raise SkippedFile("no_pixel_data")
    position, orientation = raw.floats(POSITION, 3), raw.floats(ORIENTATION, 6)
    spacing, rows, columns = raw.floats(PIXEL_SPACING, 2), raw.short(ROWS), raw.short(COLUMNS)
    if position is None or orientation is None or spacing is None or not rows or not columns:
        raise SkippedFile("no_geometry")
    if max(map(abs, (*position, *orientation, *spacing))) > LARGEST_MM:
        raise SkippedFile("no_geometry")
    day, time = _acquired(raw)
    return SliceHeader(
        path=path,
        folder=folder,
        tags=_series_tags(*(raw.values.get(tag, b"") for tag in _SERIES)),
        sop_instance_uid=raw.uid(SOP_INSTANCE),
        position=(position[0], position[1], position[2]),
        orientation=orientation,
        pixel_spacing=(spacing[0], spacing[1]),
        rows=rows,
        columns=columns,
        acquisition_number=raw.integer(ACQUISITION_NUMBER),
        acquired_day=day,
        acquired_time=time,
        pixels=_pixel_format(raw.transfer_syntax, raw.little_endian, *(raw.values.get(tag, b"") for tag in _PIXELS)),
        slope=_number_or_nan(raw.decimal(SLOPE)),
        intercept=_number_or_nan(raw.decimal(INTERCEPT)),
        pixel_offset=raw.pixel_offset,
    )


def _refuse_other_objects(raw: RawHeader) -> None:
    sop_class, modality = raw.text(SOP_CLASS) or raw.media_class, raw.text(MODALITY).upper()
    image_type = "\\".join(raw.strings(IMAGE_TYPE)).upper()
    photometric = raw.text(PHOTOMETRIC)
    reasons = {
        "dicomdir": sop_class == MEDIA_DIRECTORY,
        "secondary_capture": sop_class.startswith(SECONDARY_CAPTURE) or "SCREEN SAVE" in image_type,
        "multi_frame": sop_class in MULTI_FRAME_CT or (sop_class == CT_IMAGE and (raw.integer(FRAMES) or 1) > 1),
        "not_ct": sop_class not in ("", CT_IMAGE) or modality != "CT",
        "localizer": "LOCALIZER" in image_type,
        "colour": raw.short(SAMPLES) not in (None, 1) or not photometric.startswith("MONOCHROME"),
        "derived": image_type.startswith("DERIVED") and REFORMATTED.search(image_type) is not None,
        "not_hounsfield": raw.text(RESCALE_TYPE).upper() not in HOUNSFIELD_TYPES,
    }
    for reason, applies in reasons.items():
        if applies:
            raise SkippedFile(reason)


@lru_cache(maxsize=1024)
def _series_tags(*values: bytes) -> SeriesTags:
    """The slices of a series share these bytes, so they are decoded once."""
    raw = _raw(_SERIES, values)
    patient = raw.text(PATIENT_ID)
    return SeriesTags(
        patient=hashlib.sha256(patient.encode()).hexdigest() if patient else "",
        study_uid=raw.uid(STUDY_UID),
        uid=raw.uid(SERIES_UID),
        number=raw.integer(SERIES_NUMBER),
        description=raw.free_text(SERIES_DESCRIPTION),
        frame_of_reference_uid=raw.uid(FRAME_OF_REFERENCE),
        image_type=tuple(value.upper() for value in raw.strings(IMAGE_TYPE)),
        agent=raw.free_text(CONTRAST_AGENT),
        agent_phase=raw.text(CONTRAST_PHASE).upper(),
        bolus_start=_seconds(raw.text(CONTRAST_START)),
        thickness_mm=raw.decimal(SLICE_THICKNESS),
        kernel=raw.text(KERNEL).upper(),
    )


@lru_cache(maxsize=1024)
def _pixel_format(transfer_syntax: str, little_endian: bool, *values: bytes) -> PixelFormat:
    raw = _raw(_PIXELS, values, little_endian)
    signed = raw.short(SIGNED) == 1
    padding = raw.short(PADDING, signed=signed)
    limit = raw.short(PADDING_LIMIT, signed=signed)
    ends = [value for value in (padding, limit) if value is not None]
    return PixelFormat(
        transfer_syntax=transfer_syntax,
        little_endian=little_endian,
        bits_allocated=raw.short(BITS_ALLOCATED) or 0,
        bits_stored=raw.short(BITS_STORED) or 0,
        high_bit=raw.short(HIGH_BIT) or 0,
        signed=signed,
        padding=(min(ends), max(ends)) if padding is not None else None,
        photometric=raw.text(PHOTOMETRIC),
        lossy=raw.text(LOSSY) == "01",
    )


def _raw(tags: tuple[int, ...], values: tuple[bytes, ...], little_endian: bool = True) -> RawHeader:
    return RawHeader(
        {tag: value for tag, value in zip(tags, values, strict=True) if value}, little_endian=little_endian
    )


def _acquired(raw: RawHeader) -> tuple[int | None, float | None]:
    """Day number and seconds of the day of AcquisitionDate and -Time, or of AcquisitionDateTime (0008,002A)."""
    date, time = raw.text(ACQUISITION_DATE), raw.text(ACQUISITION_TIME)
    if not time:
        combined = raw.text(ACQUISITION_DATETIME)
        date, time = combined[:8], re.split("[-+]", combined[8:])[0]
    return _day(date), _seconds(time)


@lru_cache(maxsize=4096)
def _day(date: str) -> int | None:
    try:
        return datetime.datetime.strptime(date.replace(".", ""), "%Y%m%d").toordinal()
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def _seconds(time: str) -> float | None:
    """A DICOM time (VR TM: HH, HHMM, HHMMSS, HHMMSS.FFFFFF, or with colons) in seconds of the day."""
    match = re.fullmatch(r"(\d\d):?(?:(\d\d):?(?:(\d\d)(\.\d{1,6})?)?)?", time)
    if match is None:
        return None
    hours, minutes, seconds, fraction = match.groups(default="0")
    if int(hours) > 23 or int(minutes) > 59 or int(seconds) > 60:
        return None
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(fraction)


def _number_or_nan(value: float | None) -> float:
    return math.nan if value is None else value
