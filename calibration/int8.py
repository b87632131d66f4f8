"""Symmetric int8 arithmetic: how a threshold becomes a scale, and floats become codes. Numpy only, no graph.

The same rules hold for weights and activations, so that a test can repeat the whole computation outside of ONNX.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["QMAX", "quantize", "scale_of", "weight_scales"]

#: The largest code. Symmetric: a threshold t maps to 127, the zero point is 0 (TensorRT knows no other).
QMAX = 127

Floats = NDArray[np.float32]


def scale_of(threshold: Floats | float) -> Floats:
    """threshold / 127, rounded up to a number that FP16 holds too; 1 for a threshold of zero.

    Rounded up, because a smaller scale would clip what the threshold promised to keep. Representable in FP16, because
    TensorRT takes FP16 scales beside FP16 layers (facts: FP32 scales leave a layer in FP32), and converting them later
    must not move the steps that were calibrated and the codes that were written. A scale beyond FP16's range is left
    exact; typing its block as FP16 is refused where that is tried.
    """
    exact = np.asarray(threshold, dtype=np.float32) / np.float32(QMAX)
    with np.errstate(over="ignore"):
        nearest = exact.astype(np.float16)
        above = np.where(nearest.astype(np.float32) < exact, np.nextafter(nearest, np.float16(np.inf)), nearest)
    scale = np.where(np.isfinite(above), above.astype(np.float32), exact)
    return np.where(exact == 0, np.float32(1), scale)


def weight_scales(weight: Floats, axis: int) -> Floats:
    """One scale per output channel, float32 (channels,): the channel's largest magnitude maps to 127."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    return scale_of(np.abs(weight).max(axis=others))


def quantize(values: Floats, scales: Floats, axis: int | None = None) -> NDArray[np.int8]:
    """ONNX QuantizeLinear with zero point 0: round half to even, saturate to [-128, 127].

    Args:
        scales: () for one scale, or (channels,) along `axis`.
    """
    if axis is not None:
        scales = scales.reshape([-1 if other == axis else 1 for other in range(values.ndim)])
    codes: NDArray[np.int8] = np.clip(np.rint(values / scales), -QMAX - 1, QMAX).astype(np.int8)
    return codes
