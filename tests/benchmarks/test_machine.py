"""The machine's description: what nvidia-smi says, and nothing that names the machine."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import pytest

from fourphase.benchmarks.machine import describe_machine, gpu_state

SMI = """#!/bin/sh
case "$*" in
  *--id=0*clocks.sm,clocks.max.sm*noheader*) ;;
  *) exit 9 ;;
esac
echo "P0, 1755 MHz, 1980 MHz, 2619 MHz, 2619 MHz, 118.90 W, 700.00 W, 33"
"""


def fake_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_the_gpus_state_is_nvidia_smis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, monkeypatch, SMI)
    state = gpu_state()
    assert state is not None
    assert (state["pstate"], state["clocks.sm"], state["clocks.max.sm"]) == ("P0", "1755 MHz", "1980 MHz")
    assert (state["power.draw"], state["temperature.gpu"]) == ("118.90 W", "33")


def test_an_nvidia_smi_that_fails_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, monkeypatch, "#!/bin/sh\nexit 9\n")
    assert gpu_state() is None


def test_nothing_names_the_machine() -> None:
    result = describe_machine(lambda result: None).result
    text = json.dumps(result)
    assert result["torch"]["version"]
    assert result["cpu"]["usable_cores"] >= 1
    assert result["memory_bytes"] > 1 << 28
    for private in (platform.node(), str(Path.home()), f'"{getpass.getuser()}"'):
        assert private not in text
