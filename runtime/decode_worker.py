"""The child process of `decode_pool`: reads frames from a pipe, decodes them, writes their cells to another.

It limits itself before it touches a frame: memory and processor time by the size of the frame, no core dump, and it
dies with its parent. Whatever a decoder prints goes nowhere. It reads no file and knows nothing of the study.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from fourphase.runtime.errors import EnvironmentFault

if TYPE_CHECKING:
    from fourphase.runtime.decoders import Unsigned

__all__ = [
    "ANSWER",
    "FAILED",
    "MAGIC",
    "MISSING",
    "NO_MEMORY",
    "OK",
    "READY",
    "REQUEST",
    "FrameFormat",
    "main",
    "request",
    "seconds",
]

#: number, bytes of the frame, transfer syntax, photometric, rows, columns, bits allocated, bits stored, precision.
REQUEST = struct.Struct("<QQ64s16sIIIII")
#: magic, number of the request, status, bytes per cell, bytes that follow.
ANSWER = struct.Struct("<8sQIIQ")
MAGIC = b"fpdecode"
OK, FAILED, MISSING, NO_MEMORY, READY = range(5)


class FrameFormat(NamedTuple):
    """What a decoder must know of a frame, as it goes to the child.

    Attributes:
        precision: bits per sample as the codestream says; for RLE, BitsAllocated.
    """

    transfer_syntax: str
    photometric: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    precision: int


Decode: TypeAlias = "Callable[[bytes, FrameFormat], Unsigned]"

#: The slowest decoder takes 0.2 us per pixel here (JPEG 2000; RLE, in Python, less): a machine 50 times slower passes.
SECONDS, SECONDS_PER_PIXEL = 20.0, 10e-6
#: The hungriest decoder takes 21 bytes per pixel (JPEG Lossless); beside it, a package imported at the first frame.
MEMORY, MEMORY_PER_PIXEL = 512 * 2**20, 64

#: What libjpeg's warnings of damaged entropy-coded data begin with (gdcm's JPEG Lossless is built on it).
CORRUPT = b"Corrupt JPEG data"
PR_SET_PDEATHSIG = 1


def seconds(form: FrameFormat) -> float:
    """How long a frame may take: of the processor in the child, of the clock in the parent."""
    return SECONDS + SECONDS_PER_PIXEL * form.rows * form.columns


def request(number: int, frame: bytes, form: FrameFormat) -> bytes:
    """A frame on its way to the child."""
    syntax, photometric, *numbers = form
    head = REQUEST.pack(number, len(frame), str(syntax).encode(), photometric.encode(), *numbers)
    return head + frame


def main() -> None:
    """Serves until the pipe ends. Arguments: the module whose `decode_here` to call, the parent's process number."""
    _die_with(int(sys.argv[2]))
    requests, answers = _private_pipes()
    complaints = _complaints()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    decode: Decode = import_module(sys.argv[1]).decode_here
    _write(answers, ANSWER.pack(MAGIC, 0, READY, 0, 0))
    while head := _read(requests, REQUEST.size):
        number, length, syntax, photometric, *numbers = REQUEST.unpack(head)
        form = FrameFormat(syntax.rstrip(b"\0").decode(), photometric.rstrip(b"\0").decode(), *numbers)
        frame = _read(requests, length)
        _limit(form)
        _heard(complaints)
        status, cells = _attempt(decode, frame, form)
        if _heard(complaints):
            status, cells = FAILED, cells[:0]
        _write(answers, ANSWER.pack(MAGIC, number, status, cells.itemsize, cells.nbytes))
        _write(answers, cells.tobytes())


def _attempt(decode: Decode, frame: bytes, form: FrameFormat) -> tuple[int, Unsigned]:
    nothing = np.empty(0, np.uint8)
    try:
        return OK, decode(frame, form)
    except MemoryError:
        return NO_MEMORY, nothing
    except EnvironmentFault:
        return MISSING, nothing
    except BaseException:
        return FAILED, nothing


def _die_with(parent: int) -> None:
    """Ends with the parent, however it ends; signals to the whole group are the parent's business."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _private_pipes() -> tuple[int, int]:
    """The pipes under numbers that no decoder prints to; stdin and stdout lead nowhere from here on."""
    requests, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return requests, answers


def _complaints() -> int:
    """The end of a pipe that stderr leads to; what does not fit is lost, so that no decoder waits."""
    heard, stderr = os.pipe()
    os.set_blocking(heard, False)
    os.set_blocking(stderr, False)
    os.dup2(stderr, 2)
    os.close(stderr)
    return heard


def _heard(complaints: int) -> bool:
    """Whether libjpeg found the data damaged since the last time; it says so and decodes on. Nothing else is kept."""
    said = b""
    with suppress(BlockingIOError):
        while part := os.read(complaints, 2**16):
            said += part
    return CORRUPT in said or len(said) >= 2**15


def _limit(form: FrameFormat) -> None:
    """Memory and processor time for one frame, beyond what the process has used so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds(form)) + 1)
    with open("/proc/self/statm", encoding="ascii") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    _set(resource.RLIMIT_AS, held + MEMORY + MEMORY_PER_PIXEL * form.rows * form.columns)


def _set(limit: int, value: int) -> None:
    """The soft limit only: the next frame's may be higher."""
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _read(pipe: int, count: int) -> bytes:
    """Exactly `count` bytes; none at the end of the pipe: the parent is done with this process."""
    parts = bytearray()
    while len(parts) < count:
        part = os.read(pipe, count - len(parts))
        if not part:
            return b""
        parts += part
    return bytes(parts)


def _write(pipe: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]


if __name__ == "__main__":
    main()
