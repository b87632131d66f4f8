"""The network on an Intel or AMD CPU by OpenVINO: the bundle's verified ONNX bytes in, logits out.

Where it pays is INT8: it computes the convolutions between Q/DQ pairs as int8, which ONNX Runtime does not gain from.
On a CPU without instructions for that (AVX2 alone) its products saturate at 16 bits and are silently wrong: a single
convolution came out off by a fifth, a network trained on phantoms by up to 0.38 logits, and
the same input could give two answers. There, int8 is refused.
Everything else it computes in FP32: left to itself it would take BF16 on CPUs with AMX, for an FP32 model too.

The package reports its import to Intel where the user once agreed to that; this module keeps it from doing so.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backend import OUTPUTS, Outputs
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.cpu import int8_instructions
from fourphase.runtime.errors import ModelIncompatible
from fourphase.runtime.inference_checks import (
    Tensor,
    check_input,
    check_interface,
    checked_outputs,
    first_line,
    package_missing,
    run_failed,
)

__all__ = ["PRECISIONS", "REQUIREMENTS", "OpenVINOBackend", "is_available", "load_backend", "package", "why_not"]

Floats = NDArray[np.float32]

REQUIREMENTS = ("openvino>=2025.0",)
#: Best first.
PRECISIONS = ("int8", "fp32", "fp16")
_TYPES = {"f32": "float32", "f16": "float16"}
#: A package that is None here cannot be imported; OpenVINO then uses its own stub, which sends nothing.
_TELEMETRY = "openvino_telemetry"


@dataclass(frozen=True, eq=False)
class OpenVINOBackend:
    """A compiled model. `input_shape` is (P, T, C, H, W), `outputs` what the network gives."""

    request: Any
    precision: str
    input_shape: tuple[int, ...]
    outputs: tuple[str, ...] = OUTPUTS
    name: str = "openvino"
    max_batch: int | None = None

    def close(self) -> None:
        """The session goes with its last reference."""

    def infer(self, study: Floats) -> Outputs:
        """Runs B studies, float32 (B, P, T, C, H, W).

        Raises: ModelIncompatible for another type or shape, PixelDataError for a non-finite input, SelfCheckFailed
            for a non-finite output, GPUUnavailable (code 22, out of memory) if memory does not suffice.
        """
        check_input(study, self.input_shape)
        try:
            found = self.request.infer({"study": study})
        except Exception as error:  # the package raises RuntimeError for everything
            raise run_failed(error, "OpenVINO") from error
        return checked_outputs(*(found[name] for name in self.outputs))


def is_available() -> bool:
    """Whether the package of REQUIREMENTS can be found; it is not imported."""
    return importlib.util.find_spec("openvino") is not None


def why_not(precision: str) -> str | None:
    """Why this CPU must not run a model of that precision; None if it may."""
    if precision != "int8" or int8_instructions() is not None:
        return None
    return "OpenVINO's int8 would be wrong on this CPU: without VNNI or AMX its products saturate at 16 bits"


def load_backend(bundle: Bundle, precision: str) -> OpenVINOBackend:
    """Loads the bundle's model of that precision.

    Raises: IntegrityError; ModelIncompatible if it is no valid ONNX or its inputs and outputs are not the contract's;
        EnvironmentFault if openvino cannot be imported.
    """
    model = bundle.read(bundle.models[precision].file)
    openvino = package()
    core = openvino.Core()
    try:
        graph = core.read_model(model, b"")
        check_interface(_tensors(graph.inputs), _tensors(graph.outputs), bundle)
        compiled = core.compile_model(graph, "CPU", _options())
    except RuntimeError as error:
        raise ModelIncompatible(
            f"OpenVINO {openvino.__version__.partition('-')[0]} cannot load the {precision} model: {first_line(error)}",
            "update openvino, build the bundle again with fp-export build-engine, or use --backend onnxruntime",
            key="model_not_loadable",
        ) from error
    return OpenVINOBackend(compiled.create_infer_request(), precision, bundle.input_shape, bundle.outputs)


def package() -> Any:
    """The package, which then reports nothing to its maker. Raises: EnvironmentFault (24) if it cannot be imported."""
    sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise package_missing("openvino", REQUIREMENTS[0], error) from error
    return openvino


def _options() -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
    }


def _tensors(ports: Sequence[Any]) -> list[Tensor]:
    return [_tensor(port.get_any_name(), port.element_type.get_type_name(), port.partial_shape) for port in ports]


def _tensor(name: str, kind: str, shape: Any) -> Tensor:
    sizes = tuple(None if size.is_dynamic else int(size.get_length()) for size in shape)
    return Tensor(name, _TYPES.get(kind, kind), sizes)
