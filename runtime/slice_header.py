"""What the run time knows of one CT slice before its pixels are read. Nothing is read or checked here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fourphase.runtime.dicom_file import DEFLATED

__all__ = ["PixelFormat", "SeriesTags", "SliceHeader"]


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
        sop_class_uid: SOPClassUID; '' when empty.
        frame: which frame of its file it is, from 0; frames: NumberOfFrames of the file.
        temporal_position: TemporalPositionIndex (0020,9128) of a frame.
        offset_table: ExtendedOffsetTable (7FE0,0001) of a multi-frame file as it is there.
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
    sop_class_uid: str = ""
    frame: int = 0
    frames: int = 1
    temporal_position: int | None = None
    offset_table: bytes = field(default=b"", repr=False)

    @property
    def is_deflated(self) -> bool:
        return self.pixels.transfer_syntax == DEFLATED
