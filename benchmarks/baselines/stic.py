"""Baseline: STIC (Gao et al. 2021, J Hematol Oncol 14:154), one slice per phase through VGG16, a GRU over the phases.

The slice is the middle one of the input, which is centred on the lesion; it is resized to 224 pixels (7/4 of its own
128), and its abdominal window stands in all three channels, as the published network repeats its grey value.

Not here: training, published weights. It has 61.4 GMAC (four phases) and 17.9 M parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fourphase.benchmarks.baselines.resnet3d import ABDOMEN, initialise

__all__ = ["Stic", "SticConfig"]

#: VGG16's convolutions: multiples of the width, stage by stage, each stage followed by a max pooling.
_STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


@dataclass(frozen=True)
class SticConfig:
    """The defaults are the published network's.

    Attributes:
        classes: K of the logits.
        width: channels of the first convolution; the last have 8 times as many, a phase's features 2 times.
        hidden: size of the GRU's state.
        pixels: edge of the square image; VGG16's features are a 32nd, which one convolution without padding covers.
        clinical: number of clinical values that join the last state; the input of our networks has none.
        window: the pseudo-colour channel that is used.
    """

    classes: int = 2
    width: int = 64
    hidden: int = 32
    pixels: int = 224
    clinical: int = 0
    window: int = ABDOMEN[0]


class Stic(nn.Module):
    """Study float32 (B, P, T, C, H, W), clinical values float32 (B, clinical) -> logits (B, K).

    Clinical values are standardised; where they are not given, they are those of the average patient: zeros.
    """

    def __init__(self, config: SticConfig) -> None:
        super().__init__()
        self.config = config
        self.features = nn.Sequential(*_vgg16(config.width))
        outputs = 2 * config.width
        self.whole = nn.Sequential(nn.Conv2d(8 * config.width, outputs, config.pixels // 32), nn.ReLU())
        self.gru = nn.GRU(outputs, config.hidden, batch_first=True)
        self.head = nn.Linear(config.hidden + config.clinical, config.classes)
        self.apply(initialise)

    def forward(self, study: Tensor, clinical: Tensor | None = None) -> Tensor:
        phases = study.shape[1]
        features = self.whole(self.features(self.images(study)))
        states, _ = self.gru(features.reshape(-1, phases, features.shape[1]))
        last = states[:, -1]
        if self.config.clinical:
            values = last.new_zeros(last.shape[0], self.config.clinical) if clinical is None else clinical
            last = torch.cat([last, values], dim=1)
        logits: Tensor = self.head(last)
        return logits

    def images(self, study: Tensor) -> Tensor:
        """(B, P, T, C, H, W) -> (B * P, 3, pixels, pixels): the middle slices, studies outermost."""
        middle = study[:, :, study.shape[2] // 2, self.config.window].flatten(0, 1).unsqueeze(1)
        pixels = self.config.pixels
        return functional.interpolate(middle, (pixels, pixels), mode="bilinear").expand(-1, 3, -1, -1)


def _vgg16(width: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = 3
    for stage in _STAGES:
        for multiple in stage:
            layers += [nn.Conv2d(inputs, multiple * width, 3, padding=1), nn.ReLU()]
            inputs = multiple * width
        layers.append(nn.MaxPool2d(2))
    return layers
