"""The network of Qiao et al. 2024 (doi 10.1186/s12938-024-01297-x) in plain PyTorch; `config` names every open point.

Letters in shapes: B studies, P phases, T slices, C channels, H rows, W columns, K classes, F = 8 * width features, and
N = B * T slices of one phase (B * P * T with a shared backbone). Modules are named for what engineers speak of: stem,
stage1 to stage4, channel and spatial gates, perception, conv1d, gru, heads; `blocks` builds on these names.

Not here: preprocessing, losses, reading checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fourphase.export.config import NetworkConfig

__all__ = ["BasicBlock", "ChannelGate", "FourPhaseNet", "Perception", "SpatialGate", "SpatioTemporal", "Trunk"]

#: The one trunk's name with a shared backbone.
SHARED = "shared"
#: Channel gate (N, C, 1, 1) and spatial gate (N, 1, H, W) of one phase after one stage.
Gates = tuple[Tensor, Tensor]


def _same_kind(dims: int) -> tuple[type[nn.Module], type[nn.Module]]:
    return (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)


class BasicBlock(nn.Module):
    """ResNet's basic block: two 3-wide convolutions with batch norm, and a 1-wide skip where the shape changes.

    Shape: (N, inputs, *) -> (N, outputs, * / stride), with one or two axes for `*` (`dims`).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dims: int = 2) -> None:
        super().__init__()
        conv, norm = _same_kind(dims)
        self.conv1 = conv(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = conv(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = norm(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(conv(inputs, outputs, 1, stride=stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.skip(x))


class ChannelGate(nn.Module):
    """CBAM's channel attention: spatial mean and maximum through one shared MLP, added, sigmoid.

    Shape: (N, C, H, W) -> (N, C, 1, 1), in (0, 1).
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.mlp(x.mean(dim=(2, 3))) + self.mlp(x.amax(dim=(2, 3)))
        return torch.sigmoid(weights)[:, :, None, None]


class SpatialGate(nn.Module):
    """CBAM's spatial attention: maximum and mean over the channels, 7x7 convolution, batch norm, sigmoid.

    Shape: (N, C, H, W) -> (N, 1, H, W), in (0, 1). The input is the channel-refined map.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, refined: Tensor) -> Tensor:
        pooled = torch.cat([refined.amax(dim=1, keepdim=True), refined.mean(dim=1, keepdim=True)], dim=1)
        return torch.sigmoid(self.bn(self.conv(pooled)))


class PhaseGates(nn.Module):
    """Both gates of one phase after one stage: (N, C, H, W) -> Wc (N, C, 1, 1) and Ws (N, 1, H, W)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.channel = ChannelGate(channels, reduction)
        self.spatial = SpatialGate()

    def forward(self, x: Tensor) -> Gates:
        channel: Tensor = self.channel(x)
        return channel, self.spatial(x * channel)


class Perception(nn.Module):
    """Interactive perception (Eq. 1): out_p = X_p * sum over the neighbours q of (Wc_q + Ws_q).

    The sums are taken over the small gates, once per set of neighbours, so each map is multiplied once: no gated copy
    per neighbour.
    """

    def __init__(self, neighbours: Sequence[tuple[int, ...]], norm: str) -> None:
        super().__init__()
        self.neighbours = tuple(neighbours)
        self.norm = norm

    def forward(self, maps: Sequence[Tensor], gates: Sequence[Gates], slices: int) -> list[Tensor]:
        """Maps and gates of all phases -> weighted maps; one entry per phase, or one for all with a shared trunk."""
        if len(maps) == len(self.neighbours):
            return [x * (c + s) for x, (c, s) in zip(maps, self._weights(gates), strict=True)]
        count = len(self.neighbours)
        channel, spatial = (gate.reshape(-1, count, slices, *gate.shape[1:]) for gate in gates[0])
        weights = self._weights([(channel[:, p], spatial[:, p]) for p in range(count)])
        c, s = (torch.stack(part, dim=1).flatten(0, 2) for part in zip(*weights, strict=True))
        return [maps[0] * (c + s)]

    def _weights(self, gates: Sequence[Gates]) -> list[Gates]:
        """The summed channel and spatial gates of every phase's neighbours."""
        totals = {near: self._total([gates[q] for q in near]) for near in dict.fromkeys(self.neighbours)}
        return [totals[near] for near in self.neighbours]

    def _total(self, gates: Sequence[Gates]) -> Gates:
        channel, spatial = gates[0]
        for c, s in gates[1:]:
            channel, spatial = channel + c, spatial + s
        if self.norm == "mean":
            return channel / len(gates), spatial / len(gates)
        return channel, spatial


class Trunk(nn.Module):
    """The 2D ResNet-18 of one phase (or of all): stem, four stages, and the gates after the chosen stages."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, config.width, 7, stride=config.stem_stride, padding=3, bias=False),
            nn.BatchNorm2d(config.width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages = nn.ModuleDict()
        self.gates = nn.ModuleDict()
        inputs = config.width
        for number, outputs in enumerate(config.stage_channels, start=1):
            first = BasicBlock(inputs, outputs, stride=1 if number == 1 else 2)
            self.stages[str(number)] = nn.Sequential(first, BasicBlock(outputs, outputs))
            if number in config.ipm_stages:
                self.gates[str(number)] = PhaseGates(outputs, config.gate_reduction)
            inputs = outputs


class SpatioTemporal(nn.Module):
    """The SPM: all phases' features of a slice joined, two 1D residual blocks along the slices, a GRU's last state.

    Shape: (B, P, T, F) -> (B, K).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        features = config.stage_channels[-1]
        self.conv1d = nn.Sequential(
            BasicBlock(config.count * features, features, dims=1), BasicBlock(features, features, dims=1)
        )
        self.gru = nn.GRU(
            features, config.gru_hidden, config.gru_layers, batch_first=True, bidirectional=config.bidirectional
        )
        self.head = nn.Linear(config.gru_hidden * (2 if config.bidirectional else 1), config.k)

    def forward(self, features: Tensor) -> Tensor:
        slices, joined = features.shape[2], features.shape[1] * features.shape[3]
        sequence = features.permute(0, 1, 3, 2).reshape(-1, joined, slices)
        states, _ = self.gru(self.conv1d(sequence).transpose(1, 2))
        last: Tensor = self.head(self._last(states))
        return last

    def _last(self, states: Tensor) -> Tensor:
        """The state after the last slice; the backward direction's last state is at the first slice."""
        hidden = self.gru.hidden_size
        if not self.gru.bidirectional:
            return states[:, -1]
        return torch.cat([states[:, -1, :hidden], states[:, 0, hidden:]], dim=1)


class FourPhaseNet(nn.Module):
    """Four-phase CT study -> class logits.

    Input: float32 (B, P, T, 3, H, W), preprocessed (windowed, normalised), phases in the configuration's order.
    Output: logits (B, K), phase_logits (B, P, K); softmax is for display only.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        names = (SHARED,) if config.share_backbone else config.phases
        self.trunks = nn.ModuleDict({name: Trunk(config) for name in names})
        self.perceptions = nn.ModuleDict(
            {str(stage): Perception(config.neighbours, config.ipm_norm) for stage in sorted(config.ipm_stages)}
        )
        self.heads = nn.ModuleDict({name: nn.Linear(config.stage_channels[-1], config.k) for name in config.phases})
        self.spm = SpatioTemporal(config) if config.spm else None
        self.apply(_initialise)

    def forward(self, study: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(self.features(study))

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, P, T, F) of all slices -> logits (B, K), phase_logits (B, P, K)."""
        # The head is linear, so the mean over slices may come first.
        means = features.mean(dim=2)
        heads = [head(means[:, p]) for p, head in enumerate(self.heads.values())]
        phase_logits = torch.stack(heads, dim=1)
        auxiliary = phase_logits.mean(dim=1)
        if self.spm is None:
            return auxiliary, phase_logits
        share = self.config.lambda_aux
        return (1 - share) * self.spm(features) + share * auxiliary, phase_logits

    def features(self, study: Tensor) -> Tensor:
        """(B, P, T, 3, H, W) -> (B, P, T, F): every slice on its own, but for the exchange between phases."""
        phases, slices = study.shape[1], study.shape[2]
        image = study.shape[3:]
        trunks = [cast(Trunk, trunk) for trunk in self.trunks.values()]
        parts = [study] if len(trunks) == 1 else [study[:, p] for p in range(phases)]
        maps = [trunk.stem(part.reshape(-1, *image)) for trunk, part in zip(trunks, parts, strict=True)]
        for number in ("1", "2", "3", "4"):
            maps = [trunk.stages[number](x) for trunk, x in zip(trunks, maps, strict=True)]
            if number in self.perceptions:
                gates = [trunk.gates[number](x) for trunk, x in zip(trunks, maps, strict=True)]
                maps = self.perceptions[number](maps, gates, slices)
        pooled = [x.mean(dim=(2, 3)) for x in maps]
        width = pooled[0].shape[1]
        if len(trunks) == 1:
            folded: Tensor = pooled[0].reshape(-1, phases, slices, width)
            return folded
        return torch.stack([v.reshape(-1, slices, width) for v in pooled], dim=1)


def _initialise(module: nn.Module) -> None:
    """He initialisation of convolutions, as ResNet has it; everything else keeps PyTorch's default."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
