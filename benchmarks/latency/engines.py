"""The bundle's model in an engine of TensorRT or TensorRT for RTX, built for this GPU through the product's plan store.

A whole engine is timed by CUDA events over PyTorch's buffers where PyTorch sees the GPU, as trtexec does; else the
product's backend is timed by the host's clock, copies included. Without a GPU nothing is loaded and nothing built.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.runtimes import Loaded
from fourphase.benchmarks.latency.scratch import folder_for_this_run
from fourphase.benchmarks.latency.studies import arrays_of, studies_of, timed_backend
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.cache import cache_folder
from fourphase.runtime.cuda import probe
from fourphase.runtime.flavour import FLAVOURS, load_flavour
from fourphase.runtime.plan_choice import FittingPlans, PlanPolicy, fitting_plans, rebuild, report_plans
from fourphase.runtime.plan_meta import this_machine

__all__ = ["engine_why_not", "load_engine", "plan_reasons"]

#: The cache's folder for engines that were built for a benchmark.
_PLANS = "benchmark-plans"


def engine_why_not(flavour: str) -> str | None:
    """Why no engine of that flavour runs here."""
    found, module = probe(), FLAVOURS[flavour]
    installed = importlib.util.find_spec(module) is not None
    missing = "" if installed else f"the Python module {module} is not installed"
    if found.device is None:
        return f"{missing}; {found.reason}" if missing else found.reason
    return missing or None


def plan_reasons(bundle: Bundle, flavour: str) -> str:
    """What speaks against each plan that the bundle carries for that flavour, as `fp-export inspect` says it; "" if
    there are none, or one fits."""
    reports = [
        report for report in report_plans(bundle, this_machine()) if (report.entry.meta or {}).get("flavour") == flavour
    ]
    if any(report.fits for report in reports):
        return ""
    return "; ".join(f"engine {report.entry.key}: {', '.join(report.reasons)}" for report in reports)


def load_engine(task: Task, flavour: str) -> Loaded:
    """Raises: as building and loading an engine do (20, 21, 22, 24, 26)."""
    bundle = load_bundle(Path(task.bundle))
    found, note = _plans(bundle, task, flavour)
    studies = studies_of(bundle, task.batch)
    if set(found.plans) == {"whole"} and _torch_sees_gpu() and task.batch <= found.max_batch:
        return _on_tensors(found, flavour, studies, note)
    from fourphase.runtime.tensorrt_backend import EngineParts, load_engine_backend

    parts = EngineParts(found.plans, found.slices, found.flavour, found.precision, found.max_batch)
    peak = _device_used()
    backend = load_engine_backend(parts, bundle)
    said = "; ".join([note, "by the host's clock, copies included", *backend.notes])
    return Loaded(timed_backend(backend, studies), arrays_of(backend.infer(studies)), peak, said)


def _plans(bundle: Bundle, task: Task, flavour: str) -> tuple[FittingPlans, str]:
    """The plans that fit this GPU, built now if there are none; how they came to be. A user's bundle is not touched."""
    home = cache_folder(_PLANS) or folder_for_this_run("fourphase-plans-")
    built = PlanPolicy(home / bundle.sha256[:16])
    for policy in (PlanPolicy(), built):
        found, _ = fitting_plans(bundle, this_machine(), [task.precision], [flavour], policy)
        if found is not None:
            return found, "an engine that was there"
    rebuild(bundle, flavour, task.precision, built)
    found, why = fitting_plans(bundle, this_machine(), [task.precision], [flavour], built)
    if found is None:
        raise RuntimeError(f"an engine was built, but {why}")
    return found, "an engine built now"


def _on_tensors(found: FittingPlans, flavour: str, studies: Any, note: str) -> Loaded:
    from fourphase.benchmarks.gpu.engine_on_tensors import EngineOnTensors

    peak = _device_used()
    engine = EngineOnTensors(load_flavour(flavour), found.plans["whole"])
    outputs = engine.infer({"study": studies})
    return Loaded(engine.candidate({"study": studies}), outputs, peak, note)


def _torch_sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _device_used() -> Any:
    """The most memory in use on the whole device so far, less what was in use before; None where PyTorch sees none."""
    import torch

    if not torch.cuda.is_available():
        return lambda: None
    free_before, _ = torch.cuda.mem_get_info()
    most = 0

    def used() -> int:
        nonlocal most
        most = max(most, free_before - torch.cuda.mem_get_info()[0])
        return most

    return used
