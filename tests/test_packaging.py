"""The wheel holds every module of the tree, and the run time works where neither torch nor onnx is installed."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("export", "engine", "runtime", "calibration", "benchmarks")
#: Which rooms a room may import: arrows point one way.
ALLOWED = {
    "runtime": {"runtime"},
    "calibration": {"runtime", "calibration"},
    "engine": {"runtime", "engine"},
    "export": {"runtime", "calibration", "engine", "export"},
    "benchmarks": set(ROOMS),
}


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms_point_one_way(room: str) -> None:
    for path in modules(room):
        for name in imports(path):
            if name.startswith("fourphase."):
                assert name.split(".")[1] in ALLOWED[room], f"{path.name} imports {name}"


def test_the_run_time_imports_no_torch_and_no_onnx() -> None:
    for path in modules("runtime"):
        assert {name.split(".")[0] for name in imports(path)}.isdisjoint({"torch", "onnx", "onnx_ir", "onnxscript"})


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_lists_its_public_names(room: str) -> None:
    import importlib

    for path in modules(room):
        if path.name == "__init__.py":
            continue
        module = importlib.import_module(".".join(["fourphase", *path.relative_to(ROOT).with_suffix("").parts]))
        assert module.__doc__, path.name
        for name in module.__all__:
            assert hasattr(module, name), f"{path.name}: {name}"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    tree = {f"fourphase/{path.relative_to(ROOT).as_posix()}" for room in ROOMS for path in modules(room)}
    data = {f"fourphase/{room}/py.typed" for room in ROOMS}
    data |= {f"fourphase/runtime/{name}" for name in ("sampling_kernel.h", "sampling_kernel.cu")}
    assert packed == tree | data


PROBE = """
import importlib, pkgutil, sys, time
import fourphase.runtime
heavy = {"torch", "onnx", "onnxruntime", "scipy"}
loaded = heavy & set(sys.modules)
assert not loaded, f"import fourphase.runtime loads {loaded}"
for module in pkgutil.walk_packages(fourphase.runtime.__path__, "fourphase.runtime."):
    importlib.import_module(module.name)
loaded = {"torch", "onnx", "onnxruntime"} & set(sys.modules)
assert not loaded, f"the run time's modules load {loaded}"
for absent in ("torch", "onnx", "safetensors"):
    try:
        importlib.import_module(absent)
    except ImportError:
        continue
    raise AssertionError(f"{absent} is installed: this environment proves nothing")
print("modules imported")
"""


@pytest.fixture(scope="session")
def lean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel and its run time dependencies, nothing else."""
    folder = tmp_path_factory.mktemp("lean")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *constraints, str(wheel)], check=True)
    return python


@pytest.mark.slow
def test_every_run_time_module_imports_without_torch_and_onnx(lean_python: Path) -> None:
    outcome = subprocess.run([str(lean_python), "-c", PROBE], capture_output=True, text=True, cwd="/", check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == "modules imported\n"


@pytest.mark.slow
def test_fp_run_answers_without_torch_and_names_the_extra_for_the_rest(lean_python: Path) -> None:
    folder = lean_python.parent
    helped = subprocess.run([str(folder / "fp-run"), "--help"], capture_output=True, text=True, check=False)
    assert helped.returncode == 0
    assert "STUDY_DIR" in helped.stdout
    exported = subprocess.run(
        [str(folder / "fp-export"), "onnx", "m.safetensors", "-o", "m.onnx"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert exported.returncode == 24
    assert "fourphase[export]" in exported.stderr
    assert "Traceback" not in exported.stderr
