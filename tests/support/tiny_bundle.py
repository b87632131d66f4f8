"""A model with the contract's inputs and outputs that runs in microseconds, and a bundle around it.

The golden outputs come from onnx's reference evaluator, not from the backends under test.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import parser
from onnx.reference import ReferenceEvaluator

from fourphase.engine.bundle import BundleContents, GoldenFile, GoldenOutputs, OnnxModel, write_bundle
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.golden import Tolerance, study_from_codes

__all__ = [
    "PREPROCESSING", "SHAPE", "TINY_MODEL", "reference_outputs", "tiny_contents", "tiny_golden",
    "tiny_model", "write_tiny",
]  # fmt: skip

Floats = NDArray[np.float32]

PHASES = ("NC", "ART", "PV", "DL")
PREPROCESSING = PreprocessingConfig(size=(2, 4, 5))
#: (P, T, C, H, W)
SHAPE = (4, 2, 3, 4, 5)

#: Mean over slices and pixels, a linear head per phase, their mean as the study's logits.
TINY_MODEL = """
<ir_version: 9, opset_import: ["" : 19]>
tiny (float[B, 4, 2, 3, 4, 5] study) => (float[B, 2] logits, float[B, 4, 2] phase_logits)
<float[3, 2] weight = {0.5, -1.5, 2.0, 0.25, -0.75, 1.0}, float[2] bias = {0.1, -0.2},
 int64[3] inner = {2, 4, 5}, int64[1] phase = {1}>
{
  pooled = ReduceMean<keepdims = 0>(study, inner)
  scores = MatMul(pooled, weight)
  phase_logits = Add(scores, bias)
  logits = ReduceMean<keepdims = 0>(phase_logits, phase)
}
"""


def tiny_model(text: str = TINY_MODEL) -> bytes:
    model = parser.parse_model(text)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def reference_outputs(model: bytes, study: Floats) -> tuple[Floats, Floats]:
    """(logits, phase_logits) by onnx's reference evaluator."""
    logits, phase_logits = ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"study": study})
    return np.asarray(logits, np.float32), np.asarray(phase_logits, np.float32)


def tiny_contents(model: bytes | None = None, *, inputs: int = 2) -> BundleContents:
    """Contents with `inputs` golden inputs; the golden outputs are always those of the unaltered tiny model."""
    codes = np.random.default_rng(7).integers(0, 256, (inputs, *SHAPE), dtype=np.uint8)
    logits, phase_logits = reference_outputs(tiny_model(), study_from_codes(codes, PREPROCESSING))
    return BundleContents(
        classes=("HCC", "ICC"),
        phases=PHASES,
        network={"width": 8},
        preprocessing=PREPROCESSING,
        models={"fp32": OnnxModel(model or tiny_model(), {"stem": "fp32", "head": "fp32"})},
        golden=GoldenFile(codes, {"fp32": GoldenOutputs(logits, phase_logits, Tolerance(1e-5, 1e-4, 1e-5))}),
        parity={"max_abs": 1e-6},
        report={"note": "tiny"},
        tools={"onnx": "1.0"},
    )


def tiny_golden(**changes: object) -> GoldenFile:
    """The golden file of `tiny_contents` with changed FP32 outputs or tolerances."""
    golden = tiny_contents().golden
    return GoldenFile(golden.codes, {"fp32": replace(golden.outputs["fp32"], **changes)})  # type: ignore[arg-type]


def write_tiny(target: Path, model: bytes | None = None, **changes: object) -> Bundle:
    """A bundle with these changes; a model without golden outputs of its own gets the FP32 ones."""
    contents = replace(tiny_contents(model), **changes)  # type: ignore[arg-type]
    outputs = dict.fromkeys(contents.models, contents.golden.outputs["fp32"]) | dict(contents.golden.outputs)
    return write_bundle(target, replace(contents, golden=GoldenFile(contents.golden.codes, outputs)))
