"""A data set -> a file in any transfer syntax that is read without loss, for the sound studies of `mutant_study`.

The pixels come uncompressed in little endian; nothing else of the data set is touched.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage, RLELossless

from fourphase.benchmarks.dicom_writer import fill

__all__ = [
    "BIG_ENDIAN", "DEFLATED", "EXPLICIT", "IMPLICIT", "JPEG_2000", "JPEG_LOSSLESS", "NATIVE", "file_bytes",
]  # fmt: skip

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
JPEG_LOSSLESS, JPEG_2000 = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"
NATIVE = (EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED)


def file_bytes(dataset: Dataset, syntax: str) -> bytes:
    """The data set as a file in a transfer syntax; its pixels are encoded as that asks."""
    if syntax not in NATIVE:
        _compress(dataset, syntax)
    if syntax == BIG_ENDIAN:
        dataset.PixelData = np.frombuffer(dataset.PixelData, np.uint16).byteswap().tobytes()
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    buffer = DicomBytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _compress(dataset: Dataset, syntax: str) -> None:
    cells = np.frombuffer(dataset.PixelData, np.uint16).reshape(-1, dataset.Rows, dataset.Columns)
    dataset.PixelData = encapsulate([_frame(plane, syntax) for plane in cells], has_bot=False)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def _frame(plane: NDArray[np.uint16], syntax: str) -> bytes:
    if syntax == JPEG_2000:
        from openjpeg.utils import encode_array

        return bytes(encode_array(plane, bits_stored=12))
    if syntax == JPEG_LOSSLESS:
        return _jpeg_lossless(plane)
    from pydicom.pixels.encoders.base import JPEGLSLosslessEncoder, RLELosslessEncoder

    encoder = RLELosslessEncoder if syntax == RLELossless else JPEGLSLosslessEncoder
    rows, columns = plane.shape
    return bytes(
        encoder.encode(
            plane,
            rows=rows,
            columns=columns,
            samples_per_pixel=1,
            bits_allocated=16,
            bits_stored=12,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
            number_of_frames=1,
        )
    )


def _jpeg_lossless(plane: NDArray[np.uint16]) -> bytes:
    """Through files: gdcm's images in memory are reference-counted by hand."""
    import gdcm  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        plain = Dataset()
        fill(plain, {"SOPClassUID": CTImageStorage, "SOPInstanceUID": "1.2.3", "SamplesPerPixel": 1})
        fill(plain, {"PhotometricInterpretation": "MONOCHROME2", "Rows": plane.shape[0], "Columns": plane.shape[1]})
        fill(plain, {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0})
        plain.add_new("PixelData", "OW", plane.tobytes())
        source.write_bytes(file_bytes(plain, EXPLICIT))
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(JPEG_LOSSLESS)))
        read = reader.Read()
        change.SetInput(reader.GetImage())
        changed = change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        if not (read and changed and writer.Write()):
            raise RuntimeError("gdcm wrote no JPEG Lossless")
        return get_frame(dcmread(target).PixelData, 0, number_of_frames=1)
