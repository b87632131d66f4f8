"""The network on the CPU by ONNX Runtime: the bundle's verified ONNX bytes in, logits out.

It never uses another execution provider, and imports onnxruntime only when a model is loaded.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backend import OUTPUTS, Outputs
from fourphase.runtime.bundle import Bundle
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

__all__ = ["PRECISIONS", "REQUIREMENTS", "OnnxRuntimeBackend", "is_available", "load_backend", "why_not"]

Floats = NDArray[np.float32]

REQUIREMENTS = ("onnxruntime>=1.20",)
#: Best first: the CPU provider computes FP16 in FP32 and is slower in INT8 than in FP32.
PRECISIONS = ("fp32", "fp16", "int8")
#: Messages of severity below 4 (fatal) would repeat on stderr what the exception says.
_QUIET = 4
#: Stores the biases of convolutions between Q/DQ pairs as int32 with the product of both scales, computed in the
#: scales' type: in FP16 that product has few bits left, or none. A phase's logits were off by 1.0 (ONNX Runtime 1.32).
_WRONG_OPTIMIZERS = ["WeightBiasQuantization"]
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


@dataclass(frozen=True, eq=False)
class OnnxRuntimeBackend:
    """A loaded session. `input_shape` is (P, T, C, H, W), `outputs` what the network gives."""

    session: Any
    precision: str
    input_shape: tuple[int, ...]
    outputs: tuple[str, ...] = OUTPUTS
    name: str = "onnxruntime"
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
            found = self.session.run(list(self.outputs), {"study": study})
        except Exception as error:  # the package's exceptions share no base class
            raise run_failed(error, "ONNX Runtime") from error
        return checked_outputs(*found)


def is_available() -> bool:
    """Whether the package of REQUIREMENTS can be found; it is not imported."""
    return importlib.util.find_spec("onnxruntime") is not None


def why_not(precision: str) -> str | None:
    """Why this CPU must not run a model of that precision; None: it may run any."""
    return None


def load_backend(bundle: Bundle, precision: str) -> OnnxRuntimeBackend:
    """Loads the bundle's model of that precision.

    Raises: IntegrityError; ModelIncompatible if it is no valid ONNX or its inputs and outputs are not the contract's;
        EnvironmentFault if onnxruntime cannot be imported.
    """
    model = bundle.read(bundle.models[precision].file)
    try:
        import onnxruntime
    except ImportError as error:
        raise package_missing("onnxruntime", REQUIREMENTS[0], error) from error
    try:
        session = onnxruntime.InferenceSession(
            model, _options(onnxruntime), providers=["CPUExecutionProvider"], disabled_optimizers=_WRONG_OPTIMIZERS
        )
    except Exception as error:  # the package's exceptions share no base class
        raise ModelIncompatible(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the {precision} model: {first_line(error)}",
            "update onnxruntime, or build the bundle again with fp-export build-engine",
            key="model_not_loadable",
        ) from error
    check_interface(_tensors(session.get_inputs()), _tensors(session.get_outputs()), bundle)
    return OnnxRuntimeBackend(session, precision, bundle.input_shape, bundle.outputs)


def _options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _QUIET
    return options


def _tensors(found: Sequence[Any]) -> list[Tensor]:
    return [
        Tensor(tensor.name, _TYPES.get(tensor.type, tensor.type), tuple(_size(size) for size in tensor.shape))
        for tensor in found
    ]


def _size(size: int | str | None) -> int | None:
    return size if isinstance(size, int) else None
