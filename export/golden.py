"""Golden inputs and outputs: a few fixed inputs, and what the FP32 PyTorch network says of them.

The inputs are blocks of random HU within the narrowest window, seen through every channel's window: no anatomy, but
channels that agree with each other as those of a CT do, and the same on every machine. (Channels drawn independently
are far from all that batch norm was settled on, and a GRU amplifies the rounding of large values.) They are stored as
8-bit codes (see `fourphase.runtime.golden`), so that the file stays small and every reader decodes the same floats.

A lowered model's golden outputs are the literal evaluation's, which rounds every FP16 value. A program that fuses
operators rounds less often, and near a tie one rounding moves an int8 code by a whole step. How much that is depends on
the network, so it is measured: the same graph is evaluated once more with nothing rounded to FP16, and for int8, where
it is a matter of chance which codes move, several times with the input off by as much as rounding to FP16 may do. The
tolerance is four times the largest difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourphase.calibration.evaluation import Run
from fourphase.calibration.ladder import Step
from fourphase.calibration.rounding import rounding_session
from fourphase.engine.bundle import GoldenFile, GoldenOutputs
from fourphase.export.interface import OUTPUTS
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.console import progress
from fourphase.runtime.golden import Tolerance, study_from_codes

__all__ = ["GoldenStudies", "golden_codes", "golden_file"]

Floats = NDArray[np.float32]

#: Edge of a block of equal HU: (slices, rows, columns). Coarse enough to compress, fine enough to excite every stage.
_GRAIN = (4, 8, 8)
#: What a backend may differ by at the start-up self-check, in logits. FP32 on two CPUs differs by about 1e-5.
FP32_TOLERANCE = Tolerance(1e-3, 1e-3, 1e-3)
#: How much more than the measured spread a backend may differ, and the least it may, relative to the largest.
_SPREAD_FACTOR = 4.0
#: Evaluations with a perturbed input, and by how much (relative): half a step of FP16's 10 bits of mantissa.
_DRAWS = {"fp16": 0, "int8": 4}
_HALF_STEP = 2.0**-11
_LOWERED_FLOOR = {"fp16": 1e-3, "int8": 1e-2}


def golden_codes(count: int, phases: int, preprocessing: PreprocessingConfig, seed: int = 0) -> NDArray[np.uint8]:
    """`count` random coarse inputs, uint8 (count, P, T, C, H, W); the same seed gives the same bytes everywhere."""
    slices, rows, columns = preprocessing.size
    coarse = [-(-size // grain) for size, grain in zip(preprocessing.size, _GRAIN, strict=True)]
    draw = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (count, phases, coarse[0], 1, *coarse[1:]))
    narrow_low, narrow_high = min(preprocessing.windows_hu, key=lambda window: window[1] - window[0])
    hu = narrow_low + draw * ((narrow_high - narrow_low) / 255.0)
    low, high = np.array(preprocessing.windows_hu, np.float64).T[..., np.newaxis, np.newaxis]
    codes = np.rint(np.clip((hu - low) / (high - low), 0.0, 1.0) * 255.0).astype(np.uint8)
    for axis, grain in zip((2, 4, 5), _GRAIN, strict=True):
        codes = np.repeat(codes, grain, axis=axis)
    return np.ascontiguousarray(codes[:, :, :slices, :, :rows, :columns])


@dataclass(frozen=True, eq=False)
class GoldenStudies:
    """The golden inputs as studies: nobody's, so they have no labels. `codes` is uint8 (N, P, T, C, H, W)."""

    codes: NDArray[np.uint8]
    preprocessing: PreprocessingConfig
    labels: None = None

    def __len__(self) -> int:
        return len(self.codes)

    def study(self, index: int) -> Floats:
        return study_from_codes(self.codes[index : index + 1], self.preprocessing)


def golden_file(studies: GoldenStudies, fp32: Mapping[str, Floats], lowered: Sequence[Step]) -> GoldenFile:
    """The golden file's content.

    Args:
        fp32: PyTorch's `logits` (N, K) and, if the network has them, `phase_logits` (N, P, K), for at least as many
            studies.
        lowered: the models whose literal outputs go beside them.
    """
    reference = {name: values[: len(studies)] for name, values in fp32.items()}
    outputs = {"fp32": GoldenOutputs(reference["logits"], reference.get("phase_logits"), FP32_TOLERANCE)}
    with progress("golden outputs", len(lowered)) as advance:
        for step in lowered:
            outputs[step.precision] = _lowered(step, studies)
            advance(1)
    return GoldenFile(studies.codes, outputs)


def _lowered(step: Step, studies: GoldenStudies) -> GoldenOutputs:
    inputs = [studies.study(index) for index in range(len(studies))]
    run = rounding_session(step.model)
    literal = _outputs(run, inputs)
    others = [_outputs(rounding_session(step.model, rounds=False), inputs)]
    generator = np.random.Generator(np.random.PCG64(0))
    others += [_outputs(run, [_perturbed(study, generator) for study in inputs]) for _ in range(_DRAWS[step.precision])]
    floor = _LOWERED_FLOOR[step.precision]
    allowed = {
        name: max(
            _SPREAD_FACTOR * max(float(np.abs(values - other[name]).max()) for other in others),
            floor * float(np.abs(values).max()),
        )
        for name, values in literal.items()
    }
    atol = allowed["logits"]
    tolerance = Tolerance(atol, 0.0, allowed.get("phase_logits", atol))
    return GoldenOutputs(literal["logits"], literal.get("phase_logits"), tolerance)


def _perturbed(study: Floats, generator: np.random.Generator) -> Floats:
    return (study * generator.uniform(1 - _HALF_STEP, 1 + _HALF_STEP, study.shape)).astype(np.float32)


def _outputs(run: Run, inputs: Sequence[Floats]) -> dict[str, Floats]:
    found = [run(study) for study in inputs]
    return {name: np.concatenate([outputs[name] for outputs in found]) for name in OUTPUTS if name in found[0]}
