"""The preprocessing kernel compiled for a GPU: from the cache, else by nvcc, else by NVRTC.

Compiling needs no GPU, and nothing is loaded onto one here.
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

from fourphase.runtime.atomic import write_file
from fourphase.runtime.cache import cache_folder
from fourphase.runtime.errors import EnvironmentFault, OutputNotWritable

__all__ = ["FLAGS", "KernelModule", "compile_module", "kernel_name"]

#: No fast math. A fused multiply-add rounds once where host and NumPy round twice: a host build with it is off by up to
#: 1e-3 HU. Without it every operation is IEEE's on both sides, so that device and host must agree in every bit.
FLAGS = ("--fmad=false",)
_SOURCES = ("sampling_kernel.cu", "sampling_kernel.h")
_COMPILE_SECONDS = 300


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
