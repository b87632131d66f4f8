"""The preprocessing kernel's source built by g++ and called through ctypes: what the device would compute."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime import kernel_module
from fourphase.runtime.kernel_plan import BLOCK, KernelPlan

__all__ = ["COMPILER", "FUSED", "HostKernel", "case_file", "host_kernel", "sanitized_program"]

#: None where there is no C++ compiler.
COMPILER = shutil.which("g++")
#: As nvcc would compile without --fmad=false: products fused into additions.
FUSED = ("-ffp-contract=fast", "-mfma")
_EXACT = ("-ffp-contract=off",)
_WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror")
_HEADER = Path(kernel_module.__file__).with_name("sampling_kernel.h")
_SOURCE = Path(__file__).with_name("host_kernel.cpp")


@dataclass(frozen=True, eq=False)
class HostKernel:
    """The loaded library."""

    library: Any

    @property
    def plan_bytes(self) -> int:
        """sizeof(FourphasePlan)."""
        return int(self.library.host_plan_bytes())

    def hu(self, plan: KernelPlan, voxels: NDArray[Any]) -> NDArray[np.float32]:
        """HU before the windows, float32 (z, y, x)."""
        output = np.full(plan.size, np.nan, dtype=np.float32)
        given = np.ascontiguousarray(voxels)
        is_float = int(given.dtype == np.float32)
        self.library.host_hu(_at(plan.data), _at(given), is_float, int(plan.general), _at(output))
        return output

    def half(self, values: NDArray[np.float32]) -> NDArray[np.float16]:
        """Rounded to half precision by the kernel's own code."""
        output = np.zeros(values.shape, dtype=np.uint16)
        self.library.host_half(_at(np.ascontiguousarray(values)), values.size, _at(output))
        return output.view(np.float16)

    def launch(self, plan: KernelPlan, voxels: NDArray[Any], output: NDArray[Any]) -> None:
        """One launch into the start of `output`, float32 or float16."""
        given = np.ascontiguousarray(voxels)
        self.run(
            _launch(plan, output.dtype == np.float16, given.dtype == np.float32, plan.grid, BLOCK),
            (_address(plan.data), _address(given), _address(output)),
        )

    def run(self, launch: bytes, addresses: tuple[int, int, int]) -> None:
        """A launch as packed by the caller, on the addresses of plan, voxels and output."""
        self.library.host_launch(launch, *map(ctypes.c_void_p, addresses))


@cache
def host_kernel(flags: tuple[str, ...] = _EXACT) -> HostKernel:
    """Builds the library, once per process and set of flags, in a folder that is gone when it is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "host_kernel.so")
        _build("-O2", "-shared", "-fPIC", *flags, "-o", str(path))
        return HostKernel(ctypes.CDLL(str(path)))


def sanitized_program(folder: Path) -> Path:
    """Builds the program that runs one case file under the address and undefined behaviour sanitizers."""
    path = folder / "sanitized"
    _build("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DFOURPHASE_MAIN", *_EXACT,
           "-o", str(path))  # fmt: skip
    return path


def case_file(plan: KernelPlan, voxels: NDArray[Any], *, half: bool, output_bytes: int | None = None) -> bytes:
    """What the sanitized program reads; `output_bytes` other than the plan's own to see it object."""
    given = np.ascontiguousarray(voxels)
    size = plan.output_bytes(half=half) if output_bytes is None else output_bytes
    launch = _launch(plan, half, given.dtype == np.float32, plan.grid, BLOCK)
    return launch + struct.pack("<3i", plan.data.nbytes, given.nbytes, size) + plan.data.tobytes() + given.tobytes()


def _launch(
    plan: KernelPlan, half: bool, is_float: bool, grid: tuple[int, int, int], block: tuple[int, int, int]
) -> bytes:
    return struct.pack("<9i", *grid, *block, int(plan.general), int(half), int(is_float))


def _build(*options: str) -> None:
    assert COMPILER is not None
    command = [COMPILER, "-std=c++17", *_WARNINGS, f"-I{_HEADER.parent}", str(_SOURCE), *options]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def _at(array: NDArray[Any]) -> ctypes.c_void_p:
    assert array.flags["C_CONTIGUOUS"]
    return ctypes.c_void_p(array.ctypes.data)
