"""The runtimes' modules: why they cannot be measured, and that they compute the network they are asked for."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fourphase.benchmarks.latency import engines, on_cuda_graph, on_onnxruntime, on_torch_compile, prepare
from fourphase.benchmarks.latency.availability import Availability
from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.runtimes import RUNTIMES, load_task, runtime_module
from fourphase.benchmarks.latency.scratch import folder_for_this_run
from fourphase.benchmarks.latency.studies import studies_of
from fourphase.engine.build import EnginePlan
from fourphase.export.checkpoint import save_checkpoint
from fourphase.export.config import NetworkConfig
from fourphase.export.network import FourPhaseNet
from fourphase.runtime import onnxruntime_backend
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.cuda import Probe
from fourphase.runtime.errors import SelfCheckFailed
from fourphase.runtime.golden import Tolerance
from tests.support.lowered_bundle import write_lowered
from tests.support.plans import META
from tests.support.tiny_bundle import write_tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_lowered(tmp_path_factory.mktemp("bundles") / "lowered")


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    threads, flags = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = flags
    torch.backends.cudnn.benchmark = False


def task(runtime: str, precision: str, bundle: Bundle, **keys: Any) -> Task:
    return Task(RUNTIMES[runtime], runtime, precision, 3, "cpu", str(bundle.path), **keys)


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_is_a_flat_module_with_the_same_names(name: str) -> None:
    module = runtime_module(name)
    assert module.REQUIREMENTS
    assert {"REQUIREMENTS", "load", "why_not"} <= set(importlib.import_module(RUNTIMES[name]).__all__)
    if name.startswith("torch") or name == "cuda-graph":
        assert module.why_not("int8", "cpu")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_eager_computes_the_checkpoint_on_the_bundles_inputs(
    bundle: Bundle, tmp_path: Path, torch_as_before: None, precision: str
) -> None:
    torch.manual_seed(5)
    network = FourPhaseNet(NetworkConfig(width=4, gru_hidden=4)).eval()
    save_checkpoint(tmp_path / "net.safetensors", network, bundle.preprocessing)
    loaded = load_task(task("torch-eager", precision, bundle, checkpoint=str(tmp_path / "net.safetensors")))
    with torch.no_grad():
        logits, phase_logits = network(torch.from_numpy(studies_of(bundle, 3)))
    off = np.abs(loaded.outputs["logits"] - logits.numpy()).max()
    assert off < 1e-6 if precision == "fp32" else 1e-6 < off < 0.1
    assert loaded.outputs["phase_logits"].shape == tuple(phase_logits.shape)
    assert loaded.infer().compute_ms > 0
    assert loaded.device_peak_bytes() is None


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_product_runs_the_bundles_model(bundle: Bundle, runtime: str) -> None:
    if runtime_module(runtime).why_not("fp32", "cpu"):
        pytest.skip("openvino is not installed")
    loaded = load_task(task(runtime, "fp32", bundle))
    golden = bundle.golden("fp32")
    rows = [index % len(golden) for index in range(3)]
    assert np.abs(loaded.outputs["logits"] - golden.logits[rows]).max() < 1e-4
    sample = loaded.infer()
    assert (sample.h2d_ms, sample.d2h_ms) == (None, None)
    assert sample.latency_ms == sample.compute_ms > 0


def test_reasons_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourphase.runtime.cuda.probe", lambda: Probe(None, "no driver"))
    assert on_cuda_graph.why_not("fp32", "cpu") == "needs a CUDA device: no driver"
    assert on_cuda_graph.why_not("fp32", "cuda") is None
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "no C++ compiler" in str(on_torch_compile.why_not("fp32", "cpu"))
    assert on_torch_compile.why_not("fp32", "cuda") is None
    monkeypatch.setattr("shutil.which", lambda name: "/bin/it" if name == "mine" else None)
    monkeypatch.setenv("CXX", "mine")
    assert on_torch_compile.why_not("fp32", "cpu") is None
    monkeypatch.setattr(onnxruntime_backend, "is_available", lambda: False)
    assert "is not installed" in str(on_onnxruntime.why_not("fp32", "cpu"))


def test_engines_need_module_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "probe", lambda: Probe(None, "no driver"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert engines.engine_why_not("tensorrt") == "the Python module tensorrt is not installed; no driver"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert engines.engine_why_not("tensorrt-rtx") == "no driver"


def test_a_bundle_of_another_machine_says_what_speaks_against_its_engine(tmp_path: Path) -> None:
    plan = b"plan"
    meta = {**META, "plan_sha256": hashlib.sha256(plan).hexdigest()}
    made = write_tiny(tmp_path / "bundle", engines=(EnginePlan(plan, meta),))
    said = engines.plan_reasons(made, "tensorrt")
    assert said.startswith("engine ")
    assert "built from another model" in said
    assert engines.plan_reasons(made, "tensorrt-rtx") == ""


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_lowered_model_must_give_its_golden_outputs(bundle: Bundle, runtime: str, tmp_path: Path) -> None:
    """The bundle's golden outputs are FP32's: int8 is far off them, and passes where that is allowed."""
    if runtime_module(runtime).why_not("int8", "cpu"):
        pytest.skip("openvino is not installed, or this CPU has no int8 for it")
    with pytest.raises(SelfCheckFailed, match=f"self-check of {runtime} int8 failed"):
        load_task(task(runtime, "int8", bundle))
    lenient = write_lowered(tmp_path / "lenient", Tolerance(10.0, 0.0, 10.0))
    notes = [load_task(task(runtime, precision, lenient)).note for precision in ("fp32", "int8", "fp16")]
    assert notes == ["", "", "computed in FP32: this runtime has no FP16 on a CPU"]


def test_why_a_precision_is_not_measured_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(runtime: str, precision: str, named: tuple[str, ...] = (), runtimes: tuple[str, ...] = ()) -> str:
        available = Availability(named, runtimes, quick=True)
        available.main_device = "cpu"
        return available.why_not(runtime, precision) or ""

    monkeypatch.setattr("shutil.which", lambda name: "/bin/it")
    assert "compiles nothing" in reason("torch-compile", "fp32")
    assert reason("torch-compile", "fp32", runtimes=("torch-compile",)) == ""
    assert reason("torch-eager", "fp16").startswith("FP16 is slow on a CPU")
    assert reason("onnxruntime", "fp16").startswith("a CPU computes no FP16")
    assert reason("onnxruntime", "fp16", named=("fp16",)) == ""


def test_what_the_cache_cannot_keep_goes_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from fourphase.benchmarks.latency.scratch import folder_for_this_run as folder\n"
        "assert folder('x-') == folder('x-') != folder('y-')\n"
        "(folder('x-') / 'file').touch()\n"
        "print(folder('x-'), folder('y-'), sep='\\n')"
    )
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert len(made) == 2
    assert not any(Path(folder).exists() for folder in made)
    monkeypatch.setattr(prepare, "cache_folder", lambda kind: None)
    assert prepare.benchmarks_folder() == folder_for_this_run("fourphase-benchmarks-")
