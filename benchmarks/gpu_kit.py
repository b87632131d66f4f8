"""The kit that `gpu_check prepare` writes: ONNX models with inputs and FP32 reference outputs, small enough to carry.

Here it is read, every byte held against the manifest's sha256; `gpu_kit_writer` writes it. Neither torch nor onnx is
needed to read it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import IntegrityError, ModelIncompatible
from fourphase.runtime.golden import study_from_codes

__all__ = ["BATCH", "MANIFEST", "MODELS", "SCHEMA", "KitModel", "decoded", "load_kit_model", "read_manifest"]

SCHEMA = "fourphase.gpu-kit/1"
MANIFEST = "manifest.json"
#: The recurrence alone, one pair of CBAM gates alone, and the whole network they are cut from.
MODELS = ("gru", "gates", "network")
#: Studies in a kit, and the most that an engine of it takes at once.
BATCH = 4
#: Features are codes over this: 0 to 4, as after a ReLU.
_FEATURE_SCALE = np.float32(64)

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class KitModel:
    """One model of a kit.

    Attributes:
        onnx: the model's bytes.
        inputs: input name -> float32, BATCH studies on the first axis.
        outputs: output name -> what PyTorch computes in FP32 on a CPU, float32, BATCH studies on the first axis.
        rows: rows of the first axis that make one study (the gates see slices, not studies).
        cost: fields of `limits.Cost` for one study; None where only the whole network has a meaningful one.
    """

    name: str
    onnx: bytes
    inputs: Mapping[str, Floats]
    outputs: Mapping[str, Floats]
    rows: int
    cost: Mapping[str, Any] | None

    @property
    def profile(self) -> tuple[int, int, int]:
        """(min, opt, max) of the first axis: one study to BATCH studies."""
        return (self.rows, self.rows, BATCH * self.rows)

    def studies(self, count: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Inputs and reference outputs of the first `count` studies."""
        rows = count * self.rows
        return (
            {name: value[:rows] for name, value in self.inputs.items()},
            {name: value[:rows] for name, value in self.outputs.items()},
        )


def read_manifest(kit: Path) -> dict[str, Any]:
    """Raises: ModelIncompatible if this is no kit of this version."""
    try:
        manifest: dict[str, Any] = json.loads((kit / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise _no_kit("its manifest.json is missing or unreadable") from error
    if manifest.get("schema") != SCHEMA:
        raise _no_kit(f"its schema is {manifest.get('schema')!r}, not {SCHEMA!r}")
    return manifest


def load_kit_model(kit: Path, name: str) -> KitModel:
    """Reads one of MODELS.

    Raises: ModelIncompatible, IntegrityError.
    """
    entry = read_manifest(kit)["models"][name]
    onnx, data = (_verified(kit / entry[kind]["file"], entry[kind]["sha256"]) for kind in ("onnx", "arrays"))
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        outputs = {output: np.asarray(arrays[f"output{index}"]) for index, output in enumerate(entry["outputs"])}
        inputs = {entry["input"]: decoded(np.asarray(arrays["codes"]), entry["decode"])}
    return KitModel(name, onnx, inputs, outputs, entry["rows_per_study"], entry["cost"])


def decoded(codes: NDArray[np.uint8], kind: str) -> Floats:
    """uint8 -> float32 input of the same shape; `kind` is "study" (windowed values) or "features" (after a ReLU)."""
    if kind == "study":
        return study_from_codes(codes, PreprocessingConfig())
    return codes.astype(np.float32) / _FEATURE_SCALE


def _verified(path: Path, sha256: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _no_kit(f"{path.name} is missing or unreadable") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(f"{path.name} of the kit is not what its manifest says", "copy or prepare the kit again")
    return data


def _no_kit(problem: str) -> ModelIncompatible:
    return ModelIncompatible(f"the kit cannot be used: {problem}", "write it again with prepare", key="kit_invalid")
