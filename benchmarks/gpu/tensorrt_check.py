"""Builds models of a kit with TensorRT or TensorRT for RTX, runs them on this GPU and holds them to their references.

The engine that is timed is the one that was compared: nothing marked, at one study and at the profile's maximum. It is
run on torch's CUDA tensors, and once more by the product's own run time where pycuda is there.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.differences import difference
from fourphase.benchmarks.gpu.engine_on_tensors import EngineOnTensors
from fourphase.benchmarks.gpu.engine_recording import build_record, built_anyway, record_engine
from fourphase.benchmarks.gpu.kit import BATCH, KitModel, judged, load_kit_model
from fourphase.benchmarks.gpu.session_on_buffers import SessionOnBuffers
from fourphase.benchmarks.guarded_steps import Outcome, Save, error_record
from fourphase.benchmarks.latency.statistics import QUICK, Measurement, Protocol, measure_interleaved, statistics
from fourphase.engine.options import BuildOptions
from fourphase.runtime.cuda import probe
from fourphase.runtime.cuda_context import is_available
from fourphase.runtime.errors import FourphaseError
from fourphase.runtime.flavour import FLAVOURS, Flavour, load_flavour

__all__ = ["check_model", "check_pair", "why_not"]

Floats = NDArray[np.float32]
Infer = Callable[[Mapping[str, Floats]], dict[str, Floats]]


def check_model(
    save: Save,
    *,
    kit: str,
    model: str,
    target: str,
    capability: str | None,
    device: str,
    quick: bool,
    recordings: str | None = None,
) -> Outcome:
    """Builds, runs, compares, audits and times one model.

    Args:
        model: one of gpu_kit.MODELS.
        target: "tensorrt" or "tensorrt-rtx".
        capability: the compute capability to build for; None for the GPU at hand.
        recordings: folder for the inspector's JSON.

    Result: `version`, `build`, `comparisons` (one per batch size), `product` (the same by the product's run time, or
        why not), `inspector` (as loaded, and after the runs if it then says something else), `rows` (one per batch
        size, as in torch_latency) and `cost`. Without a GPU only the build of TensorRT for RTX is rehearsed.
    """
    reason = why_not(target, device)
    if reason:
        return Outcome("skipped", reason)
    flavour, content = load_flavour(target), load_kit_model(Path(kit), model)
    result: dict[str, Any] = {"flavour": target, "version": flavour.version, "model": model, "cost": content.cost}
    save(result)
    plan, result["build"] = _built(content, target, capability)
    save(result)
    if device == "cpu":
        return Outcome("skipped", f"built, not run: {probe().reason}", result)
    engine = EngineOnTensors(flavour, plan)
    place = Path(recordings, f"{target}-{model}-{capability or 'current'}") if recordings else None
    result["inspector"] = [_recorded(engine, content, place, "loaded")]
    save(result)
    result["comparisons"] = _comparisons(engine.infer, content)
    save(result)
    _record_again(result["inspector"], engine, content, place)
    result["product"] = _by_product(flavour, plan, content)
    save(result)
    wrong = [entry["batch"] for entry in result["comparisons"] if not entry["passed"]]
    if wrong:
        return Outcome("failed", f"off the reference at batch {', '.join(map(str, wrong))}", {**result, "rows": []})
    result["rows"] = _timed_rows(engine, content, target, quick)
    if result["product"]["state"] == "failed":
        return Outcome("failed", f"the product's run time: {result['product']['reason']}", result)
    return Outcome("ok", result=result)


def check_pair(
    save: Save, *, kit: str, models: list[str], target: str, device: str, quick: bool, capabilities: list[str | None]
) -> Outcome:
    """Two models that compute the same, timed in turns; see `check_model`.

    Args:
        capabilities: what to build for, tried in this order until both engines load.

    Result: `builds`, `refused` (what did not load, and why), `difference` of the two at the profile's maximum, and
        `rows` per model and batch size.
    """
    reason = why_not(target, device)
    if reason:
        return Outcome("skipped", reason)
    flavour, contents = load_flavour(target), [load_kit_model(Path(kit), name) for name in models]
    result: dict[str, Any] = {"flavour": target, "version": flavour.version, "models": models, "refused": []}
    if device == "cpu":
        result["builds"] = [_built(content, target, None)[1] for content in contents]
        return Outcome("skipped", f"built, not run: {probe().reason}", result)
    for capability in capabilities:
        try:
            built = [_built(content, target, capability) for content in contents]
            engines = [EngineOnTensors(flavour, plan) for plan, _ in built]
        except (FourphaseError, RuntimeError) as error:
            result["refused"].append({"capability": capability, "error": error_record(error)})
            save(result)
            continue
        result["builds"] = [record for _, record in built]
        first, second = (one.infer(content.studies(BATCH)[0]) for one, content in zip(engines, contents, strict=True))
        result["difference"] = difference(second, first)
        save(result)
        result["rows"] = _pair_rows(engines, contents, quick)
        return Outcome("ok", result=result)
    return Outcome("failed", "no engine could be loaded", result)


def why_not(target: str, device: str) -> str:
    """Why a flavour of TensorRT cannot be checked here, "" if it can."""
    if importlib.util.find_spec(FLAVOURS[target]) is None:
        return f"the Python module {FLAVOURS[target]} is not installed"
    if device == "cpu" and target == "tensorrt":
        return "TensorRT is used on a CUDA device only"
    return ""


def _built(content: KitModel, target: str, capability: str | None) -> tuple[bytes, dict[str, Any]]:
    options = BuildOptions(batch=content.profile, compute_capabilities=(capability,) if capability else ())
    built, refusal = built_anyway(content.source, target, options)
    return built.plan, build_record(built, refusal)


def _recorded(
    engine: EngineOnTensors, content: KitModel, place: Path | None, when: str, context: Any = None
) -> dict[str, Any]:
    target = place and place.with_name(f"{place.name}.{when}.json")
    return {"when": when, **record_engine(engine.trt, engine.engine, content.source, target, context)}


def _record_again(
    records: list[dict[str, Any]], engine: EngineOnTensors, content: KitModel, place: Path | None
) -> None:
    """A context that has run may tell more; if it says the same, one recording is enough."""
    again = _recorded(engine, content, place, "ran", engine.context)
    if again["sha256"] != records[0]["sha256"]:
        records.append(again)
    elif place is not None and again["file"] is not None:
        (place.parent / again["file"]).unlink()


def _comparisons(infer: Infer, content: KitModel) -> list[dict[str, Any]]:
    return [{"batch": batch, **_compared(infer, content, batch)} for batch in (1, BATCH)]


def _compared(infer: Infer, content: KitModel, batch: int) -> dict[str, Any]:
    """One inference against the reference; TensorRT for RTX compiles kernels in the first one of a shape."""
    inputs, reference = content.studies(batch)
    started = time.perf_counter()
    outputs = infer(inputs)
    seconds = time.perf_counter() - started
    return {**judged(outputs, reference, content.allowed), "first_run_s": round(seconds, 3)}


def _by_product(flavour: Flavour, plan: bytes, content: KitModel) -> dict[str, Any]:
    """The same comparisons by the product's run time: `state` is "ok", "failed" or "skipped"."""
    if not is_available():
        return {"state": "skipped", "reason": "pycuda is not installed", "comparisons": []}
    try:
        with SessionOnBuffers(flavour, plan, content.inputs, content.outputs, content.profile[2]) as session:
            found = _comparisons(session.infer, content)
    except FourphaseError as error:
        return {"state": "failed", "reason": error.message, "comparisons": [], "error": error_record(error)}
    wrong = [str(entry["batch"]) for entry in found if not entry["passed"]]
    reason = f"off the reference at batch {', '.join(wrong)}" if wrong else ""
    return {"state": "failed" if wrong else "ok", "reason": reason, "comparisons": found}


def _timed_rows(engine: EngineOnTensors, content: KitModel, target: str, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for batch in (1, BATCH):
        candidate = engine.candidate(content.studies(batch)[0])
        measured = measure_interleaved({target: candidate}, _protocol(quick))[target]
        rows.append(_row(f"{target} {content.precision}", content, measured, batch))
    return rows


def _pair_rows(engines: list[EngineOnTensors], contents: list[KitModel], quick: bool) -> list[dict[str, Any]]:
    rows = []
    for batch in (1, BATCH):
        pairs = zip(engines, contents, strict=True)
        candidates = {content.name: engine.candidate(content.studies(batch)[0]) for engine, content in pairs}
        measured = measure_interleaved(candidates, _protocol(quick))
        rows += [_row(content.name, content, measured[content.name], batch) for content in contents]
    return rows


def _protocol(quick: bool) -> Protocol:
    return QUICK if quick else Protocol()


def _row(variant: str, content: KitModel, measured: Measurement, batch: int) -> dict[str, Any]:
    if measured.error:
        raise measured.error
    row = {"variant": variant, "precision": content.precision, "batch": batch, "status": "ok"}
    return {**row, "statistics": statistics(measured, batch)}
