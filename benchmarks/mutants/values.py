"""Values to put in the place of a sound one: others that are valid for its VR, invalid ones, numbers moved a little or
far. Nothing here knows files.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

__all__ = ["Number", "invalid_value", "moved_number", "number_changes", "numbers_of", "valid_value", "with_number"]

#: What is done to a number; the second argument counts the slots it is done to, from 0.
Number = Callable[[float, int], float | bytes]

ABSOLUTE = (1e-6, 1e-3, 0.02, 0.05, 0.09, 0.11, 0.15, 0.2, 0.5, 0.8, 1.0, 1.5, 3.0, 5.0, 30.0, 1e3, 1e5, 1e9)
RELATIVE = (1e-6, 5e-5, 9e-5, 2e-4, 1e-3, 0.01, 0.1, 0.5, 1.0, 9.0)
SET = (b"", b"0", b"-1", b"nan", b"inf", b"1e300", b"1e999", b"-", b"1,5", b"0x10", b"1.5.2", b" ", b"1e-300", b"--1")
WORDS = (b"CT", b"MR", b"ORIGINAL", b"DERIVED", b"MONOCHROME1", b"HU", b"US", b"LOCALIZER", b"YES", b"NO", b"01", b"00")
TEXTS = (b"nativ", b"arteriell", b"portal", b"delayed", b"thorax", b"MPR", "sp\u00e4t".encode(), b"A\\B", b"x" * 60)
TIMES = (b"000000", b"101500", b"101935", b"235959.999999", b"10", b"1020")
DATES = (b"20200101", b"20200102", b"19000101", b"20991231", b"2020.01.01")
UIDS = (b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.5.1.4.1.1.4", b"1.2.3", b"1.2.840.10008.1.2.1", b"2.25.1", b"")
SHORTS = (0, 1, 2, 8, 11, 12, 15, 16, 31, 32, 33, 36, 64, 512, 4096, 4097, 32767, 32768, 65535)
JUNK = (b"\xff\xfe\0\xe0", b"\0" * 8, b"\x1b$B", b"\xff" * 16, b"%s%n", b"../../x", b"\x00\xd8", b"\\" * 9, b"9" * 300)


def valid_value(rng: random.Random, vr: bytes, little: bool) -> bytes:
    """Another value that the VR allows."""
    order = "<" if little else ">"
    if vr in (b"US", b"SS"):
        return struct.pack(f"{order}H", rng.choice(SHORTS))
    if vr in (b"UL", b"SL"):
        return struct.pack(f"{order}I", rng.choice((0, 1, 12, 2**16, 2**32 - 1)))
    choices: dict[bytes, tuple[bytes, ...]] = {
        b"DS": (b"0", b"1", b"-1024", b"2.5", b"1e3"),
        b"IS": (b"0", b"1", b"3", b"-7", b"2147483647"),
    }
    choices |= {b"UI": UIDS, b"TM": TIMES, b"DA": DATES, b"CS": WORDS}
    if vr == b"DS" and rng.random() < 0.5:
        return b"\\".join(b"%.4g" % rng.uniform(-50, 50) for _ in range(rng.choice((1, 2, 3, 6))))
    return rng.choice(choices.get(vr, TEXTS))


def invalid_value(rng: random.Random) -> bytes:
    """A value of no VR, or of another one, or of no length at all."""
    if rng.random() < 0.3:
        return rng.randbytes(rng.choice((1, 2, 3, 4, 16, 64)))
    return rng.choice((*JUNK, *SET))


def numbers_of(vr: bytes, value: bytes, little: bool) -> list[float]:
    """The numbers of a sound element; empty if it has none."""
    if vr == b"US":
        return [float(struct.unpack("<H" if little else ">H", value)[0])]
    if vr in (b"DS", b"IS"):
        return [float(part) for part in value.strip(b" \0").split(b"\\")]
    return []


def with_number(vr: bytes, value: bytes, little: bool, component: int, number: float | bytes) -> bytes:
    """The value with one of its numbers replaced, by another or by bytes that are none."""
    if vr == b"US":
        if isinstance(number, bytes):
            return number
        return struct.pack("<H" if little else ">H", int(max(0, min(65535, round(number)))))
    parts = value.strip(b" \0").split(b"\\")
    written = number if isinstance(number, bytes) else b"%.10g" % number
    parts[component] = b"%d" % round(number) if vr == b"IS" and isinstance(number, float) else written
    return b"\\".join(parts)


def number_changes(rng: random.Random) -> tuple[str, Number]:
    """A change and its description: added, scaled, set, scattered, or growing from slot to slot."""
    kind = rng.choice(("added", "added", "scaled", "scaled", "set", "scattered", "growing", "negated"))
    sign = rng.choice((-1, 1))
    by, share = sign * rng.choice(ABSOLUTE), sign * rng.choice(RELATIVE)
    if kind == "added":
        return f"{by:+g}", lambda number, index: number + by
    if kind == "scaled":
        return f"x {1 + share:g}", lambda number, index: number * (1 + share)
    if kind == "scattered":
        seed = rng.random()
        return f"scattered by {abs(by):g}", lambda number, index: number + by * _scatter(seed, index)
    if kind == "growing":
        return f"{by:+g} more each time", lambda number, index: number + by * index
    if kind == "negated":
        return "negated", lambda number, index: -number
    written = rng.choice(SET)
    return f"set to {written!r}", lambda number, index: written


def _scatter(seed: float, index: int) -> float:
    return random.Random(f"{seed}:{index}").uniform(-1, 1)


def moved_number(rng: random.Random) -> tuple[str, Number]:
    """A small whole change, for values that count."""
    by = rng.choice((-16, -2, -1, 1, 2, 3, 4, 8, 16, 32, 1000, 30000))
    return f"{by:+d}", lambda number, index: number + by
