from __future__ import annotations

import gzip
import io
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourphase.runtime import study_archive
from fourphase.runtime.errors import FourphaseError, InputMissing, NoUsableCT, OutputNotWritable, PixelDataError
from fourphase.runtime.private_copy import TMP_VARIABLE
from fourphase.runtime.study import read_study
from fourphase.runtime.study_archive import Limits, OpenedStudy, open_study
from tests.support.dicom import file_bytes, slice_dataset, stored_values, write_phases

Entries = dict[str, bytes]
#: Offsets in an entry of the zip's directory, APPNOTE 4.3.12.
FLAGS, METHOD, PACKED_BYTES, BYTES, OFFSET, NAME = 8, 10, 20, 24, 42, 46
SMALL: Entries = {"s2/MARKER^A": b"one" * 400, "s2/MARKER^B": bytes(range(256)) * 9, "s3/x/MARKER^C": b""}


@pytest.fixture(autouse=True)
def area(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where zips are unpacked; it must be empty after every test."""
    area = tmp_path / "area"
    area.mkdir()
    monkeypatch.setenv(TMP_VARIABLE, str(area))
    yield area
    assert list(area.iterdir()) == []


def zip_bytes(entries: Entries, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def written(folder: Path, data: bytes) -> Path:
    path = folder / "MARKER.study"
    path.write_bytes(data)
    return path


def patched(data: bytes, field: int, value: bytes, entry: int = 0) -> bytes:
    """The zip with a field of an entry of its directory replaced."""
    place = -1
    for _ in range(entry + 1):
        place = data.index(b"PK\x01\x02", place + 1)
    return data[: place + field] + value + data[place + field + len(value) :]


def number(value: int) -> bytes:
    return struct.pack("<I", value)


def content(opened: OpenedStudy) -> Counter[tuple[str, bytes]]:
    """(folder, bytes) of every file."""
    files = [path for path in opened.folder.rglob("*") if not path.is_dir()]
    return Counter((path.parent.relative_to(opened.folder).as_posix(), path.read_bytes()) for path in files)


def expected(entries: Entries) -> Counter[tuple[str, bytes]]:
    return Counter((name.rpartition("/")[0] or ".", data) for name, data in entries.items())


def refused(path: Path, limits: Limits | None = None) -> FourphaseError:
    with pytest.raises(FourphaseError) as caught, open_study(path, limits=limits):
        pass
    assert "MARKER" not in caught.value.message + caught.value.hint
    return caught.value


def outcome(path: Path) -> tuple[str, Counter[tuple[str, bytes]], int]:
    """The key of the error of code 10 or 15, '' without one; what was read, and how many entries are said not to be."""
    try:
        with open_study(path) as opened:
            skipped = notices(opened).get("archive_entries_skipped", ": 0")
            return "", content(opened), int(skipped.rpartition(" ")[2])
    except (InputMissing, PixelDataError) as error:
        return error.key, Counter(), 0


def notices(opened: OpenedStudy) -> dict[str, str]:
    assert not any("MARKER" in notice.message for notice in opened.warnings)
    return {notice.key: notice.message for notice in opened.warnings}


# ---- what is opened


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    with open_study(tmp_path) as opened:
        assert opened == OpenedStudy(tmp_path, "folder", ())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_like_its_folder(tmp_path: Path, method: int) -> None:
    write_phases(tmp_path / "study")
    files = [path for path in (tmp_path / "study").rglob("*") if path.is_file()]
    entries = {path.relative_to(tmp_path / "study").as_posix(): path.read_bytes() for path in files}
    path = written(tmp_path, zip_bytes(entries, method))
    plain = read_study(tmp_path / "study")
    with open_study(path) as opened:
        study = read_study(opened.folder)
        assert opened.kind == "zip"
        assert opened.warnings == ()
        assert content(opened) == expected(entries)
    assert study.uid == plain.uid
    assert [series.folder for series in study.series] == ["s2", "s3", "s4", "s5"]
    assert [[one.sop_instance_uid for one in series.slices] for series in study.series] == [
        [one.sop_instance_uid for one in series.slices] for series in plain.series
    ]


def test_a_link_to_a_zip_is_followed_and_the_zip_is_only_read(tmp_path: Path) -> None:
    path = written(tmp_path, zip_bytes(SMALL))
    path.chmod(0o400)
    before = path.read_bytes(), path.stat().st_mtime_ns
    (tmp_path / "link").symlink_to(path)
    with open_study(tmp_path / "link") as opened:
        assert content(opened) == expected(SMALL)
    assert before == (path.read_bytes(), path.stat().st_mtime_ns)


def test_an_empty_zip_holds_no_ct(tmp_path: Path) -> None:
    with pytest.raises(NoUsableCT, match="no files"), open_study(written(tmp_path, zip_bytes({}))) as opened:
        read_study(opened.folder)


def test_zip64_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in SMALL.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    assert b"PK\x06\x06" in buffer.getvalue()
    with open_study(written(tmp_path, buffer.getvalue())) as opened:
        assert content(opened) == expected(SMALL)


class Unseekable(io.RawIOBase):
    """stdout of a program that packs: sizes follow the data (APPNOTE 4.3.9)."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.data += bytes(data)
        return len(data)


def test_a_zip_written_as_a_stream_is_read(tmp_path: Path) -> None:
    stream = Unseekable()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in SMALL.items():
            archive.writestr(name, data)
    assert b"PK\x07\x08" in stream.data
    with open_study(written(tmp_path, stream.data)) as opened:
        assert content(opened) == expected(SMALL)


# ---- the private copy


def test_the_copy_is_private_and_goes(tmp_path: Path, area: Path) -> None:
    old = os.umask(0)
    try:
        with open_study(written(tmp_path, zip_bytes(SMALL))) as opened:
            assert opened.folder.parent == area
            assert stat.S_IMODE(opened.folder.stat().st_mode) == 0o700
            modes = {stat.S_IMODE(path.stat().st_mode) for path in opened.folder.rglob("*") if path.is_file()}
    finally:
        os.umask(old)
    assert modes == {0o600}
    assert not opened.folder.exists()


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_the_copy_goes_after_any_exception(tmp_path: Path, error: type[BaseException]) -> None:
    path = written(tmp_path, zip_bytes(SMALL))
    folders: list[Path] = []

    def use() -> None:
        with open_study(path) as opened:
            folders.extend(opened.folder.iterdir())
            raise error

    with pytest.raises(error):
        use()
    assert len(folders) == 2
    assert not any(folder.parent.exists() for folder in folders)


def test_the_copy_goes_after_sigterm(tmp_path: Path, area: Path) -> None:
    program = (
        "import sys, time, typer\nfrom pathlib import Path\n"
        "from fourphase.runtime.console import run_app\nfrom fourphase.runtime.study_archive import open_study\n"
        "app = typer.Typer()\n@app.command()\ndef main(path: Path) -> None:\n"
        "    with open_study(path):\n        print('open', flush=True)\n        time.sleep(60)\nrun_app(app, 'test')\n"
    )
    path = written(tmp_path, zip_bytes(SMALL))
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert len(list(area.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 143


def test_no_place_to_unpack_is_30(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TMP_VARIABLE, str(tmp_path / "missing"))
    error = refused(written(tmp_path, zip_bytes(SMALL)))
    assert (error.code, error.key) == (30, "unpack_not_writable")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_full_disk_is_30(tmp_path: Path, method: int) -> None:
    """The system refuses to let a file grow, as a full disk does."""
    path = written(tmp_path, zip_bytes({"a": b"", "b": os.urandom(300_000)}, method))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        error = refused(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(error, OutputNotWritable)


# ---- names


@pytest.mark.parametrize(
    "name",
    [
        "../MARKER/x", "a/../../MARKER/x", "a/..", "a/../b/x", "/MARKER/x", "//MARKER/x", "C:/MARKER/x", "c:MARKER/x",
        "..\\MARKER\\x", "\\MARKER\\x", "\\\\host\\MARKER\\x", "C:\\MARKER\\x", "a\0b/x", "a\nb/x", "\x7f/x",
        "MARKER" * 60 + "/x", "a/" * 600 + "x", "x.fourphase/y", "000001.fourphase/y",
    ],
)  # fmt: skip
def test_unsafe_folders_are_renamed(tmp_path: Path, name: str) -> None:
    data = zip_bytes({"N" * len(name.encode()): b"unsafe", "a/x": b"safe"})
    data = data.replace(b"N" * len(name.encode()), name.encode())
    before = sorted(tmp_path.rglob("*"))
    path = written(tmp_path, data)
    with open_study(path) as opened:
        files = [file for file in opened.folder.rglob("*") if file.is_file()]
        outside = set(tmp_path.rglob("*")) - set(opened.folder.rglob("*")) - {opened.folder, path, *before}
        assert {file.read_bytes() for file in files} == {b"unsafe", b"safe"}
        assert all(file.is_relative_to(opened.folder) for file in files)
        assert not any("MARKER" in str(file.relative_to(opened.folder)) for file in files)
        assert list(notices(opened)) == ([] if name == "a/.." else ["archive_unsafe_folders"])
    assert outside == set()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("x", "."), ("..", "."), ("a\0", "."), ("s2/x", "s2"), ("a b/Spätphase/动脉期/x", "a b/Spätphase/动脉期"),
        ("s2\\y\\x", "s2/y"), ("./s2/.//x", "s2"), (".hidden/...", ".hidden"), ("10:15/x", "10:15"), ("~/x", "~"),
    ],
)  # fmt: skip
def test_safe_folders_keep_their_names_and_files_do_not(tmp_path: Path, name: str, folder: str) -> None:
    size = len(name.encode())
    data = patched(zip_bytes({"N" * size: b"x"}).replace(b"N" * size, name.encode()), FLAGS, struct.pack("<H", 0x800))
    with open_study(written(tmp_path, data)) as opened:
        (file,) = (path for path in opened.folder.rglob("*") if path.is_file())
        assert file.relative_to(opened.folder).as_posix() == f"{folder}/000000.fourphase".removeprefix("./")
        assert opened.warnings == ()


def test_utf8_names_without_the_flag_are_read_as_utf8(tmp_path: Path) -> None:
    data = patched(zip_bytes({"Spätphase/x": b"x"}), FLAGS, b"\0\0")
    with open_study(written(tmp_path, data)) as opened:
        assert content(opened) == {("Spätphase", b"x"): 1}


def test_names_in_code_page_437_are_read_as_such(tmp_path: Path) -> None:
    data = zip_bytes({"SpNtphase/x": b"x"}).replace(b"SpNt", "Spät".encode("cp437"))
    with open_study(written(tmp_path, data)) as opened:
        assert content(opened) == {("Spätphase", b"x"): 1}


def test_distinct_unsafe_folders_stay_distinct(tmp_path: Path) -> None:
    """Anonymised series without identifiers are told apart by their folders."""
    entries = {"../a/1": b"1", "../a/2": b"2", "../b/1": b"3", "/a/1": b"4"}
    with open_study(written(tmp_path, zip_bytes(entries))) as opened:
        folders = {path.read_bytes(): path.parent for path in opened.folder.rglob("*") if path.is_file()}
        assert folders[b"1"] == folders[b"2"]
        assert len(set(folders.values())) == 3


def test_files_of_one_name_are_all_read(tmp_path: Path) -> None:
    data = zip_bytes({"a/x": b"1", "a/y": b"2"}).replace(b"a/y", b"a/x")
    with open_study(written(tmp_path, data)) as opened:
        assert content(opened) == {("a", b"1"): 1, ("a", b"2"): 1}
        assert notices(opened)["archive_duplicate_names"].endswith(": 1")


def test_a_file_and_a_folder_of_one_name_are_both_read(tmp_path: Path) -> None:
    entries = {"a": b"1", "a/a": b"2", "a/000000": b"3"}
    with open_study(written(tmp_path, zip_bytes(entries))) as opened:
        assert content(opened) == expected(entries)


# ---- what is in it


def test_links_and_devices_are_skipped_and_counted(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.mkdir("folder") if hasattr(archive, "mkdir") else archive.writestr("folder/", b"")
        for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFREG, 0):
            info = zipfile.ZipInfo(f"folder/{kind}")
            info.external_attr = (kind | 0o777) << 16
            archive.writestr(info, b"/etc/passwd")
    with open_study(written(tmp_path, buffer.getvalue())) as opened:
        assert content(opened) == {("folder", b"/etc/passwd"): 2}
        assert not any(path.is_symlink() for path in opened.folder.rglob("*"))
        assert notices(opened) == {
            "archive_entries_skipped": "links or special entries of the zip were skipped: 4",
        }


def test_nested_archives_are_counted_and_not_unpacked(tmp_path: Path) -> None:
    dicom = file_bytes(slice_dataset(stored_values((1, 4, 4))[0], (0, 0, 0)))
    entries = {
        "zip": zip_bytes(SMALL),
        "gz": gzip.compress(b"x"),
        "dicom with a zip's start as preamble": b"PK\x03\x04" + dicom[4:],
        "text": b"text",
    }
    with open_study(written(tmp_path, zip_bytes(entries))) as opened:
        assert content(opened) == expected(entries)
        assert notices(opened)["archive_nested"].endswith(": 2")


@pytest.mark.parametrize("bit", [0x1, 0x40, 0x2000])
def test_encrypted_zips_are_10(tmp_path: Path, bit: int) -> None:
    error = refused(written(tmp_path, patched(zip_bytes(SMALL), FLAGS, struct.pack("<H", bit), entry=1)))
    assert (error.code, error.key) == (10, "archive_encrypted")


@pytest.mark.parametrize(
    ("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA"), (9, "Deflate64"), (77, "number 77")]
)
def test_other_methods_are_10_with_their_name(tmp_path: Path, method: int, name: str) -> None:
    if method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        data = zip_bytes(SMALL, method)
    else:
        data = patched(zip_bytes(SMALL), METHOD, struct.pack("<H", method))
    error = refused(written(tmp_path, data))
    assert (error.code, error.key) == (10, "archive_method")
    assert error.message.endswith(f"method {name}")


# ---- damage


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_content_is_15(tmp_path: Path, method: int, data: st.DataObject) -> None:
    content = os.urandom(2000)
    whole = zip_bytes({"x": content}, method)
    start = 31  # of the data: a local header and a name of one letter
    place = data.draw(st.integers(start, whole.index(b"PK\x01\x02", start) - 1))
    flipped = whole[place] ^ (1 << data.draw(st.integers(0, 7)))
    path = written(tmp_path, whole[:place] + bytes([flipped]) + whole[place + 1 :])
    key, found, _ = outcome(path)
    if key != "archive_corrupt":  # padding bits of deflate's last byte mean nothing
        assert (key, found, method) == ("", {(".", content): 1}, zipfile.ZIP_DEFLATED)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_zip_cut_anywhere_is_10(tmp_path: Path, data: st.DataObject) -> None:
    """Also one that holds stored zips, whose ends look like its own."""
    method = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    whole = zip_bytes({**SMALL, "z": zip_bytes(SMALL), "empty": zip_bytes({}), "last": b"x" * 50}, method)
    inner_ends = [place + 22 for place in range(len(whole)) if whole.startswith(b"PK\x05\x06", place)][:-1]
    cut = data.draw(st.integers(0, len(whole) - 1) | (st.sampled_from(inner_ends) if inner_ends else st.nothing()))
    error = refused(written(tmp_path, whole[:cut]))
    assert error.code == 10
    assert error.key == ("archive_damaged" if cut >= 4 else "input_missing")


@pytest.mark.parametrize(
    ("field", "value"),
    [(6, b"\x63\0"), (FLAGS, b"\0\x08"), (28, b"\xff"), (30, b"\xff"), (32, b"\x2f"), (32, b"\xff"), (OFFSET, b"\3")],
    ids=["version", "no UTF-8", "name", "extra field", "comment takes the next", "comment", "offset"],
)
def test_a_damaged_directory_is_10(tmp_path: Path, field: int, value: bytes) -> None:
    data = zip_bytes({"NN": b"x", "b": b"y"}).replace(b"NN", b"\xff\xff")
    assert refused(written(tmp_path, patched(data, field, value))).key == "archive_damaged"


def test_a_damaged_local_header_is_10(tmp_path: Path) -> None:
    data = zip_bytes(SMALL)
    second = data.index(b"PK\x03\x04", 4)
    assert refused(written(tmp_path, data[:second] + b"X" + data[second + 1 :])).key == "archive_damaged"


def test_an_offset_beyond_all_numbers_is_10(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"1")
        info = zipfile.ZipInfo("b")
        info.extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)
        archive.writestr(info, b"2")
    data = patched(buffer.getvalue(), OFFSET, b"\xff" * 4, entry=1)
    assert refused(written(tmp_path, data)).key == "archive_damaged"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(st.tuples(st.binary(min_size=1, max_size=4), st.integers(1, 300)), max_size=8))
def test_pieces_may_end_anywhere_in_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[tuple[bytes, int]]
) -> None:
    """The inflater keeps what it has read but could not give, also when its input is used up."""
    entries = {"a": b"".join(unit * count for unit, count in runs)}
    with monkeypatch.context() as patch:
        patch.setattr(study_archive, "_CHUNK", 64)
        with open_study(written(tmp_path, zip_bytes(entries))) as opened:
            assert content(opened) == expected(entries)


@pytest.mark.parametrize("claimed", [0, 1, 1199, 1201, 2**32 - 2])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_lying_size_is_15(tmp_path: Path, claimed: int, method: int) -> None:
    path = written(tmp_path, patched(zip_bytes(SMALL, method), BYTES, number(claimed)))
    error = refused(path)
    assert (error.code, error.key) == (15, "archive_over_limits" if claimed > 2**31 else "archive_corrupt")


def test_a_stream_that_ends_early_is_15(tmp_path: Path) -> None:
    """The deflate stream has no last block, yet gives all bytes that are claimed, and their checksum is right."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = packer.compress(b"x" * 5000) + packer.flush(zlib.Z_SYNC_FLUSH)
    whole = zip_bytes({"x": packed}, zipfile.ZIP_STORED)
    data = patched(whole, METHOD, struct.pack("<H", 8))
    data = patched(patched(data, 16, number(zlib.crc32(b"x" * 4000))), BYTES, number(4000))
    assert refused(written(tmp_path, data)).key == "archive_corrupt"


def test_entries_that_share_their_data_are_10(tmp_path: Path) -> None:
    whole = zip_bytes({"a": b"0" * 1000, "b": b"0" * 1000})
    error = refused(written(tmp_path, patched(whole, OFFSET, number(0), entry=1)))
    assert (error.code, error.key) == (10, "archive_overlap")


def test_an_entry_within_anothers_data_is_10(tmp_path: Path) -> None:
    """Fifield's bomb quotes the next local header as stored data; every size and checksum is true."""
    inner = zip_bytes({"b": b"1" * 100}, zipfile.ZIP_STORED)
    whole = zip_bytes({"a": inner[: inner.index(b"PK\x01\x02")], "b": b"1" * 100}, zipfile.ZIP_STORED)
    error = refused(written(tmp_path, patched(whole, OFFSET, number(31), entry=1)))
    assert (error.code, error.key) == (10, "archive_overlap")


def test_data_that_runs_into_the_directory_is_10(tmp_path: Path) -> None:
    error = refused(written(tmp_path, patched(zip_bytes({"a": b"x"}), PACKED_BYTES, number(500))))
    assert error.key == "archive_overlap"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutants_never_crash_nor_give_other_content(tmp_path: Path, area: Path, data: st.DataObject) -> None:
    method = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    names = st.sampled_from(["a", "b/c", "b\\d", "../e", "/f", "g/", "C:/h", "i/j/k/l"])
    entries = data.draw(st.dictionaries(names, st.binary(max_size=300), max_size=5))
    raw = bytearray(zip_bytes(entries, method))
    signatures = [place for place in range(len(raw)) if raw.startswith(b"PK", place)]
    for _ in range(data.draw(st.integers(1, 5))):
        near = data.draw(st.sampled_from(signatures)) + data.draw(st.integers(0, 60))
        place = min(data.draw(st.just(near) | st.integers(0, len(raw) - 1)), len(raw) - 1)
        raw[place] = data.draw(st.integers(0, 255))
    path = written(tmp_path, bytes(raw))
    key, found, skipped = outcome(path)
    assert key == "" or key.startswith("archive_") or key == "input_missing"
    given, kept = Counter(filter(None, entries.values())), Counter[bytes]()
    for (_, data_), count in found.items():
        kept[data_] += count
    del kept[b""]
    assert kept <= given
    assert key or (given - kept).total() <= skipped  # nothing is lost without a word; empty files may be skipped too
    assert sorted(tmp_path.iterdir()) == [path, area]
    assert list(area.iterdir()) == []


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.binary(max_size=60))
def test_random_bytes_are_10(tmp_path: Path, body: bytes, tail: bytes) -> None:
    assert refused(written(tmp_path, b"PK\x03\x04" + body + b"PK\x05\x06" + tail)).code == 10


# ---- bombs


@pytest.fixture
def disk_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all writes."""
    sizes: list[int] = []
    real = study_archive._write

    def write(output: io.FileIO, piece: bytes) -> None:
        sizes.append(len(piece))
        real(output, piece)

    monkeypatch.setattr(study_archive, "_write", write)
    return sizes


def bomb(size: int) -> bytes:
    """Zeros, packed a thousand times smaller."""
    return zip_bytes({"x": bytes(size)})


def test_an_honest_bomb_costs_nothing(tmp_path: Path, disk_bytes: list[int]) -> None:
    """The sizes that zip64 claims here are as good as true: nothing is inflated."""
    claimed = patched(bomb(1 << 20), BYTES, number(2**31))
    path = written(tmp_path, claimed)
    started = time.perf_counter()
    error = refused(path)
    assert (error.code, error.key) == (15, "archive_over_limits")
    assert sum(disk_bytes) == 0
    assert time.perf_counter() - started < 0.5


def test_a_bomb_that_claims_little_ends_at_its_claim(tmp_path: Path, disk_bytes: list[int]) -> None:
    path = written(tmp_path, patched(bomb(64 << 20), BYTES, number(3 << 20)))
    assert refused(path).key == "archive_corrupt"
    assert sum(disk_bytes) <= 3 << 20
    assert max(disk_bytes) <= 1 << 20


@pytest.mark.parametrize(
    ("limits", "cause"),
    [
        (Limits(members=2), "more than 2 entries"),
        (Limits(directory_bytes=40), "table of contents"),
        (Limits(member_bytes=1 << 20), "a file in it unpacks to more than 1 MiB"),
        (Limits(total_bytes=3 << 20), "more than 3 MiB"),
        (Limits(ratio_free_bytes=0), "more than 100 times"),
        (Limits(seconds=-1), "too long"),
    ],
)
def test_every_limit_is_15(tmp_path: Path, limits: Limits, cause: str) -> None:
    path = written(tmp_path, zip_bytes({name: bytes(4 << 19) for name in "abc"}))
    error = refused(path, limits)
    assert (error.code, error.key) == (15, "archive_over_limits")
    assert cause in error.message
    with open_study(path) as opened:
        assert len(content(opened)) == 1


def test_a_lying_directory_is_not_read_into_memory(tmp_path: Path) -> None:
    """A sparse file of 3 GiB whose end says that nearly all of it is the table of contents."""
    path = tmp_path / "MARKER"
    size = 3 << 30
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size - 4, 4, 0))
    started = time.perf_counter()
    assert refused(path).key == "archive_over_limits"
    assert time.perf_counter() - started < 0.5


# ---- what is no zip


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("MARKER"), io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("tar", tar()),
        ("gzip", gzip.compress(tar())),
        ("7z", b"7z\xbc\xaf\x27\x1c" + bytes(100)),
        ("rar", b"Rar!\x1a\x07\x01\0" + bytes(100)),
        ("ISO image", bytes(32769) + b"CD001" + bytes(100)),
    ],
)
def test_other_archives_are_10_with_kind_and_cure(tmp_path: Path, kind: str, data: bytes) -> None:
    error = refused(written(tmp_path, data))
    assert (error.code, error.key) == (10, "archive_unsupported")
    assert kind in error.message
    assert "unpack it" in error.hint


def test_a_single_dicom_file_is_10_with_the_cure(tmp_path: Path) -> None:
    error = refused(written(tmp_path, file_bytes(slice_dataset(stored_values((1, 4, 4))[0], (0, 0, 0)))))
    assert (error.code, error.key) == (10, "single_file")
    assert "folder that holds it" in error.hint


def test_other_files_are_10(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "MARKER_fifo")
    (tmp_path / "MARKER_text").write_text("text")
    (tmp_path / "MARKER_empty").touch()
    for name in ("fifo", "text", "empty"):
        error = refused(tmp_path / f"MARKER_{name}")
        assert isinstance(error, InputMissing)
        assert "is not a folder" in error.message
        assert "zip" in error.hint
    assert "does not exist" in refused(tmp_path / "MARKER_none").message


def test_unreadable_files_are_10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> io.FileIO:
        raise PermissionError

    monkeypatch.setattr(study_archive, "open_regular", refuse)
    assert "cannot be read" in refused(written(tmp_path, zip_bytes(SMALL))).message
