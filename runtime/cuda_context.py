"""This process's GPU through pycuda: the primary context of device 0, its streams and events, what its errors mean.

It copies and computes nothing. The context is the one that TensorRT uses; it is retained once and kept to the end of
the process, because TensorRT's CUDA runtime keeps it anyway, and a failure of the GPU lasts as long.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

from fourphase.runtime.cuda import probe
from fourphase.runtime.errors import GPU_LOST, GPUUnavailable
from fourphase.runtime.inference_checks import first_line, package_missing

__all__ = ["REQUIREMENTS", "Closable", "Gpu", "Resources", "is_available", "open_gpu", "out_of_memory"]

REQUIREMENTS = ("pycuda>=2024.1",)
#: CU_STREAM_NON_BLOCKING (cuda.h): work on the legacy default stream neither waits for the stream nor holds it up.
_NON_BLOCKING = 1


class Closable(Protocol):
    """Something that holds memory of the GPU; `close` never raises a pycuda error and may be called twice."""

    def close(self) -> None: ...


_Held = TypeVar("_Held", bound=Closable)


class Gpu:
    """Device 0 and its primary context.

    CUDA reports the failure of a kernel at some later call, and then at every call: the context is dead. Which error
    that was cannot be told from pycuda's classes. So every error but a lack of memory that the context survives makes
    the GPU `lost`: from then on every use raises, without another call of CUDA.

    Attributes:
        driver: the module pycuda.driver.
        name: as the driver says it, "NVIDIA L4".
        zero_copy: the GPU works in the host's own memory (Jetson), so nothing has to be copied to it.
        lost: why the GPU can no longer be used in this process, or None.
    """

    def __init__(self, driver: Any, context: Any, name: str, *, zero_copy: bool) -> None:
        self.driver, self.name, self.zero_copy = driver, name, zero_copy
        self.lost: str | None = None
        self._context = context

    @contextmanager
    def current(self) -> Iterator[None]:
        """The context is current in this thread within the block, and pycuda's errors become ours.

        Raises: GPUUnavailable, key out_of_memory or gpu_lost.
        """
        self.check()
        with self._errors_mapped():
            self._context.push()
        try:
            with self._errors_mapped():
                yield
        except BaseException:
            self._pop()
            raise
        self._pop()
        self.check()

    @contextmanager
    def releasing(self) -> Iterator[None]:
        """As `current`, to free what is held; also for a lost GPU, and then without errors."""
        pushed = self.try_to(self._context.push)
        try:
            yield
        finally:
            if pushed:
                self._pop()

    def check(self) -> None:
        """Raises: GPUUnavailable (gpu_lost) if the GPU failed earlier in this process; CUDA is not called."""
        if self.lost is not None:
            raise _gpu_lost(f"the GPU failed earlier in this process: {self.lost}")

    def lose(self, cause: str) -> GPUUnavailable:
        """Gives the GPU up for the rest of the process; returns the error to raise."""
        self.lost = self.lost or cause
        return _gpu_lost(f"the GPU failed: {cause}")

    def is_alive(self) -> bool:
        """Whether the context still works; waits for all its work. Within `current`, not while a graph is captured."""
        return self.lost is None and self.try_to(self.driver.Context.synchronize)

    def try_to(self, call: Callable[[], object]) -> bool:
        """Whether a call of pycuda worked; where it did not, the GPU is lost. For what must not raise."""
        try:
            call()
        except self.driver.Error as error:
            self.lose(first_line(error))
            return False
        return True

    def new_stream(self) -> Any:
        """A stream of its own: TensorRT synchronises the whole device where it is given the default stream."""
        return self.driver.Stream(_NON_BLOCKING)

    def new_event(self) -> Any:
        """An event without a clock; who waits for it sleeps instead of keeping a core busy."""
        flags = self.driver.event_flags
        return self.driver.Event(int(flags.BLOCKING_SYNC) | int(flags.DISABLE_TIMING))

    @contextmanager
    def _errors_mapped(self) -> Iterator[None]:
        try:
            yield
        except self.driver.Error as error:
            if isinstance(error, self.driver.MemoryError) and self.is_alive():
                raise out_of_memory(f"the GPU's memory does not suffice: {first_line(error)}") from error
            raise self.lose(first_line(error)) from error

    def _pop(self) -> None:
        if not self.try_to(self._context.pop):
            # pycuda aborts the process at its end (134, not 22) unless its own stack is empty; this empties it.
            self.try_to(self._context.detach)


class Resources:
    """What one backend holds on the GPU, closed together, the last one first."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._stack = gpu, ExitStack()

    def add(self, held: _Held) -> _Held:
        self._stack.callback(held.close)
        return held

    def close(self) -> None:
        """Waits for the GPU's work, then frees everything; twice is once."""
        with self._gpu.releasing():
            self._gpu.is_alive()
            self._stack.close()


def is_available() -> bool:
    """Whether the package of REQUIREMENTS can be found; it is not imported."""
    return importlib.util.find_spec("pycuda") is not None


@functools.cache
def open_gpu() -> Gpu:
    """The process's one Gpu.

    Raises: GPUUnavailable without a device, or one that cannot be opened; EnvironmentFault without pycuda.
    """
    found = probe()
    if found.device is None:
        raise _unavailable(found.reason)
    try:
        driver: Any = importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise package_missing("pycuda", REQUIREMENTS[0], error) from error
    try:
        driver.init()
        device = driver.Device(0)
        attributes = driver.device_attribute
        shared = all(device.get_attribute(name) for name in (attributes.INTEGRATED, attributes.CAN_MAP_HOST_MEMORY))
        return Gpu(driver, device.retain_primary_context(), found.device.name, zero_copy=shared)
    except driver.Error as error:
        raise _unavailable(first_line(error)) from error


def out_of_memory(cause: str) -> GPUUnavailable:
    """The error for a lack of memory that the GPU survived."""
    cure = "close other programs on the GPU, build split engines or for a smaller batch, or use the CPU"
    return GPUUnavailable(cause, cure, key="out_of_memory")


def _unavailable(reason: str) -> GPUUnavailable:
    return GPUUnavailable(f"no GPU can be used: {reason}", "use --backend auto or --backend onnxruntime (CPU)")


def _gpu_lost(cause: str) -> GPUUnavailable:
    return GPUUnavailable(
        cause, "run the command again; if it fails again, look for Xid lines in dmesg and restart", key=GPU_LOST
    )
