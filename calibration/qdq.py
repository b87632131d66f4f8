"""Graph pass: INT8 as QuantizeLinear/DequantizeLinear pairs, in the one form that NVIDIA's parser accepts.

Symmetric (zero point 0), activations per tensor, weights per output channel and stored as int8, biases left alone, all
scales constant. What is quantized, within the blocks whose policy is int8:

- Conv, Gemm and MatMul with a constant weight, where it pays (`_pays` says when);
- residual adds: both inputs of an Add that takes such a layer's output and another activation of equal shape.

A value has one pair however many readers it feeds, readers outside read the value itself, and no value is renamed: the
blocks' outputs keep their names. Scales are FP32 here; typing the rest of the graph is another pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from fourphase.calibration.blocks import BLOCK_KEY, Policy, is_foreign, node_blocks, selectors_of
from fourphase.calibration.int8 import quantize, weight_scales
from fourphase.calibration.macs import macs_by_output
from fourphase.calibration.scales import Scales
from fourphase.calibration.typed import fp16_policy
from fourphase.runtime.errors import ModelIncompatible

__all__ = [
    "INT8_BLOCKS",
    "default_int8_policy",
    "insert_qdq",
    "int8_policy",
    "quantizable_blocks",
    "quantizable_values",
    "quantized_model",
    "unquantized_nodes",
]

#: What the default INT8 policy quantizes on top of the FP16 policy: the four stages, which hold 93 % of a full-size
#: network's multiply-accumulates. The stem (6 %) has three input channels, see `_pays`; conv1d (0.3 %) decides much and
#: saves little; gates, GRU and heads are not even FP16 until measured (`typed.FP16_EXCEPT`).
INT8_BLOCKS = ("stage",)

#: What of a foreign network stays FP16: the layers that read the study, as our stem.
_INT8_EXCEPT_PARTS = ("*/input",)

#: Older opsets have no FP16 scales.
_OPSET = 19
_WEIGHTED = ("Conv", "Gemm", "MatMul")
#: INT8 kernels read channels in fours or more: with fewer, most of each read is padding.
_FEWEST_CHANNELS = 4
#: Of the study's multiply-accumulates. Every layer of the stages and of conv1d has more than 2e-4, whatever the width;
#: the gates' products on pooled vectors and the heads have less than 1e-5, and would gain less than their Q/DQ cost.
_SMALLEST_SHARE = 1e-4


@dataclass(frozen=True, eq=False)
class _Plan:
    """The nodes that will read quantized values: weighted layers and residual adds."""

    weighted: tuple[ir.Node, ...]
    adds: tuple[ir.Node, ...]
    #: Both, in the order of the graph.
    readers: tuple[ir.Node, ...]

    def activations(self) -> Iterator[tuple[ir.Node, int, ir.Value]]:
        """(node, input index, value) of all that is quantized but the weights, in the order of the graph."""
        for node in self.readers:
            yield from ((node, index, _input(node, index)) for index in ((0, 1) if node in self.adds else (0,)))


def int8_policy(blocks: Iterable[str], paying: Collection[str] | None = None) -> Policy:
    """The default INT8 policy for a graph with these blocks.

    Args:
        paying: of a foreign network, the blocks in which INT8 would change anything (`quantizable_blocks`), so that the
            policy names no other; None: all that are not FP32 or the input's. Both quantize the same layers; a residual
            add that lies in a block without such a layer only None quantizes.
    """
    blocks = tuple(blocks)
    halves = fp16_policy(blocks)
    if not is_foreign(blocks):
        return Policy.of({**dict(halves.rules), **dict.fromkeys(INT8_BLOCKS, "int8")})
    known = {name for block in blocks for name in selectors_of(block)}
    kept = {name: "fp16" for name in _INT8_EXCEPT_PARTS if name in known}
    if paying is None:
        return Policy.of({**dict(halves.rules), "*": "int8", **kept})
    kept = {**dict(halves.rules), **kept}
    lowered = {name: "int8" for name in paying if not any(part in kept for part in selectors_of(name)[:-1])}
    return Policy.of({**kept, **lowered})


def default_int8_policy(model: onnx.ModelProto) -> Policy:
    """`int8_policy` of an FP32 graph, as a build takes it: of a foreign one, it names only blocks that it changes."""
    blocks = tuple(dict.fromkeys(node_blocks(model).values()))
    return int8_policy(blocks, quantizable_blocks(model) if is_foreign(blocks) else None)


def quantizable_values(model: onnx.ModelProto, policy: Policy | None = None) -> tuple[str, ...]:
    """The activations whose scales `policy` needs, in the order of the graph; None: those any policy may need."""
    policy = policy or Policy.of({"*": "int8"})
    plan = _plan(ir.serde.deserialize_model(model), policy, macs_by_output(model))
    return tuple(dict.fromkeys(str(value.name) for _, _, value in plan.activations()))


def quantizable_blocks(model: onnx.ModelProto) -> set[str]:
    """The blocks in which INT8 would change anything: a layer of theirs pays."""
    plan = _plan(ir.serde.deserialize_model(model), Policy.of({"*": "int8"}), macs_by_output(model))
    return {_block(node) for node in plan.weighted}


def quantized_model(model: onnx.ModelProto, policy: Policy, scales: Scales) -> onnx.ModelProto:
    """A copy of the FP32 graph with the int8 blocks of `policy` quantized.

    Raises: UsageError (2) for a policy naming an unknown block; ModelIncompatible (20) if the opset is below 19 or a
        value has no scale (the scales are another model's).
    """
    policy.check(sorted(set(node_blocks(model).values())))
    result, _ = insert_qdq(ir.serde.deserialize_model(model), policy, scales.values, macs_by_output(model))
    return ir.serde.serialize_model(result)


def insert_qdq(
    model: ir.Model, policy: Policy, scales: Mapping[str, float], macs: Mapping[str, int]
) -> tuple[ir.Model, bool]:
    """Returns (model, whether anything changed); the model is changed in place.

    Args:
        scales: value name -> the step of its codes.
        macs: first output of a layer -> its multiply-accumulates, see `macs`.

    Raises: as `quantized_model`.
    """
    plan = _plan(model, policy, macs)
    if not plan.weighted:
        return model, False
    _require_opset(model)
    quantizer = _Quantizer(model.graph, scales)
    for node, index, value in plan.activations():
        node.replace_input_with(index, quantizer.activation(value, node))
    for node in plan.weighted:
        node.replace_input_with(1, quantizer.weight(node))
    return model, True


def unquantized_nodes(model: onnx.ModelProto, policy: Policy) -> tuple[str, ...]:
    """The weighted nodes of int8 blocks whose weight is no int8 in the lowered graph: quantizing them does not pay."""
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    blocks = node_blocks(model)
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in _WEIGHTED
        and policy.precision_of(blocks.get(node.name, "")) == "int8"
        and made.get(node.input[1]) != "DequantizeLinear"
    )


def _plan(model: ir.Model, policy: Policy, macs: Mapping[str, int]) -> _Plan:
    smallest = _SMALLEST_SHARE * sum(macs.values())
    lowered = [node for node in model.graph if policy.precision_of(_block(node)) == "int8"]
    weighted = tuple(
        node
        for node in lowered
        if node.op_type in _WEIGHTED and _pays(node, macs.get(_first_output(node), 0), smallest)
    )
    adds = tuple(node for node in lowered if _is_residual(node, weighted))
    return _Plan(weighted, adds, tuple(node for node in lowered if node in weighted or node in adds))


def _pays(node: ir.Node, macs: int, smallest: float) -> bool:
    """Whether a weighted layer is worth quantizing: constant weight, used once, enough channels and enough work.

    A weight that several nodes use is the recurrence of an unrolled GRU, where errors feed back over all steps (or a
    gate's MLP, far too small).
    """
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.dtype != ir.DataType.FLOAT or len(weight.uses()) > 1:
        return False
    sizes = weight.shape.numpy() if weight.shape is not None else ()
    return len(sizes) >= 2 and min(sizes[:2]) >= _FEWEST_CHANNELS and macs >= smallest


def _is_residual(node: ir.Node, weighted: tuple[ir.Node, ...]) -> bool:
    """True for an Add of a quantized layer's output and another activation."""
    if node.op_type != "Add":
        return False
    values = [_input(node, 0), _input(node, 1)]
    constant = any(value.is_initializer() or value.const_value is not None for value in values)
    return not constant and any(value.producer() in weighted for value in values)


class _Quantizer:
    """Makes the pairs; one per value, so that several readers share it."""

    def __init__(self, graph: ir.Graph, scales: Mapping[str, float]) -> None:
        self.graph, self.scales = graph, scales
        self.dequantized: dict[ir.Value, ir.Value] = {}

    def activation(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        """The value after quantizing and dequantizing; the pair stands before its first reader."""
        if value not in self.dequantized:
            scale = np.array(self._scale_of(value), dtype=np.float32)
            constants = self._constants(str(value.name), scale)
            codes = _node("QuantizeLinear", [value, *constants], f"{value.name}.int8", ir.DataType.INT8, reader)
            back = _node("DequantizeLinear", [codes.outputs[0], *constants], f"{value.name}.dequantized", None, reader)
            back.outputs[0].shape = codes.outputs[0].shape = value.shape
            self.graph.insert_before(reader, [codes, back])
            self.dequantized[value] = back.outputs[0]
        return self.dequantized[value]

    def weight(self, reader: ir.Node) -> ir.Value:
        """int8 codes of the reader's weight and their DequantizeLinear; the float weight goes."""
        weight = _input(reader, 1)
        assert weight.const_value is not None
        array, axis = weight.const_value.numpy(), _output_axis(reader)
        scales = weight_scales(array, axis)
        codes = self._constant(f"{weight.name}.int8", quantize(array, scales, axis))
        constants = self._constants(str(weight.name), scales)
        back = _node("DequantizeLinear", [codes, *constants], f"{weight.name}.dequantized", None, reader, axis=axis)
        back.outputs[0].shape = weight.shape
        self.graph.insert_before(reader, back)
        del self.graph.initializers[str(weight.name)]
        return back.outputs[0]

    def _scale_of(self, value: ir.Value) -> float:
        try:
            return self.scales[str(value.name)]
        except KeyError:
            raise ModelIncompatible(
                f"there is no int8 scale for the value {value.name!r}",
                "calibrate this model; the scales given are those of another one",
                key="scale_missing",
            ) from None

    def _constants(self, name: str, scale: np.ndarray) -> tuple[ir.Value, ir.Value]:
        zero = np.zeros(scale.shape, dtype=np.int8)
        return self._constant(f"{name}.scale", scale), self._constant(f"{name}.zero_point", zero)

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        constant = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        constant.dtype, constant.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        self.graph.register_initializer(constant)
        return constant


def _node(
    kind: str, inputs: list[ir.Value], name: str, dtype: ir.DataType | None, reader: ir.Node, axis: int | None = None
) -> ir.Node:
    """A node of one output called `name`, in the block of its reader."""
    node = ir.node(kind, inputs, {} if axis is None else {"axis": axis}, name=name)
    node.metadata_props[BLOCK_KEY] = _block(reader)
    node.outputs[0].name = name
    node.outputs[0].dtype = dtype or ir.DataType.FLOAT
    return node


def _output_axis(node: ir.Node) -> int:
    """The axis of a weight along the output channels: Conv (O, I, ...), MatMul (K, N), Gemm either (K, N) or (N, K)."""
    if node.op_type == "Conv":
        return 0
    transposed = node.attributes.get("transB")
    weight = _input(node, 1)
    assert weight.shape is not None
    return 0 if transposed is not None and transposed.as_int() else len(weight.shape) - 1


def _require_opset(model: ir.Model) -> None:
    version = model.opset_imports.get("", 0)
    if version < _OPSET:
        raise ModelIncompatible(
            f"the model's opset is {version}; int8 with FP16 scales needs {_OPSET}",
            f"export it again with opset {_OPSET} or later",
            key="opset_too_old",
        )


def _block(node: ir.Node) -> str:
    return node.metadata_props.get(BLOCK_KEY, "")


def _first_output(node: ir.Node) -> str:
    return str(node.outputs[0].name)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
