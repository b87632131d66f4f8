"""Graph pass: the GRU without what the exporter puts around it.

PyTorch's exporter feeds the GRU an initial state of zeros, expanded to the batch at run time, and folds the directions
into the features through a shape computed at run time. ONNX's default initial state is zero, and every axis but the
batch is static, so both go: what remains is GRU, Transpose and one Reshape with a constant shape.

Numerics do not change. A GRU whose initial state is not constant zero is left as it is.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["make_gru_static"]

#: Operators that only copy or rearrange: zero in means zero out.
_MOVING = {"Expand", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Identity", "Gather"}


def make_gru_static(model: ir.Model) -> tuple[ir.Model, bool]:
    """Returns (model, whether anything changed); the model is changed in place."""
    changed = False
    for node in list(model.graph):
        if node.op_type == "GRU":
            changed |= _drop_zero_state(node)
        elif node.op_type == "Reshape":
            changed |= _make_shape_static(model, node)
    return model, changed


def _drop_zero_state(gru: ir.Node) -> bool:
    state = gru.inputs[5] if len(gru.inputs) > 5 else None
    if state is None or not _is_zero(state):
        return False
    gru.replace_input_with(5, None)
    return True


def _is_zero(value: ir.Value) -> bool:
    while True:
        constant = ir.convenience.get_const_tensor(value)
        if constant is not None:
            return not np.any(constant.numpy())
        producer = value.producer()
        if producer is None or producer.op_type not in _MOVING or producer.inputs[0] is None:
            return False
        value = producer.inputs[0]


def _make_shape_static(model: ir.Model, reshape: ir.Node) -> bool:
    """(T, B, directions, H) -> (T, B, directions * H) by a constant shape: 0 copies an axis, -1 takes the rest."""
    data, shape, output = reshape.inputs[0], reshape.inputs[1], reshape.outputs[0]
    if shape is None or ir.convenience.get_const_tensor(shape) is not None or not _is_gru_output(data):
        return False
    name = f"{output.name}.shape"
    constant = ir.Value(name=name, const_value=ir.tensor(np.array([0, 0, -1], dtype=np.int64), name=name))
    constant.type, constant.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([3])
    model.graph.register_initializer(constant)
    reshape.replace_input_with(1, constant)
    reshape.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
    return True


def _is_gru_output(value: ir.Value | None) -> bool:
    """True for Transpose(Y), Y (T, directions, B, H) being a GRU's states."""
    transpose = value.producer() if value is not None else None
    if transpose is None or transpose.op_type != "Transpose" or transpose.inputs[0] is None:
        return False
    gru = transpose.inputs[0].producer()
    return gru is not None and gru.op_type == "GRU"
