"""A build that is killed, crashes or runs out of memory: told apart, tried again with less, and never left running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from fourphase.engine import child
from fourphase.engine.build import build_engine
from fourphase.engine.child import build_in_child
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.runtime.cache import CACHE_VARIABLE
from fourphase.runtime.errors import EngineBuildFailed, IntegrityError, OutputNotWritable, error_from_dict
from fourphase.runtime.locks import locked
from tests.support.trt_graphs import gru

SOURCE = EngineSource(b"onnx", "fp32")
Script = Callable[[str], None]
REQUEST = "import json, os, signal, sys; from pathlib import Path; folder = Path(sys.argv[1])\n"
REQUEST += "workspace = json.loads((folder / 'request.json').read_text())['options']['workspace_bytes'] >> 20\n"
#: Leaves a record as the real child does.
BUILT = """
(folder / 'engine.plan').write_bytes(b'plan')
record = {'profile': {}, 'cache_state': 'off', 'cache_bytes': [0, 0], 'audit': 'none', 'notes': [], 'warnings': []}
(folder / 'record.json').write_text(json.dumps(record))
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)\n"


@pytest.fixture
def child_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))

    def replace_by(script: str) -> None:
        monkeypatch.setattr(child, "COMMAND", (sys.executable, "-c", REQUEST + script))

    return replace_by


def test_a_killed_build_is_explained(child_does: Script) -> None:
    child_does(KILLED)
    with pytest.raises(EngineBuildFailed, match=r"killed, as the system does when memory runs out \(\d+ MiB") as caught:
        build_in_child("tensorrt-rtx", SOURCE, BuildOptions())
    assert caught.value.key == "build_out_of_memory"
    assert "--workspace" in caught.value.hint


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('undefined symbol: foo'); sys.exit(3)", "exit code 3: undefined symbol: foo"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("pass", "exit code 0"),
        ("(folder / 'record.json').write_text('{')", "exit code 0"),
    ],
)
def test_a_crash_is_told_with_its_last_words(child_does: Script, script: str, said: str) -> None:
    child_does(script)
    with pytest.raises(EngineBuildFailed, match=said) as caught:
        build_in_child("tensorrt-rtx", SOURCE, BuildOptions())
    assert caught.value.key == "build_crashed"


def test_a_full_temporary_folder_is_told(child_does: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    child_does("sys.exit(30)")
    with pytest.raises(OutputNotWritable, match="temporary folder is full") as caught:
        build_in_child("tensorrt-rtx", SOURCE, BuildOptions())
    assert "TMPDIR" in caught.value.hint

    def full(path: Path, data: bytes) -> None:
        raise OutputNotWritable("no space", "free some")

    monkeypatch.setattr(child, "write_file", full)
    with pytest.raises(OutputNotWritable, match="no space"):
        build_in_child("tensorrt-rtx", SOURCE, BuildOptions())


def test_what_a_killed_build_left_is_taken_away(
    child_does: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    child_does(BUILT)
    for name, age_s in (("alive", 3600), ("dead", 3600), ("starting", 1)):
        lock = tmp_path / f"fourphase-build-{name}" / "alive.lock"
        lock.parent.mkdir()
        lock.touch()
        os.utime(lock, (time.time() - age_s,) * 2)
    (tmp_path / "fourphase-build-unfinished").mkdir()
    with locked(tmp_path / "fourphase-build-alive" / "alive.lock", 0, what="another build"):
        build_in_child("tensorrt-rtx", SOURCE, BuildOptions())
    left = sorted(path.name.rpartition("-")[2] for path in tmp_path.glob("fourphase-build-*"))
    assert left == ["alive", "starting", "unfinished"]


@pytest.mark.rtx
def test_less_workspace_is_tried_until_memory_suffices(child_does: Script) -> None:
    child_does(f"if workspace > 512:\n    {KILLED}{BUILT}")
    built = build_engine(SOURCE, "tensorrt-rtx", BuildOptions(workspace_bytes=2 << 30))
    tried = [(one["workspace_bytes"] >> 20, one["outcome"][:20]) for one in built.meta["attempts"]]
    assert tried == [(2048, "the build was killed"), (1024, "the build was killed"), (512, "built")]
    assert built.meta["flags"]["workspace_bytes"] == 2 << 30, "the key is what was asked for"


@pytest.mark.rtx
def test_the_ladder_ends(child_does: Script) -> None:
    child_does(KILLED)
    with pytest.raises(EngineBuildFailed, match="the workspace was 64 MiB"):
        build_engine(SOURCE, "tensorrt-rtx", BuildOptions(workspace_bytes=256 << 20))


@pytest.mark.rtx
def test_too_little_for_tensorrt_and_too_much_for_the_machine_is_told_as_both(child_does: Script) -> None:
    too_small = "{'code': 26, 'key': 'workspace_too_small', 'message': 'no tactics', 'hint': 'more'}"
    child_does(
        f"if workspace > 512:\n    {KILLED}(folder / 'record.json').write_text(json.dumps({{'error': {too_small}}}))"
    )
    with pytest.raises(EngineBuildFailed, match="with less workspace TensorRT finds no way") as caught:
        build_engine(SOURCE, "tensorrt-rtx", BuildOptions(workspace_bytes=1 << 30))
    assert [row["workspace"] for row in caught.value.table] == ["1024 MiB", "512 MiB"]


@pytest.mark.rtx
@pytest.mark.parametrize("workspace_mib", [1, 8, 64])
def test_nvidias_words_for_too_little_workspace_are_understood(workspace_mib: int) -> None:
    """A GRU of 64 studies needs 9.5 MiB of scratch memory; below, RTX says "no tactics" or "out of memory"."""
    source = EngineSource(gru(hidden=256, steps=64, features=256), "fp32")
    options = BuildOptions(batch=(64, 64, 64), workspace_bytes=workspace_mib << 20, compute_capabilities=("8.9",))
    if workspace_mib == 64:
        assert len(build_in_child("tensorrt-rtx", source, options).plan) > 10_000
        return
    with pytest.raises(EngineBuildFailed) as caught:
        build_in_child("tensorrt-rtx", source, options)
    assert caught.value.key == "workspace_too_small"
    assert f"larger --workspace; it was {workspace_mib} MiB" in caught.value.hint


@pytest.mark.rtx
def test_the_last_duration_of_a_build_is_remembered(child_does: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def record(text: str, total: int | None) -> AbstractContextManager[object]:
        shown.append(text)
        return nullcontext()

    monkeypatch.setattr("fourphase.engine.build.progress", record)
    child_does("import time; time.sleep(0.6)\n" + BUILT)
    for _ in range(2):
        build_engine(SOURCE, "tensorrt-rtx")
    assert "the last time" not in shown[0]
    said = re.search(r"the last time it took (\d+) s$", shown[1])
    assert said is not None
    assert 1 <= int(said[1]) < 30


def test_an_error_crosses_processes_whole() -> None:
    error = IntegrityError("cause", "cure", key="some_key", table=[{"a": "1"}])
    again = error_from_dict(error.to_dict())
    assert (type(again), again.to_dict()) == (IntegrityError, error.to_dict())
    unknown = error_from_dict({"code": 77, "key": "k", "message": "m", "hint": "h"})
    assert unknown.code == 1


def running(marker: str) -> bool:
    """Whether a process with this text among its arguments is alive (zombies are not)."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            alive = path.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if alive and marker in path.joinpath("cmdline").read_text():
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_build_does_not_outlive_who_asked_for_it(tmp_path: Path, number: signal.Signals) -> None:
    marker = f"sleeping-{os.getpid()}-{number}"
    sleeper = (
        f"import json, sys, time; from pathlib import Path; '{marker}';"
        "from fourphase.engine.child import _die_with_parent;"
        "_die_with_parent(json.loads(Path(sys.argv[1], 'request.json').read_text())['parent']);"
        f"Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"
    )
    parent = (
        "import signal, sys; from fourphase.engine import child; from fourphase.engine.options import *;"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));"
        f"child.COMMAND = (sys.executable, '-c', {sleeper!r});"
        "child.build_in_child('tensorrt-rtx', EngineSource(b'', 'fp32'), BuildOptions())"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert running(marker)
    process.send_signal(number)
    process.wait(timeout=30)
    while running(marker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
