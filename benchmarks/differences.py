"""How far outputs are from a reference, in numbers that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FP32_RTOL", "difference"]

Floats = NDArray[np.float32]

#: What one FP32 implementation may differ by from another, relative to the reference's largest magnitude.
#: TF32, which keeps 10 bits of mantissa, is beyond it in a deep network.
FP32_RTOL = 1e-3


def difference(outputs: Mapping[str, Floats], reference: Mapping[str, Floats]) -> dict[str, Any]:
    """The largest differences over all outputs.

    Returns: `max_abs`, `relative` (per output `max_abs` over the reference's largest magnitude, the worst of them) and
        `finite`; the first two are None where an output is not finite or has another shape.
    """
    comparable = all(outputs[name].shape == wanted.shape for name, wanted in reference.items())
    finite = all(bool(np.isfinite(value).all()) for value in outputs.values())
    if not (comparable and finite):
        return {"max_abs": None, "relative": None, "finite": finite, "shapes_equal": comparable}
    absolute = {name: float(np.abs(outputs[name] - wanted).max()) for name, wanted in reference.items()}
    relative = [absolute[name] / (float(np.abs(wanted).max()) or 1.0) for name, wanted in reference.items()]
    return {"max_abs": max(absolute.values()), "relative": max(relative), "finite": True, "shapes_equal": True}
