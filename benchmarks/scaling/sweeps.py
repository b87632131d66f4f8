"""What is varied: slices, crop, batch or width of a network, the other three held. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from fourphase.benchmarks.latency.ratio import paired_ratio, refused_if_busy
from fourphase.benchmarks.scaling.fit import PowerLaw, power_law, verdict

__all__ = ["FULL", "KINDS", "QUICK", "SCHEMA", "Point", "ScalingTable", "Size", "Sweep", "SweepResult"]

SCHEMA = "fourphase.scaling/1"
KINDS = ("slices", "crop", "batch", "width")


@dataclass(frozen=True)
class Size:
    """One size of a network and its input: `crop` is rows and columns, `width` the channels of the stem."""

    slices: int
    crop: int
    batch: int
    width: int

    def shape(self, phases: int = 4, channels: int = 3) -> tuple[int, ...]:
        """(B, P, T, C, H, W)."""
        return (self.batch, phases, self.slices, channels, self.crop, self.crop)


@dataclass(frozen=True)
class Sweep:
    """One of KINDS takes the values `xs`, the rest is as in `base`."""

    what: str
    xs: tuple[int, ...]
    base: Size

    def size(self, x: int) -> Size:
        return replace(self.base, **{self.what: x})


#: The paper's network has width 64 and takes 64 slices of 128 x 128. Varied one at a time around that, the largest
#: points would take half a minute each on two cores; so what is held is small where it may be, and said.
FULL = MappingProxyType(
    {
        "slices": Sweep("slices", (16, 32, 64, 128, 256), Size(16, 64, 1, 64)),
        "crop": Sweep("crop", (64, 96, 128, 160, 192), Size(16, 64, 1, 64)),
        "batch": Sweep("batch", (1, 2, 4, 8), Size(16, 64, 1, 64)),
        "width": Sweep("width", (16, 24, 32, 48, 64), Size(16, 128, 1, 64)),
    }
)
#: For rehearsals.
QUICK = MappingProxyType(
    {
        "slices": Sweep("slices", (8, 16, 32), Size(8, 32, 1, 4)),
        "crop": Sweep("crop", (32, 48, 64), Size(8, 32, 1, 4)),
        "batch": Sweep("batch", (1, 2, 4), Size(8, 32, 1, 4)),
        "width": Sweep("width", (4, 8), Size(8, 32, 1, 4)),
    }
)


@dataclass(frozen=True)
class Point:
    """One size in one runtime.

    Attributes:
        status: "ok", "missing", "failed" or "not measured".
        latency_ms: `statistics.summary` of all inferences; None where none was timed.
        round_medians_ms: one per round; all points of a sweep took turns.
        gmac: counted arithmetic of one inference (all studies of the batch), 1e9.
        peak_bytes: largest resident memory of the point's own process, the runtime's libraries included.
        prepare_s: to load the graph.
        difference: of the outputs, against torch eager FP32 on the same input.
        busy_elsewhere: share of the cores' time that others took while the points took turns; None: unknown.
    """

    x: int
    status: str
    reason: str = ""
    latency_ms: dict[str, float] | None = None
    round_medians_ms: tuple[float, ...] = ()
    gmac: float | None = None
    peak_bytes: int | None = None
    prepare_s: float | None = None
    difference: dict[str, Any] | None = None
    busy_elsewhere: float | None = None

    @property
    def noise(self) -> str:
        """Why its latency is no point of a fit, "" if it is one: noisy rounds, or others' work, as for a ratio."""
        rounds = paired_ratio(self.round_medians_ms, [1.0] * len(self.round_medians_ms))
        return refused_if_busy(rounds, self.busy_elsewhere).refused


@dataclass(frozen=True)
class SweepResult:
    """The points of one sweep, and the line through them."""

    sweep: Sweep
    network: str
    runtime: str
    points: tuple[Point, ...] = ()

    @property
    def timed(self) -> list[Point]:
        return [point for point in self.points if point.latency_ms is not None]

    def law(self) -> tuple[PowerLaw | None, str]:
        """The power law of the medians, or None and why there is none."""
        noisy = [f"{self.sweep.what} {point.x} is not steady: {point.noise}" for point in self.timed if point.noise]
        if noisy:
            return None, noisy[0]
        return power_law([point.x for point in self.timed], self._medians())

    def statement(self) -> str:
        """One sentence on the growth; "" without a fit."""
        law, _ = self.law()
        if law is None:
            return ""
        return verdict(
            self.sweep.what, law, [point.x for point in self.timed], self._medians(),
            [point.gmac or 0.0 for point in self.timed],
        )  # fmt: skip

    def _medians(self) -> list[float]:
        return [point.latency_ms["p50"] for point in self.timed if point.latency_ms is not None]

    def to_dict(self) -> dict[str, Any]:
        law, reason = self.law()
        return {
            "what": self.sweep.what,
            "network": self.network,
            "runtime": self.runtime,
            "precision": "fp32",
            "held": {name: size for name, size in asdict(self.sweep.base).items() if name != self.sweep.what},
            "points": [asdict(point) | {"round_medians_ms": list(point.round_medians_ms)} for point in self.points],
            "fit": None if law is None else law.to_dict(),
            "reason": reason,
            "statement": self.statement(),
        }


@dataclass(frozen=True)
class ScalingTable:
    """All sweeps of a run; `settings` are JSON types."""

    quick: bool
    settings: dict[str, Any]
    sweeps: Sequence[SweepResult] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Everything but the machine."""
        sweeps = [sweep.to_dict() for sweep in self.sweeps]
        return {"quick": self.quick, "settings": self.settings, "sweeps": sweeps}
