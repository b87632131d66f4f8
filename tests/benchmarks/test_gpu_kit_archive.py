"""A kit on its way: what is packed comes out, and nothing else gets in."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fourphase.benchmarks.gpu.kit import SCHEMA
from fourphase.benchmarks.gpu.kit_archive import install_wheels, is_archive, pack, unpack
from fourphase.runtime.errors import IntegrityError, ModelIncompatible


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "kit"
    (folder / "bundle" / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(np.random.default_rng(0).bytes(1 << 20))
    (folder / "bundle" / "deep" / "b.bin").write_bytes((folder / "a.bin").read_bytes() + b"!")
    return folder


def test_what_is_packed_comes_out_and_the_same_is_stored_once(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "kit.tar.xz"
    assert is_archive(archive)
    assert not is_archive(folder)
    assert pack(folder, archive) == archive.stat().st_size < (1 << 20) + (1 << 17)
    found = unpack(archive, tmp_path / "out")
    for name in ("a.bin", "bundle/deep/b.bin"):
        assert (found / name).read_bytes() == (folder / name).read_bytes()
    with tarfile.open(archive) as members:
        assert {(member.uid, member.uname, member.mtime) for member in members} == {(0, "", 0)}


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside"])
def test_a_member_outside_is_refused(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "kit.tar.xz"
    with lzma.open(archive, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as members:
        member = tarfile.TarInfo(name)
        member.size = 1
        members.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(IntegrityError, match="no plain file"):
        unpack(archive, tmp_path / "out")


def test_a_link_and_a_damaged_archive_are_refused(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "kit.tar.xz"
    (folder / "link").symlink_to("a.bin")
    pack(folder, archive)
    with pytest.raises(IntegrityError, match="'link'"):
        unpack(archive, tmp_path / "one")
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(ModelIncompatible, match="cannot be unpacked"):
        unpack(archive, tmp_path / "two")


def wheel(path: Path, tag: str) -> dict[str, str]:
    """A wheel with one module, and its record in a kit's manifest."""
    name = f"fourphase_carried-1.0-{tag}.whl"
    (path / "wheels").mkdir(exist_ok=True)
    info = "fourphase_carried-1.0.dist-info"
    with zipfile.ZipFile(path / "wheels" / name, "w") as archive:
        archive.writestr("fourphase_carried.py", "VALUE = 7\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fourphase-carried\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    data = (path / "wheels" / name).read_bytes()
    return {"file": f"wheels/{name}", "sha256": hashlib.sha256(data).hexdigest()}


def test_wheels_are_installed_and_one_for_another_python_is_said(tmp_path: Path) -> None:
    records = [wheel(tmp_path, "py3-none-any"), wheel(tmp_path, "cp27-cp27m-win32")]
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": SCHEMA, "wheels": records}))
    found = install_wheels(tmp_path, tmp_path / "site")
    good, other = found.values()
    assert good == "installed"
    assert "not a supported wheel" in other
    assert (tmp_path / "site" / "fourphase_carried.py").is_file()
    assert "fourphase_carried" not in sys.modules
    (tmp_path / records[0]["file"]).write_bytes(b"changed")
    with pytest.raises(IntegrityError, match="fourphase_carried"):
        install_wheels(tmp_path, tmp_path / "site")
