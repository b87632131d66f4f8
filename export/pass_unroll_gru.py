"""Graph pass: ONNX's GRU operator -> one matrix product for all steps, then a few small operators per step. Exact.

TensorRT imports the GRU operator as a loop with the input projection inside. Unrolled, the projection X W^T + b of
all steps is one product, and what remains per step is h R^T and the gates: 12 nodes a step, 770 for 64 steps. Every
slice is static, every new value has its type and shape, and nobody computes a shape at run time.

Supported: forward, reverse and bidirectional, linear_before_reset 0 and 1, layout 0 and 1, bias and initial state
absent or present, outputs Y and Y_h. Refused, naming the attribute or input: clip, activations other than the default,
sequence_lens, weights that are not constant, a number of steps that is not static, an opset below 18.

Equations: ONNX operator GRU, opsets 14 and 22. Gate order z, r, h; H_t = (1 - z) n + z H_(t-1) = n + z (H_(t-1) - n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from fourphase.runtime.errors import ExportRefused

__all__ = ["unroll_gru"]

Array = NDArray[Any]
Dim = int | ir.SymbolicDim
Shape = Sequence[Dim]
#: Attribute direction -> for each of its directions, whether it runs from the last step to the first.
_REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h")
#: Split with num_outputs, and with it equal parts without a constant.
_OPSET_FLOOR = 18


def unroll_gru(model: ir.Model) -> tuple[ir.Model, bool]:
    """Returns (model, whether anything changed); the model is changed in place, unless it is refused.

    Raises: ExportRefused (25) for a GRU with something this pass does not do.
    """
    recurrent = [node for node in model.graph if node.op_type == "GRU"]
    if any(_steps(node) is None for node in recurrent):
        # What an earlier pass left without a shape, such as the second layer's input.
        common.ShapeInferencePass()(model)
    for node in recurrent:
        _refuse_unsupported(model, node)
    for index, node in enumerate(recurrent):
        _Unrolling(model, node, f"{node.name or 'gru'}.{index}").replace()
    if recurrent:
        common.RemoveUnusedNodesPass()(model)
    return model, bool(recurrent)


@dataclass(frozen=True, eq=False)
class _Weights:
    """One direction's constants for row vectors: w (I, 3H), r (H, 3H), bias (3H,) of the input, reset_bias (H,).

    What of the recurrent bias can be added once to the input's is in `bias`; with linear_before_reset the n gate's part
    is multiplied by r and stays apart in `reset_bias` (else it is None).
    """

    w: Array
    r: Array
    bias: Array
    reset_bias: Array | None


class _Builder:
    """Makes nodes that carry the GRU's metadata (its block), and values with name, type and shape."""

    def __init__(self, model: ir.Model, node: ir.Node, prefix: str, dtype: ir.DataType) -> None:
        self.model, self.prefix = model, prefix
        self.metadata, self.type = dict(node.metadata_props), ir.TensorType(dtype)
        self.nodes: list[ir.Node] = []
        self._constants: dict[str, ir.Value] = {}

    def op(
        self, op_type: str, inputs: Sequence[ir.Value], shape: Shape | None = None, **attributes: int | list[int]
    ) -> ir.Value:
        """A node with one output; without `shape`, the output has the shape of the first input."""
        if shape is None:
            assert inputs[0].shape is not None
            shape = tuple(inputs[0].shape)
        return self.parts(op_type, inputs, [shape], **attributes)[0]

    def parts(
        self, op_type: str, inputs: Sequence[ir.Value], shapes: Sequence[Shape], **attributes: int | list[int]
    ) -> Sequence[ir.Value]:
        """A node with one output per shape."""
        name = f"{self.prefix}/{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, inputs, attributes, num_outputs=len(shapes), name=name, metadata_props=self.metadata)
        for index, (value, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
            value.name, value.type, value.shape = f"{name}:{index}", self.type, ir.Shape(shape)
        self.nodes.append(node)
        return node.outputs

    def constant(self, label: str, array: Array) -> ir.Value:
        """An initializer; the same label gives the same value."""
        if label not in self._constants:
            name = f"{self.prefix}/{label}"
            value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
            self.model.graph.register_initializer(value)
            self._constants[label] = value
        return self._constants[label]

    def integers(self, *values: int) -> ir.Value:
        return self.constant("i" + "_".join(map(str, values)), np.array(values, dtype=np.int64))


class _Unrolling:
    """One GRU operator and what takes its place."""

    def __init__(self, model: ir.Model, node: ir.Node, prefix: str) -> None:
        x = node.inputs[0]
        assert x is not None
        assert x.shape is not None
        self.node = node
        self.build = _Builder(model, node, prefix, x.dtype or ir.DataType.FLOAT)
        self.backwards = _REVERSED[node.attributes.get_string("direction", "forward") or "forward"]
        self.batch_first = node.attributes.get_int("layout", 0) == 1
        steps = _steps(node)
        assert steps is not None
        self.steps, self.hidden = steps, _array(node, 2).shape[2]
        self.batch = x.shape[0 if self.batch_first else 1]
        self.x = self._swapped(x, [self.steps, self.batch, x.shape[2]])

    def replace(self) -> None:
        """Builds the outputs that are used; they keep the names of the GRU's (a block's, perhaps the graph's)."""
        initial = self._initial_states()
        states = [
            self._run(index, state, reverse)
            for index, (state, reverse) in enumerate(zip(initial, self.backwards, strict=True))
        ]
        makers = (self._all_states, self._last_states)
        old = [value for value in self.node.outputs if value.name and (value.uses() or value.is_graph_output())]
        new = [makers[self.node.outputs.index(value)](states) for value in old]
        for before, after in zip(old, new, strict=True):
            after.name = before.name
        ir.convenience.replace_nodes_and_values(
            self.build.model.graph, self.node, [self.node], self.build.nodes, old, new
        )

    def _swapped(self, value: ir.Value, shape: Shape) -> ir.Value:
        """Between the two layouts of input and states; nothing with layout 0."""
        return self.build.op("Transpose", [value], shape, perm=[1, 0, 2]) if self.batch_first else value

    def _initial_states(self) -> Sequence[ir.Value | None]:
        """Per direction (1, B, H), or None for zeros."""
        count = len(self.backwards)
        state = self.node.inputs[5] if len(self.node.inputs) > 5 else None
        if state is None:
            return [None] * count
        state = self._swapped(state, [count, self.batch, self.hidden])
        if count == 1:
            return [state]
        return self.build.parts("Split", [state], [[1, self.batch, self.hidden]] * count, axis=0, num_outputs=count)

    def _run(self, index: int, state: ir.Value | None, backwards: bool) -> list[ir.Value]:
        """The states of one direction in the order of the input's steps, each (1, B, H)."""
        build, steps, widths = self.build, self.steps, (2 * self.hidden, self.hidden)
        weights = _weights(self.node, index)
        gates = build.op("MatMul", [self.x, build.constant(f"w{index}", weights.w)], [steps, self.batch, sum(widths)])
        gates = build.op("Add", [gates, build.constant(f"b{index}", weights.bias)])
        shapes = [[steps, self.batch, width] for width in widths]
        by_gate = build.parts("Split", [gates, build.integers(*widths)], shapes, axis=2)
        zr_steps, n_steps = (
            build.parts("Split", [part], [[1, self.batch, width]] * steps, axis=0, num_outputs=steps)
            for part, width in zip(by_gate, widths, strict=True)
        )
        cell = _Cell(build, weights, index, self.batch)
        states: list[ir.Value] = []
        for t in reversed(range(steps)) if backwards else range(steps):
            state = cell.first(zr_steps[t], n_steps[t]) if state is None else cell.next(zr_steps[t], n_steps[t], state)
            states.append(state)
        return states[::-1] if backwards else states

    def _all_states(self, states: Sequence[Sequence[ir.Value]]) -> ir.Value:
        """Y: (T, directions, B, H), or (B, T, directions, H) with layout 1."""
        build, (steps, batch, hidden, count) = self.build, (self.steps, self.batch, self.hidden, len(states))
        joined = [build.op("Concat", list(direction), [steps, batch, hidden], axis=0) for direction in states]
        apart = [build.op("Unsqueeze", [value, build.integers(1)], [steps, 1, batch, hidden]) for value in joined]
        y = build.op("Concat", apart, [steps, count, batch, hidden], axis=1) if count > 1 else apart[0]
        return build.op("Transpose", [y], [batch, steps, count, hidden], perm=[2, 0, 1, 3]) if self.batch_first else y

    def _last_states(self, states: Sequence[Sequence[ir.Value]]) -> ir.Value:
        """Y_h: (directions, B, H), or (B, directions, H) with layout 1."""
        batch, hidden, count = self.batch, self.hidden, len(states)
        ends = [run[0] if reverse else run[-1] for run, reverse in zip(states, self.backwards, strict=True)]
        # A node of its own also for one direction: its output takes the name of the GRU's.
        last = self.build.op("Concat", ends, [count, batch, hidden], axis=0)
        return self._swapped(last, [batch, count, hidden])


class _Cell:
    """One step: the input's part of the gates (1, B, 2H) and (1, B, H), and the state (1, B, H) -> the next state."""

    def __init__(self, build: _Builder, weights: _Weights, index: int, batch: Dim) -> None:
        self.build, hidden = build, len(weights.r)
        self.narrow, self.wide, self.full = ([1, batch, count * hidden] for count in (1, 2, 3))
        self.sizes = build.integers(2 * hidden, hidden)
        self.halves = build.integers(hidden, hidden)
        self.before = weights.reset_bias is not None
        if weights.reset_bias is not None:
            self.r = build.constant(f"r{index}", weights.r)
            self.reset_bias = build.constant(f"rb{index}", weights.reset_bias)
        else:
            self.r_zr = build.constant(f"r{index}_zr", weights.r[:, : 2 * hidden])
            self.r_n = build.constant(f"r{index}_n", weights.r[:, 2 * hidden :])

    def first(self, zr_in: ir.Value, n_in: ir.Value) -> ir.Value:
        """The step from a state of zeros: (1 - z) n, without a product."""
        op = self.build.op
        z, r = self._gates(zr_in)
        n = op("Tanh", [op("Add", [n_in, op("Mul", [r, self.reset_bias])]) if self.before else n_in])
        return op("Sub", [n, op("Mul", [z, n])])

    def next(self, zr_in: ir.Value, n_in: ir.Value, state: ir.Value) -> ir.Value:
        op = self.build.op
        if self.before:
            product = op("MatMul", [state, self.r], self.full)
            zr_state, n_state = self.build.parts("Split", [product, self.sizes], [self.wide, self.narrow], axis=2)
            z, r = self._gates(op("Add", [zr_in, zr_state]))
            candidate = op("Mul", [r, op("Add", [n_state, self.reset_bias])])
        else:
            z, r = self._gates(op("Add", [zr_in, op("MatMul", [state, self.r_zr], self.wide)]))
            candidate = op("MatMul", [op("Mul", [r, state]), self.r_n], self.narrow)
        n = op("Tanh", [op("Add", [n_in, candidate])])
        return op("Add", [n, op("Mul", [z, op("Sub", [state, n])])])

    def _gates(self, zr: ir.Value) -> Sequence[ir.Value]:
        return self.build.parts("Split", [self.build.op("Sigmoid", [zr]), self.halves], [self.narrow] * 2, axis=2)


def _weights(node: ir.Node, index: int) -> _Weights:
    w, r = _array(node, 1), _array(node, 2)
    hidden = r.shape[2]
    has_bias = len(node.inputs) > 3 and node.inputs[3] is not None
    both = _array(node, 3)[index] if has_bias else np.zeros(6 * hidden, dtype=w.dtype)
    of_input, of_state = both[: 3 * hidden].copy(), both[3 * hidden :]
    before = node.attributes.get_int("linear_before_reset", 0) == 1
    shared = 2 * hidden if before else 3 * hidden
    of_input[:shared] += of_state[:shared]
    return _Weights(w[index].T, r[index].T, of_input, of_state[2 * hidden :] if before else None)


def _array(node: ir.Node, position: int) -> Array:
    tensor = ir.convenience.get_const_tensor(node.inputs[position])  # type: ignore[arg-type]
    assert tensor is not None
    return np.asarray(tensor.numpy())


def _refuse_unsupported(model: ir.Model, node: ir.Node) -> None:
    given = node.attributes.get_strings("activations", ()) or ()
    default = ("sigmoid", "tanh") * (len(given) // 2)
    inputs = dict(zip(_INPUTS, node.inputs, strict=False))
    computed = [name for name in "WRB" if not _is_constant(inputs.get(name))]
    for reason, found in (
        (f"the opset is below {_OPSET_FLOOR}", model.opset_imports.get("", 0) < _OPSET_FLOOR),
        ("the attribute clip is set", "clip" in node.attributes),
        ("the attribute activations is not the default", tuple(name.lower() for name in given) != default),
        ("the input sequence_lens is used", inputs.get("sequence_lens") is not None),
        (f"the input {', '.join(computed)} is not constant", bool(computed)),
        ("the number of steps is not static", _steps(node) is None),
    ):
        if found:
            raise ExportRefused(
                f"the GRU {node.name or 'without a name'} cannot be unrolled: {reason}",
                "use --gru loop, which keeps the operator",
                key="gru_not_unrollable",
            )


def _steps(node: ir.Node) -> int | None:
    """The number of steps, None if it is not static."""
    x = node.inputs[0]
    steps = None if x is None or x.shape is None else x.shape[node.attributes.get_int("layout", 0) or 0]
    return steps if isinstance(steps, int) else None


def _is_constant(value: ir.Value | None) -> bool:
    return value is None or ir.convenience.get_const_tensor(value) is not None
