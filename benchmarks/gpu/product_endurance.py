"""What only many runs or many builds show: memory that is not given back, answers that waver, tactics that differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.gpu.engine_recording import built_anyway
from fourphase.benchmarks.gpu.kit import BATCH, BUNDLE, SMALL
from fourphase.benchmarks.gpu.product_engines import (
    clock,
    engines_of_forms,
    form_name,
    golden_studies,
    needs_gpu,
    no_pycuda,
)
from fourphase.benchmarks.gpu.tensorrt_check import why_not
from fourphase.benchmarks.guarded_steps import Outcome, Save
from fourphase.engine.build import EnginePlan
from fourphase.engine.bundle import contents_of, model_of
from fourphase.engine.options import BuildOptions
from fourphase.engine.plans import sources_of
from fourphase.export.device_check import check_on_device
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.cuda_context import open_gpu
from fourphase.runtime.tensorrt_backend import TensorRTBackend, load_engine_backend

__all__ = ["check_leaks", "check_rebuilds"]

Floats = NDArray[np.float32]

#: Half of them by `infer_many`.
_RUNS, _QUICK_RUNS = 10_000, 20
#: What the device may have less of after the runs: the driver's own bookkeeping.
_LEAK_BYTES = 1 << 20
_REBUILDS = 3
_STATM, _PAGE = Path("/proc/self/statm"), 4096


def check_leaks(
    save: Save, *, kit: str, target: str, device: str, quick: bool, capabilities: list[str | None]
) -> Outcome:
    """Runs by the thousand on the kit's tiny bundle, whole and split, with and without a CUDA graph.

    Result: per form `runs`, `seconds`, `outputs_same`, `gpu_bytes_lost`, `host_bytes_grown`.
    """
    reason = why_not(target, device) or no_pycuda(device) or needs_gpu(device)
    if reason:
        return Outcome("skipped", reason)
    bundle = load_bundle(Path(kit, SMALL))
    result: dict[str, Any] = {"flavour": target, "precision": "fp32", "builds": {}, "refused": []}
    engines = engines_of_forms(bundle, "fp32", target, device, capabilities, result, save)
    if not engines:
        return Outcome("failed", "no engine could be loaded", result)
    study, leaking = golden_studies(bundle, 1), []
    for form, built in engines.items():
        for use_graph in (True, False):
            name = form_name(form, use_graph)
            with load_engine_backend(built.parts("fp32"), bundle, use_graph=use_graph) as backend:
                result[name] = found = _many_runs(backend, study, _QUICK_RUNS if quick else _RUNS)
            save(result)
            if found["gpu_bytes_lost"] > _LEAK_BYTES or not found["outputs_same"]:
                leaking.append(name)
    return Outcome("failed", f"leaks or wavers: {'; '.join(leaking)}", result) if leaking else Outcome("ok", "", result)


def check_rebuilds(save: Save, *, kit: str, precision: str, target: str, device: str, quick: bool) -> Outcome:
    """Three independent builds, each checked on the device as `fp-export build-engine --rebuilds 3` does.

    Result: `on_device`, the record of `export.device_check`.
    """
    reason = why_not(target, device) or no_pycuda(device) or needs_gpu(device)
    if reason:
        return Outcome("skipped", reason)
    bundle = load_bundle(Path(kit, SMALL if quick else BUNDLE))
    options = BuildOptions(batch=(1, 1, BATCH), timing_cache=False)

    def build() -> tuple[EnginePlan, ...]:
        (source,) = sources_of(precision, model_of(bundle, precision), whole=True)
        return (built_anyway(source, target, options)[0],)

    contents = contents_of(bundle)
    # A bundle's engines are of its models as they stand; the halves are not built here.
    models = {name: replace(model, split=None) for name, model in contents.models.items()}
    record, _ = check_on_device(replace(contents, models=models, engines=build()), precision, _REBUILDS, build)
    result = {"flavour": target, "precision": precision, "on_device": record}
    if record["state"] == "not run":
        return Outcome("failed", record["reason"], result)
    return Outcome("ok", result=result)


def _many_runs(backend: TensorRTBackend, study: Floats, runs: int) -> dict[str, Any]:
    wanted = backend.infer(study).logits.tobytes()
    list(backend.infer_many([study] * 10))  # what is allocated once is there
    free, resident = _free_bytes(), _resident_bytes()
    with clock() as seconds:
        others = sum(backend.infer(study).logits.tobytes() != wanted for _ in range(runs // 2))
        streamed = backend.infer_many([study] * (runs - runs // 2))
        others += sum(outputs.logits.tobytes() != wanted for outputs in streamed)
    return {
        "runs": runs,
        "seconds": seconds[0],
        "outputs_same": others == 0,
        "gpu_bytes_lost": free - _free_bytes(),
        "host_bytes_grown": _resident_bytes() - resident,
        "notes": list(backend.notes),
    }


def _free_bytes() -> int:
    gpu = open_gpu()
    with gpu.current():
        return int(gpu.driver.mem_get_info()[0])


def _resident_bytes() -> int:
    """This process's memory; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0
