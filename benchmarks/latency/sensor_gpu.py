"""One NVIDIA GPU's sensors: by NVML where `nvidia-ml-py` is installed, else by an nvidia-smi that reports on.

Which GPU is said by its PCI bus id (`runtime.cuda.pci_bus_id`): NVML has numbers of its own for them. A value that the
card or its driver does not give is left out, never an error. Jetson's GPU is read from files.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from fourphase.benchmarks.latency.sensor_sources import Probe
from fourphase.runtime.cuda import INTEGRATED

__all__ = ["NvidiaSmi", "nvml_probes", "smi_id"]

#: NVML's clocks event reasons that slow the GPU down against the user's will: software power cap, hardware slowdown,
#: software and hardware thermal slowdown, power brake. (Not: idle, clocks set by the user, sync boost, display.)
_SLOWED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
_SMI_REST = "temperature.gpu,clocks.sm,clocks_event_reasons.active"
#: power.draw alone is the average of the last second on most GPUs; older drivers know nothing else.
_SMI_POWERS = ("power.draw.instant,power.draw", "power.draw")
_SMI_FORM = ("--format=csv,noheader,nounits", "-lms", "200")
#: NVML_TEMPERATURE_GPU and NVML_CLOCK_SM.
_CORE, _SM_CLOCK = 0, 1


def nvml_probes(nvml: Any, bus: str) -> list[Probe]:
    """A GPU's sensors through NVML; none if the driver does not answer, or knows no such GPU.

    Args:
        nvml: the module `pynvml` of nvidia-ml-py.
        bus: the GPU's PCI bus id.
    """
    try:
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByIndex(0) if bus == INTEGRATED else nvml.nvmlDeviceGetHandleByPciBusId(bus)
    except nvml.NVMLError:
        return []
    reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None) or (
        nvml.nvmlDeviceGetCurrentClocksThrottleReasons
    )
    found = [
        Probe("counter", "gpu", _asked(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) * 1e-3)),
        Probe("power", "gpu", _asked(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(gpu) * 1e-3)),
        Probe("temperature", "gpu", _asked(nvml, lambda: nvml.nvmlDeviceGetTemperature(gpu, _CORE))),
        Probe("clock", "gpu", _asked(nvml, lambda: nvml.nvmlDeviceGetClockInfo(gpu, _SM_CLOCK))),
        Probe("flag", "gpu", _asked(nvml, lambda: bool(reasons(gpu) & _SLOWED))),
    ]
    readable = [probe for probe in found if probe.read()]
    # GPUs before Volta count no energy: there it is integrated from power.
    counted = any(probe.kind == "counter" for probe in readable)
    return [probe for probe in readable if not (counted and probe.kind == "power")]


def _asked(nvml: Any, ask: Callable[[], float]) -> Callable[[], Sequence[float]]:
    def read() -> Sequence[float]:
        try:
            return (float(ask()),)
        except nvml.NVMLError:
            return ()

    return read


def smi_id(bus: str) -> str:
    """What nvidia-smi's --id takes for the GPU at a PCI bus id; an integrated one is the only one there is."""
    return "0" if bus == INTEGRATED else bus


class NvidiaSmi:
    """One nvidia-smi that reports the GPU at a PCI bus id five times a second until closed; its latest line counts."""

    def __init__(self, bus: str, program: str | None = None) -> None:
        self._id = smi_id(bus)
        self._latest: tuple[float | None, ...] = (None,) * 4
        self._first = threading.Event()
        self._lock, self._closed = threading.Lock(), False
        self._process: subprocess.Popen[str] | None = None
        self._path = program or shutil.which("nvidia-smi")
        if self._path is not None:
            threading.Thread(target=self._ask, args=(self._path,), daemon=True).start()

    def probes(self, wait_s: float = 5.0) -> list[Probe]:
        """What it reports, once its first line is there."""
        if self._path is None or not self._first.wait(wait_s):
            return []
        kinds = ("power", "temperature", "clock", "flag")
        found = [Probe(kind, "gpu", lambda place=place: self._value(place)) for place, kind in enumerate(kinds)]  # type: ignore[misc]
        return [probe for probe in found if probe.read()]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def _value(self, place: int) -> Sequence[float]:
        value = self._latest[place]
        return () if value is None else (value,)

    def _ask(self, path: str) -> None:
        """Asks for the power of the moment; a driver that has never heard of it, for the average of a second."""
        for powers in _SMI_POWERS:
            process = self._started([path, f"--id={self._id}", f"--query-gpu={powers},{_SMI_REST}", *_SMI_FORM])
            if process is None or self._follow(process):
                break
        self._first.set()

    def _started(self, command: Sequence[str]) -> subprocess.Popen[str] | None:
        with self._lock, suppress(OSError):
            if not self._closed:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
                return self._process
        return None

    def _follow(self, process: subprocess.Popen[str]) -> bool:
        """Reads it to its end; whether it reported anything."""
        assert process.stdout is not None
        reported = False
        with process.stdout as lines:
            for line in lines:
                cells = [cell.strip() for cell in line.split(",")]
                if len(cells) in (4, 5):
                    *powers, temperature, clock, reasons = cells
                    power = next((value for value in map(_float, powers) if value is not None), None)
                    self._latest = (power, _float(temperature), _float(clock), _slowed(reasons))
                    self._first.set()
                    reported = True
        process.wait()
        return reported


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # "[N/A]"


def _slowed(text: str) -> float | None:
    try:
        return float(bool(int(text, 16) & _SLOWED))
    except ValueError:
        return None
