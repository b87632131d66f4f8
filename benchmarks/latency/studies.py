"""The input that every runtime computes, the outputs that PyTorch gave for it, and how a product's backend is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.latency.statistics import Sample
from fourphase.runtime.backend import Backend, Outputs
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.selfcheck import self_check

__all__ = ["arrays_of", "check_lowered", "fp16_note", "reference_outputs", "studies_of", "timed_backend"]

Floats = NDArray[np.float32]


def studies_of(bundle: Bundle | Path, batch: int) -> Floats:
    """The golden inputs in turn, float32 (batch, P, T, C, H, W)."""
    golden = (bundle if isinstance(bundle, Bundle) else load_bundle(bundle)).golden("fp32")
    return np.concatenate([golden.study(index % len(golden)) for index in range(batch)])


def reference_outputs(bundle: Bundle, batch: int) -> dict[str, Floats]:
    """What eager FP32 PyTorch said of those inputs when the bundle was made."""
    golden = bundle.golden("fp32")
    rows = [index % len(golden) for index in range(batch)]
    found = {"logits": golden.logits, "phase_logits": golden.phase_logits}
    return {name: values[rows] for name, values in found.items() if values is not None}


def arrays_of(outputs: Outputs) -> dict[str, Floats]:
    """A backend's outputs by name."""
    found = {"logits": outputs.logits, "phase_logits": outputs.phase_logits}
    return {name: values for name, values in found.items() if values is not None}


def timed_backend(backend: Backend, studies: Floats) -> Callable[[], Sample]:
    """One call of the product's backend by the host's clock: arrays in, arrays out."""

    def once() -> Sample:
        started = time.perf_counter()
        backend.infer(studies)
        return Sample(1e3 * (time.perf_counter() - started))

    return once


def check_lowered(backend: Backend, bundle: Bundle) -> None:
    """A lowered model must give its golden outputs, as in the product; FP32's are compared with PyTorch's in any case.

    Raises: SelfCheckFailed (23); IntegrityError (21), ModelIncompatible (20) for golden outputs that are not there.
    """
    if backend.precision != "fp32":
        self_check(backend, bundle)


def fp16_note(precision: str) -> str:
    """What must be known of FP16 in a runtime that has none on a CPU; "" for other precisions."""
    return "computed in FP32: this runtime has no FP16 on a CPU" if precision == "fp16" else ""
