"""Workers in sessions of their own end with whoever started them, also when that one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from fourphase.benchmarks.archive import worker as archive_worker
from fourphase.benchmarks.end_to_end import worker as end_to_end_worker
from fourphase.benchmarks.latency import worker as latency_worker
from fourphase.benchmarks.scaling import worker as scaling_worker

CHILD = """
import time
from fourphase.benchmarks.with_parent import end_with_parent
end_with_parent(1)
print("up", flush=True)
time.sleep(90)
"""
#: Starts the child as teams do, in a session of its own, and is killed once the child works.
PARENT = """
import os, signal, subprocess, sys
command = [sys.executable, "-c", sys.argv[1]]
child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
MARKING = """
import sys
from fourphase.benchmarks.with_parent import end_with_parent
end_with_parent(1)
open(sys.argv[1], "w").close()
"""


def test_a_worker_that_computes_ends_when_its_parent_is_killed() -> None:
    """Both hold the pipe of stderr: it ends when the last of them has."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stderr=subprocess.PIPE)
    _, said = parent.communicate(timeout=60)
    assert (parent.returncode, said) == (-signal.SIGKILL, b"")


def test_a_parent_that_was_gone_before_is_noticed(tmp_path: Path) -> None:
    def run(stdout: int, name: str) -> bool:
        mark = tmp_path / name
        assert subprocess.run([sys.executable, "-c", MARKING, str(mark)], stdout=stdout, check=False).returncode == 0
        return mark.exists()

    unread, answers = os.pipe()
    os.close(unread)
    assert not run(answers, "nobody reads")
    os.close(answers)
    assert run(subprocess.PIPE, "somebody reads")
    assert run(subprocess.DEVNULL, "no pipe")


class Asked(Exception):
    """`end_with_parent` was called with this descriptor."""


@pytest.mark.parametrize(
    ("module", "begin", "descriptor"),
    [
        (archive_worker, lambda: archive_worker.main(), 1),
        (end_to_end_worker, lambda: end_to_end_worker._main("0", "no job"), 1),
        (latency_worker, lambda: latency_worker.main(777), 777),
        (scaling_worker, lambda: scaling_worker._main("none", "none", "none", "none", "none"), 1),
    ],
    ids=["archive", "end-to-end", "latency", "scaling"],
)
def test_every_worker_begins_with_it(
    module: ModuleType, begin: Callable[[], None], descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(answers: int) -> None:
        raise Asked(answers)

    monkeypatch.setattr(module, "end_with_parent", asked)
    with pytest.raises(Asked) as caught:
        begin()
    assert caught.value.args == (descriptor,)
