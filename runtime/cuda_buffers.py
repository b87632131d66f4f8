"""Memory that host and GPU share or exchange: allocated once, filled again and again, freed in `close`.

On a GPU with memory of its own a buffer is a pair, pinned on the host and a twin on the device, copied asynchronously.
On an integrated one (Jetson) it is a single mapped buffer and nothing is copied. Everything is called within
`Gpu.current()`; nothing here decides what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fourphase.runtime.cuda_context import Gpu

__all__ = ["Buffer", "DeviceMemory", "Outgoing", "Staging", "poison"]

#: Of all bytes: a quiet NaN in float16 and float32.
_NAN_BYTE = 0xFF


def poison(gpu: Gpu, pointer: int, nbytes: int, stream: Any) -> None:
    """Enqueues the filling of device memory with NaN, so that what nobody writes afterwards is seen."""
    gpu.driver.memset_d8_async(pointer, _NAN_BYTE, nbytes, stream)


class DeviceMemory:
    """`nbytes` on the device alone, aligned to 256 bytes; `pointer` is their address.

    Raises: GPUUnavailable (out_of_memory), within `Gpu.current()`.
    """

    def __init__(self, gpu: Gpu, nbytes: int) -> None:
        self.nbytes = nbytes
        self._gpu, self._memory = gpu, gpu.driver.mem_alloc(nbytes)
        self.pointer = int(self._memory)

    def close(self) -> None:
        if self._memory is not None:
            self._gpu.try_to(self._memory.free)
            self._memory = None


class Buffer:
    """An array of the host that the GPU sees at `pointer`.

    Attributes:
        host: pinned, C order; must not be touched while enqueued work uses it, nor after `close`.
        pointer: the device's address of the same values, or of their copy.
    """

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._gpu = gpu
        flags = int(gpu.driver.host_alloc_flags.DEVICEMAP) if gpu.zero_copy else 0
        self.host: NDArray[Any] = gpu.driver.pagelocked_empty(shape, dtype, mem_flags=flags)
        self._pinned: Any = self.host.base
        self._twin: DeviceMemory | None = None
        try:
            self._twin = None if gpu.zero_copy else DeviceMemory(gpu, self.host.nbytes)
            self.pointer = int(self._pinned.get_device_pointer()) if self._twin is None else self._twin.pointer
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        return int(self.host.nbytes)

    def upload(self, count: int, stream: Any) -> None:
        """Enqueues the copy of the first `count` entries of axis 0 to the device."""
        if self._twin is not None:
            self._gpu.driver.memcpy_htod_async(self.pointer, self.host[:count], stream)

    def download(self, count: int, stream: Any) -> None:
        """Enqueues the copy of the first `count` entries of axis 0 to the host."""
        if self._twin is not None:
            self._gpu.driver.memcpy_dtoh_async(self.host[:count], self.pointer, stream)

    def poison(self, stream: Any) -> None:
        """NaN everywhere: on the host at once (so no work may be using it), on the device in the stream's order."""
        self.host.fill(np.nan)
        if self._twin is not None:
            poison(self._gpu, self.pointer, self.nbytes, stream)

    def close(self) -> None:
        """Frees both sides; `host` becomes an empty array, because its memory is no longer there."""
        self.host = np.empty((0,), self.host.dtype)
        if self._twin is not None:
            self._twin.close()
        if self._pinned is not None:
            self._gpu.try_to(self._pinned.free)
            self._pinned = None


class Staging:
    """An input buffer on its way to the GPU.

    Two of them in turn let the host fill the one while the GPU works on the other: copies have a stream of their own,
    and the computing stream waits for just the copy that it needs.
    """

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], copies: Any, computing: Any) -> None:
        self._copies, self._computing = copies, computing
        self._arrived, self._free = gpu.new_event(), gpu.new_event()
        self.buffer = Buffer(gpu, shape, np.float32)

    def put(self, values: NDArray[np.float32]) -> None:
        """Waits until the buffer is free, fills it and enqueues its copy: work enqueued from now on sees `values`.

        Args:
            values: (n, ...), n at most the buffer's first size; copied before this returns.
        """
        self._free.synchronize()
        host = self.buffer.host[: len(values)]
        if host.shape != values.shape:
            raise ValueError(f"the buffer takes {self.buffer.host.shape}, not {values.shape}")
        np.copyto(host, values)
        self.buffer.upload(len(values), self._copies)
        self._arrived.record(self._copies)
        self._computing.wait_for_event(self._arrived)

    def release(self) -> None:
        """The work enqueued so far is the last to use the values."""
        self._free.record(self._computing)

    def close(self) -> None:
        self.buffer.close()


class Outgoing:
    """The outputs of one run on their way to the host.

    Attributes:
        addresses: name -> the device address that the work writes to.
    """

    def __init__(self, gpu: Gpu, tensors: Mapping[str, tuple[tuple[int, ...], DTypeLike]], computing: Any) -> None:
        """`tensors`: name -> (shape, type), axis 0 at its largest."""
        self._computing, self._arrived = computing, gpu.new_event()
        self._buffers: dict[str, Buffer] = {}
        try:
            for name, (shape, dtype) in tensors.items():
                self._buffers[name] = Buffer(gpu, shape, dtype)
        except BaseException:
            self.close()
            raise
        self.addresses = {name: buffer.pointer for name, buffer in self._buffers.items()}

    def clear(self) -> None:
        """Fills everything with NaN before the work is enqueued; nobody may be waiting for earlier outputs."""
        for buffer in self._buffers.values():
            buffer.poison(self._computing)

    def send(self, count: int) -> None:
        """Enqueues the way home of the first `count` entries."""
        for buffer in self._buffers.values():
            buffer.download(count, self._computing)
        self._arrived.record(self._computing)

    def wait(self, count: int) -> dict[str, NDArray[Any]]:
        """Waits for them: name -> (count, ...), views that the next run overwrites."""
        self._arrived.synchronize()
        return {name: buffer.host[:count] for name, buffer in self._buffers.items()}

    def close(self) -> None:
        for buffer in self._buffers.values():
            buffer.close()
