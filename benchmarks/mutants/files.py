"""Mutations of bytes, of files and of the zip around a study. What an element is is not known here, but for where the
pixels begin.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Mapping

from fourphase.benchmarks.mutants.elements import PIXEL_DATA, layout_of, rebuilt
from fourphase.benchmarks.mutants.mutant import Change, Content, Kind, phase_files
from fourphase.benchmarks.mutants.study import MARKER, PHASES, BaseStudy

__all__ = ["KINDS"]

#: Changes bytes between two places.
Spoil = Callable[[random.Random, bytes, int, int], bytes]


def _flipped(rng: random.Random, data: bytes, first: int, last: int) -> bytes:
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        spoiled[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def _replaced(rng: random.Random, data: bytes, first: int, last: int) -> bytes:
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        spoiled[rng.randrange(first, last)] = rng.randrange(256)
    return bytes(spoiled)


def _truncated(rng: random.Random, data: bytes, first: int, last: int) -> bytes:
    return data[: rng.choice((rng.randrange(first, last), max(last - rng.choice((1, 2, 8, 9, 100)), 0)))]


def _inserted(rng: random.Random, data: bytes, first: int, last: int) -> bytes:
    place = rng.randrange(first, last)
    return data[:place] + rng.choice((rng.randbytes, bytes))(rng.choice((1, 2, 8, 100, 5000))) + data[place:]


def _cut(rng: random.Random, data: bytes, first: int, last: int) -> bytes:
    place = rng.randrange(first, last)
    return data[:place] + data[place + rng.choice((1, 2, 8, 72, 500)) :]


def _run(rng: random.Random, data: bytes, first: int, last: int) -> bytes:
    """A run of zeros or of 0xFF, as bad sectors read."""
    place, count = rng.randrange(first, last), rng.choice((2, 16, 72, 512, 4096))
    run = rng.choice((b"\0", b"\xff")) * min(count, len(data) - place)
    return data[:place] + run + data[place + len(run) :]


def _blocks(rng: random.Random, data: bytes, first: int, last: int) -> bytes:
    """Two blocks in each other's place."""
    size = min(rng.choice((8, 64, 512)), (last - first) // 3)
    one = rng.randrange(first, last - 2 * size)
    two = rng.randrange(one + size, last - size + 1)
    return data[:one] + data[two : two + size] + data[one + size : two] + data[one : one + size] + data[two + size :]


SPOILS: dict[str, Spoil] = {
    "bits flipped": _flipped,
    "bytes replaced": _replaced,
    "truncated": _truncated,
    "bytes inserted": _inserted,
    "bytes cut out": _cut,
    "run of one byte": _run,
    "blocks exchanged": _blocks,
}


def _bytes(place: str) -> Kind:
    """Bytes of the header or of the pixels of one file, seldom of some files of a phase."""

    def kind(rng: random.Random, base: BaseStudy) -> Change:
        phase = rng.choice(list(PHASES))
        names = phase_files(base, phase)
        count = 1 if rng.random() < 0.8 else rng.randint(1, len(names))
        spoil = rng.choice(list(SPOILS))
        files = {}
        for name in rng.sample(names, count):
            data = base.files[name]
            border = _border(data)
            first, last = (0, border) if place == "header" else (border, len(data))
            files[name] = SPOILS[spoil](rng, data, first, last)
        return Change(f"{spoil} in the {place} of {count} files of {phase}", files)

    return kind


def _border(data: bytes) -> int:
    """Where the pixels start; of a deflated file, where the deflated part does."""
    layout = layout_of(data)
    if layout.deflated:
        return layout.dataset
    return next(element.start for element in layout.elements if element.tag == PIXEL_DATA)


def _removed(rng: random.Random, base: BaseStudy) -> Change:
    """Files are gone, or something else is in their place."""
    phase = rng.choice(list(PHASES))
    names = phase_files(base, phase)
    every = rng.choice((1, 1, 1, 2, 3))
    if every > 1:
        kept = names[rng.randrange(every) :: every]
        return Change(
            f"only every {every}. slice of {phase} is left", dict.fromkeys(name for name in names if name not in kept)
        )
    count = min(rng.choice((1, 1, 1, 2, 3, 99)), len(names))
    first = rng.choice((0, len(names) - count, rng.randint(0, len(names) - count)))
    choices: tuple[Content, ...] = (None, None, None, b"", b"text " + MARKER.encode(), "link", "fifo", "folder")
    left = rng.choice(choices)
    chosen = names[first : first + count]
    shown = "nothing" if left is None else left if isinstance(left, str) else f"{len(left)} bytes"
    what = f"slices {first + 1} to {first + count} of {phase} are gone, {shown} in their place"
    return Change(what, dict.fromkeys(chosen, left))


def _copied(rng: random.Random, base: BaseStudy) -> Change:
    """A slice is there twice: the same bytes, or other pixels, or another identity."""
    name = rng.choice(list(base.files))
    data, how = base.files[name], rng.choice(("equal", "equal", "other pixels", "other instance", "other acquisition"))
    layout = layout_of(data)
    if how == "other pixels":
        pixels = next(element for element in layout.elements if element.tag == PIXEL_DATA)
        data = rebuilt(layout, [(pixels.end - 40, pixels.end - 38, rng.randbytes(2))])
    elif how != "equal":
        tags = {"other instance": 0x00080018, "other acquisition": 0x00200012}
        found = [one for one in layout.elements if one.tag == tags[how]]
        data = rebuilt(layout, [(one.end - 1, one.end, b"7") for one in found])
    folder = rng.choice((name.rsplit("/", 1)[0], f"{MARKER}/copies"))
    return Change(f"a slice twice, {how}", {f"{folder}/{MARKER}copy": data})


def _places_exchanged(rng: random.Random, base: BaseStudy) -> Change:
    """Files exchange names, or move: neither must matter."""
    names = list(base.files)
    if rng.random() < 0.5:
        one, two = rng.sample(names, 2)
        return Change("two files exchange their names", {one: base.files[two], two: base.files[one]})
    chosen = rng.sample(names, rng.randint(1, len(names)))
    files: dict[str, Content] = {f"{MARKER}/else/{MARKER}{i}": base.files[name] for i, name in enumerate(chosen)}
    return Change(f"{len(chosen)} files move to another folder", {**files, **dict.fromkeys(chosen, None)})


def _foreign(rng: random.Random, base: BaseStudy) -> Change:
    """A file is overwritten by another one of the study."""
    one, two = rng.sample(list(base.files), 2)
    (phase, index), (other, place) = base.places[one], base.places[two]
    return Change(f"slice {index} of {phase} is overwritten by {place} of {other}", {one: base.files[two]})


def _pixels_exchanged(rng: random.Random, base: BaseStudy) -> Change:
    """Two files exchange their pixels: no header can tell."""
    one, two = rng.sample(list(base.files), 2)
    layouts = [layout_of(base.files[name]) for name in (one, two)]
    pixels = [next(element for element in layout.elements if element.tag == PIXEL_DATA) for layout in layouts]
    values = [layout.data[found.start : found.end] for layout, found in zip(layouts, pixels, strict=True)]
    edits = [(found.start, found.end, value) for found, value in zip(pixels, reversed(values), strict=True)]
    files = {name: rebuilt(layout, [edit]) for name, layout, edit in zip((one, two), layouts, edits, strict=True)}
    return Change("two files exchange their pixels", files)


def _junk(rng: random.Random, base: BaseStudy) -> Change:
    """Something that is no slice lies beside the slices."""
    some = base.files[rng.choice(list(base.files))]
    choices = {
        "random bytes": rng.randbytes(rng.choice((1, 131, 5000, 40000))),
        "a preamble and nothing": bytes(128) + b"DICM",
        "a preamble and random bytes": bytes(128) + b"DICM" + rng.randbytes(400),
        "a bare group": b"\x08\0\x05\0" + rng.randbytes(300),
        "the start of a slice": some[: rng.randrange(len(some))],
        "the end of a slice": some[rng.randrange(len(some)) :],
        "zeros": bytes(9000),
        "text": (MARKER * 50).encode(),
    }
    what = rng.choice(list(choices))
    return Change(f"{what} beside the slices", {f"{MARKER}/s3/{MARKER}junk": choices[what]})


def _zipped(base: BaseStudy, rename: Callable[[str], str], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in base.files.items():
            archive.writestr(zipfile.ZipInfo(rename(name)), data, method)
    return buffer.getvalue()


def _zip(rng: random.Random, base: BaseStudy) -> Change:
    """The study as a zip whose container is spoilt, or whose names are traps."""
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    prefix = rng.choice(("", "", "", "../", "/tmp/", "a/../../", "\\\\", "C:\\", "\u202e", "x" * 300 + "/"))
    data = _zipped(base, lambda name: prefix + name, method)
    directory = data.rindex(b"PK\x05\x06")
    start = int.from_bytes(data[directory + 16 : directory + 20], "little")
    places: Mapping[str, tuple[int, int]] = {
        "nothing": (0, 1),
        "the files": (0, start),
        "the table of contents": (start, directory),
        "the end record": (directory, len(data)),
        "the first local header": (0, 60),
    }
    where, spoil = rng.choice(list(places)), rng.choice(list(SPOILS))
    if where != "nothing":
        data = SPOILS[spoil](rng, data, *places[where])
    what = "nothing spoilt" if where == "nothing" else f"{spoil} in {where}"
    return Change(f"zip with the prefix {prefix[:8]!r}, {what}", archive=data)


#: Name -> weight and what it does.
KINDS: dict[str, tuple[float, Kind]] = {
    "bytes of the header": (12, _bytes("header")),
    "bytes of the pixels": (12, _bytes("pixels")),
    "file gone": (4, _removed),
    "file twice": (3, _copied),
    "file elsewhere": (2, _places_exchanged),
    "file overwritten": (3, _foreign),
    "pixels exchanged": (1, _pixels_exchanged),
    "junk beside": (2, _junk),
    "zip": (5, _zip),
}
