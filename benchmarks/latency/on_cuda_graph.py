"""The network in PyTorch, captured once into a CUDA graph and replayed: eager's kernels without its launches."""

from __future__ import annotations

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.on_torch_eager import NO_INT8
from fourphase.benchmarks.latency.runtimes import Loaded

__all__ = ["REQUIREMENTS", "load", "why_not"]

REQUIREMENTS = ("torch built for CUDA", "an NVIDIA GPU")


def why_not(precision: str, device: str) -> str | None:
    """A CUDA graph needs a CUDA device."""
    if device != "cuda":
        from fourphase.runtime.cuda import probe

        found = probe()
        return f"needs a CUDA device: {found.reason if found.device is None else 'PyTorch is not built for CUDA'}"
    return NO_INT8 if precision == "int8" else None


def load(task: Task) -> Loaded:
    """Raises: as reading the weights does (10, 20); whatever the capture raises."""
    from fourphase.benchmarks.latency.torch_inference import load_torch

    return load_torch(task, "cuda-graph")
