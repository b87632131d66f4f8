"""The primary context and what errors mean, on a stand-in; and every pycuda and cuda-python name against the real ones.

`data/pycuda_names.json` was read off the packages themselves: pycuda 2026.1 built for Python 3.12, imported with an
empty libcuda preloaded (dir() of the module and its classes), and what cuda-bindings 12.8.0, 12.9.10 and 13.5.0 have in
common of graphs and streams.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import fourphase.runtime
from fourphase.runtime import cuda_context
from fourphase.runtime.cuda import Probe
from fourphase.runtime.cuda_context import Resources, open_gpu
from fourphase.runtime.errors import EnvironmentFault, GPUUnavailable
from tests.support.fake_cuda import NAMES, Error, FakeCuda, LaunchError, LogicError, MemoryError_

RUNTIME = Path(fourphase.runtime.__path__[0])
_NAMES = ("cuda_context", "cuda_buffers", "cuda_graph", "engine_model", "tensorrt_backend", "kernel_check")
MODULES = [RUNTIME / f"{name}.py" for name in _NAMES]
#: What a variable or attribute of that name holds in these modules.
ROLES = {
    "driver": "",
    "device": "Device",
    "_context": "Context",
    "attributes": "device_attribute",
    "flags": "event_flags",
    "_stream": "Stream",
    "stream": "Stream",
    "_copies": "Stream",
    "_computing": "Stream",
    "_arrived": "Event",
    "_free": "Event",
    "_pinned": "PagelockedHostAllocation",
    "_memory": "DeviceAllocation",
}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    yield FakeCuda().install(monkeypatch)
    open_gpu.cache_clear()


def chain(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else [""]


def used(source: str) -> set[tuple[str, str]]:
    """(package, name) of every expression that starts at a variable or attribute with a role."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        parts = chain(node) if isinstance(node, ast.Attribute) else []
        for index, part in enumerate(parts[:-1]):
            if part in ("bindings", "_bindings"):
                found.add(("cuda.bindings.driver", ".".join(parts[index + 1 : index + 3])))
            elif part in ROLES:
                found.add(("pycuda.driver", ".".join(filter(None, (ROLES[part], *parts[index + 1 : index + 3])))))
    return found


def outside(source: str, names: dict[str, frozenset[str]] = NAMES) -> set[str]:
    return {name for package, name in used(source) if name not in names[package]}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_every_name_is_one_of_the_real_packages(path: Path) -> None:
    assert outside(path.read_text()) == set()


def test_the_collector_sees_the_names_and_finds_a_wrong_one() -> None:
    seen = {name for path in MODULES for _, name in used(path.read_text())}
    assert {
        "Device", "Device.retain_primary_context", "Context.synchronize", "Context.push", "Context.pop", "Stream",
        "event_flags.BLOCKING_SYNC", "host_alloc_flags.DEVICEMAP", "device_attribute.INTEGRATED", "memcpy_htod_async",
        "memcpy_dtoh_async", "memcpy_dtod_async", "memset_d8_async", "pagelocked_empty", "mem_alloc", "memcpy_dtoh",
        "PagelockedHostAllocation.get_device_pointer", "PagelockedHostAllocation.free", "DeviceAllocation.free",
        "Event.record", "Event.synchronize", "Stream.wait_for_event", "Stream.synchronize", "Stream.handle",
        "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch", "cuGraphExecDestroy",
        "cuGraphDestroy", "CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL", "CUresult.CUDA_SUCCESS",
    } <= seen  # fmt: skip
    assert outside("gpu.driver.memcpy_dtoh_asynch(a, b)") == {"memcpy_dtoh_asynch"}
    assert outside("self._bindings.cuGraphStart(a)") == {"cuGraphStart"}
    assert outside("driver.init()", {"pycuda.driver": frozenset()}) == {"init"}


def test_no_module_lets_pycuda_make_a_context_of_its_own() -> None:
    for path in RUNTIME.glob("*.py"):
        assert not re.search(r"autoinit|autoprimaryctx|make_context", path.read_text()), path.name


def test_the_primary_context_is_retained_once(cuda: FakeCuda) -> None:
    assert open_gpu() is open_gpu()
    assert cuda.retained == 1
    assert cuda.stack == []
    assert not open_gpu().zero_copy


def test_an_integrated_gpu_shares_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(integrated=True).install(monkeypatch)
    assert open_gpu().zero_copy
    open_gpu.cache_clear()


def test_without_a_device_or_pycuda_nothing_is_opened(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(EnvironmentFault) as missing:
        open_gpu()
    assert (missing.value.code, missing.value.key) == (24, "package_missing")
    monkeypatch.setattr(cuda_context, "probe", lambda: Probe(None, "no CUDA device"))
    with pytest.raises(GPUUnavailable, match="no CUDA device") as caught:
        open_gpu()
    assert caught.value.code == 22
    assert cuda.log == []


def test_a_driver_that_does_not_start_is_a_gpu_that_is_not_available(cuda: FakeCuda) -> None:
    cuda.fail["retain_primary_context"] = LogicError
    with pytest.raises(GPUUnavailable, match="retain_primary_context failed") as caught:
        open_gpu()
    assert caught.value.key == "gpu_unavailable"


def test_the_context_is_current_within_the_block_alone(cuda: FakeCuda) -> None:
    gpu = open_gpu()
    with gpu.current(), gpu.current():
        assert len(cuda.stack) == 2
    assert cuda.stack == []
    with pytest.raises(ZeroDivisionError), gpu.current():
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), gpu.current():
        raise KeyboardInterrupt
    assert cuda.stack == []
    assert gpu.lost is None


def test_a_lack_of_memory_does_not_end_the_gpu(cuda: FakeCuda) -> None:
    gpu = open_gpu()
    cuda.fail["mem_alloc"] = MemoryError_
    with pytest.raises(GPUUnavailable, match="mem_alloc failed: out of memory") as caught, gpu.current():
        gpu.driver.mem_alloc(10)
    assert (caught.value.code, caught.value.key) == (22, "out_of_memory")
    with gpu.current():
        assert int(gpu.driver.mem_alloc(10))


@pytest.mark.parametrize("error", [LaunchError, LogicError])
def test_after_any_other_error_nothing_is_asked_of_the_gpu_again(cuda: FakeCuda, error: type[Error]) -> None:
    gpu = open_gpu()
    cuda.fail["mem_alloc"] = error
    with pytest.raises(GPUUnavailable) as caught, gpu.current():
        gpu.driver.mem_alloc(10)
    assert (caught.value.code, caught.value.key) == (22, "gpu_lost")
    calls = len(cuda.log)
    with (
        pytest.raises(GPUUnavailable, match="failed earlier in this process: mem_alloc failed") as again,
        gpu.current(),
    ):
        pytest.fail("the block was entered")
    assert again.value.key == "gpu_lost"
    assert len(cuda.log) == calls


def test_a_lack_of_memory_on_a_dead_context_is_not_taken_for_one(cuda: FakeCuda) -> None:
    gpu = open_gpu()

    def die() -> None:
        cuda.lost = "an illegal memory access was encountered"
        raise MemoryError_("cuMemAlloc failed: out of memory")

    with pytest.raises(GPUUnavailable) as caught, gpu.current():
        die()
    assert caught.value.key == "gpu_lost"


def test_pycudas_stack_is_empty_even_where_the_context_cannot_be_popped(cuda: FakeCuda) -> None:
    """Or pycuda would abort the process at its end."""
    gpu = open_gpu()
    cuda.fail["pop"] = LogicError
    with pytest.raises(GPUUnavailable) as caught, gpu.current():
        pass
    assert caught.value.key == "gpu_lost"
    assert cuda.stack == []


def test_streams_are_own_ones_and_events_let_the_core_sleep(cuda: FakeCuda) -> None:
    gpu = open_gpu()
    with gpu.current():
        gpu.new_stream()
        gpu.new_event()
    # cuda.h: CU_STREAM_NON_BLOCKING = 1, CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING = 3
    assert ("Stream", 1) in cuda.log
    assert ("Event", 3) in cuda.log


def test_resources_close_the_last_first_also_on_a_dead_gpu(cuda: FakeCuda) -> None:
    gpu = open_gpu()
    held, closed = Resources(gpu), []
    for name in "ab":
        held.add(SimpleNamespace(close=lambda name=name: closed.append((name, len(cuda.stack)))))
    cuda.lost = "unspecified launch failure"
    held.close()
    held.close()
    assert [name for name, _ in closed] == ["b", "a"]
    assert cuda.stack == []


@pytest.mark.gpu
def test_the_real_packages_have_the_names_and_the_context_works() -> None:
    pytest.importorskip("pycuda")
    gpu = open_gpu()
    for name in {name for path in MODULES for package, name in used(path.read_text()) if package == "pycuda.driver"}:
        found = gpu.driver
        for part in name.split("."):
            assert name == "Stream.handle" or hasattr(found, part), name
            found = getattr(found, part, None)
    with gpu.current():
        assert gpu.is_alive()
        free, total = gpu.driver.mem_get_info()
    assert 0 < free <= total
