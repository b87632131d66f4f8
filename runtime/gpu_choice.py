"""A TensorRT engine of the bundle on this machine's GPU, if one fits or may be built; else the reason there is none.

It chooses and loads; nothing falls back here: `backends` decides what a reason means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fourphase.runtime.backend import Backend
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.errors import FourphaseError
from fourphase.runtime.flavour import FLAVOURS
from fourphase.runtime.plan_choice import FittingPlans, PlanPolicy, fitting_plans, rebuild
from fourphase.runtime.plan_meta import Machine, this_machine

__all__ = ["GpuChoice", "NoEngine", "choose_engine"]


@dataclass(frozen=True)
class NoEngine:
    """Why no engine is used: `kind` is "no_device", "no_tensorrt", "no_package", "no_plan" or "build_failed"."""

    kind: str
    reason: str
    error: FourphaseError | None = None


@dataclass(frozen=True, eq=False)
class GpuChoice:
    """A loaded engine and why it is this one; `plans`: part -> key."""

    backend: Backend
    reason: str
    plans: Mapping[str, str] = field(default_factory=dict)


def choose_engine(
    bundle: Bundle, precision: str | None, policy: PlanPolicy, flavours: Sequence[str] = tuple(FLAVOURS)
) -> GpuChoice | NoEngine:
    """Loads the engine that fits, built now if that is allowed.

    Args:
        precision: None takes the lowest the bundle has and a plan for, which is what it was built for.
        flavours: in the order of preference.

    Raises: IntegrityError (21) for a changed plan; what loading an engine raises (20, 22, 24).
    """
    machine = this_machine()
    if machine.gpu.device is None:
        return NoEngine("no_device", machine.gpu.reason)
    installed = [flavour for flavour in flavours if flavour in machine.versions]
    if not installed:
        return NoEngine("no_tensorrt", f"{' and '.join(flavours)} cannot be loaded")
    from fourphase.runtime import tensorrt_backend

    if not tensorrt_backend.is_available():
        missing = " and ".join(tensorrt_backend.REQUIREMENTS)
        return NoEngine("no_package", f"the package {missing} is not installed (extra [gpu])")
    lowest_first = [precision] if precision else list(bundle.models)[::-1]
    found, why = fitting_plans(bundle, machine, lowest_first[:1], installed, policy)
    if found is None and policy.rebuild:
        return _rebuilt(bundle, machine, lowest_first[0], installed[0], policy, why)
    if found is None:
        found, why = fitting_plans(bundle, machine, lowest_first, installed, policy)
    return NoEngine("no_plan", why) if found is None else _loaded(bundle, found, _words(found, lowest_first[0]) + why)


def _rebuilt(
    bundle: Bundle, machine: Machine, precision: str, flavour: str, policy: PlanPolicy, why: str
) -> GpuChoice | NoEngine:
    try:
        rebuild(bundle, flavour, precision, policy)
    except FourphaseError as error:
        return NoEngine("build_failed", f"{why}, and none could be built: {error.message}", error)
    found, still = fitting_plans(bundle, machine, [precision], [flavour], policy)
    if found is None:
        return NoEngine("no_plan", f"a plan was built, but {still}")
    return _loaded(bundle, found, f"{why}; built for this machine now")


def _loaded(bundle: Bundle, found: FittingPlans, reason: str) -> GpuChoice:
    from fourphase.runtime.tensorrt_backend import EngineParts, load_engine_backend

    extras: dict[str, Any] = {"host_code": found.host_code, "dla_core": found.dla_core}
    parts = EngineParts(found.plans, found.slices, found.flavour, found.precision, found.max_batch, **extras)
    backend = load_engine_backend(parts, bundle)
    return GpuChoice(backend, "; ".join([reason, *backend.notes]), found.keys)


def _words(found: FittingPlans, preferred: str) -> str:
    keys = ", ".join(f"{part} {key}" if part != "whole" else key for part, key in found.keys.items())
    note = "" if found.precision == preferred else f"; no plan of {preferred} fits, so {found.precision} is used"
    return f"engine {keys} fits this machine{note}"
