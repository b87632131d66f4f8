"""Which program computes the network: the choice of a backend, with its reason.

Each CPU backend is a flat module with a table `REQUIREMENTS`, `is_available()` and one function `load_backend()`. The
GPU's is loaded from a plan, if one fits this machine (`gpu_choice`); otherwise "auto" takes the CPU and says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, cast

from fourphase.runtime.backend import Backend
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.cpu import int8_instructions
from fourphase.runtime.cuda import probe
from fourphase.runtime.errors import EnvironmentFault, FourphaseError, GPUUnavailable, ModelIncompatible, UsageError
from fourphase.runtime.gpu_choice import GpuChoice, NoEngine, choose_engine
from fourphase.runtime.plan_choice import PlanPolicy

__all__ = ["BACKENDS", "Choice", "choose_backend"]

#: Every name --backend takes.
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "onnxruntime", "openvino")
#: Those of the CPU, name -> module.
_MODULES = MappingProxyType(
    {"onnxruntime": "fourphase.runtime.onnxruntime_backend", "openvino": "fourphase.runtime.openvino_backend"}
)
_NEEDS_GPU = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, eq=False)
class Choice:
    """A loaded backend and, for a person, why it is this one; `plans`: part of the network -> key of its engine."""

    backend: Backend
    reason: str
    plans: Mapping[str, str] = field(default_factory=dict)


class _Module(Protocol):
    REQUIREMENTS: Sequence[str]
    PRECISIONS: Sequence[str]

    def is_available(self) -> bool: ...

    def why_not(self, precision: str) -> str | None: ...

    def load_backend(self, bundle: Bundle, precision: str) -> Backend: ...


def choose_backend(
    bundle: Bundle,
    name: str = "auto",
    *,
    require: str | None = None,
    precision: str | None = None,
    plans: PlanPolicy | None = None,
) -> Choice:
    """Chooses a backend and loads the bundle's model into it.

    Args:
        bundle: whose model is loaded, from verified bytes.
        name: one of BACKENDS.
        require: the choice must be this one, anything else is an error (--require-backend).
        precision: "fp32", ...; None takes the first that the backend prefers and the bundle has.
        plans: where plans lie and whether one may be built; None for the bundle's own and no.

    Raises: UsageError for an unknown name; GPUUnavailable or EnvironmentFault if the backend cannot run here;
        EnvironmentFault if this CPU would compute that precision wrongly;
        ModelIncompatible if the bundle lacks the precision or its model does not fit its manifest; IntegrityError.
    """
    for given in (name, require):
        if given is not None and given not in BACKENDS:
            raise UsageError(
                f"unknown backend {given!r}", f"choose one of {', '.join(BACKENDS)}", key="backend_unknown"
            )
    policy = plans or PlanPolicy()
    if name == "auto" and require in _MODULES:
        chosen, reason = str(require), "required"
    elif name == "auto":
        engine = _engine(bundle, precision, policy, require)
        if isinstance(engine, GpuChoice):
            return Choice(engine.backend, engine.reason, engine.plans)
        chosen, reason = _choose(bundle, precision, engine.reason)
    else:
        chosen, reason = name, "asked for"
    if require not in (None, "auto", chosen):
        raise GPUUnavailable(
            f"backend {require} is required, but {chosen} would be used ({reason})",
            f"run where {require} works, or leave --require-backend out",
            key="required_backend_unavailable",
        )
    if chosen in _NEEDS_GPU:
        return _asked_for_engine(bundle, chosen, precision, policy)
    module = _usable(chosen)
    lowered, note = _precision(bundle, module, precision)
    return Choice(module.load_backend(bundle, lowered), f"{reason}; {note}" if note else reason)


def _engine(bundle: Bundle, precision: str | None, policy: PlanPolicy, require: str | None) -> GpuChoice | NoEngine:
    """What the GPU offers; TensorRT is not even imported where there is none."""
    flavours = _NEEDS_GPU if require in (None, "auto") else (require,)
    found = probe()
    if found.device is None:
        return NoEngine("no_device", found.reason)
    if precision is not None and precision not in bundle.models:
        return NoEngine("no_plan", f"the bundle has no model in {precision}")
    engine = choose_engine(bundle, precision, policy, flavours)
    if isinstance(engine, NoEngine):
        return NoEngine(engine.kind, f"a CUDA device is present ({found.device.name}), but {engine.reason}")
    return engine


def _asked_for_engine(bundle: Bundle, name: str, precision: str | None, policy: PlanPolicy) -> Choice:
    """Raises: the error that says why there is no engine of this flavour."""
    found = probe()
    if found.device is None:
        raise GPUUnavailable(
            f"backend {name} needs a GPU: {found.reason}", "use --backend auto or --backend onnxruntime (CPU)"
        )
    if precision is not None and precision not in bundle.models:
        raise _no_precision(bundle, precision)
    engine = choose_engine(bundle, precision, policy, (name,))
    if isinstance(engine, GpuChoice):
        return Choice(engine.backend, f"asked for; {engine.reason}", engine.plans)
    if engine.error is not None:
        raise engine.error
    if engine.kind == "no_plan":
        raise ModelIncompatible(
            f"backend {name} has no engine: {engine.reason}",
            "build one with fp-export build-plan, or give --rebuild; fp-export inspect tells of every plan",
            key="plan_missing",
        )
    raise EnvironmentFault(
        f"backend {name} cannot run: {engine.reason}", "see fp-doctor, or use --backend auto", key="backend_missing"
    )


def _choose(bundle: Bundle, precision: str | None, why_cpu: str) -> tuple[str, str]:
    """What "auto" takes on the CPU, and why.

    OpenVINO where its INT8 pays: an int8 model, and a CPU with instructions for it. In FP32 the two are equally fast.
    """
    instructions = int8_instructions()
    if "int8" not in bundle.models or precision not in (None, "int8") or instructions is None:
        return "onnxruntime", why_cpu
    if not _module("openvino").is_available():
        return "onnxruntime", f"{why_cpu}; openvino, which would run the int8 model on {instructions}, is not installed"
    return "openvino", f"{why_cpu}; OpenVINO runs the bundle's int8 model on this CPU's {instructions}"


def _module(name: str) -> _Module:
    return cast(_Module, importlib.import_module(_MODULES[name]))


def _usable(name: str) -> _Module:
    """The module of a backend that can run here."""
    module = _module(name)
    if not module.is_available():
        raise EnvironmentFault(
            f"backend {name} needs {' and '.join(module.REQUIREMENTS)}, which cannot be found",
            f"pip install {' '.join(repr(requirement) for requirement in module.REQUIREMENTS)}",
            key="package_missing",
        )
    return module


def _precision(bundle: Bundle, module: _Module, wanted: str | None) -> tuple[str, str | None]:
    """The precision to load, and why a preferred one is not used."""
    note = None
    for precision in module.PRECISIONS if wanted is None else (wanted,):
        if precision in bundle.models:
            note = note or module.why_not(precision)
            if module.why_not(precision) is None:
                return precision, note or (_why(precision, bundle) if wanted is None else None)
    if note is not None:
        raise EnvironmentFault(note, "use --precision fp32, or --backend onnxruntime", key="precision_unsafe")
    raise _no_precision(bundle, wanted)


def _no_precision(bundle: Bundle, wanted: str | None) -> FourphaseError:
    held = ", ".join(bundle.models) or "none"
    return ModelIncompatible(
        f"the bundle has no model in {wanted or 'a precision that this backend runs'}, only in: {held}",
        "choose a --precision that the bundle has, or build the bundle with the one you need",
        key="precision_missing",
    )


def _why(precision: str, bundle: Bundle) -> str | None:
    """Why not a lower one that the bundle has, for a person who built it; manifests name the lowest last."""
    if precision == list(bundle.models)[-1]:
        return None
    return f"of {', '.join(bundle.models)} it prefers {precision} on a CPU (--precision chooses another)"
