"""The wanted elements of a DICOM data set, nested ones included, found in one bounded walk. Values stay bytes.

pydicom's reader builds an object for every item, so a small file can cost gigabytes and minutes; here what is not
wanted costs no memory, and a walk ends after a fixed number of elements. Pixel data is where it stops.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TypeAlias

__all__ = ["ELEMENT_LIMIT", "Found", "MalformedData", "TooManyElements", "Wanted", "walk"]

#: Elements and items of one header: 10,000 frames with 200 each; a walk over that many takes seconds.
ELEMENT_LIMIT = 2_000_000
#: Nested sequences; functional groups are two deep, structured reports seldom ten.
DEPTH_LIMIT = 24

#: What to collect: tag -> None for a value, tag -> what to collect from the items of a sequence.
Wanted: TypeAlias = "Mapping[int, Wanted | None]"
#: What was there: tag -> value, or the items of a wanted sequence; empty values are left out.
Found: TypeAlias = "dict[int, bytes | list[Found]]"

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
#: Integer, float or double pixel data, or what follows; the extended offset table (7FE0,0001) comes before.
PIXELS = 0x7FE00008
UNDEFINED = 0xFFFFFFFF
#: VRs whose length has four bytes, after two reserved ones (PS3.5 table 7.1-1).
LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
NOTHING: Wanted = {}


class MalformedData(Exception):
    """The bytes are no data set, or end too early."""


class TooManyElements(Exception):
    """More elements than any image header has."""


def walk(data: bytes, start: int, wanted: Wanted, *, little: bool, implicit: bool) -> tuple[Found, int]:
    """The wanted elements from `start` up to the pixel data or the end, and the position where the walk stopped.

    Raises:
        MalformedData, TooManyElements.
    """
    walker = _Walker(data, little)
    try:
        return walker.dataset(start, len(data), wanted, implicit, 0)
    except struct.error:
        raise MalformedData from None


class _Walker:
    def __init__(self, data: bytes, little: bool) -> None:
        self.data = data
        self.left = ELEMENT_LIMIT
        order = "<" if little else ">"
        self.tag = struct.Struct(f"{order}HH").unpack_from
        self.short = struct.Struct(f"{order}H").unpack_from
        self.long = struct.Struct(f"{order}I").unpack_from
        self.item = struct.Struct(f"{order}HHI").unpack_from

    def dataset(self, at: int, end: int, wanted: Wanted, implicit: bool, depth: int) -> tuple[Found, int]:
        """The elements up to `end`, up to an item's delimiter (which is passed), or up to the pixel data at depth 0."""
        found: Found = {}
        while at < end:
            self._count()
            group, element = self.tag(self.data, at)
            tag = group << 16 | element
            if tag == ITEM_END and depth:
                return found, at + 8
            if tag >= PIXELS and not depth:
                break
            vr, start, length = self._header(at, implicit)
            known = tag in wanted
            inner = wanted[tag] if known else None
            if length == UNDEFINED or (inner is not None and vr in (b"SQ", b"UN", b"")):
                stop = end if length == UNDEFINED else self._end(start, length, end)
                nested, at = self._items(start, stop, length, inner, implicit or vr == b"UN", depth + 1)
                if inner is not None:
                    found[tag] = nested
                continue
            at = self._end(start, length, end)
            if known and inner is None and length:
                found[tag] = self.data[start:at]
        return found, at

    def _items(
        self, at: int, end: int, length: int, wanted: Wanted | None, implicit: bool, depth: int
    ) -> tuple[list[Found], int]:
        """The items of a sequence and the position behind it; without `wanted` they are only passed."""
        if depth > DEPTH_LIMIT:
            raise MalformedData
        items: list[Found] = []
        while at < end:
            self._count()
            group, element, size = self.item(self.data, at)
            tag = group << 16 | element
            if tag == SEQUENCE_END and length == UNDEFINED:
                return items, at + 8
            if tag != ITEM:
                raise MalformedData
            start, stop = at + 8, end if size == UNDEFINED else self._end(at + 8, size, end)
            if wanted is None and size != UNDEFINED:
                at = stop
                continue
            item, at = self.dataset(start, stop, wanted or NOTHING, implicit, depth)
            if wanted is not None:
                items.append(item)
        if length == UNDEFINED:
            raise MalformedData
        return items, at

    def _header(self, at: int, implicit: bool) -> tuple[bytes, int, int]:
        """VR (empty when implicit), start and length of the value."""
        if implicit:
            return b"", at + 8, self.long(self.data, at + 4)[0]
        vr = self.data[at + 4 : at + 6]
        if vr in LONG:
            return vr, at + 12, self.long(self.data, at + 8)[0]
        if not (vr.isalpha() and vr.isupper()):  # some writers turn to implicit VR within sequences
            return b"", at + 8, self.long(self.data, at + 4)[0]
        return vr, at + 8, self.short(self.data, at + 6)[0]

    @staticmethod
    def _end(start: int, length: int, limit: int) -> int:
        if start + length > limit:
            raise MalformedData
        return start + length

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooManyElements
