"""Mutations of elements: values, removal, repetition, lies about length and VR, nesting, order, exchange.

Each is done to one slice, to some slices or to all slices of one phase.
"""

from __future__ import annotations

import random
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fourphase.benchmarks.mutants.elements import PIXEL_DATA, Edit, Element, Layout, encoded, layout_of, rebuilt
from fourphase.benchmarks.mutants.mutant import Change, Kind, phase_files
from fourphase.benchmarks.mutants.study import MARKER, PHASES, BaseStudy
from fourphase.benchmarks.mutants.values import (
    invalid_value,
    moved_number,
    number_changes,
    numbers_of,
    valid_value,
    with_number,
)

__all__ = ["KINDS"]

POSITION, ORIENTATION, SPACING = 0x00200032, 0x00200037, 0x00280030
ROWS, COLUMNS, SLOPE, INTERCEPT = 0x00280010, 0x00280011, 0x00281053, 0x00281052
GEOMETRY = (*[POSITION] * 5, *[ORIENTATION] * 2, *[SPACING] * 3, ROWS, COLUMNS)
PIXELS = (SLOPE, SLOPE, INTERCEPT, INTERCEPT, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280002)
#: Thickness, distance, tilt, location, instance, acquisition and series number, frames: none of them is geometry.
MISLEADING = (0x00180050, 0x00180088, 0x00181120, 0x00201041, 0x00200013, 0x00200012, 0x00200011, 0x00280008)
#: (tag, VR, value) of elements that may be added.
ADDED = (
    *((0x00280120, b"US", struct.pack("<H", value)) for value in (0, 1064, 1100, 63536)),
    *((0x00280121, b"US", struct.pack("<H", value)) for value in (0, 1200, 65535)),
    *((0x00280008, b"IS", value) for value in (b"0", b"1", b"2", b"12", b"-1", b"999999999")),
    *((0x00282110, b"CS", value) for value in (b"00", b"01")),
    *((0x00189344, b"CS", value) for value in (b"ARTERIAL", b"PRE_CONTRAST", MARKER.encode())),
    *((0x00180010, b"LO", value) for value in (b"NONE", MARKER.encode())),
    (0x00181042, b"TM", b"101400"),
    (0x0008002A, b"DT", b"20200101235959"),
    (0x00280034, b"IS", b"1\\2"),
    (0x00181164, b"DS", b"9\\9"),
    (0x00283000, b"SQ", b""),
    (0x00209128, b"UL", struct.pack("<I", 7)),
    (0x00091001, b"LO", MARKER.encode() * 6),
    (0x00104000, b"LT", MARKER.encode() * 900),
    (0x7FE00001, b"OV", bytes(16)),
    (0x7FE00008, b"OF", bytes(64)),
    (0x60003000, b"OW", bytes(144)),
)
VRS = (b"SQ", b"UN", b"OB", b"UT", b"DS", b"US", b"IS", b"LO", b"zz", b"\0\0", b"OW", b"FD", b"PN")

Make = Callable[[Layout, Element, int], Edit]


@dataclass(frozen=True)
class Slot:
    """One element in one file."""

    file: str
    element: Element


def _slots(base: BaseStudy, phase: str, tag: int) -> list[Slot]:
    """Where a phase has a tag, in the order of its slices."""
    return [
        Slot(name, element)
        for name in phase_files(base, phase)
        for element in layout_of(base.files[name]).elements
        if element.tag == tag
    ]


def _scope(rng: random.Random, slots: list[Slot]) -> tuple[str, list[Slot]]:
    """One, some or all of them."""
    if not slots:
        return "no", []
    kind = rng.choice(("one", "one", "some", "run", "all"))
    if kind == "one" or len(slots) == 1:
        return "one", [rng.choice(slots)]
    if kind == "all" or len(slots) == 2:
        return "all", slots
    count = rng.randint(2, len(slots) - 1)
    if kind == "some":
        return f"{count} of {len(slots)}", [slots[i] for i in sorted(rng.sample(range(len(slots)), count))]
    first = rng.randint(0, len(slots) - count)
    return f"{first + 1} to {first + count} of {len(slots)}", slots[first : first + count]


def _edited(base: BaseStudy, slots: Sequence[Slot], make: Make) -> dict[str, bytes]:
    edits: dict[str, list[Edit]] = defaultdict(list)
    for index, slot in enumerate(slots):
        edits[slot.file].append(make(layout_of(base.files[slot.file]), slot.element, index))
    return {name: rebuilt(layout_of(base.files[name]), made) for name, made in edits.items()}


def _element(layout: Layout, element: Element, value: bytes, **options: int | bool) -> bytes:
    """The element with another value, in the file's encoding."""
    in_meta = element.start < layout.dataset
    little, implicit = layout.little or in_meta, layout.implicit and not in_meta
    length, pad = options.get("length"), bool(options.get("pad", True))
    return encoded(element.tag, element.vr, value, little=little, implicit=implicit, length=length, pad=pad)


def _shown(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _number(rng: random.Random, base: BaseStudy) -> Change | None:
    """A geometry or pixel number of some slices of one phase (or of every phase) is changed."""
    tag = rng.choice(rng.choice((GEOMETRY, GEOMETRY, PIXELS, MISLEADING)))
    phases = list(PHASES) if rng.random() < 0.1 else [rng.choice(list(PHASES))]
    found = {phase: _slots(base, phase, tag) for phase in phases}
    if not all(found.values()):
        return None
    layout, element = layout_of(base.files[found[phases[0]][0].file]), found[phases[0]][0].element
    components = len(numbers_of(element.vr, layout.value(element), layout.little))
    component = rng.randrange(components)
    shown, change = moved_number(rng) if element.vr == b"US" else number_changes(rng)
    scope, slots = _scope(rng, found[phases[0]])
    if len(phases) > 1:
        scope, slots = "all", [slot for of_phase in found.values() for slot in of_phase]

    def make(layout: Layout, element: Element, index: int) -> Edit:
        old = layout.value(element)
        number = numbers_of(element.vr, old, layout.little)[component]
        value = with_number(element.vr, old, layout.little, component, change(number, index))
        return element.start, element.end, _element(layout, element, value)

    what = f"number {component + 1} of {_shown(tag)} {shown} in {scope} of {', '.join(phases)}"
    return Change(what, _edited(base, slots, make))


def _any_slots(rng: random.Random, base: BaseStudy, *, pixels: bool = False) -> tuple[str, list[Slot]]:
    """Some slots of any element."""
    phase = rng.choice(list(PHASES))
    elements = layout_of(base.files[phase_files(base, phase)[0]]).elements
    tag = rng.choice([one.tag for one in elements if pixels or one.tag != PIXEL_DATA])
    scope, slots = _scope(rng, _slots(base, phase, tag))
    return f"{_shown(tag)} in {scope} of {phase}", slots


def _values(draw: Callable[[random.Random, bytes, bool], bytes], *, same: bool) -> Kind:
    def kind(rng: random.Random, base: BaseStudy) -> Change | None:
        where, slots = _any_slots(rng, base)
        if not slots or slots[0].element.is_nested:
            return None
        one = draw(rng, slots[0].element.vr, layout_of(base.files[slots[0].file]).little)

        def make(layout: Layout, element: Element, index: int) -> Edit:
            value = one if same or index == 0 else draw(rng, element.vr, layout.little)
            return element.start, element.end, _element(layout, element, value, pad=same or rng.random() < 0.7)

        return Change(f"{where}: set to {one[:24]!r}{'' if same else ' or the like'}", _edited(base, slots, make))

    return kind


def _removed(rng: random.Random, base: BaseStudy) -> Change:
    where, slots = _any_slots(rng, base, pixels=True)
    return Change(f"{where}: removed", _edited(base, slots, lambda layout, one, index: (one.start, one.end, b"")))


def _duplicated(rng: random.Random, base: BaseStudy) -> Change:
    """Beside the sound element comes a second one, the same or with another value."""
    where, slots = _any_slots(rng, base, pixels=True)
    before, other = rng.random() < 0.5, rng.random() < 0.7

    def make(layout: Layout, element: Element, index: int) -> Edit:
        twin = layout.data[element.start : element.end]
        if other and element.tag != PIXEL_DATA and not element.is_nested:
            twin = _element(layout, element, valid_value(rng, element.vr, layout.little))
        place = element.start if before else element.end
        return place, place, twin

    return Change(f"{where}: a second {'other' if other else 'equal'} one", _edited(base, slots, make))


def _length_lie(rng: random.Random, base: BaseStudy) -> Change:
    where, slots = _any_slots(rng, base, pixels=True)
    by = rng.choice((-2, -1, 1, 2, 4, 8, 100, 65000, -4, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 0))

    def make(layout: Layout, element: Element, index: int) -> Edit:
        width = 2 if _is_short(layout, element) else 4
        order = "little" if layout.little or element.start < layout.dataset else "big"
        length = (element.end - element.value + by) if by and by < 0x7FFFFFFF else by
        claim = max(length, 0) % 256**width
        return element.value - width, element.value, claim.to_bytes(width, order)

    return Change(f"{where}: its length lies by {by}", _edited(base, slots, make))


def _is_short(layout: Layout, element: Element) -> bool:
    """Explicit VR with a length of two bytes (PS3.5 7.1.2)."""
    implicit = layout.implicit and element.start >= layout.dataset
    return not implicit and element.value - element.start == 8


def _vr_lie(rng: random.Random, base: BaseStudy) -> Change | None:
    where, slots = _any_slots(rng, base, pixels=True)
    vr = rng.choice(VRS)

    def make(layout: Layout, element: Element, index: int) -> Edit:
        if layout.implicit and element.start >= layout.dataset:
            return (
                element.start,
                element.end,
                encoded(element.tag, vr if vr.isupper() else b"UN", layout.value(element), little=True, implicit=False),
            )
        return element.start + 4, element.start + 6, vr

    return Change(f"{where}: its VR lies, {vr!r}", _edited(base, slots, make))


def _nested(rng: random.Random, base: BaseStudy) -> Change:
    """The element goes, or is repeated, into a sequence in a sequence in a sequence ..."""
    where, slots = _any_slots(rng, base)
    depth, stays = rng.choice((1, 1, 2, 10, 40, 400, 3000)), rng.random() < 0.5

    def make(layout: Layout, element: Element, index: int) -> Edit:
        order = "<" if layout.little else ">"
        explicit = b"SQ\0\0" if not layout.implicit else b""
        opening = struct.pack(f"{order}HH", 0x0040, 0xA730) + explicit + struct.pack(f"{order}I", 0xFFFFFFFF)
        opening += struct.pack(f"{order}HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        closing = struct.pack(f"{order}HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        inner = opening * depth + layout.data[element.start : element.end] + closing * depth
        return element.end if stays else element.start, element.end, inner

    return Change(f"{where}: {'also' if stays else 'only'} {depth} sequences deep", _edited(base, slots, make))


def _moved(rng: random.Random, base: BaseStudy) -> Change | None:
    """The element stands in another place of its file, out of order."""
    where, slots = _any_slots(rng, base)
    files: dict[str, bytes] = {}
    for slot in slots:
        layout = layout_of(base.files[slot.file])
        others = [one for one in layout.elements if not slot.element.start <= one.start < slot.element.end]
        place = rng.choice(others).start
        raw = layout.data[slot.element.start : slot.element.end]
        files[slot.file] = rebuilt(layout, [(slot.element.start, slot.element.end, b""), (place, place, raw)])
    return Change(f"{where}: moved", files)


def _added(rng: random.Random, base: BaseStudy) -> Change:
    """An element that was not there, where it belongs or behind the meta information."""
    tag, vr, value = rng.choice(ADDED)
    phase = rng.choice(list(PHASES))
    scope, slots = _scope(rng, _slots(base, phase, PIXEL_DATA))

    def make(layout: Layout, element: Element, index: int) -> Edit:
        later = [one.start for one in layout.elements if one.tag > tag and not one.depth]
        place = min(later, default=element.start)
        order = {"little": layout.little, "implicit": layout.implicit}
        swapped = value[::-1] if vr == b"US" and not layout.little else value
        return place, place, encoded(tag, vr, swapped, **order)

    return Change(f"{_shown(tag)} {value[:16]!r} added in {scope} of {phase}", _edited(base, slots, make))


def _exchanged(rng: random.Random, base: BaseStudy) -> Change | None:
    """Two slices exchange a value, or one takes another's."""
    phase, other = rng.choice(list(PHASES)), rng.choice(list(PHASES))
    elements = layout_of(base.files[phase_files(base, phase)[0]]).elements
    tag = rng.choice((POSITION, POSITION, *(one.tag for one in elements if one.tag != PIXEL_DATA)))
    one, two = rng.choice(_slots(base, phase, tag)), rng.choice(_slots(base, other, tag))
    both = rng.random() < 0.5
    if one.element.is_nested or one == two:
        return None
    values = {slot: layout_of(base.files[slot.file]).value(slot.element) for slot in (one, two)}

    def make(layout: Layout, element: Element, index: int) -> Edit:
        return element.start, element.end, _element(layout, element, values[two if index == 0 else one])

    what = f"{_shown(tag)} {'exchanged between' if both else 'taken by'} a slice of {phase} and one of {other}"
    return Change(what, _edited(base, (one, two) if both else (one,), make))


#: Name -> weight and what it does.
KINDS: dict[str, tuple[float, Kind]] = {
    "number": (28, _number),
    "valid value": (8, _values(valid_value, same=True)),
    "invalid value": (8, _values(lambda rng, vr, little: invalid_value(rng), same=False)),
    "element removed": (6, _removed),
    "element twice": (5, _duplicated),
    "length lie": (6, _length_lie),
    "VR lie": (4, _vr_lie),
    "element nested": (3, _nested),
    "element moved": (3, _moved),
    "element added": (5, _added),
    "value exchanged": (4, _exchanged),
}
