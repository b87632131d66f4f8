"""What leaves the machine: paths become names, also where nobody has a home; one function for every report."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fourphase.benchmarks.places import cleaned, machine_places, readable


def test_paths_are_named_and_floats_are_short() -> None:
    value = {"text": ["in /home/me/kit/a.onnx and /home/me/b"], "ms": 1.23456789, "bytes": 123456789, "none": None}
    assert readable(value, {"/home/me": "<home>", "/home/me/kit": "<kit>"}) == {
        "text": ["in <kit>/a.onnx and <home>/b"],
        "ms": 1.23457,
        "bytes": 123456789,
        "none": None,
    }


def test_this_machines_places_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cleaned(f"{tmp_path}/x and {sys.prefix}/y") == "<cwd>/x and <python>/y"
    assert cleaned([str(Path(__file__)), 1, None]) == ["<project>/tests/benchmarks/test_places.py", 1, None]


def test_a_user_without_a_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    places = machine_places()
    assert "<home>" not in places.values()
    assert "" not in places
    assert cleaned(f"{tempfile.gettempdir()}/x") == "<tmp>/x"


def test_it_needs_no_torch() -> None:
    code = "import sys; import fourphase.benchmarks.places; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
