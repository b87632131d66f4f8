"""The network through torch.compile (inductor); its compilation is part of `load_s`."""

from __future__ import annotations

import os
import shutil

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.on_torch_eager import NO_INT8
from fourphase.benchmarks.latency.runtimes import Loaded

__all__ = ["REQUIREMENTS", "load", "why_not"]

REQUIREMENTS = ("torch", "a C++ compiler on a CPU")
_COMPILERS = ("g++", "clang++")


def why_not(precision: str, device: str) -> str | None:
    """On a CPU inductor writes C++ and needs a compiler for it."""
    if precision == "int8":
        return NO_INT8
    wanted = (os.environ.get("CXX") or "", *_COMPILERS)
    if device == "cpu" and not any(name and shutil.which(name) for name in wanted):
        return "torch.compile writes C++ for a CPU, and no C++ compiler is installed"
    return None


def load(task: Task) -> Loaded:
    """Raises: as reading the weights does (10, 20); whatever inductor raises."""
    # Without processes for compiling in parallel, memory and CPU time are this process's own.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    from fourphase.benchmarks.latency.torch_inference import load_torch

    return load_torch(task, "compile")
