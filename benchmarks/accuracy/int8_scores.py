"""What the INT8 model of a network in memory says of studies: export, parity and Q/DQ of a user's checkpoint, no gates.

The Q/DQ graph is computed as it is written, by ONNX Runtime without optimisation: sums in float32 of values that were
rounded to int8. That needs no VNNI, and differs from an INT8 program by the rounding of its sums alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fourphase.benchmarks.latency.lowering import lowered_steps
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet
from fourphase.calibration.cpu_session import cpu_session
from fourphase.export.build import verified_onnx
from fourphase.export.checkpoint import checkpoint_of_module
from fourphase.export.config import NetworkConfig
from fourphase.runtime.errors import SelfCheckFailed

__all__ = ["int8_logits"]

Floats = NDArray[np.float32]


def int8_logits(network: nn.Module, calibration: PhantomSet, studies: Iterable[Floats]) -> Floats:
    """Logits (N, K) float32 by the INT8 model of a network.

    Args:
        network: of the registry, float32, in eval mode, on the CPU.
        calibration: what the scales are of; its phases and configuration are the network's.
        studies: one input (P, T, C, H, W) float32 after the other.

    Raises: ExportRefused (25), ParityFailed (27), ModelIncompatible (20) if it cannot be lowered; SelfCheckFailed (23,
        not_finite).
    """
    checkpoint = checkpoint_of_module(
        network, calibration.config, phases=calibration.phases, classes=NetworkConfig.classes
    )
    model = lowered_steps(verified_onnx(checkpoint).model, ("int8",), calibration)[-1].model
    session = cpu_session(model.SerializeToString(), optimize=False)
    found: Floats = np.concatenate([session.run(["logits"], {"study": study[None]})[0] for study in studies])
    if not np.isfinite(found).all():
        raise SelfCheckFailed("the INT8 model's logits are not finite", "keep blocks in FP16", key="not_finite")
    return found
