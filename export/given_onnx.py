"""Bring your own ONNX: a graph with the contract's names is read, held against its interface, and cleaned for lowering.

There is no PyTorch to compare with. The one FP32 baseline of everything built from such a file is the file itself in
ONNX Runtime, and reports say so: whether it computes what some network did is for whoever exported it.

Cleaning is onnxscript's optimizer (constants folded, batch norms into convolutions) and names: every node gets one, and
a block from the module path that PyTorch's exporters left in it; without any, all is the block `network`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from fourphase.calibration.blocks import BLOCK_KEY, BLOCKS_KEY
from fourphase.calibration.evaluation import Run, fp32_session
from fourphase.calibration.ladder import Baseline
from fourphase.export.checkpoint import read_config
from fourphase.export.guards import Finding, check_any_graph
from fourphase.export.interface import OUTPUTS, Interface, interface_from_dict
from fourphase.export.node_parts import name_parts
from fourphase.export.onnx_export import OPSET, without_traces
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import InputMissing, ModelIncompatible, UsageError
from fourphase.runtime.inference_checks import first_line

__all__ = [
    "GIVEN",
    "GIVEN_GRAPH",
    "GivenOnnx",
    "block_of_node",
    "given_baseline",
    "load_given_onnx",
    "model_of_given",
    "parse_onnx",
]

#: The name of the baseline, and a sentence for the report.
GIVEN = "the given ONNX in ONNX Runtime"
#: The name of the graph that is made of it; its blocks are called as its own exporter called them.
GIVEN_GRAPH = "given"
_NOT_MEASURED = "parity with PyTorch was not measured: the model came as ONNX, and that file is the baseline"
_OPSET_FLOOR = 18
_INTERFACE_CURE = (
    "name input and outputs study, logits and phase_logits, float32, with a dynamic batch and all else static;"
    " give [model] and [preprocessing] in --config if they are not the defaults"
)
#: Guards whose violation no other name or size would cure.
_CURES = {"not_fp32": "export it again in FP32, without quantization; fp-export lowers and judges it"}
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_WHOLE = "network"
_NUMBERED = re.compile(r"\.\d+")


@dataclass(frozen=True, eq=False)
class GivenOnnx:
    """An ONNX that somebody else exported, and what its configuration says of it; see `checkpoint.Checkpoint`."""

    model: onnx.ModelProto
    preprocessing: PreprocessingConfig
    sha256: str
    notes: tuple[str, ...]
    interface: Interface
    section: Mapping[str, Any]


def load_given_onnx(path: Path, config: Path | None = None) -> GivenOnnx:
    """Reads `MODEL.onnx`; `config` (TOML) may say [model] phases and classes, and [preprocessing].

    Raises: InputMissing (10); UsageError (2) for a wrong configuration; ModelIncompatible (20) for a file that is no
        ONNX, has an opset below 18, weights outside the file, or another interface than the contract's.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputMissing(f"the model {path} cannot be read: {error.strerror}", "check the path") from error
    sections = read_config(config) if config else {}
    if "network" in sections:
        raise UsageError(
            "the table [network] speaks of a PyTorch network, the model is an .onnx",
            "give only [model] phases and classes, and [preprocessing]",
            key="config_invalid",
        )
    model = parse_onnx(data)
    preprocessing = PreprocessingConfig.from_dict(sections.get("preprocessing", {}))
    named = interface_from_dict(sections.get("model", {}))
    outputs = OUTPUTS if any(value.name == OUTPUTS[1] for value in model.graph.output) else OUTPUTS[:1]
    interface = Interface(named.phases, named.classes, outputs)
    _require_interface(model, interface, preprocessing)
    digest = hashlib.sha256(data).hexdigest()
    section = {"onnx": {"sha256": digest, "producer": model.producer_name, "opset": _opset(model)}}
    return GivenOnnx(model, preprocessing, digest, (_NOT_MEASURED,), interface, section)


def parse_onnx(data: bytes) -> onnx.ModelProto:
    """Bytes -> a model that onnx.checker accepts.

    Raises: ModelIncompatible (20).
    """
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model, full_check=False)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ModelIncompatible(
            f"it is not a valid ONNX model: {first_line(error)}", "export it again", key="onnx_invalid"
        ) from error
    return model


def _require_interface(model: onnx.ModelProto, interface: Interface, preprocessing: PreprocessingConfig) -> None:
    opset = _opset(model)
    if opset < _OPSET_FLOOR:
        raise ModelIncompatible(
            f"the model's opset is {opset}, {_OPSET_FLOOR} is the least", "export it again with opset 20", key="opset"
        )
    found = check_any_graph(_with_opset(model, OPSET), interface, preprocessing, of_module=False)
    if found:
        first = found[0]
        raise ModelIncompatible(
            f"the model breaks the guard {first.guard} at {first.block} {first.node}: {first.message}",
            _CURES.get(first.guard, _INTERFACE_CURE),
            key=f"onnx_{first.guard}",
            table=[_row(finding) for finding in found],
        )


def _row(finding: Finding) -> dict[str, str]:
    return {"guard": finding.guard, "node": finding.node, "message": finding.message}


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _with_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The same graph under another number, for guards that are about what it will be converted to."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(version, entry.version)
    return copy


def given_baseline(given: GivenOnnx, model: onnx.ModelProto | None = None) -> Baseline:
    """The file in ONNX Runtime; blocks are those of `model`, what was made of it, or none.

    Raises: ModelIncompatible (20) if ONNX Runtime cannot load the file; so does the baseline where it cannot run it.
    """
    try:
        session = fp32_session(given.model.SerializeToString())
    except Exception as error:
        raise _not_runnable("load the model", error) from error
    blocks = Baseline.of_onnx(model).blocks if model is not None else lambda study: {}
    return Baseline(_explained(session), blocks, GIVEN)


def _explained(session: Run) -> Run:
    def run(study: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
        try:
            return session(study)
        except Exception as error:
            raise _not_runnable(f"run the model on {len(study)} studies at once", error) from error

    return run


def _not_runnable(what: str, error: Exception) -> ModelIncompatible:
    return ModelIncompatible(
        f"ONNX Runtime cannot {what}: {first_line(error)}",
        "export it again so that a batch of any size runs (no fixed batch in a Reshape)",
        key="onnx_not_runnable",
    )


def model_of_given(given: GivenOnnx) -> onnx.ModelProto:
    """The graph as it ships in FP32: opset 20 at least, optimized, with named nodes and blocks.

    Raises: ModelIncompatible (20) if it cannot be read node by node, or onnxscript cannot convert or optimize it.
    """
    try:
        model = ir.serde.deserialize_model(given.model)
        blocks = {id(node): block_of_node(node) for node in model.graph}
        for node in model.graph:
            node.metadata_props[BLOCK_KEY] = blocks[id(node)]
        model = _optimized(model)
    except Exception as error:
        raise ModelIncompatible(
            f"the model cannot be optimized: {first_line(error)}",
            "export it again with PyTorch's exporter (dynamo=True) and opset 20",
            key="onnx_unsupported",
        ) from error
    _name_nodes(model)
    name_parts(model)
    model.metadata_props.clear()
    model.metadata_props[BLOCKS_KEY] = json.dumps(_name_outputs_of_blocks(model))
    model.graph.name = GIVEN_GRAPH
    return without_traces(ir.serde.serialize_model(model))


def _optimized(model: ir.Model) -> ir.Model:
    from onnxscript import optimizer, version_converter

    if model.opset_imports.get("", 0) < OPSET:
        version_converter.convert_version(model, target_version=OPSET)
    optimizer.optimize(model)
    common.RemoveUnusedNodesPass()(model)
    common.ShapeInferencePass()(model)
    return model


def _name_nodes(model: ir.Model) -> None:
    """Every node a name of its own, and the block of what it was made from (new nodes: of what they read)."""
    names: set[str] = set()
    for index, node in enumerate(model.graph):
        if not node.name or node.name in names:
            node.name = f"{node.op_type}_{index}"
        names.add(node.name)
        if BLOCK_KEY not in node.metadata_props:
            before = (value.producer() for value in node.inputs if value is not None)
            known = [maker.metadata_props[BLOCK_KEY] for maker in before if maker is not None]
            node.metadata_props[BLOCK_KEY] = known[0] if known else _WHOLE
        kept = node.metadata_props[BLOCK_KEY]
        node.metadata_props.clear()
        node.metadata_props[BLOCK_KEY] = kept
        node.doc_string = None


def _name_outputs_of_blocks(model: ir.Model) -> list[str]:
    """Blocks with one output get it named after them; returns those names in the order of the graph."""
    leaving: dict[str, list[ir.Value]] = {}
    for node in model.graph:
        block = node.metadata_props[BLOCK_KEY].partition("/")[0]
        leaving.setdefault(block, [])
        floats = [value for value in node.outputs if value.dtype == ir.DataType.FLOAT]
        leaving[block] += [value for value in floats if _leaves(value, block)]
    taken = {value.name for node in model.graph for value in node.outputs} | set(model.graph.initializers)
    named = []
    for block, values in leaving.items():
        if len(values) == 1 and not values[0].is_graph_output() and block not in taken:
            values[0].name = block
            named.append(block)
    return named


def _leaves(value: ir.Value, block: str) -> bool:
    readers = [use.node.metadata_props[BLOCK_KEY].partition("/")[0] for use in value.uses()]
    return value.is_graph_output() or any(reader != block for reader in readers)


def block_of_node(node: ir.Node) -> str:
    """The block of a node from the module path that PyTorch's exporters write into its metadata or its name.

    `/layer1/layer1.0/conv1/Conv` and the scopes `layer1`, `layer1.0`, `layer1.0.conv1` are both of `layer1.0`: a direct
    child of the network, or the child of a container.
    """
    scopes = node.metadata_props.get(_SCOPES_KEY)
    if scopes is not None:
        # The last one is the operator; "_empty..." stands for none.
        path = [scope for scope in ast.literal_eval(scopes)[:-1] if scope and not scope.startswith("_")]
    else:
        path = (node.name or "").split("/")[1:-1]
    if not path:
        return _WHOLE
    block = str(path[0])
    for part in path[1:]:
        if not (part.startswith(block) and _NUMBERED.fullmatch(part[len(block) :])):
            break
        block = part
    return block
