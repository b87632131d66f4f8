"""The wanted values of one DICOM header, as bytes, and what they say: text, UIDs, numbers. No file is read here.

pydicom's converters are not used: they cost more than the parsing and put header text into their warnings.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydicom import charset

__all__ = ["RawHeader", "plain_ascii"]

_UID = re.compile(r"[0-9.]{1,64}")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class RawHeader:
    """The wanted elements of one file.

    Attributes:
        values: tag -> value as it is in the file; absent and empty elements are left out.
        transfer_syntax: UID; without file meta information, the one that the encoding shows.
        little_endian: byte order of `values` (Explicit VR Big Endian is retired but exists).
        pixel_offset: byte offset of the (7FE0,0010) element in `dataset_bytes`; None if the header ends without one.
        media_class: MediaStorageSOPClassUID of the file meta information, '' without it.
    """

    values: dict[int, bytes]
    transfer_syntax: str = ""
    little_endian: bool = True
    pixel_offset: int | None = None
    media_class: str = ""

    def text(self, tag: int) -> str:
        """A code string, UID or time: ASCII without padding; '' when absent."""
        return plain_ascii(self.values.get(tag, b""))

    def uid(self, tag: int) -> str:
        """A UID; '' when absent or anything else than digits and dots: UIDs are printed, so they hold no other text."""
        text = self.text(tag)
        return text if _UID.fullmatch(text) else ""

    def strings(self, tag: int) -> tuple[str, ...]:
        return tuple(part.strip(" \0") for part in self.text(tag).split("\\")) if tag in self.values else ()

    def free_text(self, tag: int) -> str:
        """Text in the file's SpecificCharacterSet (0008,0005). Never print it: it may name the patient."""
        return _decoded(self.values.get(tag, b""), self.values.get(0x00080005, b""))

    def floats(self, tag: int, count: int) -> tuple[float, ...] | None:
        """`count` decimal strings; None if absent, another number of them, or not finite numbers."""
        parts = self.strings(tag)
        if len(parts) != count or not all(_NUMBER.fullmatch(part) for part in parts):
            return None
        numbers = tuple(float(part) for part in parts)
        return numbers if all(map(math.isfinite, numbers)) else None

    def decimal(self, tag: int) -> float | None:
        values = self.floats(tag, 1)
        return values[0] if values else None

    def integer(self, tag: int) -> int | None:
        """An integer string (VR IS); None if absent or not an integer."""
        text = self.text(tag)
        return int(text) if re.fullmatch(r"[-+]?\d{1,12}", text) else None

    def short(self, tag: int, *, signed: bool = False) -> int | None:
        """A 16-bit integer (VR US or SS); None if absent or of another length."""
        value = self.values.get(tag, b"")
        return (
            int.from_bytes(value, "little" if self.little_endian else "big", signed=signed) if len(value) == 2 else None
        )

    def long(self, tag: int) -> int | None:
        """A 32-bit unsigned integer (VR UL); None if absent or of another length."""
        value = self.values.get(tag, b"")
        return int.from_bytes(value, "little" if self.little_endian else "big") if len(value) == 4 else None


def plain_ascii(value: bytes) -> str:
    """ASCII without padding; other bytes are replaced."""
    return value.decode("ascii", errors="replace").strip(" \0")


@lru_cache(maxsize=4096)
def _decoded(value: bytes, character_set: bytes) -> str:
    """Text in a SpecificCharacterSet; UTF-8 wins when the bytes are UTF-8 whatever the header claims (common fault)."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").strip(" \0")
    try:
        return value.decode("utf-8").strip(" \0") if b"\x1b" not in value else _by_charset(value, character_set)
    except UnicodeDecodeError:
        return _by_charset(value, character_set)


def _by_charset(value: bytes, character_set: bytes) -> str:
    try:
        names: Any = character_set.decode("ascii").strip(" \0").split("\\")
        encodings = charset.convert_encodings(names)
        return charset.decode_bytes(value, encodings, set()).strip(" \0")
    except Exception:  # an unknown or broken character set: unreadable text is no evidence
        return value.decode("latin-1").strip(" \0")
