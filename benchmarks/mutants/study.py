"""The sound studies that mutants are made of: four phases of 12 slices of 32 x 36, in every encoding that is read.

Their voxels are a closed form of place and phase. Every text of theirs that may name a person holds MARKER, the names
of folders and files too. How they are damaged is `mutant_kinds`' question.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, JPEGLSLossless, RLELossless

from fourphase.benchmarks.mutants.encoding import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG_2000,
    JPEG_LOSSLESS,
    NATIVE,
    file_bytes,
)
from fourphase.benchmarks.phantoms.dicom_writer import fill
from fourphase.runtime.geometry import Region

__all__ = [
    "COLUMNS",
    "MARKER",
    "PHASES",
    "ROWS",
    "SLICES",
    "SPACING",
    "STEP_MM",
    "VARIANTS",
    "BaseStudies",
    "BaseStudy",
    "PhaseTruth",
    "Variant",
    "write_base",
]

#: Fills every tag, folder and file name that may name a person; nothing that is printed may hold it.
MARKER = "QZMARKERQZ"
#: Description and seconds after the first.
PHASES = {"NC": ("nativ", 0), "ART": ("arteriell", 275), "PV": ("portal venous", 310), "DL": ("delayed", 435)}
SLICES, ROWS, COLUMNS = 12, 32, 36
SPACING = (1.6, 1.5)
STEP_MM = 3.0
CENTRE = np.array([5.0, -7.0, 40.0])
BOX_HALF_MM = (6.0, 6.0, 3.0)


@dataclass(frozen=True)
class Variant:
    """How a study is encoded, and where its slices lie.

    Attributes:
        turned_degrees: rotation of the slices about the patient's x axis.
        shear_mm: how much further along the columns each slice begins (a tilted gantry).
        feet_first: slices are written from the head down and turned about.
    """

    name: str
    transfer_syntax: str
    enhanced: bool = False
    signed: bool = False
    turned_degrees: float = 0.0
    shear_mm: float = 0.0
    feet_first: bool = False

    @property
    def compressed(self) -> bool:
        return self.transfer_syntax not in NATIVE


VARIANTS = {
    one.name: one
    for one in (
        Variant("explicit", EXPLICIT),
        Variant("implicit", IMPLICIT, signed=True, feet_first=True),
        Variant("big_endian", BIG_ENDIAN),
        Variant("deflated", DEFLATED),
        Variant("tilted", EXPLICIT, shear_mm=0.3),
        Variant("oblique", IMPLICIT, turned_degrees=5.0),
        Variant("rle", RLELossless),
        Variant("jpeg_lossless", JPEG_LOSSLESS),
        Variant("jpeg_ls", JPEGLSLossless),
        Variant("jpeg_2000", JPEG_2000),
        Variant("enhanced", EXPLICIT, enhanced=True),
        Variant("enhanced_jpeg_ls", JPEGLSLossless, enhanced=True),
    )
}


@dataclass(frozen=True, eq=False)
class PhaseTruth:
    """Where the slices of a phase really are: float64 (slices, 3) and (6,), LPS mm."""

    positions: NDArray[np.float64]
    orientation: NDArray[np.float64]

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.asarray(np.cross(self.orientation[:3], self.orientation[3:]), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class BaseStudy:
    """A sound study.

    Attributes:
        files: name relative to the study -> content.
        places: name -> phase and slice, of an enhanced file None: it holds them all.
        truth: the same for all phases.
        box: the lesion box, without margin.
    """

    variant: Variant
    files: dict[str, bytes]
    places: dict[str, tuple[str, int | None]]
    truth: PhaseTruth
    box: Region

    @property
    def box_json(self) -> str:
        return json.dumps({"space": "LPS_mm", "min": list(self.box.min), "max": list(self.box.max)})


class BaseStudies(Mapping[str, BaseStudy]):
    """The sound studies by variant, each made when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, BaseStudy] = {}

    def __getitem__(self, name: str) -> BaseStudy:
        if name not in self._made:
            self._made[name] = write_base(VARIANTS[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(VARIANTS)

    def __len__(self) -> int:
        return len(VARIANTS)


def write_base(variant: Variant) -> BaseStudy:
    """The sound study of a variant: the same bytes whenever it is made."""
    truth = _truth(variant)
    files: dict[str, bytes] = {}
    places: dict[str, tuple[str, int | None]] = {}
    for number, phase in enumerate(PHASES, 2):
        slices = [_slice(variant, truth, phase, number, index) for index in range(SLICES)]
        folder = f"{MARKER}/s{number}"
        if variant.enhanced:
            files[f"{folder}/all"] = file_bytes(_enhanced(variant, slices), variant.transfer_syntax)
            places[f"{folder}/all"] = (phase, None)
            continue
        for index, dataset in enumerate(slices):
            name = f"{folder}/{MARKER}{index * 7919 % 101:03d}"
            files[name], places[name] = file_bytes(dataset, variant.transfer_syntax), (phase, index)
    low, high = CENTRE - BOX_HALF_MM, CENTRE + BOX_HALF_MM
    return BaseStudy(variant, files, places, truth, Region.of(low, high))


def _truth(variant: Variant) -> PhaseTruth:
    angle = np.radians(variant.turned_degrees)
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(angle), np.sin(angle)])
    normal = np.cross(row, column)
    if variant.feet_first:
        row, normal = -row, -normal
    step = STEP_MM * normal + variant.shear_mm * column
    middle = CENTRE - row * SPACING[1] * (COLUMNS - 1) / 2 - column * SPACING[0] * (ROWS - 1) / 2
    offsets = np.arange(SLICES)[:, None] - (SLICES - 1) / 2
    positions = np.round(middle + offsets * step, 6)
    return PhaseTruth(positions, np.round(np.concatenate([row, column]), 8))


def _voxels(truth: PhaseTruth, phase: str, index: int) -> NDArray[np.float64]:
    """HU (rows, columns) at their places: waves of some centimetres, noise, and a level that tells the phase."""
    row, column = truth.orientation[:3], truth.orientation[3:]
    y, x = np.mgrid[:ROWS, :COLUMNS]
    points = truth.positions[index] + x[..., None] * SPACING[1] * row + y[..., None] * SPACING[0] * column
    noise = np.random.default_rng([list(PHASES).index(phase), index]).normal(0, 8, (ROWS, COLUMNS))
    level = {"NC": 30, "ART": 60, "PV": 90, "DL": 75}[phase]
    waves = 40 * np.sin(points[..., 0] / 9) + 30 * np.cos(points[..., 1] / 8) + 35 * np.sin(points[..., 2] / 6)
    return np.asarray(level + waves + noise, dtype=np.float64)


def _uid(*parts: object) -> str:
    return f"1.2.826.0.1.3680043.10.2{int(hashlib.sha256(repr(parts).encode()).hexdigest()[:24], 16)}"[:60]


def _slice(variant: Variant, truth: PhaseTruth, phase: str, number: int, index: int) -> Dataset:
    intercept = 0 if variant.signed else -1024
    hu = np.rint(_voxels(truth, phase, index))
    stored: NDArray[Any] = (hu - intercept).astype(np.int16 if variant.signed else np.uint16)
    description, seconds = PHASES[phase]
    minutes, rest = divmod(10 * 3600 + 15 * 60 + seconds, 60)
    time = f"{minutes // 60:02d}{minutes % 60:02d}{rest:02d}"
    dataset = Dataset()
    elements: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": _uid("instance", phase, index),
        "StudyDate": "20200101",
        "AcquisitionDate": "20200101",
        "AcquisitionTime": time,
        "AccessionNumber": MARKER,
        "Modality": "CT",
        "InstitutionName": MARKER,
        "ReferringPhysicianName": f"{MARKER}^R",
        "StudyDescription": f"{MARKER} portal arterial",
        "SeriesDescription": f"{MARKER} {description}",
        "PatientName": f"{MARKER}^NAME",
        "PatientID": f"{MARKER}ID",
        "PatientBirthDate": "19500101",
        "PatientComments": f"{MARKER} comment",
        "SliceThickness": "2.5",
        "KVP": "120",
        "SpacingBetweenSlices": "9",
        "ProtocolName": f"{MARKER} arterial",
        "GantryDetectorTilt": "0",
        "ConvolutionKernel": f"B30f{MARKER}"[:16],
        "StudyInstanceUID": _uid("study"),
        "SeriesInstanceUID": _uid("series", phase),
        "FrameOfReferenceUID": _uid("frame"),
        "SeriesNumber": number,
        "AcquisitionNumber": number,
        "InstanceNumber": SLICES - index,
        "ImagePositionPatient": [f"{value:.10g}" for value in truth.positions[index]],
        "ImageOrientationPatient": [f"{value:.10g}" for value in truth.orientation],
        "SliceLocation": f"{index}",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": ROWS,
        "Columns": COLUMNS,
        "PixelSpacing": list(SPACING),
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": int(variant.signed),
        "RescaleIntercept": str(intercept),
        "RescaleSlope": "1",
        "RescaleType": "HU",
    }
    fill(dataset, elements)
    dataset.ReferencedStudySequence = Items([_item(ReferencedSOPClassUID=CTImageStorage, PatientName=MARKER)])
    cells = stored & 0xFFF if variant.signed else stored  # 12 of 16 bits are stored (PS3.5 8.1.1)
    dataset.add_new("PixelData", "OW", cells.astype("<u2").tobytes())
    return _open_ended(dataset)


def _item(**elements: Any) -> Dataset:
    dataset = Dataset()
    fill(dataset, elements)
    return dataset


def _open_ended(dataset: Dataset) -> Dataset:
    """All sequences and items of undefined length, so that a changed value changes no length around it."""
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                _open_ended(item)
    return dataset


#: What an enhanced image says per frame.
_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "CTReconstructionSequence": ("ConvolutionKernel",),
}


def _enhanced(variant: Variant, slices: list[Dataset]) -> Dataset:
    """One Enhanced CT image (PS3.3 A.38) with everything per frame."""
    frames = [_frame_groups(one) for one in slices]
    image = slices[0]
    moved = ("ImageType", "AcquisitionDate", "AcquisitionTime", "AcquisitionNumber", "InstanceNumber", "SliceLocation")
    for keyword in (*moved, *(keyword for keywords in _GROUPS.values() for keyword in keywords)):
        del image[keyword]
    image.SOPClassUID = EnhancedCTImageStorage
    image.SOPInstanceUID = _uid("enhanced", str(image.SeriesInstanceUID))
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.NumberOfFrames = len(slices)
    image.SharedFunctionalGroupsSequence = Items([Dataset()])
    image.PerFrameFunctionalGroupsSequence = Items(frames)
    image.PixelData = b"".join(one.PixelData for one in slices)
    return _open_ended(image)


def _frame_groups(source: Dataset) -> Dataset:
    groups = _item()
    for name, keywords in _GROUPS.items():
        fill(groups, {name: Items([_item(**{keyword: source[keyword].value for keyword in keywords})])})
    frame_type = {"FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "VolumeBasedCalculationTechnique": "NONE"}
    moment = {"FrameAcquisitionDateTime": source.AcquisitionDate + source.AcquisitionTime}
    number = {"FrameAcquisitionNumber": int(source.AcquisitionNumber)}
    groups.CTImageFrameTypeSequence = Items([_item(**frame_type)])
    groups.FrameContentSequence = Items([_item(**moment, **number)])
    return groups
