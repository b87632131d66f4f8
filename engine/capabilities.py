"""Which GPUs an engine is for: the one at hand for TensorRT, any that TensorRT for RTX knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fourphase.runtime.errors import UsageError
from fourphase.runtime.flavour import Flavour

__all__ = ["DEFAULT_COMPUTE_CAPABILITY", "capabilities_for", "set_capabilities"]

#: What an RTX engine is built for where there is no GPU and none was named: L4, L40, RTX 40.
DEFAULT_COMPUTE_CAPABILITY = "8.9"


def capabilities_for(flavour: Flavour, wanted: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The compute capabilities the engine is for (those wanted, the GPU at hand, the default), and notes on them.

    Raises: UsageError (2) for one that this flavour does not build for.
    """
    device = flavour.gpu.device
    if flavour.is_rtx:
        _rtx_check(flavour, wanted)
    elif wanted:
        raise UsageError(
            "TensorRT builds only for the GPU at hand",
            "leave --compute-capability out, or use --target tensorrt-rtx",
            key="compute_capability_unknown",
        )
    if wanted:
        return tuple(sorted(set(wanted), key=lambda one: [int(part) for part in one.split(".")])), ()
    if device is not None:
        return (device.compute_capability,), ()
    note = f"built for compute capability {DEFAULT_COMPUTE_CAPABILITY}, the default: {flavour.gpu.reason}"
    return (DEFAULT_COMPUTE_CAPABILITY,), (note,)


def set_capabilities(flavour: Flavour, config: Any, wanted: Sequence[str], chosen: Sequence[str]) -> None:
    """Tells the builder; TensorRT proper has nothing to be told."""
    if flavour.is_rtx:
        _rtx_set(flavour, config, wanted, chosen)


def _rtx_known(flavour: Flavour) -> dict[str, Any]:
    """The GPUs this version builds for: "8.9" -> ComputeCapability.SM89."""
    members = flavour.trt.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name[2:].isdigit()}


def _rtx_check(flavour: Flavour, wanted: Sequence[str]) -> None:
    known = _rtx_known(flavour)
    for capability in wanted:
        if capability not in known:
            raise UsageError(
                f"TensorRT for RTX {flavour.version} does not build for compute capability {capability}",
                f"choose from {', '.join(known)}",
                key="compute_capability_unknown",
            )


def _rtx_set(flavour: Flavour, config: Any, wanted: Sequence[str], chosen: Sequence[str]) -> None:
    known, device = _rtx_known(flavour), flavour.gpu.device
    at_hand = device is not None and not wanted
    values = [flavour.trt.ComputeCapability.CURRENT] if at_hand else [known[capability] for capability in chosen]
    config.num_compute_capabilities = len(values)
    for index, value in enumerate(values):
        config.set_compute_capability(value, index)
