"""Baseline: 3D DenseNet-121 (arXiv 1608.06993 with 3D layers), all phases as channels of one volume.

Not here: training, published weights. It has 30.1 GMAC and 11.3 M parameters with one window per phase.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fourphase.benchmarks.baselines.resnet3d import ABDOMEN, initialise, phases_as_channels

__all__ = ["DenseNet3d", "DenseNet3dConfig"]


@dataclass(frozen=True)
class DenseNet3dConfig:
    """The defaults are DenseNet-121.

    Attributes:
        phases: P of the input.
        classes: K of the logits.
        growth: channels that every layer adds; the stem has twice as many.
        blocks: layers of each dense block.
        bottleneck: the 1-wide convolution before a layer's 3-wide one has this many times `growth` channels.
        windows: the pseudo-colour channels that are used of every phase.
    """

    phases: int = 4
    classes: int = 2
    growth: int = 32
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    bottleneck: int = 4
    windows: tuple[int, ...] = ABDOMEN


class DenseLayer(nn.Module):
    """(N, inputs, T, H, W) -> (N, inputs + growth, T, H, W): the input, and what is new behind it."""

    def __init__(self, inputs: int, config: DenseNet3dConfig) -> None:
        super().__init__()
        middle = config.bottleneck * config.growth
        self.new = nn.Sequential(
            nn.BatchNorm3d(inputs),
            nn.ReLU(),
            nn.Conv3d(inputs, middle, 1, bias=False),
            nn.BatchNorm3d(middle),
            nn.ReLU(),
            nn.Conv3d(middle, config.growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.new(x)], dim=1)


class HalvingPool(nn.AvgPool3d):
    """Average pooling by 2 on every axis that still has two: eight slices are halved only three times."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, input: Tensor) -> Tensor:
        return functional.avg_pool3d(input, [min(2, size) for size in input.shape[2:]])


class DenseNet3d(nn.Module):
    """Study float32 (B, P, T, C, H, W) -> logits (B, K)."""

    def __init__(self, config: DenseNet3dConfig) -> None:
        super().__init__()
        self.windows = config.windows
        channels = 2 * config.growth
        layers: list[nn.Module] = [
            nn.Conv3d(config.phases * len(config.windows), channels, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(),
            nn.MaxPool3d(3, stride=2, padding=1),
        ]
        for number, count in enumerate(config.blocks):
            if number:
                layers.append(_transition(channels))
                channels //= 2
            layers.append(nn.Sequential(*(DenseLayer(channels + i * config.growth, config) for i in range(count))))
            channels += count * config.growth
        self.features = nn.Sequential(*layers, nn.BatchNorm3d(channels), nn.ReLU())
        self.head = nn.Linear(channels, config.classes)
        self.apply(initialise)

    def forward(self, study: Tensor) -> Tensor:
        volume = self.features(phases_as_channels(study, self.windows))
        logits: Tensor = self.head(volume.mean(dim=(2, 3, 4)))
        return logits


def _transition(channels: int) -> nn.Sequential:
    """Half the channels, half the slices, rows and columns."""
    return nn.Sequential(
        nn.BatchNorm3d(channels), nn.ReLU(), nn.Conv3d(channels, channels // 2, 1, bias=False), HalvingPool()
    )
