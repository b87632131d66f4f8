"""Launching, with a stand-in of pycuda that runs the host build, late, as a device would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.runtime import gpu_preprocess
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.cuda import probe
from fourphase.runtime.cuda_buffers import DeviceMemory, poison
from fourphase.runtime.cuda_context import Gpu, open_gpu
from fourphase.runtime.errors import GPUUnavailable
from fourphase.runtime.geometry import Region
from fourphase.runtime.gpu_preprocess import GpuPreprocessor
from fourphase.runtime.kernel_module import KernelModule, compile_module
from fourphase.runtime.kernel_plan import KernelPlan
from fourphase.runtime.preprocess import normalized, plan_sampling
from tests.support.host_kernel import COMPILER, host_kernel
from tests.support.volumes import grid, noise_volume

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no g++")

CONFIG = dataclasses.replace(PreprocessingConfig(), size=(5, 9, 33))
SHAPE = (9, 12, 14)
GRID = grid(SHAPE, origin=(-7, -9, -10))
TILTED = grid(SHAPE, origin=(-7, -9, -10), shear=(0.2, 0.4))
REGION = Region((-5.2, -4.3, -7.1), (4.1, 3.9, 6.3))
LARGE = Region((-8.1, -10.2, -11.3), (8.2, 10.1, 12.4))
MODULE = KernelModule(b"cubin", "8.9", "nvcc", cached=False)


def phase(seed: int, *, tilted: bool = False, region: Region = REGION) -> tuple[KernelPlan, NDArray[np.int16], Any]:
    """(plan, voxels, the NumPy path's channels) of one phase."""
    sampling = plan_sampling(TILTED if tilted else GRID, region, CONFIG)
    part = sampling.window
    volume = np.rint(noise_volume(SHAPE, seed)).astype(np.int16)
    voxels = np.ascontiguousarray(volume[part.slices, part.rows, part.columns])
    return KernelPlan.of(sampling, CONFIG), voxels, normalized(sampling.resample(voxels), CONFIG)


# ---- the launches: names and signatures are those of pycuda.driver 2026.1


class CudaError(Exception):
    pass


class CudaMemoryError(CudaError):
    pass


class FakeStream:
    """Work waits until someone waits for it: the latest moment a device may choose."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.done = 0

    def run(self, count: int) -> None:
        while self.done < count:
            self.done += 1
            self.waiting[self.done - 1]()

    def synchronize(self) -> None:
        self.run(len(self.waiting))


class FakeEvent:
    def __init__(self, flags: int = 0) -> None:
        self.stream: FakeStream | None = None
        self.count = 0

    def record(self, stream: FakeStream) -> None:
        self.stream, self.count = stream, len(stream.waiting)

    def synchronize(self) -> None:
        if self.stream:
            self.stream.run(self.count)


class Memory:
    """Host memory in the place of a device's or of pinned memory; poisoned when it is freed."""

    def __init__(self, size: int, held: list[Memory]) -> None:
        self.array = np.full(size, 0xA5, np.uint8)
        self.held = held
        held.append(self)

    @property
    def __array_interface__(self) -> Any:
        return self.array.__array_interface__

    def __int__(self) -> int:
        return int(self.array.ctypes.data)

    def free(self) -> None:
        self.array[:] = 0xFF
        self.held.remove(self)


class FakeFunction:
    def __init__(self, name: str, call: Callable[[str], None]) -> None:
        self.name, self.call = name, call
        self.format = ""

    def prepare(self, arg_types: str) -> None:
        self.format = arg_types

    def prepared_async_call(
        self, grid: tuple[int, int, int], block: tuple[int, int, int], stream: FakeStream, *args: int
    ) -> None:
        self.call("prepared_async_call")
        assert self.format == "PPiP"
        plan, voxels, is_float, output = args
        assert voxels % 64 == plan % 64
        launch = np.array([*grid, *block, "general" in self.name, "fp16" in self.name, is_float], np.int32).tobytes()
        stream.waiting.append(lambda: host_kernel().run(launch, (plan, voxels, output)))


class FakeDriver(ModuleType):
    """`fail` holds the name of the call that fails, and the exception."""

    Error, MemoryError, Event = CudaError, CudaMemoryError, FakeEvent
    event_flags = SimpleNamespace(BLOCKING_SYNC=1, DISABLE_TIMING=2)

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.held: list[Memory] = []
        self.fail: tuple[str, Exception] | None = None
        self.allocations = 0
        self.loaded = b""
        #: What Context.synchronize waits for.
        self.streams: list[FakeStream] = []
        self.Context = SimpleNamespace(synchronize=self._synchronize)

    def _synchronize(self) -> None:
        for stream in self.streams:
            stream.synchronize()

    def _call(self, name: str) -> None:
        if self.fail and self.fail[0] == name:
            raise self.fail[1]

    def module_from_buffer(self, buffer: bytes) -> Any:
        self._call("module_from_buffer")
        self.loaded = buffer
        return SimpleNamespace(get_function=lambda name: FakeFunction(name, self._call))

    def mem_alloc(self, size: int) -> Memory:
        self._call("mem_alloc")
        self.allocations += 1
        return Memory(size, self.held)

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: type[np.uint8]) -> NDArray[np.uint8]:
        self._call("pagelocked_empty")
        assert dtype is np.uint8
        return np.asarray(Memory(shape[0], self.held))

    def memcpy_htod_async(self, dest: int, src: NDArray[np.uint8], stream: FakeStream) -> None:
        self._call("memcpy_htod_async")
        (target,) = (memory for memory in self.held if int(memory) == dest)

        def copy() -> None:
            assert target in self.held, "copied into memory that was freed"
            target.array[: src.size] = src

        stream.waiting.append(copy)


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def gpu(driver: FakeDriver) -> Gpu:
    context = SimpleNamespace(push=lambda: None, pop=lambda: None, detach=lambda: None)
    return Gpu(driver, context, "stand-in", zero_copy=False)


def study(dtype: type[np.float32] | type[np.float16] = np.float32) -> NDArray[Any]:
    """The network's input (4, T, C, H, W) between two guards of one phase each."""
    return np.full((6, CONFIG.size[0], CONFIG.channels, *CONFIG.size[1:]), np.nan, dtype)


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_four_phases_land_in_the_input(gpu: Gpu, driver: FakeDriver, slots: int, dtype: type[np.float32]) -> None:
    """No wait between the phases; the voxels are overwritten as soon as the call returns."""
    half = dtype == np.float16
    output, stream = study(dtype), FakeStream()
    preprocessor = GpuPreprocessor(gpu, MODULE, half=half, slots=slots)
    expected = []
    for index in range(4):
        plan, voxels, channels = phase(index, tilted=index == 2)
        expected.append(channels)
        preprocessor.enqueue(plan, voxels, output[1:].ctypes.data, stream, phase=index)
        voxels[:] = 3000
    stream.synchronize()
    np.testing.assert_allclose(output[1:5].astype(np.float32), expected, atol=5e-3 if half else 1e-4)
    assert np.isnan(output[[0, 5]]).all()
    assert driver.loaded == b"cubin"
    assert driver.allocations == min(slots, 4)


@needs_compiler
def test_phases_on_other_streams_do_not_disturb_each_other(gpu: Gpu) -> None:
    output, streams = study(), [FakeStream(), FakeStream()]
    preprocessor = GpuPreprocessor(gpu, MODULE, slots=1)
    expected = []
    for index in range(4):
        plan, voxels, channels = phase(index)
        expected.append(channels)
        preprocessor.enqueue(plan, voxels, output.ctypes.data, streams[index % 2], phase=index)
    for stream in streams:
        stream.synchronize()
    np.testing.assert_allclose(output[:4], expected, atol=1e-4)


@needs_compiler
def test_float_voxels_are_uploaded_as_they_are(gpu: Gpu) -> None:
    plan, voxels, channels = phase(3)
    output, stream = study(), FakeStream()
    GpuPreprocessor(gpu, MODULE).enqueue(plan, voxels.astype(np.float32), output.ctypes.data, stream)
    stream.synchronize()
    np.testing.assert_allclose(output[0], channels, atol=1e-4)


@needs_compiler
def test_memory_is_kept_grown_when_needed_and_given_back(
    gpu: Gpu, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_preprocess, "_STEP", 1024)
    output, stream = study(), FakeStream()
    preprocessor = GpuPreprocessor(gpu, MODULE, slots=1)
    small, large = phase(0), phase(1, region=LARGE)
    assert large[1].nbytes > small[1].nbytes + 1024
    for (plan, voxels, channels), allocations in ((small, 1), (small, 1), (large, 2), (small, 2), (large, 2)):
        preprocessor.enqueue(plan, voxels, output.ctypes.data, stream)
        stream.synchronize()
        np.testing.assert_allclose(output[0], channels, atol=1e-4)
        assert driver.allocations == allocations
        assert len(driver.held) == 2  # device and pinned
    preprocessor.close()
    preprocessor.close()
    assert driver.held == []


@needs_compiler
def test_growing_waits_for_the_kernel_that_reads_the_old_memory(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_preprocess, "_STEP", 1024)
    output, stream = study(), FakeStream()
    preprocessor = GpuPreprocessor(gpu, MODULE, slots=1)
    first, second = phase(0), phase(1, region=LARGE)
    preprocessor.enqueue(*first[:2], output.ctypes.data, stream, phase=0)
    preprocessor.enqueue(*second[:2], output.ctypes.data, stream, phase=1)
    stream.synchronize()
    np.testing.assert_allclose(output[:2], [first[2], second[2]], atol=1e-4)


def test_voxels_that_do_not_fit_the_plan_are_refused(gpu: Gpu) -> None:
    plan, voxels, _ = phase(0)
    preprocessor = GpuPreprocessor(gpu, MODULE)
    for wrong in (voxels[1:], voxels.astype(np.float64), voxels.astype(np.uint16)):
        with pytest.raises(ValueError, match="expected, not"):
            preprocessor.enqueue(plan, wrong, 0, FakeStream())  # type: ignore[arg-type]


@needs_compiler
def test_a_cuda_error_is_sticky_and_memory_is_given_back_all_the_same(gpu: Gpu, driver: FakeDriver) -> None:
    """Raised again by every later call, although the driver would answer."""
    plan, voxels, _ = phase(0)
    output, stream = study(), FakeStream()
    preprocessor = GpuPreprocessor(gpu, MODULE)
    driver.fail = ("memcpy_htod_async", CudaError("cuMemcpyHtoDAsync failed: an illegal memory access"))
    for _ in range(2):
        with pytest.raises(GPUUnavailable, match="illegal memory access") as caught:
            preprocessor.enqueue(plan, voxels, output.ctypes.data, stream)
        assert (caught.value.code, caught.value.key) == (22, "gpu_lost")
        driver.fail = None
    assert stream.waiting == []
    assert len(driver.held) == 2
    preprocessor.close()
    assert driver.held == []


@needs_compiler
@pytest.mark.parametrize("call", ["mem_alloc", "pagelocked_empty"])
def test_memory_that_does_not_suffice_is_said_and_may_be_there_later(gpu: Gpu, driver: FakeDriver, call: str) -> None:
    plan, voxels, channels = phase(0)
    output, stream = study(), FakeStream()
    preprocessor = GpuPreprocessor(gpu, MODULE, slots=1)
    driver.fail = (call, CudaMemoryError("cuMemAlloc failed: out of memory"))
    with pytest.raises(GPUUnavailable, match="out of memory") as caught:
        preprocessor.enqueue(plan, voxels, output.ctypes.data, stream)
    assert (caught.value.code, caught.value.key) == (22, "out_of_memory")
    driver.fail = None
    preprocessor.enqueue(plan, voxels, output.ctypes.data, stream)
    stream.synchronize()
    np.testing.assert_allclose(output[0], channels, atol=1e-4)
    preprocessor.close()
    assert driver.held == []


@needs_compiler
def test_a_launch_that_fails_does_not_free_what_its_copy_still_reads(
    gpu: Gpu, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_preprocess, "_STEP", 1024)
    output, stream = study(), FakeStream()
    driver.streams.append(stream)
    preprocessor = GpuPreprocessor(gpu, MODULE, slots=1)
    small, large = phase(0), phase(1, region=LARGE)
    driver.fail = ("prepared_async_call", CudaMemoryError("cuLaunchKernel failed: out of memory"))
    with pytest.raises(GPUUnavailable, match="out of memory"):
        preprocessor.enqueue(*small[:2], output.ctypes.data, stream)
    driver.fail = None
    preprocessor.enqueue(*large[:2], output.ctypes.data, stream)
    stream.synchronize()
    np.testing.assert_allclose(output[0], large[2], atol=1e-4)


@needs_compiler
def test_closing_waits_for_what_is_under_way(gpu: Gpu) -> None:
    output, stream = study(), FakeStream()
    preprocessor = GpuPreprocessor(gpu, MODULE)
    plan, voxels, channels = phase(0)
    preprocessor.enqueue(plan, voxels, output.ctypes.data, stream)
    preprocessor.close()
    assert stream.done == len(stream.waiting) == 2
    np.testing.assert_allclose(output[0], channels, atol=1e-4)


def test_a_device_that_refuses_the_kernels_is_said(gpu: Gpu, driver: FakeDriver) -> None:
    driver.fail = ("module_from_buffer", CudaError("cuModuleLoadDataEx failed: device kernel image is invalid"))
    with pytest.raises(GPUUnavailable, match="kernel image is invalid"):
        GpuPreprocessor(gpu, MODULE)


# ---- on a device


def device() -> Gpu:
    pytest.importorskip("pycuda.driver")
    return open_gpu()


def compute_capability() -> str:
    found = probe().device
    assert found is not None
    return found.compute_capability


def on_device(gpu: Gpu, preprocessor: GpuPreprocessor, plan: KernelPlan, voxels: NDArray[Any]) -> NDArray[Any]:
    size, dtype = plan.output_bytes(half=preprocessor.half), np.float16 if preprocessor.half else np.float32
    output: NDArray[Any] = np.empty((3, plan.size[0], plan.channels, *plan.size[1:]), dtype)
    with gpu.current():
        stream, memory = gpu.new_stream(), DeviceMemory(gpu, 3 * size)
        poison(gpu, memory.pointer, 3 * size, stream)
        preprocessor.enqueue(plan, voxels, memory.pointer, stream, phase=1)
        stream.synchronize()
        gpu.driver.memcpy_dtoh(output, memory.pointer)
        memory.close()
    assert np.isnan(output[[0, 2]]).all()
    written: NDArray[Any] = output[1]
    return written


@pytest.mark.gpu
@needs_compiler
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_device_computes_the_bits_of_the_host(tilted: bool, half: bool, dtype: Any) -> None:
    gpu = device()
    preprocessor = GpuPreprocessor(gpu, compile_module(compute_capability()), half=half)
    for region in (REGION, LARGE):
        plan, voxels, channels = phase(0, tilted=tilted, region=region)
        found = on_device(gpu, preprocessor, plan, voxels.astype(dtype))
        expected = np.full_like(found, np.nan)
        host_kernel().launch(plan, voxels.astype(dtype), expected)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(found.astype(np.float32), channels, atol=5e-3 if half else 1e-3)
    preprocessor.close()


@pytest.mark.gpu
def test_a_thousand_launches_leak_nothing() -> None:
    gpu = device()
    preprocessor = GpuPreprocessor(gpu, compile_module(compute_capability()))
    plan, voxels, _ = phase(0)
    free = []
    with gpu.current():
        stream, memory = gpu.new_stream(), DeviceMemory(gpu, plan.output_bytes(half=False))
        for _ in range(2):
            for _ in range(1000):
                preprocessor.enqueue(plan, voxels, memory.pointer, stream)
            stream.synchronize()
            free.append(gpu.driver.mem_get_info()[0])
        memory.close()
    assert free[1] >= free[0]
    preprocessor.close()


@pytest.mark.gpu
def test_the_stand_in_has_pycudas_names() -> None:
    driver = device().driver
    for name in ("Event", "module_from_buffer", "mem_alloc", "pagelocked_empty", "memcpy_htod_async", "event_flags"):
        assert hasattr(driver, name)
        assert hasattr(FakeDriver, name)
    assert issubclass(driver.MemoryError, driver.Error)
    for name in ("prepare", "prepared_async_call"):
        assert hasattr(driver.Function, name)
        assert hasattr(FakeFunction, name)
