from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from fourphase.runtime import decode_pool
from fourphase.runtime.decode_pool import DecodePool, close_shared_pool, shared_pool
from fourphase.runtime.decode_worker import FrameFormat
from fourphase.runtime.decoders import DecoderFailed, DecoderLost
from fourphase.runtime.errors import EnvironmentFault
from tests.support.dicom import _frame, stored_values

BAD = "tests.support.bad_decoder"
FORM = FrameFormat(str(JPEGLSLossless), "MONOCHROME2", 6, 5, 16, 12, 12)


@pytest.fixture
def make_pool() -> Iterator[Callable[..., DecodePool]]:
    pools = []

    def make(children: int = 1, **options: Any) -> DecodePool:
        pools.append(DecodePool(children, **{"decoder": BAD, **options}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def processes(pool: DecodePool) -> list[int]:
    return [child._process.pid for child in pool._alive]


def is_running(pid: int) -> bool:
    """False for a zombie: it waits for its parent, which in a container may be a process that reaps nobody."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


# ---- failures


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("abort", "crashed"),
        ("segfault", "crashed"),
        ("exit", "crashed"),
        ("sleep", "did not come to an end"),
        ("spin", "did not come to an end"),
        ("allocate", "ran out of memory"),
        ("garbage", "answered nonsense"),
        ("wide", "answered nonsense"),
    ],
)
def test_a_lost_decoder_says_how_and_the_next_frame_works(
    make_pool: Callable[..., DecodePool], word: str, says: str
) -> None:
    pool = make_pool()
    pool.decode(b"fine 1", FORM)
    (before,) = processes(pool)
    pool._limit_s = 0.5 if word in ("sleep", "spin") else None
    with pytest.raises(DecoderLost, match=says):
        pool.decode(word.encode(), FORM)
    pool._limit_s = None
    assert not Path(f"/proc/{before}").exists()  # neither running nor a zombie
    np.testing.assert_array_equal(pool.decode(b"fine 7", FORM), np.full((6, 5), 7))
    assert processes(pool) != [before]


@pytest.mark.parametrize("word", ["panic", "raise", "short", "long", "corrupt"])
def test_a_decoder_that_fails_in_peace(make_pool: Callable[..., DecodePool], word: str) -> None:
    pool = make_pool()
    with pytest.raises(DecoderFailed) as caught:
        pool.decode(word.encode(), FORM)
    assert "MARKER" not in str(caught.value)
    assert pool.decode(b"fine 3", FORM)[0, 0] == 3


def test_the_kernel_limits_the_child_too(make_pool: Callable[..., DecodePool]) -> None:
    """SIGXCPU, which ends a child that computes too long, is told as a hang."""
    pool = make_pool()
    pool.decode(b"fine 1", FORM)
    (pid,) = processes(pool)
    limits = Path(f"/proc/{pid}/limits").read_text()
    found = {name: re.search(rf"{name} +(\d+)", limits) for name in ("Max cpu time", "Max address space")}
    assert 20 < int(found["Max cpu time"][1]) < 30  # type: ignore[index]
    assert int(found["Max address space"][1]) < 2**31  # type: ignore[index]
    assert re.search(r"Max core file size +0 +0", limits)
    threading.Timer(0.3, os.kill, (pid, signal.SIGXCPU)).start()
    with pytest.raises(DecoderLost, match="did not come to an end"):
        pool.decode(b"sleep", FORM)


def test_a_missing_package_is_named(make_pool: Callable[..., DecodePool]) -> None:
    with pytest.raises(EnvironmentFault, match="pyjpegls") as caught:
        make_pool().decode(b"missing", FORM)
    assert caught.value.key == "decoder_missing"


@pytest.mark.parametrize("decoder", ["no.such.module", "tests.support.dicom"])
def test_a_child_that_does_not_start_is_24(make_pool: Callable[..., DecodePool], decoder: str) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        make_pool(decoder=decoder).decode(b"fine 1", FORM)
    assert (caught.value.code, caught.value.key) == (24, "decoder_process")


def test_no_interpreter_is_24(make_pool: Callable[..., DecodePool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(EnvironmentFault, match="does not start"):
        make_pool().decode(b"fine 1", FORM)


def test_what_a_decoder_prints_goes_nowhere(
    make_pool: Callable[..., DecodePool], capfd: pytest.CaptureFixture[str]
) -> None:
    assert make_pool().decode(b"print 5", FORM)[0, 0] == 5
    assert capfd.readouterr() == ("", "")


def test_python_files_in_the_working_directory_are_not_imported(
    make_pool: Callable[..., DecodePool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m` looks there first, and the working directory may be a study's."""
    (tmp_path / "struct.py").write_text("import os; os._exit(3)")
    (tmp_path / "numpy.py").write_text("import os; os._exit(3)")
    monkeypatch.chdir(tmp_path)
    assert make_pool().decode(b"fine 5", FORM)[0, 0] == 5


# ---- several at once


def test_frames_from_many_threads_come_back_to_their_own(make_pool: Callable[..., DecodePool]) -> None:
    pool = make_pool(2)
    words = [f"fine {number}".encode() for number in range(60)]
    with ThreadPoolExecutor(8) as threads:
        found = [int(cells[0, 0]) for cells in threads.map(lambda word: pool.decode(word, FORM), words)]
    assert found == list(range(60))
    assert len(processes(pool)) <= 2


def test_children_work_at_the_same_time(make_pool: Callable[..., DecodePool]) -> None:
    pool = make_pool(4)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda word: pool.decode(word, FORM), [b"slow"] * 4))
        started = time.monotonic()
        list(threads.map(lambda word: pool.decode(word, FORM), [b"slow"] * 8))
    assert time.monotonic() - started < 8 * 0.3 * 0.7


def test_children_outlive_the_thread_that_needed_them(make_pool: Callable[..., DecodePool]) -> None:
    """The kernel takes the end of the thread that started a child for the parent's death."""
    pool = make_pool()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(pool.decode, b"fine 1", FORM).result()
    time.sleep(0.2)
    before = processes(pool)
    pool.decode(b"fine 1", FORM)
    assert processes(pool) == before


def test_a_child_is_replaced_after_its_frames(
    make_pool: Callable[..., DecodePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_pool, "FRAMES_PER_CHILD", 2)
    pool = make_pool()
    seen = set()
    for _ in range(4):
        pool.decode(b"fine 1", FORM)
        seen.update(processes(pool))
    assert len(seen) == 2


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_a_large_frame_passes_whole(syntax: str) -> None:
    """Larger than any pipe, both ways. Independent: the numbers that were encoded."""
    values = stored_values((1, 1024, 1024))[0]
    form = FrameFormat(str(syntax), "MONOCHROME2", 1024, 1024, 16, 12, 16 if "RLE" in syntax.name else 12)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(shared_pool().decode(_frame(values, 12, syntax), form), values)


# ---- the end


def test_closing_frees_whoever_waits(make_pool: Callable[..., DecodePool]) -> None:
    pool = make_pool()
    pool.decode(b"fine 1", FORM)
    threading.Timer(0.3, pool.close).start()
    started = time.monotonic()
    with pytest.raises(DecoderLost, match="stopped"):
        pool.decode(b"sleep", FORM)
    assert time.monotonic() - started < 10  # its own limit is twice that
    with pytest.raises(DecoderLost, match="stopped"):
        pool.decode(b"fine 1", FORM)


def test_closing_while_a_child_starts_is_no_failure_to_start(make_pool: Callable[..., DecodePool]) -> None:
    pool = make_pool()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.decode, b"sleep", FORM)
        assert wait_until(lambda: bool(pool._alive))
        pool.close()
        with pytest.raises(DecoderLost, match="stopped"):
            waiting.result(10)


def test_a_closed_shared_pool_is_made_anew() -> None:
    first = shared_pool()
    close_shared_pool()
    assert shared_pool() is not first
    close_shared_pool()


def test_a_fork_has_a_pool_of_its_own() -> None:
    mine = shared_pool()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if decode_pool._shared is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert shared_pool() is mine


PROGRAM = """
import signal, sys
sys.path[:] = {path!r}
from concurrent.futures import ThreadPoolExecutor
from fourphase.runtime.decode_pool import DecodePool
from fourphase.runtime.decode_worker import FrameFormat
form = FrameFormat("1.2.840.10008.1.2.4.80", "MONOCHROME2", 6, 5, 16, 12, 12)
pool = DecodePool(2, decoder="tests.support.bad_decoder")
with ThreadPoolExecutor(2) as threads:
    list(threads.map(lambda _: pool.decode(b"slow", form), range(2)))
print(*(child._process.pid for child in pool._alive), flush=True)
{then}
"""


def children_of(then: str) -> tuple[subprocess.Popen[str], list[int]]:
    code = PROGRAM.format(path=sys.path, then=then)
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    pids = [int(word) for word in program.stdout.readline().split()]
    program.stdout.close()
    assert pids
    return program, pids


@pytest.mark.parametrize("word", ["sleep", "spin"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_orphans_after_the_parents_death(word: str, how: signal.Signals) -> None:
    program, pids = children_of(f'pool.decode(b"{word}", form)')
    time.sleep(0.3)
    program.send_signal(how)
    program.wait(5)
    assert wait_until(lambda: not any(map(is_running, pids)))


def test_no_orphans_after_an_ordinary_end() -> None:
    program, pids = children_of("")
    assert program.wait(10) == 0
    assert wait_until(lambda: not any(map(is_running, pids)))


def test_signals_to_the_whole_group_do_not_reach_the_children() -> None:
    """Ctrl-C and `timeout` signal the group: the parent decides, and must not see a crash first."""
    program, pids = children_of("import time; time.sleep(60)")
    try:
        for pid in pids:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.3)
        assert all(map(is_running, pids))
    finally:
        program.kill()
        program.wait()
