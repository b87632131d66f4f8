"""How much memory a graph's activations need, by its values' lifetimes. A model of memory, not a measurement.

At every node, in the order of the file, the values alive are those it makes and those made before that it or a later
node still reads (a graph's outputs live to the end); their sizes come from shape inference. Every value has a place of
its own: no operator writes over its input, none is fused with its neighbour, and none needs scratch memory. A real
program does all three, so that its number is another; what carries over is how the number changes with the graph.

Weights, and what is computed of weights alone, are no activations. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from fourphase.calibration.blocks import BLOCK_KEY
from fourphase.runtime.errors import ModelIncompatible

__all__ = ["ActivationPeak", "Moment", "lifetimes", "peak_activations"]


@dataclass(frozen=True, eq=False)
class Moment:
    """One node that computes with the graph's input: what is alive while it runs, and what still is afterwards."""

    node: ir.Node
    during: frozenset[ir.Value]
    after: frozenset[ir.Value]


@dataclass(frozen=True)
class ActivationPeak:
    """A graph's activations, in bytes.

    Attributes:
        peak_bytes: the most that is alive at one node; the graph's input counts until it was read for the last time.
        node, block: where that is (the first such node).
        total_bytes: of all values together, as if none were ever freed.
        input_bytes, output_bytes: of the graph's inputs and outputs, part of the above.
        weight_bytes: of all initializers, part of nothing above.
    """

    peak_bytes: int
    node: str
    block: str
    total_bytes: int
    input_bytes: int
    output_bytes: int
    weight_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)


def lifetimes(graph: ir.Graph) -> Iterator[Moment]:
    """The nodes that compute with the graph's inputs, in the graph's order, with the activations alive at each."""
    last = {value: number for number, node in enumerate(graph) for value in node.inputs if value is not None}
    last |= dict.fromkeys(graph.outputs, len(graph))
    carrying = set(graph.inputs)
    alive = frozenset(graph.inputs)
    for number, node in enumerate(graph):
        if carrying.isdisjoint(node.inputs):
            continue
        made = [value for value in node.outputs if value.name]
        carrying.update(made)
        during = alive.union(made)
        alive = frozenset(value for value in during if last.get(value, -1) > number)
        yield Moment(node, during, alive)


def peak_activations(model: onnx.ModelProto, batch: int = 1) -> ActivationPeak:
    """The most memory that the activations of a graph need at once.

    Args:
        batch: what a dynamic first axis of an input is set to.

    Raises: ModelIncompatible (20) naming a value whose size shape inference cannot find.
    """
    graph = _at_batch(model, batch).graph
    sizes: dict[ir.Value, int] = {value: _bytes(value) for value in graph.inputs}
    peak, where = 0, None
    for moment in lifetimes(graph):
        sizes |= {value: _bytes(value) for value in moment.during if value not in sizes}
        alive = sum(sizes[value] for value in moment.during)
        if alive > peak:
            peak, where = alive, moment.node
    return ActivationPeak(
        peak,
        str(where.name) if where is not None else "",
        where.metadata_props.get(BLOCK_KEY, "") if where is not None else "",
        total_bytes=sum(sizes.values()),
        input_bytes=sum(sizes[value] for value in graph.inputs),
        output_bytes=sum(_bytes(value) for value in graph.outputs),
        weight_bytes=sum(_bytes(value) for value in graph.initializers.values()),
    )


def _at_batch(model: onnx.ModelProto, batch: int) -> ir.Model:
    """The graph with every value's sizes for this batch; sizes noted for a symbolic batch are forgotten."""
    graph = ir.serde.deserialize_model(model)
    for value in graph.graph.inputs:
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            value.shape = ir.Shape([batch, *value.shape[1:]])
    for node in graph.graph:
        for value in node.outputs:
            value.shape = None
    common.ShapeInferencePass()(graph)
    return graph


def _bytes(value: ir.Value) -> int:
    shape = value.shape
    if value.dtype is None or shape is None or not all(isinstance(size, int) for size in shape):
        raise ModelIncompatible(
            f"the size of the value {value.name!r} is not known before the graph runs",
            "export the model with a dynamic batch only, and without operators that compute shapes",
            key="size_unknown",
        )
    return ceil(prod(shape.numpy()) * value.dtype.itemsize)
