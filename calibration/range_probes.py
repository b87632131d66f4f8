"""Statistics of a graph's values, computed inside the graph: only numbers leave it, whatever the size of the values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from fourphase.calibration.cpu_session import cpu_session
from fourphase.runtime.console import progress
from fourphase.runtime.errors import InputMissing

__all__ = ["SMALLEST_NORMAL", "Statistics", "measure"]

Array = NDArray[np.float32]

#: The smallest normal FP16 value: below it bits are lost one by one, down to 6e-8, below which nothing is left.
SMALLEST_NORMAL = 2.0**-14
_FLOAT, _BOOL = ir.DataType.FLOAT, ir.DataType.BOOL
#: Statistic -> how it is carried from one study to the next.
_CARRY = {"peak": np.maximum, "terms": np.maximum, "present": np.add, "lost": np.add}


@dataclass(frozen=True, eq=False)
class Statistics:
    """Extremes over all studies.

    Attributes:
        studies: how many there were.
        peak: value name -> largest magnitude.
        lost: value name -> share of what is not zero that is below the smallest normal FP16 value.
        terms: name of a sum -> largest mean magnitude of the terms of one of its elements.
    """

    studies: int
    peak: Mapping[str, float]
    lost: Mapping[str, float]
    terms: Mapping[str, float]


def measure(
    graph: ir.Model, values: Sequence[ir.Value], sums: Sequence[ir.Node], studies: Iterable[Array]
) -> Statistics:
    """Adds the statistics to the graph (in place) and runs it on every input.

    Args:
        values: float values to watch.
        sums: ReduceMean and ReduceSum nodes to watch.
        studies: float32 (B, P, T, C, H, W) each; taken one by one.

    Raises: InputMissing (10) without any input.
    """
    probes = _Probes(graph.graph)
    for value in values:
        probes.watch(value)
    for node in sums:
        probes.watch_sum(node)
    found, count = _run(ir.serde.serialize_model(graph), probes.outputs, studies)
    present, lost = found["present"], found["lost"]
    shares = {name: lost[name] / present[name] if present[name] else 0.0 for name in lost}
    return Statistics(count, found["peak"], shares, found["terms"])


class _Probes:
    """Appends nodes to a graph. `outputs` maps the graph's new outputs to (statistic, name of the value)."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.outputs: dict[str, tuple[str, str]] = {}
        self._zero = self._number(0.0)
        self._smallest = self._number(SMALLEST_NORMAL)
        graph.outputs.clear()

    def watch(self, value: ir.Value) -> None:
        magnitude = self._node("Abs", [value])
        present = self._node("Greater", [magnitude, self._zero], _BOOL)
        small = self._node("Less", [magnitude, self._smallest], _BOOL)
        self._reduced("ReduceMax", magnitude, "peak", value.name)
        self._reduced("ReduceMean", self._float(present), "present", value.name)
        self._reduced("ReduceMean", self._float(self._node("And", [present, small], _BOOL)), "lost", value.name)

    def watch_sum(self, node: ir.Node) -> None:
        magnitude = self._node("Abs", [node.inputs[0]])
        self._reduced(
            "ReduceMax", self._node("ReduceMean", [magnitude, *node.inputs[1:]]), "terms", node.outputs[0].name
        )

    def _float(self, flags: ir.Value) -> ir.Value:
        return self._node("Cast", [flags], to=int(_FLOAT))

    def _reduced(self, op_type: str, value: ir.Value, statistic: str, name: str | None) -> None:
        result = self._node(op_type, [value], keepdims=0)
        result.shape = ir.Shape([])
        self.graph.outputs.append(result)
        self.outputs[str(result.name)] = (statistic, str(name))

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value | None], dtype: ir.DataType = _FLOAT, **attributes: int
    ) -> ir.Value:
        name = f"probe {len(self.graph)}"
        node = ir.node(op_type, inputs, attributes, name=name)
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(dtype)
        self.graph.append(node)
        return node.outputs[0]

    def _number(self, number: float) -> ir.Value:
        name = f"probe {number}"
        value = ir.val(name, const_value=ir.tensor(np.array(number, np.float32), name=name))
        self.graph.register_initializer(value)
        return value


def _run(
    model: onnx.ModelProto, outputs: Mapping[str, tuple[str, str]], studies: Iterable[Array]
) -> tuple[dict[str, dict[str, float]], int]:
    """statistic -> name -> number over all studies, and how many there were."""
    session = cpu_session(model.SerializeToString(), optimize=False)
    (source,) = session.get_inputs()
    found: dict[str, dict[str, float]] = {statistic: {} for statistic in _CARRY}
    count = 0
    with progress("auditing FP16 ranges", None) as advance:
        for study in studies:
            numbers: list[Any] = session.run(list(outputs), {source.name: study})
            for (statistic, name), number in zip(outputs.values(), numbers, strict=True):
                before = found[statistic].get(name, 0.0)
                found[statistic][name] = float(_CARRY[statistic](before, number))
            count += 1
            advance(1)
    if not count:
        raise InputMissing("there is no input to audit the ranges on", "give at least one study", key="no_studies")
    return found, count
