"""Small ONNX graphs whose nodes belong to blocks, written as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fourphase.calibration.blocks import BLOCK_KEY, BLOCKS_KEY

__all__ = ["TWO_BLOCKS", "block_graph", "block_of", "node_making", "two_blocks", "type_of"]

#: A convolution block `stem`, moved about and joined by no block of its own (`body`), and a product in `head`.
TWO_BLOCKS = """
(float[batch, 2, 6, 6] study) => (float[batch, 3] logits)
<int64[2] flat = {-1, 64}>
{
    c = Conv(study, kernel, bias)
    stem = Relu(c)
    moved = Reshape(stem, flat)
    head = Gemm(moved, weight)
    logits = Sigmoid(head)
}
"""


def block_graph(
    text: str, blocks: Mapping[str, str], weights: Mapping[str, NDArray[Any]] | None = None, *, opset: int = 20
) -> onnx.ModelProto:
    """ONNX text (from the inputs on) -> a model with names, blocks and inferred types, as the export writes it.

    Args:
        blocks: first output of a node -> its block; nodes not named belong to "body".
        weights: the initializers that are too large for text.
    """
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> graph {text}')
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
        node.metadata_props.add(key=BLOCK_KEY, value=blocks.get(node.output[0], "body"))
    for name, array in (weights or {}).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    values = {name for node in model.graph.node for name in node.output}
    model.metadata_props.add(key=BLOCKS_KEY, value=json.dumps([name for name in blocks if name in values]))
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def two_blocks(*, scale: float = 1.0) -> onnx.ModelProto:
    """TWO_BLOCKS with random weights, the stem's kernel times `scale`."""
    rng = np.random.default_rng(5)
    weights = {
        "kernel": scale * rng.normal(0, 0.3, (4, 2, 3, 3)).astype(np.float32),
        "bias": rng.normal(0, 0.3, 4).astype(np.float32),
        "weight": rng.normal(0, 0.1, (64, 3)).astype(np.float32),
    }
    return block_graph(TWO_BLOCKS, {"c": "stem", "stem": "stem", "head": "head", "logits": "body"}, weights)


def node_making(model: onnx.ModelProto, value: str) -> onnx.NodeProto:
    """The node that has `value` among its outputs."""
    found: onnx.NodeProto = next(node for node in model.graph.node if value in node.output)
    return found


def block_of(node: onnx.NodeProto) -> str:
    return str(next(entry.value for entry in node.metadata_props if entry.key == BLOCK_KEY))


def type_of(model: onnx.ModelProto, value: str) -> str:
    """The name of a value's element type: "FLOAT", "FLOAT16", "INT8"."""
    graph = model.graph
    types = {entry.name: entry.type.tensor_type.elem_type for entry in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return str(onnx.TensorProto.DataType.Name(types[value]))
