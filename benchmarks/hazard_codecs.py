"""Slices in other transfer syntaxes, losslessly: what archives make of them. Only for hazards and small slices."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

__all__ = ["COMPRESSED", "UNCOMPRESSED", "codestream", "replace_codestream", "transcode"]

COMPRESSED = {
    "rle": RLELossless,
    "jpeg_lossless_57": JPEGLossless,
    "jpeg_lossless_70": JPEGLosslessSV1,
    "jpeg_ls": JPEGLSLossless,
    "jpeg_2000": JPEG2000Lossless,
}
UNCOMPRESSED = {
    "implicit": ImplicitVRLittleEndian,
    "big_endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}


def transcode(path: Path, syntax: UID) -> None:
    """Rewrites an uncompressed single-frame file, 12 of 16 bits, in another transfer syntax."""
    dataset = dcmread(path)
    pixels = dataset.pixel_array
    if syntax in (JPEGLossless, JPEGLosslessSV1):
        _set_frame(dataset, _jpeg_lossless(path, syntax), syntax)
    elif syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        _set_frame(dataset, _encoded(pixels, syntax), syntax)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = pixels.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    _write(path, dataset)


def codestream(path: Path) -> bytes:
    """The compressed frame of a single-frame file."""
    return get_frame(dcmread(path).PixelData, 0, number_of_frames=1)


def replace_codestream(path: Path, frame: bytes) -> None:
    dataset = dcmread(path)
    _set_frame(dataset, frame, dataset.file_meta.TransferSyntaxUID)
    _write(path, dataset)


def _write(path: Path, dataset: Dataset) -> None:
    """As new: `dcmwrite` does not change the encoding of a data set that was read."""
    syntax = dataset.file_meta.TransferSyntaxUID
    copy = Dataset()
    copy.update({element.tag: element for element in dataset})
    copy.file_meta = dataset.file_meta
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    dcmwrite(path, copy, implicit_vr=implicit, little_endian=little, enforce_file_format=True)


def _set_frame(dataset: Dataset, frame: bytes, syntax: UID) -> None:
    dataset.PixelData = encapsulate([frame], has_bot=False)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax


def _encoded(pixels: NDArray[np.uint16], syntax: UID) -> bytes:
    if syntax == JPEG2000Lossless:
        from openjpeg.utils import encode_array

        return bytes(encode_array(pixels, bits_stored=12))
    from pydicom.pixels.encoders.base import JPEGLSLosslessEncoder, RLELosslessEncoder

    encoder = RLELosslessEncoder if syntax == RLELossless else JPEGLSLosslessEncoder
    rows, columns = pixels.shape
    return bytes(
        encoder.encode(
            pixels,
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


def _jpeg_lossless(path: Path, syntax: UID) -> bytes:
    """Through files: gdcm's images in memory are reference-counted by hand.

    Raises: RuntimeError if gdcm fails.
    """
    import gdcm  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "target")
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        read = reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
        change.SetInput(reader.GetImage())
        changed = read and change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        if not (changed and writer.Write()):
            raise RuntimeError("gdcm wrote no JPEG Lossless")
        return codestream(target)
