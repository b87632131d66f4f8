"""The elements of a sound file by their bytes, and the file again with some of the bytes replaced.

Only the files of `mutant_study` are understood: sequences have undefined lengths, so that a replaced value changes no
length around it. A deflated data set is edited inflated. Nothing here makes sure that the result is sound.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from pydicom.datadict import dictionary_VR

__all__ = ["PIXEL_DATA", "Edit", "Element", "Layout", "encoded", "layout_of", "rebuilt"]

PIXEL_DATA = 0x7FE00010
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
DEFLATED = b"1.2.840.10008.1.2.1.99"

#: (start, end, bytes that take their place).
Edit = tuple[int, int, bytes]


@dataclass(frozen=True)
class Element:
    """Where an element is: header from `start`, value from `value` to `end`; a sequence ends behind its delimiter."""

    tag: int
    vr: bytes
    start: int
    value: int
    end: int
    depth: int

    @property
    def is_nested(self) -> bool:
        return self.vr == b"SQ"


@dataclass(frozen=True)
class Layout:
    """A file whose elements were found; `data` holds the data set inflated, from `dataset` on."""

    data: bytes
    dataset: int
    elements: tuple[Element, ...]
    little: bool
    implicit: bool
    deflated: bool

    def value(self, element: Element) -> bytes:
        return self.data[element.value : element.end]


@lru_cache(maxsize=1024)
def layout_of(content: bytes) -> Layout:
    """The elements of a sound file, those within sequences too; an item's delimiters are none."""
    meta, at = [], 132
    while content[at : at + 2] == b"\x02\0":
        meta.append(_element(content, at, True, False, 0))
        at = meta[-1].end
    head, syntax = content[:at], content[132:at]
    deflated = DEFLATED in syntax
    data = head + zlib.decompress(content[at:], -zlib.MAX_WBITS) if deflated else content
    little, implicit = b"1.2.840.10008.1.2.2\0" not in syntax, data[at + 4 : at + 6] not in (b"UL", b"CS")
    found = list(meta)
    _collect(data, at, len(data), little, implicit, 0, found)
    return Layout(data, at, tuple(found), little, implicit, deflated)


def _collect(data: bytes, at: int, end: int, little: bool, implicit: bool, depth: int, found: list[Element]) -> int:
    """Adds the elements from `at` up to the end, or up to the end of the item."""
    while at < end:
        tag = _tag(data, at, little)
        if tag == ITEM_END:
            return at + 8
        element = _element(data, at, little, implicit, depth)
        if tag == PIXEL_DATA:
            found.append(element)
            return element.end
        if element.end >= 0:
            found.append(element)
            at = element.end
            continue
        place = len(found)
        found.append(element)
        at = _items(data, element.value, little, implicit, depth, found)
        found[place] = Element(tag, b"SQ", element.start, element.value, at, depth)
    return at


def _items(data: bytes, at: int, little: bool, implicit: bool, depth: int, found: list[Element]) -> int:
    while _tag(data, at, little) == ITEM:
        at = _collect(data, at + 8, len(data), little, implicit, depth + 1, found)
    return at + 8


def _tag(data: bytes, at: int, little: bool) -> int:
    group, element = struct.unpack_from("<HH" if little else ">HH", data, at)
    return int(group) << 16 | int(element)


def _element(data: bytes, at: int, little: bool, implicit: bool, depth: int) -> Element:
    """One element; a sequence's end is -1, that of encapsulated pixel data the end of the file."""
    order, tag = "<" if little else ">", _tag(data, at, little)
    vr = dictionary_VR(tag)[:2].encode() if implicit else data[at + 4 : at + 6]
    if implicit:
        start, length = at + 8, struct.unpack_from(f"{order}I", data, at + 4)[0]
    elif vr in LONG:
        start, length = at + 12, struct.unpack_from(f"{order}I", data, at + 8)[0]
    else:
        start, length = at + 8, struct.unpack_from(f"{order}H", data, at + 6)[0]
    if length == UNDEFINED:
        return Element(tag, vr, at, start, len(data) if tag == PIXEL_DATA else -1, depth)
    return Element(tag, vr, at, start, start + length, depth)


def encoded(
    tag: int, vr: bytes, value: bytes, *, little: bool, implicit: bool, length: int | None = None, pad: bool = True
) -> bytes:
    """An element; `length` is what it claims if that is a lie."""
    order = "<" if little else ">"
    if len(value) % 2 and pad:
        value += b"\0" if vr in (b"UI", b"OB", b"OW", b"UN") else b" "
    claim = len(value) if length is None else length
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack(f"{order}I", claim & 0xFFFFFFFF) + value
    if vr in LONG:
        return head + vr + b"\0\0" + struct.pack(f"{order}I", claim & 0xFFFFFFFF) + value
    return head + vr + struct.pack(f"{order}H", claim & 0xFFFF) + value


def rebuilt(layout: Layout, edits: Iterable[Edit]) -> bytes:
    """The file with the edits made, deflated again if it was; edits may touch, not overlap."""
    data, dataset = layout.data, layout.dataset
    for start, end, replacement in sorted(edits, reverse=True):
        data = data[:start] + replacement + data[end:]
        if end <= layout.dataset and start < layout.dataset:
            dataset += len(replacement) - (end - start)
    if not layout.deflated:
        return data
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = packer.compress(data[dataset:]) + packer.flush()
    return data[:dataset] + body + b"\0" * (len(body) % 2)
