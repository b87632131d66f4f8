"""The golden file: a few inputs as bytes and the outputs that every backend must reproduce.

FP32's outputs are PyTorch's. A lowered model has outputs of its own, computed value by value as its types and Q/DQ
nodes say: it is meant to differ from FP32 by its rounding, and a program that runs it is not.

It reads bytes that `bundle` has verified; `selfcheck` compares.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backend import OUTPUTS
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import ModelIncompatible

__all__ = ["GOLDEN", "Golden", "Tolerance", "golden_from_bytes", "study_from_codes"]

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

GOLDEN = "golden.npz"
#: Far above any real golden file: a wrong one is refused before it fills the memory.
_MAX_BYTES = 2 << 30


@dataclass(frozen=True)
class Tolerance:
    """An output passes if |output - golden| <= atol + rtol * |golden|; phase logits have an atol of their own.

    (The phases' logits may be many times larger than those of the whole, and so are their errors.)
    """

    atol: float
    rtol: float
    phase_atol: float


@dataclass(frozen=True, eq=False)
class Golden:
    """A few inputs with the outputs of one precision that every backend must reproduce.

    Attributes:
        codes: windowed values times 255, uint8 (N, P, T, C, H, W); one study at a time becomes float32.
        logits: float32 (N, K).
        phase_logits: float32 (N, P, K); None for a network that has none.
        tolerance: what a backend may differ by.
    """

    codes: Codes
    logits: Floats
    phase_logits: Floats | None
    tolerance: Tolerance
    preprocessing: PreprocessingConfig

    def __len__(self) -> int:
        return len(self.codes)

    def study(self, index: int) -> Floats:
        """Input `index` as the network takes it, float32 (1, P, T, C, H, W)."""
        return study_from_codes(self.codes[index : index + 1], self.preprocessing)


def golden_from_bytes(
    data: bytes,
    input_shape: tuple[int, ...],
    classes: int,
    *,
    tolerance: Tolerance,
    preprocessing: PreprocessingConfig,
    suffix: str = "",
    outputs: Sequence[str] = OUTPUTS,
) -> Golden:
    """Reads a golden .npz with arrays `inputs_u8`, `logits` and, if the network has them, `phase_logits`.

    Args:
        input_shape: (P, T, C, H, W) of one study.
        classes: K.
        tolerance: of these outputs.
        suffix: of the outputs' names, ".int8" for those of the int8 model; "" for FP32's.
        outputs: the network's, `OUTPUTS` or `LOGITS_ALONE`.

    Raises: ModelIncompatible if an array is missing, not of the type and shape that the arguments imply, or of an
        output that the network does not have.
    """
    arrays = _load_arrays(data)
    codes = arrays.get("inputs_u8", np.empty(0, np.uint8))
    count, phases = len(codes) if codes.ndim else 0, input_shape[0]
    shapes = {"logits": (count, classes), "phase_logits": (count, phases, classes)}
    _check_array("inputs_u8", arrays, np.uint8, (count, *input_shape))
    for name, shape in shapes.items():
        if name in outputs:
            _check_array(f"{name}{suffix}", arrays, np.float32, shape)
        elif f"{name}{suffix}" in arrays:
            raise _invalid(f"{name}{suffix} is there, and the manifest says that the network has none")
    return Golden(codes, arrays[f"logits{suffix}"], arrays.get(f"phase_logits{suffix}"), tolerance, preprocessing)


def study_from_codes(codes: Codes, config: PreprocessingConfig) -> Floats:
    """(code / 255 - mean) / std: uint8 (..., C, H, W) of windowed values -> float32 of the same shape.

    Writer and reader of the golden file share this function, so both mean the same float32 input.
    """
    study: Floats = codes.astype(np.float32)
    study /= np.float32(255)
    study -= np.asarray(config.mean, dtype=np.float32)[:, None, None]
    study /= np.asarray(config.std, dtype=np.float32)[:, None, None]
    return study


def _check_array(name: str, arrays: Mapping[str, NDArray[Any]], kind: type[Any], shape: tuple[int, ...]) -> None:
    array = arrays.get(name)
    if array is None or not shape[0] or array.dtype != kind or array.shape != shape:
        raise _invalid(f"{name} is missing or not of the type and shape that the manifest implies")


def _load_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz; no pickle is ever run, and the unpacked size is bounded before unpacking."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MAX_BYTES:
                raise _invalid("it unpacks to more than 2 GiB")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise _invalid("it is not a readable .npz") from error


def _invalid(problem: str) -> ModelIncompatible:
    return ModelIncompatible(
        f"the bundle's golden file is invalid: {problem}",
        "build the bundle again with fp-export build-engine",
        key="golden_invalid",
    )
