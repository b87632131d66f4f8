"""A build in a process of its own: what kills it does not kill us, and how it ended is told apart.

The parent writes the model and a request into a folder; the child (`python -m fourphase.engine.child FOLDER`) leaves
the plan and a record there. A child without a record was killed, most often by the system because memory ran out.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourphase.engine.builder import OUT_OF_MEMORY, Built, build_plan
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.engine.parse import build_error
from fourphase.engine.timing_cache import CacheUse
from fourphase.runtime.atomic import write_file
from fourphase.runtime.errors import FourphaseError, LockTimeout, OutputNotWritable, error_from_dict
from fourphase.runtime.flavour import load_flavour
from fourphase.runtime.locks import locked

__all__ = ["COMMAND", "build_in_child"]

COMMAND = (sys.executable, "-m", "fourphase.engine.child")
_PREFIX = "fourphase-build-"
_ALIVE = "alive.lock"
#: A build makes its lock file and then takes the lock: nobody else may come between.
_SETTLED_S = 60.0
_REQUEST, _ONNX, _PLAN, _RECORD, _OUTPUT = "request.json", "model.onnx", "engine.plan", "record.json", "output.txt"
#: prctl's "send me this signal when my parent dies" (linux/prctl.h).
_PR_SET_PDEATHSIG = 1
_OUTPUT_KEPT = 400


def build_in_child(target: str, source: EngineSource, options: BuildOptions, cache: Path | None = None) -> Built:
    """`build_plan` in a child process.

    Raises: what the child raised; EngineBuildFailed (26) with the key OUT_OF_MEMORY if it was killed by SIGKILL, as the
        system does when memory runs out, and with what it printed last if it ended in another way.
    """
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        folder = Path(name)
        write_file(folder / _ONNX, source.onnx)
        request = {
            "parent": os.getpid(),
            "target": target,
            "source": {
                "precision": source.precision,
                "part": source.part,
                "slices": source.slices,
                "blocks": dict(source.blocks),
                "precisions": dict(source.precisions),
                "exempt": list(source.exempt),
            },
            "options": options.to_dict(),
            "cache": None if cache is None else str(cache),
        }
        write_file(folder / _REQUEST, json.dumps(request).encode())
        with locked(folder / _ALIVE, 0, what="this build"):
            return _outcome(_run(folder), folder, options)


def _outcome(code: int, folder: Path, options: BuildOptions) -> Built:
    """What the child left. Raises: what it raised, or what its end without a record means."""
    record = _record_of(folder)
    if record is None and code == OutputNotWritable.code:
        raise OutputNotWritable(
            "the temporary folder is full: the engine could not be written there",
            "free space, or let the environment variable TMPDIR name a larger folder",
            key="temporary_folder_full",
        )
    if record is None:
        raise _ended(code, folder, options)
    if "error" in record:
        raise error_from_dict(record["error"])
    return _built(record, (folder / _PLAN).read_bytes())


def _sweep() -> None:
    """Takes away what builds left whose process was killed: a model and perhaps a plan each."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if time.time() - (folder / _ALIVE).stat().st_mtime < _SETTLED_S:
                continue
            # A lock, not a process number: the folder may be shared with a container that counts its own.
            with locked(folder / _ALIVE, 0, what="a build"):
                shutil.rmtree(folder, ignore_errors=True)
        except (OSError, LockTimeout, OutputNotWritable):
            continue


def _run(folder: Path) -> int:
    """Runs the child to its end; an exception here (Ctrl-C, SIGTERM) ends it too."""
    with (folder / _OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, str(folder)], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            return process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def _record_of(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    return record


def _built(record: Mapping[str, Any], plan: bytes) -> Built:
    before, after = record["cache_bytes"]
    return Built(
        plan=plan,
        profile=record["profile"],
        timing_cache=CacheUse(record["cache_state"], (before, after)),
        audit=record["audit"],
        notes=tuple(record["notes"]),
        warnings=tuple(record["warnings"]),
    )


def _ended(code: int, folder: Path, options: BuildOptions) -> FourphaseError:
    if code == -signal.SIGKILL:
        return build_error(
            "the build was killed, as the system does when memory runs out"
            f" ({_available_mib()} MiB are available now; the workspace was {options.workspace_bytes >> 20} MiB)",
            "free memory or add swap, or give a smaller --workspace or --split",
            key=OUT_OF_MEMORY,
        )
    said = " ".join((folder / _OUTPUT).read_bytes().decode(errors="replace").split())[-_OUTPUT_KEPT:]
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return build_error(
        f"the process that builds the engine ended {how}" + (f": {said}" if said else ""),
        "reinstall TensorRT, or use another --target",
        key="build_crashed",
    )


def _available_mib() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "an unknown number of"
    return next((str(int(line.split()[1]) // 1024) for line in lines if line.startswith("MemAvailable")), "unknown")


def _child(folder: Path) -> None:
    """The child: builds, and leaves the plan and its record, or the record of an error."""
    request = json.loads((folder / _REQUEST).read_text())
    _die_with_parent(request["parent"])
    options = BuildOptions.from_dict(request["options"])
    source = EngineSource((folder / _ONNX).read_bytes(), **request["source"])
    cache = None if request["cache"] is None else Path(request["cache"])
    try:
        built = build_plan(load_flavour(request["target"]), source, options, cache)
    except FourphaseError as error:
        return _leave(folder, {"error": error.to_dict()})
    except MemoryError:
        cure = "free memory, or give a smaller --workspace"
        fault = build_error("memory ran out while the engine was built", cure, key=OUT_OF_MEMORY)
        return _leave(folder, {"error": fault.to_dict()})
    write_file(folder / _PLAN, built.plan)
    record = {
        "profile": built.profile,
        "cache_state": built.timing_cache.state,
        "cache_bytes": built.timing_cache.entries_bytes,
        "audit": built.audit,
        "notes": built.notes,
        "warnings": built.warnings,
    }
    return _leave(folder, record)


def _leave(folder: Path, record: Mapping[str, Any]) -> None:
    write_file(folder / _RECORD, json.dumps(record).encode())


def _die_with_parent(parent: int) -> None:
    """A build must not go on when who asked for it was killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    try:
        _child(Path(sys.argv[1]))
    except OutputNotWritable as error:
        print(error.message)
        sys.exit(error.code)
