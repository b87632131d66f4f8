"""The network in PyTorch as it is written, op by op: what the others are compared with."""

from __future__ import annotations

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.runtimes import Loaded

__all__ = ["NO_INT8", "REQUIREMENTS", "load", "why_not"]

REQUIREMENTS = ("torch",)
NO_INT8 = "the int8 network is an ONNX graph with Q/DQ; PyTorch has none"


def why_not(precision: str, device: str) -> str | None:
    """PyTorch computes FP16 on a CPU, too, if it is asked to; int8 nowhere."""
    return NO_INT8 if precision == "int8" else None


def load(task: Task) -> Loaded:
    """Raises: as reading the weights does (10, 20)."""
    from fourphase.benchmarks.latency.torch_inference import load_torch

    return load_torch(task, "eager")
