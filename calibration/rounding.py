"""What a typed graph computes when every FP16 value really is rounded to FP16, on any CPU.

ONNX Runtime's CPU provider computes FP16 operators in FP32 and drops the casts between them: 70000 passes through an
FP16 graph unharmed. Here the graph is rewritten before it runs: every operator computes in FP32, and behind every
FP16 value stands a pair of casts, to FP16 and back, that rounds it (and makes what overflows infinite). Graph
optimisations are off, so that nothing folds the pairs away.

That is FP16 storage with FP32 sums, as TensorRT's convolutions and reductions do by default, but without its fusions,
which round less often. Not rounded is what happens inside one operator. A GRU is one; unroll it to see its steps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from fourphase.calibration.blocks import block_names, with_outputs
from fourphase.calibration.cpu_session import cpu_session
from fourphase.calibration.typed import MOVING

__all__ = ["rounded_model", "rounded_session", "rounding_session"]

Array = NDArray[np.float32]

#: Operators whose result is one of their inputs, up to the sign: it is on the FP16 grid already.
_SELECTING = MOVING | {"Abs", "Clip", "Max", "MaxPool", "Min", "Neg", "ReduceMax", "ReduceMin", "Relu", "Where"}
_FULL, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def rounding_session(
    model: onnx.ModelProto, *, blocks: bool = False, rounds: bool = True
) -> Callable[[Array], dict[str, Array]]:
    """Prepares a typed graph for evaluation.

    Args:
        blocks: also return every block's output, which takes memory for all of them.
        rounds: False leaves every activation in FP32 (weights and int8 codes stay what they are): what a program that
            fuses everything would compute. Real programs lie between the two.

    Returns: studies float32 (B, P, T, C, H, W) -> name -> float32 array; the graph's outputs, then its blocks.
    """
    return rounded_session(ir.serde.deserialize_model(model), blocks=blocks, rounds=rounds)


def rounded_session(
    graph: ir.Model, *, blocks: bool = False, rounds: bool = True
) -> Callable[[Array], dict[str, Array]]:
    """`rounding_session` of a graph that is in memory; the graph is changed in place."""
    (_round_all if rounds else _unround_all)(graph)
    rounded = ir.serde.serialize_model(graph)
    names = [value.name for value in rounded.graph.output]
    if blocks:
        names += block_names(rounded)
        rounded = with_outputs(rounded, block_names(rounded))
    session = cpu_session(rounded.SerializeToString(), optimize=False)
    (source,) = session.get_inputs()
    return lambda studies: dict(zip(names, session.run(names, {source.name: studies}), strict=True))


def rounded_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph whose values are those of the typed graph, rounded where they are FP16; names are kept."""
    graph = ir.serde.deserialize_model(model)
    _round_all(graph)
    return ir.serde.serialize_model(graph)


def _round_all(graph: ir.Model) -> None:
    _fill_weights(graph)
    for node in list(graph.graph):
        for value in node.outputs:
            if value.dtype == _HALF:
                _round(graph.graph, node, value)


def _unround_all(graph: ir.Model) -> None:
    """Every FP16 value in FP32, and nothing rounded."""
    _fill_weights(graph)
    for node in graph.graph:
        for value in node.outputs:
            if value.dtype == _HALF:
                value.type = ir.TensorType(_FULL)
        if node.op_type == "Cast" and node.attributes.get_int("to") == int(_HALF):
            node.attributes["to"] = ir.AttrInt64("to", int(_FULL))


def _fill_weights(graph: ir.Model) -> None:
    """FP16 initializers' values in FP32."""
    for value in graph.graph.initializers.values():
        if value.dtype == _HALF and value.const_value is not None:
            array = value.const_value.numpy().astype(np.float32)
            value.const_value, value.type = ir.tensor(array, name=value.name), ir.TensorType(_FULL)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Makes a value float32 and puts the casts behind it; the rounded value takes its name."""
    if node.op_type in _SELECTING:
        value.type = ir.TensorType(_FULL)
        return
    name, value.name = str(value.name), f"{value.name}.exact"
    back = _cast(value, _FULL, name)
    ir.convenience.replace_all_uses_with(value, back.outputs[0], replace_graph_outputs=True)
    back.replace_input_with(0, value)
    graph.insert_after(node, back)
    if node.op_type != "Cast":
        value.type = ir.TensorType(_FULL)
        half = _cast(value, _HALF, f"{name}.half")
        back.replace_input_with(0, half.outputs[0])
        graph.insert_after(node, half)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"round {name} {dtype.name}")
    output = node.outputs[0]
    output.name, output.type, output.shape = name, ir.TensorType(dtype), value.shape
    return node
