"""Checkpoint -> verified ONNX -> bundle: the steps of `fp-export`, each of which may refuse and leaves nothing behind.

This version writes FP32. FP16 and INT8 are refused, not approximated.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fourphase.calibration.blocks import node_blocks
from fourphase.engine.builder import BuildOptions, EnginePlan, build_engine, check_build
from fourphase.engine.bundle import BundleContents, OnnxModel, check_target, write_bundle
from fourphase.engine.flavour import Target, choose_target
from fourphase.export.checkpoint import Checkpoint, load_checkpoint
from fourphase.export.golden import golden_codes, golden_outputs
from fourphase.export.guards import check_graph, require_clean
from fourphase.export.onnx_export import onnx_from_network
from fourphase.export.parity import ParityReport, measure_parity, require_parity
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.console import progress
from fourphase.runtime.golden import study_from_codes

__all__ = ["BuildResult", "VerifiedModel", "build_bundle", "verified_onnx", "verify_model"]

#: Parity is measured at batch 1, 2 and 3; two of the three inputs go into the bundle.
_PARITY_STUDIES = 3
_GOLDEN_STUDIES = 2
_TOOLS = ("fourphase", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors")


@dataclass(frozen=True, eq=False)
class VerifiedModel:
    """An FP32 ONNX that passed guards and parity.

    Attributes:
        codes: the inputs it was compared on, uint8 (3, P, T, C, H, W).
    """

    checkpoint: Checkpoint
    model: onnx.ModelProto
    data: bytes
    parity: ParityReport
    codes: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class BuildResult:
    """What `build_bundle` made: the bundle as read back, its target, and the content of its report."""

    bundle: Bundle
    target: Target
    report: dict[str, Any]


def verified_onnx(checkpoint: Checkpoint) -> VerifiedModel:
    """Exports a checkpoint and verifies the graph.

    Raises: ExportRefused (25), ParityFailed (27) naming the block.
    """
    with progress("exporting to ONNX", None):
        model = onnx_from_network(checkpoint.network, checkpoint.preprocessing)
    return verify_model(checkpoint, model)


def verify_model(checkpoint: Checkpoint, model: onnx.ModelProto) -> VerifiedModel:
    """Holds an ONNX graph against its checkpoint: guards first, then numbers.

    Raises: ParityFailed (27) naming the node or block.
    """
    config, preprocessing = checkpoint.network.config, checkpoint.preprocessing
    require_clean(check_graph(model, config, preprocessing))
    codes = golden_codes(_PARITY_STUDIES, config.count, preprocessing)
    parity = measure_parity(checkpoint.network, model, study_from_codes(codes, preprocessing))
    require_parity(parity)
    return VerifiedModel(checkpoint, model, model.SerializeToString(), parity, codes)


def build_bundle(
    path: Path,
    output: Path,
    *,
    config: Path | None = None,
    target: str = "auto",
    compute_capabilities: Sequence[str] = (),
) -> BuildResult:
    """Builds the FP32 bundle of a checkpoint; an existing bundle is replaced only when everything passed.

    Args:
        path: the checkpoint. config: TOML that overrides what it carries.
        target: "auto", "tensorrt", "tensorrt-rtx" or "none" (ONNX only).
        compute_capabilities: for TensorRT for RTX: the GPUs to build for, such as "8.9".
    """
    started = time.monotonic()
    check_target(output)
    chosen = choose_target(target)
    options = BuildOptions(compute_capabilities=tuple(compute_capabilities))
    if chosen.name != "none":
        check_build(chosen.name, options)
    verified = verified_onnx(load_checkpoint(path, config))
    blocks = node_blocks(verified.model)
    engines: tuple[EnginePlan, ...] = ()
    if chosen.name != "none":
        engines = (build_engine(verified.data, chosen.name, precision="fp32", options=options, blocks=blocks),)
    report = _report(verified, chosen, engines, time.monotonic() - started)
    checkpoint, network = verified.checkpoint, verified.checkpoint.network
    contents = BundleContents(
        classes=network.config.classes,
        phases=network.config.phases,
        network=network.config.to_dict(),
        preprocessing=checkpoint.preprocessing,
        models={"fp32": OnnxModel(verified.data, dict.fromkeys(sorted(set(blocks.values())), "fp32"))},
        golden=golden_outputs(verified.codes[:_GOLDEN_STUDIES], verified.parity),
        engines=engines,
        parity={"torch_fp32_to_onnx_fp32": _summary(verified.parity)},
        report=report,
        tools=_tools(),
    )
    return BuildResult(write_bundle(output, contents), chosen, report)


def _summary(parity: ParityReport) -> dict[str, Any]:
    worst = parity.worst
    return {"rtol": parity.rtol, "worst_block": worst.block, "worst_relative": worst.relative, "rows": len(parity.rows)}


def _report(verified: VerifiedModel, target: Target, engines: tuple[EnginePlan, ...], seconds: float) -> dict[str, Any]:
    checkpoint = verified.checkpoint
    return {
        "schema": "fourphase.report/1",
        "checkpoint": {"sha256": checkpoint.sha256, "notes": list(checkpoint.notes)},
        "parameters": sum(parameter.numel() for parameter in checkpoint.network.parameters()),
        "onnx": {
            "bytes": len(verified.data),
            "sha256": hashlib.sha256(verified.data).hexdigest(),
            "nodes": len(verified.model.graph.node),
            "guards": "passed",
        },
        "parity": verified.parity.to_dict(),
        "target": {"name": target.name, "reason": target.reason},
        "engines": [{"key": engine.key, "bytes": len(engine.plan), **engine.meta} for engine in engines],
        "seconds": round(seconds, 1),
    }


def _tools() -> dict[str, str]:
    """Versions of what made the bundle; a package that is not installed is left out."""
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
