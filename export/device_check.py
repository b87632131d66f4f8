"""The built engines on the GPU they are for: every golden input, at batch 1 and at the profile's maximum.

Independent rebuilds show how much of an answer is the builder's choice of tactics: the spread of logits and latency. It
runs only where there is a GPU; elsewhere the report says that nothing was run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.engine.build import EnginePlan
from fourphase.engine.bundle import BundleContents, write_bundle
from fourphase.runtime.backend import Backend
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.console import progress
from fourphase.runtime.cuda import probe
from fourphase.runtime.plan_choice import PlanPolicy
from fourphase.runtime.plan_meta import misfits, this_machine
from fourphase.runtime.selfcheck import self_check

__all__ = ["check_on_device"]

Floats = NDArray[np.float32]
Plans = tuple[EnginePlan, ...]
#: Runs whose median is a build's latency, after as many to warm up.
_RUNS = 20


def check_on_device(
    contents: BundleContents, precision: str, rebuilds: int, build: Callable[[], Plans]
) -> tuple[dict[str, Any], Plans]:
    """Runs the engines of `contents`, and of `rebuilds - 1` further builds.

    Args:
        build: builds the engines again, without what earlier builds measured.

    Returns: the record (JSON types), and the engines of the build nearest to the golden outputs.

    Raises: SelfCheckFailed (23) if any build is off the golden outputs; what loading an engine raises (20, 22, 24).
    """
    reason = _why_not(contents.engines)
    if reason is not None:
        return {"state": "not run", "reason": reason, "rebuilds": []}, contents.engines
    records, built = [], []
    with progress("running the engines on the GPU", rebuilds) as advance:
        for number in range(rebuilds):
            engines = contents.engines if number == 0 else build()
            records.append(_measured(replace(contents, engines=engines), precision))
            built.append(engines)
            advance(1)
    best = min(range(rebuilds), key=lambda index: records[index]["max_abs_difference"])
    return {"state": "passed", "reason": "", **_spread(records), "kept": best + 1, "rebuilds": records}, built[best]


def _why_not(engines: Sequence[EnginePlan]) -> str | None:
    if not engines:
        return "no engine was built"
    if probe().device is None:
        return probe().reason
    machine = this_machine()
    hashes = {engine.meta["onnx_sha256"] for engine in engines}
    reasons = [one for engine in engines for one in misfits(engine.meta, machine, hashes, host_code=True)]
    return f"the engine is not for this machine: {reasons[0]}" if reasons else None


def _measured(contents: BundleContents, precision: str) -> dict[str, Any]:
    """One build, from the bytes as they will be shipped: written, read back and loaded as fp-run does."""
    flavour = contents.engines[0].meta["flavour"]
    with tempfile.TemporaryDirectory(prefix="fourphase-check-") as folder:
        bundle = write_bundle(Path(folder) / "bundle", contents)
        # Host code in these plans is ours: they were built a moment ago.
        choice = choose_backend(bundle, flavour, precision=precision, plans=PlanPolicy(host_code=True))
        with closing(choice.backend) as backend:
            check = self_check(backend, bundle, all_inputs=True)
            logits, latencies = _run(backend, bundle, precision)
    return {
        "keys": [engine.key for engine in contents.engines],
        "plan_sha256": [engine.meta["plan_sha256"] for engine in contents.engines],
        "batches": list(check.batches),
        "max_abs_difference": check.max_abs_difference,
        "tolerance": asdict(check.tolerance),
        "logits": logits.tolist(),
        "latency_ms": {"median": float(np.median(latencies)), "min": min(latencies), "max": max(latencies)},
    }


def _run(backend: Backend, bundle: Bundle, precision: str) -> tuple[Floats, list[float]]:
    """Logits of every golden input, (N, K), and the milliseconds of runs on the first, host to host."""
    golden = bundle.golden(precision)
    logits = np.concatenate([backend.infer(golden.study(index)).logits for index in range(len(golden))])
    study, latencies = golden.study(0), []
    for number in range(2 * _RUNS):
        started = time.perf_counter()
        backend.infer(study)
        if number >= _RUNS:
            latencies.append((time.perf_counter() - started) * 1e3)
    return logits, latencies


def _spread(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How far the builds are from each other."""
    logits = np.array([record["logits"] for record in records])
    medians = [record["latency_ms"]["median"] for record in records]
    return {
        "logits_spread": float((logits.max(axis=0) - logits.min(axis=0)).max()),
        "latency_spread_ms": max(medians) - min(medians),
    }
