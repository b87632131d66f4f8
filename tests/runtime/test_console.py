from __future__ import annotations

import io
import subprocess
import sys

import pytest

from fourphase.runtime.console import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_within_a_bar_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("outer", 2) as advance, progress("inner", 2) as advance_inner:
        advance_inner(1)
        advance(1)
    with progress("next", None):
        pass
    shown = terminal.getvalue()
    assert "outer" in shown
    assert "next" in shown
    assert "inner" not in shown


HUNG_UP = """
import os, signal, sys, typer
from fourphase.runtime.console import run_app
if sys.argv.pop() == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
app = typer.Typer()

@app.command()
def run():
    os.kill(os.getpid(), signal.SIGHUP)
    print("went on")

run_app(app, "test")
"""


@pytest.mark.parametrize(("how", "code", "said"), [("nohup", 0, "went on\n"), ("terminal", 129, "")])
def test_a_hang_up_ends_a_command_unless_nohup_says_otherwise(how: str, code: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", HUNG_UP, how], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, said), done.stderr
