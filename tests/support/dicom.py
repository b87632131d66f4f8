"""Tiny DICOM CT series for tests: any geometry, any tags, any transfer syntax.

>>> paths = write_series(tmp_path, stored_values((4, 16, 16)), SeriesDescription="arterial")
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, get_frame
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import dcmwrite
from pydicom.pixels.encoders.base import JPEGLSLosslessEncoder, RLELosslessEncoder
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

__all__ = [
    "COMPRESSED",
    "DESCRIPTIONS",
    "copied",
    "file_bytes",
    "slice_dataset",
    "stored_values",
    "uid",
    "write_phases",
    "write_series",
]

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
COMPRESSED = (RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)
#: What the four phases are called unless a test says otherwise, with the seconds at which they start.
DESCRIPTIONS = {"NC": ("nativ", 0), "ART": ("arteriell", 275), "PV": ("portalvenös", 310), "DL": ("Spätphase", 435)}

Stored = NDArray[np.uint16] | NDArray[np.int16]


def uid(*parts: object) -> str:
    """A UID that is the same for the same parts."""
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    return f"1.2.826.0.1.3680043.10.1{int(digest[:24], 16)}"[:64]


def stored_values(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint16]:
    """Noise around soft tissue as 12-bit stored values (intercept -1024): (slices, rows, columns)."""
    noise = np.random.default_rng(seed).normal(1074, 40, shape)
    return np.clip(np.rint(noise), 0, 4095).astype(np.uint16)


def slice_dataset(stored: Stored, position: Sequence[float], **elements: Any) -> Dataset:
    """One CT slice; `elements` are pydicom keywords that replace the defaults, None removes one."""
    dataset = Dataset()
    defaults: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "AcquisitionDate": "20200101",
        "AcquisitionTime": "101500",
        "Modality": "CT",
        "PatientName": "MARKER^NAME",
        "PatientID": "MARKER-ID",
        "SliceThickness": "2.5",
        "ConvolutionKernel": "B30f",
        "StudyInstanceUID": uid("study"),
        "SeriesInstanceUID": uid("series"),
        "FrameOfReferenceUID": uid("frame"),
        "SeriesNumber": 1,
        "AcquisitionNumber": 1,
        "ImagePositionPatient": [f"{value:.10g}" for value in position],
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [1.5, 1.0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "RescaleType": "HU",
    }
    for keyword, value in {**defaults, **elements}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "SOPInstanceUID" not in dataset:
        dataset.SOPInstanceUID = uid(dataset.get("SeriesInstanceUID"), tuple(position), stored.tobytes())
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def file_bytes(
    dataset: Dataset,
    transfer_syntax: str = ExplicitVRLittleEndian,
    *,
    preamble: bool = True,
    table: str = "none",
    fragments: int = 1,
) -> bytes:
    """The data set as a file; pixel data is compressed as the transfer syntax asks.

    Without preamble there is no file meta information either, as old archives write it.

    Args:
        table: of compressed frames, "none", "basic" or "extended" offsets; fragments: of each frame.
    """
    if transfer_syntax in COMPRESSED:
        dataset = _compressed(dataset, transfer_syntax, table, fragments)
    if transfer_syntax == ExplicitVRBigEndian:
        dataset = copied(dataset)
        dataset.PixelData = np.frombuffer(dataset.PixelData, np.uint16).byteswap().tobytes()
        dataset["PixelData"].VR = "OW"
    buffer = DicomBytesIO()
    if preamble:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = UID(transfer_syntax)
        meta.MediaStorageSOPClassUID = UID(dataset.get("SOPClassUID") or CTImageStorage)
        meta.MediaStorageSOPInstanceUID = UID(dataset.get("SOPInstanceUID") or "1.2.3")
        dataset = copied(dataset)
        dataset.file_meta = meta
        dcmwrite(buffer, dataset, enforce_file_format=True)
    else:
        dataset.file_meta = FileMetaDataset()
        implicit = transfer_syntax == "1.2.840.10008.1.2"
        dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    return buffer.getvalue()


def copied(dataset: Dataset) -> Dataset:
    """A data set with the same elements; `Dataset(dataset)` would be the same one in disguise."""
    elements = Dataset()
    elements.update({element.tag: copy.copy(element) for element in dataset})
    return elements


def _compressed(dataset: Dataset, transfer_syntax: str, table: str, fragments: int) -> Dataset:
    cells: Any = np.frombuffer(dataset.PixelData, np.int16 if dataset.PixelRepresentation else np.uint16)
    arrays = cells.reshape(-1, dataset.Rows, dataset.Columns)
    frames = [_frame(array, dataset.BitsStored, transfer_syntax) for array in arrays]
    compressed = copied(dataset)
    if table == "extended":
        value, compressed.ExtendedOffsetTable, compressed.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        value = encapsulate(frames, fragments_per_frame=fragments, has_bot=table == "basic")
    compressed.PixelData = value
    compressed["PixelData"].VR = "OB"
    compressed["PixelData"].is_undefined_length = True
    return compressed


def _frame(array: Stored, bits: int, transfer_syntax: str) -> bytes:
    if transfer_syntax == JPEG2000Lossless:
        from openjpeg.utils import encode_array

        return bytes(encode_array(array, bits_stored=bits))
    if transfer_syntax in (JPEGLossless, JPEGLosslessSV1):
        return _jpeg_lossless(array, bits, transfer_syntax)
    encoder = RLELosslessEncoder if transfer_syntax == RLELossless else JPEGLSLosslessEncoder
    return encoder.encode(
        array,
        rows=array.shape[0],
        columns=array.shape[1],
        samples_per_pixel=1,
        bits_allocated=16,
        bits_stored=bits,
        pixel_representation=int(array.dtype.kind == "i"),
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
    )


def _jpeg_lossless(array: Stored, bits: int, transfer_syntax: str) -> bytes:
    """Through files: gdcm's in-memory images are reference-counted by hand and abort the process now and then."""
    import gdcm  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        plain = slice_dataset(array, (0, 0, 0), BitsStored=bits, HighBit=bits - 1)
        source.write_bytes(file_bytes(plain))
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(transfer_syntax))))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return get_frame(dcmread(target).PixelData, 0, number_of_frames=1)


def write_series(
    folder: Path,
    stored: Stored,
    *,
    origin: Sequence[float] = (-8.0, -12.0, 0.0),
    step: Sequence[float] = (0.0, 0.0, 2.5),
    transfer_syntax: str = ExplicitVRLittleEndian,
    name: str = "IM",
    **elements: Any,
) -> list[Path]:
    """Writes one file per slice, in the order of `stored`; the files' names are in another order.

    Args:
        stored: (slices, rows, columns), uint16 or int16.
        origin: ImagePositionPatient of the first slice; step: from one slice to the next, LPS mm.
        elements: as for `slice_dataset`; a callable is called with the slice's index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, plane in enumerate(stored):
        position = np.asarray(origin) + index * np.asarray(step)
        chosen = {keyword: value(index) if callable(value) else value for keyword, value in elements.items()}
        chosen.setdefault("InstanceNumber", len(stored) - index)  # must not matter
        path = folder / f"{name}{(index * 7919) % 1009:04d}"
        path.write_bytes(file_bytes(slice_dataset(plane, position, **chosen), transfer_syntax))
        paths.append(path)
    return paths


def write_phases(folder: Path, phases: Sequence[str] = tuple(DESCRIPTIONS), **elements: Any) -> dict[str, list[Path]]:
    """Phases of 8 x 16 x 16 voxels in subfolders s2 to s5 (their SeriesNumbers), told apart by description and time."""
    written = {}
    for number, (phase, (description, seconds)) in enumerate(DESCRIPTIONS.items(), 2):
        if phase not in phases:
            continue
        minutes, seconds = divmod(15 * 60 + seconds, 60)
        defaults = {
            "SeriesInstanceUID": uid("series", phase),
            "SeriesNumber": number,
            "SeriesDescription": description,
            "AcquisitionNumber": number,
            "AcquisitionTime": f"10{minutes:02d}{seconds:02d}",
        }
        voxels = stored_values((8, 16, 16), number)
        written[phase] = write_series(folder / f"s{number}", voxels, **{**defaults, **elements})
    return written
