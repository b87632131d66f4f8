"""Baseline: 3D ResNet-18, in the form of cov3d (torchvision's r3d_18) and in that of MedicalNet; layers others share.

All phases are channels of one volume. Of the three pseudo-colour channels of the input a baseline takes those in
`windows`, by default the abdominal window alone: the published networks see grey values, and the costs they are known
by (215.1, 107.5 and 24.3 GMAC) are those of four channels, one per phase.

Not here: training, published weights. Letters in shapes: B studies, P phases, T slices, C channels, H rows, W columns,
K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fourphase.export.network import BasicBlock

__all__ = [
    "ABDOMEN",
    "RESIDUAL_GAIN",
    "BasicBlock3d",
    "ResNet3d",
    "ResNet3dConfig",
    "initialise",
    "phases_as_channels",
]

#: The input's pseudo-colour channel with the abdominal window (level 40, width 400): the one livers are read in.
ABDOMEN = (1,)
#: Scale of the last batch norm of every residual branch. At 1, PyTorch's default, deep random networks with batch norm
#: amplify every difference from stage to stage, rounding too; at 0, as training often starts (Goyal et al. 2017), the
#: branches would take no part.
RESIDUAL_GAIN = 0.25


def phases_as_channels(study: Tensor, windows: Sequence[int]) -> Tensor:
    """(B, P, T, C, H, W) -> (B, P * len(windows), T, H, W), phase by phase."""
    return torch.stack([study[:, :, :, window] for window in windows], dim=2).flatten(1, 2)


def initialise(module: nn.Module) -> None:
    """He initialisation of 2D and 3D convolutions, as ResNet has it, and small gains of its basic blocks' branches."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, BasicBlock | BasicBlock3d):
        nn.init.constant_(module.bn2.get_parameter("weight"), RESIDUAL_GAIN)


@dataclass(frozen=True)
class ResNet3dConfig:
    """The defaults are the cov3d form (arXiv 2207.12218) with r3d_18's stem.

    Attributes:
        phases: P of the input.
        classes: K of the logits.
        width: channels of the stem; the four stages have 1, 2, 4 and 8 times as many.
        windows: the pseudo-colour channels that are used of every phase.
        stem_kernel, stem_stride: along slices, rows, columns. The stride alone moves the cost by 9.
        stem_pool: a 3-wide max pooling with stride 2 behind the stem (MedicalNet).
        head_hidden: a hidden layer of as many features as stage 4 has in the head (cov3d), or none.
        dropout: after each stage, in training.
    """

    phases: int = 4
    classes: int = 2
    width: int = 64
    windows: tuple[int, ...] = ABDOMEN
    stem_kernel: tuple[int, int, int] = (3, 7, 7)
    stem_stride: tuple[int, int, int] = (1, 2, 2)
    stem_pool: bool = False
    head_hidden: bool = True
    dropout: float = 0.5

    @classmethod
    def medicalnet(cls, phases: int = 4, classes: int = 2, width: int = 64) -> ResNet3dConfig:
        """Stride 2 on all axes and a max pooling; one linear layer as head, no dropout (arXiv 1904.00625)."""
        return cls(
            phases, classes, width, stem_kernel=(7, 7, 7), stem_stride=(2, 2, 2),
            stem_pool=True, head_hidden=False, dropout=0.0,
        )  # fmt: skip


class BasicBlock3d(nn.Module):
    """ResNet's basic block with 3x3x3 convolutions: (N, inputs, T, H, W) -> (N, outputs, T, H, W / stride each)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.skip(x))


class ResNet3d(nn.Module):
    """Study float32 (B, P, T, C, H, W) -> logits (B, K).

    With the cov3d head it has 33.4 M parameters; the 33.2 M it is known by are those with one linear layer as head
    (512 x 512 + 512 less).
    """

    def __init__(self, config: ResNet3dConfig) -> None:
        super().__init__()
        self.windows = config.windows
        kernel, outputs = config.stem_kernel, 8 * config.width
        self.stem = nn.Sequential(
            nn.Conv3d(
                config.phases * len(config.windows), config.width, kernel, config.stem_stride,
                padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2), bias=False,
            ),
            nn.BatchNorm3d(config.width),
            nn.ReLU(),
            *([nn.MaxPool3d(3, stride=2, padding=1)] if config.stem_pool else []),
        )  # fmt: skip
        self.stages = nn.Sequential(*(_stage(config, number) for number in range(4)))
        hidden = [nn.Linear(outputs, outputs), nn.ReLU()] if config.head_hidden else []
        self.head = nn.Sequential(*hidden, nn.Linear(outputs, config.classes))
        self.apply(initialise)

    def forward(self, study: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(study))
        return logits

    def features(self, study: Tensor) -> Tensor:
        """(B, P, T, C, H, W) -> (B, 8 * width): the mean over stage 4."""
        volume: Tensor = self.stages(self.stem(phases_as_channels(study, self.windows)))
        return volume.mean(dim=(2, 3, 4))


def _stage(config: ResNet3dConfig, number: int) -> nn.Sequential:
    outputs = config.width << number
    inputs, stride = (outputs // 2, 2) if number else (outputs, 1)
    return nn.Sequential(
        BasicBlock3d(inputs, outputs, stride), BasicBlock3d(outputs, outputs, 1), nn.Dropout(config.dropout)
    )
