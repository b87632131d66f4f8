"""What the machine of a measurement is: GPU, driver, memory, clocks, CPU, versions. No host name, no path, no user."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from fourphase.benchmarks.guarded_steps import Outcome, Save
from fourphase.benchmarks.latency.sensor_gpu import smi_id
from fourphase.runtime.cuda import pci_bus_id, probe

__all__ = ["describe_machine", "gpu_state"]

_PACKAGES = (
    "fourphase", "torch", "triton", "numpy", "onnx", "onnxscript", "onnxruntime", "openvino", "ray", "SimpleITK",
    "tensorrt", "tensorrt-rtx-cu13",
)  # fmt: skip
_STATE = (
    "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.draw", "power.limit",
    "temperature.gpu",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")
_DEVICE_TREE = Path("/proc/device-tree/model")


def describe_machine(save: Save) -> Outcome:
    """Everything a reader needs to place the numbers; what cannot be read is null."""
    gpu = probe()
    result: dict[str, Any] = {
        "gpu": gpu.device and asdict(gpu.device),
        "gpu_reason": gpu.reason,
        "gpu_state": gpu_state(),
        "cpu": {"name": _cpu_name(), "cores": os.cpu_count(), "usable_cores": len(os.sched_getaffinity(0))},
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    save(result)
    return Outcome("ok", result={**result, "torch": _torch_view()})


def gpu_state() -> dict[str, str] | None:
    """Clocks, power and temperature of the GPU that CUDA uses, as nvidia-smi says them; None where it does not."""
    program, bus = shutil.which("nvidia-smi"), pci_bus_id()
    if program is None or bus is None:
        return None
    command = [program, f"--id={smi_id(bus)}", f"--query-gpu={','.join(_STATE)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(_STATE, (value.strip() for value in answer.strip().split(",")), strict=False))


def _cpu_name() -> str | None:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return None
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return facts.get("model name") or _board_name() or _arm_part(facts)


def _board_name() -> str | None:
    """What an ARM board calls itself, such as "NVIDIA Jetson AGX Orin Developer Kit"."""
    try:
        return _DEVICE_TREE.read_text(encoding="ascii", errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def _arm_part(facts: Mapping[str, str]) -> str | None:
    """On ARM the kernel gives numbers, no name: "CPU 0x41/0xd0c", implementer and part."""
    numbers = [facts.get(name) for name in ("CPU implementer", "CPU part")]
    return f"CPU {numbers[0]}/{numbers[1]}" if all(numbers) else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch_view() -> dict[str, Any]:
    """What torch was built with and what it sees; a version of null where it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return {"version": None}

    view: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "sees_gpu": torch.cuda.is_available(),
    }
    if view["sees_gpu"]:
        properties = torch.cuda.get_device_properties(0)
        view |= {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
        }
    return view
