"""Multiply-accumulates of every weighted layer for one study, by shape inference. Nothing is run."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx

__all__ = ["Shapes", "macs_by_output", "macs_of", "shapes_at_batch_one"]

#: Value name -> sizes.
Shapes = Mapping[str, tuple[int, ...]]

#: Initializers up to this many elements may be shapes, which inference must see; larger ones are weights.
_SHAPE_LIKE = 64


def macs_by_output(model: onnx.ModelProto) -> dict[str, int]:
    """First output of each Conv, Gemm, MatMul and GRU -> its multiply-accumulates with a batch of one study.

    A layer whose shapes inference cannot find is left out.
    """
    shapes = shapes_at_batch_one(model)
    counted = ((node.output[0], macs_of(node, shapes)) for node in model.graph.node)
    return {name: macs for name, macs in counted if macs}


def macs_of(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Outputs times the products that each of them sums up; 0 for any other operator and for unknown shapes."""
    if node.op_type not in ("Conv", "Gemm", "MatMul", "GRU"):
        return 0
    data, weight = shapes.get(node.input[0]), shapes.get(node.input[1])
    output = next((shapes[name] for name in node.output if name in shapes), None)
    if data is None or weight is None or output is None:
        return 0
    if node.op_type == "Conv":
        return prod(output) * prod(weight[1:])
    if node.op_type == "GRU":
        return prod(data[:2]) * (prod(weight) + prod(shapes[node.input[2]]))
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return prod(output) * data[0 if transposed else -1]


def shapes_at_batch_one(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Value name -> sizes for one study; values whose sizes inference cannot find are left out."""
    graph = onnx.shape_inference.infer_shapes(_skeleton(model), data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return shapes


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with a batch of 1, without the weights' values and without shapes noted for a symbolic batch."""
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    for value in bare.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    for value in model.graph.output:
        kept = bare.graph.output.add(name=value.name)
        kept.type.tensor_type.elem_type = value.type.tensor_type.elem_type
    for tensor in model.graph.initializer:
        small = prod(tensor.dims) <= _SHAPE_LIKE
        bare.graph.initializer.append(
            tensor if small else onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        )
    return bare
