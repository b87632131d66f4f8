"""What `doctor_facts` asks in a process of its own, because it could crash or hang: the GPU driver, native packages.

One question per process, one line of JSON on stdout. No object of TensorRT is created, only its module imported: a
broken installation dies there. The decoders prove themselves on a tiny picture of known values.
"""

from __future__ import annotations

import base64
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace
from typing import Any

__all__ = ["MODULES", "ChildFailed", "answer", "ask", "version_of", "without_paths"]

#: A first import from a slow card takes long; a hung driver takes for ever.
_TIMEOUT_S = 60.0
#: What the line with the answer begins with; packages print on stdout too.
_MARK = "fourphase.doctor "
#: Distribution -> module, where the names differ.
MODULES = MappingProxyType({"pylibjpeg-openjpeg": "openjpeg", "pyjpegls": "jpeg_ls", "python-gdcm": "gdcm"})
#: Where a package imports its native code late: the part that the run time uses. pycuda's needs libcuda.
_USED_PART = {"scipy": "scipy.sparse", "pycuda": "pycuda.driver"}
_INTEGRATED = 18  # CUdevice_attribute
#: Four squares of one value each (_SQUARES), 12 bits, in one transfer syntax per decoder: UID, side, codestream.
_SQUARES = ((7, 2055), (1031, 3079))
_PICTURES: dict[str, tuple[str, int, str]] = {
    "pydicom": (
        *("1.2.840.10008.1.2.5", 8),
        "AgAAAEAAAABgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAP0A/Qj9AP0I/QD9CP0A/Qj9BP0M"
        "/QT9DP0E/Qz9BP0M+Qf5B/kH+Qf5B/kH+Qf5Bw==",
    ),
    "python-gdcm": (
        *("1.2.840.10008.1.2.4.70", 8),
        "/9j/wwALEAAIAAgBAREA/8QAFwABAQEBAAAAAAAAAAAAAAAAAAwLD//aAAgBAQABAADgAMKAABQAAKAABQADQAFAAAoAAFAAAoAB/9kA",
    ),
    "pyjpegls": (
        *("1.2.840.10008.1.2.4.80", 8),
        "/9j/9wALDAAIAAgBAREA/9oACAEBAAAAAE2BBAAAAAAD/2gQQQOgfIPEGAAAAAH+EIAAAAABAhCIAzDiGIT/2Q==",
    ),
    "pylibjpeg-openjpeg": (
        *("1.2.840.10008.1.2.4.90", 32),
        "/0//UQApAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABCwEB/1IADAAAAAEABQQEAAH/XAATQGBoaHBoaHBoaHBoaHBoaHD/ZAAl"
        "AAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjL/kAAKAAAAAAB2AAH/k8/kCAXJx/IFD9gIAXABcMP2BoPzBQAIFa0Mp98JoHZkj8fy"
        "Ew/YKBcsc4JV7OYBPwx4Ech07EBO/3/H8hkP2Cghbg0YvmQtZgE//38A1MeL9rEyQtx/x/IND9gYNfI/442vZ2qq8A9l/9k=",
    ),
}


def without_paths(text: str) -> str:
    """One short line without paths, which may hold user names; of a library or module the file's name stays."""
    home = os.path.expanduser("~")
    plain = text.replace(home, "/home") if len(home) > 1 else text
    plain = re.sub(r"(?:/[^\s'\":;,()\[\]/]+)+/?", lambda found: _file_name(found[0]), plain)
    return " ".join(plain.split())[:200]


def _file_name(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2]
    return name if re.search(r"\.(?:so[.\d]*|py|cfg|json)$", name) else "(a path)"


class ChildFailed(Exception):
    """A child died, hung or raised; the text is the reason, one line without paths."""


#: The child sees the modules that this process sees.
_CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from fourphase.runtime import doctor_child; "
_CODE += "doctor_child.answer(*sys.argv[2:])"


def ask(*question: str) -> Any:
    """What `answer` says in a process of its own. Raises: ChildFailed with the reason, without paths."""
    command = [sys.executable, "-c", _CODE, json.dumps(sys.path), *question]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"no answer within {_TIMEOUT_S:.0f} s") from None
    lines = done.stdout.decode(errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith(_MARK)), None)
    if done.returncode < 0:
        raise ChildFailed(f"the process died (signal {-done.returncode})")
    if said is None:
        errors = done.stderr.decode(errors="replace").strip().splitlines()
        raise ChildFailed(without_paths(errors[-1]) if errors else f"the process ended ({done.returncode})")
    return json.loads(said.removeprefix(_MARK))


def answer(question: str, argument: str = "") -> None:
    """Answers one question on stdout, in the child."""
    asked: dict[str, Callable[[], object]] = {
        "gpu": _answer_gpu,
        "target": _answer_target,
        "backends": _answer_backends,
        "syntaxes": _answer_syntaxes,
        "import": lambda: _answer_import(argument),
        "decode": lambda: _answer_decode(argument),
    }
    print(f"\n{_MARK}{json.dumps(asked[question]())}", flush=True)


def _answer_gpu() -> dict[str, Any]:
    import ctypes

    from fourphase.runtime import cuda

    found = cuda.probe()
    if found.device is None:
        return {"gpu": None, "reason": found.reason}
    library = ctypes.CDLL("libcuda.so.1")
    integrated, count, memory = ctypes.c_int(-1), ctypes.c_int(1), ctypes.c_size_t(0)
    library.cuDeviceGetCount(ctypes.byref(count))
    library.cuDeviceGetAttribute(ctypes.byref(integrated), _INTEGRATED, 0)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), 0)
    more = {
        "count": count.value,
        "memory_bytes": memory.value or None,
        "integrated": {0: False, 1: True}.get(integrated.value),
    }
    return {"gpu": {**vars(found.device), **more}, "reason": found.reason}


def _answer_target() -> list[str]:
    from fourphase.runtime.flavour import choose_target

    target = choose_target("auto")
    return [target.name, target.reason]


def _answer_backends() -> list[tuple[str, bool, bool, str]]:
    from fourphase.runtime.backends import BACKENDS

    return [_backend(name) for name in BACKENDS if name != "auto"]


def _backend(name: str) -> tuple[str, bool, bool, str]:
    """Each backend is a module; both flavours of TensorRT share one."""
    module_name = f"fourphase.runtime.{name.removesuffix('-rtx')}_backend"
    if importlib.util.find_spec(module_name) is None:
        return name, False, False, ""
    module = importlib.import_module(module_name)
    return name, True, bool(module.is_available()), " and ".join(module.REQUIREMENTS)


def _answer_syntaxes() -> list[tuple[str, str]]:
    from fourphase.runtime.decoders import DECODERS

    return [(syntax, decoder.package) for syntax, decoder in DECODERS.items()]


def _answer_import(name: str) -> str | None:
    if name == "openvino":  # as openvino_backend: nothing is reported to anyone
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    module = importlib.import_module(name)
    part = _USED_PART.get(name)
    if part is not None and (name != "pycuda" or _has_gpu()):
        importlib.import_module(part)
    if name == "onnxruntime" and not hasattr(module, "InferenceSession"):
        raise ImportError("it has no InferenceSession: two packages overwrote each other")
    version = getattr(module, "__version__", None)
    return str(version).partition("-")[0] if version is not None else version_of(name)


def _has_gpu() -> bool:
    from fourphase.runtime.cuda import probe

    return probe().device is not None


def version_of(module: str) -> str | None:
    """The version of the distribution behind a module, as its metadata states it."""
    distribution = next((name for name, known in MODULES.items() if known == module), module)
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _answer_decode(package: str) -> str | None:
    """Why the package does not decode its picture, None if it does; a package without a picture is only imported."""
    module = MODULES.get(package, package.replace("-", "_"))
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == module else without_paths(f"cannot be imported: {error}")
    except ImportError as error:
        return without_paths(f"cannot be imported: {error}")
    if package not in _PICTURES:
        return None
    return None if _decoded(*_PICTURES[package]) else "does not decode a test picture"


def _decoded(syntax: str, side: int, text: str) -> bool:
    from fourphase.runtime.decoders import DecoderFailed, DecoderLost, decode

    bits = {"bits_allocated": 16, "bits_stored": 12, "signed": False}
    pixels = SimpleNamespace(transfer_syntax=syntax, photometric="MONOCHROME2", **bits)
    header: Any = SimpleNamespace(rows=side, columns=side, pixels=pixels)
    try:
        cells = decode(base64.b64decode(text), header, 12)
    except (DecoderFailed, DecoderLost):
        return False
    half = side // 2
    squares = [[_SQUARES[row // half][column // half] for column in range(side)] for row in range(side)]
    return bool(cells.tolist() == squares)
