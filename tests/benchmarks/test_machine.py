"""The machine's description: what nvidia-smi says, and nothing that names the machine."""

from __future__ import annotations

import getpass
import json
import platform
import sys
from pathlib import Path

import pytest

from fourphase.benchmarks import machine
from fourphase.benchmarks.machine import describe_machine, gpu_state

SMI = """#!/bin/sh
case "$*" in
  *--id=0000:65:00.0*clocks.sm,clocks.max.sm*noheader*) ;;
  *) exit 9 ;;
esac
echo "P0, 1755 MHz, 1980 MHz, 2619 MHz, 2619 MHz, 118.90 W, 700.00 W, 33"
"""


def fake_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, bus: str | None = "0000:65:00.0") -> None:
    program = folder / "nvidia-smi"
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(machine, "pci_bus_id", lambda: bus)


def test_the_gpus_state_is_nvidia_smis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, monkeypatch, SMI)
    state = gpu_state()
    assert state is not None
    assert (state["pstate"], state["clocks.sm"], state["clocks.max.sm"]) == ("P0", "1755 MHz", "1980 MHz")
    assert (state["power.draw"], state["temperature.gpu"]) == ("118.90 W", "33")


def test_an_nvidia_smi_that_fails_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, monkeypatch, "#!/bin/sh\nexit 9\n")
    assert gpu_state() is None


def test_a_gpu_that_cuda_does_not_use_has_no_state_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, monkeypatch, SMI, bus=None)
    assert gpu_state() is None


def test_nothing_names_the_machine() -> None:
    result = describe_machine(lambda result: None).result
    text = json.dumps(result)
    assert result["torch"]["version"]
    assert result["cpu"]["usable_cores"] >= 1
    assert result["memory_bytes"] > 1 << 28
    for private in (platform.node(), str(Path.home()), f'"{getpass.getuser()}"'):
        assert private not in text


def test_without_torch_everything_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = describe_machine(lambda result: None).result
    assert result["torch"] == {"version": None}
    assert result["cpu"]["usable_cores"] >= 1


@pytest.mark.parametrize(
    ("cpuinfo", "board", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\nprocessor\t: 1\nmodel name\t: other\n", "a board", "AMD EPYC"),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n", "NVIDIA Jetson AGX Orin\0", None),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\nCPU part\t: 0xd4f\n", "", "CPU 0x41/0xd0c"),
        ("processor\t: 0\n", "", ""),
    ],
)
def test_a_cpu_is_named_by_what_the_kernel_says(
    cpuinfo: str, board: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ARM kernels give a board's name, or numbers alone (0x41/0xd0c is Arm's Neoverse N1)."""
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    if board:
        (tmp_path / "model").write_text(board)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "_DEVICE_TREE", tmp_path / "model")
    assert machine._cpu_name() == ("NVIDIA Jetson AGX Orin" if name is None else name or None)
