"""A small network written as ONNX text with everything that quantization treats differently, and calibration data.

Stem with three input channels, a stage with an identity skip, one with a convolved skip, a gate's small products, an
MLP with both kinds of weight layout. Blocks are marked as the export marks them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from fourphase.calibration.blocks import BLOCK_KEY, BLOCKS_KEY
from fourphase.calibration.calibrate import write_calibration_set
from fourphase.calibration.calibration_set import CalibrationSet
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.pipeline import PreparedStudy

__all__ = ["PHASES", "PREPROCESSING", "SHAPE", "prepared", "quantizable_model", "studies", "with_weights", "write_set"]

Floats = NDArray[np.float32]

PHASES = ("NC", "ART", "PV", "DL")
PREPROCESSING = PreprocessingConfig(size=(2, 8, 8))
#: (P, T, C, H, W)
SHAPE = (4, 2, 3, 8, 8)

_TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
small (float[B, 4, 2, 3, 8, 8] study) => (float[B, 2] logits, float[B, 4, 2] phase_logits)
<int64[4] fold = {-1, 3, 8, 8}, int64[2] hw = {2, 3}, int64[2] unfold = {-1, 128}, int64[3] phases = {-1, 4, 32}>
{
  slices = Reshape(study, fold)
  stem_c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(slices, stem_w)
  stem = Relu(stem_c)
  s1_a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(stem, s1_w1, s1_b1)
  s1_r = Relu(s1_a)
  s1_b = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(s1_r, s1_w2)
  s1_sum = Add(s1_b, stem)
  stage1 = Relu(s1_sum)
  s2_a = Conv<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(stage1, s2_w1)
  s2_r = Relu(s2_a)
  s2_b = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(s2_r, s2_w2, s2_b2)
  s2_skip = Conv<kernel_shape = [1, 1], strides = [2, 2]>(stage1, s2_ws)
  s2_sum = Add(s2_skip, s2_b)
  stage2 = Relu(s2_sum)
  means = ReduceMean<keepdims = 0>(stage2, hw)
  g_a = Gemm<transB = 1>(means, g_w1, g_b1)
  g_r = Relu(g_a)
  g_b = Gemm<transB = 1>(g_r, g_w2, g_b2)
  gate = Sigmoid(g_b)
  mixed = Mul(means, gate)
  features = Reshape(mixed, unfold)
  mlp_a = Gemm<transB = 1>(features, mlp_w1, mlp_b1)
  mlp_r = Relu(mlp_a)
  mlp = MatMul(mlp_r, mlp_w2)
  logits = Gemm(mlp, head_w, head_b)
  per_phase = Reshape(mixed, phases)
  phase_logits = MatMul(per_phase, phase_w)
}
"""
_WEIGHTS = {
    "stem_w": (8, 3, 3, 3),
    "s1_w1": (8, 8, 3, 3),
    "s1_b1": (8,),
    "s1_w2": (8, 8, 3, 3),
    "s2_w1": (16, 8, 3, 3),
    "s2_w2": (16, 16, 3, 3),
    "s2_b2": (16,),
    "s2_ws": (16, 8, 1, 1),
    "g_w1": (2, 16),
    "g_b1": (2,),
    "g_w2": (16, 2),
    "g_b2": (16,),
    "mlp_w1": (32, 128),
    "mlp_b1": (32,),
    "mlp_w2": (32, 8),
    "head_w": (8, 2),
    "head_b": (2,),
    "phase_w": (32, 2),
}
#: How the names of a node's output begin -> its block.
_BLOCKS = {"stem": "stem", "s1": "stage1", "stage1": "stage1", "s2": "stage2", "stage2": "stage2", "g": "gate.channel",
           "gate": "gate.channel", "mlp": "mlp", "logits": "head"}  # fmt: skip


def quantizable_model(seed: int = 0) -> onnx.ModelProto:
    """The network with random weights; the blocks' values are `stem`, `stage1`, `stage2`, `gate` and `mlp`."""
    model = with_weights(onnx.parser.parse_model(_TEXT), _WEIGHTS, seed)
    for node in model.graph.node:
        block = _BLOCKS.get(node.output[0].partition("_")[0], "body")
        node.name = f"node_{node.output[0]}"
        node.metadata_props.append(onnx.StringStringEntryProto(key=BLOCK_KEY, value=block))
    blocks = json.dumps(["stem", "stage1", "stage2", "gate", "mlp"])
    model.metadata_props.append(onnx.StringStringEntryProto(key=BLOCKS_KEY, value=blocks))
    onnx.checker.check_model(model, full_check=True)
    return model


def with_weights(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> onnx.ModelProto:
    """Adds random initializers, each channel of another size, so that per-channel scales matter."""
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        fan_in = max(1, int(np.prod(shape[1:])))
        weight = rng.normal(0, (2 / fan_in) ** 0.5, shape) * rng.uniform(0.1, 1, (shape[0], *[1] * (len(shape) - 1)))
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), name))
    return model


def studies(count: int, seed: int = 0) -> list[Floats]:
    """Inputs that look normalised, float32 (P, T, C, H, W), exact in float16."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(-2, 2.6, SHAPE).astype(np.float16).astype(np.float32) for _ in range(count)]


def prepared(arrays: Iterable[Floats]) -> Iterator[PreparedStudy]:
    """Studies as `prepare_study` would return them, with 58 slices per phase."""
    series: Any = SimpleNamespace(series=SimpleNamespace(slices=range(58)))
    for index, array in enumerate(arrays):
        stand_in = SimpleNamespace(uid=f"1.2.{index}", input=array, phases=dict.fromkeys(PHASES, series))
        yield cast(PreparedStudy, stand_in)


def write_set(target: Path, arrays: Iterable[Floats]) -> CalibrationSet:
    return write_calibration_set(target, prepared(arrays), PREPROCESSING, PHASES)
