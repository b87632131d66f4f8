"""The bundle inside a kit: a network in every precision, whole and split, with golden outputs, as `fp-export` makes it.

Only what decides whether a bundle may ship is left out (gates, parity, reports): the network has learnt nothing, and
its int8 scales are of drawn inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from fourphase.benchmarks.gpu.kit import PRECISIONS
from fourphase.benchmarks.latency.lowering import lowered_steps
from fourphase.calibration.thresholds import DEFAULT_ALGORITHM
from fourphase.engine.bundle import BundleContents
from fourphase.export.build import onnx_model_of, torch_baseline
from fourphase.export.build_report import tool_versions
from fourphase.export.golden import GoldenStudies, golden_codes, golden_file
from fourphase.export.network import FourPhaseNet
from fourphase.export.split import split_model
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.golden import study_from_codes

__all__ = ["DrawnStudies", "bundle_contents"]

Floats = NDArray[np.float32]

#: Golden inputs, of which the literal evaluations of int8 cost the most time; studies that give scales.
_GOLDEN, _CALIBRATION = 2, 2
_CALIBRATION_SEED = 2
#: Each costs an export of its own. FP16 differs from these in types alone.
_SPLIT = ("fp32", "int8")


@dataclass(frozen=True)
class DrawnStudies:
    """Studies like the golden inputs, as calibration data. `seed`: which ones."""

    count: int
    phases: int
    preprocessing: PreprocessingConfig
    seed: int = _CALIBRATION_SEED

    def __len__(self) -> int:
        return self.count

    def studies(self) -> Iterator[Floats]:
        """float32 (1, P, T, C, H, W) each."""
        codes = golden_codes(self.count, self.phases, self.preprocessing, self.seed)
        for index in range(self.count):
            yield study_from_codes(codes[index : index + 1], self.preprocessing)

    @property
    def hash(self) -> str:
        return f"{self.count} drawn studies, seed {self.seed}"


def bundle_contents(
    network: FourPhaseNet, preprocessing: PreprocessingConfig, model: onnx.ModelProto, slices: int
) -> BundleContents:
    """The bundle of a network and its FP32 export. `slices`: of one run of the trunk, where it is split.

    Raises: as lowering and splitting do (20, 25, 27).
    """
    config = network.config
    drawn = DrawnStudies(_CALIBRATION, config.count, preprocessing)
    steps = lowered_steps(model, PRECISIONS[1:], drawn)
    studies = GoldenStudies(golden_codes(_GOLDEN, config.count, preprocessing), preprocessing)
    rows = [torch_baseline(network).run(studies.study(index)) for index in range(len(studies))]
    reference = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    halves = {
        step.precision: split_model(network, preprocessing, step.model, slices)
        for step in steps
        if step.precision in _SPLIT
    }
    models = {step.precision: onnx_model_of(step, halves.get(step.precision)) for step in steps}
    assert tuple(models) == PRECISIONS
    return BundleContents(
        classes=config.classes,
        phases=config.phases,
        network=config.to_dict(),
        preprocessing=preprocessing,
        models=models,
        golden=golden_file(studies, reference, steps[1:]),
        report={"note": "made for the GPU check; the network has learnt nothing"},
        tools=tool_versions(),
        calibration={"data": drawn.hash, "algorithm": DEFAULT_ALGORITHM},
    )
