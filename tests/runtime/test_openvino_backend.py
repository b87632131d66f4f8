"""OpenVINO against onnx's reference evaluator, in FP32 and on a Q/DQ graph, and when `auto` takes it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.engine.bundle import OnnxModel
from fourphase.runtime import backends, openvino_backend
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.cpu import int8_instructions
from fourphase.runtime.cuda import Probe
from fourphase.runtime.errors import (
    EnvironmentFault,
    GPUUnavailable,
    ModelIncompatible,
    PixelDataError,
    SelfCheckFailed,
)
from fourphase.runtime.selfcheck import self_check
from tests.support.logits_alone import write_logits_alone
from tests.support.tiny_bundle import SHAPE, TINY_MODEL, reference_outputs, tiny_contents, tiny_model, write_tiny

pytestmark = pytest.mark.skipif(not openvino_backend.is_available(), reason="needs the extra [openvino]")

#: The tiny model with its weight and its pooled values in int8; a convolution, because that is what OpenVINO lowers.
INT8_MODEL = """
<ir_version: 9, opset_import: ["" : 19]>
tiny (float[B, 4, 2, 3, 4, 5] study) => (float[B, 2] logits, float[B, 4, 2] phase_logits)
<int8[2, 3, 1, 1] codes = {32, 127, -48, -95, 127, 63}, float[2] steps = {0.016, 0.0157}, int8[2] zeros = {0, 0},
 float step = {0.02}, int8 zero = {0}, float[2] bias = {0.1, -0.2}, int64[4] fold = {-1, 3, 4, 5},
 int64[4] unfold = {-1, 4, 2, 2}, int64[2] hw = {2, 3}, int64[1] one = {1}, int64[1] two = {2}>
{
  slices = Reshape(study, fold)
  q = QuantizeLinear(slices, step, zero)
  x = DequantizeLinear(q, step, zero)
  w = DequantizeLinear<axis = 0>(codes, steps, zeros)
  c = Conv(x, w, bias)
  pooled = ReduceMean<keepdims = 0>(c, hw)
  per_slice = Reshape(pooled, unfold)
  phase_logits = ReduceMean<keepdims = 0>(per_slice, two)
  logits = ReduceMean<keepdims = 0>(phase_logits, one)
}
"""


#: As INT8_MODEL, with codes so large that two products do not fit into 16 bits.
SATURATING = INT8_MODEL.replace("{32, 127, -48, -95, 127, 63}", "{127, 127, 127, -127, -127, -127}").replace(
    "step = {0.02}", "step = {0.01}"
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny(tmp_path / "bundle")


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle with an FP32 and an int8 model, on a CPU with AMX and without a GPU."""
    monkeypatch.setattr(backends, "probe", lambda: Probe(None, "no CUDA device"))
    monkeypatch.setattr(backends, "int8_instructions", lambda: "AMX")
    monkeypatch.setattr(openvino_backend, "int8_instructions", lambda: "AMX")
    models = {**tiny_contents().models, "int8": OnnxModel(tiny_model(INT8_MODEL), {"stem": "int8"})}
    return write_tiny(tmp_path / "both", models=models)


def studies(batch: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).normal(size=(batch, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_fp32_agrees_with_the_reference_evaluator(bundle: Bundle, batch: int) -> None:
    backend = choose_backend(bundle, "openvino").backend
    assert (backend.name, backend.precision) == ("openvino", "fp32")
    outputs = backend.infer(studies(batch))
    logits, phase_logits = reference_outputs(tiny_model(), studies(batch))
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=1e-6)
    assert outputs.phase_logits is not None
    np.testing.assert_allclose(outputs.phase_logits, phase_logits, rtol=1e-5, atol=1e-6)
    assert outputs.logits.dtype == outputs.phase_logits.dtype == np.float32


@pytest.mark.skipif(int8_instructions() is None, reason="this CPU has no instructions for int8 (VNNI, AMX)")
def test_int8_agrees_with_the_reference_evaluator(both: Bundle) -> None:
    backend = choose_backend(both, "openvino").backend
    assert backend.precision == "int8"
    outputs = backend.infer(studies(2))
    logits, phase_logits = reference_outputs(tiny_model(INT8_MODEL), studies(2))
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-4, atol=1e-5)
    assert outputs.phase_logits is not None
    np.testing.assert_allclose(outputs.phase_logits, phase_logits, rtol=1e-4, atol=1e-5)


def test_int8_is_refused_on_a_cpu_where_it_would_be_wrong(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_backend, "int8_instructions", lambda: None)
    choice = choose_backend(both, "openvino")
    assert choice.backend.precision == "fp32"
    assert "asked for; OpenVINO's int8 would be wrong on this CPU" in choice.reason
    with pytest.raises(EnvironmentFault, match="saturate at 16 bits") as caught:
        choose_backend(both, "openvino", precision="int8")
    assert (caught.value.code, caught.value.key) == (24, "precision_unsafe")


def test_what_is_refused_really_is_wrong_or_right_by_the_cpus_instructions(tmp_path: Path) -> None:
    """The claim behind the refusal, on whatever CPU this runs: wrong without the instructions, right with them."""
    models = {**tiny_contents().models, "int8": OnnxModel(tiny_model(SATURATING), {"stem": "int8"})}
    backend = openvino_backend.load_backend(write_tiny(tmp_path / "b", models=models), "int8")
    study = np.full((1, *SHAPE), 1.27, np.float32)
    wanted, _ = reference_outputs(tiny_model(SATURATING), study)
    right = bool(np.allclose(backend.infer(study).logits, wanted, rtol=1e-3))
    assert right == (int8_instructions() is not None)


def test_it_computes_in_fp32_what_is_not_int8(bundle: Bundle) -> None:
    """On a CPU with AMX its own choice would be BF16."""
    request = openvino_backend.load_backend(bundle, "fp32").request
    assert request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_the_golden_check_passes_and_finds_another_model(bundle: Bundle, tmp_path: Path) -> None:
    assert self_check(choose_backend(bundle, "openvino").backend, bundle).inputs == 1
    other = write_tiny(tmp_path / "other", tiny_model(TINY_MODEL.replace("0.1, -0.2", "0.2, -0.2")))
    with pytest.raises(SelfCheckFailed, match="openvino fp32"):
        self_check(choose_backend(other, "openvino").backend, other)


def test_outputs_are_copies_and_the_same_input_gives_the_same_bytes(bundle: Bundle) -> None:
    backend = choose_backend(bundle, "openvino").backend
    first = backend.infer(studies(1))
    kept = first.logits.tobytes()
    backend.infer(studies(2))
    assert first.logits.tobytes() == kept == backend.infer(studies(1)).logits.tobytes()
    assert first.logits.flags.owndata


def test_auto_takes_it_for_int8_and_says_why(both: Bundle) -> None:
    choice = choose_backend(both)
    assert (choice.backend.name, choice.backend.precision) == ("openvino", "int8")
    assert choice.reason == "no CUDA device; OpenVINO runs the bundle's int8 model on this CPU's AMX"


def test_auto_leaves_everything_else_to_onnxruntime(
    both: Bundle, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_backend(bundle).backend.name == "onnxruntime"
    fp32 = choose_backend(both, precision="fp32")
    assert (fp32.backend.name, fp32.backend.precision, fp32.reason) == ("onnxruntime", "fp32", "no CUDA device")
    monkeypatch.setattr(openvino_backend, "is_available", lambda: False)
    missing = choose_backend(both)
    assert missing.backend.name == "onnxruntime"
    prefers = "of fp32, int8 it prefers fp32 on a CPU (--precision chooses another)"
    absent = "openvino, which would run the int8 model on AMX, is not installed"
    assert missing.reason == f"no CUDA device; {absent}; {prefers}"
    monkeypatch.setattr(backends, "int8_instructions", lambda: None)
    assert choose_backend(both).reason == f"no CUDA device; {prefers}"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (TINY_MODEL.replace("study", "image"), "model_interface"),
        (TINY_MODEL.replace("[B, 4, 2, 3, 4, 5]", "[1, 4, 2, 3, 4, 5]"), "model_interface"),
        (TINY_MODEL.replace("[B, 4, 2, 3, 4, 5]", "[B, 4, 7, 3, 4, 5]"), "model_interface"),
    ],
    ids=["input name", "static batch", "other slices"],
)
def test_a_model_off_its_manifest_is_refused(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ModelIncompatible) as caught:
        choose_backend(write_tiny(tmp_path / "bundle", tiny_model(text)), "openvino")
    assert caught.value.key == key


def test_bytes_that_are_no_onnx_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatible, match=r"OpenVINO \d.* cannot load the fp32 model"):
        choose_backend(write_tiny(tmp_path / "bundle", b"not an onnx"), "openvino")


def test_bad_input_and_output_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    backend = choose_backend(bundle, "openvino").backend
    with pytest.raises(ModelIncompatible, match="takes float32"):
        backend.infer(studies(1)[..., :-1])
    with pytest.raises(PixelDataError, match="not finite"):
        backend.infer(np.full_like(studies(1), np.nan))
    logarithm = write_tiny(tmp_path / "log", tiny_model(TINY_MODEL.replace("Add(scores, bias)", "Log(scores)")))
    with pytest.raises(SelfCheckFailed, match="not finite"):
        choose_backend(logarithm, "openvino").backend.infer(-np.abs(studies(1)))


def test_memory_that_does_not_suffice_has_its_own_code(bundle: Bundle) -> None:
    class Full:
        def infer(self, *_: object) -> None:
            raise RuntimeError("std::bad_alloc")

    backend: Any = choose_backend(bundle, "openvino").backend
    with pytest.raises(GPUUnavailable) as caught:
        replace(backend, request=Full()).infer(studies(1))
    assert caught.value.key == "out_of_memory"


def test_nothing_is_imported_early_and_nothing_is_reported_to_intel(bundle: Bundle) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from fourphase.runtime import openvino_backend as backend\n"
        "from fourphase.runtime.bundle import load_bundle\n"
        "assert backend.is_available() and 'openvino' not in sys.modules\n"
        f"backend.load_backend(load_bundle(Path({str(bundle.path)!r})), 'fp32')\n"
        "assert 'openvino' in sys.modules and not {'onnx', 'torch', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(any(module for name, module in sys.modules.items() if name.startswith('openvino_telemetry')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_network_without_phase_logits_runs_and_passes_its_check(tmp_path: Path) -> None:
    bundle = write_logits_alone(tmp_path / "bundle")
    backend = choose_backend(bundle, "openvino").backend
    outputs = backend.infer(studies(2))
    np.testing.assert_allclose(outputs.logits, reference_outputs(tiny_model(), studies(2))[0], rtol=1e-5, atol=1e-6)
    assert outputs.phase_logits is None
    assert self_check(backend, bundle, all_inputs=True).inputs == 2
    with pytest.raises(ModelIncompatible, match=r"outputs are .*, not logits$"):
        choose_backend(write_logits_alone(tmp_path / "more", tiny_model()), "openvino")
