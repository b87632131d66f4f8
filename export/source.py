"""What a build starts from: a checkpoint of our network, one of any module that a factory makes, or a given ONNX.

One place for what differs between them: how it is read, how it becomes the FP32 graph, and which FP32 baseline that
graph and everything made of it is held against.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir

from fourphase.calibration.ladder import Baseline
from fourphase.export.checkpoint import Checkpoint, load_checkpoint
from fourphase.export.given_onnx import GivenOnnx, given_baseline, load_given_onnx, model_of_given
from fourphase.export.network import FourPhaseNet
from fourphase.export.onnx_export import onnx_from_module, onnx_from_network
from fourphase.export.parity import torch_baseline
from fourphase.export.pass_unroll_gru import unroll_gru
from fourphase.runtime.errors import UsageError

__all__ = ["Source", "baseline_of", "four_phase_of", "load_source", "onnx_of", "parameters_of"]

Source = Checkpoint | GivenOnnx


def load_source(path: Path, config: Path | None = None, model: str | None = None) -> Source:
    """Reads CHECKPOINT of the commands: `.onnx`, or what `load_checkpoint` reads.

    Raises: as `load_given_onnx` and `load_checkpoint`; UsageError (2) for an .onnx beside `model`.
    """
    if path.suffix != ".onnx":
        return load_checkpoint(path, config, model)
    if model is not None:
        raise UsageError(
            f"--model makes a network for weights, {path.name} is a whole model", "leave --model out", key="model_given"
        )
    return load_given_onnx(path, config)


def onnx_of(source: Source, gru: str) -> tuple[onnx.ModelProto, bool]:
    """The FP32 graph of a source, with the GRU in one of `GRU_FORMS`, and whether there is a GRU in it at all.

    Raises: ExportRefused (25); ModelIncompatible (20) for a given ONNX.
    """
    if isinstance(source, Checkpoint) and isinstance(source.network, FourPhaseNet):
        return onnx_from_network(source.network, source.preprocessing, gru), source.network.config.spm
    if isinstance(source, GivenOnnx):
        model = model_of_given(source)
    else:
        model = onnx_from_module(source.network, source.interface, source.preprocessing)
    if gru == "unrolled":
        return _unrolled(model)
    return model, any(node.op_type == "GRU" for node in model.graph.node)


def baseline_of(source: Source, model: onnx.ModelProto | None = None) -> Baseline:
    """The FP32 truth: PyTorch's, or that of the file given, whose blocks are then those of `model`."""
    return given_baseline(source, model) if isinstance(source, GivenOnnx) else torch_baseline(source.network)


def four_phase_of(source: Source) -> FourPhaseNet:
    """Our network, for what is only known to work for it.

    Raises: UsageError (2) for another one.
    """
    network = source.network if isinstance(source, Checkpoint) else None
    if isinstance(network, FourPhaseNet):
        return network
    raise UsageError(
        "only our own network can be split: of another one it is not known that slices do not mix",
        "leave --split out",
        key="split_impossible",
    )


def parameters_of(source: Source) -> int:
    """How many weights there are; of a given ONNX, the values of its float initializers."""
    if isinstance(source, Checkpoint):
        return sum(parameter.numel() for parameter in source.network.parameters())
    return sum(prod(t.dims) for t in source.model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)


def _unrolled(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    graph, modified = unroll_gru(ir.serde.deserialize_model(model))
    return ir.serde.serialize_model(graph), modified
