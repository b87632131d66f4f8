"""What every backend checks, in the same words: the loaded model, its input, its output, and why a run failed.

It loads and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backend import Outputs
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.errors import (
    EnvironmentFault,
    FourphaseError,
    GPUUnavailable,
    ModelIncompatible,
    PixelDataError,
    SelfCheckFailed,
)

__all__ = ["Tensor", "check_input", "check_interface", "checked_outputs", "first_line", "package_missing", "run_failed"]

Floats = NDArray[np.float32]


def package_missing(package: str, requirement: str, error: ImportError) -> EnvironmentFault:
    """The error for a backend's package that cannot be imported.

    Raises: KeyboardInterrupt or SystemExit if that is what ended the import: a native module may wrap a signal that
        arrives while it loads in an ImportError.
    """
    cause = error.__cause__ or error.__context__
    if isinstance(cause, KeyboardInterrupt | SystemExit):
        raise cause
    return EnvironmentFault(
        f"{package} cannot be imported", f"pip install --force-reinstall '{requirement}'", key="package_missing"
    )


def check_input(study: Floats, input_shape: tuple[int, ...]) -> None:
    """Raises: ModelIncompatible unless `study` is float32 (B, *input_shape); PixelDataError if it is not finite."""
    if study.dtype != np.float32 or study.ndim != 6 or study.shape[1:] != input_shape or not len(study):
        raise ModelIncompatible(
            f"the model takes float32 (studies, {_sizes_text(input_shape)}),"
            f" not {study.dtype} ({_sizes_text(study.shape)})",
            "prepare the study with the preprocessing of this bundle",
            key="input_shape",
        )
    if not np.isfinite(study).all():
        raise PixelDataError(
            "the prepared study holds values that are not finite",
            "export the study again from the archive; its pixel values or rescale tags are damaged",
            key="input_not_finite",
        )


def checked_outputs(logits: NDArray[np.floating], phase_logits: NDArray[np.floating] | None = None) -> Outputs:
    """Copies as float32, also where the graph's outputs are FP16. Raises: SelfCheckFailed if one is not finite."""
    phases = None if phase_logits is None else np.array(phase_logits, dtype=np.float32)
    outputs = Outputs(np.array(logits, dtype=np.float32), phases)
    if not (np.isfinite(outputs.logits).all() and (phases is None or np.isfinite(phases).all())):
        raise SelfCheckFailed(
            "the network's output is not finite",
            "do not use this bundle; build it again and compare it with fp-export verify",
            key="output_not_finite",
        )
    return outputs


@dataclass(frozen=True)
class Tensor:
    """An input or output of a loaded model; a size of None is dynamic."""

    name: str
    type: str
    shape: tuple[int | None, ...]


def check_interface(inputs: Sequence[Tensor], outputs: Sequence[Tensor], bundle: Bundle) -> None:
    """Names, element types and every static size against the manifest; the batch must be dynamic.

    Raises: ModelIncompatible.
    """
    phases, classes = len(bundle.phases), len(bundle.classes)
    _check_tensors("inputs", inputs, {"study": bundle.input_shape}, ("float32",))
    shapes = {"logits": (classes,), "phase_logits": (phases, classes)}
    expected = {name: shapes[name] for name in bundle.outputs}
    _check_tensors("outputs", outputs, expected, ("float32", "float16"))


def _check_tensors(
    kind: str, found: Sequence[Tensor], expected: Mapping[str, tuple[int, ...]], types: tuple[str, ...]
) -> None:
    if sorted(tensor.name for tensor in found) != sorted(expected):
        raise _interface_error(
            f"the model's {kind} are {', '.join(tensor.name for tensor in found)}, not {', '.join(expected)}"
        )
    for tensor in found:
        batch, *sizes = tensor.shape or (0,)
        wanted = expected[tensor.name]
        fits = len(sizes) == len(wanted) and all(a in (None, b) for a, b in zip(sizes, wanted, strict=True))
        if tensor.type not in types or batch is not None or not fits:
            raise _interface_error(
                f"the model's {tensor.name} is {tensor.type} ({_sizes_text(tensor.shape)}),"
                f" the manifest implies {types[0]} (batch, {_sizes_text(wanted)})"
            )


def _interface_error(cause: str) -> ModelIncompatible:
    return ModelIncompatible(cause, "build the bundle again with fp-export build-engine", key="model_interface")


def run_failed(error: Exception, program: str) -> FourphaseError:
    """What an exception of the package behind `program` means for the user."""
    if isinstance(error, MemoryError) or "alloc" in str(error).lower():
        return GPUUnavailable(
            "memory does not suffice to run the network",
            "close other programs, or use a machine with more memory",
            key="out_of_memory",
        )
    return ModelIncompatible(
        f"{program} could not run the network: {first_line(error)}",
        f"update {program.lower().replace(' ', '')}, or build the bundle again with fp-export build-engine",
        key="model_not_runnable",
    )


def _sizes_text(sizes: Sequence[int | None]) -> str:
    return ", ".join("any" if size is None else str(size) for size in sizes)


def first_line(error: BaseException) -> str:
    """What an exception says in its first line; its kind if it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
