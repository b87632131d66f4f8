"""Networks of the registry at the sizes of a sweep: exported once per width, resized, and torch's answer beside it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from fourphase.benchmarks.latency.limits import Cost, network_cost
from fourphase.benchmarks.networks import NETWORKS, OURS, TINY, Scale
from fourphase.benchmarks.scaling.graphs import resized
from fourphase.benchmarks.scaling.sweeps import Size
from fourphase.benchmarks.scaling.worker import example_input
from fourphase.export.interface import OUTPUTS, Interface
from fourphase.export.onnx_export import onnx_from_module
from fourphase.runtime.config import PreprocessingConfig

__all__ = ["SizedNetwork", "sized_network"]

Floats = NDArray[np.float32]
#: Slices, rows and columns at which a network is exported: numbers that stand for nothing else in its graph.
_EXPORTED = (14, 46, 62)
_FULL_WIDTH = Scale().width


@dataclass(frozen=True, eq=False)
class SizedNetwork:
    """One network of one width; any slices, crop and batch."""

    module: nn.Module
    outputs: tuple[str, ...]
    model: onnx.ModelProto

    def write(self, size: Size, path: Path) -> None:
        """The ONNX model of this size; its batch is dynamic."""
        wanted = (size.slices, size.crop, size.crop)
        path.write_bytes(resized(self.model, dict(zip(_EXPORTED, wanted, strict=True))).SerializeToString())

    def reference(self, size: Size) -> dict[str, Floats]:
        """torch eager FP32 on the input that every process makes for this shape."""
        with torch.no_grad():
            found = self.module(torch.from_numpy(example_input(size.shape())))
        given = [found] if isinstance(found, torch.Tensor) else list(found)
        return {name: value.numpy() for name, value in zip(self.outputs, given, strict=True)}

    def cost(self, size: Size) -> Cost:
        """Of one study."""
        return network_cost(self.module, torch.empty(size.shape(), device="meta"))


@functools.lru_cache(maxsize=1)
def sized_network(network: str, width: int) -> SizedNetwork:
    """The network with random, settled weights, by the product's export. The last one is kept.

    Args:
        network: a name of `networks.NETWORKS` that takes all four phases and whose weights fit any input size.

    Raises: ExportRefused (25).
    """
    # A small network is also a shallow one with a small GRU: width 4 is a rehearsal.
    like = Scale() if width >= _FULL_WIDTH // 4 else TINY
    module, _ = NETWORKS[network](Scale(width, like.gru_hidden, _EXPORTED, like.depth), 1)
    outputs = OUTPUTS if network in OURS else OUTPUTS[:1]
    model = onnx_from_module(module, Interface(outputs=outputs), PreprocessingConfig(size=_EXPORTED))
    return SizedNetwork(module, outputs, model)
