"""A split model against its whole: the same outputs, chunks that do not see each other, and what memory both take.

It cuts nothing; `split` does. Figures of memory are a model's (see `activation_memory`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from fourphase.calibration.activation_memory import peak_activations
from fourphase.calibration.cpu_session import cpu_session
from fourphase.calibration.rounding import rounded_session
from fourphase.export.onnx_export import OUTPUTS
from fourphase.export.parity import BLOCK_SLACK, FP32_RTOL, BlockParity, compare
from fourphase.export.split import FEATURES, SplitModel
from fourphase.runtime.console import progress
from fourphase.runtime.errors import ParityFailed

__all__ = ["INDEPENDENCE", "SplitParity", "require_equal", "run_split", "split_memory"]

Array = NDArray[np.float32]
Session = Callable[[Array], dict[str, Array]]

#: Largest difference of an output over the largest of the whole's; features may have `BLOCK_SLACK` times as much, as
#: blocks have in `parity`. Chunks do the same arithmetic, and mostly not one bit differs; with S = 1 ONNX Runtime
#: multiplies a single row in another order (FP32 logits: 4e-7 on small networks, 1.5e-6 at full size). Should that tip
#: a rounding to FP16 or to an int8 code, it may move an output by what the self-check allows at the least (`golden`).
_RTOL = {"fp32": FP32_RTOL, "fp16": 1e-3, "int8": 1e-2}
#: Every chunk's features in the whole graph with its neighbours blanked: the same shapes, so the very same bits.
INDEPENDENCE = "independence"


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
