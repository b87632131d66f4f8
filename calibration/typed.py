"""FP32 graph + policy -> a graph that computes in FP16 where the policy says so, by types alone.

TensorRT 11 has no precision flags: what is FP16 is FP16 in the ONNX. Every block's nodes get the block's type, one Cast
per value and type stands where a value enters a block of another type, and weights are converted once. Inputs and
outputs of the graph stay float32. QuantizeLinear and DequantizeLinear of an "int8" or "fp16" block get FP16 scales.

It decides nothing (the policy does) and quantizes nothing; whether FP16 suffices is for `range_audit` and `rounding`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from fourphase.calibration.blocks import BLOCK_KEY, Policy, is_foreign, selectors_of
from fourphase.calibration.cast_places import MOVING, cast_before_transposing, hold_casts_before_gru
from fourphase.runtime.errors import ExportRefused

__all__ = ["FP16_EXCEPT", "FP16_EXCEPT_PARTS", "FP16_MAX", "MOVING", "fp16_policy", "type_graph", "typed_model"]

#: The largest finite FP16 value.
FP16_MAX = 65504.0
#: What the default FP16 policy leaves in FP32 until measurements say otherwise: the recurrence, where every step rounds
#: what the last one rounded; and what is too small to gain anything, but decides much (gates, heads, final sums).
FP16_EXCEPT = ("gru", "gate.channel", "head", "phase_head", "body")
#: The same of a foreign network, by the parts of its blocks. NVIDIA's importer warns of layer norms in FP16 ("may cause
#: overflow"; "forcing layernorm layers to run in FP32 precision can help"); a softmax sums exponentials as a norm sums
#: squares; recurrence and last layer are as ours.
FP16_EXCEPT_PARTS = ("*/logits", "*/norm", "*/recurrence", "*/softmax")
#: Operators that only look at sizes: they take any type, and a cast for their sake would copy the value.
_MEASURING = ("Shape", "Size")
_FULL, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_SUFFIX = {_FULL: "fp32", _HALF: "fp16"}
_HALF_TYPE = "tensor(float16)"
#: A scale may be off by this share: half a step at the largest code, 127.
_SCALE_RTOL = 0.5 / 127


def fp16_policy(blocks: Iterable[str]) -> Policy:
    """The default FP16 policy for a graph with these blocks."""
    blocks = tuple(blocks)
    known = {name for block in blocks for name in selectors_of(block)}
    kept = FP16_EXCEPT_PARTS if is_foreign(blocks) else FP16_EXCEPT
    return Policy.of({"*": "fp16", **{name: "fp32" for name in kept if name in known}})


def typed_model(model: onnx.ModelProto, policy: Policy) -> onnx.ModelProto:
    """A copy of an FP32 graph (Q/DQ allowed) with the policy's types.

    Raises: UsageError for a policy naming an unknown block; ExportRefused (25) naming the weight or scale that FP16
        cannot hold, or the operator that has no FP16 form, and for a graph that holds FP16 already.
    """
    graph = ir.serde.deserialize_model(model)
    type_graph(graph, policy)
    return ir.serde.serialize_model(graph)


def type_graph(graph: ir.Model, policy: Policy) -> None:
    """`typed_model` in place. Raises: as it does."""
    if any(value.dtype == _HALF for node in graph.graph for value in node.outputs):
        raise ExportRefused(
            "the graph holds FP16 values already", "give the policy to the FP32 graph", key="already_typed"
        )
    policy.check(sorted({_block_of(node) for node in graph.graph}))
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    if any(value.name and value.dtype is None for node in graph.graph for value in node.outputs):
        common.ShapeInferencePass()(graph)
    typing = _Typing(graph, policy)
    for node in list(graph.graph):
        typing.convert(node)
    typing.restore_outputs()
    hold_casts_before_gru(graph.graph)
    if is_foreign({_block_of(node) for node in graph.graph}):
        cast_before_transposing(graph.graph)
    common.RemoveUnusedNodesPass()(graph)


class _Typing:
    """Walks the graph in order; every value before the current node has its final type."""

    def __init__(self, model: ir.Model, policy: Policy) -> None:
        self.graph, self.policy = model.graph, policy
        self.opset = model.opset_imports.get("", 1)
        self._converted: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def convert(self, node: ir.Node) -> None:
        """Gives a node's float inputs and outputs its type, by casts and converted weights."""
        if node.op_type in _MEASURING:
            return
        wanted = self._type_of(node)
        ports = _ports(node.op_type, node.domain, self.opset)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (_FULL, _HALF):
                dtype = wanted if ports.input(index) else _FULL
                if value.dtype != dtype:
                    node.replace_input_with(index, self._as(value, dtype, node))
        if wanted == _FULL or _is_source(node):
            return
        for index, value in enumerate(node.outputs):
            if value.dtype == _FULL:
                if not ports.output(index):
                    raise _no_half_form(node, self.opset)
                value.type = ir.TensorType(_HALF)
        if node.op_type == "QuantizeLinear" and not ports.input(1):
            raise _no_half_form(node, self.opset)
        if node.op_type == "Cast" and node.attributes.get_int("to") == int(_FULL):
            node.attributes["to"] = ir.AttrInt64("to", int(_HALF))

    def restore_outputs(self) -> None:
        """The graph's outputs are float32 and keep their names."""
        for index, value in enumerate(self.graph.outputs):
            producer = value.producer()
            if value.dtype != _HALF or producer is None:
                continue
            name, value.name = str(value.name), f"{value.name}.fp16"
            cast = self._cast(value, _FULL, _block_of(producer), name)
            self.graph.insert_after(producer, cast)
            self.graph.outputs[index] = cast.outputs[0]

    def _type_of(self, node: ir.Node) -> ir.DataType:
        if node.op_type in MOVING:
            moved = {_FULL, _HALF} & {
                value.dtype for value in node.inputs if value is not None and not _is_weight(value)
            }
            if len(moved) == 1:
                return moved.pop()
        return _FULL if self.policy.precision_of(_block_of(node)) == "fp32" else _HALF

    def _as(self, value: ir.Value, dtype: ir.DataType, node: ir.Node) -> ir.Value:
        """The value in another type: made once, in front of the first node that wants it."""
        key = value, dtype
        if key not in self._converted:
            if _is_weight(value):
                self._converted[key] = self._weight(value, node)
            else:
                cast = self._cast(value, dtype, _block_of(node), f"{value.name}.{_SUFFIX[dtype]}")
                self.graph.insert_before(node, cast)
                self._converted[key] = cast.outputs[0]
        return self._converted[key]

    def _cast(self, value: ir.Value, dtype: ir.DataType, block: str, name: str) -> ir.Node:
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}.to_{_SUFFIX[dtype]}")
        node.metadata_props[BLOCK_KEY] = block
        output = node.outputs[0]
        output.name, output.type, output.shape = name, ir.TensorType(dtype), value.shape
        return node

    def _weight(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """An FP32 initializer in FP16."""
        assert value.const_value is not None
        is_scale = node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.inputs[1] is value
        array = _half(value.const_value.numpy(), f"{'scale' if is_scale else 'weight'} {value.name}", node, is_scale)
        name = f"{value.name}.fp16"
        half = ir.val(name, const_value=ir.tensor(array, name=name))
        self.graph.register_initializer(half)
        return half


@dataclass(frozen=True)
class _Ports:
    """Which inputs and outputs of an operator may be FP16 by ONNX's own definition; the last one may be repeated."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]

    def input(self, index: int) -> bool:
        return self.inputs[min(index, len(self.inputs) - 1)]

    def output(self, index: int) -> bool:
        return self.outputs[min(index, len(self.outputs) - 1)]


@cache
def _ports(op_type: str, domain: str, opset: int) -> _Ports:
    if not onnx.defs.has(op_type, domain):
        return _Ports((False,), (False,))
    schema = onnx.defs.get_schema(op_type, opset, domain)
    names = {entry.type_param_str for entry in schema.type_constraints if _HALF_TYPE in entry.allowed_type_strs}
    inputs, outputs = ([port.type_str in names for port in ports] for ports in (schema.inputs, schema.outputs))
    return _Ports(tuple(inputs), tuple(outputs))


def _half(array: NDArray[Any], what: str, node: ir.Node, is_scale: bool) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if np.any(np.isinf(half) & np.isfinite(array)):
        raise _refused(
            node, f"the {what} reaches {np.abs(array).max():.4g}, FP16 ends at {FP16_MAX:g}", "fp16_overflow"
        )
    if is_scale and np.any(np.abs(half.astype(np.float32) - array) > _SCALE_RTOL * array):
        raise _refused(node, f"the {what} holds {array.min():.3g}, too small for FP16", "fp16_scale_underflow")
    return half


def _is_source(node: ir.Node) -> bool:
    """An operator that makes floats from none (ConstantOfShape): its attributes say FP32. A Cast says its own type."""
    reads = any(value is not None and value.dtype in (_FULL, _HALF) for value in node.inputs)
    return not reads and node.op_type != "Cast"


def _is_weight(value: ir.Value) -> bool:
    return value.const_value is not None and value.producer() is None


def _block_of(node: ir.Node) -> str:
    return node.metadata_props.get(BLOCK_KEY, "")


def _no_half_form(node: ir.Node, opset: int) -> ExportRefused:
    return _refused(node, f"the operator {node.op_type} has no FP16 form in opset {opset}", "fp16_operator")


def _refused(node: ir.Node, reason: str, key: str) -> ExportRefused:
    block = _block_of(node)
    return ExportRefused(f"block {block} cannot be FP16: {reason}", f"keep {block} in fp32 in the policy", key=key)
