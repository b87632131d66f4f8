"""Whether this machine has a CUDA device, asked of the driver library alone.

It creates no TensorRT object (without a device that can crash) and no CUDA context, and needs no package.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["INTEGRATED", "Device", "Probe", "pci_bus_id", "probe"]

_LIBRARY = "libcuda.so.1"
_DRIVER_VERSION = Path("/sys/module/nvidia/version")
#: CUdevice_attribute numbers (CUDA driver API).
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
#: What CUDA says of an integrated GPU, which sits on no PCI bus.
INTEGRATED = "0000:00:00.0"
#: More than "0000:65:00.0" and its end need.
_BUS_ID_BYTES = 32


@dataclass(frozen=True)
class Device:
    """The first CUDA device.

    Attributes:
        name: as the driver says it, "NVIDIA L4".
        compute_capability: "8.9".
        cuda: the newest CUDA version the driver supports, "13.0".
        driver: the kernel driver's version, None where it is not told (Jetson).
    """

    name: str
    compute_capability: str
    cuda: str
    driver: str | None


@dataclass(frozen=True)
class Probe:
    """A device, or None and the reason: "no CUDA device (...)"."""

    device: Device | None
    reason: str


def probe() -> Probe:
    """Asks the driver for its first device; never raises."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return Probe(None, "no CUDA device (no NVIDIA driver)")
    count = ctypes.c_int(0)
    status = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        return Probe(None, f"no CUDA device (the driver answers {status})" if status else "no CUDA device")
    device = _first_device(library)
    return Probe(device, f"CUDA device {device.name}, compute capability {device.compute_capability}")


def pci_bus_id() -> str | None:
    """Where the first CUDA device sits, "0000:65:00.0"; None without one. Never raises.

    NVML and nvidia-smi number the machine's GPUs themselves, whatever CUDA_VISIBLE_DEVICES says; by this they know it.
    """
    if probe().device is None:
        return None
    library = ctypes.CDLL(_LIBRARY)
    handle, name = ctypes.c_int(0), ctypes.create_string_buffer(_BUS_ID_BYTES)
    status = library.cuDeviceGet(ctypes.byref(handle), 0) or library.cuDeviceGetPCIBusId(name, len(name), handle)
    return None if status != 0 else name.value.decode("ascii", errors="replace") or None


def _first_device(library: Any) -> Device:
    handle, version, major, minor = (ctypes.c_int(0) for _ in range(4))
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(handle), 0)
    library.cuDeviceGetName(name, len(name), handle)
    library.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, handle)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, handle)
    library.cuDriverGetVersion(ctypes.byref(version))
    return Device(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        driver=_kernel_driver(),
    )


def _kernel_driver() -> str | None:
    try:
        return _DRIVER_VERSION.read_text().strip() or None
    except OSError:
        return None
