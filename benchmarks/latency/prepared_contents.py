"""The contents of a bundle that is only measured: no gates, and golden outputs that cost one run per model.

A lowered model's golden outputs are ONNX Runtime's, not the literal evaluation's, which takes minutes at full size. So
they find a program that is grossly wrong, and say nothing of how well a model was lowered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fourphase.calibration.cpu_session import cpu_session
from fourphase.calibration.ladder import Step
from fourphase.calibration.scales import CalibrationData
from fourphase.calibration.thresholds import DEFAULT_ALGORITHM
from fourphase.engine.bundle import BundleContents, GoldenFile, GoldenOutputs
from fourphase.export.build import VerifiedModel, onnx_model_of
from fourphase.export.build_report import tool_versions
from fourphase.export.golden import FP32_TOLERANCE, GoldenStudies
from fourphase.runtime.golden import Tolerance

__all__ = ["bundle_contents"]

Floats = NDArray[np.float32]

_GOLDEN = 1
#: What another program may differ by from a lowered model's golden outputs: twice the model's largest distance from
#: FP32, on the golden study and those that the scales are of (on one alone it may be small by luck), at least this
#: share of the largest output.
_FLOOR = 0.02


def bundle_contents(verified: VerifiedModel, steps: Sequence[Step], data: CalibrationData) -> BundleContents:
    """The bundle of the FP32 model and its lowered ones. `data`: what int8 scales are of."""
    checkpoint, interface = verified.checkpoint, verified.checkpoint.interface
    studies = GoldenStudies(verified.codes[:_GOLDEN], checkpoint.preprocessing)
    fp32 = {name: values[:_GOLDEN] for name, values in verified.parity.reference.items()}
    golden = {"fp32": GoldenOutputs(fp32["logits"], fp32.get("phase_logits"), FP32_TOLERANCE)}
    golden |= _lowered_golden(steps, studies, fp32, data)
    return BundleContents(
        classes=interface.classes,
        phases=interface.phases,
        network=checkpoint.section,
        outputs=interface.outputs,
        preprocessing=checkpoint.preprocessing,
        models={step.precision: onnx_model_of(step) for step in steps},
        golden=GoldenFile(studies.codes, golden),
        report={"note": "made for benchmarks: nobody judged how accurate it is"},
        tools=tool_versions(),
        calibration={"studies": len(data), "hash": data.hash, "algorithm": DEFAULT_ALGORITHM},
    )


def _lowered_golden(
    steps: Sequence[Step], golden: GoldenStudies, fp32: Mapping[str, Floats], data: CalibrationData
) -> dict[str, GoldenOutputs]:
    """Precision -> what ONNX Runtime says of the lowered model, and how far from it another program may be."""
    if len(steps) < 2:
        return {}
    own = [golden.study(index) for index in range(len(golden))]
    others = list(data.studies())
    unrounded = _outputs(steps[0], others)
    found = {}
    for step in steps[1:]:
        lowered = _outputs(step, own + others)
        outputs = {name: values[: len(own)] for name, values in lowered.items()}
        atol = {
            name: _allowed(values, np.concatenate([fp32[name], unrounded[name]])) for name, values in lowered.items()
        }
        tolerance = Tolerance(atol["logits"], 0.0, atol.get("phase_logits", atol["logits"]))
        found[step.precision] = GoldenOutputs(outputs["logits"], outputs.get("phase_logits"), tolerance)
    return found


def _outputs(step: Step, studies: Sequence[Floats]) -> dict[str, Floats]:
    """Output -> float32 (N, ...), in ONNX Runtime as the graph is written."""
    session = cpu_session(step.model.SerializeToString(), optimize=False)
    names = [output.name for output in session.get_outputs()]
    found = [session.run(names, {"study": study}) for study in studies]
    return {name: np.concatenate(values) for name, values in zip(names, zip(*found, strict=True), strict=True)}


def _allowed(lowered: Floats, fp32: Floats) -> float:
    return max(2 * float(np.abs(lowered - fp32).max()), _FLOOR * float(np.abs(fp32).max()))
