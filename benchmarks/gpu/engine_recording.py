"""What an engine tells of itself on the device: the inspector's full JSON, kept as a file, and the audit of it.

An engine is built as the product builds it. Where only the audit refuses one, it is built again without being held to
anything, so that numbers, and what the audit stumbled over, can still be had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fourphase.benchmarks.guarded_steps import error_record
from fourphase.engine.audit import Audit, audit_engine, require_precision
from fourphase.engine.build import EnginePlan, build_engine
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.runtime.atomic import write_file
from fourphase.runtime.errors import EngineBuildFailed, FourphaseError

__all__ = ["build_record", "built_anyway", "record_engine"]

_AUDIT_KEYS = ("precision_not_held", "audit_incomplete", "audit_unreadable")
_META_KEPT = ("compute_capabilities", "profile", "flags", "build_seconds", "attempts", "timing_cache", "warnings")


def built_anyway(source: EngineSource, target: str, options: BuildOptions) -> tuple[EnginePlan, dict[str, Any] | None]:
    """The engine, and the error of the audit if that alone refused it.

    Raises: as `build_engine`, but for a refusal of the audit.
    """
    try:
        return build_engine(source, target, options), None
    except EngineBuildFailed as error:
        if error.key not in _AUDIT_KEYS:
            raise
        unheld = replace(source, blocks={}, precisions={}, exempt=())
        return build_engine(unheld, target, options), error_record(error)


def build_record(built: EnginePlan, refusal: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is reported of a build; the audit without its list of layers, which the recording holds."""
    audit = built.meta.get("audit")
    return {
        "plan_bytes": len(built.plan),
        **{name: built.meta[name] for name in _META_KEPT if name in built.meta},
        "audit": {key: value for key, value in audit.items() if key != "layers"} if isinstance(audit, dict) else audit,
        "audit_refused": refusal,
    }


def record_engine(
    trt: Any, engine: Any, source: EngineSource, target: Path | None, context: Any = None
) -> dict[str, Any]:
    """Audits a loaded engine and keeps every inspector answer.

    Args:
        target: the file to write the JSON to; None to keep the audit alone.
        context: one that has run, which may know more (TensorRT for RTX compiles kernels at run time); None for a new.

    Returns: `file`, `bytes`, `sha256` (None where the inspector was not reached), `audit` without layers, `held`
        (whether the engine holds the precision asked for) and `error`. Nothing of all that is raised.
    """
    watched = _Watched(engine, context)
    record: dict[str, Any] = {"file": None, "bytes": None, "sha256": None, "audit": None, "held": False, "error": None}
    try:
        audit = audit_engine(trt, watched, source.blocks)
        record["audit"] = _without_layers(audit)
        present = set(source.blocks.values())
        wanted = {block: precision for block, precision in source.precisions.items() if block in present}
        require_precision(audit, wanted, source.exempt)
        record["held"] = bool(wanted)
    except (FourphaseError, RuntimeError, TypeError) as error:  # the latter two: what the bindings raise
        record["error"] = error_record(error)
    if watched.answers:
        text = watched.answers[-1].encode()
        record |= {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        if target is not None:
            write_file(target, text)
            record["file"] = target.name
    return record


def _without_layers(audit: Audit) -> dict[str, Any]:
    return {key: value for key, value in audit.to_dict().items() if key != "layers"}


class _Watched:
    """An engine that keeps what its inspector says; everything else is the engine's own."""

    def __init__(self, engine: Any, context: Any) -> None:
        self._engine, self._context = engine, context
        self.answers: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def create_execution_context(self) -> Any:
        return self._engine.create_execution_context() if self._context is None else self._context

    def create_engine_inspector(self) -> Any:
        return _WatchedInspector(self._engine.create_engine_inspector(), self.answers)


class _WatchedInspector:
    def __init__(self, inspector: Any, answers: list[str]) -> None:
        self._inspector, self._answers = inspector, answers

    @property
    def execution_context(self) -> Any:
        return self._inspector.execution_context

    @execution_context.setter
    def execution_context(self, context: Any) -> None:
        self._inspector.execution_context = context

    def get_engine_information(self, kind: Any) -> str:
        self._answers.append(self._inspector.get_engine_information(kind))
        return self._answers[-1]
