"""What a received instance is: the SOP classes `fp-listen` takes, and the identifiers in the data set itself.

Nothing here needs pynetdicom. What a sender says in the C-STORE command must agree with the data set it sends.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from fourphase.runtime.decoders import DECODERS
from fourphase.runtime.dicom_file import FILE_LIMIT, SkippedFile, read_raw_header
from fourphase.runtime.stored_values import NATIVE

__all__ = [
    "BOX_KINDS",
    "IGNORED",
    "KINDS",
    "OUT_OF_RESOURCES",
    "TRANSFER_SYNTAXES",
    "Identity",
    "Refused",
    "limit_of",
    "read_identity",
    "study_in_memory",
]

#: Statuses of C-STORE (PS3.4 B.2.3).
OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0xA700, 0xA900, 0xC000

CT, SEG, RTSTRUCT = "ct", "seg", "rtstruct"
BOX_KINDS = (SEG, RTSTRUCT)
#: SOP class -> what it is to us.
KINDS = {
    "1.2.840.10008.5.1.4.1.1.2": CT,  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1": CT,  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2": CT,  # Legacy Converted Enhanced CT
    "1.2.840.10008.5.1.4.1.1.66.4": SEG,  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7": SEG,  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.481.3": RTSTRUCT,  # RT Structure Set
}
_SINGLE_FRAME = "1.2.840.10008.5.1.4.1.1.2"

#: What a scanner or an archive sends along with a CT study. Were it not accepted, many senders would give up the whole
#: study; it is answered with success and not kept, which the page on fp-listen says: this is no archive.
IGNORED = (
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture and its multi-frame kinds
    "1.2.840.10008.5.1.4.1.1.7.1",
    "1.2.840.10008.5.1.4.1.1.7.2",
    "1.2.840.10008.5.1.4.1.1.7.3",
    "1.2.840.10008.5.1.4.1.1.7.4",
    "1.2.840.10008.5.1.4.1.1.11.1",  # Grayscale, Color and Blending Presentation State
    "1.2.840.10008.5.1.4.1.1.11.2",
    "1.2.840.10008.5.1.4.1.1.11.4",
    "1.2.840.10008.5.1.4.1.1.66",  # Raw Data
    "1.2.840.10008.5.1.4.1.1.66.1",  # Spatial Registration
    "1.2.840.10008.5.1.4.1.1.88.11",  # Basic Text, Enhanced, Comprehensive and Comprehensive 3D SR
    "1.2.840.10008.5.1.4.1.1.88.22",
    "1.2.840.10008.5.1.4.1.1.88.33",
    "1.2.840.10008.5.1.4.1.1.88.34",
    "1.2.840.10008.5.1.4.1.1.88.50",  # Mammography CAD SR, sent by some archives for any CAD
    "1.2.840.10008.5.1.4.1.1.88.59",  # Key Object Selection
    "1.2.840.10008.5.1.4.1.1.88.67",  # X-Ray Radiation Dose SR
    "1.2.840.10008.5.1.4.1.1.104.1",  # Encapsulated PDF
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose, RT Plan
    "1.2.840.10008.5.1.4.1.1.481.5",
)

_LOSSY = ("1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.203")
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
#: In the order in which they are preferred when a sender offers several for one context: lossy ones last.
TRANSFER_SYNTAXES = (
    _EXPLICIT_LITTLE,
    *(uid for uid in (*NATIVE, *DECODERS) if uid not in (_EXPLICIT_LITTLE, *_LOSSY)),
    *_LOSSY,
)

#: Components of digits between dots (PS3.5 9.1); leading zeros exist in the field.
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_SOP_CLASS, _SOP_INSTANCE, _STUDY = 0x00080016, 0x00080018, 0x0020000D
#: What comes before the StudyInstanceUID is small, private groups included.
_BEFORE_STUDY_BYTES = 2**20


class Refused(Exception):
    """An instance that is not kept: the C-STORE status to answer with, and a word for the log."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class Identity:
    """An instance's UIDs, digits and dots only, and its kind: "ct", "seg" or "rtstruct"."""

    study_uid: str
    sop_uid: str
    kind: str


def limit_of(sop_class: str, multi_frame_bytes: int) -> int:
    """The most bytes that an instance of a SOP class may have."""
    return min(FILE_LIMIT, multi_frame_bytes) if sop_class == _SINGLE_FRAME else multi_frame_bytes


def read_identity(path: Path, sop_class: str, sop_uid: str) -> Identity:
    """Reads the identifiers of a received file and holds them against the C-STORE command.

    Raises: Refused.
    """
    try:
        header = read_raw_header(path, (_SOP_CLASS, _SOP_INSTANCE, _STUDY))
    except SkippedFile as skip:
        raise Refused(NOT_UNDERSTOOD, skip.reason) from None
    if not _UID.fullmatch(header.uid(_STUDY)):
        raise Refused(MISMATCH, "study_uid_missing")
    if header.uid(_SOP_CLASS) != sop_class or header.uid(_SOP_INSTANCE) != sop_uid:
        raise Refused(MISMATCH, "command_contradicts_data")
    return Identity(header.uid(_STUDY), sop_uid, KINDS[sop_class])


def study_in_memory(data: memoryview, transfer_syntax: str) -> str:
    """StudyInstanceUID of a data set that could not be written to disk; '' if its beginning does not tell it."""
    syntax = UID(transfer_syntax)
    try:
        start = bytes(data[:_BEFORE_STUDY_BYTES])
        if syntax.is_deflated:
            start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(start, _BEFORE_STUDY_BYTES)
        found = read_dataset(
            BytesIO(start), syntax.is_implicit_VR, syntax.is_little_endian, stop_when=lambda tag, vr, n: tag > _STUDY
        )
        value = found.get_item(_STUDY)
        if not isinstance(value, RawDataElement) or len(value.value or b"") != value.length:  # cut off
            return ""
        text = (value.value or b"").decode("ascii").strip("\0 ")
    except Exception:  # bytes of a stranger: whatever they do to the parser, the sender is refused in any case
        return ""
    return text if _UID.fullmatch(text) else ""
