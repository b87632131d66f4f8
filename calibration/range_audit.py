"""Where FP16 would overflow or lose bits: the ranges of a network's values, weights and sums, block by block.

The FP32 graph is run on real inputs with a few statistics behind every value, so that only numbers leave it and memory
does not grow with the number of inputs. A value belongs to every block that computes it or computes with it: both
would hold it in FP16. Operators that only move values are left out, they pass on whatever type they get.

It judges ranges, not accuracy (see `rounding` for that), and it knows only the inputs that it was given: a headroom of
2 on a few studies is no promise for the next one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from fourphase.calibration.blocks import BLOCK_KEY, Policy
from fourphase.calibration.evaluation import Studies
from fourphase.calibration.range_probes import SMALLEST_NORMAL, Statistics, measure
from fourphase.calibration.typed import FP16_MAX, MOVING
from fourphase.runtime.errors import ParityFailed

__all__ = [
    "BlockRange", "RangeReport", "SumRange", "ValueRange", "audit_first", "audit_ranges", "fp16_sum_error",
    "overflowing_blocks", "require_range",
]  # fmt: skip

Array = NDArray[np.float32]

_DRAWS = 16
_AUDITED_STUDIES = 4
_FLOAT = ir.DataType.FLOAT
_REDUCTIONS = ("ReduceMean", "ReduceSum")
_PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class ValueRange:
    """One value (an activation or a weight).

    Attributes:
        node: the node that makes it, or reads it if it is a weight.
        peak: largest magnitude seen.
        lost: share of the values other than zero that are below the smallest normal FP16 value.
    """

    name: str
    node: str
    operator: str
    peak: float
    lost: float

    @property
    def headroom(self) -> float:
        """How many times larger it could be before FP16 overflows; below 1 it does. 0 for what is not finite."""
        if not math.isfinite(self.peak):
            return 0.0
        return FP16_MAX / self.peak if self.peak > 0 else math.inf


@dataclass(frozen=True)
class SumRange:
    """One node that sums many terms.

    Attributes:
        terms: how many terms each sum has.
        magnitude: largest sum of the terms' magnitudes: measured for means and sums, bounded for products (largest
            input times the largest sum of a channel's weights). No partial sum is larger, in whatever order.
        error: what summing in FP16 would lose, see `fp16_sum_error`.
    """

    node: str
    operator: str
    terms: int
    magnitude: float
    error: float


@dataclass(frozen=True)
class BlockRange:
    """All values, weights and sums of a block, each with the worst first."""

    block: str
    values: tuple[ValueRange, ...]
    weights: tuple[ValueRange, ...]
    sums: tuple[SumRange, ...]

    @property
    def worst(self) -> ValueRange:
        """What comes closest to overflow; a nameless zero in a block that only counts with integers."""
        nothing = ValueRange("", "", "", 0.0, 0.0)
        return min((*self.values[:1], *self.weights[:1]), key=lambda value: value.headroom, default=nothing)

    @property
    def overflows(self) -> bool:
        return self.worst.headroom < 1

    def to_dict(self) -> dict[str, Any]:
        """The worst of each kind; JSON types only."""
        worst = self.worst
        return {
            "block": self.block,
            "overflows": self.overflows,
            "peak": _finite(worst.peak),
            "headroom": _finite(worst.headroom),
            "node": worst.node,
            "operator": worst.operator,
            "value": worst.name,
            "lost": max((value.lost for value in self.values), default=0.0),
            "lost_weights": max((value.lost for value in self.weights), default=0.0),
            "largest_sum": {**asdict(self.sums[0]), "magnitude": _finite(self.sums[0].magnitude)}
            if self.sums
            else None,
        }


@dataclass(frozen=True)
class RangeReport:
    """The audit of all blocks, in the order of the graph, on so many studies."""

    studies: int
    blocks: tuple[BlockRange, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "fp16_max": FP16_MAX,
            "studies": self.studies,
            "overflowing": sorted(overflowing_blocks(self)),
            "blocks": [block.to_dict() for block in self.blocks],
        }


def overflowing_blocks(report: RangeReport) -> set[str]:
    """The blocks that FP16 cannot hold: a value of theirs, a weight, or what they are given is beyond 65504."""
    return {block.block for block in report.blocks if block.overflows}


def require_range(report: RangeReport, policies: Iterable[Policy]) -> None:
    """Raises: ParityFailed (27) naming the block that FP16 cannot hold but that a policy would compute in it."""
    policies = tuple(policies)
    lowered = [
        block
        for block in report.blocks
        if block.overflows and any(policy.precision_of(block.block) != "fp32" for policy in policies)
    ]
    if not lowered:
        return
    worst = min(lowered, key=lambda block: block.worst.headroom)
    rows = [{"block": block.block, "node": block.worst.node, "peak": f"{block.worst.peak:.4g}"} for block in lowered]
    raise ParityFailed(
        f"block {worst.block} does not fit into FP16: its values reach {worst.worst.peak:.4g}, FP16 ends at"
        f" {FP16_MAX:g}",
        "keep it in fp32: build with --precision fp32, then let fp-export search find the policy, or give --policy",
        key="fp16_overflow",
        table=rows,
    )


@cache
def fp16_sum_error(terms: int, *, same_sign: bool) -> float:
    """Relative error of adding so many terms one by one in FP16, by doing it: the worst of 16 draws of normal terms.

    Relative to the sum of the terms' magnitudes. A sum stops growing about where it is 2048 times its terms: of many
    terms of the same sign most do not arrive. TensorRT's convolutions, products and reductions sum in FP32 unless told
    otherwise; this is what they would lose if they did not.
    """
    drawn = np.random.default_rng(0).normal(size=(_DRAWS, terms)).astype(np.float16)
    values = np.abs(drawn) if same_sign else drawn
    summed = np.add.accumulate(values, axis=1, dtype=np.float16)[:, -1].astype(np.float64)
    exact, magnitude = values.sum(axis=1, dtype=np.float64), np.abs(values).sum(axis=1, dtype=np.float64)
    return float((np.abs(summed - exact) / magnitude).max())


def audit_ranges(model: onnx.ModelProto, studies: Iterable[Array]) -> RangeReport:
    """Runs the FP32 graph on every input, float32 (B, P, T, C, H, W), and keeps the extremes.

    Raises: InputMissing (10) without any input.
    """
    graph = ir.serde.deserialize_model(model)
    nodes = [node for node in graph.graph if node.op_type not in MOVING]
    values = list(dict.fromkeys(value for node in nodes for value in _activations(node)))
    found = measure(graph, values, [node for node in nodes if node.op_type in _REDUCTIONS], studies)
    blocks: dict[str, list[ir.Node]] = {}
    for node in nodes:
        blocks.setdefault(node.metadata_props.get(BLOCK_KEY, ""), []).append(node)
    return RangeReport(found.studies, tuple(_block_range(name, members, found) for name, members in blocks.items()))


def audit_first(model: onnx.ModelProto, studies: Studies) -> RangeReport:
    """`audit_ranges` on the first few studies: every value of the graph is watched, and a few show its range."""
    return audit_ranges(model, (studies.study(index) for index in range(min(len(studies), _AUDITED_STUDIES))))


def _block_range(block: str, nodes: Sequence[ir.Node], found: Statistics) -> BlockRange:
    values = {str(value.name): value for node in nodes for value in _activations(node)}
    weights = {str(value.name): _weight_range(value, node) for node in nodes for value in _weights(node)}
    sums = [entry for node in nodes if (entry := _sum_range(node, found)) is not None]
    return BlockRange(
        block,
        tuple(sorted((_value_range(value, found) for value in values.values()), key=lambda entry: entry.headroom)),
        tuple(sorted(weights.values(), key=lambda entry: entry.headroom)),
        tuple(sorted(sums, key=lambda entry: -entry.magnitude)),
    )


def _value_range(value: ir.Value, found: Statistics) -> ValueRange:
    name, producer = str(value.name), value.producer()
    where = ("", "Input") if producer is None else (str(producer.name), producer.op_type)
    return ValueRange(name, *where, found.peak[name], found.lost[name])


def _weight_range(value: ir.Value, reader: ir.Node) -> ValueRange:
    magnitudes = np.abs(_array(value))
    present = magnitudes[magnitudes > 0]
    lost = float((present < SMALLEST_NORMAL).mean()) if present.size else 0.0
    return ValueRange(str(value.name), str(reader.name), reader.op_type, float(magnitudes.max(initial=0)), lost)


def _sum_range(node: ir.Node, found: Statistics) -> SumRange | None:
    """None for a node that sums nothing, or products of two activations."""
    if node.op_type in _REDUCTIONS:
        terms, same_sign = _reduced_terms(node), True
        magnitude = terms * found.terms[str(node.outputs[0].name)]
    elif node.op_type in _PRODUCTS and _is_weight(node.inputs[1]):
        weight, same_sign = np.abs(_by_output(node)), False
        terms = weight.shape[1]
        magnitude = found.peak[_source(node)] * float(weight.sum(axis=1).max())
    else:
        return None
    return SumRange(str(node.name), node.op_type, terms, magnitude, fp16_sum_error(terms, same_sign=same_sign))


def _finite(number: float) -> float | None:
    """JSON knows neither infinity nor NaN."""
    return number if math.isfinite(number) else None


def _by_output(node: ir.Node) -> Array:
    """A node's weight as (outputs, terms of each output's sum)."""
    weight = _array(node.inputs[1])
    if node.op_type == "Conv":
        return weight.reshape(len(weight), -1)
    if weight.ndim == 1:
        return weight[np.newaxis]
    return weight if node.attributes.get_int("transB", 0) else weight.T


def _reduced_terms(node: ir.Node) -> int:
    """How many values make one output; a dynamic axis counts as one."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    assert shape is not None
    axes = _array(node.inputs[1]).tolist() if len(node.inputs) > 1 else range(len(shape))
    return math.prod(size for axis in axes if isinstance(size := shape[axis], int))


def _source(node: ir.Node) -> str:
    """The name of a product's input; a moved value has the range of what was moved."""
    value = node.inputs[0]
    assert value is not None
    return str(value.name)


def _activations(node: ir.Node) -> Iterator[ir.Value]:
    """The float values that a node reads or makes, weights apart."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype == _FLOAT and not _is_weight(value) and value.name:
            yield value


def _weights(node: ir.Node) -> Iterator[ir.Value]:
    for value in node.inputs:
        if value is not None and value.dtype == _FLOAT and _is_weight(value):
            yield value


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _array(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())
