"""One graph -> two that compute the same: a trunk over a chunk of slices, and a tail over all slices' features.

In front of the features (B, P, T, F) nothing looks from one slice to another, so the trunk may see the slices S at a
time: its activations shrink by S / T, and it may have other types than the tail. Both are parts of the whole, lowered
graph: weights, scales, types, names and blocks are the whole's own. All that a chunk changes are the shapes in which
the exporter wrote T down. They come from a second export of the same network, with S slices, matched node by node:
names differ between two exports, the graphs must not. Where to cut is found in the data flow, not by a name.

It proves nothing by itself: `require_equal` measures, and finds a network that does mix slices. It builds no engine,
and its figures of memory are a model's (see `activation_memory`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from fourphase.calibration.activation_memory import lifetimes, peak_activations
from fourphase.calibration.blocks import BLOCK_KEY, BLOCKS_KEY, block_names
from fourphase.calibration.cpu_session import cpu_session
from fourphase.calibration.rounding import rounded_session
from fourphase.export.network import FourPhaseNet
from fourphase.export.onnx_export import OUTPUTS, onnx_from_network
from fourphase.export.parity import BLOCK_SLACK, FP32_RTOL, BlockParity, compare
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.console import progress
from fourphase.runtime.errors import ExportRefused, ParityFailed, UsageError

__all__ = [
    "FEATURES",
    "SplitModel",
    "SplitParity",
    "check_slices",
    "require_equal",
    "run_split",
    "split_memory",
    "split_model",
]

Array = NDArray[np.float32]
Session = Callable[[Array], dict[str, Array]]
#: (P, slices, F): the features' sizes behind the batch.
Sizes = tuple[int, int, int]

#: The trunk's output and the tail's input.
FEATURES = "features"
#: Largest difference of an output over the largest of the whole's; features may have `BLOCK_SLACK` times as much, as
#: blocks have in `parity`. Chunks do the same arithmetic: on the small networks of the tests nothing differs, but for
#: S = 1, where ONNX Runtime multiplies a single row in another order (4e-7). Should that tip a rounding to FP16 or to
#: an int8 code, it may move an output by what the self-check allows every backend at the least (`golden`).
_RTOL = {"fp32": FP32_RTOL, "fp16": 1e-3, "int8": 1e-2}
#: Every chunk's features in the whole graph with its neighbours blanked: the same shapes, so the very same bits.
INDEPENDENCE = "independence"
#: What lowering adds to a graph: behind it is the same value, rounded.
_CONVERSIONS = ("Cast", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, eq=False)
class SplitModel:
    """The two parts of one graph; every axis but the batch is static.

    Attributes:
        trunk: `study` float32 (B, P, S, C, H, W) -> `features` (B, P, S, F).
        tail: `features` (B, P, T, F) -> `logits` float32 (B, K), `phase_logits` float32 (B, P, K).
        slices: S.
        dtype: of the features, "float32" or "float16": the precision of the block `body`, which pools the maps. It is
            FP32 in the default policies, so that their tail is FP32 but for `conv1d`.
        cut: the features' name in the whole graph.
    """

    trunk: onnx.ModelProto
    tail: onnx.ModelProto
    slices: int
    dtype: str
    cut: str


@dataclass(frozen=True)
class SplitParity:
    """The split form against the whole graph on so many studies.

    Attributes:
        rows: `independence` (each chunk's features in the whole graph while its neighbours are blank, against those of
            the full study: not one bit may differ, in any precision), `features`, `logits`, `phase_logits`.
        method: "onnxruntime" (FP32 graphs, as fp-run computes them) or "literal" (every FP16 value is rounded, see
            `rounding`).
    """

    slices: int
    studies: int
    method: str
    rows: tuple[BlockParity, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}


def split_model(
    network: FourPhaseNet, preprocessing: PreprocessingConfig, whole: onnx.ModelProto, slices: int
) -> SplitModel:
    """Cuts a graph of the network into trunk and tail.

    Args:
        whole: the network's export for `preprocessing`, with either form of the GRU, lowered by any policy or none.
        slices: S, the slices of one chunk.

    Raises: UsageError (2) if S does not divide T; ParityFailed (27) naming the node where `whole` is not the graph that
        the network is exported to for S slices; ExportRefused (25) if no single value holds the features.
    """
    total = preprocessing.size[0]
    check_slices(slices, total)
    phases, width = network.config.count, network.config.stage_channels[-1]
    trunk = _Trunk(whole, (phases, total, width))
    cut, dtype = str(trunk.cut.name), _dtype_name(trunk.cut)
    if slices != total:
        chunk = onnx_from_network(network, replace(preprocessing, size=(slices, *preprocessing.size[1:])))
        trunk.take_shapes(_Trunk(chunk, (phases, slices, width)))
    return SplitModel(trunk.finished(slices), _tail(whole, (phases, total, width)), slices, dtype, cut)


def run_split(split: SplitModel, studies: Array) -> dict[str, Array]:
    """`features`, `logits`, `phase_logits` of studies float32 (B, P, T, C, H, W), one study and one chunk at a time.

    FP32 parts run in ONNX Runtime as fp-run runs the whole; others by the literal evaluation, all values in float32.
    """
    literal = _precision(split.trunk, split.tail) != "fp32"
    trunk, tail = _session(split.trunk, literal), _session(split.tail, literal)

    def run(study: Array) -> dict[str, Array]:
        chunks = [study[:, :, first : first + split.slices] for first in range(0, study.shape[2], split.slices)]
        features = np.concatenate([trunk(np.ascontiguousarray(chunk))[FEATURES] for chunk in chunks], axis=2)
        return {FEATURES: features, **tail(features)}

    return _one_by_one(run, studies, f"running in chunks of {split.slices}")


def require_equal(split: SplitModel, whole: onnx.ModelProto, studies: Array) -> SplitParity:
    """Runs both forms in the same way on studies float32 (B, P, T, C, H, W), and compares features and outputs.

    That the chunks know nothing of each other is looked at on the first study, in the whole graph.

    Raises: ParityFailed (27) with the measured difference.
    """
    precision = _precision(whole)
    found = run_split(split, studies)
    run = _session(whole, precision != "fp32", split.cut)
    reference = _one_by_one(run, studies, "running the whole graph")
    reference[FEATURES] = reference[split.cut]
    alone = _features_alone(lambda study: run(study)[split.cut], studies[:1], split.slices)
    rtol, count = _RTOL[precision], len(studies)
    rows = (
        compare(INDEPENDENCE, reference[FEATURES][:1], alone, 1, 0.0),
        compare(FEATURES, reference[FEATURES], found[FEATURES], count, BLOCK_SLACK * rtol),
        *(compare(name, reference[name], found[name], count, rtol) for name in OUTPUTS),
    )
    _require_passed(rows, split.slices)
    return SplitParity(split.slices, count, "onnxruntime" if precision == "fp32" else "literal", rows)


def _features_alone(run: Callable[[Array], Array], study: Array, slices: int) -> Array:
    """The features of one study's chunks: of the even ones while the odd ones are zero, and the other way round."""
    chunk = np.arange(study.shape[2]) // slices
    even, odd = (run(np.where((chunk % 2 == side)[:, None, None, None], study, np.float32(0))) for side in (0, 1))
    return np.where((chunk % 2 == 0)[:, None], even, odd)


def _require_passed(rows: Sequence[BlockParity], slices: int) -> None:
    failed = [row for row in rows if not row.passed]
    if not failed:
        return
    first = failed[0]
    cause = (
        f"{first.block} is off by {first.max_abs:.3g} ({first.relative:.2g} of its range, {first.allowed:g} allowed)"
    )
    if first.block == INDEPENDENCE:
        cause = f"its trunk looks from one chunk to another, which changes the features by up to {first.max_abs:.3g}"
    raise ParityFailed(
        f"in chunks of {slices} slices the network computes something else: {cause}",
        "build the whole graph, without --split",
        key="split_differs",
        table=[{"block": row.block, "max abs": f"{row.max_abs:.3g}", "rel": f"{row.relative:.3g}"} for row in failed],
    )


def split_memory(split: SplitModel, whole: onnx.ModelProto) -> dict[str, Any]:
    """Activation memory of both forms for one study, by `peak_activations`; JSON types only.

    While the trunk runs, the features of all slices are kept beside its own values (a chunk of the study among them;
    the study itself stays where it was prepared). `split_peak_bytes` lets trunk and tail, which never run at the same
    time, use the same memory; `ratio` is that over the whole's peak.
    """
    peaks = {"whole": whole, "trunk": split.trunk, "tail": split.tail}
    found = {name: peak_activations(model) for name, model in peaks.items()}
    features = found["tail"].input_bytes
    peak = max(found["trunk"].peak_bytes + features, found["tail"].peak_bytes)
    return {
        "slices": split.slices,
        **{name: value.to_dict() for name, value in found.items()},
        "features_bytes": features,
        "split_peak_bytes": peak,
        "ratio": round(peak / found["whole"].peak_bytes, 4),
    }


def _one_by_one(run: Session, studies: Array, description: str) -> dict[str, Array]:
    found = []
    with progress(description, len(studies)) as advance:
        for index in range(len(studies)):
            found.append(run(studies[index : index + 1]))
            advance(1)
    return {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}


def _session(model: onnx.ModelProto, literal: bool, marked: str | None = None) -> Session:
    """Prepares a part, or the whole graph with the value `marked` as one more output; float32 in and out."""
    graph = ir.serde.deserialize_model(model)
    if marked is not None:
        graph.graph.outputs.append(ir.convenience.create_value_mapping(graph.graph)[marked])
    if literal:
        for value in graph.graph.inputs:
            # FP16 features are numbers of FP16's grid in float32, like all FP16 values of this evaluation.
            value.type = ir.TensorType(ir.DataType.FLOAT)
        return rounded_session(graph)
    session = cpu_session(ir.serde.serialize_model(graph).SerializeToString())
    (source,), names = session.get_inputs(), [output.name for output in session.get_outputs()]
    return lambda values: dict(zip(names, session.run(names, {source.name: values}), strict=True))


def _precision(*models: onnx.ModelProto) -> str:
    """The lowest that a value or a weight has."""
    graphs = [model.graph for model in models]
    types = {tensor.data_type for graph in graphs for tensor in graph.initializer}
    types |= {value.type.tensor_type.elem_type for graph in graphs for value in (*graph.input, *graph.value_info)}
    if onnx.TensorProto.INT8 in types:
        return "int8"
    return "fp16" if onnx.TensorProto.FLOAT16 in types else "fp32"


class _Trunk:
    """The part of a graph in front of the features (B, *sizes)."""

    def __init__(self, model: onnx.ModelProto, sizes: Sizes) -> None:
        self.model = ir.serde.deserialize_model(model)
        self.graph = self.model.graph
        self.cut = _cut(self.graph, sizes)
        self.graph.outputs[:] = [self.cut]
        common.RemoveUnusedNodesPass()(self.model)

    def take_shapes(self, chunk: _Trunk) -> None:
        """Gives the nodes the shapes (integer constants) of the chunk's export, where they differ.

        Raises: ParityFailed (27) where the two are not the same graph.
        """
        twins = dict(zip(chunk.graph.inputs, self.graph.inputs, strict=True))
        nodes, others = _plain_nodes(self.graph), _plain_nodes(chunk.graph)
        for node, other in zip(nodes, others, strict=False):
            if _signature(node) != _signature(other):
                raise _another_graph(node, _how(node, other))
            for index, (value, twin) in enumerate(zip(node.inputs, other.inputs, strict=True)):
                self._match(node, index, _source(value), twin, twins)
            twins.update(zip(other.outputs, node.outputs, strict=True))
        if len(nodes) != len(others) or twins.get(chunk.cut) is not _source(self.cut):
            raise _another_graph(nodes[-1], "the features come from elsewhere")

    def _match(
        self, node: ir.Node, index: int, value: ir.Value | None, twin: ir.Value | None, twins: dict[ir.Value, ir.Value]
    ) -> None:
        constant, wanted = (None if one is None else one.const_value for one in (value, twin))
        if constant is None or wanted is None:
            if constant is not wanted or (None if twin is None else twins.get(twin)) is not value:
                raise _another_graph(node, f"its input {index} comes from elsewhere")
        elif wanted.dtype != ir.DataType.INT64:
            if not _same_weight(constant.numpy(), wanted.numpy()):
                raise _another_graph(node, f"its input {index} has another weight")
        elif not np.array_equal(constant.numpy(), wanted.numpy()):
            name = f"{node.name}.{index}.chunk"
            replacement = ir.val(name, const_value=ir.tensor(wanted.numpy(), name=name))
            self.graph.register_initializer(replacement)
            node.replace_input_with(index, replacement)

    def finished(self, slices: int) -> onnx.ModelProto:
        """The file, with the features' name and the chunk's sizes everywhere."""
        (study,), cut = self.graph.inputs, self.cut
        assert study.shape is not None
        assert cut.shape is not None
        features = ir.Shape([study.shape[0], cut.shape[1], slices, cut.shape[3]])
        study.shape = ir.Shape([*study.shape[:2], slices, *study.shape[3:]])
        for node in self.graph:
            for value in node.outputs:
                value.shape = None
        cut.name, cut.shape = FEATURES, features
        common.RemoveUnusedNodesPass()(self.model)
        common.ShapeInferencePass()(self.model)
        return _file(self.model)


def _tail(whole: onnx.ModelProto, sizes: Sizes) -> onnx.ModelProto:
    """The part of a graph behind the features (B, *sizes)."""
    model = ir.serde.deserialize_model(whole)
    (study,), cut = model.graph.inputs, _cut(model.graph, sizes)
    assert study.shape is not None
    features = ir.val(FEATURES, dtype=cut.dtype, shape=ir.Shape([study.shape[0], *sizes]))
    ir.convenience.replace_all_uses_with(cut, features)
    model.graph.inputs[:] = [features]
    common.RemoveUnusedNodesPass()(model)
    return _file(model)


def _file(model: ir.Model) -> onnx.ModelProto:
    """A part as a file that names only the blocks that it holds. Checked with all shapes inferred."""
    part = ir.serde.serialize_model(model)
    held = {str(value.name) for node in model.graph for value in node.outputs}
    blocks = json.dumps([name for name in block_names(part) if name in held])
    onnx.helper.set_model_props(part, {entry.key: entry.value for entry in part.metadata_props} | {BLOCKS_KEY: blocks})
    onnx.checker.check_model(part, full_check=True)
    return part


def _cut(graph: ir.Graph, sizes: Sizes) -> ir.Value:
    """The last value (B, *sizes) through which everything passes from the input to the outputs.

    Raises: ExportRefused (25) if there is none.
    """
    alone = [value for moment in lifetimes(graph) if len(moment.after) == 1 for value in moment.after]
    features = [value for value in alone if value.shape is not None and tuple(value.shape[1:]) == sizes]
    if not features:
        raise ExportRefused(
            f"the graph cannot be split: no value (batch, {', '.join(map(str, sizes))}) is all that its heads read",
            "build the whole graph, without --split",
            key="split_no_cut",
        )
    return features[-1]


def _plain_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of the FP32 graph: without what lowering added."""
    return [node for node in graph if node.op_type not in _CONVERSIONS]


def _source(value: ir.Value | None) -> ir.Value | None:
    """The value of the FP32 graph behind a chain of conversions."""
    while value is not None and (producer := value.producer()) is not None and producer.op_type in _CONVERSIONS:
        value = producer.inputs[0]
    return value


def _signature(node: ir.Node) -> tuple[Any, ...]:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return node.op_type, node.metadata_props.get(BLOCK_KEY), attributes, len(node.inputs), len(node.outputs)


def _how(node: ir.Node, other: ir.Node) -> str:
    if node.op_type != other.op_type:
        return f"it is {node.op_type} here and {other.op_type} there"
    return f"{node.op_type} differs in its block, its attributes or the number of its inputs"


def _same_weight(lowered: NDArray[Any], exported: NDArray[Any]) -> bool:
    """Int8 codes are compared in size only: their scales are the whole graph's affair."""
    if lowered.dtype == np.int8:
        return lowered.shape == exported.shape
    return np.array_equal(lowered, exported.astype(lowered.dtype))


def _another_graph(node: ir.Node, how: str) -> ParityFailed:
    return ParityFailed(
        f"for a chunk of slices the network is exported to another graph: at node {node.name} of block"
        f" {node.metadata_props.get(BLOCK_KEY, 'unknown')}, {how}",
        "build from the checkpoint that the graph was exported from, or without --split",
        key="split_nodes",
    )


def _dtype_name(value: ir.Value) -> str:
    assert value.dtype is not None
    return str(value.dtype.numpy())


def check_slices(slices: int, total: int) -> None:
    """Raises: UsageError (2) unless chunks of `slices` make up `total` slices."""
    divisors = [size for size in range(1, total + 1) if total % size == 0]
    if slices not in divisors:
        raise UsageError(
            f"a study's {total} slices cannot be cut into chunks of {slices}",
            f"choose one of {', '.join(map(str, divisors))}",
            key="split_slices",
        )
