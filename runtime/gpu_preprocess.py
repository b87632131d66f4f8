"""HU voxels -> the network's input on the GPU: a sampling plan packed for the kernel, the kernel compiled, launched.

The arithmetic is in sampling_kernel.h alone. What crosses the bus, in one copy per phase: the plan's tables and the
window's voxels in HU as `read_hu` gives them, int16 where every slice is rescaled by whole numbers, else float32. Not
the stored values: padding, clipping and the share of implausible voxels are not linear and must be judged before
anything is interpolated, and HU of whole numbers are no wider.

It reads no files of a study and chooses nothing: what cannot run is an error.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from fourphase.runtime.atomic import write_file
from fourphase.runtime.cache import cache_folder
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.cuda_buffers import DeviceMemory
from fourphase.runtime.cuda_context import Gpu
from fourphase.runtime.errors import EnvironmentFault, GeometryRefused, OutputNotWritable
from fourphase.runtime.preprocess import ObliquePlan, SamplingPlan, SeparablePlan, VoxelWindow

__all__ = [
    "BLOCK", "FLAGS", "HEADER", "GpuPreprocessor", "KernelModule", "KernelPlan", "compile_module",
    "kernel_name",
]  # fmt: skip

#: Threads along x, y, z. A warp writes 32 neighbours of a row.
BLOCK = (32, 8, 1)
#: No fast math. A fused multiply-add rounds once where host and NumPy round twice: a host build with it is off by up to
#: 1e-3 HU. Without it every operation is IEEE's on both sides, so that device and host must agree in every bit.
FLAGS = ("--fmad=false",)
#: The layout of FourphasePlan in sampling_kernel.h.
HEADER = np.dtype(
    [
        ("size", "<i4", 3), ("channels", "<i4"), ("window", "<i4", 3), ("stride", "<i4", 3), ("taps", "<i4", 3),
        ("index_at", "<i4", 3), ("weight_at", "<i4", 3), ("channel_at", "<i4"), ("background_hu", "<f4"),
        ("first", "<i4", 3), ("count", "<i4", 3), ("part_at", "<i4", 3), ("slice_at", "<i4"), ("gap_at", "<i4"),
        ("edge_at", "<i4"),
    ]
)  # fmt: skip
#: Fixed-point steps per voxel or millimetre, and where a sum of four positions stays far below 64 bits.
_ONE, _FARTHEST = 2.0**32, 2.0**20
#: Voxels start at a multiple of this many bytes behind the plan; buffers grow in steps.
_ALIGNMENT, _STEP = 256, 1 << 20
_SOURCES = ("sampling_kernel.cu", "sampling_kernel.h")
_COMPILE_SECONDS = 300

Hounsfield = NDArray[np.int16] | NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class KernelPlan:
    """One phase's sampling as the kernel reads it.

    Attributes:
        window: the voxels to read and upload.
        size: outputs along z, y, x. channels: of each output.
        general: True for the path of oblique and tilted series.
        data: uint8 (bytes,): HEADER, then the tables it points to, each at a multiple of 8 bytes.
    """

    window: VoxelWindow
    size: tuple[int, int, int]
    channels: int
    general: bool
    data: NDArray[np.uint8]

    @classmethod
    def of(cls, plan: SamplingPlan, config: PreprocessingConfig) -> KernelPlan:
        """Packs what `plan_sampling` planned for the same `config`.

        Raises: GeometryRefused if series and box are more than a kilometre apart.
        """
        taps = [_taps(matrix) for matrix in plan.matrices]
        depth, rows, columns = (matrix.shape[0] for matrix in plan.matrices)
        fields: dict[str, Any] = {
            "size": (depth, rows, columns),
            "channels": config.channels,
            "window": plan.window.shape,
            "taps": [index.shape[1] for index, _ in taps],
            "background_hu": plan.background_hu,
        }
        tables: dict[str, list[NDArray[Any]]] = {
            "index_at": [index for index, _ in taps],
            "weight_at": [weight for _, weight in taps],
            "channel_at": [_channels(config)],
        }
        if isinstance(plan, SeparablePlan):
            _, window_rows, window_columns = plan.window.shape
            strides = (window_rows * window_columns, window_columns, 1)
            fields["stride"] = [strides[axis] for axis in plan.axes]
        elif isinstance(plan, ObliquePlan):
            window, series = plan.window, plan.geometry
            fields["first"] = [part.start for part in (window.slices, window.rows, window.columns)]
            fields["count"] = (series.slices, series.rows, series.columns)
            tables |= _positions(plan)
        data = _packed(fields, tables)
        return cls(plan.window, (depth, rows, columns), config.channels, isinstance(plan, ObliquePlan), data)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks along x, y, z."""
        depth, rows, columns = self.size
        return -(-columns // BLOCK[0]), -(-rows // BLOCK[1]), depth

    def output_bytes(self, *, half: bool) -> int:
        """Bytes of one phase's (T, C, H, W)."""
        depth, rows, columns = self.size
        return depth * self.channels * rows * columns * (2 if half else 4)


def _taps(matrix: sparse.csr_array) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(index, weight) of the entries of every row, (rows, longest row); shorter rows end in weights of zero."""
    counts = np.diff(matrix.indptr)
    shape = (matrix.shape[0], int(counts.max(initial=0)))
    index, weight = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    row = np.repeat(np.arange(shape[0]), counts)
    place = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], counts)
    index[row, place], weight[row, place] = matrix.indices, matrix.data
    return index, weight


def _channels(config: PreprocessingConfig) -> NDArray[np.float32]:
    """(low, high, factor, summand) per channel, as `normalized` computes them."""
    rows = []
    for (low, high), mean, std in zip(config.windows_hu, config.mean, config.std, strict=True):
        factor = 1 / ((high - low) * std)
        rows.append((low, high, factor, -low * factor - mean / std))
    return np.array(rows, dtype=np.float32)


def _positions(plan: ObliquePlan) -> dict[str, list[NDArray[Any]]]:
    """Depth (mm), row and column of samples and slices: linear in z, y, x, so a sum of one table row per axis."""
    series = plan.geometry
    dy, dx = series.pixel_spacing
    directions = np.stack([series.normal, series.column_direction / dy, series.row_direction / dx], axis=1)
    parts = [_fixed(centres[:, None] * directions[axis]) for centres, axis in zip(plan.centres, (2, 1, 0), strict=True)]
    slices = _fixed(series.positions @ directions)
    gaps = np.zeros(series.slices, np.float32)
    gaps[:-1] = 1 / np.maximum(np.diff(slices[:, 0]), 1)
    half = series.slice_spacing / 2
    edge = _fixed(np.array([series.depths[0] - half, series.depths[-1] + half]))
    return {"part_at": list(parts), "slice_at": [slices], "gap_at": [gaps], "edge_at": [edge]}


def _fixed(values: NDArray[np.float64]) -> NDArray[np.int64]:
    if not np.abs(values).max() < _FARTHEST:  # also where one is not a number
        raise GeometryRefused(
            "the series and the lesion box lie more than a kilometre from the origin",
            "export the series again from the archive; its positions cannot be trusted",
            key="position_invalid",
        )
    return np.rint(values * _ONE).astype(np.int64)


def _packed(fields: dict[str, Any], tables: dict[str, list[NDArray[Any]]]) -> NDArray[np.uint8]:
    header = np.zeros((), HEADER)
    end = -(-HEADER.itemsize // 8) * 8
    placed = []
    for name, arrays in tables.items():
        places = []
        for array in arrays:
            places.append(end)
            placed.append((end, array))
            end += -(-array.nbytes // 8) * 8
        fields[name] = places if HEADER[name].shape else places[0]
    for name, value in fields.items():
        header[name] = value
    data = np.zeros(end // 8, np.int64).view(np.uint8)
    for start, array in [(0, header), *placed]:
        data[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    return data


def kernel_name(*, general: bool, half: bool) -> str:
    return f"fourphase_{'general' if general else 'separable'}_{'fp16' if half else 'fp32'}"


@dataclass(frozen=True, eq=False)
class KernelModule:
    """The compiled kernels.

    Attributes:
        cubin: machine code for one compute capability.
        compute_capability: "8.7".
        compiler: what made it, "nvcc" or "NVRTC 13.0", and why not the one before it.
        cached: whether it came from the cache.
    """

    cubin: bytes
    compute_capability: str
    compiler: str
    cached: bool


def compile_module(compute_capability: str) -> KernelModule:
    """The kernels for a GPU ("8.7"): from the cache, else by nvcc, else by NVRTC (cuda-python).

    The cache is bound to the sources, the compute capability and the flags; an entry whose bytes are not those written
    is made again. Needs no GPU.

    Raises: EnvironmentFault if neither compiler makes it, with both reasons.
    """
    texts = [Path(__file__).with_name(name).read_bytes() for name in _SOURCES]
    architecture = "sm_" + compute_capability.replace(".", "")
    key = hashlib.sha256(b"\0".join([*texts, architecture.encode(), *map(str.encode, FLAGS)])).hexdigest()[:32]
    folder = cache_folder("kernels")
    path = folder / f"{key}.cubin" if folder else None
    found = path and _cached(path)
    if found:
        return KernelModule(found[1], compute_capability, found[0], cached=True)
    compiler, cubin = _compiled(architecture, texts)
    if path:
        _keep(path, compiler, cubin)
    return KernelModule(cubin, compute_capability, compiler, cached=False)


def _cached(path: Path) -> tuple[str, bytes] | None:
    """(compiler, cubin) of an entry: a line of JSON, then the cubin; None unless its hash is the one in that line."""
    try:
        line, _, cubin = path.read_bytes().partition(b"\n")
        head = json.loads(line)
        return (str(head["compiler"]), cubin) if head["sha256"] == hashlib.sha256(cubin).hexdigest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, compiler: str, cubin: bytes) -> None:
    head = json.dumps({"compiler": compiler, "sha256": hashlib.sha256(cubin).hexdigest()})
    try:
        write_file(path, head.encode() + b"\n" + cubin)
    except OutputNotWritable:
        return  # a full disk costs the next start a second, nothing else


class _CannotCompile(Exception):
    """Why a compiler is of no use here."""


def _compiled(architecture: str, texts: list[bytes]) -> tuple[str, bytes]:
    """(compiler and why not the one before it, cubin)."""
    reasons: list[str] = []
    compilers: tuple[Callable[[str, list[bytes]], tuple[str, bytes]], ...] = (_by_nvcc, _by_nvrtc)
    for compiler in compilers:
        try:
            name, cubin = compiler(architecture, texts)
        except _CannotCompile as error:
            reasons.append(str(error))
            continue
        return (f"{name} ({'; '.join(reasons)})" if reasons else name), cubin
    raise EnvironmentFault(
        f"the preprocessing kernel cannot be compiled for {architecture}: {'; '.join(reasons)}",
        "install nvcc (JetPack or the CUDA toolkit), or pip install 'cuda-python[all]' of the driver's CUDA version",
        key="kernel_not_compiled",
    )


def _by_nvcc(architecture: str, texts: list[bytes]) -> tuple[str, bytes]:
    nvcc = _nvcc()
    if nvcc is None:
        raise _CannotCompile("nvcc is not installed")
    with tempfile.TemporaryDirectory() as folder:
        for name, text in zip(_SOURCES, texts, strict=True):
            Path(folder, name).write_bytes(text)
        target = Path(folder, "kernel.cubin")
        command = [nvcc, "--cubin", f"-arch={architecture}", *FLAGS, "-o", str(target), str(Path(folder, _SOURCES[0]))]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            raise _CannotCompile(f"nvcc does not run ({type(error).__name__})") from error
        if run.returncode or not target.is_file():
            lines = (run.stderr + run.stdout).replace(folder + os.sep, "").splitlines()
            errors = [line for line in lines if "error" in line or "fatal" in line]
            raise _CannotCompile(f"nvcc says: {[*errors, *lines, f'exit status {run.returncode}'][0]}")
        return "nvcc", target.read_bytes()


def _nvcc() -> str | None:
    """JetPack and NVIDIA's packages put it in /usr/local/cuda/bin, which is on nobody's PATH."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [None, *(os.path.join(home, "bin") for home in homes if home)]
    return next((found for place in places if (found := shutil.which("nvcc", path=place))), None)


def _by_nvrtc(architecture: str, texts: list[bytes]) -> tuple[str, bytes]:
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise _CannotCompile("NVRTC is not installed (cuda-python)") from error
    source, header = texts
    status, program = nvrtc.nvrtcCreateProgram(source, _SOURCES[0].encode(), 1, [header], [_SOURCES[1].encode()])
    _check_nvrtc(nvrtc, status)
    try:
        options = [f"--gpu-architecture={architecture}".encode(), *map(str.encode, FLAGS)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        _check_nvrtc(nvrtc, status)
        status, size = nvrtc.nvrtcGetCUBINSize(program)
        _check_nvrtc(nvrtc, status)
        cubin = bytes(size)
        _check_nvrtc(nvrtc, *nvrtc.nvrtcGetCUBIN(program, cubin))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return f"NVRTC {major}.{minor}", cubin


def _check_nvrtc(nvrtc: Any, status: Any) -> None:
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise _CannotCompile(f"NVRTC says: {status.name}")


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
