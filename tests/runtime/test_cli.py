"""`fp-run` as it is typed: what is refused before the model is loaded, and what a person at a terminal is told."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fourphase.runtime import cli, console, pipeline
from fourphase.runtime.report import print_done_before, print_result
from tests.runtime.test_result import result
from tests.support.dicom import write_phases
from tests.support.tiny_bundle import PREPROCESSING, write_tiny

BOX = {"space": "LPS_mm", "min": [-2, -4, 6], "max": [2, 4, 12]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny.bundle"
    write_tiny(path, preprocessing=replace(PREPROCESSING, margin_mm=2.0))
    return path


@pytest.fixture(scope="module")
def untold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two studies whose phases nothing tells; the names need quoting."""
    folder = tmp_path_factory.mktemp("un told")
    for name in ("O'Neill $HOME", "second"):
        case = folder / name
        write_phases(case / "dicom", StudyInstanceUID=f"1.2.{len(name)}", SeriesDescription="CT", AcquisitionTime=None)
        (case / "box.json").write_text(json.dumps(BOX))
    return folder


# ---- refused before the model is loaded


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str]:
    line = ["fp-run", *map(str, arguments), "--bundle", "no.bundle"]
    monkeypatch.setattr(sys, "argv", line)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        console.run_app(cli.app, "fp-run")
    return int(caught.value.code or 0), capsys.readouterr().err


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "code", "cause"),
    [
        (["--sr"], 2, "--sr needs --output"),
        (["--preview"], 2, "--preview needs --output"),
        (["--names"], 2, "--names needs --output"),
        (["--output", "study"], 2, "the output folder lies in a study folder"),
        (["--output", "study/results"], 2, "the output folder lies in a study folder"),
        (["--output", "link/results"], 2, "the output folder lies in a study folder"),
        (["--output", "box.json"], 30, "cannot write"),
        (["--phases", "site.toml"], 10, "the file of --phases does not exist"),
        (["--each", "--box", "box.json"], 2, "--each takes one --box"),
        (["--each"], 10, "the folder holds no studies"),
        (["study", "--box", "box.json", "--save-input", "x.npy"], 2, "--save-input takes one study"),
        (["study"], 2, "2 studies need 2 lesion boxes, 1 given"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    cause: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study").mkdir()
    if "--box" in arguments and "--each" in arguments:
        Path("study/child").mkdir()
    Path("link").symlink_to("study")
    Path("box.json").write_text(json.dumps(BOX))
    before = sorted(Path().rglob("*"))
    found, error = refused(monkeypatch, capsys, "study", "--box", "box.json", *arguments)
    assert (found, error.splitlines()[0].startswith(f"error: {cause}")) == (code, True), error
    assert sorted(Path().rglob("*")) == before, "nothing is written"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("option", "package"), [("--sr", "highdicom"), ("--preview", "PIL")])
def test_a_missing_extra_is_code_24_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, package: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study").mkdir()
    Path("box.json").write_text(json.dumps(BOX))
    monkeypatch.setitem(sys.modules, package, None)
    code, error = refused(monkeypatch, capsys, "study", "--box", "box.json", "--output", "out", option)
    assert code == 24
    assert f"the package {package} is not installed" in error
    assert f"pip install 'fourphase[{option.removeprefix('--')}]'" in error


# ---- at a terminal


def at_a_terminal(*arguments: str | Path) -> tuple[int, str, str]:
    """(code, stdout, terminal): stderr is a terminal of 80 columns, stdout is not."""
    line = [sys.executable, "-m", "fourphase.runtime.cli", *map(str, arguments)]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the end of a terminal, on Linux
                break
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    return process.returncode, out, shown.decode().replace("\r\n", "\n")


def commands_in(terminal: str) -> list[str]:
    return [line for line in terminal.splitlines() if line.startswith("fp-run ")]


def run_typed(command: str) -> subprocess.CompletedProcess[str]:
    """The command through a shell, as a person pastes it."""
    line = command.replace("fp-run", f"{shlex.quote(sys.executable)} -m fourphase.runtime.cli", 1)
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)


def test_an_ambiguity_shows_the_whole_command_that_settles_it(untold: Path, bundle: Path, tmp_path: Path) -> None:
    case, output = untold / "O'Neill $HOME", tmp_path / "out put"
    arguments: list[str | Path] = [case / "dicom", "--box", case / "box.json", "--bundle", bundle, "--output", output]
    code, _, terminal = at_a_terminal(*arguments, "--phase", "NC=2", "--precision=fp32", "--force", "--quiet")
    assert code == 13
    assert "evidence" in terminal, "the table"
    (command,) = commands_in(terminal)
    words = shlex.split(command)
    assert words[:4] == ["fp-run", str(case / "dicom"), "--box", str(case / "box.json")]
    assert words[-8:] == ["--phase", "NC=2", "--phase", "ART=3", "--phase", "PV=4", "--phase", "DL=5"]
    assert words.count("--phase") == 4
    assert {"--precision", "--quiet", "--output", str(output)} <= set(words)
    settled = run_typed(command)
    assert settled.returncode == 0, settled.stderr
    (written,) = output.glob("*/result.json")
    phases = json.loads(written.read_text())["phases"]
    assert [phases[phase]["series_number"] for phase in ("NC", "ART", "PV", "DL")] == [2, 3, 4, 5]


def test_the_command_is_for_a_terminal_only(untold: Path, bundle: Path) -> None:
    """A log and JSON never get the paths, which may name the patient."""
    case = untold / "O'Neill $HOME"
    line = [sys.executable, "-m", "fourphase.runtime.cli", case / "dicom", "--box", case / "box.json"]
    done = subprocess.run(
        list(map(str, [*line, "--bundle", bundle, "--json"])), capture_output=True, text=True, check=False
    )
    assert done.returncode == 13
    assert "O'Neill" not in done.stdout + done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["hint"].endswith("--phase NC=2 --phase ART=3 --phase PV=4 --phase DL=5")
    assert len(error["table"]) == 4
    code, out, terminal = at_a_terminal(case / "dicom", "--box", case / "box.json", "--bundle", bundle, "--json")
    assert code == 13
    assert json.loads(out)["error"] == error
    assert commands_in(terminal)


def test_of_several_every_ambiguous_study_gets_its_command(untold: Path, bundle: Path, tmp_path: Path) -> None:
    """With a bar: long lines must not be broken, or they could not be pasted."""
    code, _, terminal = at_a_terminal(
        "--each", untold, "--box", "box.json", "--bundle", bundle, "--output", tmp_path / "out"
    )
    assert code == 40
    commands = commands_in(terminal)
    assert [shlex.split(command)[1] for command in commands] == [str(path) for path in sorted(untold.iterdir())]
    for command in commands:
        settled = run_typed(command)
        assert settled.returncode == 0, settled.stderr
    assert len(list((tmp_path / "out").glob("*/result.json"))) == 2


def test_results_go_to_stdout_also_beside_a_bar(untold: Path, bundle: Path) -> None:
    """rich would print on stderr whatever is printed while it shows a bar there."""
    arguments: list[str | Path] = ["--each", untold, "--box", "box.json", "--bundle", bundle]
    overrides = [f"--phase={phase}={number}" for number, phase in enumerate(("NC", "ART", "PV", "DL"), 2)]
    code, out, terminal = at_a_terminal(*arguments, *overrides)
    assert code == 0, terminal
    assert out.count("model output, not a diagnosis") == 2
    assert "model output" not in terminal
    assert "studies" in terminal, "the bar"
    assert "2 studies, 2 done, 0 failed" in terminal


# ---- the text for a person


def test_shift_and_preview_are_printed_only_if_they_are_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = result(box={"min": [0, 0, 0], "max": [1, 1, 1], "margin_mm": 10, "source": "json"}, breathing={})
    print_result(plain)
    text = capsys.readouterr().out
    assert "shift" not in text
    assert "preview" not in text
    shifts: dict[str, Any] = {"PV": [0.0, 0.0, 0.0], "NC": [1.25, 0.0, -12.34], "DL": None}
    body = {**plain.to_dict(), "breathing": {"reference": "PV", "shift_mm": shifts}}
    monkeypatch.setattr(type(plain), "to_dict", lambda self: body)
    print_result(plain, preview="out/[x]/preview.png")
    text = capsys.readouterr().out
    assert "shift    NC 1.2, 0.0, -12.3; DL unknown  mm (LPS) against PV\n" in text
    assert "preview  out/[x]/preview.png\n" in text


def test_an_earlier_answer_is_printed_out_of_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    print_done_before(result().to_dict())
    text = capsys.readouterr().out
    assert text.split("\n")[1].startswith("HCC  (HCC 90.5%, ICC 9.5%)  model output, not a diagnosis")
    assert "case 0123456789abcdef, done before" in text
