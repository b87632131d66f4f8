"""A kit on its way: one compressed file, and the wheels that it carries for a machine that reaches no registry.

The archive is a tar in xz whose window is wide enough to store a weight once that lies in several models. What the kit
holds is not known here.
"""

from __future__ import annotations

import io
import lzma
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourphase.benchmarks.gpu.kit import read_manifest, verified
from fourphase.runtime.atomic import write_file
from fourphase.runtime.bundle import is_safe_name
from fourphase.runtime.errors import IntegrityError, ModelIncompatible

__all__ = ["SUFFIX", "install_wheels", "is_archive", "pack", "unpack"]

SUFFIX = ".tar.xz"
#: The whole of a kit of width 16 lies within it; unpacking takes as much memory.
_WINDOW = 128 << 20
_PIP_SECONDS = 120


def is_archive(path: Path) -> bool:
    return path.name.endswith(SUFFIX)


def pack(folder: Path, target: Path) -> int:
    """Writes the folder's files into one archive; returns its bytes. Raises: OutputNotWritable (30)."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": _WINDOW}]
    packed = io.BytesIO()
    with lzma.open(packed, "wb", filters=filters) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.add(file, file.relative_to(folder).as_posix(), filter=_anonymous)
    write_file(target, packed.getvalue())
    return len(packed.getvalue())


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks a kit into a new folder, which is returned.

    Raises: ModelIncompatible (20) if it is no archive; IntegrityError (21) for a member that is not a plain file inside
        of it.
    """
    folder.mkdir(parents=True)
    try:
        with lzma.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as members:
            for member in members:
                content = members.extractfile(member) if member.isreg() and is_safe_name(member.name) else None
                if content is None:
                    raise IntegrityError(f"the kit holds {member.name!r}, which is no plain file", "prepare it again")
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    except (OSError, lzma.LZMAError, tarfile.TarError, EOFError) as error:
        raise ModelIncompatible(
            f"the kit {archive.name} cannot be unpacked: {error}", "copy or prepare it again", key="kit_invalid"
        ) from error
    return folder


def install_wheels(kit: Path, site: Path) -> dict[str, str]:
    """Installs the kit's wheels into the folder `site`, without a registry and without what they need.

    Returns: wheel -> "installed", or what pip says: a wheel for another Python is no error.

    Raises: ModelIncompatible, IntegrityError.
    """
    records: list[Mapping[str, Any]] = read_manifest(kit)["wheels"]
    site.mkdir(parents=True, exist_ok=True)
    return {Path(record["file"]).name: _installed(kit, record, site) for record in records}


def _installed(kit: Path, record: Mapping[str, Any], site: Path) -> str:
    verified(kit, record)
    options = ["--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", "--target", str(site)]
    command = [sys.executable, "-m", "pip", "install", "-q", *options, str(kit / record["file"])]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"pip does not run ({type(error).__name__})"
    if run.returncode == 0:
        return "installed"
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    return next((line for line in lines if "ERROR" in line), (lines or ["pip gives no reason"])[-1])


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody's file, of no time."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member
