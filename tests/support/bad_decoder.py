"""A decoder for `decode_pool.DecodePool(decoder=...)` that does what the frame says: decode, abort, hang, ..."""

from __future__ import annotations

import ctypes
import os
import sys
import time

import numpy as np

from fourphase.runtime.decode_worker import FrameFormat
from fourphase.runtime.decoders import DecoderFailed, Unsigned
from fourphase.runtime.errors import EnvironmentFault

__all__ = ["decode_here"]


class Panic(BaseException):
    """What pyo3 makes of a panic in Rust code is no Exception either."""


def decode_here(frame: bytes, form: FrameFormat) -> Unsigned:
    """The frame is a word, and for "fine" a number that fills the image; its own decoder would say what it likes."""
    word, _, number = frame.decode().partition(" ")
    if word == "abort":
        os.abort()
    elif word == "segfault":
        ctypes.string_at(0)
    elif word == "sleep":
        time.sleep(1e6)
    elif word == "spin":
        while True:
            pass
    elif word == "allocate":
        hoard = []
        while True:
            hoard.append(bytearray(2**24))
    elif word == "exit":
        os._exit(0)
    elif word == "panic":
        raise Panic("MARKER")
    elif word == "raise":
        raise DecoderFailed
    elif word == "missing":
        raise EnvironmentFault("MARKER", "MARKER")
    elif word == "garbage":
        _write_to_every_pipe(b"\xff" * 4096)
    elif word == "print":
        os.write(1, b"MARKER" * 1000)
        os.write(2, b"MARKER" * 1000)
        print("MARKER", file=sys.stderr)
    elif word == "short":
        return np.zeros(form.rows * form.columns - 1, np.uint16)
    elif word == "long":
        return np.zeros(form.rows * form.columns + 1, np.uint16)
    elif word == "wide":
        return np.zeros(form.rows * form.columns // 2, np.uint32)  # type: ignore[return-value]
    elif word == "corrupt":
        os.write(2, b"Corrupt JPEG data: premature end of data segment\n")
    elif word == "late":
        time.sleep(0.3)
        raise DecoderFailed
    elif word == "slow":
        time.sleep(0.3)
    return np.full((form.rows, form.columns), int(number or 0), np.uint16)


def _write_to_every_pipe(data: bytes) -> None:
    for pipe in range(3, 64):
        try:
            os.write(pipe, data)
        except OSError:
            continue
