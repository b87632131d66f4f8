"""What is recorded of engines on a GPU: batches, differences, the spread of rebuilds; and of a machine without one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.engine.build import EnginePlan
from fourphase.engine.bundle import BundleContents
from fourphase.export import device_check
from fourphase.export.device_check import check_on_device
from fourphase.runtime import backends
from fourphase.runtime.backend import Outputs
from fourphase.runtime.backends import Choice
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.cuda import Device, Probe
from fourphase.runtime.errors import SelfCheckFailed
from fourphase.runtime.plan_choice import PlanPolicy
from fourphase.runtime.plan_meta import Machine
from tests.support.plans import META
from tests.support.tiny_bundle import tiny_contents

L4 = Probe(Device("NVIDIA L4", "8.9", "13.0", "580.1"), "CUDA device NVIDIA L4, compute capability 8.9")
MACHINE = Machine({"tensorrt": "10.13.3.9"}, L4, "linux", "x86_64")
Floats = NDArray[np.float32]


class OnnxRuntimeAsEngine:
    """The bundle's FP32 model, off by as many 1e-7 as the plan's number says."""

    name, precision, max_batch = "tensorrt", "fp32", 2
    closed: ClassVar[list[OnnxRuntimeAsEngine]] = []

    def __init__(self, bundle: Bundle) -> None:
        self.inner = backends.choose_backend(bundle, "onnxruntime").backend
        self.error = int(bundle.read(bundle.engines[0].plan)) * 1e-7

    def close(self) -> None:
        self.closed.append(self)

    def infer(self, study: Floats) -> Outputs:
        outputs = self.inner.infer(study)
        return Outputs(outputs.logits + np.float32(self.error), outputs.phase_logits)


def plan(number: int) -> tuple[EnginePlan, ...]:
    data = str(number).encode()
    onnx = hashlib.sha256(tiny_contents().models["fp32"].onnx).hexdigest()
    return (EnginePlan(data, {**META, "onnx_sha256": onnx, "plan_sha256": hashlib.sha256(data).hexdigest()}),)


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> BundleContents:
    OnnxRuntimeAsEngine.closed.clear()

    def choose(bundle: Bundle, name: str, *, precision: str, plans: PlanPolicy) -> Choice:
        assert (name, precision, plans.host_code) == ("tensorrt", "fp32", True)
        return Choice(OnnxRuntimeAsEngine(bundle), "a stand-in")

    monkeypatch.setattr(device_check, "probe", lambda: L4)
    monkeypatch.setattr(device_check, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(device_check, "choose_backend", choose)
    return replace(tiny_contents(), engines=plan(30))


def test_rebuilds_are_compared_and_the_nearest_is_kept(contents: BundleContents) -> None:
    further: Iterator[tuple[EnginePlan, ...]] = iter([plan(10), plan(50)])
    record, kept = check_on_device(contents, "fp32", 3, lambda: next(further))
    assert record["state"] == "passed"
    assert len(OnnxRuntimeAsEngine.closed) == 3, "an engine that stays takes the next one's memory"
    assert [entry["batches"] for entry in record["rebuilds"]] == [[1, 2]] * 3
    differences = [entry["max_abs_difference"] for entry in record["rebuilds"]]
    assert differences == pytest.approx([30e-7, 10e-7, 50e-7], abs=3e-7)
    assert record["logits_spread"] == pytest.approx(40e-7, abs=3e-7)
    assert record["kept"] == 2
    assert kept[0].plan == b"10"
    latency = record["rebuilds"][0]["latency_ms"]
    assert 0 < latency["min"] <= latency["median"] <= latency["max"]


def test_a_build_that_is_off_fails_all(contents: BundleContents) -> None:
    with pytest.raises(SelfCheckFailed):
        check_on_device(contents, "fp32", 2, lambda: plan(90_000_000))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probe": lambda: Probe(None, "no CUDA device")}, "no CUDA device"),
        ({"this_machine": lambda: replace(MACHINE, versions={})}, "tensorrt is not installed"),
    ],
)
def test_without_the_right_gpu_nothing_is_run_and_that_is_said(
    contents: BundleContents, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    for name, value in change.items():
        monkeypatch.setattr(device_check, name, value)
    record, kept = check_on_device(contents, "fp32", 3, lambda: plan(0))
    assert record["state"] == "not run"
    assert said in record["reason"]
    assert kept == contents.engines
    assert check_on_device(replace(contents, engines=()), "fp32", 1, tuple)[0]["reason"] == "no engine was built"
