"""Which program computes the network: the interface of a backend, and the choice of one with its reason.

Each backend is a flat module with a table `REQUIREMENTS`, `is_available()` and one function `load_backend()`. This
version has onnxruntime and openvino; the contract's other names are known and refused with the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.bundle import Bundle
from fourphase.runtime.cpu import int8_instructions
from fourphase.runtime.cuda import Probe, probe
from fourphase.runtime.errors import EnvironmentFault, FourphaseError, GPUUnavailable, ModelIncompatible, UsageError

__all__ = ["BACKENDS", "Backend", "Choice", "Outputs", "choose_backend"]

Floats = NDArray[np.float32]

#: Every name --backend takes.
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "onnxruntime", "openvino")
#: The backends that are built, name -> module.
_MODULES = MappingProxyType(
    {"onnxruntime": "fourphase.runtime.onnxruntime_backend", "openvino": "fourphase.runtime.openvino_backend"}
)
_NEEDS_GPU = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the network says of B studies; the arrays are copies that nobody else writes to.

    Attributes:
        logits: float32 (B, K).
        phase_logits: float32 (B, P, K).
    """

    logits: Floats
    phase_logits: Floats


class Backend(Protocol):
    """A loaded model: numpy in, numpy out."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def infer(self, study: Floats) -> Outputs:
        """float32 (B, P, T, C, H, W), normalised -> logits. Raises SelfCheckFailed for a non-finite output."""
        ...


@dataclass(frozen=True, eq=False)
class Choice:
    """A loaded backend and, for a person, why it is this one."""

    backend: Backend
    reason: str


class _Module(Protocol):
    REQUIREMENTS: Sequence[str]
    PRECISIONS: Sequence[str]

    def is_available(self) -> bool: ...

    def why_not(self, precision: str) -> str | None: ...

    def load_backend(self, bundle: Bundle, precision: str) -> Backend: ...


def choose_backend(
    bundle: Bundle, name: str = "auto", *, require: str | None = None, precision: str | None = None
) -> Choice:
    """Chooses a backend and loads the bundle's model into it.

    Args:
        bundle: whose model is loaded, from verified bytes.
        name: one of BACKENDS.
        require: the choice must be this one, anything else is an error (--require-backend).
        precision: "fp32", ...; None takes the first that the backend prefers and the bundle has.

    Raises: UsageError for an unknown name; GPUUnavailable or EnvironmentFault if the backend cannot run here;
        EnvironmentFault if this CPU would compute that precision wrongly;
        ModelIncompatible if the bundle lacks the precision or its model does not fit its manifest; IntegrityError.
    """
    for given in (name, require):
        if given is not None and given not in BACKENDS:
            raise UsageError(
                f"unknown backend {given!r}", f"choose one of {', '.join(BACKENDS)}", key="backend_unknown"
            )
    chosen, reason = _choose(bundle, precision) if name == "auto" else (name, "asked for")
    if require not in (None, "auto", chosen):
        raise GPUUnavailable(
            f"backend {require} is required, but {chosen} would be used ({reason})",
            f"run where {require} works, or leave --require-backend out",
            key="required_backend_unavailable",
        )
    module = _usable(chosen)
    lowered, note = _precision(bundle, module, precision)
    return Choice(module.load_backend(bundle, lowered), f"{reason}; {note}" if note else reason)


def _choose(bundle: Bundle, precision: str | None) -> tuple[str, str]:
    """What "auto" takes, and why.

    OpenVINO where its INT8 pays: an int8 model, and a CPU with instructions for it. In FP32 the two are equally fast.
    """
    why_cpu = _why_cpu(probe())
    instructions = int8_instructions()
    if "int8" not in bundle.models or precision not in (None, "int8") or instructions is None:
        return "onnxruntime", why_cpu
    if not _module("openvino").is_available():
        return "onnxruntime", f"{why_cpu}; openvino, which would run the int8 model on {instructions}, is not installed"
    return "openvino", f"{why_cpu}; OpenVINO runs the bundle's int8 model on this CPU's {instructions}"


def _why_cpu(found: Probe) -> str:
    if found.device is None:
        return found.reason
    return f"a CUDA device is present ({found.device.name}), but this version has no GPU backend"


def _module(name: str) -> _Module:
    return cast(_Module, importlib.import_module(_MODULES[name]))


def _usable(name: str) -> _Module:
    """The module of a backend that can run here."""
    if name not in _MODULES:
        raise _not_built(name, probe())
    module = _module(name)
    if not module.is_available():
        raise EnvironmentFault(
            f"backend {name} needs {' and '.join(module.REQUIREMENTS)}, which cannot be found",
            f"pip install {' '.join(repr(requirement) for requirement in module.REQUIREMENTS)}",
            key="package_missing",
        )
    return module


def _not_built(name: str, found: Probe) -> FourphaseError:
    if name in _NEEDS_GPU and found.device is None:
        return GPUUnavailable(
            f"backend {name} needs a GPU: {found.reason}", "use --backend auto or --backend onnxruntime (CPU)"
        )
    return EnvironmentFault(
        f"backend {name} is not part of this version of fourphase",
        "use --backend auto or --backend onnxruntime (CPU)",
        key="backend_not_built",
    )


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
    held = ", ".join(bundle.models) or "none"
    raise ModelIncompatible(
        f"the bundle has no model in {wanted or 'a precision that this backend runs'}, only in: {held}",
        "choose a --precision that the bundle has, or build the bundle with the one you need",
        key="precision_missing",
    )


def _why(precision: str, bundle: Bundle) -> str | None:
    """Why not a lower one that the bundle has, for a person who built it; manifests name the lowest last."""
    if precision == list(bundle.models)[-1]:
        return None
    return f"of {', '.join(bundle.models)} it prefers {precision} on a CPU (--precision chooses another)"
