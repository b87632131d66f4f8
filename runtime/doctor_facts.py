"""Collects what `doctor` judges: machine, Jetson, GPU, packages, decoders. It judges nothing and changes nothing.

A probe that fails leaves its field empty and its reason in `Facts.unknown`. What could crash or hang a process (the GPU
driver, native packages) is asked in a short-lived child process, see `doctor_child`. No path, user name or host name
gets into the facts.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from fourphase.runtime.doctor_child import MODULES, ChildFailed, ask, version_of, without_paths
from fourphase.runtime.doctor_types import Backend, Decoder, Disk, Facts, Gpu, Jetson, Module

__all__ = ["PROBES", "collect", "jetpack_in", "l4t_in", "memory_in", "power_mode_in"]

_DEVICE_TREE, _L4T, _DPKG = Path("/proc/device-tree/model"), Path("/etc/nv_tegra_release"), Path("/var/lib/dpkg/status")
_MEMINFO, _CGROUP_LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
_NVPMODEL, _APT_PYTHONS = Path("/usr/sbin/nvpmodel"), Path("/usr/lib")
#: Modules that the run time may use and does not require.
_OPTIONAL = ("openvino", "pycuda", "tensorrt", "tensorrt_rtx")
#: What is imported in a child; the decoders are tried instead, and the rest holds no native code.
_NATIVE = ("numpy", "scipy", "onnxruntime", *_OPTIONAL)
_OF_INTEREST = re.compile(r"onnxruntime|openvino$|tensorrt|pycuda$|cuda-(?:python|bindings)$|fourphase$|torch$")


def collect() -> Facts:
    """Asks every probe; never raises. The children run beside each other."""
    found: dict[str, Any] = {}
    unknown: dict[str, str] = {}
    with ThreadPoolExecutor(4) as pool:
        running = {name: pool.submit(probe) for name, probe in PROBES.items()}
    for name, result in running.items():
        try:
            found.update(result.result())
        except ChildFailed as error:
            unknown[name] = str(error)
        except Exception as error:
            unknown[name] = without_paths(f"{type(error).__name__}: {error}".removesuffix(": "))
    return Facts(**found, unknown=unknown)


def _python() -> dict[str, Any]:
    venv = ""
    if sys.prefix != sys.base_prefix:
        settings = _text(Path(sys.prefix) / "pyvenv.cfg") or ""
        shared = re.search(r"^include-system-site-packages\s*=\s*true", settings, re.MULTILINE | re.IGNORECASE)
        venv = "system packages visible" if shared else "isolated"
    system = f"{platform.system().lower()} {platform.machine()}"
    return {"python": platform.python_version(), "system": system, "venv": venv}


def _memory() -> dict[str, Any]:
    limit = (_text(_CGROUP_LIMIT) or "").strip()
    sizes = [memory_in(_MEMINFO.read_text(errors="replace")), int(limit) if limit.isdecimal() else None]
    return {"memory_bytes": min((size for size in sizes if size is not None), default=None)}


def _int8() -> dict[str, Any]:
    from fourphase.runtime.cpu import int8_instructions

    return {"int8": int8_instructions()}


def _disks() -> dict[str, Any]:
    from fourphase.runtime.cache import CACHE_VARIABLE

    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    cache = Path(os.environ.get(CACHE_VARIABLE) or os.path.join(home, "fourphase")).absolute()
    return {"disks": (_disk("temporary files", Path(tempfile.gettempdir())), _disk("cache", cache))}


def _disk(purpose: str, folder: Path) -> Disk:
    there = next((place for place in (folder, *folder.parents) if place.is_dir()), Path("/"))
    return Disk(purpose, shutil.disk_usage(there).free, os.access(there, os.W_OK))


def _jetson() -> dict[str, Any]:
    model = (_text(_DEVICE_TREE) or "").replace("\0", "").strip()
    l4t = l4t_in(_text(_L4T) or "")
    if "jetson" not in model.lower() and l4t is None:
        return {}
    mode = None
    if _NVPMODEL.is_file():
        asked = subprocess.run([str(_NVPMODEL), "-q"], capture_output=True, text=True, timeout=10, check=False)
        mode = power_mode_in(asked.stdout)
    return {"jetson": Jetson(model[:80] or "Jetson", l4t, jetpack_in(_text(_DPKG, 1 << 26) or ""), mode)}


def _gpu() -> dict[str, Any]:
    said = ask("gpu")
    return {"gpu": said["gpu"] and Gpu(**said["gpu"]), "gpu_reason": said["reason"]}


def _modules() -> dict[str, Any]:
    needed = {name: (MODULES.get(name, name.replace("-", "_")), floor) for name, floor in _required().items()}
    names = {module for module, _ in needed.values()} | set(_OPTIONAL)
    installed = sorted(name for name in names if _is_found(name))
    with ThreadPoolExecutor(2) as pool:
        modules = dict(zip(installed, pool.map(_imported, installed), strict=True))
    return {"modules": modules, "requirements": needed}


def _required() -> dict[str, str]:
    """The run time's own requirements and their floors, as this package's metadata state them; extras left out."""
    found = {}
    for text in importlib.metadata.requires("fourphase") or ():
        name, floor = re.match(r"[\w.-]+", text), re.search(r">=\s*(\d[\d.]*)", text)
        if name and ";" not in text:
            found[name[0].lower()] = floor[1] if floor else ""
    return dict(sorted(found.items()))


def _is_found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _imported(name: str) -> Module:
    if name not in _NATIVE:
        return Module(version=version_of(name))
    try:
        return Module(version=ask("import", name))
    except ChildFailed as error:
        return Module(error=str(error))


def _distributions() -> dict[str, Any]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", str(distribution.metadata["Name"])).lower()
        if _OF_INTEREST.match(name):
            found.setdefault(name, str(distribution.version))
    return {"distributions": dict(sorted(found.items()))}


def _apt() -> dict[str, Any]:
    folders = _APT_PYTHONS.glob("python3*/dist-packages/tensorrt")
    versions = {folder.parent.parent.name.removeprefix("python") for folder in folders if folder.is_dir()}
    return {"apt_tensorrt": tuple(sorted(versions))}


def _target() -> dict[str, Any]:
    return {"target": tuple(ask("target"))}


def _backends() -> dict[str, Any]:
    return {"backends": tuple(Backend(*entry) for entry in ask("backends"))}


def _decoders() -> dict[str, Any]:
    packages: dict[str, list[str]] = {}
    for syntax, package in ask("syntaxes"):
        packages.setdefault(package, []).append(syntax)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(_tried, packages))
    pairs = zip(packages.items(), outcomes, strict=True)
    return {"decoders": tuple(Decoder(name, tuple(syntaxes), error) for (name, syntaxes), error in pairs)}


def _tried(package: str) -> str | None:
    try:
        return cast("str | None", ask("decode", package))
    except ChildFailed as error:
        return str(error)


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "python": _python,
    "memory": _memory,
    "int8": _int8,
    "disks": _disks,
    "jetson": _jetson,
    "gpu": _gpu,
    "target": _target,
    "backends": _backends,
    "modules": _modules,
    "distributions": _distributions,
    "apt": _apt,
    "decoders": _decoders,
}


def l4t_in(text: str) -> str | None:
    """The release in /etc/nv_tegra_release: "# R36 (release), REVISION: 4.3, ..." -> "36.4.3"."""
    found = re.search(r"R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3})*)", text, flags=re.ASCII)
    return f"{found[1]}.{found[2]}" if found else None


def jetpack_in(text: str) -> str | None:
    """The version of the installed package nvidia-jetpack in dpkg's status file: "6.2.1+b38" -> "6.2.1"."""
    for block in re.findall(r"^Package: nvidia-jetpack\n(?:\S.*\n?|[ \t].*\n?)*", text, flags=re.MULTILINE):
        found = re.search(r"^Version: (\d{1,3}(?:\.\d{1,3}){0,3})", block, flags=re.MULTILINE | re.ASCII)
        if found and "Status: install ok installed" in block:
            return found[1]
    return None


def memory_in(text: str) -> int | None:
    """MemTotal of /proc/meminfo in bytes."""
    found = re.search(r"^MemTotal:\s+(\d{1,15}) kB", text, flags=re.MULTILINE | re.ASCII)
    return int(found[1]) << 10 if found else None


def power_mode_in(text: str) -> str | None:
    """The name in what nvpmodel -q prints: "NV Power Mode: MAXN" -> "MAXN"."""
    found = re.search(r"NV Power Mode:[ \t]*(\w[\w .-]{0,30})", text, flags=re.ASCII)
    return found[1].strip() if found else None


def _text(path: Path, limit: int = 1 << 16) -> str | None:
    """The beginning of a file; None where there is none."""
    try:
        with path.open("rb") as handle:
            return handle.read(limit).decode(errors="replace")
    except OSError:
        return None
