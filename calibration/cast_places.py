"""Where a Cast may stand in a typed graph: two places where a program that runs it goes wrong, and what stands there.

Both rewrites are exact. Which values are cast, and to what, is for `typed`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["MOVING", "cast_before_transposing", "hold_casts_before_gru"]

#: Operators that only move values. They have no precision of their own and pass their input's type on.
MOVING = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
     "Unsqueeze"}
)  # fmt: skip
_FULL = ir.DataType.FLOAT


def hold_casts_before_gru(graph: ir.Graph) -> None:
    """Puts an exact identity between a Cast and the GRU operator that it feeds.

    TensorRT for RTX 1.7 moves such a Cast into the loop that it imports a GRU as, past the slice of one step, and then
    rejects its own graph: "Mismatched number of elements in reshape op: ... input tensor ... has shape [64, B, 512] and
    specified output shape [1, B, 512]". A product with a vector of ones is exact for every value, NaN included, and
    stays where it is; a scalar 1, Identity and Concat are folded away, and a Transpose does not stop the Cast. Those
    that read the same value share one.
    """
    held: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        x = node.inputs[0] if node.op_type == "GRU" else None
        if x is None or x.dtype is None or x.shape is None or not _comes_from_cast(x):
            continue
        if x not in held:
            held[x] = _product_with_ones(graph, x, x.dtype, node)
        node.replace_input_with(0, held[x])


def _product_with_ones(graph: ir.Graph, x: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
    """x times a vector of ones, in front of its first reader."""
    name = f"{x.name}.held"
    ones = ir.val(f"{name}.ones", const_value=ir.tensor(np.ones(_width(x), dtype.numpy()), name=f"{name}.ones"))
    graph.register_initializer(ones)
    barrier = ir.node("Mul", [x, ones], name=name, metadata_props=dict(reader.metadata_props))
    output = barrier.outputs[0]
    output.name, output.type, output.shape = f"{name}.output", x.type, x.shape
    graph.insert_before(reader, barrier)
    return output


def cast_before_transposing(graph: ir.Graph) -> None:
    """Transpose, Cast to FP32, MatMul becomes Cast, Transpose, MatMul: the same values.

    ONNX Runtime 1.32 ends with a segmentation fault where it fuses the former behind a convolution that it has moved to
    its blocked layout (an unrolled GRU over STIC's phases in FP16). Our own graphs have no such convolution before it.
    """
    for node in list(graph):
        cast = _maker(node) if node.op_type == "MatMul" else None
        transpose = _maker(cast) if cast is not None and _is_cast_up(cast) else None
        if cast is None or transpose is None or transpose.op_type != "Transpose" or transpose.inputs[0] is None:
            continue
        before, moved, converted = transpose.inputs[0], transpose.outputs[0], cast.outputs[0]
        if len(moved.uses()) != 1:
            continue
        for reader, index in list(converted.uses()):
            reader.replace_input_with(index, moved)
        graph.remove(cast)
        graph.insert_before(transpose, cast)
        cast.replace_input_with(0, before)
        transpose.replace_input_with(0, converted)
        converted.shape, moved.type = before.shape, ir.TensorType(_FULL)


def _maker(node: ir.Node) -> ir.Node | None:
    """What makes the node's first input."""
    return node.inputs[0].producer() if node.inputs[0] is not None else None


def _is_cast_up(node: ir.Node) -> bool:
    return node.op_type == "Cast" and node.attributes.get_int("to") == int(_FULL)


def _comes_from_cast(value: ir.Value) -> bool:
    producer = value.producer()
    while producer is not None and producer.op_type in MOVING and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type == "Cast"


def _width(value: ir.Value) -> int:
    assert value.shape is not None
    width = value.shape[-1]
    return width if isinstance(width, int) else 1
