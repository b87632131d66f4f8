"""The bundle's model in a CPU backend of the product, loaded, checked and timed: what a user really runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.runtimes import Loaded
from fourphase.benchmarks.latency.studies import arrays_of, check_lowered, fp16_note, studies_of, timed_backend
from fourphase.runtime.backend import Backend
from fourphase.runtime.bundle import Bundle, load_bundle

__all__ = ["loaded_product"]


def loaded_product(load_backend: Callable[[Bundle, str], Backend], task: Task) -> Loaded:
    """Loads a candidate by a backend's own `load_backend`.

    Raises: as the backend does (20 to 24), SelfCheckFailed (23) also for a lowered model off its golden outputs.
    """
    bundle = load_bundle(Path(task.bundle))
    backend = load_backend(bundle, task.precision)
    check_lowered(backend, bundle)
    studies = studies_of(bundle, task.batch)
    return Loaded(timed_backend(backend, studies), arrays_of(backend.infer(studies)), note=fp16_note(task.precision))
