from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from fourphase.runtime import cuda


class FakeDriver:
    """libcuda with one L4, or with `devices` none, or answering `status`."""

    bus_status = 0

    def __init__(self, *, status: int = 0, devices: int = 1) -> None:
        self.status, self.devices = status, devices

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return 0

    def cuDeviceGet(self, handle: Any, ordinal: int) -> int:
        handle._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name: Any, length: int, handle: Any) -> int:
        name.value = b"NVIDIA L4"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: Any) -> int:
        value._obj.value = {75: 8, 76: 9}[attribute]  # cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        return 0

    def cuDeviceGetPCIBusId(self, name: Any, length: int, handle: Any) -> int:
        assert length >= len(b"0000:65:00.0") + 1
        name.value = b"0000:65:00.0"
        return self.bus_status

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13020
        return 0


def test_a_machine_without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_LIBRARY", "libno-such-driver.so.1")
    assert cuda.probe() == cuda.Probe(None, "no CUDA device (no NVIDIA driver)")


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (FakeDriver(devices=0), "no CUDA device"),
        (FakeDriver(status=100), "no CUDA device (the driver answers 100)"),
    ],
)
def test_a_driver_without_device(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, reason: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert cuda.probe() == cuda.Probe(None, reason)


def test_a_device_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("580.65.06\n")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    monkeypatch.setattr(cuda, "_DRIVER_VERSION", version)
    found = cuda.probe()
    assert found.device == cuda.Device("NVIDIA L4", "8.9", cuda="13.2", driver="580.65.06")
    assert found.reason == "CUDA device NVIDIA L4, compute capability 8.9"


def test_a_driver_that_does_not_tell_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver())
    monkeypatch.setattr(cuda, "_DRIVER_VERSION", tmp_path / "absent")
    device = cuda.probe().device
    assert device is not None
    assert device.driver is None


@pytest.mark.gpu
def test_the_real_device_has_a_name() -> None:
    device = cuda.probe().device
    assert device is not None
    assert device.name
    assert float(device.compute_capability) >= 5


def test_a_device_is_named_by_where_it_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert cuda.pci_bus_id() == "0000:65:00.0"
    driver.bus_status = 101
    assert cuda.pci_bus_id() is None
    driver.devices = 0
    assert cuda.pci_bus_id() is None
