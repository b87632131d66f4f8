"""Costs against closed forms and the published table; limits against arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fourphase.benchmarks.latency import int8_product as int8_product_module
from fourphase.benchmarks.latency.limits import Cost, limit_of, measure_peaks, network_cost
from fourphase.benchmarks.networks import NETWORKS, Scale
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
    if int8_product_module.why_no_int8() is None:
        assert result["matmul_int8_flops_per_s"] == pytest.approx(2 * edge**3 / details[f"int8 {edge}"]["min"] * 1e3)


class _Attending(nn.Module):
    """Self-attention of 4 heads as the baselines write it: one joint projection, one back."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.joint, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        count, length, size = x.shape
        parts = self.joint(x).reshape(count, length, 3, 4, size // 4).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(count, length, size))
        return result


class _Library(nn.Module):
    """The same by torch's own layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return result


@pytest.mark.parametrize("made", [_Attending, _Library])
def test_attention_is_counted(made: Callable[[int], nn.Module]) -> None:
    length, size = 10, 16
    cost = network_cost(made(size), torch.zeros(1, length, size))
    projections, products = length * size * 4 * size, 2 * length * length * size
    assert cost.gmac * 1e9 == pytest.approx(projections + products)
    if made is _Attending:
        # The joint projection, what attention mixes, and the projection back.
        assert cost.activations == length * (3 * size + size + size)


@pytest.mark.parametrize("training", [False, True])
def test_a_transformer_layer_has_no_fast_path_past_the_counter(training: bool) -> None:
    length, size, wide = 10, 16, 32
    layer = nn.TransformerEncoderLayer(size, 4, wide, batch_first=True, norm_first=True).train(training)
    expected = length * size * 4 * size + 2 * length * length * size + 2 * length * size * wide
    assert network_cost(layer, torch.zeros(1, length, size)).gmac * 1e9 == pytest.approx(expected)


def test_a_gru_is_counted() -> None:
    steps, inputs, hidden = 10, 24, 16
    cost = network_cost(nn.GRU(inputs, hidden, batch_first=True), torch.zeros(1, steps, inputs))
    assert cost.gmac * 1e9 == pytest.approx(steps * 3 * hidden * (inputs + hidden))
    assert cost.activations == steps * hidden


def test_a_resize_writes_its_result() -> None:
    class Enlarging(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.interpolate(x, size=(6, 6), mode="bilinear")

    assert network_cost(nn.Sequential(Enlarging()), torch.zeros(1, 2, 4, 4)).activations == 2 * 36


@pytest.mark.parametrize(
    ("name", "gmac", "parameters"), [("transmed", 50.2, 16.6), ("stic", 61.4, 17.9), ("tdn", 72.5, 24.0)]
)
def test_the_baselines_with_attention_gru_and_resizing(name: str, gmac: float, parameters: float) -> None:
    """The published table's figures; TDN's are those that `test_networks` explains."""
    with torch.device("meta"):
        network, study = NETWORKS[name](Scale(), 1)
    cost = network_cost(network, study)
    assert cost.gmac == pytest.approx(gmac, abs=0.05)
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.05)


def test_the_int8_limit_counts_a_byte_per_value() -> None:
    peaks = {"matmul_int8_flops_per_s": 1e15, "copy_bytes_per_s": 1e9}
    found = limit_of(COST, peaks, "int8", batch=1)
    assert found is not None
    assert found["memory_ms"] == pytest.approx((1000 + 200_000 + 800_000) / 1e6)
    assert found["arithmetic_ms"] == pytest.approx(0.2)


def test_the_int8_product_is_the_product_of_the_codes() -> None:
    """By ONNX Runtime against integers: what is timed is the product that its rate is quoted for."""
    import onnxruntime

    edge = 16
    model = int8_product_module._model(edge)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(3).standard_normal((edge, edge), np.float32)
    codes = np.clip(np.rint(x / np.float32(4 / 127)), -128, 127)
    weights = np.random.default_rng(1).integers(-127, 128, (edge, edge), np.int8)
    expected = (codes @ weights.astype(np.float64)) * (4 / 127) / 127
    assert np.abs(session.run(None, {"x": x})[0] - expected).max() < 1e-3


def test_without_openvino_there_is_no_int8_peak_but_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_product_module, "why_no_int8", lambda: "no VNNI")
    result = measure_peaks(lambda result: None, device="cpu", quick=True).result
    assert result["int8_reason"] == "no VNNI"
    assert "matmul_int8_flops_per_s" not in result
