"""Graph pass: the channel gate's MLP, applied to mean and maximum one after the other, becomes one MLP on both at once.

The gate computes f(mean) + f(max) with f(x) = W2 relu(W1 x + b1) + b2: four small products with the same two weights,
which a GPU spends more time starting than computing. Joined into one vector (mean, max), they are two products:

    [W2 W2] relu([W1 0; 0 W1] (mean, max) + (b1, b1)) + 2 b2

The zeros add nothing and the halves' sums only change their order: equal to 1e-6 of the largest summand. 11 nodes of a
gate become 8. Anything that is not exactly this pattern, with constant weights shared by both branches, is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

__all__ = ["merge_gate_gemms"]

Array = NDArray[Any]
T = TypeVar("T")


def merge_gate_gemms(model: ir.Model) -> tuple[ir.Model, bool]:
    """Returns (model, whether anything changed); the model is changed in place."""
    changed = False
    for node in list(model.graph):
        branches = [_branch(value) for value in node.inputs] if node.op_type == "Add" else []
        if len(branches) == 2 and branches[0] and branches[1] and branches[0].is_twin_of(branches[1]):
            _merge(model, node, branches[0], branches[1])
            changed = True
    if changed:
        common.RemoveUnusedNodesPass()(model)
    return model, changed


@dataclass(frozen=True, eq=False)
class _Branch:
    """Gemm, Relu, Gemm on one source (N, C)."""

    source: ir.Value
    hidden: ir.Node
    relu: ir.Node
    output: ir.Node

    def is_twin_of(self, other: _Branch) -> bool:
        """The same weights on another source of the same shape."""
        pairs = ((self.hidden, other.hidden), (self.output, other.output))
        same = all(one.inputs[1:] == two.inputs[1:] and _transposed(one) == _transposed(two) for one, two in pairs)
        return same and self.source is not other.source and self.source.shape == other.source.shape


def _branch(value: ir.Value | None) -> _Branch | None:
    output = _only_producer(value, "Gemm")
    relu = _only_producer(output.inputs[0], "Relu") if output else None
    hidden = _only_producer(relu.inputs[0], "Gemm") if relu else None
    if output is None or relu is None or hidden is None or not (_is_plain(hidden) and _is_plain(output)):
        return None
    return _Branch(_of(hidden.inputs[0]), hidden, relu, output)


def _only_producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The value's producer if it is of this type and nobody else, the graph's outputs included, sees the value."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != op_type:
        return None
    return producer if len(value.uses()) == 1 and not value.is_graph_output() else None


def _is_plain(gemm: ir.Node) -> bool:
    """x W + b with constant W and b, one entry of b per column."""
    numbers = gemm.attributes
    if numbers.get_int("transA", 0) or not numbers.get_float("alpha", 1.0) == numbers.get_float("beta", 1.0) == 1.0:
        return False
    tensors = [ir.convenience.get_const_tensor(_of(value)) for value in gemm.inputs[1:]]
    return (
        len(tensors) == 2
        and all(tensor is not None for tensor in tensors)
        and len(_of(gemm.inputs[2]).shape or ()) == 1
    )


def _merge(model: ir.Model, add: ir.Node, one: _Branch, two: _Branch) -> None:
    (first, first_bias), (second, second_bias) = _constants(one.hidden), _constants(one.output)
    zeros = np.zeros_like(first)
    make = _Maker(model, add)
    both = make.node("Concat", [one.source, two.source], 2 * len(first), axis=1)
    hidden = make.gemm(both, np.block([[first, zeros], [zeros, first]]), np.tile(first_bias, 2), "hidden")
    relu = make.node("Relu", [hidden], 2 * first.shape[1])
    output = make.gemm(relu, np.concatenate([second, second]), 2 * second_bias, "output")
    old = [add, one.hidden, one.relu, one.output, two.hidden, two.relu, two.output]
    ir.convenience.replace_nodes_and_values(model.graph, add, old, make.nodes, [add.outputs[0]], [output])


def _constants(gemm: ir.Node) -> tuple[Array, Array]:
    """The weight (K, M) and the bias (M,)."""
    weight, bias = (_of(ir.convenience.get_const_tensor(_of(value))).numpy() for value in gemm.inputs[1:])
    return weight.T if _transposed(gemm) else weight, bias


class _Maker:
    """Makes the nodes that replace an Add: in its block, typed and shaped, named after it."""

    def __init__(self, model: ir.Model, add: ir.Node) -> None:
        self.model, self.add, self.output = model, add, add.outputs[0]
        self.nodes: list[ir.Node] = []

    def node(self, op_type: str, inputs: Sequence[ir.Value], width: int, **attributes: int) -> ir.Value:
        """A node with one output (N, width)."""
        name = f"{self.add.name}/{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, inputs, attributes, name=name, metadata_props=dict(self.add.metadata_props))
        rows = inputs[0].shape[0] if inputs[0].shape is not None else None
        node.outputs[0].name, node.outputs[0].type = name, self.output.type
        node.outputs[0].shape = ir.Shape([rows, width])
        self.nodes.append(node)
        return node.outputs[0]

    def gemm(self, x: ir.Value, weight: Array, bias: Array, label: str) -> ir.Value:
        constants = [self._constant(f"{label}.weight", weight), self._constant(f"{label}.bias", bias)]
        return self.node("Gemm", [x, *constants], weight.shape[1])

    def _constant(self, label: str, array: Array) -> ir.Value:
        name = f"{self.add.name}/{label}"
        value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
        self.model.graph.register_initializer(value)
        return value


def _transposed(gemm: ir.Node) -> bool:
    return bool(gemm.attributes.get_int("transB", 0))


def _of(value: T | None) -> T:
    """What is there by the pattern already matched."""
    assert value is not None
    return value
