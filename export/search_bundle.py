"""Bundle + calibration set -> the cheapest precisions within an accuracy budget, written into the bundle.

What `fp-export search` does. The baseline is the bundle's FP32 ONNX, which was verified against PyTorch when the bundle
was built. Logits of policies already tried are kept in the cache, so an interrupted search goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fourphase.calibration.blocks import Policy, is_foreign, selectors_of
from fourphase.calibration.cached_scales import CachedScales, cached_scales
from fourphase.calibration.cost import block_costs
from fourphase.calibration.evaluation import evaluate, fp32_session, positives_of
from fourphase.calibration.gates import DEFAULTS, Acceptance
from fourphase.calibration.ladder import Baseline, Jury, Rung, climb, require_passed, steps_of
from fourphase.calibration.lowering import Lowering, blocks_of, lowest_precision
from fourphase.calibration.qdq import quantizable_blocks
from fourphase.calibration.range_audit import RangeReport, audit_first, overflowing_blocks
from fourphase.calibration.rounding import rounded_session
from fourphase.calibration.scales import Scales
from fourphase.calibration.search import PolicyCache, SearchResult, groups_of, search
from fourphase.calibration.thresholds import DEFAULT_ALGORITHM
from fourphase.calibration.typed import FP16_EXCEPT_PARTS
from fourphase.engine.build import EnginePlan, check_build
from fourphase.engine.bundle import BundleContents, GoldenFile, OnnxModel, check_target, contents_of, write_bundle
from fourphase.engine.options import DEFAULT_OPTIONS, BuildOptions
from fourphase.export.build import engines_of, onnx_model_of
from fourphase.export.build_report import calibration_record, engine_records, golden_record, ladder_record
from fourphase.export.build_request import StudySets, choose_jury, halved, load_study_sets
from fourphase.export.golden import GoldenStudies, golden_file
from fourphase.export.report_html import report_html
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.cache import cache_folder
from fourphase.runtime.errors import AccuracyGateFailed, ExportRefused
from fourphase.runtime.flavour import Target, choose_target

__all__ = ["SearchOutcome", "SearchRequest", "held_blocks", "search_bundle"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SearchRequest:
    """The options of `fp-export search`.

    Attributes:
        calibration: a calibration set. evaluation: another one to judge on; None judges on the calibration set.
        limits: what the chosen policy must keep to.
        target, engine: for the engine of the chosen policy, as in a build.
    """

    calibration: Path
    evaluation: Path | None = None
    limits: Acceptance = DEFAULTS["int8"]
    algorithm: str = DEFAULT_ALGORITHM
    target: str = "auto"
    engine: BuildOptions = DEFAULT_OPTIONS


@dataclass(frozen=True, eq=False)
class SearchOutcome:
    """The bundle as read back, the search, and the content of the bundle's report."""

    bundle: Bundle
    result: SearchResult
    report: dict[str, Any]


def search_bundle(path: Path, output: Path, request: SearchRequest) -> SearchOutcome:
    """Searches, and writes the bundle with the chosen policy's models to `output` (which may be `path`).

    Raises: InputMissing (10), ModelIncompatible (20), IntegrityError (21), UsageError (2), EngineBuildFailed (26),
        AccuracyGateFailed (28) if nothing may be lowered; the target is then untouched. OutputNotWritable (30).
    """
    check_target(output)
    target, options = choose_target(request.target), request.engine
    if target.name != "none":
        check_build(target.name, options)
    bundle = load_bundle(path)
    contents = contents_of(bundle)
    sets = load_study_sets(request.calibration, request.evaluation, bundle.preprocessing, bundle.phases)
    assert sets.calibration is not None
    golden = GoldenStudies(contents.golden.codes, bundle.preprocessing)
    found = _Found.of(contents.models["fp32"].onnx, sets, choose_jury(sets, golden), request, bundle.classes)
    rungs = found.climb(bundle.classes)
    require_passed(rungs)
    models = {rung.step.precision: onnx_model_of(rung.step) for rung in rungs[1:]}
    engines = engines_of(rungs[-1].step.precision, models[rungs[-1].step.precision], target, options)
    fp32 = contents.golden.outputs["fp32"]
    reference = {"logits": fp32.logits}
    if fp32.phase_logits is not None:
        reference["phase_logits"] = fp32.phase_logits
    made = golden_file(golden, reference, [rung.step for rung in rungs[1:]])
    report = _report(contents, found, rungs, sets, target, engines) | {"golden": golden_record(made)}
    written = write_bundle(output, _contents(contents, found, models, rungs, made, engines, report))
    return SearchOutcome(written, found.result, report)


@dataclass(frozen=True, eq=False)
class _Found:
    """The result of the search, and what it was made from."""

    model: onnx.ModelProto
    scales: CachedScales
    jury: Jury
    ranges: RangeReport
    limits: Acceptance
    result: SearchResult

    @classmethod
    def of(cls, data: bytes, sets: StudySets, jury: Jury, request: SearchRequest, classes: Sequence[str]) -> _Found:
        assert sets.calibration is not None
        model = onnx.load_model_from_string(data)
        scales = cached_scales(data, sets.calibration, request.algorithm)
        ranges = audit_first(model, sets.calibration)
        held = held_blocks(blocks_of(model), overflowing_blocks(ranges))
        result = search(
            _evaluator(data, model, scales.scales, jury),
            block_costs(model),
            request.limits,
            positives=positives_of(jury.studies, classes),
            lowerings=_lowerings(model, held),
            held=held,
        )
        _require_lowered(result, model)
        return cls(model, scales, jury, ranges, request.limits, result)

    def climb(self, classes: Sequence[str]) -> tuple[Rung, ...]:
        """The ladder of the chosen policy; every lowered rung is held to the search's limits."""
        chosen = self.result.policy
        precision = lowest_precision(chosen, blocks_of(self.model))
        policies = {"fp16": halved(chosen), "int8": chosen} if precision == "int8" else {"fp16": chosen}
        steps = steps_of(self.model, policies, self.scales.scales)
        acceptance = {"fp32": DEFAULTS["fp32"], "fp16": self.limits, "int8": self.limits}
        return climb(steps, Baseline.of_onnx(self.model), self.jury, acceptance, classes)


def held_blocks(blocks: Sequence[str], overflowing: Collection[str]) -> tuple[str, ...]:
    """The blocks that a search leaves in FP32 by name: what FP16 cannot hold, and the parts of a foreign network that
    the default policies leave there too (`FP16_EXCEPT_PARTS`), whatever becomes of their group.
    """
    kept = {block for block in blocks if not set(FP16_EXCEPT_PARTS).isdisjoint(selectors_of(block))}
    return tuple(sorted({*overflowing, *(kept if is_foreign(blocks) else ())}))


def _lowerings(model: onnx.ModelProto, held: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Group -> what it may be lowered to: INT8 only where a layer of it would be quantized; nothing if all is held."""
    paying = set(groups_of(sorted(quantizable_blocks(model).difference(held))))
    free = groups_of([block for block in blocks_of(model) if block not in held])
    return {group: ("fp16", "int8") if group in paying else ("fp16",) for group in free}


def _evaluator(data: bytes, model: onnx.ModelProto, scales: Scales, jury: Jury) -> PolicyCache:
    """Policy -> logits; a policy whose weights FP16 cannot hold has none that are finite."""
    lowering = Lowering(model, scales)

    def logits(policy: Policy) -> Floats:
        try:
            run = rounded_session(lowering.graph(policy)) if policy.rules else fp32_session(data)
        except ExportRefused:
            return np.full((len(jury.studies), 2), np.nan, np.float32)
        return evaluate({"": run}, jury.studies)[""]

    key = hashlib.sha256(data + scales.to_json()).hexdigest() + str(jury.hash)
    return PolicyCache(cache_folder("search"), key, logits)


def _require_lowered(result: SearchResult, model: onnx.ModelProto) -> None:
    if lowest_precision(result.policy, blocks_of(model)) == "fp32":
        raise AccuracyGateFailed(
            "no block may be lowered within the budget",
            "allow more (--min-sqnr-db, --max-flips, --max-auc-drop), or stay with FP32",
            key="search_found_nothing",
            table=[
                {"group": row.group, "to": row.precision, "SQNR": f"{row.sqnr_db:.1f} dB", "flips": str(row.flips)}
                for row in result.sensitivities
            ],
        )


def _report(
    contents: BundleContents,
    found: _Found,
    rungs: Sequence[Rung],
    sets: StudySets,
    target: Target,
    engines: Sequence[EnginePlan],
) -> dict[str, Any]:
    """The bundle's report with what the search replaces."""
    return {
        **contents.report,
        "precision": rungs[-1].step.precision,
        "judged_on": found.jury.to_dict(),
        "ladder": [rung.to_dict() for rung in rungs],
        "ranges": found.ranges.to_dict(),
        "calibration": calibration_record(sets.calibration, found.scales),
        "search": found.result.to_dict(),
        "target": {"name": target.name, "reason": target.reason},
        "engines": engine_records(engines),
        "split": None,
        "on_device": {"state": "not run", "reason": "a search runs no engine", "rebuilds": []},
    }


def _contents(
    contents: BundleContents,
    found: _Found,
    models: Mapping[str, OnnxModel],
    rungs: Sequence[Rung],
    golden: GoldenFile,
    engines: tuple[EnginePlan, ...],
    report: Mapping[str, Any],
) -> BundleContents:
    search_json = (json.dumps(found.result.to_dict(), indent=1, allow_nan=False) + "\n").encode()
    record = ladder_record(rungs, found.jury, baseline="onnx fp32")
    return replace(
        contents,
        models={"fp32": contents.models["fp32"], **models},
        golden=golden,
        engines=engines,
        parity={**contents.parity, "ladder": record},
        report=report,
        calibration=report["calibration"],
        extra={
            "scales.json": found.scales.scales.to_json(),
            "search.json": search_json,
            "report.html": report_html(report).encode(),
        },
    )
