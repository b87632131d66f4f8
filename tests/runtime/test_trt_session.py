"""One engine: what is checked before it runs, and that every refusal of TensorRT is an error with its words."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fourphase.runtime.cuda import probe
from fourphase.runtime.cuda_buffers import DeviceMemory
from fourphase.runtime.cuda_context import Gpu, open_gpu
from fourphase.runtime.errors import FourphaseError, GPUUnavailable, ModelIncompatible
from fourphase.runtime.flavour import load_flavour
from fourphase.runtime.trt_session import EngineTensor, TrtSession, load_session
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_tensorrt import FakePlan, FakeTensorRT

PLAN = FakePlan({"x": ((3,), "float32")}, {"y": ((1,), "float32")}, lambda given: {"y": given["x"].sum(1)[:, None]})
X, Y = EngineTensor("x", (3,)), EngineTensor("y", (1,), ("float32", "float16"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    yield FakeCuda().install(monkeypatch)
    open_gpu.cache_clear()


@pytest.fixture
def gpu(cuda: FakeCuda) -> Iterator[Gpu]:
    with open_gpu().releasing():
        yield open_gpu()


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def trt(cuda: FakeCuda, request: pytest.FixtureRequest) -> FakeTensorRT:
    return FakeTensorRT(cuda, {b"plan": PLAN}, request.param)


def load(gpu: Gpu, trt: FakeTensorRT, plan: bytes = b"plan", max_batch: int = 2, host_code: bool = False) -> TrtSession:
    return load_session(gpu, trt.loaded(), plan, inputs=(X,), outputs=(Y,), max_batch=max_batch, host_code=host_code)


class Bench:
    """A session with memory for its two tensors."""

    def __init__(self, cuda: FakeCuda, gpu: Gpu, session: TrtSession) -> None:
        self.cuda, self.session, self.stream = cuda, session, gpu.new_stream()
        self.memory = {"x": DeviceMemory(gpu, 24), "y": DeviceMemory(gpu, 8)}
        self.addresses = {name: memory.pointer for name, memory in self.memory.items()}

    def at(self, name: str) -> Any:
        return self.cuda.bytes_at(self.addresses[name], self.memory[name].nbytes).view(np.float32)


def test_an_engine_runs_on_the_addresses_and_the_batch_it_was_bound_to(
    cuda: FakeCuda, gpu: Gpu, trt: FakeTensorRT
) -> None:
    bench = Bench(cuda, gpu, load(gpu, trt))
    bench.at("x")[:] = [1, 2, 3, 10, 20, 30]
    two = bench.session.bind(2, bench.addresses)
    two.enqueue(bench.stream)
    bench.stream.synchronize()
    np.testing.assert_array_equal(bench.at("y"), [6, 60])
    bench.at("y")[:] = 0
    bench.session.bind(1, bench.addresses).enqueue(bench.stream)
    bench.stream.synchronize()
    np.testing.assert_array_equal(bench.at("y"), [6, 0])
    calls = [entry[0] for entry in cuda.log if entry[0] in ("deserialize", "set_tensor_address", "execute_async_v3")]
    assert calls == ["deserialize", *["set_tensor_address", "set_tensor_address", "execute_async_v3"] * 2]


def test_what_was_found_is_known(gpu: Gpu, trt: FakeTensorRT) -> None:
    trt.plans[b"half"] = PLAN.changed(outputs={"y": ((7,), "float16")})
    open_y = EngineTensor("y", (None,), ("float32", "float16"))
    session = load_session(gpu, trt.loaded(), b"half", inputs=(X,), outputs=(open_y,), max_batch=1)
    assert session.outputs["y"] == EngineTensor("y", (7,), ("float16",))
    assert session.outputs["y"].dtype == np.float16
    assert session.outputs["y"].sizes == (7,)


def test_code_of_the_plan_for_the_host_is_forbidden_unless_allowed(gpu: Gpu, trt: FakeTensorRT) -> None:
    load(gpu, trt)
    assert [runtime.engine_host_code_allowed for runtime in trt.runtimes] == [False]
    load(gpu, trt, host_code=True)
    assert [runtime.engine_host_code_allowed for runtime in trt.runtimes] == [False, True]


def test_contexts_share_their_scratch_memory(cuda: FakeCuda, gpu: Gpu, trt: FakeTensorRT) -> None:
    bench = Bench(cuda, gpu, load(gpu, trt))
    before = len(cuda.live)
    for batch in (2, 1, 2):
        bench.session.bind(batch, bench.addresses)
    assert len(cuda.live) == before + 1
    assert trt.contexts_live == 3
    bench.session.close()
    bench.session.close()
    assert trt.contexts_live == 0
    assert len(cuda.live) == before


def test_a_larger_need_for_scratch_memory_leaves_the_earlier_contexts_alone(
    cuda: FakeCuda, gpu: Gpu, trt: FakeTensorRT
) -> None:
    bench = Bench(cuda, gpu, load(gpu, trt))
    bench.at("x")[:] = 1
    one, _ = bench.session.bind(1, bench.addresses), bench.session.bind(2, bench.addresses)
    one.enqueue(bench.stream)
    bench.stream.synchronize()
    assert bench.at("y")[0] == 3


def test_a_plan_that_is_not_loaded_is_refused_with_the_log(gpu: Gpu, trt: FakeTensorRT) -> None:
    with pytest.raises(ModelIncompatible, match="does not load the engine: Error Code 1: Serialization") as caught:
        load(gpu, trt, b"other")
    assert (caught.value.code, caught.value.key) == (20, "engine_not_loadable")
    assert caught.value.table == ({"TensorRT says": "Error Code 1: Serialization (the plan is of another version)"},)
    assert "10.3.0.26" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": {"z": ((1,), "float32")}}, "tensors are x, z"),
        ({"outputs": {"y": ((1,), "float32"), "extra": ((1,), "float32")}}, "tensors are x, y, extra"),
        ({"inputs": {"y": ((1,), "float32")}, "outputs": {"x": ((3,), "float32")}}, "x is no input"),
        ({"inputs": {"x": ((4,), "float32")}}, r"x is float32 \(-1, 4\), not float32"),
        ({"inputs": {"x": ((3,), "float16")}}, r"x is float16 \(-1, 3\)"),
        ({"outputs": {"y": ((1,), "int32")}}, "y is int32"),
        ({"inputs": {"x": ((-1,), "float32")}}, r"x is float32 \(-1, -1\)"),
        ({"batch": (1, 1)}, "takes 1 to 1 studies at once, not 1 to 2"),
        ({"batch": (2, 4)}, "takes 2 to 4 studies at once"),
        ({"batch": (1, 2), "dynamic": False}, "takes 2 to 2 studies at once"),
    ],
)
def test_an_engine_other_than_expected_is_refused(
    gpu: Gpu, trt: FakeTensorRT, changes: dict[str, Any], message: str
) -> None:
    trt.plans[b"plan"] = PLAN.changed(**changes)
    with pytest.raises(ModelIncompatible, match=message) as caught:
        load(gpu, trt)
    assert (caught.value.code, caught.value.key) == (20, "engine_interface")


def test_a_static_batch_of_one_is_enough_for_one(gpu: Gpu, trt: FakeTensorRT) -> None:
    trt.plans[b"plan"] = PLAN.changed(batch=(1, 1), dynamic=False)
    load(gpu, trt, max_batch=1)


@pytest.mark.parametrize("call", ["set_input_shape", "infer_shapes", "set_tensor_address"])
def test_every_answer_while_binding_is_checked(cuda: FakeCuda, gpu: Gpu, trt: FakeTensorRT, call: str) -> None:
    bench = Bench(cuda, gpu, load(gpu, trt))
    trt.refuse = call
    with pytest.raises(ModelIncompatible) as caught:
        bench.session.bind(1, bench.addresses)
    assert caught.value.key == "engine_refused"
    bench.session.close()
    del caught  # the traceback holds the context
    gc.collect()
    assert trt.contexts_live == 0


def test_no_context_for_lack_of_memory_is_said_so(cuda: FakeCuda, gpu: Gpu, trt: FakeTensorRT) -> None:
    bench = Bench(cuda, gpu, load(gpu, trt))
    trt.refuse = "create_execution_context"
    with pytest.raises(GPUUnavailable, match="OutOfMemory") as caught:
        bench.session.bind(1, bench.addresses)
    assert (caught.value.code, caught.value.key) == (22, "out_of_memory")
    assert gpu.lost is None


def refused_run(
    cuda: FakeCuda, gpu: Gpu, trt: FakeTensorRT, lost: str | None = None, refuse: str = "execute_async_v3"
) -> FourphaseError:
    bench = Bench(cuda, gpu, load(gpu, trt))
    work = bench.session.bind(1, bench.addresses)
    trt.refuse = refuse if not trt.log_while_running else None
    cuda.lost = lost
    with pytest.raises(FourphaseError) as caught:
        work.enqueue(bench.stream)
    return caught.value


def test_false_from_the_enqueue_is_an_error_with_the_log(cuda: FakeCuda, gpu: Gpu, trt: FakeTensorRT) -> None:
    error = refused_run(cuda, gpu, trt)
    assert (error.code, error.key) == (20, "model_not_runnable")
    assert "could not run the network: Error Code 1: Myelin (something went wrong)" in error.message


def test_false_from_the_enqueue_without_a_word_is_an_error_too(cuda: FakeCuda, gpu: Gpu, trt: FakeTensorRT) -> None:
    error = refused_run(cuda, gpu, trt, refuse="execute_async_v3 in silence")
    assert (error.code, error.key) == (20, "model_not_runnable")
    assert error.message.endswith("could not run the network: no reason given")


def test_false_from_the_enqueue_on_a_dead_gpu_is_22(cuda: FakeCuda, gpu: Gpu, trt: FakeTensorRT) -> None:
    error = refused_run(cuda, gpu, trt, lost="an illegal memory access was encountered")
    assert (error.code, error.key) == (22, "gpu_lost")
    assert "Myelin" in error.message
    assert gpu.lost is not None


def test_an_error_in_the_log_counts_although_the_enqueue_says_true(cuda: FakeCuda, gpu: Gpu, trt: FakeTensorRT) -> None:
    trt.log_while_running = True
    assert "in spite of True" in refused_run(cuda, gpu, trt).message


def test_the_log_does_not_grow_with_the_runs(cuda: FakeCuda, gpu: Gpu, trt: FakeTensorRT) -> None:
    bench = Bench(cuda, gpu, load(gpu, trt))
    work = bench.session.bind(1, bench.addresses)
    for _ in range(5):
        trt.logger.log("WARNING", "slow")
        work.enqueue(bench.stream)
    assert len(trt.logger.lines) <= 1


@pytest.mark.rtx
@pytest.mark.skipif(probe().device is not None, reason="with a GPU the real runtime loads")
@pytest.mark.usefixtures("cuda")
def test_the_real_runtime_refuses_in_its_own_words_where_there_is_no_gpu(gpu: Gpu) -> None:
    """TensorRT for RTX itself, its logger and its answer None; only the context around it is a stand-in."""
    with pytest.raises(ModelIncompatible) as caught:
        load_session(gpu, load_flavour("tensorrt-rtx"), b"no plan", inputs=(X,), outputs=(Y,), max_batch=1)
    assert caught.value.table
    assert "no reason given" not in caught.value.message
