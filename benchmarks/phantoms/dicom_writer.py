"""Single-frame DICOM files from a phantom's header and an array: Explicit VR Little Endian, nothing compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, ExplicitVRLittleEndian

from fourphase.benchmarks.phantoms.phantom_headers import SeriesHeader, StudyHeader

__all__ = ["base_dataset", "decimal", "fill", "save", "set_pixels"]

Pixels = NDArray[np.int16] | NDArray[np.uint16] | NDArray[np.uint8]


def base_dataset(header: StudyHeader, series: SeriesHeader) -> Dataset:
    """Patient, study, series and equipment."""
    dataset = Dataset()
    elements: dict[str, Any] = {
        "SpecificCharacterSet": list(header.charset) if len(header.charset) > 1 else header.charset[0],
        "StudyDate": header.date,
        "SeriesDate": header.date,
        "AcquisitionDate": header.date,
        "ContentDate": header.date,
        "StudyTime": header.study_time,
        "SeriesTime": series.acquisition_time,
        "AcquisitionTime": series.acquisition_time,
        "ContentTime": series.acquisition_time,
        "AccessionNumber": "",
        "Modality": "CT",
        "BodyPartExamined": "ABDOMEN",
        "Manufacturer": "fourphase phantom",
        "ReferringPhysicianName": "",
        "StudyDescription": "Synthetic phantom, not a patient",
        "SeriesDescription": series.description,
        "PatientName": f"PHANTOM^{header.patient}",
        "PatientID": header.patient,
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyInstanceUID": header.study_uid,
        "SeriesInstanceUID": series.uid,
        "StudyID": "1",
        "SeriesNumber": series.number,
        "AcquisitionNumber": series.acquisition_number,
    }
    fill(dataset, elements)
    return dataset


def set_pixels(image: Dataset, pixels: Pixels) -> None:
    """The Image Pixel module (PS3.3 C.7.6.3) of one greyscale frame (rows, columns)."""
    stored = 8 if pixels.itemsize == 1 else 16 if pixels.dtype.kind == "i" else 12
    elements: dict[str, Any] = {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": stored,
        "HighBit": stored - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    fill(image, elements)
    little_endian = pixels.astype(pixels.dtype.newbyteorder("<"))
    image.add_new("PixelData", "OB" if pixels.itemsize == 1 else "OW", little_endian.tobytes())


def fill(dataset: Dataset, elements: dict[str, Any]) -> None:
    """Sets elements by keyword (PS3.6)."""
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)


def save(path: Path, image: Dataset) -> int:
    """Writes one file with its meta header; returns its size in bytes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = image.SOPClassUID
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    image.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, image, enforce_file_format=True)
    return path.stat().st_size


def decimal(value: float) -> str:
    """DICOM DS, at most 16 characters; a micrometre is enough for any length."""
    return f"{round(float(value), 6):.10g}"
