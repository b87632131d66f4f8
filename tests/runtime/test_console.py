from __future__ import annotations

import io

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
