"""Against sensors made up in a folder, whose energy, clocks and load are known in closed form."""

import math
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fourphase.benchmarks.latency import sensors
from fourphase.benchmarks.latency.sensor_gpu import NvidiaSmi, nvml_probes, smi_id
from fourphase.benchmarks.latency.sensor_sources import Probe, file_probes
from fourphase.benchmarks.latency.sensors import Watched, counted, integrated, watch
from fourphase.runtime import cuda

CORE = min(os.sched_getaffinity(0))


def put(root: Path, name: str, content: object) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n", encoding="ascii")
    return path


def watched(root: Path, during: Callable[[], object] = lambda: None, seconds: float = 0.0) -> Watched:
    with watch(root, interval_s=0.02, gpu=False) as watcher:
        during()
        time.sleep(seconds)
    return watcher.result()


def test_a_counter_that_wraps_goes_on() -> None:
    assert counted([(0, 90.0), (1, 97.0), (2, 4.0), (3, 5.0)], wraps_at=100.0) == pytest.approx(7 + 7 + 1)
    assert counted([(0, 1.0), (1, 2.5)], wraps_at=None) == 1.5
    assert counted([(0, 50.0), (1, 3.0)], wraps_at=None) == 3.0


def test_power_is_integrated_by_trapezoids() -> None:
    """A ramp is exact whatever the steps: 2 t + 1 over [0, 3] is 12."""
    times = (0.0, 0.2, 0.9, 2.0, 3.0)
    assert integrated([(when, 2 * when + 1) for when in times]) == pytest.approx(12)
    assert integrated([(0.0, 4.0), (1.0, 0.0)]) == 2.0


def test_rapl_counts_packages_and_memory_but_no_part_twice(tmp_path: Path) -> None:
    zones = "sys/class/powercap"
    for zone, name, microjoules in (
        ("intel-rapl:0", "package-0", 9_000_000),
        ("intel-rapl:0:0", "core", 1_000_000),
        ("intel-rapl:0:1", "dram", 2_000_000),
    ):
        put(tmp_path, f"{zones}/{zone}/name", name)
        put(tmp_path, f"{zones}/{zone}/energy_uj", microjoules)
        put(tmp_path, f"{zones}/{zone}/max_energy_range_uj", 10_000_000)

    def use() -> None:
        put(tmp_path, f"{zones}/intel-rapl:0/energy_uj", 500_000)  # wrapped: 1 J to the end and 0.5 J
        put(tmp_path, f"{zones}/intel-rapl:0:1/energy_uj", 2_250_000)

    energy = watched(tmp_path, use).energy_j
    assert energy == pytest.approx({"rapl:package-0": 1.5, "rapl:package-0/dram": 0.25})


def test_a_jetsons_rails_are_volts_times_amperes(tmp_path: Path) -> None:
    hwmon = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    for index, rail, millivolts, milliamperes in ((1, "VDD_IN", 20_000, 500), (2, "VDD_SOC", 5_000, 200)):
        put(tmp_path, f"{hwmon}/in{index}_label", rail)
        put(tmp_path, f"{hwmon}/in{index}_input", millivolts)
        put(tmp_path, f"{hwmon}/curr{index}_input", milliamperes)
    put(tmp_path, f"{hwmon}/in7_label", "sum of shunts")  # has no current: left out
    older = "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1"
    put(tmp_path, f"{older}/rail_name_0", "POM_5V_IN")
    put(tmp_path, f"{older}/in_power0_input", 3000)
    found = watched(tmp_path, seconds=0.3)
    assert set(found.energy_j) == {"rail:VDD_IN", "rail:VDD_SOC", "rail:POM_5V_IN"}
    assert found.energy_j["rail:VDD_IN"] == pytest.approx(10 * found.seconds, rel=0.02)
    assert found.energy_j["rail:VDD_SOC"] == pytest.approx(1 * found.seconds, rel=0.02)
    assert found.energy_j["rail:POM_5V_IN"] == pytest.approx(3 * found.seconds, rel=0.02)
    assert found.seconds >= 0.3


def test_the_thread_reads_between_the_ends(tmp_path: Path) -> None:
    zone = put(tmp_path, "sys/class/thermal/thermal_zone0/temp", 40_000)
    put(tmp_path, "sys/class/thermal/thermal_zone0/type", "CPU-therm")

    def peak() -> None:
        zone.write_text("71500")
        time.sleep(0.3)
        zone.write_text("45000")

    assert watched(tmp_path, peak).temperature_c == {"CPU-therm": 71.5}


def test_clocks_are_those_of_the_usable_cores(tmp_path: Path) -> None:
    clock = put(tmp_path, f"sys/devices/system/cpu/cpu{CORE}/cpufreq/scaling_cur_freq", 1_800_000)
    put(tmp_path, "sys/devices/system/cpu/cpu9999/cpufreq/scaling_cur_freq", 9_000_000)
    put(tmp_path, "sys/class/devfreq/17000000.gpu/cur_freq", 612_000_000)
    put(tmp_path, "sys/class/devfreq/15340000.vic/cur_freq", 115_200_000)
    found = watched(tmp_path, lambda: clock.write_text("2400000"))
    assert found.clock_mhz == {"cpu": (1800.0, 2400.0), "gpu": (612.0, 612.0)}


def test_cpuinfos_clock_is_said_to_be_nominal(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\ncpu MHz\t\t: 2300.5\nprocessor\t: 1\ncpu MHz\t\t: 2200\n")
    found = watched(tmp_path)
    assert found.clock_mhz == {"cpu": (2200.0, 2300.5)}
    assert any("nominal" in note for note in found.notes)


def test_throttling_is_a_counter_that_grew(tmp_path: Path) -> None:
    folder = f"sys/devices/system/cpu/cpu{CORE}/thermal_throttle"
    put(tmp_path, f"{folder}/core_throttle_count", 7)
    put(tmp_path, f"{folder}/package_throttle_count", 7)
    put(tmp_path, "sys/class/hwmon/hwmon2/oc1_event_cnt", 0)
    found = watched(tmp_path, lambda: put(tmp_path, f"{folder}/package_throttle_count", 8))
    assert found.throttled == {"cpu-core": False, "cpu-package": True, "over-current:oc1": False}


def test_garbage_and_absence_are_notes_and_no_errors(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", "n/a")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", -256_000)  # Jetson: a sensor that is switched off
    put(tmp_path, "sys/class/thermal/thermal_zone1/temp", "nan")
    put(tmp_path, "proc/stat", "cpu garbage")
    (tmp_path / "sys/class/hwmon/hwmon0/temp1_input").mkdir(parents=True)
    found = watched(tmp_path)
    assert (found.energy_j, found.temperature_c, found.clock_mhz, found.throttled) == ({}, {}, {}, {})
    assert found.busy_elsewhere is None
    said = " ".join(found.notes)
    for word in ("rapl:intel-rapl:0 cannot be read", "energy", "temperature", "clock", "throttling", "/proc/stat"):
        assert word in said
    assert watched(tmp_path / "nowhere").energy_j == {}


def test_a_sensor_that_goes_away_ends_what_is_known_of_it(tmp_path: Path) -> None:
    zone = put(tmp_path, "sys/class/thermal/thermal_zone0/temp", 50_000)
    assert watched(tmp_path, zone.unlink).temperature_c == {"thermal_zone0": 50.0}


def process(root: Path, pid: int, parent: int, *ticks: int, name: str = "a") -> None:
    cells = ["S", parent, *[0] * 9, *ticks, *[0] * 10]
    put(root, f"proc/{pid}/stat", f"{pid} ({name}) " + " ".join(map(str, cells)))


def test_a_family_is_all_descendants_and_those_they_waited_for(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, 100, 10, 20, 2)
    process(tmp_path, 11, 10, 1, 1, 0, 0, name="x) 1 2 (y")
    process(tmp_path, 12, 11, 1000, 0, 0, 0)
    process(tmp_path, 13, 1, 5000, 0, 0, 0)
    put(tmp_path, "proc/14/stat", "14 (cut off")
    assert sensors.family_ticks(tmp_path / "proc", 10) == 132 + 2 + 1000


def test_busy_elsewhere_is_what_is_neither_idle_nor_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 s of two cores: 1 s is ours, 2 s are others' (0.5 s of them steal), the rest is idle or waits."""
    monkeypatch.setattr(sensors, "usable_cores", lambda: [1, 2])
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(sensors, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    hz = os.sysconf("SC_CLK_TCK")

    def counters(one: list[float], two: list[float], own_s: float) -> sensors._CpuTime:
        rows = {"cpu0": [9e4] * 8, "cpu1": one, "cpu2": two}
        lines = [f"{name} {' '.join(str(int(value * hz)) for value in row)} 0 0" for name, row in rows.items()]
        put(tmp_path, "proc/stat", "\n".join(["cpu 0 0 0 0 0 0 0 0 0 0", *lines, "intr 1 2"]))
        process(tmp_path, os.getpid(), 1, int(own_s * hz), 0, 0, 0)
        found = sensors._cpu_time(tmp_path)
        assert found is not None
        return found

    first = counters([5, 0, 0, 5, 5, 0, 0, 0], [0] * 8, own_s=3)
    # user +1, nice +.5, steal +.5 | system +.5, irq +.25, softirq +.25; idle and iowait in between
    last = counters([6, 0.5, 0, 5, 5, 0, 0, 0.5], [0, 0, 0.5, 0.6, 0.4, 0.25, 0.25, 0], own_s=4)
    assert sensors.busy_share(first, last) == pytest.approx(2 / 4, abs=0.01)
    assert sensors.busy_share(first, first.__class__(102.0, first.busy_s, 3.0, 2)) == 0


def test_a_childs_work_is_ours_and_a_strangers_is_not() -> None:
    """The real /proc: this process's child works on one core; counted as ours, little is left for others."""
    code = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.7: pass"
    first = sensors._cpu_time(Path("/"))
    own = subprocess.Popen([sys.executable, "-c", code])
    own.wait()
    last = sensors._cpu_time(Path("/"))
    assert first is not None
    assert last is not None
    assert last.own_s - first.own_s >= 0.7
    assert 0 <= sensors.busy_share(first, last) <= 1


def test_too_short_a_run_tells_nothing_of_others() -> None:
    with watch(gpu=False) as watcher, pytest.raises(RuntimeError):
        watcher.result()
    found = watcher.result()
    assert found.busy_elsewhere is None
    assert any("0.5 s" in note for note in found.notes)


def test_what_was_watched_is_json() -> None:
    import json

    found = Watched(1.0, {"a": 2.0}, {"b": 3.0}, {"cpu": (1.0, 2.0)}, {"cpu": True}, 0.25, ("said",))
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["clock_mhz"] == {"cpu": [1.0, 2.0]}
    assert json.loads(text)["notes"] == ["said"]


class FakeNvml(SimpleNamespace):
    """NVML's calls, by their documented units: mJ, mW, Celsius, MHz, a bit mask."""

    class NVMLError(Exception): ...


BUS = "0000:65:00.0"


def fake_nvml(millijoules: list[int], reasons: int) -> FakeNvml:
    """The GPU at BUS."""

    def handle(bus: str) -> object:
        if bus != BUS:
            raise FakeNvml.NVMLError
        return bus

    def energy(_: object) -> int:
        if not millijoules:
            raise FakeNvml.NVMLError
        return millijoules.pop(0) if len(millijoules) > 1 else millijoules[0]

    return FakeNvml(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId=handle,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=energy,
        nvmlDeviceGetPowerUsage=lambda _: 70_000,
        nvmlDeviceGetTemperature=lambda _, sensor: {0: 55}[sensor],
        nvmlDeviceGetClockInfo=lambda _, clock: {1: 1410}[clock],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: reasons,
    )


def read(probes: list[Probe]) -> dict[str, float]:
    return {probe.kind: probe.read()[0] for probe in probes}


def test_nvml_counts_energy_or_integrates_power() -> None:
    idle, thermal = 0x1, 0x41
    counting = nvml_probes(fake_nvml([5000, 7500], idle), BUS)
    assert read(counting) == {"counter": 7.5, "temperature": 55, "clock": 1410, "flag": 0}
    older = nvml_probes(fake_nvml([], thermal), BUS)
    assert read(older) == {"power": 70.0, "temperature": 55, "clock": 1410, "flag": 1}


def test_no_driver_is_no_sensor() -> None:
    nvml = fake_nvml([1], 0)

    def refuse() -> None:
        raise FakeNvml.NVMLError

    nvml.nvmlInit = refuse
    assert nvml_probes(nvml, BUS) == []


def program(path: Path, *lines: str) -> str:
    body = "".join(f"echo '{line}'\n" for line in lines)
    path.write_text(f"#!/bin/sh\n{body}exec sleep 20\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_nvidia_smi_reports_until_it_is_closed(tmp_path: Path) -> None:
    smi = NvidiaSmi(BUS, program(tmp_path / "smi", "63.40, 41, 1980, 0x0000000000000020"))
    assert read(smi.probes()) == {"power": 63.4, "temperature": 41, "clock": 1980, "flag": 1}
    smi.close()
    tegra = NvidiaSmi(BUS, program(tmp_path / "tegra", "[N/A], [N/A], 1300, [N/A]"))
    assert read(tegra.probes()) == {"clock": 1300}
    tegra.close()
    silent = NvidiaSmi(BUS, program(tmp_path / "silent"))
    assert silent.probes(wait_s=0.1) == []
    silent.close()


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    power = put(tmp_path, "sys/bus/i2c/drivers/ina3221x/0/iio:device0/in_power0_input", 1000)
    put(tmp_path, "sys/bus/i2c/drivers/ina3221x/0/iio:device0/rail_name_0", "R")
    found = watched(tmp_path, lambda: power.write_text("inf"))
    assert all(math.isfinite(value) for value in found.energy_j.values())
    assert file_probes(tmp_path)[0][0].read() == (math.inf,)


def test_what_comes_before_is_between_opening_and_the_first_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def read() -> tuple[float, ...]:
        events.append("read")
        return (1.0,)

    def opened() -> tuple[list[Probe], Callable[[], None], tuple[str, ...]]:
        events.append("open")
        return [Probe("power", "gpu", read)], lambda: events.append("close"), ()

    monkeypatch.setattr(sensors, "_gpu_probes", opened)
    with watch(tmp_path, interval_s=9, before=lambda: events.append("before")):
        events.append("inside")
    assert events == ["open", "before", "read", "inside", "read", "close"]
    events.clear()
    with pytest.raises(ZeroDivisionError), watch(tmp_path, before=lambda: 1 / 0):
        pytest.fail("nothing is watched")
    assert events == ["open", "close"]


def test_the_gpu_that_cuda_uses_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES=1: the first of CUDA's is not NVML's and nvidia-smi's number 0."""
    monkeypatch.setattr(cuda, "pci_bus_id", lambda: BUS)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([5000], 0))
    probes, _, notes = sensors._gpu_probes()
    assert (read(probes)["temperature"], notes) == (55, ())
    monkeypatch.setitem(sys.modules, "pynvml", None)
    body = f'case "$*" in *--id={BUS}*) echo "80.5, 41, 1980, 0x0";; esac\nexec sleep 20\n'
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{body}")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    probes, close, notes = sensors._gpu_probes()
    assert read(probes)["power"] == 80.5
    assert "read through nvidia-smi" in notes[0]
    close()
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([5000], 0))
    monkeypatch.setattr(cuda, "pci_bus_id", lambda: "0000:17:00.0")
    assert sensors._gpu_probes()[0::2] == ([], ("gpu: NVML finds none at 0000:17:00.0",))
    # An integrated one sits on no bus and is the only one.
    monkeypatch.setattr(cuda, "pci_bus_id", lambda: cuda.INTEGRATED)
    assert read(sensors._gpu_probes()[0])["temperature"] == 55
    assert (smi_id(cuda.INTEGRATED), smi_id(BUS)) == ("0", BUS)
    # Without a device of CUDA's no GPU is measured, and none is watched.
    monkeypatch.setattr(cuda, "pci_bus_id", lambda: None)
    assert sensors._gpu_probes()[0] == []
    found = cuda.Probe(cuda.Device("L4", "8.9", "13.0", None), "CUDA device L4")
    monkeypatch.setattr(cuda, "probe", lambda: found)
    assert sensors._gpu_probes()[0::2] == ([], ("gpu: the driver does not say where the GPU sits",))


def test_nvidia_smi_is_asked_for_the_power_of_the_moment_first(tmp_path: Path) -> None:
    smi = NvidiaSmi(BUS, program(tmp_path / "smi", "80.5, 63.40, 41, 1980, 0x0"))
    assert read(smi.probes())["power"] == 80.5
    smi.close()
    average_alone = NvidiaSmi(BUS, program(tmp_path / "average", "[N/A], 63.40, 41, 1980, 0x0"))
    assert read(average_alone.probes())["power"] == 63.4
    average_alone.close()


def test_a_driver_that_knows_no_power_of_the_moment_is_asked_again(tmp_path: Path) -> None:
    old = tmp_path / "old"
    program(old, "63.40, 41, 1980, 0x0")
    refusal = 'case "$*" in *instant*) echo "Field power.draw.instant is not a valid field to query."; exit 2;; esac\n'
    old.write_text(old.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{refusal}"))
    smi = NvidiaSmi(BUS, str(old))
    assert read(smi.probes()) == {"power": 63.4, "temperature": 41, "clock": 1980, "flag": 0}
    smi.close()
    broken = tmp_path / "broken"
    program(broken)
    broken.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert NvidiaSmi(BUS, str(broken)).probes() == []
    assert NvidiaSmi(BUS, str(tmp_path / "absent")).probes() == []
