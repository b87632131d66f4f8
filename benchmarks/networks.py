"""The networks that benchmarks run, by name: one line each.

Weights are random, but batch-norm statistics are settled on data, so that activations have the size they have in a
trained network: with arbitrary statistics they grow from stage to stage and FP16 is judged on numbers nobody will see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fourphase.export.config import NetworkConfig
from fourphase.export.network import FourPhaseNet

__all__ = ["NETWORKS", "TINY", "Builder", "Scale", "four_phase", "settled"]


@dataclass(frozen=True)
class Scale:
    """How large a network and its input are; the defaults are the paper's.

    Attributes:
        size: slices, rows, columns of one phase.
    """

    width: int = 64
    gru_hidden: int = 256
    size: tuple[int, int, int] = (64, 128, 128)


#: Full structure, a millionth of the work: for rehearsals.
TINY = Scale(width=4, gru_hidden=8, size=(8, 32, 32))

#: (scale, batch) -> the module in eval mode on the CPU, and an input with `batch` studies on its first axis.
Builder = Callable[[Scale, int], tuple[nn.Module, Tensor]]


def four_phase(**keys: Any) -> Builder:
    """The builder of the network with these keys of its configuration."""

    def build(scale: Scale, batch: int) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        config = NetworkConfig(width=scale.width, gru_hidden=scale.gru_hidden, **keys)
        slices, rows, columns = scale.size
        study = torch.randn(batch, config.count, slices, 3, rows, columns)
        return settled(FourPhaseNet(config), study[:1]), study

    return build


def settled(network: nn.Module, example: Tensor) -> nn.Module:
    """The network in eval mode with the batch-norm statistics of one example input."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        network.train()(example)
    return network.eval()


NETWORKS: Mapping[str, Builder] = MappingProxyType(
    {
        "four-phase": four_phase(),
        "four-phase-shared": four_phase(share_backbone=True),
    }
)
