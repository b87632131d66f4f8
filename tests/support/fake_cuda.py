"""pycuda.driver and cuda.bindings.driver on the host: real bytes, real streams, no GPU.

Work on a stream is done as late as CUDA allows: when something waits for it, and never before. So whoever reads, reuses
or frees memory too early gets wrong bytes here. Every name of the stand-ins is one of the real packages
(`data/pycuda_names.json`), and a name they lack is an AttributeError. Device addresses are no host addresses: using one
that is not allocated kills the context, as it does on a GPU.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.runtime import cuda_context
from fourphase.runtime.cuda import Device, Probe

__all__ = ["NAMES", "Error", "FakeCuda", "FakeStream", "LaunchError", "LogicError", "MemoryError_"]

Bytes = NDArray[np.uint8]

NAMES = {
    package: frozenset(names)
    for package, names in json.loads(
        (Path(__file__).parents[1] / "runtime" / "data" / "pycuda_names.json").read_text()
    ).items()
}
ILLEGAL = "an illegal memory access was encountered"


class Error(Exception):
    pass


class MemoryError_(Error):
    pass


class LogicError(Error):
    pass


class LaunchError(Error):
    pass


class _Graph:
    """A captured graph, or its executable form: the operations in order."""

    def __init__(self, operations: list[Callable[[], None]]) -> None:
        self.operations = operations


class FakeStream:
    def __init__(self, cuda: FakeCuda, flags: int = 0) -> None:
        cuda.enter("Stream", flags)
        self._cuda = cuda
        self.queue: deque[Callable[[], None]] = deque()
        self.done = 0
        self.captured: list[Callable[[], None]] | None = None
        self.capture_broken = False
        self.handle = 0x1000 + len(cuda.streams)
        cuda.streams[self.handle] = self

    @property
    def end(self) -> int:
        """How many operations there ever were."""
        return self.done + len(self.queue)

    def add(self, operation: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(operation)

    def run_to(self, position: int) -> None:
        while self.done < position:
            operation = self.queue.popleft()
            self.done += 1
            operation()

    def synchronize(self) -> None:
        self._cuda.enter("Stream.synchronize", self)
        self._cuda.wait("cuStreamSynchronize", self, self.end)

    def wait_for_event(self, event: FakeEvent) -> None:
        self._cuda.enter("Stream.wait_for_event", self)
        target = event.target
        if target is not None:
            stream, position = target
            self.add(lambda: stream.run_to(position))


class FakeEvent:
    def __init__(self, cuda: FakeCuda, flags: int = 0) -> None:
        cuda.enter("Event", flags)
        self._cuda = cuda
        self.target: tuple[FakeStream, int] | None = None

    def record(self, stream: FakeStream) -> FakeEvent:
        self._cuda.enter("Event.record", stream)
        self.target = (stream, stream.end)
        return self

    def synchronize(self) -> FakeEvent:
        """An event that was never recorded is over (cuEventSynchronize)."""
        self._cuda.enter("Event.synchronize", self)
        if self.target is not None:
            self._cuda.wait("cuEventSynchronize", *self.target)
        return self


class _Allocation:
    """Device memory, or pinned host memory."""

    def __init__(self, cuda: FakeCuda, nbytes: int, kind: str) -> None:
        self._cuda, self.kind = cuda, kind
        self.data: Bytes = np.full(nbytes, 0xA5, np.uint8)
        self._address: int | None = None
        self.live = True
        cuda.live.append(self)
        cuda.allocations += 1

    def __int__(self) -> int:
        if self._address is None:
            self._address = self._cuda.mapped(self.data)
        return self._address

    def get_device_pointer(self) -> int:
        self._cuda.enter("PagelockedHostAllocation.get_device_pointer")
        assert self.kind == "mapped", "only memory allocated with DEVICEMAP"
        return int(self)

    def free(self) -> None:
        self._cuda.enter(f"{self.kind} free")
        assert self.live, "freed twice"
        self.live = False
        self._cuda.live.remove(self)
        if self._address is not None:
            del self._cuda.memory[self._address]


class _Pinned(_Allocation):
    """What is the base of the array that pagelocked_empty returns."""

    def __init__(self, cuda: FakeCuda, shape: tuple[int, ...], dtype: Any, kind: str) -> None:
        kind_of = np.dtype(dtype)
        super().__init__(cuda, int(np.prod(shape)) * kind_of.itemsize, kind)
        address = self.data.__array_interface__["data"][0]
        self.__array_interface__ = {"shape": shape, "typestr": kind_of.str, "data": (address, False), "version": 3}


class FakeCuda:
    """A machine with one GPU.

    Attributes:
        log: (call, *details) in the order of the calls; work on streams when it is enqueued.
        fail: call -> the exception class it raises next (once); "LaunchError" and the like also kill the context.
        lost: the failure that every call answers with, or None.
        live: what is allocated and not freed; `allocations` counts all there ever were.
    """

    def __init__(self, *, integrated: bool = False, memory: int = 1 << 30) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.fail: dict[str, type[Error]] = {}
        self.lost: str | None = None
        self.live: list[_Allocation] = []
        self.allocations = 0
        self.memory: dict[int, Bytes] = {}
        self.streams: dict[int, FakeStream] = {}
        self.stack: list[object] = []
        self.retained = 0
        self.graphs_live = 0
        self.integrated, self.size = integrated, memory
        self._next = 0x7F0000000000
        self.driver = _named("pycuda.driver", self._driver())
        self.statuses: dict[str, str] = {}
        self.bindings = _named("cuda.bindings.driver", self._bindings())

    def install(self, monkeypatch: pytest.MonkeyPatch, *, graphs: bool = True) -> FakeCuda:
        """Makes this machine the one at hand; without `graphs` cuda-python is not installed."""
        found = Probe(Device("Fake", "8.9", "13.0", None), "CUDA device Fake, compute capability 8.9")
        monkeypatch.setattr(cuda_context, "probe", lambda: found)
        for name, module in (
            ("pycuda", SimpleNamespace(driver=self.driver)),
            ("pycuda.driver", self.driver),
            ("cuda", None),
            ("cuda.bindings", None),
            ("cuda.bindings.driver", self.bindings if graphs else None),
        ):
            monkeypatch.setitem(sys.modules, name, module)
        cuda_context.open_gpu.cache_clear()
        return self

    def calls(self, *names: str) -> list[str]:
        return [entry[0] for entry in self.log if entry[0] in names]

    def enter(self, call: str, *details: Any, needs_context: bool = True) -> None:
        """What every call begins with."""
        self.log.append((call, *details))
        if self.lost is not None:
            raise LogicError(f"{call} failed: {self.lost}")
        if needs_context and not self.stack:
            raise LogicError(f"{call} failed: invalid device context")
        error = self.fail.pop(call, None)
        if error is LaunchError:
            self.lost = "unspecified launch failure"
            raise LaunchError(f"{call} failed: {self.lost}")
        if error is not None:
            raise error(f"{call} failed: {'out of memory' if error is MemoryError_ else 'invalid argument'}")

    def wait(self, call: str, stream: FakeStream, position: int) -> None:
        """Does a stream's work; its failure is that of the call that waits."""
        if stream.captured is not None:
            stream.capture_broken = True
            raise LogicError(f"{call} failed: operation not permitted when stream is capturing")
        try:
            stream.run_to(position)
        except LookupError:
            self.lost = ILLEGAL
            raise LogicError(f"{call} failed: {self.lost}") from None

    def mapped(self, data: Bytes) -> int:
        """A device address for host bytes that stand for the GPU's, a multiple of 256."""
        address, self._next = self._next, self._next + (len(data) + 511) // 256 * 256
        self.memory[address] = data
        return address

    def bytes_at(self, address: int, nbytes: int) -> Bytes:
        """The GPU's memory there. Raises: LookupError where nothing is allocated."""
        for start, data in self.memory.items():
            if start <= address and address + nbytes <= start + len(data):
                return data[address - start : address - start + nbytes]
        raise LookupError(hex(address))

    def host_bytes(self, array: NDArray[Any]) -> Bytes:
        """The bytes of a pinned array, as they will be when the copy is done."""
        owners = [it for it in self.live if it.kind in ("pinned", "mapped") and np.shares_memory(it.data, array)]
        assert owners, "an asynchronous copy needs pinned memory"
        assert array.flags.c_contiguous
        start = array.__array_interface__["data"][0] - owners[0].data.__array_interface__["data"][0]
        return owners[0].data[start : start + array.nbytes]

    # pycuda.driver

    def _driver(self) -> dict[str, Any]:
        return {
            **{kind.__name__.rstrip("_"): kind for kind in (Error, MemoryError_, LogicError, LaunchError)},
            "init": lambda flags=0: self.enter("init", needs_context=False),
            "Device": self._device,
            "Context": SimpleNamespace(synchronize=self._synchronize),
            "Stream": lambda flags=0: FakeStream(self, flags),
            "Event": lambda flags=0: FakeEvent(self, flags),
            "event_flags": SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2),
            "host_alloc_flags": SimpleNamespace(DEVICEMAP=2),
            "device_attribute": SimpleNamespace(INTEGRATED="INTEGRATED", CAN_MAP_HOST_MEMORY="CAN_MAP_HOST_MEMORY"),
            "mem_alloc": self._mem_alloc,
            "mem_get_info": lambda: (self.size - sum(len(it.data) for it in self.live), self.size),
            "pagelocked_empty": self._pagelocked_empty,
            "memset_d8_async": self._memset,
            "memcpy_htod_async": self._upload,
            "memcpy_dtoh_async": self._download,
            "memcpy_dtod_async": self._copy,
            "memcpy_dtoh": self._read,
        }

    def _device(self, ordinal: int) -> Any:
        assert ordinal == 0
        return SimpleNamespace(
            get_attribute=lambda name: int(self.integrated or name != "INTEGRATED"),
            retain_primary_context=self._retain,
        )

    def _retain(self) -> Any:
        self.enter("retain_primary_context", needs_context=False)
        self.retained += 1
        return SimpleNamespace(push=self._push, pop=self._pop, detach=self._detach)

    def _push(self) -> None:
        self.enter("push", needs_context=False)
        self.stack.append(object())

    def _pop(self) -> None:
        if self.fail.pop("pop", None):
            raise LogicError(f"cuCtxPopCurrent failed: {self.lost}")
        self.stack.pop()

    def _detach(self) -> None:
        self.stack.clear()

    def _synchronize(self) -> None:
        self.enter("Context.synchronize")
        for stream in list(self.streams.values()):
            self.wait("cuCtxSynchronize", stream, stream.end)

    def _mem_alloc(self, nbytes: int) -> _Allocation:
        self.enter("mem_alloc", nbytes)
        if self.driver.mem_get_info()[0] < nbytes:
            raise MemoryError_("cuMemAlloc failed: out of memory")
        return _Allocation(self, nbytes, "device")

    def _pagelocked_empty(self, shape: tuple[int, ...], dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        self.enter("pagelocked_empty", shape, mem_flags)
        return np.asarray(_Pinned(self, tuple(shape), dtype, "mapped" if mem_flags == 2 else "pinned"))

    def _memset(self, dest: int, data: int, size: int, stream: FakeStream) -> None:
        self.enter("memset_d8_async", dest, data, size)
        stream.add(lambda: self.bytes_at(dest, size).fill(data))

    def _upload(self, dest: int, src: NDArray[Any], stream: FakeStream) -> None:
        self.enter("memcpy_htod_async", dest, stream.handle)
        host = self.host_bytes(src)
        stream.add(lambda: np.copyto(self.bytes_at(dest, len(host)), host))

    def _download(self, dest: NDArray[Any], src: int, stream: FakeStream) -> None:
        self.enter("memcpy_dtoh_async", src, stream.handle)
        host = self.host_bytes(dest)
        stream.add(lambda: np.copyto(host, self.bytes_at(src, len(host))))

    def _copy(self, dest: int, src: int, size: int, stream: FakeStream) -> None:
        self.enter("memcpy_dtod_async", dest, src, size)
        stream.add(lambda: np.copyto(self.bytes_at(dest, size), self.bytes_at(src, size)))

    def _read(self, dest: NDArray[Any], src: int) -> None:
        """It does not wait for streams that do not block."""
        self.enter("memcpy_dtoh", src)
        np.copyto(dest, self.bytes_at(src, dest.nbytes))

    # cuda.bindings.driver

    def _bindings(self) -> dict[str, Any]:
        statuses = ("CUDA_SUCCESS", "CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        return {
            "CUresult": SimpleNamespace(**{name: SimpleNamespace(name=name) for name in statuses}),
            "CUstream": lambda handle: self.streams[handle],
            "CUstreamCaptureMode": SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1),
            "cuStreamBeginCapture": self._begin,
            "cuStreamEndCapture": self._end,
            "cuGraphInstantiate": self._instantiate,
            "cuGraphDestroy": lambda graph: (self._graph_gone("cuGraphDestroy"),),
            "cuGraphExecDestroy": lambda graph: (self._graph_gone("cuGraphExecDestroy"),),
            "cuGraphLaunch": self._launch,
        }

    def _status(self, call: str) -> Any:
        """CUDA_SUCCESS, or what `statuses` says for the call."""
        self.log.append((call,))
        return vars(self.bindings.CUresult)[self.statuses.get(call, "CUDA_SUCCESS")]

    def _begin(self, stream: FakeStream, mode: int) -> tuple[Any]:
        status = self._status("cuStreamBeginCapture")
        if status.name == "CUDA_SUCCESS":
            stream.captured = []
        return (status,)

    def _end(self, stream: FakeStream) -> tuple[Any, Any]:
        operations, stream.captured = stream.captured, None
        assert operations is not None
        if stream.capture_broken:
            self.statuses["cuStreamEndCapture"] = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
        return self._made("cuStreamEndCapture", operations)

    def _instantiate(self, graph: _Graph, flags: int) -> tuple[Any, Any]:
        assert flags == 0
        return self._made("cuGraphInstantiate", graph.operations)

    def _made(self, call: str, operations: list[Callable[[], None]]) -> tuple[Any, Any]:
        status = self._status(call)
        if status.name != "CUDA_SUCCESS":
            return status, None
        self.graphs_live += 1
        return status, _Graph(operations)

    def _graph_gone(self, call: str) -> Any:
        self.graphs_live -= 1
        return self._status(call)

    def _launch(self, graph: _Graph, stream: FakeStream) -> tuple[Any]:
        status = self._status("cuGraphLaunch")
        if status.name == "CUDA_SUCCESS":
            stream.queue.extend(graph.operations)
        return (status,)


def _named(package: str, members: dict[str, Any]) -> Any:
    """A module with these members, all of which the real package has."""
    unknown = set(members) - NAMES[package]
    for name, member in members.items():
        if isinstance(member, SimpleNamespace):
            unknown |= {f"{name}.{inner}" for inner in vars(member)} - NAMES[package]
    assert not unknown, f"{package} has no {', '.join(sorted(unknown))}"
    return SimpleNamespace(**members)


#: What the objects behind the modules answer to.
_METHODS = (
    "Context.detach", "Context.pop", "Context.push", "Device.get_attribute", "Device.retain_primary_context",
    "DeviceAllocation.free", "Event.record", "Event.synchronize", "PagelockedHostAllocation.free",
    "PagelockedHostAllocation.get_device_pointer", "Stream.handle", "Stream.synchronize", "Stream.wait_for_event",
)  # fmt: skip
assert set(_METHODS) <= NAMES["pycuda.driver"]
