"""What a build says about itself: the content of report.json and the manifest's records. JSON types only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import onnx

from fourphase.calibration.cached_scales import CachedScales
from fourphase.calibration.calibration_set import CalibrationSet
from fourphase.calibration.ladder import TORCH, Jury, Rung
from fourphase.calibration.range_audit import RangeReport
from fourphase.engine.build import EnginePlan
from fourphase.engine.bundle import GoldenFile
from fourphase.export.parity import ParityReport
from fourphase.export.source import Source, parameters_of

__all__ = [
    "calibration_record",
    "engine_records",
    "golden_record",
    "ladder_record",
    "parity_record",
    "report_of",
    "tool_versions",
]

_TOOLS = ("fourphase", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors")


def report_of(
    checkpoint: Source,
    model: onnx.ModelProto,
    parity: ParityReport,
    rungs: Sequence[Rung],
    jury: Jury,
    ranges: RangeReport | None,
    gru: tuple[str, str],
    engines: Sequence[EnginePlan],
) -> dict[str, Any]:
    """The report of one build, in the order in which things were made."""
    data = model.SerializeToString()
    return {
        "schema": "fourphase.report/1",
        "checkpoint": {"sha256": checkpoint.sha256, "notes": list(checkpoint.notes)},
        "parameters": parameters_of(checkpoint),
        "precision": rungs[-1].step.precision,
        "gru": {"form": gru[0], "reason": gru[1]},
        "onnx": {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "nodes": len(model.graph.node),
            "guards": "passed",
        },
        "parity": parity.to_dict(),
        "judged_on": jury.to_dict(),
        "ladder": [rung.to_dict() for rung in rungs],
        "ranges": ranges.to_dict() if ranges else None,
        "engines": engine_records(engines),
        "tools": tool_versions(),
    }


def engine_records(engines: Sequence[EnginePlan]) -> list[dict[str, Any]]:
    return [{"key": engine.key, "bytes": len(engine.plan), **engine.meta} for engine in engines]


def parity_record(parity: ParityReport) -> dict[str, Any]:
    """The manifest's: the worst block of the first hop, from the baseline to the FP32 ONNX."""
    worst = parity.worst
    return {
        "torch_fp32_to_onnx_fp32" if parity.baseline == TORCH else "given_onnx_to_onnx_fp32": {
            "rtol": parity.rtol,
            "worst_block": worst.block,
            "worst_relative": worst.relative,
            "rows": len(parity.rows),
        }
    }


def ladder_record(rungs: Sequence[Rung], jury: Jury, baseline: str = TORCH) -> dict[str, Any]:
    """The manifest's: what was measured of every precision, on what, without the blocks."""
    verdicts = {rung.step.precision: rung.verdict.to_dict() for rung in rungs}
    return {"baseline": baseline, "judged_on": jury.to_dict(), "verdicts": verdicts}


def calibration_record(data: CalibrationSet | None, scales: CachedScales | None) -> dict[str, Any] | None:
    """On what, and how, the int8 scales were computed; None without any."""
    if data is None or scales is None:
        return None
    return {
        "studies": len(data),
        "hash": data.hash,
        "cases": [case.case for case in data.cases],
        "contents": [case.sha256 for case in data.cases],
        "salted": data.salted,
        "algorithm": scales.scales.algorithm,
        "scales": len(scales.scales.values),
        "scales_file": "scales.json",
        "from_cache": scales.from_cache,
        "hu_histograms": dict(data.hu_histograms),
    }


def golden_record(golden: GoldenFile) -> dict[str, Any]:
    """Precision -> what a backend may differ by at the start-up self-check."""
    return {name: asdict(found.tolerance) for name, found in golden.outputs.items()}


def tool_versions() -> dict[str, str]:
    """Versions of what made the bundle; a package that is not installed is left out."""
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
