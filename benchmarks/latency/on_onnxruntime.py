"""The bundle's model in ONNX Runtime, through the product's own backend: what a user really runs."""

from __future__ import annotations

from pathlib import Path

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.runtimes import Loaded
from fourphase.benchmarks.latency.studies import arrays_of, check_lowered, fp16_note, studies_of, timed_backend
from fourphase.runtime import onnxruntime_backend
from fourphase.runtime.bundle import load_bundle

__all__ = ["REQUIREMENTS", "load", "why_not"]

REQUIREMENTS = onnxruntime_backend.REQUIREMENTS


def why_not(precision: str, device: str) -> str | None:
    """As the product's backend; it runs on the CPU whatever the device."""
    if not onnxruntime_backend.is_available():
        return f"the package {REQUIREMENTS[0]} is not installed"
    return onnxruntime_backend.why_not(precision)


def load(task: Task) -> Loaded:
    """Raises: as the backend does (20 to 24), SelfCheckFailed (23) also for a lowered model off its golden outputs."""
    bundle = load_bundle(Path(task.bundle))
    backend = onnxruntime_backend.load_backend(bundle, task.precision)
    check_lowered(backend, bundle)
    studies = studies_of(bundle, task.batch)
    return Loaded(timed_backend(backend, studies), arrays_of(backend.infer(studies)), note=fp16_note(task.precision))
