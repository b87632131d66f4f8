"""fp-doctor as a command: on this machine, in a bare environment, and on machines that are pretended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from fourphase.runtime import doctor_cli
from fourphase.runtime.doctor_types import SECTIONS, STATUSES, Backend, Check, Facts, Gpu, Module

BASE = Facts(
    gpu_reason="no CUDA device",
    modules={"onnxruntime": Module("1.32.0")},
    backends=(Backend("onnxruntime", True, True),),
    target=("none", "TensorRT is not installed"),
)


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fourphase.runtime.doctor_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=300)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """pretend(facts, "--json") -> (exit code, stdout, stderr) of the command on such a machine."""

    def command(facts: Facts, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("fourphase.runtime.doctor_facts.collect", lambda: facts)
        monkeypatch.setattr(sys, "argv", ["fp-doctor", *arguments])
        with pytest.raises(SystemExit) as caught:
            doctor_cli.main()
        shown = capsys.readouterr()
        return int(caught.value.code or 0), shown.out, shown.err

    return command


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """--json with an empty PATH, no HOME and no locale."""
    return run("--json", env={"PATH": "", "TMPDIR": str(tmp_path_factory.mktemp("tmp"))})


def test_this_machine_is_fit_and_the_json_holds_the_schema(bare: subprocess.CompletedProcess[str]) -> None:
    assert bare.stderr == ""
    assert bare.returncode == 0
    body = json.loads(bare.stdout)
    assert list(body) == ["schema", "facts", "checks", "verdict"]
    assert body["schema"] == "fourphase.doctor/1"
    assert list(body["facts"]) == [field.name for field in fields(Facts)]
    assert body["facts"]["unknown"] == {}
    for check in body["checks"]:
        assert list(check) == [field.name for field in fields(Check)]
        assert all(isinstance(value, str) for value in check.values())
        assert check["section"] in SECTIONS
        assert check["status"] in STATUSES
    assert list(body["verdict"]) == ["fp_run", "build_engine", "code"]
    assert body["verdict"]["code"] == 0


def test_the_facts_are_those_of_this_machine(bare: subprocess.CompletedProcess[str]) -> None:
    import numpy

    facts = json.loads(bare.stdout)["facts"]
    assert facts["modules"]["numpy"]["version"] == numpy.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {backend["name"] for backend in facts["backends"] if backend["built"]} >= {"onnxruntime", "openvino"}
    assert len(facts["decoders"]) == 4


def test_no_name_and_no_folder_is_told(bare: subprocess.CompletedProcess[str]) -> None:
    root = str(Path(doctor_cli.__file__).parents[1])
    for secret in (os.path.expanduser("~"), root, sys.prefix, os.uname().nodename):
        assert len(secret) < 3 or secret not in bare.stdout


def test_twice_gives_the_same_but_for_the_free_space(bare: subprocess.CompletedProcess[str]) -> None:
    def stable(text: str) -> dict[str, Any]:
        body = json.loads(text)
        body["checks"] = [check for check in body["checks"] if "disk" not in check["key"]]
        del body["facts"]["disks"]
        return dict(body)

    again = run("--json")
    assert stable(again.stdout) == stable(bare.stdout)
    assert list(json.loads(again.stdout)["facts"]["modules"]) == list(json.loads(bare.stdout)["facts"]["modules"])


def test_a_log_has_eighty_columns_and_every_section() -> None:
    done = run(env={"PATH": "", "COLUMNS": "300"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.stdout
    for title in ("Machine", "GPU", "TensorRT", "Backends of fp-run", "Decoders", "Packages"):
        assert title in lines
    assert "fp-run would use onnxruntime on the CPU" in " ".join(done.stdout.split())


def test_a_machine_in_order(pretend: Any) -> None:
    code, out, err = pretend(BASE)
    assert (code, err) == (0, "")
    assert "Verdict: nothing in the way" in out
    assert "fp-run would use onnxruntime on the CPU: no CUDA device.\n" in out


def test_quiet_leaves_only_what_matters(pretend: Any) -> None:
    facts = replace(BASE, distributions={"onnxruntime": "1", "onnxruntime-gpu": "1"})
    code, out, err = pretend(facts, "--quiet")
    assert (code, err) == (0, "")
    assert "overwrite each other" in out
    assert "Machine" not in out
    assert "Verdict: 1 warning\n" in out
    assert "Machine" in pretend(facts)[1]


def test_a_known_bad_version_ends_with_24_and_a_cure(pretend: Any) -> None:
    thor = replace(
        BASE,
        gpu=Gpu("NVIDIA Thor", "11.0"),
        modules={**BASE.modules, "tensorrt": Module("10.13.3.9")},
        target=("tensorrt", "TensorRT is installed"),
    )
    code, out, err = pretend(thor)
    assert code == 24
    assert "Verdict: 1 problem" in out
    first, second = err.splitlines()
    assert first.startswith("error: TensorRT 10.13.3.9: on Thor, wrong results are reported")
    assert second.startswith("  fix: update to JetPack 7.2")


def test_with_json_stdout_stays_one_document(pretend: Any) -> None:
    code, out, err = pretend(replace(BASE, modules={"onnxruntime": Module(error="ImportError: x")}), "--json")
    assert code == 24
    body = json.loads(out)
    assert body["verdict"]["code"] == 24
    assert body["verdict"]["fp_run"] == "fp-run does not work here: onnxruntime is missing or broken"
    assert err.startswith("error: onnxruntime cannot be loaded: ImportError: x\n  fix: pip install")


def test_several_problems_are_counted(pretend: Any) -> None:
    facts = replace(BASE, requirements={"numpy": ("numpy", ""), "scipy": ("scipy", "")})
    code, _, err = pretend(facts)
    assert code == 24
    assert err.startswith("error: numpy is not installed (and 1 more, see above)\n")


def test_markup_in_a_name_is_printed_as_it_is(pretend: Any) -> None:
    code, out, _ = pretend(replace(BASE, gpu=Gpu("[bold]GPU[/]", "8.9")))
    assert code == 0
    assert "  ok      [bold]GPU[/], compute capability 8.9" in out
    assert "for the [bold]GPU[/]." in " ".join(out.split())


def test_a_wrong_option_is_code_2() -> None:
    done = run("--jsn")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_the_help_has_an_example() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "Example: fp-doctor --json > machine.json" in done.stdout


def test_a_closed_stdout_is_no_bug() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "fourphase.runtime.doctor_cli", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 30
    assert done.stderr.startswith("error: the result cannot be written to stdout")


def test_a_numpy_that_kills_its_process_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("import os\nos.abort()\n")
    done = run("--json", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 24
    assert "Traceback" not in done.stderr
    checks = {check["key"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["packages.numpy"]["status"] == "problem"
    assert checks["packages.numpy"]["message"] == "numpy cannot be loaded: the process died (signal 6)"
    assert checks["backends.unknown_backends"]["status"] == "warning"
    assert str(tmp_path) not in done.stdout
