"""Slices in other transfer syntaxes, losslessly: what archives make of them. Only for hazards and small slices."""

from __future__ import annotations

from pathlib import Path

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

from fourphase.benchmarks.lossless_frames import compressed_frame

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
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        _set_frame(dataset, compressed_frame(pixels, syntax), syntax)
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
