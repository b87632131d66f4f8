"""What the GRU bench found: rows, ratios, and the JSON object they become. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fourphase.benchmarks.latency.ratio import Ratio, paired_ratio, refused_if_busy
from fourphase.benchmarks.scaling.cpu_runtimes import CPU_RUNTIMES

__all__ = ["SCHEMA", "TORCH", "GruRatio", "GruRow", "GruTable", "loop_over_unrolled", "over_torch"]

SCHEMA = "fourphase.gru/1"
TORCH = "torch-eager"


@dataclass(frozen=True)
class GruRow:
    """One runtime, form and size.

    Attributes:
        form: "loop" or "unrolled"; torch's own is a loop.
        status: "ok", "missing", "failed" or "not measured".
        latency_ms: `statistics.summary` of all inferences; None where none was timed.
        round_medians_ms: one per round; all candidates of a size took part in the same rounds.
        prepare_s: loading the graph, or building the engine.
        nodes: of the ONNX graph. layers: what the runtime made of them, where it tells.
        plan_bytes: size of the built engine.
        difference: against torch's GRU in float64.
        busy_elsewhere: share of the cores' time that others took in those rounds; None: unknown.
    """

    runtime: str
    form: str
    slices: int
    hidden: int
    status: str
    reason: str = ""
    latency_ms: dict[str, float] | None = None
    round_medians_ms: tuple[float, ...] = ()
    prepare_s: float | None = None
    nodes: int | None = None
    layers: int | None = None
    plan_bytes: int | None = None
    difference: dict[str, Any] | None = None
    busy_elsewhere: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.slices, self.hidden


@dataclass(frozen=True)
class GruRatio:
    """One time over another of the same size, in the same rounds."""

    runtime: str
    slices: int
    hidden: int
    ratio: Ratio
    form: str = ""

    def to_dict(self) -> dict[str, Any]:
        named = {"runtime": self.runtime, **({"form": self.form} if self.form else {})}
        return {**named, "slices": self.slices, "hidden": self.hidden, "ratio": self.ratio.to_dict()}


@dataclass(frozen=True)
class GruTable:
    """All rows of a run.

    Attributes:
        settings: protocol, threads, sizes; JSON types.
    """

    quick: bool
    settings: dict[str, Any]
    rows: Sequence[GruRow] = field(default=())

    def ratios(self) -> list[GruRatio]:
        """Loop over unrolled, per runtime and size."""
        return loop_over_unrolled(self.rows)

    def torch_ratios(self) -> list[GruRatio]:
        """Over torch, where both ran on the same device."""
        return over_torch(self.rows, self.settings.get("torch_device", "cpu"))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the machine."""
        return {
            "quick": self.quick,
            "settings": self.settings,
            "rows": [asdict(row) | {"round_medians_ms": list(row.round_medians_ms)} for row in self.rows],
            "ratios": [ratio.to_dict() for ratio in self.ratios()],
            "torch_ratios": [ratio.to_dict() for ratio in self.torch_ratios()],
        }


def loop_over_unrolled(rows: Sequence[GruRow]) -> list[GruRatio]:
    """Above 1, the operator is slower than its unrolled form."""
    timed = {(row.runtime, row.size, row.form): row for row in rows if row.round_medians_ms}
    return [
        GruRatio(runtime, *size, _ratio(row, timed[runtime, size, "unrolled"]))
        for (runtime, size, form), row in timed.items()
        if form == "loop" and (runtime, size, "unrolled") in timed
    ]


def over_torch(rows: Sequence[GruRow], torch_device: str = "cpu") -> list[GruRatio]:
    """Each form of each runtime over torch's GRU of the same size: below 1, it is faster than torch.

    A runtime of the CPU has none where torch ran on a GPU: that would compare two machines.
    """
    of_torch = {row.size: row for row in rows if row.runtime == TORCH and row.round_medians_ms}
    left_out = (TORCH, *(CPU_RUNTIMES if torch_device != "cpu" else ()))
    return [
        GruRatio(row.runtime, *row.size, _ratio(row, of_torch[row.size]), row.form)
        for row in rows
        if row.runtime not in left_out and row.round_medians_ms and row.size in of_torch
    ]


def _ratio(a: GruRow, b: GruRow) -> Ratio:
    """Both took part in the same rounds; refused if others disturbed them."""
    return refused_if_busy(paired_ratio(a.round_medians_ms, b.round_medians_ms), a.busy_elsewhere)
