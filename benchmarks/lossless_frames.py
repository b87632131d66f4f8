"""One frame of 12 bits, compressed without loss in every syntax that is read: for studies that benchmarks damage."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from fourphase.benchmarks.phantoms.dicom_writer import fill

__all__ = ["compressed_frame"]


def compressed_frame(plane: NDArray[np.uint16], syntax: str) -> bytes:
    """The codestream of stored values below 4096, uint16 (rows, columns).

    Raises: RuntimeError if gdcm fails.
    """
    if syntax == JPEG2000Lossless:
        from openjpeg.utils import encode_array

        return bytes(encode_array(plane, bits_stored=12))
    if syntax in (JPEGLossless, JPEGLosslessSV1):
        return _jpeg_lossless(plane, syntax)
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


def _jpeg_lossless(plane: NDArray[np.uint16], syntax: str) -> bytes:
    """Through files: gdcm's images in memory are reference-counted by hand."""
    import gdcm  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        plain = Dataset()
        fill(plain, {"SOPClassUID": CTImageStorage, "SOPInstanceUID": "1.2.3", "SamplesPerPixel": 1})
        fill(plain, {"PhotometricInterpretation": "MONOCHROME2", "Rows": plane.shape[0], "Columns": plane.shape[1]})
        fill(plain, {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0})
        plain.add_new("PixelData", "OW", plane.tobytes())
        plain.file_meta = FileMetaDataset()
        plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dcmwrite(source, plain, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
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
