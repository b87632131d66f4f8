"""PyTorch latencies: rehearsed on the CPU; one variant's failure is its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fourphase.benchmarks.latency import torch_latency
from fourphase.benchmarks.latency.torch_inference import inference_of
from fourphase.benchmarks.latency.torch_latency import BASELINE, VARIANTS, Variant, measure_network
from fourphase.benchmarks.latency.torch_timer import Inference, Transfers


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers on several threads wait for each other; also, PyTorch's switches are as before afterwards."""
    before = torch.get_num_threads()
    flags = (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = flags


def test_all_ways_in_both_precisions() -> None:
    names = [variant.name for variant in VARIANTS]
    assert names == [f"{way} {kind}" for kind in ("fp32", "fp16") for way in ("eager", "compile", "cuda-graph")]
    assert Variant("eager", "fp32") == BASELINE


def test_a_rehearsal_measures_eager_and_skips_the_rest_with_the_reason() -> None:
    saved: list[Any] = []
    outcome = measure_network(saved.append, network="four-phase", batch=2, device="cpu", quick=True)
    assert outcome.status == "ok"
    first, *others = outcome.result["rows"]
    assert (first["variant"], first["status"], first["batch"]) == ("eager fp32", "ok", 2)
    assert first["difference"]["max_abs"] == 0.0
    assert first["statistics"]["studies_per_second"] > 0
    assert [row["status"] for row in others] == ["skipped"] * 5
    assert all("CUDA device only" in row["reason"] and "statistics" not in row for row in others)
    assert saved[0]["cost"]["gmac"] > 0


def test_a_variant_that_fails_is_recorded_and_the_others_are_measured_and_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, with every way played by eager, but for compile, which does not come up."""

    def played(module: nn.Module, transfers: Transfers, way: str, stream: None) -> Inference:
        if way == "compile":
            raise RuntimeError("no C compiler\nlooked for cc")
        return inference_of(module, transfers, "eager", stream)

    monkeypatch.setattr(torch_latency, "inference_of", played)
    monkeypatch.setattr(torch_latency, "_can_run", lambda variant, device: True)
    outcome = measure_network(lambda _: None, network="four-phase", batch=1, device="cpu", quick=True)
    assert (outcome.status, outcome.reason) == ("failed", "failed: compile fp32, compile fp16")
    rows = {row["variant"]: row for row in outcome.result["rows"]}
    for kind in ("fp32", "fp16"):
        assert rows[f"compile {kind}"]["error"]["message"] == "no C compiler\nlooked for cc"
        assert rows[f"eager {kind}"]["statistics"]["iterations"] >= 4
    assert rows["cuda-graph fp32"]["difference"]["max_abs"] == 0
    assert 1e-6 < rows["eager fp16"]["difference"]["relative"] < 0.05


def test_a_variant_that_fails_while_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(inference: Inference, stream: None) -> Any:
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(torch_latency, "timed", lambda inference, stream: lambda: failing(inference, stream))
    outcome = measure_network(lambda _: None, network="four-phase", batch=1, device="cpu", quick=True)
    row = outcome.result["rows"][0]
    assert (outcome.status, row["status"]) == ("failed", "failed")
    assert row["error"]["message"] == "CUDA error: misaligned address"
    assert row["difference"]["finite"]
