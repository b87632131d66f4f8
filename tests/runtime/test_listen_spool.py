"""The spool holds what was acknowledged, once, whatever happens to the process or the disk."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import config, dcmread

from fourphase.runtime.errors import OutputNotWritable
from fourphase.runtime.listen import files as listen_files
from fourphase.runtime.listen import spool as listen_spool
from fourphase.runtime.listen.instance import Refused, read_identity
from fourphase.runtime.listen.spool import Spool
from fourphase.runtime.listen.state import StudyState, read_state, write_state
from tests.support.dicom import file_bytes, uid
from tests.support.listen import ct_image, keep, rtstruct


def opened(root: Path, limit: int = 10**9) -> Spool:
    return Spool(root, limit)


def instances(root: Path) -> list[Path]:
    return sorted(root.glob("studies/*/instances/*"))


def test_what_was_kept_is_there_byte_for_byte_after_a_restart(tmp_path: Path) -> None:
    images = [ct_image(index) for index in range(3)]
    spool = opened(tmp_path)
    assert [keep(spool, image) for image in images] == [True, True, True]
    [entry] = opened(tmp_path).entries
    assert entry.state.uid == uid("study")
    assert {path.read_bytes() for path in instances(tmp_path)} == {file_bytes(image) for image in images}


def test_no_identifier_is_in_a_name(tmp_path: Path) -> None:
    keep(opened(tmp_path), ct_image())
    names = " ".join(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    for marker in (uid("study"), uid("image", 0), "MARKER"):
        assert marker not in names
    assert len({Spool(tmp_path / name, 10**9).key(uid("study")) for name in "ab"}) == 2  # salted


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    keep(opened(tmp_path / "spool"), ct_image())
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert instances(tmp_path / "spool")[0].stat().st_mode & 0o077 == 0


def test_a_resend_is_known_and_a_correction_replaces(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    assert keep(spool, ct_image())
    spool.names(spool.entries[0])
    assert not keep(spool, ct_image())
    assert not spool.entries[0].news
    assert keep(spool, ct_image(0, SeriesNumber=9))  # the same instance, another content
    assert spool.entries[0].news
    [path] = instances(tmp_path)
    assert dcmread(path).SeriesNumber == 9
    assert not keep(opened(tmp_path), ct_image(0, SeriesNumber=9))  # known after a restart as well


def test_of_two_contents_that_a_crash_left_the_later_one_counts(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    keep(spool, ct_image())
    [old] = instances(tmp_path)
    saved = old.read_bytes()
    keep(spool, ct_image(0, SeriesNumber=9))
    [new] = instances(tmp_path)
    old.write_bytes(saved)
    os.utime(old, (1, 1))
    again = opened(tmp_path)
    assert again.names(again.entries[0]) == {new.name}
    assert instances(tmp_path) == [new]


@pytest.mark.parametrize("step", ["mkdir", "state", "rename", "sync"])
def test_a_crash_while_keeping_loses_only_what_was_not_acknowledged(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends at one step of the second study's first instance; the first study's is safe."""

    class Killed(BaseException):
        pass

    def killed(*arguments: object, **options: object) -> None:
        raise Killed

    def killed_at_last(folder: Path) -> None:
        if folder.name == "instances":
            raise Killed

    spool = opened(tmp_path)
    keep(spool, ct_image())
    target = {"mkdir": "Entry", "state": "write_state", "rename": "os.replace", "sync": "sync_folder"}[step]
    monkeypatch.setattr(f"fourphase.runtime.listen.spool.{target}", killed_at_last if step == "sync" else killed)
    with pytest.raises(Killed):
        keep(spool, ct_image(1, StudyInstanceUID=uid("other"), SOPInstanceUID=uid("other image")))
    monkeypatch.undo()
    again = opened(tmp_path)
    known = {entry.state.uid: again.names(entry) for entry in again.entries}
    assert len(known[uid("study")]) == 1
    assert not list((tmp_path / "incoming").iterdir())
    assert keep(again, ct_image(1, StudyInstanceUID=uid("other"), SOPInstanceUID=uid("other image"))) is (
        step != "sync"
    )
    assert len(again.names(next(one for one in again.entries if one.state.uid == uid("other")))) == 1


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_is_answered_out_of_resources_and_leaves_nothing(
    tmp_path: Path, fault: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    used = spool.used_bytes

    def full(descriptor: int) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refused) as caught:
        keep(spool, ct_image())
    assert caught.value.status == 0xA700
    monkeypatch.undo()
    assert not list(tmp_path.glob("incoming/*"))
    assert spool.used_bytes == used
    assert keep(spool, ct_image())


def test_a_state_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = opened(tmp_path)

    def full(path: Path, state: StudyState) -> None:
        raise OutputNotWritable("full", "free space")

    monkeypatch.setattr(listen_spool, "write_state", full)
    with pytest.raises(Refused) as caught:
        keep(spool, ct_image())
    assert caught.value.status == 0xA700
    assert not instances(tmp_path)
    assert not opened(tmp_path).entries


def test_the_limit_counts_what_is_there_and_is_freed_with_it(tmp_path: Path) -> None:
    spool = opened(tmp_path, 2 * listen_files.SMALLEST + 100)
    keep(spool, ct_image(0))
    keep(spool, ct_image(1))
    with pytest.raises(Refused) as caught:
        keep(spool, ct_image(2))
    assert (caught.value.status, caught.value.reason) == (0xA700, "spool_limit")
    again = opened(tmp_path, 2 * listen_files.SMALLEST + 100)
    assert again.used_bytes == spool.used_bytes == 2 * listen_files.SMALLEST
    again.names(again.entries[0])
    again.delete_files(again.entries[0])
    assert again.used_bytes == 0
    assert keep(again, ct_image(2))


def test_room_is_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = opened(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 2**20))
    with pytest.raises(Refused) as caught:
        keep(spool, ct_image())
    assert (caught.value.status, caught.value.reason) == (0xA700, "disk_full")


def test_a_snapshot_stays_as_it_is(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    keep(spool, ct_image())
    [entry] = spool.entries
    folder = spool.snapshot(entry, spool.names(entry))
    assert folder is not None
    keep(spool, ct_image(0, SeriesNumber=9))
    keep(spool, ct_image(1))
    [path] = folder.iterdir()
    assert dcmread(path).SeriesNumber == 1
    assert spool.snapshot(entry, frozenset({path.name})) is None  # replaced meanwhile
    assert not list((opened(tmp_path).root / "work").iterdir())


def test_files_of_a_study_with_news_are_not_deleted(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    keep(spool, ct_image())
    [entry] = spool.entries
    spool.delete_files(entry)
    spool.forget(entry)
    assert len(instances(tmp_path)) == 1


def test_a_damaged_state_loses_no_image_and_stops_nobody(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    keep(spool, ct_image())
    keep(spool, ct_image(1, StudyInstanceUID=uid("other")))
    (spool.folder(spool.key(uid("study"))) / "state.json").write_bytes(b'{"schema": "fourph')
    again = opened(tmp_path)
    assert [entry.state.uid for entry in again.entries] == [uid("other")]
    assert again.damaged == 1
    assert len(instances(tmp_path)) == 2
    assert not keep(again, ct_image())  # whatever comes of it makes the state anew, also what is there already
    entry = next(one for one in again.entries if one.state.uid == uid("study"))
    assert entry.news
    assert len(again.names(entry)) == 1


def test_a_file_that_is_none_of_ours_is_left_alone(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "studies" / "notes.txt").touch()
    assert (opened(tmp_path).entries, opened(tmp_path).damaged) == ([], 0)
    assert (tmp_path / "studies" / "notes.txt").exists()


def test_a_damaged_salt_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "salt").write_bytes(b"")
    with pytest.raises(OutputNotWritable) as caught:
        opened(tmp_path)
    assert caught.value.key == "spool_salt"


TEXT = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=20)


@given(
    st.builds(
        StudyState,
        uid=TEXT,
        state=st.sampled_from(("receiving", "waiting", "running", "done", "failed")),
        content=st.lists(TEXT).map(tuple),
        attempts=st.integers(0, 9),
        error=st.none() | st.fixed_dictionaries({"code": st.integers(1, 40), "key": TEXT}),
        changed=st.floats(0, 1e10),
    ),
    st.data(),
)
def test_a_state_comes_back_or_is_known_to_be_damaged(
    tmp_path_factory: pytest.TempPathFactory, state: StudyState, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("state") / "state.json"
    write_state(path, state)
    assert read_state(path) == state
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 3))
    path.write_bytes(whole[:cut])
    assert read_state(path) is None


def written(folder: Path, data: bytes) -> Path:
    path = folder / "instance"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"StudyInstanceUID": None}, "study_uid_missing"),
        ({"StudyInstanceUID": ""}, "study_uid_missing"),
        ({"StudyInstanceUID": ".."}, "study_uid_missing"),
        ({"StudyInstanceUID": "1"}, "study_uid_missing"),
        ({"SOPInstanceUID": "1.2.3.4"}, "command_contradicts_data"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "command_contradicts_data"),
    ],
)
def test_an_instance_that_is_not_what_the_command_says_is_refused(
    tmp_path: Path, elements: dict[str, str | None], reason: str
) -> None:
    with config.disable_value_validation():
        path = written(tmp_path, file_bytes(ct_image(0, **elements)))
    with pytest.raises(Refused) as caught:
        read_identity(path, "1.2.840.10008.5.1.4.1.1.2", uid("image", 0))
    assert (caught.value.status, caught.value.reason) == (0xA900, reason)


def test_a_path_in_the_place_of_a_uid_is_refused(tmp_path: Path) -> None:
    data = file_bytes(ct_image()).replace(uid("study").encode(), b"../../../../etc/x".ljust(len(uid("study")), b"y"))
    with pytest.raises(Refused) as caught:
        read_identity(written(tmp_path, data), "1.2.840.10008.5.1.4.1.1.2", uid("image", 0))
    assert caught.value.status == 0xA900


@given(st.binary(max_size=400) | st.tuples(st.integers(132, 700), st.binary(min_size=1, max_size=8)))
def test_any_bytes_are_an_instance_or_refused(
    tmp_path_factory: pytest.TempPathFactory, mutation: bytes | tuple[int, bytes]
) -> None:
    whole = file_bytes(rtstruct())
    if isinstance(mutation, bytes):
        data = whole[:132] + mutation
    else:
        data = whole[: mutation[0]] + mutation[1] + whole[mutation[0] + len(mutation[1]) :]
    path = written(tmp_path_factory.mktemp("bytes"), data)
    try:
        identity = read_identity(path, "1.2.840.10008.5.1.4.1.1.481.3", uid("rtstruct"))
    except Refused as refused:
        status = refused.status
    else:
        status = 0 if set(identity.study_uid) <= set("0123456789.") else 1
    assert status in (0, 0xA900, 0xC000)
