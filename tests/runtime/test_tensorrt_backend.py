"""The GPU backend end to end on stand-ins that compute: values, order, copies, leaks, and every way to fail.

The stand-ins do work as late as CUDA allows, so a missing wait, a buffer reused too early or a wrong stride gives wrong
numbers here. What they cannot show (NVIDIA's kernels, real capture, real memory) is in the tests marked gpu.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.runtime import tensorrt_backend
from fourphase.runtime.backend import Outputs
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.cuda_context import open_gpu
from fourphase.runtime.errors import FourphaseError, GPUUnavailable, ModelIncompatible, PixelDataError, SelfCheckFailed
from fourphase.runtime.tensorrt_backend import EngineParts, TensorRTBackend, is_available, load_engine_backend
from tests.support.fake_cuda import FakeCuda, LaunchError, MemoryError_
from tests.support.fake_tensorrt import FakeTensorRT, features_of, outputs_of, tail_plan, trunk_plan, whole_plan
from tests.support.logits_alone import write_logits_alone
from tests.support.tiny_bundle import tiny_model, write_tiny

Floats = NDArray[np.float32]

#: (P, T, C, H, W)
SHAPE = (4, 6, 3, 4, 5)
PLANS = {
    b"whole": whole_plan(SHAPE),
    b"half": whole_plan(SHAPE, outputs="float16"),
    b"trunk": trunk_plan(SHAPE, 2),
    b"trunk3": trunk_plan(SHAPE, 3, features="float16"),
    b"tail": tail_plan(SHAPE),
    b"tail16": tail_plan(SHAPE, features="float16"),
}
WHOLE = EngineParts({"whole": b"whole"}, None, "tensorrt", "fp32", 2)
SPLIT = EngineParts({"trunk": b"trunk", "tail": b"tail"}, 2, "tensorrt", "int8", 2)
PARTS = {"whole": WHOLE, "split": SPLIT}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle whose studies have six slices; only its manifest is read here."""
    return replace(write_tiny(tmp_path / "bundle"), preprocessing=PreprocessingConfig(size=SHAPE[1:2] + SHAPE[3:]))


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[FakeCuda]:
    yield FakeCuda(integrated=request.param).install(monkeypatch)
    open_gpu.cache_clear()


@pytest.fixture
def trt(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return FakeTensorRT(cuda, dict(PLANS)).install(monkeypatch)


@pytest.fixture(params=list(PARTS))
def parts(request: pytest.FixtureRequest) -> EngineParts:
    return PARTS[request.param]


def studies(batch: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(batch, *SHAPE)).astype(np.float32)


def assert_right(outputs: Outputs, study: Floats, rtol: float = 1e-4) -> None:
    """Against the closed form in float64."""
    wanted = outputs_of(features_of(study.astype(np.float64)))
    np.testing.assert_allclose(outputs.logits, wanted["logits"], rtol=rtol, atol=rtol)
    assert outputs.phase_logits is not None
    np.testing.assert_allclose(outputs.phase_logits, wanted["phase_logits"], rtol=rtol, atol=rtol)
    assert outputs.logits.dtype == outputs.phase_logits.dtype == np.float32


def kernel(cuda: FakeCuda, values: Floats, offset: int, address: int, stream: Any) -> None:
    """Work on the stream that writes these values, as the preprocessing kernel does."""
    data = np.frombuffer(values.tobytes(), np.uint8)
    stream.add(lambda: np.copyto(cuda.bytes_at(address + offset, len(data)), data))


def assert_nothing_held(cuda: FakeCuda, trt: FakeTensorRT) -> None:
    gc.collect()
    assert (cuda.live, cuda.graphs_live, trt.contexts_live, cuda.stack) == ([], 0, 0, [])


@pytest.mark.parametrize("use_graph", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_every_batch_gives_the_closed_form(
    cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle, parts: EngineParts, batch: int, use_graph: bool
) -> None:
    """Also above max_batch, and again on the same buffers."""
    with load_engine_backend(parts, bundle, use_graph=use_graph) as backend:
        assert (backend.name, backend.precision, backend.input_shape) == ("tensorrt", parts.precision, SHAPE)
        for seed in range(3):
            outputs = backend.infer(studies(batch, seed))
            assert outputs.logits.shape == (batch, 2)
            assert_right(outputs, studies(batch, seed))
    assert_nothing_held(cuda, trt)


@pytest.mark.usefixtures("trt")
def test_a_split_model_gives_what_the_whole_gives(bundle: Bundle) -> None:
    with load_engine_backend(WHOLE, bundle) as whole, load_engine_backend(SPLIT, bundle) as split:
        for batch in (1, 2, 3):
            one, other = whole.infer(studies(batch)), split.infer(studies(batch))
            np.testing.assert_array_equal(one.logits, other.logits)
            np.testing.assert_array_equal(one.phase_logits, other.phase_logits)


def test_a_split_model_keeps_chunks_on_the_device_not_studies(
    cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle
) -> None:
    with load_engine_backend(SPLIT, bundle, use_graph=False) as backend:
        cuda.log.clear()
        backend.infer(studies(2))
        chunk = studies(1).nbytes // 3
        assert max(len(held.data) for held in cuda.live) == chunk
        assert sum(len(held.data) == chunk for held in cuda.live) == (2 if cuda.integrated else 4)
    runs = [entry for entry in cuda.log if entry[0] == "execute_async_v3" and "study" in entry[2]]
    assert len(runs) == 2 * 3


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize(
    "parts",
    [
        replace(WHOLE, plans={"whole": b"half"}, precision="fp16"),
        replace(SPLIT, plans={"trunk": b"trunk3", "tail": b"tail16"}, slices=3),
    ],
    ids=["outputs", "features"],
)
def test_half_precision_at_the_joints_comes_out_as_float32(bundle: Bundle, parts: EngineParts) -> None:
    with load_engine_backend(parts, bundle) as backend:
        assert_right(backend.infer(studies(2)), studies(2), rtol=1e-2)


@pytest.mark.usefixtures("trt")
def test_outputs_are_copies(bundle: Bundle, parts: EngineParts) -> None:
    backend = load_engine_backend(parts, bundle)
    first = backend.infer(studies(1, 1))
    assert first.phase_logits is not None
    kept = first.logits.tobytes(), first.phase_logits.tobytes()
    second = backend.infer(studies(1, 2))
    assert first.logits.tobytes() != second.logits.tobytes()
    backend.close()
    assert kept == (first.logits.tobytes(), first.phase_logits.tobytes())
    assert first.logits.flags.owndata
    assert first.phase_logits.flags.owndata


@pytest.mark.usefixtures("trt")
def test_the_study_may_change_as_soon_as_the_next_is_asked_for(bundle: Bundle, parts: EngineParts) -> None:
    """A caller that prepares every study in the same array: what was enqueued must be its copy."""
    shared = np.empty((1, *SHAPE), np.float32)

    def prepared() -> Iterator[Floats]:
        for seed in range(5):
            shared[...] = studies(1, seed)
            yield shared

    with load_engine_backend(parts, bundle) as backend:
        for seed, outputs in enumerate(backend.infer_many(prepared())):
            assert_right(outputs, studies(1, seed))


def test_addresses_come_before_the_enqueue_and_one_study_is_one_sequence(
    cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle
) -> None:
    with load_engine_backend(WHOLE, bundle, use_graph=False) as backend:
        backend.infer(studies(1))
        cuda.log.clear()
        backend.infer(studies(1))
    names = ["memcpy_htod_async", "memset_d8_async", "execute_async_v3", "memcpy_dtoh_async", "Event.synchronize"]
    once = [entry[0] for entry in cuda.log if entry[0] in names]
    wanted = ["Event.synchronize", "memcpy_htod_async", *["memset_d8_async"] * 2, "execute_async_v3"]
    wanted += [*["memcpy_dtoh_async"] * 2, "Event.synchronize"]
    if cuda.integrated:
        wanted = [name for name in wanted if not name.startswith("mem")]
    assert once == wanted
    streams = {entry[2] for entry in cuda.log if entry[0] == "memcpy_dtoh_async"}
    streams |= {entry[1] for entry in cuda.log if entry[0] == "execute_async_v3"}
    assert len(streams) == 1
    assert trt.contexts_made == 1


def test_double_buffering_keeps_the_order_and_overlaps(cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle) -> None:
    """The upload of study i + 1 is enqueued before anyone waits for the outputs of study i."""
    backend = load_engine_backend(WHOLE, bundle, use_graph=False)
    given = [studies(1 + seed % 3, seed) for seed in range(6)]
    for study, outputs in zip(given, backend.infer_many(iter(given)), strict=True):
        assert_right(outputs, study)
    list(backend.infer_many([studies(1)] * 2))
    cuda.log.clear()
    waits = iter(backend.infer_many(studies(1, seed) for seed in range(4)))
    next(waits)
    enqueued = [entry[0] for entry in cuda.log if entry[0] in ("execute_async_v3", "Event.synchronize")]
    # Each put waits for its (free) buffer; the first wait after both enqueues is the one for the first outputs.
    assert enqueued == [*["Event.synchronize", "execute_async_v3"] * 2, "Event.synchronize"]
    if not cuda.integrated:
        uploads = [index for index, entry in enumerate(cuda.log) if entry[0] == "memcpy_htod_async"]
        last_wait = max(index for index, entry in enumerate(cuda.log) if entry[0] == "Event.synchronize")
        assert len(uploads) == 2
        assert max(uploads) < last_wait
        copies = {entry[2] for entry in cuda.log if entry[0] == "memcpy_htod_async"}
        assert copies.isdisjoint({entry[1] for entry in cuda.log if entry[0] == "execute_async_v3"})
    assert len(list(waits)) == 3
    backend.close()
    assert_nothing_held(cuda, trt)


def test_a_graph_is_used_once_proven_and_reported_where_not(
    cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle, parts: EngineParts
) -> None:
    shared = ("the GPU reads the host's memory, nothing is copied to it",) if cuda.integrated else ()
    with load_engine_backend(parts, bundle) as backend, load_engine_backend(parts, bundle, use_graph=False) as plain:
        for seed in range(3):
            one, other = backend.infer(studies(2, seed)), plain.infer(studies(2, seed))
            assert one.logits.tobytes() == other.logits.tobytes()
            assert one.phase_logits is not None
            assert other.phase_logits is not None
            assert one.phase_logits.tobytes() == other.phase_logits.tobytes()
        assert cuda.calls("cuGraphLaunch")
        assert backend.notes == shared
        assert plain.notes == (*shared, "CUDA graph not used: not asked for")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [({"uncapturable": True}, "cannot be captured"), ({"graph_error": 0.5}, "differs from that of the plain enqueue")],
)
def test_without_a_graph_the_numbers_are_right_and_the_reason_is_told(
    cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle, parts: EngineParts, trouble: dict[str, Any], reason: str
) -> None:
    vars(trt).update(trouble)
    with load_engine_backend(parts, bundle) as backend:
        assert reason in backend.notes[-1], "known before the first study"
        for seed in range(3):
            assert_right(backend.infer(studies(1, seed)), studies(1, seed))
        assert len(backend.notes) == 1 + cuda.integrated


@pytest.mark.parametrize("max_batch", [1, 2])
@pytest.mark.parametrize("use_graph", [True, False])
def test_an_engine_without_phase_logits_gives_the_logits(
    cuda: FakeCuda, trt: FakeTensorRT, tmp_path: Path, use_graph: bool, max_batch: int
) -> None:
    """Also in several runs, whose outputs are put together, and for a study that is written on the GPU."""
    trt.plans[b"alone"] = replace(PLANS[b"whole"], outputs={"logits": ((2,), "float32")})
    size = PreprocessingConfig(size=SHAPE[1:2] + SHAPE[3:])
    alone = replace(write_logits_alone(tmp_path / "alone"), preprocessing=size)
    parts = EngineParts({"whole": b"alone"}, None, "tensorrt", "fp32", max_batch)
    study = studies(3)
    wanted = outputs_of(features_of(study.astype(np.float64)))["logits"]
    with load_engine_backend(parts, alone, use_graph=use_graph) as backend:
        outputs = backend.infer(study)
        with backend.device_study() as written:
            for phase, values in enumerate(study[0]):
                written.write(phase, partial(kernel, cuda, values, phase * values.nbytes))
            on_device = written.run()
    np.testing.assert_allclose(outputs.logits, wanted, rtol=1e-4)
    np.testing.assert_allclose(on_device.logits, wanted[:1], rtol=1e-4)
    assert outputs.phase_logits is None
    assert on_device.phase_logits is None
    assert_nothing_held(cuda, trt)


@pytest.mark.usefixtures("trt")
def test_an_engine_with_another_output_than_its_manifest_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ModelIncompatible, match="phase_logits"):
        load_engine_backend(WHOLE, replace(bundle, outputs=("logits",)))


@pytest.mark.parametrize("missing", ["logits", "phase_logits", "features"])
def test_an_output_that_nobody_writes_is_refused(
    cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle, missing: str
) -> None:
    """Buffers are filled with NaN before each run, so the numbers of the last study cannot come back."""
    parts = SPLIT if missing == "features" else WHOLE
    backend = load_engine_backend(parts, bundle, use_graph=False)
    assert_right(backend.infer(studies(1)), studies(1))
    name = b"trunk" if missing == "features" else b"whole"
    compute = trt.plans[name].compute

    def lossy(given: Any) -> Any:
        return {name: value for name, value in compute(given).items() if name != missing}

    object.__setattr__(trt.plans[name], "compute", lossy)
    try:
        with pytest.raises(SelfCheckFailed) as caught:
            backend.infer(studies(1))
    finally:
        object.__setattr__(trt.plans[name], "compute", compute)
    assert (caught.value.code, caught.value.key) == (23, "output_not_finite")
    assert_right(backend.infer(studies(1, 3)), studies(1, 3))
    backend.close()


@pytest.mark.usefixtures("trt")
def test_features_that_did_not_reach_the_tail_are_seen(cuda: FakeCuda, bundle: Bundle) -> None:
    backend = load_engine_backend(SPLIT, bundle)
    assert_right(backend.infer(studies(1)), studies(1))
    copy, calls = cuda.driver.memcpy_dtod_async, iter(range(100))
    cuda.driver.memcpy_dtod_async = lambda *given: next(calls) == 7 or copy(*given)
    with pytest.raises(SelfCheckFailed):
        backend.infer(studies(1))
    backend.close()


@pytest.mark.usefixtures("trt")
def test_bad_input_is_refused_before_the_gpu_sees_it(cuda: FakeCuda, bundle: Bundle) -> None:
    backend = load_engine_backend(WHOLE, bundle)
    calls = len(cuda.log)
    with pytest.raises(ModelIncompatible, match="takes float32"):
        backend.infer(studies(1)[..., :-1])
    with pytest.raises(PixelDataError, match="not finite"):
        backend.infer(np.full_like(studies(1), np.inf))
    assert [entry for entry in cuda.log[calls:] if entry[0] not in ("push", "Context.synchronize")] == []


def test_ten_thousand_runs_allocate_nothing(cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle) -> None:
    backend = load_engine_backend(WHOLE, bundle)
    study = studies(1)
    for _ in range(2):
        list(backend.infer_many([study] * 2))
    before = cuda.allocations, len(cuda.live), cuda.graphs_live, trt.contexts_made, len(cuda.streams)
    calls = len(cuda.calls("Event", "Stream", "mem_alloc", "pagelocked_empty"))
    for _ in range(5_000):
        backend.infer(study)
    for outputs in backend.infer_many(study for _ in range(5_000)):
        assert outputs.logits.shape == (1, 2)
    assert before == (cuda.allocations, len(cuda.live), cuda.graphs_live, trt.contexts_made, len(cuda.streams))
    assert calls == len(cuda.calls("Event", "Stream", "mem_alloc", "pagelocked_empty"))
    assert all(not stream.queue for stream in cuda.streams.values())
    backend.close()
    assert_nothing_held(cuda, trt)


@pytest.mark.parametrize("use_graph", [True, False])
def test_after_a_sticky_error_nothing_is_computed_and_nothing_asked(
    cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle, parts: EngineParts, use_graph: bool
) -> None:
    backend = load_engine_backend(parts, bundle, use_graph=use_graph)
    backend.infer(studies(1))
    cuda.fail["Event.synchronize"] = LaunchError
    with pytest.raises(GPUUnavailable, match="unspecified launch failure") as caught:
        backend.infer(studies(1))
    assert (caught.value.code, caught.value.key) == (22, "gpu_lost")
    calls = len(cuda.log)
    for _ in range(2):
        with pytest.raises(GPUUnavailable) as again:
            backend.infer(studies(1))
        assert again.value.key == "gpu_lost"
    with pytest.raises(GPUUnavailable, match="failed earlier in this process"):
        load_engine_backend(parts, bundle)
    assert [entry[0] for entry in cuda.log[calls:] if entry[0] not in ("push",)] == []
    backend.close()
    del caught, again
    assert not cuda.stack


def test_false_from_the_enqueue_reaches_the_user_and_the_next_run_works(
    cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle, parts: EngineParts
) -> None:
    backend = load_engine_backend(parts, bundle, use_graph=False)
    trt.refuse = "execute_async_v3"
    with pytest.raises(ModelIncompatible, match="Myelin") as caught:
        backend.infer(studies(1))
    assert (caught.value.code, caught.value.key) == (20, "model_not_runnable")
    trt.refuse = None
    assert_right(backend.infer(studies(1, 1)), studies(1, 1))
    backend.close()
    del caught
    assert_nothing_held(cuda, trt)


@pytest.mark.parametrize("call", ["mem_alloc", "pagelocked_empty"])
def test_too_little_memory_is_22_and_leaves_nothing_behind(
    cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle, parts: EngineParts, call: str
) -> None:
    cuda.fail[call] = MemoryError_
    with pytest.raises(GPUUnavailable) as caught, load_engine_backend(parts, bundle) as backend:
        backend.infer(studies(1))
    assert (caught.value.code, caught.value.key) == (22, "out_of_memory")
    del caught
    assert_nothing_held(cuda, trt)


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        (replace(WHOLE, plans={"whole": b"unknown"}), "engine_not_loadable"),
        (replace(SPLIT, plans={"trunk": b"trunk", "tail": b"tail16"}), "engine_interface"),
        (replace(SPLIT, plans={"trunk": b"trunk3", "tail": b"tail16"}), "engine_interface"),
        (replace(WHOLE, max_batch=3), "engine_interface"),
        (replace(SPLIT, slices=4), "engine_interface"),
        (replace(SPLIT, slices=0), "engine_interface"),
        (replace(WHOLE, slices=2), "engine_interface"),
        (replace(SPLIT, slices=None), "engine_interface"),
        (replace(WHOLE, max_batch=0), "engine_interface"),
    ],
)
def test_engines_that_do_not_make_the_model_are_refused(
    cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle, parts: EngineParts, key: str
) -> None:
    with pytest.raises(ModelIncompatible) as caught:
        load_engine_backend(parts, bundle)
    assert (caught.value.code, caught.value.key) == (20, key)
    del caught
    assert_nothing_held(cuda, trt)


def test_an_interrupt_closes_everything(cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle, parts: EngineParts) -> None:
    backend = load_engine_backend(parts, bundle)
    backend.infer(studies(1))

    def interrupted() -> Iterator[Floats]:
        yield studies(1)
        yield studies(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(backend.infer_many(interrupted()))
    assert_nothing_held(cuda, trt)
    with pytest.raises(RuntimeError, match="closed"):
        backend.infer(studies(1))
    backend.close()


@pytest.mark.usefixtures("trt")
def test_who_stops_listening_leaves_the_buffers_free(cuda: FakeCuda, bundle: Bundle, parts: EngineParts) -> None:
    backend = load_engine_backend(parts, bundle)
    stopped = backend.infer_many(studies(1, seed) for seed in range(9))
    next(stopped)
    with pytest.raises(RuntimeError, match="already running"):
        backend.infer(studies(1))
    del stopped
    assert all(not stream.queue for stream in cuda.streams.values())
    assert_right(backend.infer(studies(2, 7)), studies(2, 7))
    backend.close()


def test_an_error_of_the_next_study_does_not_leave_work_behind(
    cuda: FakeCuda, trt: FakeTensorRT, bundle: Bundle
) -> None:
    backend = load_engine_backend(WHOLE, bundle)
    with pytest.raises(PixelDataError):
        list(backend.infer_many([studies(1), np.full_like(studies(1), np.nan)]))
    assert_right(backend.infer(studies(1, 4)), studies(1, 4))
    backend.close()
    assert_nothing_held(cuda, trt)


def test_rtx_compiles_its_kernels_before_the_first_run(
    cuda: FakeCuda, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it changes them later, and the same study could give other bytes; the stand-in insists."""
    FakeTensorRT(cuda, dict(PLANS), "tensorrt-rtx").install(monkeypatch)
    with load_engine_backend(replace(WHOLE, flavour="tensorrt-rtx"), bundle) as backend:
        assert backend.name == "tensorrt-rtx"
        assert_right(backend.infer(studies(1)), studies(1))


def test_the_package_is_looked_for_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not is_available()
    assert tensorrt_backend.REQUIREMENTS == ("pycuda>=2024.1",)


def test_nothing_of_nvidia_is_imported_early() -> None:
    script = (
        "import sys; import fourphase.runtime.tensorrt_backend\n"
        "sys.exit(bool({'pycuda', 'cuda', 'tensorrt', 'tensorrt_rtx', 'torch', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


DYING = """
import sys
from pathlib import Path
import pytest, typer
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.console import run_app
from fourphase.runtime.tensorrt_backend import load_engine_backend
from tests.runtime.test_tensorrt_backend import PLANS, WHOLE, replace, studies, PreprocessingConfig, SHAPE
from tests.support.fake_cuda import FakeCuda, LaunchError
from tests.support.fake_tensorrt import FakeTensorRT

app = typer.Typer()

@app.command()
def main(bundle: Path) -> None:
    cuda = FakeCuda().install(pytest.MonkeyPatch())
    FakeTensorRT(cuda, dict(PLANS)).install(pytest.MonkeyPatch())
    size = SHAPE[1:2] + SHAPE[3:]
    with load_engine_backend(
        WHOLE, replace(load_bundle(bundle), preprocessing=PreprocessingConfig(size=size))
    ) as backend:
        cuda.fail["Event.synchronize"] = LaunchError
        cuda.fail["pop"] = LaunchError
        print(backend.infer(studies(1)).logits)

run_app(app, "dying")
"""


def test_a_process_whose_gpu_failed_ends_with_22_and_says_nothing_else(bundle: Bundle) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(bundle.path)], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 22
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "error: the GPU failed: Event.synchronize failed: unspecified launch failure"
    assert len(done.stderr.splitlines()) == 2


# On a GPU.


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def real(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[EngineParts, Bundle]:
    """The tiny model's engine by whatever flavour is installed."""
    pytest.importorskip("pycuda")
    open_gpu.cache_clear()
    parts = EngineParts({"whole": built(request.param)}, None, request.param, "fp32", 2)
    return parts, write_tiny(tmp_path / "real")


def built(flavour: str) -> bytes:
    from fourphase.engine.build import build_engine
    from fourphase.engine.options import BuildOptions, EngineSource

    try:
        return build_engine(EngineSource(tiny_model(), "fp32"), flavour, BuildOptions(batch=(1, 1, 2))).plan
    except FourphaseError as error:
        pytest.skip(f"no engine by {flavour}: {error.message}")


def tiny_study(batch: int, seed: int, bundle: Bundle) -> Floats:
    return np.random.default_rng(seed).normal(size=(batch, *bundle.input_shape)).astype(np.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_real_engine_agrees_with_onnxruntime(real: tuple[EngineParts, Bundle], batch: int) -> None:
    from fourphase.runtime.onnxruntime_backend import load_backend

    parts, bundle = real
    with load_engine_backend(parts, bundle) as backend:
        for seed in range(3):
            study = tiny_study(batch, seed, bundle)
            outputs, wanted = backend.infer(study), load_backend(bundle, "fp32").infer(study)
            np.testing.assert_allclose(outputs.logits, wanted.logits, rtol=1e-4, atol=1e-5)
            assert outputs.phase_logits is not None
            assert wanted.phase_logits is not None
            np.testing.assert_allclose(outputs.phase_logits, wanted.phase_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_real_graph_gives_the_bytes_of_the_plain_enqueue(real: tuple[EngineParts, Bundle]) -> None:
    parts, bundle = real
    with load_engine_backend(parts, bundle) as graph, load_engine_backend(parts, bundle, use_graph=False) as plain:
        for seed in range(20):
            study = tiny_study(2, seed, bundle)
            assert graph.infer(study).logits.tobytes() == plain.infer(study).logits.tobytes()
        print(graph.notes)


@pytest.mark.gpu
def test_ten_thousand_real_runs_do_not_grow(real: tuple[EngineParts, Bundle]) -> None:
    parts, bundle = real

    def free(backend: TensorRTBackend) -> int:
        with open_gpu().current():
            return int(open_gpu().driver.mem_get_info()[0])

    with load_engine_backend(parts, bundle) as backend:
        study = tiny_study(1, 0, bundle)
        wanted = backend.infer(study).logits.tobytes()
        list(backend.infer_many([study] * 10))
        before = free(backend)
        assert all(backend.infer(study).logits.tobytes() == wanted for _ in range(5_000))
        assert all(outputs.logits.tobytes() == wanted for outputs in backend.infer_many([study] * 5_000))
        assert free(backend) >= before - (1 << 20)
