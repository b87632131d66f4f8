"""Costs against closed forms and the published table; limits against arithmetic by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fourphase.benchmarks.latency.limits import Cost, limit_of, measure_peaks, network_cost
from fourphase.export.config import NetworkConfig
from fourphase.export.network import FourPhaseNet


def test_a_cost_that_can_be_counted_by_hand() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )
    cost = network_cost(module, torch.zeros(7, 3, 4, 4))
    assert cost.gmac == pytest.approx((16 * 8 * 27 + 128 * 5) / 1e9)
    assert cost.parameters == 8 * 27 + 16 + 128 * 5 + 5
    assert cost.activations == 16 * 8 + 5
    assert cost.inputs_outputs == 3 * 16 + 5
    assert next(module.parameters()).device.type == "cpu"  # counted on a copy


@pytest.mark.parametrize(("keys", "parameters"), [({}, 52.0), ({"share_backbone": True}, 18.4)])
def test_the_networks_cost_is_the_tables(keys: dict[str, Any], parameters: float) -> None:
    with torch.device("meta"):
        network, study = FourPhaseNet(NetworkConfig(**keys)), torch.empty(1, 4, 64, 3, 128, 128)
    cost = network_cost(network, study)
    assert cost.gmac == pytest.approx(152.1, abs=0.05)
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.05)
    stem = 4 * 64 * 64 * 64 * 64  # 64 channels of 64 x 64 for 4 phases of 64 slices
    assert stem < cost.activations < 4 * stem


COST = Cost(gmac=100, parameters=1000, activations=400_000, inputs_outputs=200_000)
PEAKS = {"matmul_fp32_flops_per_s": 1e13, "matmul_fp16_flops_per_s": 1e14, "copy_bytes_per_s": 1e9}


def test_the_limit_is_the_larger_of_arithmetic_and_memory() -> None:
    single = limit_of(COST, PEAKS, "fp32", batch=1)
    assert single is not None
    assert single["arithmetic_ms"] == pytest.approx(20)
    assert single["memory_ms"] == pytest.approx(4 * (1000 + 200_000 + 800_000) / 1e6)
    assert (single["limit_ms"], single["bound_by"]) == (single["arithmetic_ms"], "arithmetic")
    half = limit_of(COST, PEAKS, "fp16", batch=2)
    assert half is not None
    assert half["arithmetic_ms"] == pytest.approx(4)
    assert half["memory_ms"] == pytest.approx(2 * (1000 + 2 * 1_000_000) / 1e6)
    assert (half["limit_ms"], half["bound_by"]) == (pytest.approx(4.002), "memory")


@pytest.mark.parametrize("missing", ["matmul_fp32_flops_per_s", "copy_bytes_per_s"])
def test_no_peak_no_limit(missing: str) -> None:
    assert limit_of(COST, {name: value for name, value in PEAKS.items() if name != missing}, "fp32", 1) is None


def test_peaks_of_this_cpu_are_measured_and_fp16_is_not_guessed() -> None:
    result = measure_peaks(lambda result: None, device="cpu", quick=True).result
    edge, copied = 256, 1 << 22
    details = result["details"]
    assert result["matmul_fp32_flops_per_s"] == pytest.approx(2 * edge**3 / details[f"fp32 {edge}"]["min"] * 1e3)
    assert result["copy_bytes_per_s"] == pytest.approx(2 * copied / details[f"copy {copied}"]["min"] * 1e3)
    assert "matmul_fp16_flops_per_s" not in result
