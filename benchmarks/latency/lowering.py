"""The lowered models of a network that is only measured: the default policies, scales of the studies given, no gates.

Whether a lowered model may ship is not asked here; `fp-export` asks. `fp-bench` and the GPU check use it.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from fourphase.calibration.ladder import Step, steps_of
from fourphase.calibration.lowering import blocks_of
from fourphase.calibration.qdq import default_int8_policy, quantizable_values
from fourphase.calibration.scales import CalibrationData, collect_histograms, scales_from
from fourphase.calibration.thresholds import DEFAULT_ALGORITHM
from fourphase.calibration.typed import fp16_policy
from fourphase.runtime.errors import ModelIncompatible

__all__ = ["lowered_steps"]


def lowered_steps(model: onnx.ModelProto, precisions: Sequence[str], data: CalibrationData) -> tuple[Step, ...]:
    """The FP32 model, then one step per precision of `precisions` out of "fp16" and "int8".

    Args:
        data: what int8 scales are of; not run for anything else.

    Raises: ModelIncompatible (20) if nothing of it would be int8; as lowering does (20, 25, 27).
    """
    makers = {"fp16": lambda: fp16_policy(blocks_of(model)), "int8": lambda: default_int8_policy(model)}
    policies = {name: makers[name]() for name in precisions}
    scales = None
    if "int8" in policies:
        names = quantizable_values(model, policies["int8"])
        if not names:
            raise ModelIncompatible(
                "the default policy makes nothing of this network int8",
                "give a policy, or use fp16",
                key="nothing_quantizable",
            )
        scales = scales_from(collect_histograms(model.SerializeToString(), names, data), DEFAULT_ALGORITHM)
    return steps_of(model, policies, scales)
