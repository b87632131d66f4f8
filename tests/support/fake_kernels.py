"""pycuda's modules and launches for `FakeCuda`: the kernel's host build runs in its stream's order, on its memory."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from fourphase.runtime.kernel_plan import HEADER
from tests.support.fake_cuda import NAMES, FakeCuda, FakeStream
from tests.support.host_kernel import host_kernel

__all__ = ["FakeKernels"]


class FakeKernels:
    """Modules on a `FakeCuda`.

    Attributes:
        loaded: the bytes of every module. launches: the kernels' names, in the order of the launches.
        damage: called with a launch's output (float32, flat) after the kernel, to let a GPU compute wrongly.
    """

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.loaded: list[bytes] = []
        self.launches: list[str] = []
        self.damage: Callable[[Any], None] = lambda output: None
        assert {"module_from_buffer", "Module.get_function", "Function.prepare"} <= NAMES["pycuda.driver"]
        cuda.driver.module_from_buffer = self._module

    def _module(self, buffer: bytes) -> Any:
        self._cuda.enter("module_from_buffer")
        self.loaded.append(buffer)
        return SimpleNamespace(get_function=lambda name: _Function(self, self._cuda, name))


class _Function:
    def __init__(self, kernels: FakeKernels, cuda: FakeCuda, name: str) -> None:
        self._kernels, self._cuda, self.name = kernels, cuda, name
        self._format = ""

    def prepare(self, arg_types: str) -> None:
        self._format = arg_types

    def prepared_async_call(
        self, grid: tuple[int, int, int], block: tuple[int, int, int], stream: FakeStream, *arguments: int
    ) -> None:
        assert self._format == "PPiP"
        plan, voxels, is_float, output = arguments
        self._cuda.enter("prepared_async_call", stream.handle, self.name, output)
        self._kernels.launches.append(self.name)
        launch = np.array([*grid, *block, "general" in self.name, "fp16" in self.name, is_float], np.int32).tobytes()

        def work() -> None:
            header = self._cuda.bytes_at(plan, HEADER.itemsize).view(HEADER)[0]
            nbytes = int(np.prod(header["size"])) * int(header["channels"]) * 4
            read = int(np.prod(header["window"])) * (4 if is_float else 2)
            places = [self._cuda.bytes_at(plan, HEADER.itemsize), self._cuda.bytes_at(voxels, read)]
            written = self._cuda.bytes_at(output, nbytes)
            packed, given, target = (int(place.ctypes.data) for place in (*places, written))
            host_kernel().run(launch, (packed, given, target))
            self._kernels.damage(written.view(np.float32))

        stream.add(work)
