"""A lock is held by one process at a time, and goes with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fourphase.runtime.errors import LockTimeout, OutputNotWritable
from fourphase.runtime.locks import locked

HOLD = (
    "import sys, time; from pathlib import Path; from fourphase.runtime.locks import locked\n"
    "with locked(Path(sys.argv[1]), 5, what='x', shared=sys.argv[2] == 'shared'):\n"
    "    print('held', flush=True); time.sleep(60)"
)


@contextmanager
def held(path: Path, kind: str = "alone") -> Iterator[None]:
    """Another process holds the lock; at the end it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path), kind], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield
        finally:
            process.kill()


def test_who_waits_too_long_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    with (
        held(tmp_path / "lock"),
        pytest.raises(LockTimeout, match=r"the lock of the thing for 0\.3 s") as caught,
        locked(tmp_path / "lock", 0.3, what="the thing", waiting=lambda: told.append("waiting")),
    ):
        raise AssertionError("two hold one lock")
    assert caught.value.code == 31
    assert told == ["waiting"]


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    with held(tmp_path / "lock"):
        pass
    with locked(tmp_path / "lock", 5, what="x") as waited:
        assert not waited


def test_readers_share_and_keep_writers_out(tmp_path: Path) -> None:
    with held(tmp_path / "lock", "shared"):
        with locked(tmp_path / "lock", 0, what="x", shared=True) as waited:
            assert not waited
        with pytest.raises(LockTimeout), locked(tmp_path / "lock", 0, what="x"):
            pass


def test_a_lock_that_cannot_be_made_is_code_30(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable), locked(tmp_path / "file" / "lock", 0, what="x"):
        pass
