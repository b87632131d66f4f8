"""The runtimes that are compared, by name. Each is a flat module with REQUIREMENTS, `why_not` and `load`.

`why_not` says in one sentence why a precision cannot be measured here; nothing is put in its place. Modules are
imported when they are asked, and import their packages when they load.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.statistics import Sample

__all__ = ["RUNTIMES", "TORCH", "Loaded", "RuntimeModule", "load_task", "no_memory", "runtime_module"]

Floats = NDArray[np.float32]

_HERE = "fourphase.benchmarks.latency"
#: Name -> module, in the order of the table.
RUNTIMES: Mapping[str, str] = MappingProxyType(
    {
        "torch-eager": f"{_HERE}.on_torch_eager",
        "torch-compile": f"{_HERE}.on_torch_compile",
        "cuda-graph": f"{_HERE}.on_cuda_graph",
        "onnxruntime": f"{_HERE}.on_onnxruntime",
        "openvino": f"{_HERE}.on_openvino",
        "tensorrt": f"{_HERE}.on_tensorrt",
        "tensorrt-rtx": f"{_HERE}.on_tensorrt_rtx",
    }
)
#: Those that run the PyTorch network and need no bundle but for its inputs.
TORCH = ("torch-eager", "torch-compile", "cuda-graph")


def no_memory() -> int | None:
    """A CPU has no device memory."""
    return None


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network in memory that has run once.

    Attributes:
        infer: runs once, to its end, and returns its times.
        outputs: of that first run: `logits` (B, K) and, where the network has them, `phase_logits` (B, P, K).
        device_peak_bytes: the most memory of the GPU so far; None on a CPU.
        note: what a reader should know of how it is run, "" for nothing.
    """

    infer: Callable[[], Sample]
    outputs: Mapping[str, Floats]
    device_peak_bytes: Callable[[], int | None] = no_memory
    note: str = ""


class RuntimeModule(Protocol):
    """What a runtime's module has."""

    REQUIREMENTS: Sequence[str]

    def why_not(self, precision: str, device: str) -> str | None:
        """Why that precision is not measured on that device; None if it can be."""
        ...

    def load(self, task: Task) -> Loaded: ...


def runtime_module(name: str) -> RuntimeModule:
    """The module of one of RUNTIMES."""
    return cast(RuntimeModule, importlib.import_module(RUNTIMES[name]))


def load_task(task: Task) -> Loaded:
    """Loads a task in this process. Raises: whatever the runtime raises."""
    return cast(RuntimeModule, importlib.import_module(task.module)).load(task)
