from __future__ import annotations

import importlib
import types
from collections.abc import Callable

import pytest

from fourphase.runtime import flavour
from fourphase.runtime.cuda import Device, Probe
from fourphase.runtime.errors import EnvironmentFault, GPUUnavailable, UsageError
from fourphase.runtime.flavour import choose_target, load_flavour

NO_GPU = Probe(None, "no CUDA device (no NVIDIA driver)")
L4 = Probe(Device("NVIDIA L4", "8.9", "13.0", "580.1"), "CUDA device NVIDIA L4, compute capability 8.9")

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """machine(gpu, "tensorrt", ...) pretends that GPU and those flavours, TensorRT of version 10.16.1."""

    def pretend(gpu: Probe, *installed: str, version: str = "10.16.1.11", broken: bool = False) -> None:
        def load(name: str) -> types.SimpleNamespace:
            if broken or name not in {flavour.FLAVOURS[flavour_name] for flavour_name in installed}:
                raise ImportError("libnvinfer.so.10: cannot open shared object file")
            return types.SimpleNamespace(__version__=version)

        monkeypatch.setattr(flavour, "probe", lambda: gpu)
        monkeypatch.setattr(flavour, "_is_installed", lambda name: name in installed)
        monkeypatch.setattr(importlib, "import_module", load)

    return pretend


@pytest.mark.parametrize(
    ("gpu", "installed", "target", "reason"),
    [
        (L4, ["tensorrt", "tensorrt-rtx"], "tensorrt", "NVIDIA L4"),
        (NO_GPU, ["tensorrt", "tensorrt-rtx"], "tensorrt-rtx", "no CUDA device"),
        (L4, ["tensorrt-rtx"], "tensorrt-rtx", "TensorRT is not installed"),
        (NO_GPU, ["tensorrt-rtx"], "tensorrt-rtx", "builds without a GPU"),
        (NO_GPU, ["tensorrt"], "none", "no CUDA device"),
        (L4, [], "none", "TensorRT for RTX is not installed"),
    ],
)
def test_auto_takes_what_is_there_and_says_why(
    machine: Machine, gpu: Probe, installed: list[str], target: str, reason: str
) -> None:
    machine(gpu, *installed)
    found = choose_target("auto")
    assert found.name == target
    assert reason in found.reason


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "none"])
def test_a_target_asked_for_is_taken(machine: Machine, name: str) -> None:
    machine(NO_GPU)
    assert choose_target(name).name == name


def test_an_unknown_target_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown target 'trt'") as caught:
        choose_target("trt")
    assert "tensorrt-rtx" in caught.value.hint


def test_a_flavour_is_imported_with_its_version_and_the_gpu(machine: Machine) -> None:
    machine(L4, "tensorrt")
    found = load_flavour("tensorrt")
    assert (found.name, found.version, found.gpu, found.is_rtx) == ("tensorrt", "10.16.1.11", L4, False)


@pytest.mark.parametrize(("name", "cure"), [("tensorrt", "JetPack"), ("tensorrt-rtx", "fourphase[rtx]")])
def test_a_missing_flavour_names_its_source(machine: Machine, name: str, cure: str) -> None:
    machine(NO_GPU)
    with pytest.raises(EnvironmentFault, match="is not installed") as caught:
        load_flavour(name)
    assert caught.value.code == 24
    assert cure in caught.value.hint


def test_a_broken_installation_is_told_from_a_missing_one(machine: Machine) -> None:
    machine(L4, "tensorrt", broken=True)
    with pytest.raises(EnvironmentFault, match="cannot be loaded"):
        load_flavour("tensorrt")


def test_tensorrt_is_not_touched_without_a_gpu(machine: Machine) -> None:
    machine(NO_GPU, "tensorrt", broken=True)
    with pytest.raises(GPUUnavailable, match="no CUDA device") as caught:
        load_flavour("tensorrt")
    assert caught.value.code == 22


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "10.2.0"])
def test_tensorrt_below_the_floor_is_refused(machine: Machine, version: str) -> None:
    machine(L4, "tensorrt", version=version)
    with pytest.raises(EnvironmentFault, match="too old"):
        load_flavour("tensorrt")


@pytest.mark.rtx
def test_the_installed_tensorrt_for_rtx_is_found() -> None:
    found = load_flavour("tensorrt-rtx")
    assert found.is_rtx
    assert found.version.count(".") == 3
