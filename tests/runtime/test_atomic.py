from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fourphase.runtime.atomic import new_directory, write_file
from fourphase.runtime.errors import OutputNotWritable


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make_old(folder: Path) -> Path:
    target = folder / "target"
    target.mkdir()
    (target / "old.txt").write_text("old")
    return target


def test_write_file_creates_parents_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "result.json"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["result.json"]


def test_write_file_obeys_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_file(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_write_file_on_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputNotWritable, match="no space left") as caught:
        write_file(path, b"new")
    assert caught.value.code == 30
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_write_file_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputNotWritable):
        write_file(tmp_path / "file" / "below", b"")


def test_new_directory_appears_complete_under_its_name(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "target"
    with new_directory(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"new")
        assert not target.exists()
        assert folder.parent == target.parent
    assert (target / "deep" / "file").read_bytes() == b"new"
    assert names(target.parent) == ["target"]


def test_new_directory_replaces_the_whole_old_one(tmp_path: Path) -> None:
    target = make_old(tmp_path)
    with new_directory(target) as folder:
        (folder / "new.txt").write_text("new")
        assert names(target) == ["old.txt"]
    assert names(target) == ["new.txt"]
    assert names(tmp_path) == ["target"]


def test_new_directory_follows_a_link_instead_of_replacing_it(tmp_path: Path) -> None:
    target = make_old(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(target)
    with new_directory(link) as folder:
        (folder / "new.txt").write_text("new")
    assert link.is_symlink()
    assert names(target) == ["new.txt"]


def write_half(target: Path, error: BaseException) -> None:
    with new_directory(target) as folder:
        (folder / "half.txt").write_text("half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_directory_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = make_old(tmp_path)
    with pytest.raises(type(error)):
        write_half(target, error)
    assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["target"]


def test_a_full_disk_leaves_the_old_directory(tmp_path: Path) -> None:
    target = make_old(tmp_path)
    with pytest.raises(OutputNotWritable, match="no space left"), new_directory(target):
        full_disk()
    assert names(tmp_path) == ["target"]
    assert names(target) == ["old.txt"]


def test_a_failed_last_rename_puts_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_old(tmp_path)
    rename = Path.rename

    def rename_but_not_in(path: Path, to: Path) -> Path:
        if path.suffix == ".tmp":
            full_disk()
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", rename_but_not_in)
    with pytest.raises(OutputNotWritable), new_directory(target) as folder:
        (folder / "new.txt").write_text("new")
    assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["target"]


def test_a_file_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    with pytest.raises(OutputNotWritable, match="not a directory"), new_directory(tmp_path / "target"):
        pytest.fail("the block must not run")
    assert (tmp_path / "target").read_bytes() == b"mine"


def test_files_reach_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    synced: set[int] = set()
    sync = os.fsync

    def record(descriptor: int) -> None:
        if not target.exists():
            synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with new_directory(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_bytes(b"x")
    assert {path.stat().st_ino for path in (target, target / "deep", target / "deep" / "file")} <= synced


def test_a_process_that_dies_in_the_block_leaves_the_old_directory(tmp_path: Path) -> None:
    target = make_old(tmp_path)
    script = (
        "import os, sys; from pathlib import Path; from fourphase.runtime.atomic import new_directory\n"
        "with new_directory(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half.txt').write_text('half'); os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode == 9
    assert names(target) == ["old.txt"]
