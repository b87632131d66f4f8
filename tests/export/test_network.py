"""The network against the paper's numbers and against literal, wasteful implementations of its equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fourphase.export.blocks import record_blocks
from fourphase.export.config import NetworkConfig
from fourphase.export.network import ChannelGate, FourPhaseNet, Perception, SpatialGate
from tests.support.networks import random_study, small_network


def parameters(config: NetworkConfig) -> float:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in FourPhaseNet(config).parameters()) / 1e6


def test_parameter_counts_are_those_of_the_facts() -> None:
    assert round(parameters(NetworkConfig()), 1) == 52.0
    assert round(parameters(NetworkConfig(share_backbone=True)), 1) == 18.4


def test_arithmetic_per_study_is_152_gmac() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = FourPhaseNet(NetworkConfig()).eval()
        study = torch.zeros(1, 4, 64, 3, 128, 128)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        # The meta device has no GRU kernel; its 0.04 GMAC are added by hand.
        trunk_and_heads = network.features(study)
        assert network.spm is not None
        network.spm.conv1d(trunk_and_heads.permute(0, 1, 3, 2).reshape(1, 2048, 64))
    gru = 64 * 3 * 256 * (512 + 256)
    assert (counter.get_total_flops() / 2 + gru) / 1e9 == pytest.approx(152.1, abs=0.2)


@pytest.mark.parametrize("norm", ["sum", "mean"])
@pytest.mark.parametrize("graph", ["ring", "all", "chain"])
def test_equation_1_against_four_literal_gated_copies(graph: str, norm: str) -> None:
    config = NetworkConfig(ipm_graph=graph, ipm_norm=norm)
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(6, 5, 4, 4, generator=generator) for _ in range(4)]
    gates = [
        (torch.rand(6, 5, 1, 1, generator=generator), torch.rand(6, 1, 4, 4, generator=generator)) for _ in range(4)
    ]
    mixed = Perception(config.neighbours, norm)(maps, gates, slices=6)
    for p, near in enumerate(config.neighbours):
        copies: list[Tensor] = []
        for q in near:
            channel, spatial = gates[q]
            copies += [maps[p] * channel.expand_as(maps[p]), maps[p] * spatial.expand_as(maps[p])]
        literal = torch.stack(copies).sum(dim=0) / (len(near) if norm == "mean" else 1)
        torch.testing.assert_close(mixed[p], literal)


def test_channel_gate_is_cbam() -> None:
    gate = ChannelGate(8, 4)
    x = torch.randn(2, 8, 5, 7)
    first, _, second = gate.mlp

    def mlp(pooled: Tensor) -> Tensor:
        hidden = F.relu(F.linear(pooled, first.weight, first.bias))  # type: ignore[arg-type]
        return F.linear(hidden, second.weight, second.bias)  # type: ignore[arg-type]

    average = F.adaptive_avg_pool2d(x, 1).flatten(1)
    largest = F.adaptive_max_pool2d(x, 1).flatten(1)
    expected = torch.sigmoid(mlp(average) + mlp(largest))
    torch.testing.assert_close(gate(x).flatten(1), expected)


def test_spatial_gate_is_cbam() -> None:
    gate = SpatialGate().eval()
    x = torch.randn(2, 8, 9, 9)
    pooled = torch.stack([x.max(dim=1).values, x.sum(dim=1) / 8], dim=1)
    expected = torch.sigmoid(F.conv2d(pooled, gate.conv.weight, padding=3) / (1 + gate.bn.eps) ** 0.5)
    torch.testing.assert_close(gate(x), expected)


def test_one_shared_trunk_equals_four_trunks_with_the_same_weights() -> None:
    shared = small_network(share_backbone=True)
    separate = small_network(seed=1)
    state = {}
    for key, value in shared.state_dict().items():
        if key.startswith("trunks.shared."):
            state.update({key.replace("shared", phase): value for phase in shared.config.phases})
        else:
            state[key] = value
    separate.load_state_dict(state)
    study = torch.from_numpy(random_study(2))
    for one, other in zip(shared(study), separate(study), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_mean_then_head_equals_head_then_mean() -> None:
    network = small_network()
    study = torch.from_numpy(random_study(2))
    features = network.features(study)
    per_slice = torch.stack([head(features[:, p]) for p, head in enumerate(network.heads.values())], dim=1)
    torch.testing.assert_close(network(study)[1], per_slice.mean(dim=2), rtol=1e-4, atol=1e-5)


def test_the_trunk_treats_every_slice_on_its_own() -> None:
    network = small_network()
    study = torch.from_numpy(random_study(1))
    whole = network.features(study)
    chunks = torch.cat([network.features(study[:, :, first : first + 3]) for first in (0, 3, 6)], dim=2)
    torch.testing.assert_close(whole, chunks, rtol=1e-4, atol=1e-5)


def test_lambda_mixes_the_two_predictions() -> None:
    study = torch.from_numpy(random_study(2))
    outputs = {}
    for share in (0.0, 0.3, 1.0):
        network = small_network(lambda_aux=share)
        with record_blocks(network) as blocks:
            logits, phase_logits = network(study)
        outputs[share] = logits
        expected = (1 - share) * blocks["head"] + share * phase_logits.mean(dim=1)
        torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(outputs[0.3], 0.7 * outputs[0.0] + 0.3 * outputs[1.0])


def test_the_prediction_comes_from_the_gru_state_after_the_last_slice() -> None:
    network = small_network(bidirectional=True)
    assert network.spm is not None
    with record_blocks(network) as blocks:
        network(torch.from_numpy(random_study(1)))
    _, last = network.spm.gru(blocks["conv1d"].transpose(1, 2))
    expected = network.spm.head(torch.cat([last[0], last[1]], dim=1))
    torch.testing.assert_close(blocks["head"], expected)


ABLATIONS: dict[str, dict[str, Any]] = {
    "backbone": {"ipm_stages": (), "spm": False},
    "spm": {"ipm_stages": (), "lambda_aux": 0.0},
    "miff": {"spm": False},
    "spm_miff": {"lambda_aux": 0.0},
    "multi_task": {},
    "one_stage": {"ipm_stages": (4,)},
    "nc_art_pv": {"phases": ("NC", "ART", "PV")},
    "nc_art_dl": {"phases": ("NC", "ART", "DL")},
    "stem_stride_1": {"stem_stride": 1},
    "three_classes": {"classes": ("HCC", "ICC", "benign")},
}


@pytest.mark.parametrize("row", ABLATIONS)
def test_every_row_of_the_papers_ablation_can_be_expressed(row: str) -> None:
    network = small_network(**ABLATIONS[row])
    config = network.config
    logits, phase_logits = network(torch.from_numpy(random_study(2, phases=config.count)))
    assert logits.shape == (2, config.k)
    assert phase_logits.shape == (2, config.count, config.k)
    assert torch.isfinite(logits).all()
    gated = {stage for trunk in network.trunks.values() for stage in trunk.gates}  # type: ignore[union-attr]
    assert gated == {str(stage) for stage in config.ipm_stages}
    assert (network.spm is None) == (not config.spm)


def test_exchange_between_phases_reaches_only_ring_neighbours() -> None:
    network = small_network(ipm_stages=(1,))
    study = random_study(1)
    changed = study.copy()
    changed[:, 1] += 1.0  # ART
    with record_blocks(network) as before:
        network(torch.from_numpy(study))
    with record_blocks(network) as after:
        network(torch.from_numpy(changed))
    moved = {
        phase for phase in network.config.phases if not torch.equal(before[f"mix1/{phase}"], after[f"mix1/{phase}"])
    }
    assert moved == {"NC", "ART", "PV"}
