"""Baseline: MexPale (Ling et al. 2022, Front Oncol 12:960178), a 3D ResNet-18 of all phases and an MLP on four values.

The published layer sizes are unknown: the ResNet is MedicalNet's form (24.3 GMAC, 33.2 M parameters in all), the MLP
has two layers of 64.

Not here: training, published weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fourphase.benchmarks.baselines.resnet3d import ResNet3d, ResNet3dConfig

__all__ = ["MexPale", "MexPaleConfig"]


@dataclass(frozen=True)
class MexPaleConfig:
    """The defaults are the published network's, where known.

    Attributes:
        image: the 3D ResNet; its head is not used, but its number of classes is.
        clinical: number of clinical values: age, gender, location, size.
        hidden: width of both layers of the MLP.
    """

    image: ResNet3dConfig = field(default_factory=ResNet3dConfig.medicalnet)
    clinical: int = 4
    hidden: int = 64


class MexPale(nn.Module):
    """Study float32 (B, P, T, C, H, W), clinical values float32 (B, clinical) -> logits (B, K).

    Clinical values are standardised. The input of our networks has none: where they are not given, they are those of
    the average patient, zeros, and an exported graph has them as constants.
    """

    def __init__(self, config: MexPaleConfig) -> None:
        super().__init__()
        self.clinical = config.clinical
        self.image = ResNet3d(config.image)
        self.image.head = nn.Sequential()
        self.mlp = nn.Sequential(
            nn.Linear(config.clinical, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.hidden), nn.ReLU()
        )
        self.head = nn.Linear(8 * config.image.width + config.hidden, config.image.classes)

    def forward(self, study: Tensor, clinical: Tensor | None = None) -> Tensor:
        features = self.image.features(study)
        values = features.new_zeros(features.shape[0], self.clinical) if clinical is None else clinical
        logits: Tensor = self.head(torch.cat([features, self.mlp(values)], dim=1))
        return logits
