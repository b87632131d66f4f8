"""Answers of TensorRT's engine inspector for tests: the recorded ones and small ones by hand, and a node -> block map.

Where the fixtures `tests/engine/data/inspector_*.json` come from (trimmed; with the names of our nodes and tensors):

- `10_fp16`: TensorRT 10, FP16, dynamic batch: NVIDIA/trt-samples-for-hackathon-cn, cookbook/04-Feature/EngineInspector/
  log-main.py.log of 2026-07-02 (commit 02ed7b10). Kinds, types, sizes and tactics as recorded, but for the second
  pooling, which is left out, so that what follows it is larger.
- `10_int8`: the sentences of TensorRT 10.1 and its separator U+001E: NVIDIA/TensorRT issue 4020 (int8 ResNet, JSON).
  The FP32 convolution's wording is issue 3583's; the last gemm, with its constants among its inputs, is a recorded FP16
  AlexNet of TensorRT 10. The FP16 residual of the third convolution is ours, as a block boundary makes it.
- `10_qdq_fp32`: Q/DQ through Myelin, separator U+001F, one product left in FP32 with a TF32 tactic:
  Eternal-Raiden-Ying/i-vit-srtp, layer_info.json. "Bindings" added: that file lists layers only.
- `11_tf32`: TensorRT 11, FP32 with TF32 left on: the same cookbook, 07-Tool/EngineVisualization/result-engine.gv and
  04-Feature/EngineInspector/log-main.py.log of 2026-09-08 (commit a7d5daee). The layers' keys, kinds, types, sizes and
  tactics are recorded; the form of "I/O Tensors" is that of NVIDIA's migration guide, 10.x to 11.x.
- `11_mixed`: TensorRT 11's structure with types of our own. No recorded FP16 or INT8 answer of TensorRT 11 was found:
  its words for them ("Half", "Int8") are taken from 10.
- `10_names_only`: the default verbosity: NVIDIA/TensorRT issue 4020.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fourphase.engine.audit_record import Audit, read_inspector

__all__ = [
    "BLOCKS", "CONV", "FIXTURES", "HELD", "MIXED", "MIXED_WANTED", "audit_of", "engine_of", "layer", "text_of", "value",
]  # fmt: skip

_DATA = Path(__file__).parents[1] / "engine" / "data"
FIXTURES = ("10_fp16", "10_int8", "10_qdq_fp32", "11_tf32", "11_mixed")
#: ONNX node -> block, as `calibration.blocks.node_blocks` tells it.
BLOCKS = {
    "node_Conv_1961": "stem/NC",
    "node_relu": "stem/NC",
    "node_max_pool2d": "stem/NC",
    "node_Conv_1975": "stage1/NC",
    "node_add": "stage1/NC",
    "node_linear_68": "head",
}
MIXED = {
    **BLOCKS,
    "stage1/NC.to_fp32": "gate1.channel/NC",
    "node_mean": "gate1.channel/NC",
    "node_add_2846/Gemm_1": "gate1.channel/NC",
    "node_add_2846/Gemm_3": "gate1.channel/NC",
    "node_sigmoid": "gate1.channel/NC",
    "gate1.channel/NC.to_fp16": "gate1.spatial/NC",
    "node_mul_354": "gate1.spatial/NC",
}
MIXED_WANTED = {
    "stem/NC": "fp16", "stage1/NC": "int8", "gate1.channel/NC": "fp32", "gate1.spatial/NC": "fp16", "head": "fp32",
}  # fmt: skip


def text_of(name: str) -> str:
    return (_DATA / f"inspector_{name}.json").read_text()


def audit_of(name: str, blocks: dict[str, str] | None = None) -> Audit:
    return read_inspector(text_of(name), BLOCKS if blocks is None else blocks)


def value(precision: str, dims: tuple[int, ...] = (1, 8, 4, 4), name: str = "value") -> dict[str, Any]:
    return {"Name": name, "Dimensions": list(dims), "Format/Datatype": precision}


def layer(kind: str, inputs: str, outputs: str, node: str = "node_Conv_1961", **keys: Any) -> dict[str, Any]:
    """One layer of the 10 dialect: types are NVIDIA's words, several separated by blanks."""
    return {
        "Name": node,
        "LayerType": kind,
        "Inputs": [value(word) for word in inputs.split()],
        "Outputs": [value(word) for word in outputs.split()],
        "Metadata": f"[ONNX Layer: {node}]",
        **keys,
    }


def engine_of(*layers: dict[str, Any]) -> Audit:
    return read_inspector(json.dumps({"Layers": layers, "Bindings": ["x"]}), BLOCKS)


CONV: dict[str, Any] = {"Weights": {"Type": "Half", "Count": 64}}
#: A layer that holds each precision in the stem.
HELD = {
    "fp16": layer("CaskConvolution", "Half", "Half", **CONV),
    "int8": layer("CaskConvolution", "Int8", "Int8", Weights={"Type": "Int8", "Count": 8}),
    "fp32": layer(
        "CaskConvolution", "Float", "Float", TacticName="f32f32_f32f32_f32", Weights={"Type": "Float", "Count": 64}
    ),
}
