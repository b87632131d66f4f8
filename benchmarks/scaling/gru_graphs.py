"""One GRU as the network has it after its slices, in both forms: ONNX's operator, and written out step by step.

`torch.nn.GRU`, batch first, its last state: exported once per hidden size, resized to the steps, then unrolled by the
product's own pass. Nothing is timed here.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fourphase.benchmarks.differences import difference
from fourphase.benchmarks.scaling.graphs import exported, resized, unrolled
from fourphase.benchmarks.scaling.worker import example_input

__all__ = ["FORMS", "INPUT", "OUTPUT", "RTOL", "GruCase", "GruGraphs", "LastState", "gru_graphs", "why_wrong"]

Floats = NDArray[np.float32]

FORMS = ("loop", "unrolled")
INPUT, OUTPUT = "sequence", "state"
#: What either form may be off torch's GRU in float64, relative to the largest state: 256 steps of FP32 give 1e-6, gates
#: in another order 1e-1.
RTOL = 1e-4
#: Steps of the exported graph; no other axis has this size.
_STEPS = 5


@dataclass(frozen=True)
class GruCase:
    """Steps, hidden size, and input size of each step."""

    slices: int
    hidden: int
    inputs: int = 512

    @property
    def gmac(self) -> float:
        """Multiply-accumulates of one sequence in 1e9: three gates, each a product with the input and the state."""
        return 3 * self.hidden * (self.inputs + self.hidden) * self.slices / 1e9


class LastState(nn.Module):
    """(B, T, I) -> (B, H): the state after the last step of a one-layer GRU."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, hidden, batch_first=True)

    def forward(self, sequence: Tensor) -> Tensor:
        states, _ = self.gru(sequence)
        last: Tensor = states[:, -1]
        return last


@dataclass(frozen=True, eq=False)
class GruGraphs:
    """One case, ready to be run.

    Attributes:
        module: torch's, eval mode, float32.
        sequence: input, float32 (1, T, I).
        reference: its last state by torch in float64, as float32 (1, H).
        models: form -> ONNX graph with the input INPUT and the output OUTPUT.
    """

    case: GruCase
    module: LastState
    sequence: Floats
    reference: Floats
    models: dict[str, onnx.ModelProto]


def gru_graphs(case: GruCase) -> GruGraphs:
    """Exports both forms of a GRU with torch's usual random weights (seed 0)."""
    module, base = _exported(case.inputs, case.hidden)
    loop = resized(base, {_STEPS: case.slices})
    sequence = example_input((1, case.slices, case.inputs))
    with torch.no_grad():
        reference = copy.deepcopy(module).double()(torch.from_numpy(sequence).double()).float().numpy()
    return GruGraphs(case, module, sequence, reference, {"loop": loop, "unrolled": unrolled(loop)})


@functools.lru_cache(maxsize=4)
def _exported(inputs: int, hidden: int) -> tuple[LastState, onnx.ModelProto]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LastState(inputs, hidden).eval()
    return module, exported(module, torch.zeros(2, _STEPS, inputs), INPUT, OUTPUT)


def why_wrong(state: Floats, reference: Floats) -> tuple[dict[str, object], str]:
    """The difference as `differences.difference` gives it, and why it is too much, "" if it is not."""
    found = difference({OUTPUT: state}, {OUTPUT: reference})
    relative = found["relative"]
    if relative is None:
        return found, "its state is not finite" if found["shapes_equal"] else "its state has another shape than torch's"
    return found, f"off torch's GRU by {relative:.1e} of the largest state" if relative > RTOL else ""
