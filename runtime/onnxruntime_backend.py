"""The network on the CPU by ONNX Runtime: the bundle's verified ONNX bytes in, logits out.

It never uses another execution provider, and imports onnxruntime only when a model is loaded.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backends import Outputs
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.errors import (
    EnvironmentFault,
    FourphaseError,
    GPUUnavailable,
    ModelIncompatible,
    PixelDataError,
    SelfCheckFailed,
)

__all__ = ["PRECISIONS", "REQUIREMENTS", "OnnxRuntimeBackend", "is_available", "load_backend"]

Floats = NDArray[np.float32]

REQUIREMENTS = ("onnxruntime>=1.20",)
#: Best first: the CPU provider computes FP16 in FP32 and is slower in INT8 than in FP32.
PRECISIONS = ("fp32", "fp16", "int8")
#: Messages of severity below 4 (fatal) would repeat on stderr what the exception says.
_QUIET = 4


@dataclass(frozen=True, eq=False)
class OnnxRuntimeBackend:
    """A loaded session. `input_shape` is (P, T, C, H, W)."""

    session: Any
    precision: str
    input_shape: tuple[int, ...]
    name: str = "onnxruntime"

    def infer(self, study: Floats) -> Outputs:
        """Runs B studies, float32 (B, P, T, C, H, W).

        Raises: ModelIncompatible for another type or shape, PixelDataError for a non-finite input, SelfCheckFailed
            for a non-finite output, GPUUnavailable (code 22, out of memory) if memory does not suffice.
        """
        self._check_input(study)
        try:
            logits, phase_logits = self.session.run(["logits", "phase_logits"], {"study": study})
        except Exception as error:  # the package's exceptions share no base class
            raise _run_failed(error) from error
        # A copy, and float32 also where the graph's outputs are FP16.
        outputs = Outputs(np.array(logits, dtype=np.float32), np.array(phase_logits, dtype=np.float32))
        if not (np.isfinite(outputs.logits).all() and np.isfinite(outputs.phase_logits).all()):
            raise SelfCheckFailed(
                "the network's output is not finite",
                "do not use this bundle; build it again and compare it with fp-export verify",
                key="output_not_finite",
            )
        return outputs

    def _check_input(self, study: Floats) -> None:
        if study.dtype != np.float32 or study.ndim != 6 or study.shape[1:] != self.input_shape or not len(study):
            raise ModelIncompatible(
                f"the model takes float32 (studies, {_shape(self.input_shape)}),"
                f" not {study.dtype} ({_shape(study.shape)})",
                "prepare the study with the preprocessing of this bundle",
                key="input_shape",
            )
        if not np.isfinite(study).all():
            raise PixelDataError(
                "the prepared study holds values that are not finite",
                "export the study again from the archive; its pixel values or rescale tags are damaged",
                key="input_not_finite",
            )


def is_available() -> bool:
    """Whether the package of REQUIREMENTS can be found; it is not imported."""
    return importlib.util.find_spec("onnxruntime") is not None


def load_backend(bundle: Bundle, precision: str) -> OnnxRuntimeBackend:
    """Loads the bundle's model of that precision.

    Raises: IntegrityError; ModelIncompatible if it is no valid ONNX or its inputs and outputs are not the contract's;
        EnvironmentFault if onnxruntime cannot be imported.
    """
    model = bundle.read(bundle.models[precision].file)
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentFault(
            "onnxruntime cannot be imported",
            f"pip install --force-reinstall '{REQUIREMENTS[0]}'",
            key="package_missing",
        ) from error
    try:
        session = onnxruntime.InferenceSession(model, _options(onnxruntime), providers=["CPUExecutionProvider"])
    except Exception as error:  # the package's exceptions share no base class
        raise ModelIncompatible(
            f"ONNX Runtime {onnxruntime.__version__} cannot load the {precision} model: {_first_line(error)}",
            "update onnxruntime, or build the bundle again with fp-export build-engine",
            key="model_not_loadable",
        ) from error
    _check_interface(session, bundle)
    return OnnxRuntimeBackend(session, precision, bundle.input_shape)


def _options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _QUIET
    return options


def _check_interface(session: Any, bundle: Bundle) -> None:
    """Names, element types and every static size against the manifest; the batch must be dynamic."""
    phases, classes = len(bundle.phases), len(bundle.classes)
    expected_inputs = {"study": bundle.input_shape}
    expected_outputs = {"logits": (classes,), "phase_logits": (phases, classes)}
    _check_tensors("inputs", session.get_inputs(), expected_inputs, ("tensor(float)",))
    _check_tensors("outputs", session.get_outputs(), expected_outputs, ("tensor(float)", "tensor(float16)"))


def _check_tensors(
    kind: str, found: Sequence[Any], expected: Mapping[str, tuple[int, ...]], types: tuple[str, ...]
) -> None:
    if sorted(tensor.name for tensor in found) != sorted(expected):
        raise _interface_error(
            f"the model's {kind} are {', '.join(tensor.name for tensor in found)}, not {', '.join(expected)}"
        )
    for tensor in found:
        batch, *sizes = tensor.shape or [0]
        sizes_fit = len(sizes) == len(expected[tensor.name]) and all(
            size == wanted for size, wanted in zip(sizes, expected[tensor.name], strict=True) if isinstance(size, int)
        )
        if tensor.type not in types or isinstance(batch, int) or not sizes_fit:
            raise _interface_error(
                f"the model's {tensor.name} is {tensor.type} ({_shape(tensor.shape)}),"
                f" the manifest implies {types[0]} (batch, {_shape(expected[tensor.name])})"
            )


def _interface_error(cause: str) -> ModelIncompatible:
    return ModelIncompatible(cause, "build the bundle again with fp-export build-engine", key="model_interface")


def _run_failed(error: Exception) -> FourphaseError:
    text = str(error).lower()
    if isinstance(error, MemoryError) or "alloc" in text:
        return GPUUnavailable(
            "memory does not suffice to run the network",
            "close other programs, or use a machine with more memory",
            key="out_of_memory",
        )
    return ModelIncompatible(
        f"ONNX Runtime could not run the network: {_first_line(error)}",
        "update onnxruntime, or build the bundle again with fp-export build-engine",
        key="model_not_runnable",
    )


def _shape(sizes: Sequence[object]) -> str:
    return ", ".join(map(str, sizes))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
