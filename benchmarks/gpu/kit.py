"""The kit that `gpu_check prepare` writes: bundles, and ONNX models with inputs and references, small enough to carry.

Here it is read, every byte held against the manifest's sha256; `gpu_kit_writer` writes it. Neither torch nor onnx is
needed to read it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.differences import FP32_RTOL, difference
from fourphase.engine.options import EngineSource
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import IntegrityError, ModelIncompatible
from fourphase.runtime.golden import study_from_codes

__all__ = [
    "BATCH", "BUNDLE", "MANIFEST", "MODELS", "PRECISIONS", "SCHEMA", "SMALL", "KitModel", "decoded", "judged",
    "load_kit_model", "read_manifest", "verified",
]  # fmt: skip

SCHEMA = "fourphase.gpu-kit/2"
MANIFEST = "manifest.json"
#: The bundle of the network in all precisions; and that of a tiny one, for runs by the thousand.
BUNDLE, SMALL = "bundle", "small"
PRECISIONS = ("fp32", "fp16", "int8")
#: Parts first, then the whole network they are cut from: what goes wrong in the latter is then known to lie elsewhere.
MODELS = (
    "gru", "gru-unrolled", "gates", "trunk", "trunk-int8", "tail",
    "network", "network-unrolled", "network-fp16", "network-int8",
)  # fmt: skip
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
        inputs: input name -> float32, a few studies on the first axis.
        outputs: output name -> what it must give for them, float32: PyTorch's FP32 on a CPU, or the literal evaluation
            of a lowered graph.
        rows: rows of the first axis that make one study (the gates see slices, not studies).
        cost: fields of `limits.Cost` for one study; None where only the whole network has a meaningful one.
        allowed: output name -> largest absolute difference; None for FP32_RTOL of the largest value.
        blocks, precisions, exempt: see `EngineSource`.
    """

    name: str
    onnx: bytes
    inputs: Mapping[str, Floats]
    outputs: Mapping[str, Floats]
    rows: int
    cost: Mapping[str, Any] | None
    precision: str = "fp32"
    allowed: Mapping[str, float] | None = None
    blocks: Mapping[str, str] = field(default_factory=dict)
    precisions: Mapping[str, str] = field(default_factory=dict)
    exempt: tuple[str, ...] = ()

    @property
    def source(self) -> EngineSource:
        """What its engine is built from."""
        return EngineSource(
            self.onnx, self.precision, blocks=self.blocks, precisions=self.precisions, exempt=self.exempt
        )

    @property
    def profile(self) -> tuple[int, int, int]:
        """(min, opt, max) of the first axis: 1, one study, BATCH studies."""
        return (1, self.rows, BATCH * self.rows)

    def studies(self, count: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Inputs and reference outputs of the first `count` studies; where there are fewer, they begin again."""
        rows = np.arange(count * self.rows)
        return (
            {name: value[rows % len(value)] for name, value in self.inputs.items()},
            {name: value[rows % len(value)] for name, value in self.outputs.items()},
        )


def judged(
    outputs: Mapping[str, Floats], reference: Mapping[str, Floats], allowed: Mapping[str, float] | None
) -> dict[str, Any]:
    """What `difference` says, with `allowed` (as of a `KitModel`; a number if that is None) and `passed`."""
    found = difference(outputs, reference)
    if allowed is None:
        return {
            **found,
            "allowed": FP32_RTOL,
            "passed": found["relative"] is not None and found["relative"] <= FP32_RTOL,
        }
    # Written so that a NaN fails.
    held = found["relative"] is not None and all(
        bool((np.abs(outputs[name] - wanted) <= allowed[name]).all()) for name, wanted in reference.items()
    )
    return {**found, "allowed": dict(allowed), "passed": held}


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
    onnx, inputs, outputs = (verified(kit, entry[kind]) for kind in ("onnx", "inputs", "outputs"))
    return KitModel(
        name=name,
        onnx=onnx,
        inputs={entry["input"]: decoded(_arrays(inputs)["codes"], entry["decode"])},
        outputs=dict(zip(entry["output_names"], _arrays(outputs).values(), strict=True)),
        rows=entry["rows_per_study"],
        cost=entry["cost"],
        precision=entry["precision"],
        allowed=entry["allowed"],
        blocks=entry["blocks"],
        precisions=entry["precisions"],
        exempt=tuple(entry["exempt"]),
    )


def _arrays(data: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: np.asarray(arrays[name]) for name in arrays.files}


def decoded(codes: NDArray[np.uint8], kind: str) -> Floats:
    """uint8 -> float32 input of the same shape; `kind` is "study" (windowed values) or "features" (after a ReLU)."""
    if kind == "study":
        return study_from_codes(codes, PreprocessingConfig())
    return codes.astype(np.float32) / _FEATURE_SCALE


def verified(kit: Path, record: Mapping[str, Any]) -> bytes:
    """The bytes of a file that a manifest's record ("file", "sha256") speaks of. Raises: as `load_kit_model`."""
    path = kit / record["file"]
    try:
        data: bytes = path.read_bytes()
    except OSError as error:
        raise _no_kit(f"{path.name} is missing or unreadable") from error
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise IntegrityError(f"{path.name} of the kit is not what its manifest says", "copy or prepare the kit again")
    return data


def _no_kit(problem: str) -> ModelIncompatible:
    return ModelIncompatible(f"the kit cannot be used: {problem}", "write it again with prepare", key="kit_invalid")
