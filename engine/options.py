"""How an engine is to be built, what each choice costs, and the model it is built from. Nothing is built here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from fourphase.runtime.errors import UsageError

__all__ = ["DEFAULT_OPTIONS", "HARDWARE_COMPATIBILITY", "PARTS", "PRICES", "BuildOptions", "EngineSource"]

HARDWARE_COMPATIBILITY = ("none", "ampere-plus", "same-compute-capability")
#: "whole", or one of the two halves of a split network (docs/engines.md).
PARTS = ("whole", "trunk", "tail")
#: What a choice costs, as NVIDIA's documentation says it; nothing of this was measured here.
PRICES = MappingProxyType(
    {
        "ampere-plus": "one plan for compute capability 8.0 and newer, not on Jetson; it may be slower, as tactics for "
        "one GPU alone are left out",
        "same-compute-capability": "one plan for all GPUs of this compute capability; it may be slower than one for "
        "this GPU; needs TensorRT 10.9",
        "version-compatible": "newer TensorRT of the same major version can load the plan; it grows by the lean run "
        "time inside it, may be slower, and loading it runs host code from the file: fp-run does so only with "
        "--allow-engine-host-code",
        "optimization-level": "0 builds fastest, 5 searches longest; the default is TensorRT's own, 3",
        "dla": "frees the GPU for other work and saves power; the gates fall back to the GPU layer by layer",
    }
)
_LEVELS = range(6)


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        batch: (min, opt, max) studies per run of the optimisation profile.
        workspace_bytes: scratch memory a layer may take; 4 GiB leaves half of the smallest Jetson (8 GB).
        compute_capabilities: "8.9", ...: the GPUs an RTX engine is for; empty means the GPU at hand, or 8.9.
        optimization_level: 0 to 5; None is TensorRT's own.
        hardware_compatibility: one of HARDWARE_COMPATIBILITY. version_compatible: see PRICES.
        dla_core: which deep learning accelerator of a Jetson Orin takes the trunk of a split network; None for none.
        timing_cache: keep what the builder measured for the next build.
    """

    batch: tuple[int, int, int] = (1, 1, 2)
    workspace_bytes: int = 4 << 30
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    dla_core: int | None = None
    timing_cache: bool = True

    def __post_init__(self) -> None:
        low, opt, high = self.batch
        if not 1 <= low <= opt <= high:
            raise UsageError(
                f"the batch profile {self.batch} is not 1 <= min <= opt <= max", "correct it", key="profile_invalid"
            )
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise UsageError(
                f"unknown hardware compatibility {self.hardware_compatibility!r}",
                f"choose one of {', '.join(HARDWARE_COMPATIBILITY)}",
                key="hardware_compatibility_unknown",
            )
        if self.optimization_level is not None and self.optimization_level not in _LEVELS:
            raise UsageError(
                f"builder optimisation level {self.optimization_level} is not 0 to 5",
                "leave it out for TensorRT's own",
                key="optimization_level_invalid",
            )
        if self.workspace_bytes < 1 << 20:
            raise UsageError("the workspace is below 1 MiB", "give at least 64 MiB", key="workspace_invalid")

    def flags(self) -> dict[str, Any]:
        """What makes two engines of one model different; JSON types."""
        return {
            "strongly_typed": True,
            "tf32": False,
            "workspace_bytes": self.workspace_bytes,
            "optimization_level": self.optimization_level,
            "hardware_compatibility": self.hardware_compatibility,
            "version_compatible": self.version_compatible,
            "dla_core": self.dla_core,
        }

    def prices(self) -> tuple[str, ...]:
        """What the choices made cost, in words."""
        chosen = {
            self.hardware_compatibility: self.hardware_compatibility != "none",
            "version-compatible": self.version_compatible,
            "dla": self.dla_core is not None,
        }
        return tuple(f"{name}: {PRICES[name]}" for name, is_chosen in chosen.items() if is_chosen)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> BuildOptions:
        """The options of `to_dict`, also after JSON."""
        batch, capabilities = content["batch"], content["compute_capabilities"]
        return cls(**{**content, "batch": tuple(batch), "compute_capabilities": tuple(capabilities)})


DEFAULT_OPTIONS = BuildOptions()


@dataclass(frozen=True, eq=False)
class EngineSource:
    """One ONNX model to build an engine of.

    Attributes:
        onnx: the model's bytes, types and Q/DQ already in the graph, no external data.
        precision: what the model is called ("fp16"); recorded and part of the key, it changes nothing.
        part: one of PARTS. slices: how many slices the trunk takes at once; None for the others.
        blocks: ONNX node name -> the network's block, for error messages and the audit.
        precisions: block -> the precision asked for, which the audit holds the engine to.
        exempt: nodes of int8 blocks that were not quantized because it does not pay.
    """

    onnx: bytes
    precision: str
    part: str = "whole"
    slices: int | None = None
    blocks: Mapping[str, str] = field(default_factory=dict)
    precisions: Mapping[str, str] = field(default_factory=dict)
    exempt: Sequence[str] = ()
