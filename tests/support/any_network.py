"""Factories of other networks than ours, as a user names them: `tests.support.any_network:tiny_baseline`."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from fourphase.benchmarks.networks import BASELINES, TINY

__all__ = ["FACTORY", "tiny_baseline", "write_weights"]

FACTORY = "tests.support.any_network:tiny_baseline"


def tiny_baseline(name: str) -> nn.Module:
    """A baseline of the benchmarks at TINY scale, untrained."""
    return BASELINES[name](TINY, 1)[0]


def write_weights(path: Path, network: nn.Module) -> Path:
    """The network's state dict as .safetensors, without a configuration."""
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return path
