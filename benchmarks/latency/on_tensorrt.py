"""The bundle's model in an engine of NVIDIA TensorRT, built for the GPU at hand."""

from __future__ import annotations

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.engines import engine_why_not, load_engine
from fourphase.benchmarks.latency.runtimes import Loaded

__all__ = ["REQUIREMENTS", "load", "why_not"]

REQUIREMENTS = ("tensorrt", "an NVIDIA GPU")


def why_not(precision: str, device: str) -> str | None:
    """Every precision runs where the runtime does."""
    return engine_why_not("tensorrt")


def load(task: Task) -> Loaded:
    """Raises: as building and loading an engine do (20, 21, 22, 24, 26)."""
    return load_engine(task, "tensorrt")
