"""The sensors of a machine that can be read as files: what each is and how it is read once.

RAPL and thermal counters of x86, INA3221 rails and over-current counters of Jetson, thermal zones, clocks. A sensor
that is not there or says nonsense is left out, never an error. NVIDIA's cards are `sensor_gpu`'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KINDS", "Probe", "file_probes", "usable_cores"]

#: counter: joules that only grow; power: watts; temperature: Celsius; clock: MHz, one value per core; count: throttling
#: events so far; flag: 1 while throttled.
KINDS = ("counter", "power", "temperature", "clock", "count", "flag")
#: Below this a Celsius value is that of a sensor that is switched off.
_COLDEST = -50.0
#: Zones inside another zone are part of it, but memory's is not.
_RAPL_NESTED = "dram"
#: Drivers of the temperature sensors inside CPUs.
_CPU_HWMON = ("coretemp", "k10temp", "zenpower")
#: Names of Jetson's GPU among the devices that change their frequency.
_JETSON_GPU = re.compile(r"gpu|gp10b|gv11b|ga10b|gb10b")


@dataclass(frozen=True, eq=False)
class Probe:
    """One sensor.

    Attributes:
        kind: one of KINDS.
        name: what a reader sees ("rapl:package-0", "rail:VDD_IN", "gpu").
        read: the values now, none if they cannot be read.
        wraps_at: joules at which a counter starts again at 0.
    """

    kind: str
    name: str
    read: Callable[[], Sequence[float]]
    wraps_at: float | None = None


def usable_cores() -> list[int]:
    """The processors that this process may run on, by number."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def file_probes(root: Path) -> tuple[list[Probe], list[str]]:
    """Every sensor below `root` ("/", or a copy of its sys and proc) that can be read, and notes on those that cannot.

    Never raises.
    """
    notes: list[str] = []
    found = [*_rapl(root), *_rails(root), *_temperatures(root), *_clocks(root, notes), *_throttling(root)]
    readable = [probe for probe in found if probe.read()]
    closed = [probe.name for probe in found if probe not in readable and probe.kind in ("counter", "power")]
    if closed:
        notes.append(f"energy: {', '.join(closed)} cannot be read (RAPL needs root)")
    return readable, notes


def _number(path: Path) -> float | None:
    """The number that a file holds; None if there is none."""
    try:
        return float(path.read_text(encoding="ascii", errors="replace"))
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _scaled(path: Path, scale: float, least: float = 0.0) -> Callable[[], Sequence[float]]:
    """Reads a file's number times `scale`; nothing if it is below `least`."""

    def read() -> Sequence[float]:
        value = _number(path)
        return () if value is None or not value * scale >= least else (value * scale,)

    return read


def _rapl(root: Path) -> Iterator[Probe]:
    """https://docs.kernel.org/power/powercap/powercap.html: energy_uj wraps at max_energy_range_uj."""
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name, nested = _text(zone / "name") or zone.name, zone.name.count(":") > 1
        if nested and name != _RAPL_NESTED:
            continue
        if nested:
            outer = zone.name.rpartition(":")[0]
            name = f"{_text(zone.parent / outer / 'name') or outer}/{name}"
        most = _number(zone / "max_energy_range_uj")
        yield Probe("counter", f"rapl:{name}", _scaled(zone / "energy_uj", 1e-6), most and most * 1e-6)


def _rails(root: Path) -> Iterator[Probe]:
    """Jetson's power monitor: millivolts and milliamperes per rail, or microwatts (hwmon); milliwatts (iio, older)."""
    drivers = root / "sys/bus/i2c/drivers"
    for folder in sorted(drivers.glob("ina3221*/*/hwmon/hwmon*")):
        for label in sorted(folder.glob("in*_label")):
            index = label.name[2 : -len("_label")]
            if (folder / f"power{index}_input").exists():
                yield Probe("power", f"rail:{_text(label)}", _scaled(folder / f"power{index}_input", 1e-6))
            elif (folder / f"curr{index}_input").exists():
                yield Probe("power", f"rail:{_text(label)}", _product(folder, index))
    for label in sorted(drivers.glob("ina3221*/*/iio:device*/rail_name_*")):
        source = label.with_name(f"in_power{label.name.rpartition('_')[2]}_input")
        yield Probe("power", f"rail:{_text(label)}", _scaled(source, 1e-3))


def _product(folder: Path, index: str) -> Callable[[], Sequence[float]]:
    """Watts of a channel."""

    def read() -> Sequence[float]:
        millivolts, milliamperes = _number(folder / f"in{index}_input"), _number(folder / f"curr{index}_input")
        return () if millivolts is None or milliamperes is None else (millivolts * milliamperes * 1e-6,)

    return read


def _temperatures(root: Path) -> Iterator[Probe]:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        yield Probe("temperature", _text(zone / "type") or zone.name, _scaled(zone / "temp", 1e-3, _COLDEST))
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if (name := _text(folder / "name")) in _CPU_HWMON:
            yield Probe("temperature", f"{name}:{folder.name}", _scaled(folder / "temp1_input", 1e-3, _COLDEST))


def _clocks(root: Path, notes: list[str]) -> Iterator[Probe]:
    """Of the usable cores; /proc/cpuinfo where the kernel tells no frequencies, as in most virtual machines."""
    files = [root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq" for core in usable_cores()]
    present = [file for file in files if _number(file) is not None]
    if present:
        yield Probe("clock", "cpu", lambda: [value * 1e-3 for file in present if (value := _number(file))])
    elif _cpuinfo_mhz(root):
        notes.append("clock: of the CPU from /proc/cpuinfo, which in a virtual machine is its nominal value")
        yield Probe("clock", "cpu", lambda: _cpuinfo_mhz(root))
    for device in sorted((root / "sys/class/devfreq").glob("*")):
        if _JETSON_GPU.search(device.name):
            yield Probe("clock", "gpu", _scaled(device / "cur_freq", 1e-6))


def _cpuinfo_mhz(root: Path) -> Sequence[float]:
    return [float(text) for text in re.findall(r"^cpu MHz\s*:\s*(\d+\.?\d*)", _text(root / "proc/cpuinfo"), re.M)]


def _throttling(root: Path) -> Iterator[Probe]:
    cores = [root / f"sys/devices/system/cpu/cpu{core}/thermal_throttle" for core in usable_cores()]
    for what in ("core", "package"):
        files = [folder / f"{what}_throttle_count" for folder in cores]
        if any(file.exists() for file in files):
            yield Probe("count", f"cpu-{what}", lambda files=files: _total(files))  # type: ignore[misc]
    for file in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        yield Probe("count", f"over-current:{file.name.partition('_')[0]}", _scaled(file, 1))


def _total(files: Sequence[Path]) -> Sequence[float]:
    values = [value for file in files if (value := _number(file)) is not None]
    return (sum(values),) if values else ()
