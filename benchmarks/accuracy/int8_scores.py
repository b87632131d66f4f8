"""The INT8 model of a network in memory, by a user's road without its gates; and what it says of studies.

The model is computed literally, as `fp-bench accuracy` does: int8 and FP16 values rounded, sums in float32. That needs
no VNNI, and finds an FP16 value that overflows.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from fourphase.benchmarks.latency.lowering import lowered_steps
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet
from fourphase.calibration.evaluation import literal_session
from fourphase.export.build import verified_onnx
from fourphase.export.checkpoint import checkpoint_of_module
from fourphase.export.config import NetworkConfig
from fourphase.runtime.errors import SelfCheckFailed

__all__ = ["int8_logits", "int8_model"]

Floats = NDArray[np.float32]


def int8_model(network: nn.Module, calibration: PhantomSet) -> onnx.ModelProto:
    """Exports a network, holds the ONNX against it, and lowers it by the default policy of int8 (FP16 beside it).

    Args:
        network: of the registry, float32, in eval mode, on the CPU.
        calibration: what the scales are of; its phases and configuration are the network's.

    Raises: ExportRefused (25), ParityFailed (27), ModelIncompatible (20) if it cannot be lowered.
    """
    checkpoint = checkpoint_of_module(
        network, calibration.config, phases=calibration.phases, classes=NetworkConfig.classes
    )
    return lowered_steps(verified_onnx(checkpoint).model, ("int8",), calibration)[-1].model


def int8_logits(model: onnx.ModelProto, studies: Iterable[NDArray[np.float32]]) -> Floats:
    """Logits (N, K) float32 of a lowered model.

    Args:
        studies: one input (P, T, C, H, W) float32 after the other.

    Raises: SelfCheckFailed (23, not_finite).
    """
    run = literal_session(model)
    found: Floats = np.concatenate([run(study[None])["logits"] for study in studies])
    if not np.isfinite(found).all():
        raise SelfCheckFailed(
            "the INT8 model's logits are not finite", "keep the blocks that overflow in FP32", key="not_finite"
        )
    return found
