"""Small ONNX graphs with the shapes of the network's parts, for NVIDIA's parser and builder."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["conv_trunk", "gate", "gru", "refused"]

_OPSET = 19


def _weights(seed: int, **shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(seed)
    return [
        numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name) for name, shape in shapes.items()
    ]


def _constant(name: str, value: NDArray[np.int64]) -> onnx.TensorProto:
    return numpy_helper.from_array(value, name)


def _model(
    nodes: list[onnx.NodeProto],
    input_shape: list[int | str],
    output_shape: list[int | str],
    initializers: list[onnx.TensorProto],
    *domains: str,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
        initializers,
    )
    opsets = [helper.make_opsetid("", _OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    if not domains:
        onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def gru(hidden: int = 8, features: int = 16, steps: int = 6) -> bytes:
    """x (B, T, F) -> last state (B, H): the network's recurrence, batch dynamic."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["time_first"], perm=[1, 0, 2]),
        helper.make_node(
            "GRU",
            ["time_first", "w", "r", "b"],
            ["", "state"],
            name="spm.gru",
            hidden_size=hidden,
            linear_before_reset=1,
        ),
        helper.make_node("Squeeze", ["state", "direction"], ["y"]),
    ]
    weights = _weights(1, w=(1, 3 * hidden, features), r=(1, 3 * hidden, hidden), b=(1, 6 * hidden))
    return _model(nodes, ["B", steps, features], ["B", hidden], [*weights, _constant("direction", np.array([0]))])


def gate(channels: int = 16, size: int = 8) -> bytes:
    """x (B, C, H, W) -> x * (channel gate + spatial gate), pooled by Reduce layers, 7x7 convolution (CBAM)."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "hw"], ["mean"], keepdims=1),
        helper.make_node("ReduceMax", ["x", "hw"], ["max"], keepdims=1),
        helper.make_node("Conv", ["mean", "down"], ["mean_down"]),
        helper.make_node("Conv", ["max", "down"], ["max_down"]),
        helper.make_node("Relu", ["mean_down"], ["mean_relu"]),
        helper.make_node("Relu", ["max_down"], ["max_relu"]),
        helper.make_node("Conv", ["mean_relu", "up"], ["mean_up"]),
        helper.make_node("Conv", ["max_relu", "up"], ["max_up"]),
        helper.make_node("Add", ["mean_up", "max_up"], ["both"]),
        helper.make_node("Sigmoid", ["both"], ["channel_gate"]),
        helper.make_node("Mul", ["x", "channel_gate"], ["refined"]),
        helper.make_node("ReduceMax", ["refined", "c"], ["c_max"], keepdims=1),
        helper.make_node("ReduceMean", ["refined", "c"], ["c_mean"], keepdims=1),
        helper.make_node("Concat", ["c_max", "c_mean"], ["planes"], axis=1),
        helper.make_node("Conv", ["planes", "seven"], ["spatial"], pads=[3, 3, 3, 3]),
        helper.make_node("Sigmoid", ["spatial"], ["spatial_gate"]),
        helper.make_node("Add", ["channel_gate", "spatial_gate"], ["gates"]),
        helper.make_node("Mul", ["x", "gates"], ["y"]),
    ]
    narrow = channels // 4
    weights = _weights(2, down=(narrow, channels, 1, 1), up=(channels, narrow, 1, 1), seven=(1, 2, 7, 7))
    axes = [_constant("hw", np.array([2, 3])), _constant("c", np.array([1]))]
    shape: list[int | str] = ["B", channels, size, size]
    return _model(nodes, shape, shape, [*weights, *axes])


def conv_trunk(size: int = 32, width: int = 8) -> bytes:
    """x (B, T, C, H, W) -> (B, T, width): slices folded into the batch, stem, one residual block, global mean."""
    nodes = [
        helper.make_node("Reshape", ["x", "fold"], ["slices"]),
        helper.make_node("Conv", ["slices", "stem"], ["c0"], strides=[2, 2], pads=[3, 3, 3, 3]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("MaxPool", ["r0"], ["p0"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["p0", "first"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "second"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "p0"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["r2"]),
        helper.make_node("ReduceMean", ["r2", "hw"], ["pooled"], keepdims=0),
        helper.make_node("Reshape", ["pooled", "unfold"], ["y"]),
    ]
    weights = _weights(3, stem=(width, 3, 7, 7), first=(width, width, 3, 3), second=(width, width, 3, 3))
    constants = [
        _constant("fold", np.array([-1, 3, size, size])),
        _constant("unfold", np.array([-1, 4, width])),
        _constant("hw", np.array([2, 3])),
    ]
    return _model(nodes, ["B", 4, 3, size, size], ["B", 4, width], [*weights, *constants])


def refused(node: str) -> bytes:
    """A graph with one operator that no parser knows, in a node of the given name."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="before"),
        helper.make_node("Nonsense", ["h"], ["y"], name=node, domain="nobody"),
    ]
    return _model(nodes, ["B", 4], ["B", 4], [], "nobody")
