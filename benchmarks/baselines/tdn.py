"""Baseline: TDN (Wang et al. 2021, arXiv 2012.10071), a 2D ResNet-50 on segments of slices with temporal differences.

The slices of a study are its frames, all phases the channels of a frame, one window each. 64 slices are 16 segments of
four; a segment is its middle slice and two on either side, resized to 224 pixels (7/4 of their own 128). Beyond the
ends the last slice stands.

The network is known by 71.3 GMAC and 26.1 M parameters. Those are of frames with three channels, and with ImageNet's
1000 classes; with four phases as channels both stems grow by a third (72.5 GMAC), with two classes the last layer
shrinks by 2.0 M parameters (24.0 M).

Not here: training, published weights, random segments.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fourphase.benchmarks.baselines.resnet3d import ABDOMEN, RESIDUAL_GAIN, initialise, phases_as_channels

__all__ = ["LongTermDifference", "Tdn", "TdnConfig", "TemporalShift"]

#: How many times wider a bottleneck's output is.
_EXPANSION = 4
#: Frames of a segment; the third is its own.
_FRAMES = 5
#: The share of channels that the temporal convolution shifts at first, each way: one in eight (TSM, arXiv 1811.08383).
_SHIFTED = 8


@dataclass(frozen=True)
class TdnConfig:
    """The defaults are TDN with 16 segments.

    Attributes:
        phases: P of the input.
        classes: K of the logits.
        width: channels of the stem (64 in ResNet-50).
        blocks: bottlenecks of each of the four stages (ResNet-50's).
        segments: number of segments that the slices are divided into.
        pixels: edge of the square frames.
        own, moving: weights of the frame and of its differences where they are fused: 0.75 and 0.25 for 16 segments,
            0.5 and 0.5 for 8.
        reduction: the long-term differences are taken of this many times fewer channels.
        windows: the pseudo-colour channels that are used of every phase.
    """

    phases: int = 4
    classes: int = 2
    width: int = 64
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    segments: int = 16
    pixels: int = 224
    own: float = 0.75
    moving: float = 0.25
    reduction: int = 16
    windows: tuple[int, ...] = ABDOMEN


class TemporalShift(nn.Module):
    """A depthwise convolution of width 3 along the segments, that at first shifts an eighth of the channels each way.

    Shape: (B * S, C, H, W) -> the same; S segments.
    """

    def __init__(self, channels: int, segments: int) -> None:
        super().__init__()
        self.segments = segments
        # Depthwise along one of two axes: every run time has it, 1D convolutions over B * H * W rows are slow.
        self.conv = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), groups=channels, bias=False)

    def reset(self) -> None:
        """The first eighth takes the next segment's values, the second eighth those of the one before."""
        fold, weight = self.conv.weight.shape[0] // _SHIFTED, torch.zeros_like(self.conv.weight)
        weight[:fold, 0, 2] = 1
        weight[fold : 2 * fold, 0, 0] = 1
        weight[2 * fold :, 0, 1] = 1
        with torch.no_grad():
            self.conv.weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        channels, rows, columns = x.shape[1:]
        along = x.reshape(-1, self.segments, channels, rows * columns).transpose(1, 2)
        mixed: Tensor = self.conv(along)
        return mixed.transpose(1, 2).reshape(-1, channels, rows, columns)


class LongTermDifference(nn.Module):
    """L-TDM: channel and place weights from what changes between neighbouring segments, both ways; x + x * weights.

    Shape: (B * S, C, H, W) -> the same. The last segment has no next one and the first none before: no difference.
    """

    def __init__(self, channels: int, segments: int, reduction: int) -> None:
        super().__init__()
        self.segments = segments
        few = max(1, channels // reduction)
        self.reduce = nn.Sequential(nn.Conv2d(channels, few, 1, bias=False), nn.BatchNorm2d(few))
        self.smooth = nn.Conv2d(few, few, 3, padding=1, groups=few, bias=False)
        self.coarse = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(few, few, 3, padding=1, bias=False), nn.BatchNorm2d(few))
        self.fine = nn.Sequential(nn.Conv2d(few, few, 3, padding=1, bias=False), nn.BatchNorm2d(few))
        self.restore = nn.Sequential(nn.Conv2d(few, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        now, other = (y.reshape(-1, self.segments, *y.shape[1:]) for y in (reduced, self.smooth(reduced)))
        nothing = torch.zeros_like(now[:, :1])
        forward = torch.cat([other[:, 1:] - now[:, :-1], nothing], dim=1).flatten(0, 1)
        backward = torch.cat([nothing, other[:, :-1] - now[:, 1:]], dim=1).flatten(0, 1)
        # Both ways in one batch: the same weights, half the calls.
        both = self._restored(torch.cat([forward, backward]))
        weights = torch.sigmoid(both).reshape(2, -1, *x.shape[1:]).mean(dim=0) - 0.5
        return x + x * weights

    def _restored(self, difference: Tensor) -> Tensor:
        coarse = functional.interpolate(self.coarse(difference), difference.shape[2:])
        restored: Tensor = self.restore((difference + coarse + self.fine(difference)) / 3)
        return restored


class Bottleneck(nn.Module):
    """ResNet's bottleneck (stride in the 3x3), in stages 2 to 4 with both temporal modules before the 3x3."""

    def __init__(self, inputs: int, middle: int, stride: int, config: TdnConfig, *, temporal: bool) -> None:
        super().__init__()
        outputs = _EXPANSION * middle
        self.before = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU())
        self.temporal = nn.Sequential()
        if temporal:
            difference = LongTermDifference(middle, config.segments, config.reduction)
            self.temporal = nn.Sequential(difference, TemporalShift(middle, config.segments))
        self.after = nn.Sequential(
            nn.Conv2d(middle, middle, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        nn.init.constant_(self.after[-1].get_parameter("weight"), RESIDUAL_GAIN)
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.after(self.temporal(self.before(x))) + self.skip(x))


class Tdn(nn.Module):
    """Study float32 (B, P, T, C, H, W) -> logits (B, K): the mean of the segments' scores."""

    def __init__(self, config: TdnConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.phases * len(config.windows)
        self.stem, self.pool = _stem(channels, config.width), nn.MaxPool2d(3, stride=2, padding=1)
        self.moving_stem = nn.Sequential(nn.AvgPool2d(2), _stem((_FRAMES - 1) * channels, config.width))
        self.moving_stage = _stage(0, config)
        self.stages = nn.ModuleList(_stage(number, config) for number in range(4))
        self.head = nn.Linear(_EXPANSION * 8 * config.width, config.classes)
        self.apply(initialise)
        for module in self.modules():
            if isinstance(module, TemporalShift):
                module.reset()

    def forward(self, study: Tensor) -> Tensor:
        frames = self.frames(study)
        moving = torch.cat([b - a for a, b in itertools.pairwise(frames)], dim=1)
        moving = self.pool(self.moving_stem(moving))
        x = self._fused(self.pool(self.stem(frames[_FRAMES // 2])), moving)
        x = self._fused(self.stages[0](x), self.moving_stage(moving))
        for stage in self.stages[1:]:
            x = stage(x)
        scores: Tensor = self.head(x.mean(dim=(2, 3)))
        return scores.reshape(-1, self.config.segments, scores.shape[1]).mean(dim=1)

    def frames(self, study: Tensor) -> list[Tensor]:
        """(B, P, T, C, H, W) -> the five frames of all segments, each (B * S, P * windows, pixels, pixels)."""
        slices, pixels = study.shape[2], self.config.pixels
        stack = phases_as_channels(study, self.config.windows).transpose(1, 2)
        resized = functional.interpolate(stack.flatten(0, 1), (pixels, pixels), mode="bilinear")
        resized = resized.reshape(-1, slices, *resized.shape[1:])
        return [torch.stack([resized[:, at] for at in row], dim=1).flatten(0, 1) for row in self._places(slices)]

    def _places(self, slices: int) -> list[list[int]]:
        """For each of the five frames, its slice in every segment."""
        middles = [(2 * segment + 1) * slices // (2 * self.config.segments) for segment in range(self.config.segments)]
        half = _FRAMES // 2
        return [[min(max(m + step, 0), slices - 1) for m in middles] for step in range(-half, half + 1)]

    def _fused(self, own: Tensor, moving: Tensor) -> Tensor:
        enlarged = functional.interpolate(moving, own.shape[2:])
        return self.config.own * own + self.config.moving * enlarged


def _stem(inputs: int, width: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, width, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


def _stage(number: int, config: TdnConfig) -> nn.Sequential:
    """ResNet-50's stage, numbered from 0."""
    middle = config.width << number
    inputs, stride = (_EXPANSION * middle // 2, 2) if number else (config.width, 1)
    first = Bottleneck(inputs, middle, stride, config, temporal=number > 0)
    others = (
        Bottleneck(_EXPANSION * middle, middle, 1, config, temporal=number > 0)
        for _ in range(config.blocks[number] - 1)
    )
    return nn.Sequential(first, *others)
