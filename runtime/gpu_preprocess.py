"""HU voxels -> the network's input on the GPU: a packed plan and its voxels uploaded, the kernel launched.

The arithmetic is in sampling_kernel.h alone. What crosses the bus, in one copy per phase: the plan's tables and the
window's voxels in HU as `read_hu` gives them, int16 where every slice is rescaled by whole numbers, else float32. Not
the stored values: padding, clipping and the share of implausible voxels are not linear and must be judged before
anything is interpolated, and HU of whole numbers are no wider.

It reads no files of a study and chooses nothing: what cannot run is an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.cuda_buffers import DeviceMemory
from fourphase.runtime.cuda_context import Gpu
from fourphase.runtime.kernel_module import KernelModule, kernel_name
from fourphase.runtime.kernel_plan import BLOCK, KernelPlan

__all__ = ["GpuPreprocessor", "Hounsfield"]

#: Voxels start at a multiple of this many bytes behind the plan; buffers grow in steps.
_ALIGNMENT, _STEP = 256, 1 << 20

Hounsfield = NDArray[np.int16] | NDArray[np.float32]


class _Slot:
    """Pinned and device memory of one upload in flight; `done` follows the kernel that reads it.

    A copy on the device also on a Jetson: weights read a voxel again and again, which is what its caches are for.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self.done = gpu, gpu.new_event()
        self.host: NDArray[np.uint8] = np.empty((0,), np.uint8)
        self._pinned: Any = None
        self.device: DeviceMemory | None = None

    def reserve(self, size: int) -> DeviceMemory:
        """Waits until the device reads the memory no longer, and sees that there are at least `size` bytes."""
        self.done.synchronize()
        if self.device is None or self.device.nbytes < size:
            self.close()
            capacity = -(-size // _STEP) * _STEP
            self.host = self._gpu.driver.pagelocked_empty((capacity,), np.uint8)
            self._pinned = self.host.base
            self.device = DeviceMemory(self._gpu, capacity)
        return self.device

    def close(self) -> None:
        """Frees both; nothing on the device may use them any more."""
        self.host = np.empty((0,), np.uint8)
        if self._pinned is not None:
            self._gpu.try_to(self._pinned.free)
            self._pinned = None
        if self.device is not None:
            self.device.close()
            self.device = None


class GpuPreprocessor:
    """The kernels on the device, and the memory of `slots` uploads, grown when a larger box comes, never shrunk.

    Use from one thread.

    Args:
        module: compiled for this device.
        half: write FP16 instead of FP32.
        slots: uploads in flight; with two, the host fills one while the device reads the other.

    Raises: GPUUnavailable if the device refuses the kernels.
    """

    def __init__(self, gpu: Gpu, module: KernelModule, *, half: bool = False, slots: int = 2) -> None:
        self.half = half
        self._gpu, self._turn = gpu, 0
        with gpu.current():
            self._module = gpu.driver.module_from_buffer(module.cubin)
            self._kernels = {
                general: self._kernel(kernel_name(general=general, half=half)) for general in (False, True)
            }
            self._slots = [_Slot(gpu) for _ in range(slots)]

    def _kernel(self, name: str) -> Any:
        function = self._module.get_function(name)
        function.prepare("PPiP")
        return function

    def enqueue(self, plan: KernelPlan, hu: Hounsfield, output: int, stream: Any, *, phase: int = 0) -> None:
        """Uploads and samples one phase; returns before the device is done.

        Args:
            hu: the window's voxels, int16 or float32 (slices, rows, columns); copied before the call returns.
            output: device address of the input (P, T, C, H, W), FP32 or FP16 as `half` says.
            stream: a pycuda stream. The caller waits for it within `Gpu.current()` before trusting the output.
            phase: which P to write; nothing outside it is touched.

        Raises: ValueError for another shape or type of voxels; GPUUnavailable, keys gpu_lost (also for what an earlier
            call broke) and out_of_memory.
        """
        if hu.dtype not in (np.int16, np.float32) or hu.shape != plan.window.shape:
            raise ValueError(f"int16 or float32 {plan.window.shape} expected, not {hu.dtype} {hu.shape}")
        start = -(-plan.data.size // _ALIGNMENT) * _ALIGNMENT
        end = start + hu.nbytes
        with self._gpu.current():
            slot = self._slots[self._turn]
            address = slot.reserve(end).pointer
            slot.host[: plan.data.size] = plan.data
            np.copyto(slot.host[start:end].view(hu.dtype).reshape(hu.shape), hu)
            self._gpu.driver.memcpy_htod_async(address, slot.host[:end], stream)
            where = output + phase * plan.output_bytes(half=self.half)
            arguments = (address, address + start, int(hu.dtype == np.float32), where)
            self._kernels[plan.general].prepared_async_call(plan.grid, BLOCK, stream, *arguments)
            slot.done.record(stream)
            self._turn = (self._turn + 1) % len(self._slots)

    def close(self) -> None:
        """Waits for the device and gives the memory back, also of a lost GPU; may be called twice."""
        with self._gpu.releasing():
            for slot in self._slots:
                self._gpu.try_to(slot.done.synchronize)
                slot.close()
