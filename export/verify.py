"""`fp-export verify`: everything that can be said of a bundle or an ONNX on this machine, in the order of trust.

Integrity first, then structure, then numbers: golden outputs through the run time's own backend, and parity block by
block where the checkpoint is at hand.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fourphase.calibration.blocks import Policy
from fourphase.calibration.calibration_set import check_overlap, load_calibration_set
from fourphase.calibration.gates import read_acceptance
from fourphase.calibration.ladder import Baseline, Jury, Step, climb, require_passed
from fourphase.calibration.lowering import lowered_model
from fourphase.calibration.scales import scales_from_json
from fourphase.export.build import verify_model
from fourphase.export.given_onnx import parse_onnx
from fourphase.export.guards import guard_findings, require_clean
from fourphase.export.interface import Interface
from fourphase.export.source import Source, baseline_of, load_source
from fourphase.export.split import FEATURES, SplitModel
from fourphase.export.split_parity import run_split
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.config import canonical_json
from fourphase.runtime.console import progress
from fourphase.runtime.cuda import probe
from fourphase.runtime.errors import InputMissing, ParityFailed
from fourphase.runtime.gpu_choice import NoEngine, choose_engine
from fourphase.runtime.plan_choice import PlanPolicy
from fourphase.runtime.selfcheck import self_check

__all__ = ["verify_bundle", "verify_onnx"]


def verify_bundle(
    path: Path,
    checkpoint: Path | None = None,
    config: Path | None = None,
    *,
    factory: str | None = None,
    evaluation: Path | None = None,
    accept: Path | None = None,
    plans: Path | None = None,
) -> dict[str, Any]:
    """Verifies a bundle; returns a report of the steps passed.

    Args:
        factory: of a checkpoint that is not our network's, "package.module:factory".
        plans: where engines built for this machine lie; None for the bundle's own folder.
        evaluation: a set of studies to judge the lowered models on again, by the thresholds of `accept`.

    Raises: ModelIncompatible (20), IntegrityError (21), SelfCheckFailed (23), ParityFailed (27) naming the block,
        AccuracyGateFailed (28).
    """
    acceptance = read_acceptance(accept)
    bundle = load_bundle(path)
    with progress("reading files", len(bundle.files)) as advance:
        for name in bundle.files:
            bundle.read(name)
            advance(1)
    steps = {"integrity": f"{len(bundle.files)} files match their sha256"}
    model = parse_onnx(bundle.read(bundle.models["fp32"].file))
    interface = Interface(bundle.phases, bundle.classes, bundle.outputs)
    require_clean(guard_findings(model, bundle.network, interface, bundle.preprocessing), bundle.network)
    steps["guards"] = "passed"
    for precision in bundle.models:
        steps[f"golden {precision}"] = _golden(bundle, precision)
        if bundle.models[precision].split is not None:
            steps[f"split {precision}"] = _golden_split(bundle, precision)
    steps["engine"] = _engine(bundle, plans)
    ladder = steps_of_bundle(bundle, model)
    for step in ladder[1:]:
        steps[f"typing {step.precision}"] = "the graph is what its policy makes of the FP32 one, byte for byte"
    parity, loaded = None, None
    if checkpoint is not None:
        loaded = load_source(checkpoint, config, factory)
        _require_same_configuration(bundle, loaded)
        parity = verify_model(loaded, model).parity.to_dict()
        steps["parity"] = "configuration equal, every block passed"
    report: dict[str, Any] = {"schema": "fourphase.verification/1", "steps": steps, "parity": parity, "ladder": None}
    if evaluation is not None:
        data = load_calibration_set(evaluation, bundle.preprocessing, bundle.phases)
        if bundle.calibration is not None:
            check_overlap(data, [*bundle.calibration["cases"], *bundle.calibration["contents"]])
        jury = Jury(data, "evaluation set", data.hash)
        baseline = baseline_of(loaded, model) if loaded else Baseline.of_onnx(model)
        rungs = climb(ladder, baseline, jury, acceptance, bundle.classes)
        require_passed(rungs)
        report |= {"judged_on": jury.to_dict(), "ladder": [rung.to_dict() for rung in rungs]}
        steps["gates"] = f"{len(rungs)} precisions passed on {len(data)} studies"
    return report


def steps_of_bundle(bundle: Bundle, model: onnx.ModelProto) -> tuple[Step, ...]:
    """The bundle's models, each lowered one held against what its policy makes of the FP32 graph.

    Raises: ParityFailed (27) for a model that is not what the manifest says; ModelIncompatible (20) if its scales are
        missing.
    """
    steps = [Step("fp32", Policy(()), model)]
    scales = scales_from_json(bundle.read("scales.json")) if "scales.json" in bundle.files else None
    for precision, found in bundle.models.items():
        if precision == "fp32":
            continue
        policy = Policy.of(found.blocks)
        derived = lowered_model(model, policy, scales)
        if derived.SerializeToString() != bundle.read(found.file):
            raise ParityFailed(
                f"the {precision} model is not what the manifest's precisions make of the FP32 model",
                "build the bundle again with fp-export build-engine of this version",
                key="typing_differs",
            )
        steps.append(Step(precision, policy, derived))
    return tuple(steps)


def _golden(bundle: Bundle, precision: str) -> str:
    with progress(f"golden outputs, {precision}", None):
        backend = choose_backend(bundle, "onnxruntime", precision=precision).backend
        check = self_check(backend, bundle, all_inputs=True)
    return f"{check.inputs} inputs, largest difference {check.max_abs_difference:.2e} in logits"


def _golden_split(bundle: Bundle, precision: str) -> str:
    """Trunk and tail, chunk by chunk on the CPU, against the whole model's golden outputs."""
    split = bundle.models[precision].split
    assert split is not None
    trunk, tail = parse_onnx(bundle.read(split.trunk)), parse_onnx(bundle.read(split.tail))
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tail.graph.input[0].type.tensor_type.elem_type))
    golden = bundle.golden(precision)
    studies, tolerance = np.concatenate([golden.study(index) for index in range(len(golden))]), golden.tolerance
    outputs = run_split(SplitModel(trunk, tail, split.slices, dtype, FEATURES), studies)
    worst = 0.0
    for name, wanted, atol in (
        ("logits", golden.logits, tolerance.atol),
        ("phase_logits", golden.phase_logits, tolerance.phase_atol),
    ):
        if wanted is None:
            continue
        difference = np.abs(outputs[name] - wanted)
        if not (difference <= atol + tolerance.rtol * np.abs(wanted)).all():
            raise ParityFailed(
                f"{name} of the split {precision} model is off its golden value by {difference.max():.3g}",
                "build the bundle again with fp-export build-engine",
                key="split_differs",
            )
        worst = max(worst, float(difference.max()))
    return f"chunks of {split.slices} slices, {len(golden)} inputs, largest difference {worst:.2e}"


def _engine(bundle: Bundle, plans: Path | None) -> str:
    """The engine that fp-run would load, run on every golden input; or why there is none."""
    if probe().device is None:
        return f"not run: {probe().reason}"
    found = choose_engine(bundle, None, PlanPolicy(plans))
    if isinstance(found, NoEngine):
        return f"not run: {found.reason}"
    with closing(found.backend) as backend:
        check = self_check(backend, bundle, all_inputs=True)
    return (
        f"{found.reason}; {check.inputs} inputs, batches {', '.join(map(str, check.batches))},"
        f" largest difference {check.max_abs_difference:.2e}"
    )


def verify_onnx(path: Path, checkpoint: Path, config: Path | None = None, factory: str | None = None) -> dict[str, Any]:
    """Verifies an ONNX file against the checkpoint it claims to come from.

    Raises: InputMissing (10), ModelIncompatible (20), ParityFailed (27) naming the node or block.
    """
    try:
        model = parse_onnx(path.read_bytes())
    except OSError as error:
        raise InputMissing(f"the model {path} cannot be read: {error.strerror}", "check the path") from error
    parity = verify_model(load_source(checkpoint, config, factory), model).parity.to_dict()
    steps = {"guards": "passed", "parity": "every block passed"}
    return {"schema": "fourphase.verification/1", "steps": steps, "parity": parity, "ladder": None}


def _require_same_configuration(bundle: Bundle, source: Source) -> None:
    """Classes in another order or another window give wrong answers that no comparison of numbers finds."""
    pairs = {
        "network": (dict(bundle.network), json.loads(canonical_json(dict(source.section)))),
        "classes": (bundle.classes, source.interface.classes),
        "phases": (bundle.phases, source.interface.phases),
        "preprocessing": (bundle.preprocessing, source.preprocessing),
    }
    for name, (packed, trained) in pairs.items():
        if packed != trained:
            raise ParityFailed(
                f"the bundle's {name} section is not the checkpoint's",
                "build the bundle again from this checkpoint, or give the checkpoint (and --config) it was built from",
                key="configuration_differs",
            )
