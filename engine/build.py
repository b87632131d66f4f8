"""One model -> one engine: built in a child process, with less workspace if memory does not suffice, fully described.

It knows nothing of bundles and stores; `plans` does.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fourphase.engine.builder import OUT_OF_MEMORY, WORKSPACE_TOO_SMALL, Built, check_options
from fourphase.engine.capabilities import capabilities_for
from fourphase.engine.child import build_in_child
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.engine.parse import build_error
from fourphase.runtime.atomic import write_file
from fourphase.runtime.cache import cache_folder
from fourphase.runtime.config import canonical_json
from fourphase.runtime.console import progress
from fourphase.runtime.errors import EngineBuildFailed, OutputNotWritable
from fourphase.runtime.flavour import Flavour, load_flavour
from fourphase.runtime.plan_meta import ENGINE_SCHEMA, KEY_FIELDS, plan_key

__all__ = ["EnginePlan", "build_engine", "check_build", "plan_identity"]

#: Below this TensorRT has too few tactics to choose from to be worth another try.
_SMALLEST_WORKSPACE = 64 << 20
_WARNINGS_KEPT = 20


@dataclass(frozen=True, eq=False)
class EnginePlan:
    """A built engine.

    Attributes:
        plan: the serialized engine. It is native code: deserialize it only after checking its hash.
        meta: what it was built from, with and for; JSON types only, the content of `engines/<key>.json`.
    """

    plan: bytes
    meta: Mapping[str, Any]

    @property
    def key(self) -> str:
        return plan_key(self.meta)


def check_build(target: str, options: BuildOptions | None = None, precision: str | None = None) -> None:
    """Raises what `build_engine` would raise for this machine and these options, before work is spent on a model.

    Raises: EnvironmentFault (24), GPUUnavailable (22), UsageError (2).
    """
    check_options(load_flavour(target), options or BuildOptions(), precision)


def plan_identity(source: EngineSource, flavour: Flavour, options: BuildOptions) -> dict[str, Any]:
    """What a plan's key is made of: everything that is known before the build. JSON types.

    Raises: UsageError (2) for a compute capability that this flavour does not build for.
    """
    device = flavour.gpu.device
    capabilities, _ = capabilities_for(flavour, options.compute_capabilities)
    identity = {
        "onnx_sha256": hashlib.sha256(source.onnx).hexdigest(),
        "part": source.part,
        "slices": source.slices,
        "precision": source.precision,
        "flavour": flavour.name,
        "version": flavour.version,
        "cuda": device and device.cuda,
        "driver": device and device.driver,
        "gpu": device and {"name": device.name, "compute_capability": device.compute_capability},
        "compute_capabilities": list(capabilities),
        "os": platform.system().lower(),
        "arch": platform.machine(),
        "batch": list(options.batch),
        "flags": options.flags() | ({"optimization_level": None} if flavour.is_rtx else {}),
    }
    assert list(identity) == list(KEY_FIELDS)
    return identity


def build_engine(source: EngineSource, target: str, options: BuildOptions | None = None) -> EnginePlan:
    """Builds the engine of one ONNX model in a child process.

    If memory runs out, it is tried again with half the workspace, down to 64 MiB; every try is in the plan's meta data.
    Where there is a GPU, the engine is audited: it must compute each block in the precision asked for.

    Args:
        target: "tensorrt" or "tensorrt-rtx".
        options: None for the defaults.

    Raises: EngineBuildFailed (26), naming the node and its block where the parser does; EnvironmentFault (24) and
        GPUUnavailable (22) as `load_flavour`; UsageError (2) for options this flavour does not have.
    """
    options = options or BuildOptions()
    flavour = load_flavour(target)
    identity = plan_identity(source, flavour, options)
    key = plan_key(identity)
    started = time.monotonic()
    label = source.precision if source.part == "whole" else f"{source.precision} {source.part}"
    before = _last_seconds(key)
    took = f", the last time it took {before:.0f} s" if before else ""
    with progress(f"building the {label} engine with {target} {flavour.version}{took}", None):
        built, attempts = _climb_down(target, source, options, _timing_cache_file(flavour, options))
    seconds = round(time.monotonic() - started, 2)
    _remember_seconds(key, seconds)
    _, notes = capabilities_for(flavour, options.compute_capabilities)
    warnings = [*notes, *built.notes, *options.prices(), *built.warnings]
    meta = {
        "schema": ENGINE_SCHEMA,
        **identity,
        "profile": built.profile,
        "plan_sha256": hashlib.sha256(built.plan).hexdigest(),
        "attempts": attempts,
        "timing_cache": _cache_record(flavour, built),
        "audit": built.audit,
        "build_seconds": seconds,
        "warnings": list(dict.fromkeys(warnings))[:_WARNINGS_KEPT],
    }
    return EnginePlan(built.plan, MappingProxyType(meta))


def _climb_down(
    target: str, source: EngineSource, options: BuildOptions, cache: Path | None
) -> tuple[Built, list[dict[str, Any]]]:
    """The workspace ladder: half as much after each try that ran out of memory. Returns the tries too."""
    attempts: list[dict[str, Any]] = []
    workspace = options.workspace_bytes
    while True:
        try:
            built = build_in_child(target, source, replace(options, workspace_bytes=workspace), cache)
        except EngineBuildFailed as error:
            attempts.append({"workspace_bytes": workspace, "outcome": error.message})
            if error.key == WORKSPACE_TOO_SMALL and len(attempts) > 1:
                raise _between_both(attempts) from error
            if error.key != OUT_OF_MEMORY or workspace // 2 < _SMALLEST_WORKSPACE:
                raise
            workspace //= 2
        else:
            return built, [*attempts, {"workspace_bytes": workspace, "outcome": "built"}]


def _between_both(attempts: list[dict[str, Any]]) -> EngineBuildFailed:
    return build_error(
        "memory runs out while the engine is built, and with less workspace TensorRT finds no way to compute it",
        "free memory or add swap, give --split with fewer slices, or build on a machine with more memory",
        key=OUT_OF_MEMORY,
        table=[{"workspace": f"{one['workspace_bytes'] >> 20} MiB", "outcome": one["outcome"]} for one in attempts],
    )


def _cache_record(flavour: Flavour, built: Built) -> dict[str, Any]:
    if flavour.is_rtx:
        return {"state": "none", "reason": "TensorRT for RTX chooses kernels when the engine is loaded"}
    return built.timing_cache.to_dict()


def _timing_cache_file(flavour: Flavour, options: BuildOptions) -> Path | None:
    """One cache per TensorRT and GPU: another's timings would be refused or, worse, believed."""
    folder = cache_folder("timing") if options.timing_cache and not flavour.is_rtx else None
    if folder is None:
        return None
    device = flavour.gpu.device
    identity = [flavour.name, flavour.version, device and [device.name, device.compute_capability, device.driver]]
    return folder / f"{hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]}.cache"


def _seconds_file(key: str) -> Path | None:
    folder = cache_folder("builds")
    return None if folder is None else folder / f"{key}.json"


def _last_seconds(key: str) -> float | None:
    """How long this very build took the last time; nothing but a person's patience depends on it."""
    path = _seconds_file(key)
    try:
        return None if path is None else float(json.loads(path.read_bytes())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember_seconds(key: str, seconds: float) -> None:
    path = _seconds_file(key)
    if path is None:
        return
    try:
        write_file(path, json.dumps({"seconds": seconds}).encode())
    except OutputNotWritable:
        return
