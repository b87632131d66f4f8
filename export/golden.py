"""Golden inputs and outputs: a few fixed inputs, and what the FP32 PyTorch network says of them.

The inputs look like windowed CT only in range and coarseness: random blocks of grey, the same on every machine. They
are stored as 8-bit codes (see `fourphase.runtime.golden`), so that the file stays small and every reader decodes the
same floats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fourphase.engine.bundle import GoldenOutputs
from fourphase.export.onnx_export import OUTPUTS
from fourphase.export.parity import ParityReport
from fourphase.runtime.config import PreprocessingConfig

__all__ = ["golden_codes", "golden_outputs"]

#: Edge of a block of equal grey: (slices, rows, columns). Coarse enough to compress, fine enough to excite every stage.
_GRAIN = (4, 8, 8)
#: What a backend may differ by at the start-up self-check, in logits. FP32 on two CPUs differs by about 1e-5.
FP32_TOLERANCE = (1e-3, 1e-3)


def golden_codes(count: int, phases: int, preprocessing: PreprocessingConfig, seed: int = 0) -> NDArray[np.uint8]:
    """`count` random coarse inputs, uint8 (count, P, T, C, H, W); the same seed gives the same bytes everywhere."""
    slices, rows, columns = preprocessing.size
    coarse = [-(-size // grain) for size, grain in zip(preprocessing.size, _GRAIN, strict=True)]
    shape = (count, phases, coarse[0], preprocessing.channels, coarse[1], coarse[2])
    codes = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, dtype=np.uint8)
    for axis, grain in zip((2, 4, 5), _GRAIN, strict=True):
        codes = np.repeat(codes, grain, axis=axis)
    return np.ascontiguousarray(codes[:, :, :slices, :, :rows, :columns])


def golden_outputs(codes: NDArray[np.uint8], parity: ParityReport) -> GoldenOutputs:
    """The golden file's content: `codes` uint8 (N, ...) and what PyTorch computed for them while measuring parity."""
    atol, rtol = FP32_TOLERANCE
    logits, phase_logits = (parity.reference[name][: len(codes)] for name in OUTPUTS)
    return GoldenOutputs(codes, logits, phase_logits, atol, rtol)
