"""Numerical parity: every block and every output of an ONNX graph against PyTorch, on several batch sizes.

The baseline is the PyTorch network in FP32, or for a model that came as ONNX that file. The shipped graph, nothing
marked, is compared at every batch size; the same graph with its blocks marked as outputs is run once to find the place
where a difference begins.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from fourphase.calibration.blocks import block_names, with_outputs
from fourphase.calibration.cpu_session import cpu_session
from fourphase.calibration.ladder import TORCH, Baseline
from fourphase.export.blocks import outputs_of, record_blocks
from fourphase.export.given_onnx import GIVEN_GRAPH
from fourphase.export.interface import INPUT, OUTPUTS
from fourphase.runtime.console import progress
from fourphase.runtime.errors import ParityFailed

__all__ = [
    "FP32_RTOL",
    "BlockParity",
    "ParityReport",
    "compare",
    "measure_parity",
    "parity_with",
    "require_parity",
    "run_onnx",
    "torch_baseline",
]

Array = NDArray[np.float32]
Outputs = dict[str, Array]

#: Largest difference over largest reference value, for the outputs. Two FP32 runtimes differ by 1e-6 to 1e-5.
FP32_RTOL = 1e-4
#: Inside, rounding upstream is amplified where inputs are large: 1.3e-4 in the GRU of an untrained full-size network.
#: A swapped gate or a GRU with linear_before_reset=0 is off by 1e-2 and more.
BLOCK_SLACK = 10
#: Where the reference is all zero, differences are measured against this.
_SMALLEST_SCALE = 1e-6
#: A gate is a factor between 0 and 1. Closed to less than this it passes nothing on, and what little its sigmoid leaves
#: is the exponential of a large sum: two right programs differ there by 1 % of nothing (9e-9 of a gate of 1e-6).
_CLOSED_GATE = 1e-3
_GATE = re.compile(r"gate\d\.(channel|spatial)/")
BATCHES = (1, 2, 3)


@dataclass(frozen=True)
class BlockParity:
    """One block (or output) at one batch size: differences against PyTorch FP32, and the verdict.

    Attributes:
        max_abs: largest absolute difference, in the block's own units.
        relative: `max_abs` over the reference's largest magnitude (of a closed gate, over 1e-3).
        allowed: the largest `relative` that passes.
    """

    block: str
    batch: int
    max_abs: float
    relative: float
    allowed: float
    passed: bool


@dataclass(frozen=True, eq=False)
class ParityReport:
    """All comparisons, the outputs at every batch size first, then the blocks in the order of the graph.

    `reference` holds the baseline's outputs: the one FP32 truth of everything that is built from this graph.
    `baseline` says whose they are.
    """

    rtol: float
    rows: tuple[BlockParity, ...]
    reference: Outputs
    baseline: str = TORCH

    @property
    def worst(self) -> BlockParity:
        return max(self.rows, key=lambda row: row.relative if np.isfinite(row.relative) else np.inf)

    @property
    def first_failure(self) -> BlockParity | None:
        """Where the difference begins: the first block off, or an output if every block is right."""
        failed = [row for row in self.rows if not row.passed]
        blocks = [row for row in failed if row.block not in OUTPUTS]
        return next(iter(blocks or failed), None)

    def to_dict(self) -> dict[str, Any]:
        return {"rtol": self.rtol, "baseline": self.baseline, "rows": [asdict(row) for row in self.rows]}


def measure_parity(
    network: nn.Module, model: onnx.ModelProto, studies: Array, *, rtol: float = FP32_RTOL
) -> ParityReport:
    """Compares an ONNX graph with its network.

    Args:
        studies: three inputs, float32 (3, P, T, C, H, W); batches of 1, 2 and 3 are taken from them.
    """
    return parity_with(torch_baseline(network), model, studies, rtol=rtol)


def parity_with(baseline: Baseline, model: onnx.ModelProto, studies: Array, *, rtol: float = FP32_RTOL) -> ParityReport:
    """As `measure_parity`, with any baseline; blocks are compared if it has any, and the graph is no given one's.

    Raises: ParityFailed (27) naming a block that the baseline does not have; ModelIncompatible (20) for a given ONNX
        that does not run.
    """
    names = [output.name for output in model.graph.output]
    rows = []
    with progress(f"comparing with {baseline.name}", len(BATCHES) + 3) as advance:
        reference = dict(baseline.run(studies))
        advance(1)
        session = _session(model)
        for batch in BATCHES:
            outputs = session(studies[:batch])
            rows += [compare(name, reference[name][:batch], outputs[name], batch, rtol) for name in names]
            advance(1)
        del session
        wanted = baseline.blocks(studies[:1])
        advance(1)
        # What was made of a given ONNX has its exporter's blocks, which no other network knows.
        blocks = () if model.graph.name == GIVEN_GRAPH else block_names(model)
        rows += _block_rows(blocks, wanted, model, studies[:1], rtol)
        advance(1)
    return ParityReport(rtol, tuple(rows), reference, baseline.name)


def _block_rows(
    names: Sequence[str], wanted: Mapping[str, Array], model: onnx.ModelProto, study: Array, rtol: float
) -> list[BlockParity]:
    if not names or not wanted:
        return []
    _require_known(names, wanted)
    found = run_onnx(with_outputs(model, names), study)
    return [compare(name, wanted[name], found[name], 1, BLOCK_SLACK * rtol) for name in names]


def _require_known(names: Sequence[str], wanted: Mapping[str, Array]) -> None:
    unknown = next((name for name in names if name not in wanted), None)
    if unknown is not None:
        raise ParityFailed(
            f"the graph has a block {unknown} that the checkpoint's network does not have",
            "give the checkpoint (and --config, --model) that the graph was exported from",
            key="parity_blocks",
        )


def torch_baseline(network: nn.Module) -> Baseline:
    """The PyTorch network in FP32, on the CPU; what it prints goes to stderr."""

    def run(study: Array) -> Outputs:
        with torch.no_grad(), redirect_stdout(sys.stderr):
            outputs = outputs_of(network.eval()(torch.from_numpy(study)))
        return {name: value.numpy() for name, value in zip(OUTPUTS, outputs, strict=False)}

    def blocks(study: Array) -> Outputs:
        with torch.no_grad(), record_blocks(network.eval()) as found, redirect_stdout(sys.stderr):
            network(torch.from_numpy(study))
        return {name: value.numpy() for name, value in found.items()}

    return Baseline(run, blocks)


def require_parity(report: ParityReport) -> None:
    """Raises: ParityFailed (27) naming the first block that is off, with every failing row in its table."""
    first = report.first_failure
    if first is None:
        return
    failed = [row for row in report.rows if not row.passed]
    raise ParityFailed(
        f"the graph does not compute what the checkpoint does: block {first.block} is off by {first.max_abs:.3g} "
        f"({first.relative:.2g} of its range, {first.allowed:g} allowed)",
        "export the checkpoint again; if it fails again, report it with the table above",
        key="parity_failed",
        table=[
            {"block": row.block, "batch": str(row.batch), "max abs": f"{row.max_abs:.3g}", "rel": f"{row.relative:.3g}"}
            for row in failed[:20]
        ],
    )


def compare(block: str, reference: Array, value: Array, batch: int, rtol: float) -> BlockParity:
    """Largest absolute and relative difference of two arrays of the same shape; anything not finite fails."""
    if reference.shape != value.shape:
        return BlockParity(block, batch, float("inf"), float("inf"), rtol, passed=False)
    max_abs = float(np.abs(reference - value).max())
    scale = max(float(np.abs(reference).max()), _CLOSED_GATE if _GATE.match(block) else _SMALLEST_SCALE)
    passed = bool(np.isfinite(value).all()) and max_abs <= rtol * scale
    return BlockParity(block, batch, max_abs, max_abs / scale, rtol, passed)


def run_onnx(model: onnx.ModelProto, studies: Array) -> Outputs:
    """All outputs of a graph in ONNX Runtime on the CPU."""
    return _session(model)(studies)


def _session(model: onnx.ModelProto) -> Callable[[Array], Outputs]:
    session = cpu_session(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return lambda studies: dict(zip(names, session.run(names, {INPUT: studies}), strict=True))
