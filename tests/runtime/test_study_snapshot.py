from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourphase.runtime import dicom_file, study_snapshot
from fourphase.runtime.errors import InputMissing, NoUsableCT, PixelDataError
from fourphase.runtime.study import read_study
from fourphase.runtime.study_snapshot import (
    SETTLE_S,
    check_unchanged,
    content_hash,
    regular_files,
    request_hash,
    take_snapshot,
    unchanged,
)
from tests.support.dicom import stored_values, write_phases, write_series

REAL_SLEEP = time.sleep


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three files in two folders."""
    study = tmp_path / "MARKER"
    for name, data in {"a/1": b"one", "a/2": b"two", "b/1": b"three"}.items():
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        (study / name).write_bytes(data)
    return study


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study is an hour old."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("an old study is waited for"))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, in seconds; nothing is."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything of every file and folder but the time of access."""
    paths = [folder, *folder.rglob("*")]
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_ctime_ns, b"" if path.is_dir() else path.read_bytes())
        for path in paths
    }


# ---- unchanged or not


@pytest.mark.usefixtures("no_wait")
def test_an_old_study_that_is_only_read_is_unchanged_at_once(study: Path) -> None:
    before = take_snapshot(study)
    for path in study.rglob("*/*"):
        path.read_bytes()
    check_unchanged(before, study)
    assert set(before.files) == {"/a/1", "/a/2", "/b/1"}
    assert "/a/1" not in repr(before)


def rewritten(study: Path) -> None:
    """The same size and time, as rsync and cp -p leave it; only ctime shows it."""
    path = study / "a/1"
    status = path.stat()
    REAL_SLEEP(0.02)
    path.write_bytes(b"eno")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(study: Path) -> None:
    (study / "new").write_bytes(b"one")
    (study / "new").rename(study / "a/1")


CHANGES: dict[str, Callable[[Path], object]] = {
    "came": lambda study: (study / "b/2").write_bytes(b""),
    "came in a new folder": lambda study: shutil.copytree(study / "a", study / "c"),
    "went": lambda study: (study / "a/2").unlink(),
    "grew": lambda study: (study / "a/2").write_bytes(b"two and more"),
    "was cut": lambda study: os.truncate(study / "a/2", 1),
    "was rewritten": rewritten,
    "was replaced": replaced,
    "was renamed": lambda study: (study / "a/2").rename(study / "a/3"),
    "moved": lambda study: (study / "a/2").rename(study / "b/2"),
    "all went": shutil.rmtree,
}


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_10(study: Path, change: Callable[[Path], object]) -> None:
    before = take_snapshot(study)
    change(study)
    with pytest.raises(InputMissing, match="perhaps still being copied") as caught:
        check_unchanged(before, study)
    assert (caught.value.code, caught.value.key) == (10, "study_changing")


@pytest.mark.usefixtures("no_wait")
def test_what_lies_behind_links_does_not_count(study: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (study / "link").symlink_to(elsewhere)
    os.mkfifo(study / "fifo")
    before = take_snapshot(study)
    (elsewhere / "file").write_bytes(b"")
    check_unchanged(before, study)
    skipped: Counter[str] = Counter()
    assert {entry.path for entry in regular_files(study, skipped)} == {
        str(study / name) for name in ("a/1", "a/2", "b/1")
    }
    assert skipped == {"symlink": 1, "special_file": 1}


@pytest.mark.usefixtures("no_wait")
def test_the_folder_itself_may_be_a_link(study: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(study)
    before = take_snapshot(tmp_path / "link")
    assert before.files == take_snapshot(study).files
    (study / "a/3").touch()
    with pytest.raises(InputMissing):
        check_unchanged(before, tmp_path / "link")


@pytest.mark.usefixtures("no_wait")
def test_a_zip_that_grows_is_10(tmp_path: Path) -> None:
    path = tmp_path / "MARKER.zip"
    path.write_bytes(b"PK")
    before = take_snapshot(path)
    check_unchanged(before, path)
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputMissing, match="perhaps still being copied"):
        check_unchanged(before, path)


def test_what_is_no_study_is_10_without_its_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "MARKER_fifo")
    for call in (take_snapshot, content_hash):
        for name, cause in (("MARKER_fifo", "is not a folder"), ("MARKER_none", "does not exist")):
            with pytest.raises(InputMissing, match=cause) as caught:
                call(tmp_path / name)
            assert "MARKER" not in caught.value.message + caught.value.hint


def test_an_unreadable_folder_is_10_at_the_top_and_counted_below(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = os.scandir, study / "b"

    def scandir(path: str) -> object:
        if path == str(refused):
            raise PermissionError
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    skipped: Counter[str] = Counter()
    assert len(regular_files(study, skipped)) == 2
    assert skipped == {"unreadable_folder": 1}
    with_part = content_hash(study)
    refused = study
    with pytest.raises(InputMissing, match="cannot be read"):
        take_snapshot(study)
    monkeypatch.setattr(os, "scandir", real)
    shutil.rmtree(study / "b")
    assert content_hash(study) != with_part


# ---- waiting


def test_a_fresh_study_is_waited_for_but_only_the_rest(study: Path, waits: list[float]) -> None:
    before = take_snapshot(study)
    age = time.time() - max(path.stat().st_ctime for path in study.rglob("*/*"))
    check_unchanged(before, study)
    assert len(waits) == 1
    assert waits[0] == pytest.approx(SETTLE_S - age, abs=0.1)


def test_time_spent_reading_counts(study: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    before = take_snapshot(study)
    monkeypatch.setattr(time, "monotonic", lambda: before.taken_s + 0.7)
    check_unchanged(before, study)
    assert waits[0] == pytest.approx(SETTLE_S - before.age_s - 0.7, abs=1e-6)
    monkeypatch.setattr(time, "monotonic", lambda: before.taken_s + SETTLE_S)
    check_unchanged(before, study)
    assert len(waits) == 1


@pytest.mark.parametrize("ahead_s", [10, 1e9])
def test_a_file_system_whose_clock_is_ahead_is_not_waited_for_for_ever(
    study: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - ahead_s)
    before = take_snapshot(study)
    check_unchanged(before, study)
    assert before.age_s == 0
    assert 0 < waits[0] <= SETTLE_S


def test_an_empty_folder_is_not_waited_for(tmp_path: Path, waits: list[float]) -> None:
    check_unchanged(take_snapshot(tmp_path), tmp_path)
    assert waits == []


# ---- while a study is copied


def copied_slowly(source: Path, target: Path, pause_s: float, ended: threading.Event) -> None:
    for path in sorted(source.rglob("*/*")):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
        if ended.wait(pause_s):
            return


@pytest.mark.parametrize("pause_s", [0.01, 0.3])
def test_a_study_that_is_being_copied_is_noticed(tmp_path: Path, pause_s: float) -> None:
    """Reading takes milliseconds, so that it was still being copied shows only because a fresh study is waited for."""
    write_phases(tmp_path / "source")
    ended, target = threading.Event(), tmp_path / "target"
    write_series(target / "s2", stored_values((8, 16, 16)))
    writer = threading.Thread(target=copied_slowly, args=(tmp_path / "source", target, pause_s, ended))
    writer.start()
    try:
        with pytest.raises(InputMissing) as caught, unchanged(target):
            read_study(target)
    finally:
        ended.set()
        writer.join()
    assert caught.value.key == "study_changing"


def test_a_file_that_is_being_written_is_noticed(study: Path) -> None:
    ended = threading.Event()

    def write() -> None:
        with (study / "a/1").open("ab", buffering=0) as file:
            while not ended.wait(0.05):
                file.write(b"x")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(InputMissing, match="perhaps still being copied"), unchanged(study):
            pass
    finally:
        ended.set()
        writer.join()


@pytest.mark.usefixtures("no_wait")
def test_what_a_half_copy_looks_like_gives_way_to_the_reason(study: Path) -> None:
    with pytest.raises(NoUsableCT), unchanged(study):
        read_study(study)

    def read_while_copied() -> None:
        with unchanged(study):
            (study / "a/3").write_bytes(b"")
            read_study(study)

    with pytest.raises(InputMissing, match="perhaps still being copied"):
        read_while_copied()


@pytest.mark.usefixtures("no_wait")
def test_what_changes_after_the_check_does_not_count(study: Path) -> None:
    with unchanged(study) as check:
        check()
        (study / "a/3").write_bytes(b"")

    def change_before() -> None:
        with unchanged(study) as check:
            (study / "a/4").write_bytes(b"")
            check()
            pytest.fail("not noticed at once")

    with pytest.raises(InputMissing, match="perhaps still being copied"):
        change_before()


@pytest.mark.usefixtures("no_wait")
def test_bugs_are_not_hidden_by_a_change(study: Path) -> None:
    def fail() -> None:
        with unchanged(study):
            (study / "a/3").write_bytes(b"")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


@pytest.mark.usefixtures("no_wait")
def test_nothing_is_modified(tmp_path: Path) -> None:
    """With the folder made read-only; times of change and content of every file and folder are the same after."""
    study = tmp_path / "study"
    write_phases(study)
    for folder in [study, *(path for path in study.rglob("*") if path.is_dir())]:
        folder.chmod(0o500)
    before = state(study)
    with unchanged(study):
        read_study(study)
        content_hash(study)
    assert state(study) == before
    for path in [study, *study.iterdir()]:
        path.chmod(0o700)


# ---- the hash of the content


def by_hand(study: Path) -> str:
    """The documented construction, written out."""
    files = [path for path in study.rglob("*") if path.is_file() and not path.is_symlink()]
    records = sorted(
        hashlib.sha256(path.parent.relative_to(study).as_posix().encode()).digest()
        + hashlib.sha256(path.read_bytes()).digest()
        for path in files
    )
    return hashlib.sha256(b"fourphase.study/1\x000\x00" + b"".join(records)).hexdigest()


def test_content_hash_is_the_documented_one(study: Path) -> None:
    (study / "large").write_bytes(os.urandom(3 * 1024 * 1024 + 5))
    (study / "a/copy").write_bytes(b"one")
    assert content_hash(study) == by_hand(study)
    assert content_hash(Path(os.path.relpath(study))) == by_hand(study)


def put(root: Path, files: list[tuple[str, bytes]], names: list[str]) -> str:
    for (folder, data), name in zip(files, names, strict=True):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(data)
    return content_hash(root)


FILES = st.lists(st.tuples(st.sampled_from(["", "a", "b", "a/b", "a\nb"]), st.binary(max_size=3)), max_size=6)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=FILES, second=FILES, shuffle=st.randoms(use_true_random=False))
def test_equal_hashes_mean_the_same_files_in_the_same_folders(
    tmp_path: Path, first: list[tuple[str, bytes]], second: list[tuple[str, bytes]], shuffle: object
) -> None:
    names = [f"n{index}" for index in range(6)]
    places = [tmp_path / "1", tmp_path / "2", tmp_path / "3"]
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    shuffled = list(first)
    shuffle.shuffle(shuffled)  # type: ignore[attr-defined]
    one = put(places[0], first, names[: len(first)])
    assert one == put(places[1], shuffled, names[: len(first)][::-1])
    other = put(places[2], second, names[: len(second)])
    assert (one == other) == (Counter(first) == Counter(second))


def test_links_do_not_count(study: Path) -> None:
    before = content_hash(study)
    (study / "link").symlink_to(study / "a")
    (study / "file_link").symlink_to(study / "a/1")
    os.mkfifo(study / "fifo")
    assert content_hash(study) == before


def test_a_file_that_cannot_be_read_counts_as_such(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_hash(study)
    real = dicom_file.open_regular

    def refuse(path: Path) -> io.FileIO:
        if path.name == "2":
            raise PermissionError
        return real(path)

    monkeypatch.setattr(study_snapshot, "open_regular", refuse)
    unreadable = content_hash(study)
    (study / "a/2").write_bytes(b"other")
    assert content_hash(study) == unreadable != before
    (study / "a/2").unlink()
    assert content_hash(study) != unreadable


def test_a_zip_is_hashed_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "one.zip").write_bytes(b"content")
    (tmp_path / "two.zip").write_bytes(b"content")
    (tmp_path / "other.zip").write_bytes(b"Content")
    (tmp_path / "link").symlink_to(tmp_path / "one.zip")
    hashes = [content_hash(tmp_path / name) for name in ("one.zip", "two.zip", "link", "other.zip")]
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/one.zip").write_bytes(b"content")
    assert content_hash(tmp_path / "folder") != hashes[0]


def test_a_zip_that_cannot_be_read_is_10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> io.FileIO:
        raise PermissionError

    (tmp_path / "zip").touch()
    monkeypatch.setattr(study_snapshot, "open_regular", refuse)
    with pytest.raises(InputMissing, match="cannot be read"):
        content_hash(tmp_path / "zip")


def test_sparse_files_beyond_the_limit_are_15(study: Path) -> None:
    with (study / "sparse").open("wb") as file:
        try:
            file.truncate(65 << 30)
        except OSError:
            pytest.skip("the file system has no file of 65 GiB")
    started = time.perf_counter()
    with pytest.raises(PixelDataError) as caught:
        content_hash(study)
    assert caught.value.key == "study_over_limits"
    assert time.perf_counter() - started < 0.5


def test_a_file_that_grows_for_ever_is_hashed_to_an_end(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.FileIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            return len(buffer)

    monkeypatch.setattr(study_snapshot, "open_regular", lambda path: Endless(path))
    first = content_hash(study)
    assert first == content_hash(study)


def test_sigterm_ends_the_hash_of_a_large_file(study: Path) -> None:
    program = (
        "import signal, sys\nfrom pathlib import Path\nfrom fourphase.runtime.study_snapshot import content_hash\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\nprint('ready', flush=True)\n"
        "content_hash(Path(sys.argv[1]))\n"
    )
    with (study / "sparse").open("wb") as file:
        try:
            file.truncate(60 << 30)
        except OSError:
            pytest.skip("the file system has no file of 60 GiB")
    with subprocess.Popen([sys.executable, "-c", program, str(study)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        REAL_SLEEP(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 143


# ---- the hash of the request


def test_request_hash_ignores_order_and_nothing_else() -> None:
    options = {"label": "1", "phase.NC": "2", "bundle": "ab"}
    hashes = [
        request_hash("00", b"box", options),
        request_hash("01", b"box", options),
        request_hash("00", b"box ", options),
        request_hash("00", b"", options),
        request_hash("00", b"box", {}),
        *(request_hash("00", b"box", {**options, name: "x"}) for name in (*options, "roi")),
        request_hash("00", b"box", {"label": "2", "phase.NC": "1", "bundle": "ab"}),
        request_hash("00", b"box", {"label,phase.NC": "1,2", "bundle": "ab"}),
    ]
    assert len(set(hashes)) == len(hashes)
    assert request_hash("00", b"box", dict(reversed(options.items()))) == hashes[0]
    assert len(bytes.fromhex(hashes[0])) == 32


@given(st.dictionaries(st.text(), st.text(), max_size=4), st.dictionaries(st.text(), st.text(), max_size=4))
def test_request_hashes_are_equal_for_equal_options_only(one: dict[str, str], other: dict[str, str]) -> None:
    assert (request_hash("00", b"", one) == request_hash("00", b"", other)) == (one == other)


@pytest.mark.parametrize("separator", [",", "&", "\0", "\n", '","'])
@pytest.mark.parametrize("equals", ["=", ":", "\0", '":"'])
def test_a_value_cannot_pose_as_another_option(separator: str, equals: str) -> None:
    posing = {"a": f"1{separator}b{equals}2"}
    assert request_hash("00", b"", posing) != request_hash("00", b"", {"a": "1", "b": "2"})


def test_arguments_that_are_no_text_can_be_hashed() -> None:
    assert request_hash("00", b"", {"phase.NC": os.fsdecode(b"sp\xe4t")}) != request_hash(
        "00", b"", {"phase.NC": "spt"}
    )
