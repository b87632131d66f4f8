"""Checkpoint -> verified ONNX -> lowered, judged models -> bundle: the steps of `fp-export build-engine`.

Each step may refuse, and a refusal leaves nothing behind: an existing bundle is replaced only when every gate passed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fourphase.calibration.blocks import Policy, node_blocks
from fourphase.calibration.cached_scales import CachedScales, cached_scales
from fourphase.calibration.gates import Acceptance
from fourphase.calibration.ladder import Jury, Rung, Step, climb, precisions_of, require_passed, steps_of
from fourphase.calibration.qdq import unquantized_nodes
from fourphase.calibration.range_audit import RangeReport, audit_first, require_range
from fourphase.engine.build import EnginePlan, build_engine, check_build
from fourphase.engine.bundle import BundleContents, GoldenFile, OnnxModel, SplitOnnx, check_target, write_bundle
from fourphase.engine.options import DEFAULT_OPTIONS, BuildOptions
from fourphase.engine.plans import engine_options, sources_of
from fourphase.export.build_report import (
    calibration_record,
    engine_records,
    golden_record,
    ladder_record,
    parity_record,
    report_of,
    tool_versions,
)
from fourphase.export.build_request import BuildRequest, StudySets, choose_jury, load_study_sets, policies_of
from fourphase.export.device_check import check_on_device
from fourphase.export.golden import GoldenStudies, golden_codes, golden_file
from fourphase.export.guards import guard_findings, require_clean
from fourphase.export.onnx_export import chosen_gru
from fourphase.export.parity import ParityReport, parity_with, require_parity, torch_baseline
from fourphase.export.report_html import report_html
from fourphase.export.source import Source, baseline_of, four_phase_of, load_source, onnx_of
from fourphase.export.split import SplitModel, check_slices, split_model
from fourphase.export.split_parity import require_equal, split_memory
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.console import note, progress
from fourphase.runtime.errors import UsageError
from fourphase.runtime.flavour import Target, choose_target
from fourphase.runtime.golden import study_from_codes

__all__ = [
    "BuildResult",
    "VerifiedModel",
    "build_bundle",
    "engines_of",
    "onnx_model_of",
    "torch_baseline",
    "verified_onnx",
    "verify_model",
]

Floats = NDArray[np.float32]

#: Parity is measured at batch 1, 2 and 3; two of the three inputs go into the bundle.
_PARITY_STUDIES = 3
_GOLDEN_STUDIES = 2


@dataclass(frozen=True, eq=False)
class VerifiedModel:
    """An FP32 ONNX that passed guards and parity.

    Attributes:
        codes: the inputs it was compared on, uint8 (3, P, T, C, H, W).
        has_gru: as the operator or unrolled.
    """

    checkpoint: Source
    model: onnx.ModelProto
    data: bytes
    parity: ParityReport
    codes: NDArray[np.uint8]
    has_gru: bool = False

    @property
    def golden(self) -> GoldenStudies:
        return GoldenStudies(self.codes, self.checkpoint.preprocessing)


@dataclass(frozen=True, eq=False)
class BuildResult:
    """What `build_bundle` made: the bundle as read back, its target, and the content of its report."""

    bundle: Bundle
    target: Target
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Judged:
    """Everything that was measured of the lowered models."""

    jury: Jury
    rungs: tuple[Rung, ...]
    ranges: RangeReport | None
    scales: CachedScales | None

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(rung.step for rung in self.rungs)


def verified_onnx(checkpoint: Source, gru: str = "loop") -> VerifiedModel:
    """Exports a checkpoint, of our network or another, or cleans a given ONNX; and verifies the graph.

    Raises: ExportRefused (25), ModelIncompatible (20) for a given ONNX, ParityFailed (27) naming the block.
    """
    with progress("exporting to ONNX", None):
        model, has_gru = onnx_of(checkpoint, gru)
    return replace(verify_model(checkpoint, model), has_gru=has_gru)


def verify_model(checkpoint: Source, model: onnx.ModelProto) -> VerifiedModel:
    """Holds an ONNX graph against its checkpoint: guards first, then numbers.

    Raises: ParityFailed (27) naming the node or block.
    """
    interface, preprocessing = checkpoint.interface, checkpoint.preprocessing
    require_clean(guard_findings(model, checkpoint.section, interface, preprocessing), checkpoint.section)
    codes = golden_codes(_PARITY_STUDIES, len(interface.phases), preprocessing)
    parity = parity_with(baseline_of(checkpoint), model, study_from_codes(codes, preprocessing))
    require_parity(parity)
    return VerifiedModel(checkpoint, model, model.SerializeToString(), parity, codes)


def build_bundle(path: Path, output: Path, request: BuildRequest | None = None) -> BuildResult:
    """Builds the bundle of a checkpoint; an existing bundle is replaced only when everything passed.

    Raises: UsageError (2), InputMissing (10), ModelIncompatible (20), ExportRefused (25), EngineBuildFailed (26),
        ParityFailed (27), AccuracyGateFailed (28), OutputNotWritable (30), EnvironmentFault (24).
    """
    request = request or BuildRequest()
    started = time.monotonic()
    check_target(output)
    target, options = choose_target(request.target), request.engine
    if target.name == "none" and (options != DEFAULT_OPTIONS or request.rebuilds > 1):
        note(f"no engine is built ({target.reason}): options for it are not used")
    if target.name != "none":
        check_build(target.name, options, request.precision)
    gru, acceptance, policy = chosen_gru(request.gru), request.thresholds(), request.given_policy()
    checkpoint = load_source(path, request.config, request.model)
    for line in checkpoint.notes:
        note(line)
    if request.split is not None:
        four_phase_of(checkpoint)
        check_slices(request.split, checkpoint.preprocessing.size[0])
    sets = load_study_sets(
        request.calibration, request.evaluation, checkpoint.preprocessing, checkpoint.interface.phases
    )
    _require_calibration(request, sets)
    verified = verified_onnx(checkpoint, gru[0])
    judged = _judge(verified, request, sets, policy, acceptance)
    require_passed(judged.rungs)
    last = judged.steps[-1]
    split, split_record = _split(verified, judged, request.split) if request.split else (None, None)
    models = {step.precision: onnx_model_of(step, split if step is last else None) for step in judged.steps}
    engines = engines_of(last.precision, models[last.precision], target, options)
    report = report_of(
        checkpoint,
        verified.model,
        verified.parity,
        judged.rungs,
        judged.jury,
        judged.ranges,
        _gru_of(verified, gru),
        engines,
    )
    kept = GoldenStudies(verified.codes[:_GOLDEN_STUDIES], checkpoint.preprocessing)
    golden = golden_file(kept, verified.parity.reference, judged.steps[1:])
    report |= {
        "calibration": calibration_record(sets.calibration, judged.scales),
        "golden": golden_record(golden),
        "split": split_record,
        "target": {"name": target.name, "reason": target.reason},
    }
    contents = _contents(verified, judged, models, golden, engines, report)
    fresh = replace(options, timing_cache=False)
    on_device, best = check_on_device(
        contents,
        last.precision,
        request.rebuilds,
        lambda: engines_of(last.precision, models[last.precision], target, fresh),
    )
    report |= {"on_device": on_device, "engines": engine_records(best)}
    report["seconds"] = round(time.monotonic() - started, 1)
    return BuildResult(write_bundle(output, with_report(replace(contents, engines=best), report)), target, report)


def _gru_of(verified: VerifiedModel, chosen: tuple[str, str]) -> tuple[str, str]:
    """For the report: the form of the GRU and why, or that there is none."""
    return chosen if verified.has_gru else ("none", "the network has no GRU")


def _require_calibration(request: BuildRequest, sets: StudySets) -> None:
    """Before minutes are spent: int8 without data is never made of random numbers."""
    if request.precision == "int8" and sets.calibration is None:
        raise UsageError(
            "int8 needs a calibration set",
            "make one with fp-export calibrate STUDY_DIR... -o DIR, and give it as --calibration DIR",
            key="calibration_needed",
        )


def _judge(
    verified: VerifiedModel,
    request: BuildRequest,
    sets: StudySets,
    policy: Policy | None,
    acceptance: Mapping[str, Acceptance],
) -> _Judged:
    """Lowers the model as asked for, and measures everything there is to measure."""
    policies = policies_of(request.precision, policy, verified.model)
    jury = choose_jury(sets, verified.golden)
    ranges = None
    if policies:
        ranges = audit_first(verified.model, jury.studies)
        require_range(ranges, policies.values())
    scales = None
    if "int8" in policies:
        _require_calibration(BuildRequest("int8"), sets)
        assert sets.calibration is not None
        scales = cached_scales(verified.data, sets.calibration, request.algorithm)
    steps = steps_of(verified.model, policies, scales.scales if scales else None)
    source = verified.checkpoint
    rungs = climb(steps, baseline_of(source, verified.model), jury, acceptance, source.interface.classes)
    return _Judged(jury, rungs, ranges, scales)


def onnx_model_of(step: Step, split: SplitModel | None = None) -> OnnxModel:
    """A lowered model as the bundle holds it."""
    halves = None
    if split is not None:
        trunk, tail = split.trunk, split.tail
        data = (trunk.SerializeToString(), tail.SerializeToString())
        halves = SplitOnnx(split.slices, *data, node_blocks(trunk), node_blocks(tail))
    precisions, nodes = precisions_of(step), node_blocks(step.model)
    return OnnxModel(
        step.model.SerializeToString(), precisions, nodes, unquantized_nodes(step.model, step.policy), halves
    )


def engines_of(precision: str, model: OnnxModel, target: Target, options: BuildOptions) -> tuple[EnginePlan, ...]:
    """The engine of a lowered model, or trunk and tail of a split one; none for the target "none"."""
    if target.name == "none":
        return ()
    return tuple(
        build_engine(source, target.name, engine_options(source, options)) for source in sources_of(precision, model)
    )


def _split(verified: VerifiedModel, judged: _Judged, slices: int) -> tuple[SplitModel, dict[str, Any]]:
    """The last model in two, held against the whole, and the record of both."""
    step, checkpoint = judged.steps[-1], verified.checkpoint
    with progress("splitting the network", None):
        split = split_model(four_phase_of(checkpoint), checkpoint.preprocessing, step.model, slices)
        parity = require_equal(split, step.model, study_from_codes(verified.codes[:1], checkpoint.preprocessing))
    return split, {**parity.to_dict(), "memory": split_memory(split, step.model)}


def with_report(contents: BundleContents, report: dict[str, Any]) -> BundleContents:
    """The contents with this report, as JSON and as a page."""
    return replace(contents, report=report, extra={**contents.extra, "report.html": report_html(report).encode()})


def _contents(
    verified: VerifiedModel,
    judged: _Judged,
    models: Mapping[str, OnnxModel],
    golden: GoldenFile,
    engines: Sequence[EnginePlan],
    report: dict[str, Any],
) -> BundleContents:
    checkpoint, interface = verified.checkpoint, verified.checkpoint.interface
    ladder = ladder_record(judged.rungs, judged.jury, verified.parity.baseline)
    extra: dict[str, bytes] = {}
    if judged.scales is not None:
        extra["scales.json"] = judged.scales.scales.to_json()
    return BundleContents(
        classes=interface.classes,
        phases=interface.phases,
        network=checkpoint.section,
        outputs=interface.outputs,
        preprocessing=checkpoint.preprocessing,
        models=models,
        golden=golden,
        engines=tuple(engines),
        parity=parity_record(verified.parity) | {"ladder": ladder},
        report=report,
        tools=tool_versions(),
        calibration=report["calibration"],
        extra=extra,
    )
