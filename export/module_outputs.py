"""What a module returns, held against the contract: logits (B, K), and phase_logits (B, P, K) or nothing more.

A module that does not run on the contract's input, or returns something else, is refused in one sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from fourphase.export.blocks import outputs_of
from fourphase.export.interface import OUTPUTS, Interface
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import ExportRefused

__all__ = ["probed_outputs", "require_outputs", "run_once"]

_CURE = "return logits (B, K), or (logits, phase_logits) with phase_logits (B, P, K), both float32"


def probed_outputs(network: nn.Module, interface: Interface, preprocessing: PreprocessingConfig) -> Interface:
    """The interface with the outputs that the network really gives, found by running it once on a study of zeros.

    Raises: ExportRefused (25).
    """
    with torch.no_grad():
        found = run_once(network.eval(), torch.zeros(1, *interface.input_sizes(preprocessing)))
    actual = Interface(interface.phases, interface.classes, OUTPUTS[: max(1, len(found))])
    require_outputs(found, actual, 1)
    return actual


def run_once(network: nn.Module, study: Tensor) -> tuple[Any, ...]:
    """What the network returns, as a tuple; what it prints goes to stderr.

    Raises: ExportRefused (25) with the network's own words if it raises, SystemExit included.
    """
    try:
        with redirect_stdout(sys.stderr):
            return outputs_of(network(study))
    except (Exception, SystemExit) as error:
        words = next(iter(str(error).splitlines()), "")
        raise ExportRefused(
            f"the network does not take a study of shape {tuple(study.shape)}: {type(error).__name__}: {words}",
            "its forward() must take one tensor, study (B, P, T, C, H, W); check [model] phases and the preprocessing",
            key="model_input",
        ) from error


def require_outputs(found: Sequence[Any], interface: Interface, batch: int) -> None:
    """Raises: ExportRefused (25) unless these are the interface's outputs for `batch` studies, float32."""
    wanted = {name: (batch, *sizes) for name, sizes in interface.output_sizes().items()}
    if len(found) != len(wanted) or not all(isinstance(value, Tensor) for value in found):
        raise ExportRefused(f"the network returns {_kinds(found)}", _CURE, key="model_output")
    for (name, shape), value in zip(wanted.items(), found, strict=True):
        if tuple(value.shape) != shape or value.dtype != torch.float32:
            raise ExportRefused(
                f"the network's {name} are {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} instead of"
                f" float32 {shape}, for {len(interface.phases)} phases and {len(interface.classes)} classes",
                f"{_CURE}; give [model] phases and classes if they are not the defaults",
                key="model_output",
            )


def _kinds(found: Sequence[Any]) -> str:
    return ", ".join(type(value).__name__ for value in found) or "nothing"
