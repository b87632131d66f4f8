"""Buffers on a stand-in that does enqueued work as late as CUDA allows: who reads or reuses too early is found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fourphase.runtime.cuda_buffers import Buffer, DeviceMemory, Outgoing, Staging, poison
from fourphase.runtime.cuda_context import Gpu, open_gpu
from fourphase.runtime.errors import GPUUnavailable
from tests.support.fake_cuda import FakeCuda

ONES = np.ones((2, 3), np.float32)
TRANSFERS = ("memcpy_htod_async", "memcpy_dtoh_async")


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[FakeCuda]:
    yield FakeCuda(integrated=request.param).install(monkeypatch)
    open_gpu.cache_clear()


@pytest.fixture
def gpu(cuda: FakeCuda) -> Iterator[Gpu]:
    with open_gpu().releasing():  # as current(), and silent at the end of a test that lost the GPU
        yield open_gpu()


def on_device(cuda: FakeCuda, pointer: int, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    kind = np.dtype(dtype)
    return cuda.bytes_at(pointer, int(np.prod(shape)) * kind.itemsize).view(kind).reshape(shape)


def test_values_go_to_the_device_and_back(cuda: FakeCuda, gpu: Gpu) -> None:
    stream = gpu.new_stream()
    buffer = Buffer(gpu, (2, 3), np.float32)
    buffer.host[...] = [[1, 2, 3], [4, 5, 6]]
    buffer.upload(1, stream)
    stream.synchronize()
    np.testing.assert_array_equal(on_device(cuda, buffer.pointer, (1, 3)), [[1, 2, 3]])
    on_device(cuda, buffer.pointer, (2, 3))[...] = 7
    buffer.download(2, stream)
    stream.synchronize()
    np.testing.assert_array_equal(buffer.host, np.full((2, 3), 7))
    assert buffer.nbytes == 24


def test_an_integrated_gpu_gets_one_mapped_buffer_and_no_copy(cuda: FakeCuda, gpu: Gpu) -> None:
    buffer = Buffer(gpu, (2, 3), np.float32)
    buffer.upload(2, gpu.new_stream())
    buffer.download(2, gpu.new_stream())
    kinds = sorted(held.kind for held in cuda.live)
    assert kinds == (["mapped"] if cuda.integrated else ["device", "pinned"])
    assert cuda.calls(*TRANSFERS) == ([] if cuda.integrated else list(TRANSFERS))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_poison_is_nan_on_both_sides(cuda: FakeCuda, gpu: Gpu, dtype: Any) -> None:
    stream = gpu.new_stream()
    buffer, alone = Buffer(gpu, (2, 3), dtype), DeviceMemory(gpu, 12)
    buffer.poison(stream)
    assert np.isnan(buffer.host).all()
    poison(gpu, alone.pointer, alone.nbytes, stream)
    stream.synchronize()
    assert np.isnan(on_device(cuda, buffer.pointer, (2, 3), dtype)).all()
    assert np.isnan(on_device(cuda, alone.pointer, (12 // np.dtype(dtype).itemsize,), dtype)).all()


def test_closing_frees_both_sides_once(cuda: FakeCuda, gpu: Gpu) -> None:
    buffer, alone = Buffer(gpu, (2, 3), np.float32), DeviceMemory(gpu, 12)
    for _ in range(2):
        buffer.close()
        alone.close()
    assert cuda.live == []
    assert buffer.host.size == 0


def test_half_a_buffer_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pinned half is there, the device's memory does not suffice."""
    cuda = FakeCuda(memory=1500).install(monkeypatch)
    with pytest.raises(GPUUnavailable) as caught, open_gpu().current():
        Buffer(open_gpu(), (1000,), np.uint8)
    assert caught.value.key == "out_of_memory"
    assert cuda.live == []
    with pytest.raises(GPUUnavailable), open_gpu().current():
        Outgoing(open_gpu(), {"a": ((500,), np.uint8), "b": ((1000,), np.uint8)}, open_gpu().new_stream())
    assert cuda.live == []
    open_gpu.cache_clear()


def test_a_staging_buffer_is_not_filled_while_the_gpu_uses_it(cuda: FakeCuda, gpu: Gpu) -> None:
    """Two studies through one buffer: the work on the first must see the first, whatever the host does meanwhile."""
    copies, computing = gpu.new_stream(), gpu.new_stream()
    staging = Staging(gpu, (2, 3), copies, computing)
    seen = []
    for value in (1, 2, 3):
        staging.put(ONES * value)
        computing.add(lambda: seen.append(on_device(cuda, staging.buffer.pointer, (2, 3)).copy()))
        staging.release()
    computing.synchronize()
    assert [float(values.mean()) for values in seen] == [1, 2, 3]
    uploads = [entry[2] for entry in cuda.log if entry[0] == "memcpy_htod_async"]
    assert uploads == ([] if cuda.integrated else [copies.handle] * 3)


def test_a_staging_buffer_takes_part_of_its_size_from_any_strides(cuda: FakeCuda, gpu: Gpu) -> None:
    staging = Staging(gpu, (2, 3), gpu.new_stream(), gpu.new_stream())
    staging.put(np.arange(6, dtype=np.float32).reshape(3, 2).T[:1])
    np.testing.assert_array_equal(staging.buffer.host[:1], [[0, 2, 4]])
    for wrong in (np.ones((3, 3), np.float32), np.ones((1, 1), np.float32)):
        with pytest.raises(ValueError, match="takes"):
            staging.put(wrong)


def test_outputs_arrive_only_where_something_was_written(cuda: FakeCuda, gpu: Gpu) -> None:
    computing = gpu.new_stream()
    outgoing = Outgoing(gpu, {"a": ((2, 2), np.float32), "b": ((2,), np.float16)}, computing)
    outgoing.clear()
    computing.add(lambda: on_device(cuda, outgoing.addresses["a"], (1, 2)).fill(5))
    outgoing.send(2)
    arrived = outgoing.wait(2)
    np.testing.assert_array_equal(arrived["a"], [[5, 5], [np.nan, np.nan]])
    assert np.isnan(arrived["b"]).all()
    assert arrived["b"].dtype == np.float16
    outgoing.close()
    assert cuda.live == []
