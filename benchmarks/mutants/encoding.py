"""A data set -> a file in any transfer syntax that is read without loss, for the sound studies of `mutant_study`.

The pixels come uncompressed in little endian; nothing else of the data set is touched.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

from fourphase.benchmarks.lossless_frames import compressed_frame

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
    dataset.PixelData = encapsulate([compressed_frame(plane, syntax) for plane in cells], has_bot=False)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
