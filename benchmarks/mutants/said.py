"""What a file says of one of its slices, as pydicom reads it: the second opinion of `mutant_oracle`.

Nothing of the reader under test is used, and nothing is judged.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import pydicom
from pydicom.filebase import DicomBytesIO

from fourphase.benchmarks.mutants.study import BaseStudy

__all__ = ["SCALING", "said_by", "said_of_sound"]

#: What turns stored bits into HU.
SCALING = (
    *("RescaleSlope", "RescaleIntercept", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PhotometricInterpretation"),
)


def said_of_sound(base: BaseStudy, phase: str) -> dict[int, Mapping[str, Any]]:
    """What pydicom reads of every slice of a phase of the sound study."""
    found = {}
    for name, (of_phase, index) in base.places.items():
        if of_phase != phase:
            continue
        for frame in range(len(base.truth.positions)) if index is None else (0,):
            found[frame if index is None else index] = said_by(base.files[name], frame)
    return found


def said_by(content: bytes, frame: int) -> Mapping[str, Any]:
    """What pydicom reads of a slice; what it cannot read is left out."""
    said: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(DicomBytesIO(content), force=True)
        except Exception:  # pydicom may raise anything on a mutant; then it has no say
            return said
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            _add(said, name, partial(_numbers, dataset, name, frame))
        for name in ("Rows", "Columns"):
            _add(said, name, partial(_value, dataset, name, frame))
        for name in SCALING:
            _add(said, name, partial(_text, dataset, name, frame))
        _add(said, "TransferSyntax", lambda: str(dataset.file_meta.TransferSyntaxUID))
        _add(said, "Pixels", lambda: hashlib.sha256(dataset.PixelData).digest())
    return said


def _add(said: dict[str, Any], name: str, read: Callable[[], Any]) -> None:
    with suppress(Exception):  # as above, one element at a time
        said[name] = read()


def _numbers(dataset: pydicom.Dataset, name: str, frame: int) -> list[float]:
    return [float(value) for value in _value(dataset, name, frame)]


def _text(dataset: pydicom.Dataset, name: str, frame: int) -> str:
    return str(_value(dataset, name, frame))


def _value(dataset: pydicom.Dataset, name: str, frame: int) -> Any:
    """An element at the top, or in the frame's own functional groups."""
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if groups:
        for element in groups[frame]:
            if element.VR == "SQ" and element.value and name in element.value[0]:
                return element.value[0][name].value
    return dataset[name].value
