"""Which TensorRT builds the engines: NVIDIA TensorRT or TensorRT for RTX, two modules with one API.

It decides and imports; `builder` builds. Nothing of TensorRT is created before a GPU was looked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fourphase.runtime.cuda import Probe, probe
from fourphase.runtime.errors import EnvironmentFault, GPUUnavailable, UsageError

__all__ = ["FLAVOURS", "RTX_ONLY", "TARGETS", "Flavour", "Target", "choose_target", "load_flavour"]

TARGETS = ("auto", "tensorrt", "tensorrt-rtx", "none")
#: Flavour -> Python module.
FLAVOURS = MappingProxyType({"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"})
#: Below 10.3 the parser hard-codes FP32 constants in the import of an FP16 GRU.
_FLOOR = (10, 3)
#: Names outside the API that TensorRT 10.0 to 11.4 share, used only under `if flavour.is_rtx`, and why.
RTX_ONLY = MappingProxyType(
    {
        "ComputeCapability": "TensorRT builds for the GPU at hand; only RTX names the GPUs an engine is for",
        "IBuilderConfig.num_compute_capabilities": "as ComputeCapability",
        "IBuilderConfig.set_compute_capability": "as ComputeCapability",
        "DynamicShapesKernelSpecializationStrategy": "only RTX compiles kernels as it runs; late, bytes would change",
        "ICudaEngine.create_runtime_config": "as DynamicShapesKernelSpecializationStrategy",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": "as DynamicShapesKernelSpecializationStrategy",
        "IRuntimeConfig.set_execution_context_allocation_strategy": "as DynamicShapesKernelSpecializationStrategy",
    }
)


@dataclass(frozen=True)
class Target:
    """What --target came to: a flavour's name or "none", and the reason for a person."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Flavour:
    """An imported TensorRT.

    Attributes:
        name: "tensorrt" or "tensorrt-rtx".
        trt: the module.
        version: its full version, "1.7.1.116".
        gpu: the device found on this machine; always one for "tensorrt".
    """

    name: str
    trt: Any
    version: str
    gpu: Probe

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt-rtx"


def choose_target(name: str = "auto") -> Target:
    """Resolves --target: "auto" is tensorrt with its module and a GPU, else tensorrt-rtx if installed, else none.

    A flavour asked for by name is taken as given; whether it works here is `load_flavour`'s to say.

    Raises: UsageError for an unknown name.
    """
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}", f"choose one of {', '.join(TARGETS)}", key="target_unknown")
    if name != "auto":
        return Target(name, "asked for")
    gpu = probe()
    missing = "TensorRT is not installed" if not _is_installed("tensorrt") else gpu.reason
    if gpu.device is not None and _is_installed("tensorrt"):
        return Target("tensorrt", f"TensorRT is installed and there is a {gpu.reason}")
    if _is_installed("tensorrt-rtx"):
        return Target("tensorrt-rtx", f"{missing}; TensorRT for RTX builds without a GPU")
    return Target("none", f"{missing}, and TensorRT for RTX is not installed")


def load_flavour(name: str) -> Flavour:
    """Imports the module of a flavour ("tensorrt" or "tensorrt-rtx").

    Raises: EnvironmentFault if it is missing, broken or too old; GPUUnavailable for TensorRT without a GPU, whose
        builder cannot even be created there.
    """
    gpu = probe()
    if name == "tensorrt" and gpu.device is None and _is_installed(name):
        raise GPUUnavailable(
            f"TensorRT builds engines only on a machine with a GPU: {gpu.reason}",
            "build on the target machine, or use --target tensorrt-rtx (builds anywhere) or --target none",
        )
    try:
        module = importlib.import_module(FLAVOURS[name])
    except (ImportError, OSError) as error:
        problem = "cannot be loaded" if _is_installed(name) else "is not installed"
        raise EnvironmentFault(
            f"{_TITLES[name]} {problem}: Python module {FLAVOURS[name]}", _CURES[name], key="tensorrt_missing"
        ) from error
    version = str(module.__version__)
    if name == "tensorrt" and tuple(int(part) for part in version.split(".")[:2]) < _FLOOR:
        raise EnvironmentFault(
            f"TensorRT {version} is too old", "install TensorRT 10.3 or newer (JetPack 6.1)", key="tensorrt_too_old"
        )
    return Flavour(name, module, version, gpu)


_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
_CURES = {
    "tensorrt": "install it from JetPack (apt; the venv needs --system-site-packages) or from NVIDIA's repository,"
    " or use --target tensorrt-rtx or --target none",
    "tensorrt-rtx": "pip install 'fourphase[rtx]', or use --target none",
}


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(FLAVOURS[name]) is not None
