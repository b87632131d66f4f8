"""Any engine by the product's session, on stand-ins that compute late and count what is left."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.benchmarks.gpu.session_on_buffers import SessionOnBuffers
from fourphase.runtime.cuda_context import open_gpu
from fourphase.runtime.errors import ModelIncompatible
from tests.support.fake_cuda import FakeCuda
from tests.support.fake_tensorrt import FakePlan, FakeTensorRT

Floats = NDArray[np.float32]

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
SUM = {"y": ROWS.sum(1)[:, None]}
PLAN = FakePlan(
    {"x": ((3,), "float32")}, {"y": ((1,), "float32")}, lambda given: {"y": given["x"].sum(1)[:, None]}, (1, 4)
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    yield FakeCuda().install(monkeypatch)
    open_gpu.cache_clear()


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def trt(cuda: FakeCuda, request: pytest.FixtureRequest) -> FakeTensorRT:
    return FakeTensorRT(cuda, {b"plan": PLAN}, request.param)


def test_rows_are_computed_at_every_batch_size_and_everything_is_freed(trt: FakeTensorRT) -> None:
    with SessionOnBuffers(trt.loaded(), b"plan", {"x": ROWS}, SUM, 4) as session:
        for count in (4, 1, 3):
            np.testing.assert_array_equal(session.infer({"x": ROWS[:count]})["y"], SUM["y"][:count])
    assert trt.contexts_live == 0


def test_what_the_engine_leaves_unwritten_is_nan(trt: FakeTensorRT) -> None:
    def forgetful(given: dict[str, Floats]) -> dict[str, Floats]:
        output = given["x"].sum(1)[:, None]
        output[-1] = np.nan  # as memory that nobody wrote
        return {"y": output}

    trt.plans[b"plan"] = PLAN.changed(compute=forgetful)
    with SessionOnBuffers(trt.loaded(), b"plan", {"x": ROWS}, SUM, 4) as session:
        assert np.isnan(session.infer({"x": ROWS})["y"][-1]).all()


def test_another_engine_is_refused(trt: FakeTensorRT) -> None:
    with pytest.raises(ModelIncompatible, match="tensors are x, y"):
        SessionOnBuffers(trt.loaded(), b"plan", {"study": ROWS}, SUM, 4)
    with pytest.raises(ModelIncompatible, match="1 to 4 studies at once, not 1 to 5"):
        SessionOnBuffers(trt.loaded(), b"plan", {"x": ROWS}, SUM, 5)
