"""`--preprocess gpu` from DICOM files to the result, on stand-ins that compute, against the CPU's way.

The engine is the tiny model computed by onnx's reference evaluator, the kernel is its host build. All work on streams
is done as late as CUDA allows, so an engine that started before its input was written would show in the numbers.
"""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from fourphase.runtime import cli, kernel_check, pipeline, study_input
from fourphase.runtime.backends import Choice
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.cuda import Device, Probe, probe
from fourphase.runtime.cuda_context import open_gpu
from fourphase.runtime.errors import (
    EnvironmentFault,
    FourphaseError,
    GPUUnavailable,
    PhaseMissing,
    SelfCheckFailed,
    UsageError,
)
from fourphase.runtime.geometry import Region
from fourphase.runtime.gpu_preprocess import GpuPreprocessor
from fourphase.runtime.kernel_module import KernelModule
from fourphase.runtime.pipeline import LoadedModel, StudyRequest, load_model, prepare_study, run_study
from fourphase.runtime.pixels import read_hu
from fourphase.runtime.preprocess import normalized, plan_sampling
from fourphase.runtime.selfcheck import self_check
from fourphase.runtime.study_input import GpuPreprocessing, check_wanted
from fourphase.runtime.tensorrt_backend import EngineParts, TensorRTBackend, load_engine_backend
from tests.support.dicom import write_phases
from tests.support.fake_cuda import FakeCuda, LaunchError, MemoryError_
from tests.support.fake_kernels import FakeKernels
from tests.support.fake_tensorrt import FakePlan, FakeTensorRT
from tests.support.host_kernel import COMPILER
from tests.support.tiny_bundle import PREPROCESSING, SHAPE, reference_outputs, tiny_model, write_tiny
from tests.support.volumes import grid

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no g++")
needs_no_gpu = pytest.mark.skipif(probe().device is not None, reason="there is a GPU")

Floats = NDArray[np.float32]

PHASES = ("NC", "ART", "PV", "DL")
WEIGHT = np.array([[0.5, -1.5], [2.0, 0.25], [-0.75, 1.0]], np.float32)
STUDY_BYTES = int(np.prod(SHAPE)) * 4
WHOLE = EngineParts({"whole": b"whole"}, None, "tensorrt", "fp32", 2)
SPLIT = EngineParts({"trunk": b"trunk", "tail": b"tail"}, 1, "tensorrt", "fp32", 2)
PARTS = {"whole": WHOLE, "split": SPLIT}


def whole(given: Any) -> dict[str, Floats]:
    logits, phase_logits = reference_outputs(tiny_model(), given["study"])
    return {"logits": logits, "phase_logits": phase_logits}


def tail(given: Any) -> dict[str, Floats]:
    """The tiny model from its features (B, P, T, C), the means over the pixels."""
    scores = given["features"].mean(axis=2) @ WEIGHT + np.array([0.1, -0.2], np.float32)
    return {"logits": scores.mean(axis=1), "phase_logits": scores}


OUTPUTS = {"logits": ((2,), "float32"), "phase_logits": ((4, 2), "float32")}
PLANS = {
    b"whole": FakePlan({"study": (SHAPE, "float32")}, OUTPUTS, whole),
    b"trunk": FakePlan(
        {"study": ((4, 1, *SHAPE[2:]), "float32")},
        {"features": ((4, 1, 3), "float32")},
        lambda given: {"features": given["study"].mean(axis=(4, 5))},
        (1, 1),
    ),
    b"tail": FakePlan({"features": ((4, 2, 3), "float32")}, OUTPUTS, tail),
}


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> StudyRequest:
    """Four small series; the second one is tilted, the third is rescaled by fractions."""
    folder = tmp_path_factory.mktemp("study")
    write_phases(folder, ["NC", "DL"])
    write_phases(folder, ["ART"], step=(0.3, 0.2, 2.5))
    write_phases(folder, ["PV"], RescaleSlope="0.75")
    box = folder.parent / "box.json"
    box.write_text(json.dumps({"space": "LPS_mm", "min": [-3, -5, 6], "max": [2, 1, 11]}))
    return StudyRequest(folder, box)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Margin 2 mm, so that the region lies within the small series."""
    written = write_tiny(tmp_path / "tiny.bundle")
    return replace(written, preprocessing=replace(PREPROCESSING, margin_mm=2.0))


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[FakeCuda]:
    yield FakeCuda(integrated=request.param).install(monkeypatch)
    open_gpu.cache_clear()


@pytest.fixture
def kernels(cuda: FakeCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> FakeKernels:
    """A machine where everything is there."""
    FakeTensorRT(cuda, dict(PLANS)).install(monkeypatch)
    found = Probe(Device("Fake", "8.9", "13.0", None), "CUDA device Fake")
    monkeypatch.setattr(study_input, "probe", lambda: found)
    monkeypatch.setattr(
        study_input, "compile_module", lambda capability: KernelModule(b"cubin", capability, "nvcc", cached=False)
    )
    monkeypatch.setattr(pipeline, "load_bundle", lambda path: bundle)
    return FakeKernels(cuda)


@pytest.fixture(params=list(PARTS))
def parts(request: pytest.FixtureRequest) -> EngineParts:
    return PARTS[request.param]


@pytest.fixture
def engine(kernels: FakeKernels, bundle: Bundle, parts: EngineParts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen is the engine."""
    monkeypatch.setattr(
        pipeline, "choose_backend", lambda *_, **__: Choice(load_engine_backend(parts, bundle), "asked for")
    )


def backend_of(model: LoadedModel) -> TensorRTBackend:
    backend = model.choice.backend
    assert isinstance(backend, TensorRTBackend)
    return backend


def loaded(preprocess: str, bundle: Bundle) -> LoadedModel:
    return load_model(bundle.path, preprocess=preprocess)


@pytest.mark.usefixtures("engine")
def test_the_gpus_input_and_result_are_the_cpus(bundle: Bundle, request_: StudyRequest, kernels: FakeKernels) -> None:
    by_gpu, by_cpu = loaded("gpu", bundle), loaded("cpu", bundle)
    for _ in range(2):
        result, prepared = run_study(by_gpu, request_, keep_input=True)
        wanted, reference = run_study(by_cpu, request_)
        np.testing.assert_allclose(prepared.input, reference.input, atol=1e-3)
        assert prepared.input.std(axis=(1, 2, 3, 4)).min() > 0.1, "an empty region would agree too"
        np.testing.assert_allclose(result.logits, wanted.logits, atol=1e-3)
        np.testing.assert_allclose(
            result.logits, reference_outputs(tiny_model(), prepared.input[None])[0][0], rtol=1e-4, atol=1e-5
        )
        said, known = result.to_dict(), wanted.to_dict()
        for content in (said, known):
            for part in ("timings_ms", "prediction", "preprocessing"):
                content.pop(part)
        assert said == known
        assert result.to_dict()["timings_ms"].keys() == wanted.to_dict()["timings_ms"].keys()
    checked, *studies = np.reshape(kernels.launches[2:], (2, 4)).tolist()
    assert kernels.launches[:2] == ["fourphase_separable_fp32", "fourphase_general_fp32"]
    assert [checked, *studies] == [
        [f"fourphase_{kind}_fp32" for kind in ("separable", "general", *["separable"] * 2)]
    ] * 2


@pytest.mark.usefixtures("engine")
def test_the_result_says_which_and_why(bundle: Bundle, request_: StudyRequest) -> None:
    sections = {
        wanted: run_study(loaded(wanted, bundle), request_)[0].to_dict()["preprocessing"]
        for wanted in ("auto", "cpu", "gpu")
    }
    assert {section["hash"] for section in sections.values()} == {bundle.preprocessing.hash}
    assert [section["device"] for section in sections.values()] == ["cpu", "cpu", "gpu"]
    assert "not been measured" in sections["auto"]["reason"]
    assert sections["cpu"]["reason"] == "asked for"
    assert sections["gpu"]["reason"].startswith("asked for; kernel by nvcc, off the CPU's result by ")
    assert list(sections["gpu"]) == ["hash", "device", "reason"]


def work_of(cuda: FakeCuda) -> list[tuple[Any, ...]]:
    names = ("memcpy_htod_async", "prepared_async_call", "memcpy_dtod_async", "execute_async_v3", "memcpy_dtoh")
    return [entry for entry in cuda.log if entry[0] in names]


@pytest.mark.usefixtures("engine")
def test_every_phase_is_launched_before_the_engine_on_its_stream(
    cuda: FakeCuda, bundle: Bundle, request_: StudyRequest, parts: EngineParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        pipeline,
        "choose_backend",
        lambda *_, **__: Choice(load_engine_backend(parts, bundle, use_graph=False), "asked for"),
    )
    model = loaded("gpu", bundle)
    run_study(model, request_)
    cuda.log.clear()
    run_study(model, request_)
    work = work_of(cuda)
    chunks = 2 if parts is SPLIT else 0
    once = ["memcpy_htod_async", "prepared_async_call"] * 4
    # Per chunk four copies of the input, the trunk, four copies of its features; then what gives the outputs.
    split = [*["memcpy_dtod_async"] * 4, "execute_async_v3", *["memcpy_dtod_async"] * 4] * chunks
    assert [entry[0] for entry in work] == [*once, *split, "execute_async_v3"]
    streams = {entry[1] for entry in work if entry[0] in ("prepared_async_call", "execute_async_v3")}
    streams |= {entry[2] for entry in work if entry[0] == "memcpy_htod_async"}
    assert len(streams) == 1
    outputs = [entry[3] for entry in work if entry[0] == "prepared_async_call"]
    assert np.diff(outputs).tolist() == [STUDY_BYTES // 4] * 3
    if parts is WHOLE:
        assert work[-1][2]["study"] == outputs[0], "the kernel writes what the engine reads"
    else:
        fed = [entry for entry in work if entry[0] == "memcpy_dtod_async"]
        sources = [entry[2] for entry in (*fed[:4], *fed[8:12])]
        assert sorted(sources) == sorted(outputs[0] + step * STUDY_BYTES // 8 for step in range(8))


@pytest.mark.usefixtures("engine")
def test_only_the_boxs_voxels_cross_the_bus(
    cuda: FakeCuda, bundle: Bundle, request_: StudyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No array of the input's shape on the host, and no copy of its size from it, unless it is asked for."""
    model = loaded("gpu", bundle)
    monkeypatch.setattr(study_input, "HostInput", None)
    cuda.log.clear()
    uploads: list[int] = []
    upload = cuda.driver.memcpy_htod_async

    def counted(address: int, array: NDArray[Any], stream: Any) -> None:
        uploads.append(address)
        upload(address, array, stream)

    monkeypatch.setattr(cuda.driver, "memcpy_htod_async", counted)
    result, prepared = run_study(model, request_)
    assert len(uploads) == 4
    assert "memcpy_dtoh" not in [entry[0] for entry in work_of(cuda)]
    assert prepared.array is None
    with pytest.raises(UsageError, match="not kept") as caught:
        prepared.input  # noqa: B018
    assert caught.value.code == 2
    kept = run_study(model, request_, keep_input=True)
    assert kept[0].logits.tobytes() == result.logits.tobytes()
    assert kept[1].input.shape == SHAPE


@pytest.mark.usefixtures("engine")
def test_the_saved_input_is_the_buffer(bundle: Bundle, request_: StudyRequest, kernels: FakeKernels) -> None:
    """Whatever the kernel wrote: here a mark that no CPU would compute."""
    model = loaded("gpu", bundle)
    calls = itertools.count(100)

    def mark(output: Any) -> None:
        output[7] = next(calls)

    kernels.damage = mark
    for first in (100, 104):
        result, prepared = run_study(model, request_, keep_input=True)
        assert prepared.input.reshape(4, -1)[:, 7].tolist() == [first, first + 1, first + 2, first + 3]
        wanted = reference_outputs(tiny_model(), prepared.input[None])[0][0]
        np.testing.assert_allclose(result.logits, wanted, rtol=1e-4, err_msg="the engine saw the marks too")


@pytest.mark.usefixtures("engine")
def test_the_input_can_be_had_before_the_run(bundle: Bundle) -> None:
    """It waits for the kernels, and the engine runs on the same values afterwards; the voxels may change at once."""
    model, config = loaded("gpu", bundle), bundle.preprocessing
    plan = plan_sampling(grid((9, 12, 14), origin=(-7, -9, -10)), Region((-5, -4, -7), (4, 3, 6)), config)
    given = [np.random.default_rng(phase).integers(-200, 300, plan.window.shape, np.int16) for phase in range(4)]
    expected = [normalized(plan.resample(hu), config) for hu in given]
    with model.preprocessing.study() as study:
        for phase in (2, 0, 3, 1):
            study.put(phase, plan, given[phase])
            given[phase][:] = 3000
        before = study.array()
        np.testing.assert_allclose(before, expected, atol=1e-4)
        wanted = reference_outputs(tiny_model(), before[None])[0]
        np.testing.assert_allclose(study.infer().logits, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(study.array(), before)


@pytest.mark.usefixtures("engine")
def test_host_studies_and_gpu_studies_take_turns(bundle: Bundle, request_: StudyRequest) -> None:
    """The same buffers serve both."""
    model = loaded("gpu", bundle)
    backend = backend_of(model)
    wanted = run_study(model, request_)[0].logits.tobytes()
    for seed in range(3):
        studies = np.random.default_rng(seed).normal(size=(3, *SHAPE)).astype(np.float32)
        found = backend.infer(studies).logits
        np.testing.assert_allclose(found, reference_outputs(tiny_model(), studies)[0], rtol=1e-4, atol=1e-5)
        assert run_study(model, request_)[0].logits.tobytes() == wanted


@pytest.mark.usefixtures("engine")
def test_a_phase_that_was_not_written_is_never_run(bundle: Bundle, cuda: FakeCuda) -> None:
    model = loaded("gpu", bundle)
    backend = backend_of(model)
    with backend.device_study() as study:
        for phase in (0, 1, 3):
            study.write(phase, lambda address, stream: None)
        with pytest.raises(RuntimeError, match=r"phases \[2\] were not written"):
            study.run()
        study.write(2, lambda address, stream: None)
        assert np.isnan(study.download()).all(), "nothing of an earlier study"
        with pytest.raises(SelfCheckFailed, match="not finite"):
            study.run()
    for stale in (study.run, study.download):
        with pytest.raises(RuntimeError, match="no longer on the GPU"):
            stale()


@pytest.mark.usefixtures("engine")
def test_nobody_else_runs_while_a_study_is_written(bundle: Bundle, request_: StudyRequest) -> None:
    model = loaded("gpu", bundle)
    backend = backend_of(model)
    with backend.device_study():
        with pytest.raises(RuntimeError, match="already running"):
            backend.infer(np.zeros((1, *SHAPE), np.float32))
        with pytest.raises(RuntimeError, match="already running"):
            run_study(model, request_)
    run_study(model, request_)


@pytest.mark.usefixtures("engine")
def test_a_bad_study_leaves_the_next_one_right(
    cuda: FakeCuda, bundle: Bundle, request_: StudyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("gpu", bundle)
    wanted = run_study(model, request_)[0].logits.tobytes()
    calls = itertools.count()

    def failing(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise PhaseMissing("gone", "copy it again")
        return read_hu(*arguments)

    monkeypatch.setattr(pipeline, "read_hu", failing)
    with pytest.raises(PhaseMissing):
        run_study(model, request_)
    assert all(not stream.queue for stream in cuda.streams.values()), "its work is over"
    assert run_study(model, request_)[0].logits.tobytes() == wanted


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("call", ["memcpy_htod_async", "prepared_async_call"])
def test_a_gpu_that_fails_is_22(cuda: FakeCuda, bundle: Bundle, request_: StudyRequest, call: str) -> None:
    model = loaded("gpu", bundle)
    cuda.fail[call] = LaunchError
    with pytest.raises(GPUUnavailable) as caught:
        run_study(model, request_)
    assert (caught.value.code, caught.value.key) == (22, "gpu_lost")
    backend_of(model).close()


def assert_nothing_held(cuda: FakeCuda) -> None:
    gc.collect()
    assert (cuda.live, cuda.graphs_live, cuda.stack) == ([], 0, [])


@pytest.mark.usefixtures("engine")
def test_closing_the_backend_gives_all_memory_back(cuda: FakeCuda, bundle: Bundle, request_: StudyRequest) -> None:
    model = loaded("gpu", bundle)
    run_study(model, request_)
    allocations = cuda.allocations
    for _ in range(20):
        run_study(model, request_)
    assert cuda.allocations == allocations, "nothing is allocated for a study"
    backend_of(model).close()
    assert_nothing_held(cuda)


# ---- the check at load


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("series", [0, 1], ids=["axis-aligned", "tilted"])
@pytest.mark.parametrize(("hu", "passes"), [(0.4, True), (0.6, False), (np.nan, False)])
def test_a_kernel_off_by_more_than_half_a_hu_is_refused(
    cuda: FakeCuda, bundle: Bundle, kernels: FakeKernels, series: int, hu: float, passes: bool
) -> None:
    """One value of one output is off, in the last channel's HU."""
    window, std = bundle.preprocessing.windows_hu[-1], bundle.preprocessing.std[-1]
    place = (3 * 3 + 2) * 9 * 33 + 5  # slice 3, last channel

    def off(output: Any) -> None:
        if next(calls) == series:
            output[place] += hu / ((window[1] - window[0]) * std)

    calls = itertools.count()
    kernels.damage = off
    if passes:
        assert "0.4 HU (allowed 0.5)" in loaded("gpu", bundle).preprocessing.reason
        return
    with pytest.raises(SelfCheckFailed, match="off the CPU's result") as caught:
        loaded("gpu", bundle)
    assert (caught.value.code, caught.value.key) == (23, "preprocessing_off")
    assert "--preprocess cpu" in caught.value.hint
    del caught
    assert_nothing_held(cuda)


@pytest.mark.usefixtures("engine")
def test_an_output_that_is_not_written_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(GpuPreprocessor):
        def enqueue(self, *_: Any, **__: Any) -> None:
            pass

    monkeypatch.setattr(study_input, "GpuPreprocessor", Idle)
    with pytest.raises(SelfCheckFailed):
        loaded("gpu", bundle)


@pytest.mark.usefixtures("engine")
def test_the_checks_own_error_is_far_below_its_bound(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_check, "ALLOWED_HU", 0.01)
    loaded("gpu", bundle)
    other = replace(bundle, preprocessing=replace(bundle.preprocessing, spacing_mm=0.37, background_hu=-500.0))
    monkeypatch.setattr(pipeline, "load_bundle", lambda path: other)
    loaded("gpu", other)


# ---- what is refused


def test_wrong_words_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for arguments, key in (
        (("fast", "auto"), "preprocess_unknown"),
        (("gpu", "onnxruntime", None), "preprocess_backend"),
        (("gpu", "auto", "openvino"), "preprocess_backend"),
    ):
        with pytest.raises(UsageError) as caught:
            check_wanted(*arguments)
        assert (caught.value.code, caught.value.key) == (2, key)
    with pytest.raises(UsageError):
        load_model(tmp_path / "missing", backend="openvino", preprocess="gpu")


@needs_no_gpu
def test_an_automatic_choice_of_the_cpu_is_22_not_a_fallback(tmp_path: Path) -> None:
    """This is the machine without a GPU; the cause says why there is no engine."""
    write_tiny(tmp_path / "tiny.bundle")
    with pytest.raises(GPUUnavailable, match=r"onnxruntime is used \(no CUDA device") as caught:
        load_model(tmp_path / "tiny.bundle", preprocess="gpu")
    assert (caught.value.code, caught.value.key) == (22, "preprocess_needs_engine")
    assert "build-plan" in caught.value.hint


@pytest.mark.usefixtures("engine")
def test_a_kernel_that_cannot_be_compiled_is_24(
    cuda: FakeCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(capability: str) -> KernelModule:
        raise EnvironmentFault("cannot be compiled", "install nvcc", key="kernel_not_compiled")

    monkeypatch.setattr(study_input, "compile_module", failing)
    with pytest.raises(EnvironmentFault):
        loaded("gpu", bundle)
    assert_nothing_held(cuda)
    loaded("auto", bundle)


@pytest.mark.parametrize("parts", [SPLIT])
@pytest.mark.usefixtures("engine")
def test_too_little_memory_is_said_at_load(
    cuda: FakeCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, parts: EngineParts
) -> None:
    """A split engine needs a whole study on the device here."""
    allocate = cuda.driver.mem_alloc

    def too_large(nbytes: int) -> Any:
        if nbytes == STUDY_BYTES:
            raise MemoryError_("cuMemAlloc failed: out of memory")
        return allocate(nbytes)

    monkeypatch.setattr(cuda.driver, "mem_alloc", too_large)
    loaded("cpu", bundle)
    with pytest.raises(GPUUnavailable) as caught:
        loaded("gpu", bundle)
    assert (caught.value.code, caught.value.key) == (22, "out_of_memory")


# ---- the command


@pytest.mark.usefixtures("engine")
def test_fp_run_with_preprocess_gpu(bundle: Bundle, request_: StudyRequest, tmp_path: Path) -> None:
    saved = {}
    for wanted in ("gpu", "cpu"):
        arguments = [str(request_.folder), "--box", str(request_.box), "--bundle", str(bundle.path), "--json"]
        arguments += ["--preprocess", wanted, "--save-input", str(tmp_path / f"{wanted}.npy"), "--quiet"]
        outcome = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
        assert json.loads(outcome.stdout)["preprocessing"]["device"] == wanted
        saved[wanted] = np.load(tmp_path / f"{wanted}.npy", allow_pickle=False)
    assert saved["gpu"].dtype == np.float32
    assert saved["gpu"].shape == SHAPE
    np.testing.assert_allclose(saved["gpu"], saved["cpu"], atol=1e-3)
    expected = prepare_study(request_, PHASES, bundle.preprocessing).input
    np.testing.assert_array_equal(saved["cpu"], expected)


@needs_no_gpu
@pytest.mark.parametrize(
    ("arguments", "code", "cause"),
    [
        (["--preprocess", "fast"], 2, "unknown preprocessing 'fast'"),
        (["--preprocess", "gpu", "--backend", "onnxruntime"], 2, "--preprocess gpu writes a TensorRT engine's input"),
        (["--preprocess", "gpu"], 22, "--preprocess gpu needs a TensorRT engine"),
        (["--preprocess", "gpu", "--backend", "tensorrt"], 22, "backend tensorrt needs a GPU"),
    ],
)
def test_the_commands_errors(
    request_: StudyRequest, tmp_path: Path, arguments: list[str], code: int, cause: str
) -> None:
    write_tiny(tmp_path / "tiny.bundle")
    line = [sys.executable, "-m", "fourphase.runtime.cli", str(request_.folder), "--box", str(request_.box)]
    line += ["--bundle", str(tmp_path / "tiny.bundle"), "--quiet", *arguments]
    outcome = subprocess.run(line, capture_output=True, text=True, check=False)
    assert outcome.returncode == code, outcome.stderr
    error, cure = outcome.stderr.splitlines()
    assert error.startswith(f"error: {cause}")
    assert cure.startswith("  fix: ")
    assert outcome.stdout == ""


def test_the_help_says_what_auto_is() -> None:
    outcome = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"})
    text = " ".join(outcome.output.split())
    assert "--preprocess" in text
    assert "In this version auto is cpu." in text


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_a_real_gpu_prepares_what_the_cpu_prepares(tmp_path: Path, request_: StudyRequest, flavour: str) -> None:
    pytest.importorskip("pycuda")
    from fourphase.engine.build import build_engine
    from fourphase.engine.options import BuildOptions, EngineSource

    open_gpu.cache_clear()
    try:
        plan = build_engine(EngineSource(tiny_model(), "fp32"), flavour, BuildOptions(batch=(1, 1, 2))).plan
    except FourphaseError as error:
        pytest.skip(f"no engine by {flavour}: {error.message}")
    bundle = replace(write_tiny(tmp_path / "real"), preprocessing=replace(PREPROCESSING, margin_mm=2.0))
    parts = EngineParts({"whole": plan}, None, flavour, "fp32", 2)
    with load_engine_backend(parts, bundle) as backend:
        choice = Choice(backend, "asked for")
        by_gpu = study_input.load_preprocessing("gpu", choice, bundle)
        by_cpu = study_input.load_preprocessing("cpu", choice, bundle)
        assert isinstance(by_gpu, GpuPreprocessing)
        print(by_gpu.reason)
        check = self_check(backend, bundle)
        for _ in range(20):
            result, prepared = run_study(LoadedModel(bundle, choice, check, by_gpu), request_, keep_input=True)
            wanted, reference = run_study(LoadedModel(bundle, choice, check, by_cpu), request_)
            np.testing.assert_allclose(prepared.input, reference.input, atol=1e-3)
            np.testing.assert_allclose(result.logits, wanted.logits, atol=1e-3)
