"""A bundle of the quantizable network in all three precisions, calibrated on phantoms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fourphase.benchmarks.phantoms.phantom_set import PhantomSet
from fourphase.calibration.lowering import blocks_of, lowered_model
from fourphase.calibration.qdq import int8_policy, quantizable_values
from fourphase.calibration.scales import collect_histograms, scales_from
from fourphase.calibration.typed import fp16_policy
from fourphase.engine.bundle import GoldenFile, GoldenOutputs, OnnxModel
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.golden import Tolerance, study_from_codes
from tests.support.quantizable import PREPROCESSING, SHAPE, quantizable_model
from tests.support.tiny_bundle import reference_outputs, write_tiny

__all__ = ["write_lowered"]

_TOLERANCE = Tolerance(1e-3, 1e-3, 1e-3)


def write_lowered(target: Path, tolerance: Tolerance = _TOLERANCE) -> Bundle:
    """model.fp32.onnx, model.fp16.onnx and model.int8.onnx of the default policies; the golden outputs are FP32's.

    A `tolerance` that int8 keeps to makes a bundle whose self-check passes in every precision.
    """
    full = quantizable_model()
    data, blocks = bytes(full.SerializeToString()), blocks_of(full)
    policies = {"fp16": fp16_policy(blocks), "int8": int8_policy(blocks)}
    phantoms = PhantomSet(3, 0, 0.9, PREPROCESSING, purpose="calibration")
    scales = scales_from(collect_histograms(data, quantizable_values(full, policies["int8"]), phantoms), "minmax")
    # Eight times too coarse, so that int8 stands out from FP16 on a network this small.
    scales = replace(scales, values={name: 8 * scale for name, scale in scales.values.items()})
    models = {"fp32": OnnxModel(data, dict.fromkeys(blocks, "fp32"))}
    for name, policy in policies.items():
        lowered = bytes(lowered_model(full, policy, scales).SerializeToString())
        models[name] = OnnxModel(lowered, {block: policy.precision_of(block) for block in blocks})
    codes = np.random.default_rng(3).integers(0, 256, (1, *SHAPE), dtype=np.uint8)
    reference = reference_outputs(data, study_from_codes(codes, PREPROCESSING))
    outputs = GoldenOutputs(*reference, tolerance)
    golden = GoldenFile(codes, {"fp32": outputs})
    return write_tiny(target, data, models=models, preprocessing=PREPROCESSING, golden=golden)
