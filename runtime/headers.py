"""One file's header -> its CT slices (one, or the frames of a multi-frame image), or the reason why it holds none.

Only what a single file can tell is decided here; whether slices fit together is `series`'s question. InstanceNumber,
SpacingBetweenSlices, ProtocolName and StudyDescription are never read: they mislead.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from fourphase.runtime.dicom_file import SkippedFile, read_raw_header
from fourphase.runtime.enhanced import CALCULATION, TEMPORAL_POSITION, frame_headers
from fourphase.runtime.raw_header import RawHeader
from fourphase.runtime.slice_header import PixelFormat, SeriesTags, SliceHeader

__all__ = ["Findings", "PixelFormat", "SeriesTags", "SliceHeader", "read_slice_header", "read_slice_headers"]

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
#: Enhanced CT and Legacy Converted Enhanced CT: many slices in one file.
MULTI_FRAME_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
#: Values of ImageType (0008,0008) that, in a DERIVED image, mean reformatted or computed pixels.
REFORMATTED = re.compile(r"\b(?:MPR|CPR|MIP|MINIP|VRT|SSD|3D|REFORMATTED|PROJECTION IMAGE|SUBTRACTION)\b")
#: Derived pixel contrast, value 4 of FrameType (PS3.3 C.8.16.1.4), of pixels computed from several others.
COMPUTED = (
    *("ADDITION", "DIVISION", "MASKED", "MAXIMUM", "MEAN", "MINIMUM", "MULTIPLICATION", "QUANTITY", "RESAMPLED"),
    *("STD_DEVIATION", "SUBTRACTION"),
)
#: RescaleType (0028,1054): HU, unspecified (US) or absent; not iodine maps, effective Z or the like.
HOUNSFIELD_TYPES = ("", "HU", "US")

#: A class and a modality that can be read: what else they hold was never written by a scanner.
UID_TEXT, CODE_TEXT = re.compile(r"[0-9.]{0,64}"), re.compile(r"[A-Z]{2,16}")

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
EXTENDED_OFFSETS = 0x7FE00001

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
    EXTENDED_OFFSETS,
)


@dataclass
class Findings:
    """What the files of a study hold.

    Attributes:
        slices: the usable ones.
        unusable: of files and frames that are no slice of a volume, those that have a place: where one of them goes on
            from a series, the series lacks it.
        unplaced: SeriesInstanceUIDs of CT images without a place.
        skipped: files and frames that are no slice, by reason.
    """

    slices: list[SliceHeader] = field(default_factory=list)
    unusable: list[SliceHeader] = field(default_factory=list)
    unplaced: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)


def read_slice_headers(path: Path, folder: str, found: Findings) -> None:
    """Adds one file's slices, or why it holds none; call it within `dicom_file.quiet_pydicom`.

    Args:
        path: a regular file.
        folder: the file's folder relative to the study, which groups slices when UIDs are empty.
    """
    try:
        raw = read_raw_header(path, _TAGS)
        if not _is_multi_frame(raw):
            _add(raw, path, folder, found)
            return
        refusal = _refusal(raw)
        if refusal is not None:
            raise SkippedFile(refusal)
        frames = raw.integer(FRAMES) or 0
        for index, frame in enumerate(frame_headers(path, raw, frames)):
            _add(frame, path, folder, found, index, frames)
    except SkippedFile as skip:
        found.skipped[skip.reason] += 1


def read_slice_header(path: Path, folder: str) -> SliceHeader:
    """The slice of a file that holds one; as `read_slice_headers`.

    Raises:
        SkippedFile: with the reason why the file is no usable CT slice; "multi_frame" when it holds several.
    """
    found = Findings()
    read_slice_headers(path, folder, found)
    if found.skipped or len(found.slices) != 1:
        raise SkippedFile(next(iter(found.skipped), "multi_frame"))
    return found.slices[0]


def _is_multi_frame(raw: RawHeader) -> bool:
    sop_class = raw.text(SOP_CLASS)
    return sop_class in MULTI_FRAME_CT or (sop_class == CT_IMAGE and (raw.integer(FRAMES) or 1) > 1)


def _add(raw: RawHeader, path: Path, folder: str, found: Findings, frame: int = 0, frames: int = 1) -> None:
    """Adds one slice, or why it is none."""
    refusal = _refusal(raw)
    slice_ = _slice(raw, path, folder, frame, frames)
    if refusal is None and slice_ is not None:
        found.slices.append(slice_)
        return
    found.skipped[refusal or "no_geometry"] += 1
    if slice_ is not None:
        found.unusable.append(slice_)
    elif refusal is None:
        found.unplaced.add(raw.uid(SERIES_UID))


def _slice(raw: RawHeader, path: Path, folder: str, frame: int, frames: int) -> SliceHeader | None:
    """The slice, or None without a place in space."""
    position, orientation = raw.floats(POSITION, 3), raw.floats(ORIENTATION, 6)
    spacing, rows, columns = raw.floats(PIXEL_SPACING, 2), raw.short(ROWS), raw.short(COLUMNS)
    if position is None or orientation is None or spacing is None or not rows or not columns:
        return None
    if max(map(abs, (*position, *orientation, *spacing))) > LARGEST_MM:
        return None
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
        pixel_offset=raw.pixel_offset or 0,
        sop_class_uid=raw.uid(SOP_CLASS),
        frame=frame,
        frames=frames,
        temporal_position=raw.long(TEMPORAL_POSITION),
        offset_table=raw.values.get(EXTENDED_OFFSETS, b"") if frames > 1 else b"",
    )


def _refusal(raw: RawHeader) -> str | None:
    """Why the file, or frame, is no slice of a CT volume; None if it is one."""
    sop_class, modality = raw.text(SOP_CLASS) or raw.media_class, raw.text(MODALITY).upper()
    image_type = "\\".join(raw.strings(IMAGE_TYPE)).upper()
    photometric = raw.text(PHOTOMETRIC)
    readable = UID_TEXT.fullmatch(sop_class) is not None
    other_modality = modality != "CT" and CODE_TEXT.fullmatch(modality) is not None
    reasons = {
        "dicomdir": sop_class == MEDIA_DIRECTORY,
        "secondary_capture": sop_class.startswith(SECONDARY_CAPTURE) or "SCREEN SAVE" in image_type,
        "not_ct": (readable and sop_class not in ("", CT_IMAGE, *MULTI_FRAME_CT)) or other_modality,
        "localizer": "LOCALIZER" in image_type,
        "colour": raw.short(SAMPLES) not in (None, 1) or not (photometric or "MONOCHROME").startswith("MONOCHROME"),
        "derived": _is_reformatted(raw, image_type),
        "not_hounsfield": raw.text(RESCALE_TYPE).upper() not in HOUNSFIELD_TYPES,
        "no_pixel_data": raw.pixel_offset is None,
        # All are always there (type 1); without them nothing says that it is another kind of image.
        "damaged": not readable or modality != "CT" or not photometric,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _is_reformatted(raw: RawHeader, image_type: str) -> bool:
    """By ImageType or FrameType, or by VolumeBasedCalculationTechnique (0008,9207), which only frames have."""
    if raw.text(CALCULATION).upper() not in ("", "NONE"):
        return True
    if not image_type.startswith("DERIVED"):
        return False
    contrast = image_type.split("\\")[3:4] if raw.text(SOP_CLASS) in MULTI_FRAME_CT else []
    return REFORMATTED.search(image_type) is not None or not set(contrast).isdisjoint(COMPUTED)


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
