"""The product's run time on this GPU: every form of a kit's bundle loaded as fp-run loads it, checked and timed.

Times here are the host's, from input array to output array: what a caller waits for, copies and checks included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.gpu.kit import BATCH, BUNDLE
from fourphase.benchmarks.gpu.product_engines import (
    Engines,
    clock,
    engines_of_forms,
    form_name,
    golden_studies,
    no_pycuda,
)
from fourphase.benchmarks.gpu.tensorrt_check import why_not
from fourphase.benchmarks.guarded_steps import Outcome, Save, error_record
from fourphase.benchmarks.latency.statistics import QUICK, Protocol, Sample, measure_interleaved, statistics
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.cuda import probe
from fourphase.runtime.errors import FourphaseError
from fourphase.runtime.selfcheck import self_check
from fourphase.runtime.tensorrt_backend import TensorRTBackend, load_engine_backend

__all__ = ["check_product"]

Floats = NDArray[np.float32]

#: Studies of the throughput measurement; of a quick one.
_STREAM, _QUICK_STREAM = 100, 4


def check_product(
    save: Save, *, kit: str, precision: str, target: str, device: str, quick: bool, capabilities: list[str | None]
) -> Outcome:
    """Whole against split, CUDA graph against plain enqueue, one study after the other against two in flight.

    Args:
        capabilities: what to build for, tried in this order until the engine loads.

    Result: `builds`, `refused`, `forms` (form -> self-check, notes, throughput; or its error), `same` (what of them
        gives equal bytes), `whole_to_split` (largest difference of a logit) and `rows` (times per form and batch size).
    """
    reason = why_not(target, device) or no_pycuda(device)
    if reason:
        return Outcome("skipped", reason)
    bundle = load_bundle(Path(kit, BUNDLE))
    result: dict[str, Any] = {"flavour": target, "precision": precision, "builds": {}, "refused": []}
    engines = engines_of_forms(bundle, precision, target, device, capabilities, result, save)
    if device == "cpu":
        return Outcome("skipped", f"built, not run: {probe().reason}", result)
    if not engines:
        return Outcome("failed", "no engine could be loaded", result)
    with ExitStack() as stack:
        backends = _loaded(engines, precision, bundle, result, stack)
        save(result)
        for name, backend in backends.items():
            result["forms"][name] |= _checked(backend, bundle)
        save(result)
        studies = {batch: golden_studies(bundle, batch) for batch in (1, BATCH)}
        result |= _agreement(backends, studies[BATCH])
        save(result)
        result["rows"] = [row for batch, study in studies.items() for row in _rows(backends, study, batch, quick)]
        save(result)
        for name, backend in backends.items():
            result["forms"][name] |= {"streams": _throughput(backend, studies[1], _QUICK_STREAM if quick else _STREAM)}
            result["forms"][name]["notes"] = list(backend.notes)
    bad = [name for name, form in result["forms"].items() if form.get("error") or not form["streams"]["same_bytes"]]
    return Outcome("failed", f"wrong or not loaded: {'; '.join(bad)}", result) if bad else Outcome("ok", result=result)


def _loaded(
    engines: dict[str, Engines], precision: str, bundle: Bundle, result: dict[str, Any], stack: ExitStack
) -> dict[str, TensorRTBackend]:
    """Every form with and without a graph; those that do not load leave their error in `result["forms"]`."""
    result["forms"] = {}
    backends = {}
    for form, built in engines.items():
        for use_graph in (True, False):
            name = form_name(form, use_graph)
            try:
                backend = load_engine_backend(built.parts(precision), bundle, use_graph=use_graph)
            except FourphaseError as error:
                result["forms"][name] = {"error": error_record(error)}
                continue
            result["forms"][name] = {"capability": built.capability, "notes": list(backend.notes)}
            backends[name] = stack.enter_context(backend)
    return backends


def _checked(backend: TensorRTBackend, bundle: Bundle) -> dict[str, Any]:
    """The start-up check of fp-run, over all golden inputs."""
    try:
        passed = self_check(backend, bundle, all_inputs=True)
    except FourphaseError as error:
        return {"self_check": "failed", "error": error_record(error)}
    return {
        "self_check": "passed",
        "batches": list(passed.batches),
        "max_abs_difference": passed.max_abs_difference,
        "allowed": passed.tolerance.atol,
    }


def _agreement(backends: dict[str, TensorRTBackend], study: Floats) -> dict[str, Any]:
    """What the forms say of the same studies, beside each other."""
    outputs = {name: backend.infer(study).logits for name, backend in backends.items()}
    same = {}
    for form in ("whole", "split"):
        graph, plain = outputs.get(form_name(form, True)), outputs.get(form_name(form, False))
        found = None if graph is None or plain is None else graph.tobytes() == plain.tobytes()
        same[f"{form}, graph and plain"] = found
    whole, split = outputs.get(form_name("whole", False)), outputs.get(form_name("split", False))
    apart = None if whole is None or split is None else float(np.abs(whole - split).max())
    return {"same": same, "whole_to_split": apart}


def _rows(backends: dict[str, TensorRTBackend], study: Floats, batch: int, quick: bool) -> list[dict[str, Any]]:
    def timed(backend: TensorRTBackend) -> Callable[[], Sample]:
        def once() -> Sample:
            started = time.perf_counter()
            backend.infer(study)
            return Sample(1e3 * (time.perf_counter() - started))

        return once

    candidates = {name: timed(backend) for name, backend in backends.items()}
    rows = []
    for name, measured in measure_interleaved(candidates, QUICK if quick else Protocol()).items():
        row: dict[str, Any] = {"variant": name, "batch": batch, "clock": "host, array to array"}
        if measured.error:
            rows.append({**row, "status": "failed", "error": error_record(measured.error)})
        else:
            rows.append({**row, "status": "ok", "statistics": statistics(measured, batch)})
    return rows


def _throughput(backend: TensorRTBackend, study: Floats, count: int) -> dict[str, Any]:
    """Studies per second one after the other, and with two in flight."""
    with clock() as one_by_one:
        single = [backend.infer(study).logits.tobytes() for _ in range(count)]
    with clock() as in_flight:
        streamed = [outputs.logits.tobytes() for outputs in backend.infer_many([study] * count)]
    return {
        "studies": count,
        "infer_per_s": count / one_by_one[0],
        "infer_many_per_s": count / in_flight[0],
        "same_bytes": len({*single, *streamed}) == 1,
    }
