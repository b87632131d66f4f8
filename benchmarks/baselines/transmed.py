"""Baseline: TransMed (Dai et al. 2021, arXiv 2103.05940), form "T": ResNet-18 tokens of three slices, a transformer.

Three adjacent slices of one phase are the three channels of an image, not resized. 64 slices make 21 images and leave
one over, the topmost; with four phases there are 84 tokens, phase by phase, each phase's from its lowest slices up,
behind a class token.

Not here: training, published weights. It has 50.2 GMAC and 16.6 M parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fourphase.benchmarks.baselines.resnet3d import ABDOMEN, initialise
from fourphase.export.network import BasicBlock

__all__ = ["Encoder", "TransMed", "TransMedConfig"]

#: Slices that make one image.
_GROUP = 3


@dataclass(frozen=True)
class TransMedConfig:
    """The defaults are TransMed-T for our input.

    Attributes:
        phases: P of the input.
        slices: T of the input; the position embedding has one row per token.
        classes: K of the logits.
        width: channels of the ResNet's stem; tokens have 3 times as many values (192), in 3 heads.
        layers: number of encoder layers.
        window: the pseudo-colour channel that is used.
    """

    phases: int = 4
    slices: int = 64
    classes: int = 2
    width: int = 64
    layers: int = 12
    window: int = ABDOMEN[0]

    @property
    def tokens(self) -> int:
        """Without the class token."""
        return self.phases * (self.slices // _GROUP)


class Encoder(nn.Module):
    """One pre-norm transformer layer: self-attention, then an MLP 4 times as wide (GELU). (N, L, D) -> (N, L, D)."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(size)
        self.joint = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self._attended(self.joint(self.norm1(x))))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed

    def _attended(self, joint: Tensor) -> Tensor:
        """Query, key and value (N, L, 3 D) -> (N, L, D)."""
        length, size = joint.shape[1], joint.shape[2] // 3
        parts = joint.reshape(-1, length, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return mixed.transpose(1, 2).reshape(-1, length, size)


class TransMed(nn.Module):
    """Study float32 (B, P, T, C, H, W) -> logits (B, K)."""

    def __init__(self, config: TransMedConfig) -> None:
        super().__init__()
        self.config = config
        size = 3 * config.width
        self.trunk = _resnet18(config.width)
        self.project = nn.Linear(8 * config.width, size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size))
        self.positions = nn.Parameter(torch.zeros(1, 1 + config.tokens, size))
        self.layers = nn.Sequential(*(Encoder(size, heads=3) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, config.classes)
        self.apply(initialise)
        for parameter in (self.class_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, study: Tensor) -> Tensor:
        features = self.trunk(self.images(study)).mean(dim=(2, 3))
        tokens = self.project(features).reshape(-1, self.config.tokens, self.project.out_features)
        sequence = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.layers(sequence)[:, 0]))
        return logits

    def images(self, study: Tensor) -> Tensor:
        """(B, P, T, C, H, W) -> (B * tokens, 3, H, W), in the order of the tokens, studies outermost."""
        groups = study.shape[2] // _GROUP
        used = study[:, :, : groups * _GROUP, self.config.window]
        return used.reshape(-1, _GROUP, *used.shape[3:])


def _resnet18(width: int) -> nn.Sequential:
    """2D ResNet-18 up to stage 4: (N, 3, H, W) -> (N, 8 * width, H / 32, W / 32)."""
    layers: list[nn.Module] = [
        nn.Conv2d(_GROUP, width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    for number in range(4):
        outputs = width << number
        first = BasicBlock(outputs // 2, outputs, stride=2) if number else BasicBlock(outputs, outputs)
        layers += [first, BasicBlock(outputs, outputs)]
    return nn.Sequential(*layers)
