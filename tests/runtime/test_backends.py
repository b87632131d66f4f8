from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from fourphase.engine.bundle import OnnxModel
from fourphase.runtime import backends, gpu_choice
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.cuda import Device, Probe
from fourphase.runtime.errors import (
    EnvironmentFault,
    FourphaseError,
    GPUUnavailable,
    IntegrityError,
    ModelIncompatible,
    PixelDataError,
    SelfCheckFailed,
    UsageError,
)
from fourphase.runtime.inference_checks import package_missing
from fourphase.runtime.plan_meta import Machine
from fourphase.runtime.selfcheck import self_check
from tests.support.dicom import write_phases
from tests.support.logits_alone import LOGITS_ALONE_MODEL, write_logits_alone
from tests.support.tiny_bundle import (
    PREPROCESSING,
    SHAPE,
    TINY_MODEL,
    reference_outputs,
    tiny_contents,
    tiny_model,
    write_tiny,
)

NO_GPU = Probe(None, "no CUDA device (no NVIDIA driver)")
L4 = Probe(Device("NVIDIA L4", "8.9", "13.0", None), "CUDA device NVIDIA L4, compute capability 8.9")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(backends, "probe", lambda: NO_GPU)
    return write_tiny(tmp_path / "bundle")


def studies(batch: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).normal(size=(batch, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_onnxruntime_agrees_with_the_reference_evaluator(bundle: Bundle, batch: int) -> None:
    backend = choose_backend(bundle).backend
    outputs = backend.infer(studies(batch))
    logits, phase_logits = reference_outputs(tiny_model(), studies(batch))
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=1e-6)
    assert outputs.phase_logits is not None
    np.testing.assert_allclose(outputs.phase_logits, phase_logits, rtol=1e-5, atol=1e-6)
    assert outputs.logits.dtype == outputs.phase_logits.dtype == np.float32


def test_the_same_input_gives_the_same_bytes_and_outputs_are_copies(bundle: Bundle) -> None:
    backend = choose_backend(bundle).backend
    first = backend.infer(studies(1))
    kept = first.logits.tobytes()
    backend.infer(studies(2))
    assert first.logits.tobytes() == kept == backend.infer(studies(1)).logits.tobytes()
    assert first.logits.flags.owndata
    assert first.logits.flags.writeable


def test_auto_takes_the_cpu_and_says_why(bundle: Bundle) -> None:
    choice = choose_backend(bundle)
    assert (choice.backend.name, choice.backend.precision) == ("onnxruntime", "fp32")
    assert choice.reason == "no CUDA device (no NVIDIA driver)"


def test_auto_does_not_blame_a_gpu_that_is_there(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "probe", lambda: L4)
    monkeypatch.setattr(gpu_choice, "this_machine", lambda: Machine({}, L4, "linux", "x86_64"))
    reason = choose_backend(bundle).reason
    assert reason == "a CUDA device is present (NVIDIA L4), but tensorrt and tensorrt-rtx cannot be loaded"


@pytest.mark.parametrize(
    ("name", "gpu", "error"),
    [
        ("tensorrt", NO_GPU, GPUUnavailable),
        ("tensorrt-rtx", NO_GPU, GPUUnavailable),
        ("tensorrt", L4, EnvironmentFault),
    ],
)
def test_a_backend_that_cannot_run_is_refused_with_a_cure(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, gpu: Probe, error: type[FourphaseError]
) -> None:
    monkeypatch.setattr(backends, "probe", lambda: gpu)
    monkeypatch.setattr(gpu_choice, "this_machine", lambda: Machine({}, gpu, "linux", "x86_64"))
    with pytest.raises(error, match=name) as caught:
        choose_backend(bundle, name)
    assert "--backend auto" in caught.value.hint


@pytest.mark.parametrize("arguments", [{"name": "onnx"}, {"require": "cuda"}])
def test_an_unknown_name_is_a_usage_error(bundle: Bundle, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="unknown backend"):
        choose_backend(bundle, **arguments)


@pytest.mark.parametrize("name", ["auto", "onnxruntime"])
def test_a_required_backend_that_is_not_taken_is_an_error(bundle: Bundle, name: str) -> None:
    with pytest.raises(GPUUnavailable, match="tensorrt is required") as caught:
        choose_backend(bundle, name, require="tensorrt")
    assert caught.value.code == 22


def test_a_required_backend_that_is_taken_is_fine(bundle: Bundle) -> None:
    assert choose_backend(bundle, require="onnxruntime").backend.name == "onnxruntime"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_missing_package_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(f"fourphase.runtime.{name}_backend.is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match=f"{name}>=") as caught:
        choose_backend(bundle, name)
    assert "pip install" in caught.value.hint


def test_a_precision_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ModelIncompatible, match="no model in fp16, only in: fp32"):
        choose_backend(bundle, precision="fp16")


def test_onnxruntime_prefers_fp32_whatever_the_manifest_lists_first(bundle: Bundle) -> None:
    model = bundle.models["fp32"]
    both = replace(bundle, models={"int8": model, "fp16": model, "fp32": model})
    assert choose_backend(both, "onnxruntime").backend.precision == "fp32"
    assert choose_backend(both, "onnxruntime", precision="int8").backend.precision == "int8"


def test_a_flipped_byte_is_found_before_the_model_is_loaded(bundle: Bundle) -> None:
    path = bundle.path / "model.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(IntegrityError, match=r"model\.fp32\.onnx"):
        choose_backend(bundle)


ALTERED = {
    "input name": TINY_MODEL.replace("study", "image"),
    "output name": TINY_MODEL.replace("phase_logits", "other"),
    "static batch": TINY_MODEL.replace("[B, 4, 2, 3, 4, 5]", "[1, 4, 2, 3, 4, 5]"),
    "other slices": TINY_MODEL.replace("[B, 4, 2, 3, 4, 5]", "[B, 4, 7, 3, 4, 5]"),
}


@pytest.mark.parametrize("text", ALTERED.values(), ids=ALTERED)
def test_a_model_off_its_manifest_is_refused(tmp_path: Path, text: str) -> None:
    bundle = write_tiny(tmp_path / "bundle", tiny_model(text))
    with pytest.raises(ModelIncompatible, match="the model's") as caught:
        choose_backend(bundle)
    assert caught.value.key == "model_interface"


def test_a_model_with_other_classes_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ModelIncompatible, match=r"logits is .*2\), the manifest implies .*batch, 3\)"):
        choose_backend(replace(bundle, classes=("A", "B", "C")))


def test_bytes_that_are_no_onnx_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatible, match="cannot load the fp32 model"):
        choose_backend(write_tiny(tmp_path / "bundle", b"not an onnx"))


def test_onnxruntime_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    unused = tiny_model(TINY_MODEL.replace("int64[1] phase", "float[1] unused = {1}, int64[1] phase"))
    choose_backend(write_tiny(tmp_path / "bundle", unused)).backend.infer(studies(1))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    "study", [studies(1)[0], studies(1).astype(np.float64), studies(1)[..., :-1], studies(1)[:0]], ids=str
)
def test_an_input_of_another_shape_or_type_is_refused(bundle: Bundle, study: Any) -> None:
    with pytest.raises(ModelIncompatible, match="takes float32"):
        choose_backend(bundle).backend.infer(study)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_input_that_is_not_finite_is_refused(bundle: Bundle, value: float) -> None:
    study = studies(1)
    study[0, 3, 1, 2, 3, 4] = value
    with pytest.raises(PixelDataError, match="not finite"):
        choose_backend(bundle).backend.infer(study)


def test_an_output_that_is_not_finite_is_never_returned(tmp_path: Path) -> None:
    model = tiny_model(TINY_MODEL.replace("Add(scores, bias)", "Log(scores)"))
    backend = choose_backend(write_tiny(tmp_path / "bundle", model)).backend
    with pytest.raises(SelfCheckFailed, match="not finite") as caught:
        backend.infer(-np.abs(studies(1)))
    assert caught.value.code == 23


def test_memory_that_does_not_suffice_has_its_own_code(bundle: Bundle) -> None:
    class Full:
        def run(self, *_: object) -> None:
            raise RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 268435456")

    backend = replace(choose_backend(bundle).backend, session=Full())  # type: ignore[type-var]
    with pytest.raises(GPUUnavailable) as caught:
        backend.infer(studies(1))
    assert (caught.value.code, caught.value.key) == (22, "out_of_memory")


def test_onnxruntime_is_imported_only_when_a_model_is_loaded() -> None:
    script = (
        "import sys; import fourphase.runtime.backends, fourphase.runtime.onnxruntime_backend as backend\n"
        "assert backend.is_available()\n"
        "import fourphase.runtime.selfcheck\n"
        "sys.exit(bool({'onnxruntime', 'onnx', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), SystemExit(143)])
def test_a_signal_while_a_package_loads_is_not_a_missing_package(cause: BaseException) -> None:
    error = ImportError("initialization failed")
    error.__cause__ = cause
    with pytest.raises(type(cause)):
        package_missing("onnxruntime", "onnxruntime>=1", error)
    assert package_missing("onnxruntime", "onnxruntime>=1", ImportError("no such file")).code == 24


#: A convolution between Q/DQ pairs whose scales are FP16 and small: their product is below what FP16 can hold.
SMALL_SCALES = """
<ir_version: 9, opset_import: ["" : 19]>
tiny (float[B, 4, 2, 3, 4, 5] study) => (float[B, 2] logits, float[B, 4, 2] phase_logits)
<int8[2, 3, 1, 1] codes = {32, 127, -48, -95, 127, 63}, int8[2] zeros = {0, 0}, int8 zero = {0},
 int64[4] fold = {-1, 3, 4, 5}, int64[4] unfold = {-1, 4, 2, 2}, int64[2] hw = {2, 3}, int64[1] one = {1},
 int64[1] two = {2}>
{
  slices = Reshape(study, fold)
  half = Cast<to = 10>(slices)
  q = QuantizeLinear(half, step, zero)
  x = DequantizeLinear(q, step, zero)
  w = DequantizeLinear<axis = 0>(codes, steps, zeros)
  c = Conv(x, w, bias)
  r = Relu(c)
  q2 = QuantizeLinear(r, step, zero)
  y = DequantizeLinear(q2, step, zero)
  back = Cast<to = 1>(y)
  pooled = ReduceMean<keepdims = 0>(back, hw)
  per_slice = Reshape(pooled, unfold)
  phase_logits = ReduceMean<keepdims = 0>(per_slice, two)
  logits = ReduceMean<keepdims = 0>(phase_logits, one)
}
"""


def test_biases_beside_small_fp16_scales_are_not_lost(tmp_path: Path) -> None:
    """ONNX Runtime's own optimisation computes them wrongly; the last lines say so of the version installed."""
    model = onnx.parser.parse_model(SMALL_SCALES)
    for name, values in (("step", 1.2e-4), ("steps", [1.1e-4, 1.3e-4]), ("bias", [0.004, 0.006])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.float16), name))
    data = model.SerializeToString()
    models = {**tiny_contents().models, "int8": OnnxModel(data, {"stem": "int8"})}
    backend = choose_backend(write_tiny(tmp_path / "b", models=models), "onnxruntime", precision="int8").backend
    study = np.random.default_rng(0).uniform(-0.01, 0.01, (2, *SHAPE)).astype(np.float32)
    logits, phase_logits = reference_outputs(data, study)
    assert np.abs(logits).max() > 3e-3, "without a bias there would be nothing to lose"
    outputs = backend.infer(study)
    np.testing.assert_allclose(outputs.logits, logits, atol=1.3e-4)
    assert outputs.phase_logits is not None
    np.testing.assert_allclose(outputs.phase_logits, phase_logits, atol=1.3e-4)
    import onnxruntime

    plain = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(["logits"], {"study": study})[0]
    if np.allclose(plain, logits, atol=1.3e-4):
        pytest.skip("this ONNX Runtime has no such fault any more")


# ---- a network without phase logits


def test_logits_alone_are_those_of_the_network_with_both(tmp_path: Path, bundle: Bundle) -> None:
    alone = write_logits_alone(tmp_path / "alone")
    backend = choose_backend(alone, "onnxruntime").backend
    outputs = backend.infer(studies(3))
    np.testing.assert_allclose(outputs.logits, reference_outputs(tiny_model(), studies(3))[0], rtol=1e-5, atol=1e-6)
    assert outputs.logits.tobytes() == choose_backend(bundle).backend.infer(studies(3)).logits.tobytes()
    assert outputs.phase_logits is None
    assert self_check(backend, alone, all_inputs=True).inputs == 2


def test_a_non_finite_logit_is_never_returned_without_phase_logits_either(tmp_path: Path) -> None:
    model = tiny_model(LOGITS_ALONE_MODEL.replace("Add(scores, bias)", "Log(scores)"))
    backend = choose_backend(write_logits_alone(tmp_path / "bundle", model), "onnxruntime").backend
    with pytest.raises(SelfCheckFailed, match="not finite"):
        backend.infer(-np.abs(studies(1)))


def test_a_model_with_an_output_more_or_less_than_its_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatible, match=r"outputs are logits, phase_logits, not logits$") as caught:
        choose_backend(write_logits_alone(tmp_path / "more", tiny_model()))
    assert caught.value.key == "model_interface"
    with pytest.raises(ModelIncompatible, match=r"outputs are logits, not logits, phase_logits$"):
        choose_backend(write_tiny(tmp_path / "less", tiny_model(LOGITS_ALONE_MODEL)))


def test_fp_run_gives_the_same_result_without_phase_logits(tmp_path: Path) -> None:
    """End to end: what is said of the study comes from its logits; the phases are the four of the bundle."""
    write_phases(tmp_path / "study")
    (tmp_path / "box.json").write_text(json.dumps({"space": "LPS_mm", "min": [-2, -4, 6], "max": [2, 4, 12]}))
    small = replace(PREPROCESSING, margin_mm=2.0)
    found = []
    for name, write in (("both", write_tiny), ("alone", write_logits_alone)):
        write(tmp_path / name, preprocessing=small)
        line = [sys.executable, "-m", "fourphase.runtime.cli", "study", "--box", "box.json", "--bundle", name, "--json"]
        done = subprocess.run([*line, "--quiet"], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    both, alone = found
    assert alone["prediction"] == both["prediction"]
    assert list(alone["phases"]) == ["NC", "ART", "PV", "DL"]
    assert alone["backend"]["self_check"] == "passed"
    assert "phase_logits" not in json.dumps(alone)
