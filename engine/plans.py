"""The engines of a bundle's model: which there are to build, each built once however many ask, kept in the plan store.

It needs no torch and no onnx: a Jetson builds from the bundle alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fourphase.engine.build import build_engine, plan_identity
from fourphase.engine.bundle import OnnxModel, model_of
from fourphase.engine.options import BuildOptions, EngineSource
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.console import note
from fourphase.runtime.errors import IntegrityError, ModelIncompatible
from fourphase.runtime.flavour import load_flavour
from fourphase.runtime.locks import locked
from fourphase.runtime.plan_meta import plan_key
from fourphase.runtime.plan_store import LOCK_TIMEOUT_S, PlanStore

__all__ = ["PlanOutcome", "engine_options", "ensure_plans", "onnx_hashes", "sources_of"]


@dataclass(frozen=True, eq=False)
class PlanOutcome:
    """One engine of a bundle after `ensure_plans`.

    Attributes:
        outcome: "built", "found" (it was there), or "waited" (another process built it meanwhile).
        meta: the content of its JSON.
    """

    key: str
    outcome: str
    meta: Mapping[str, Any]


def sources_of(precision: str, model: OnnxModel, *, whole: bool = False) -> tuple[EngineSource, ...]:
    """What engines of a model are built from: trunk and tail if it was split, else the whole.

    Args:
        whole: the whole model even if it was split.
    """
    if whole or model.split is None:
        return (EngineSource(model.onnx, precision, blocks=model.nodes, precisions=model.blocks, exempt=model.exempt),)
    split = model.split
    return (
        EngineSource(split.trunk, precision, "trunk", split.slices, split.trunk_nodes, model.blocks, model.exempt),
        EngineSource(split.tail, precision, "tail", None, split.tail_nodes, model.blocks, model.exempt),
    )


def engine_options(source: EngineSource, options: BuildOptions) -> BuildOptions:
    """The options for one part: the trunk takes one study's chunk at a time; only it may go to an accelerator."""
    if source.part == "trunk":
        return replace(options, batch=(1, 1, 1))
    if source.part == "tail" and options.dla_core is not None:
        return replace(options, dla_core=None)
    return options


def onnx_hashes(bundle: Bundle) -> frozenset[str]:
    """sha256 of every ONNX of the bundle, as its manifest has them."""
    files = [model.file for model in bundle.models.values()]
    files += [name for model in bundle.models.values() if (split := model.split) for name in (split.trunk, split.tail)]
    return frozenset(bundle.files[name].sha256 for name in files)


def ensure_plans(
    bundle: Bundle,
    store: PlanStore,
    target: str,
    options: BuildOptions | None = None,
    *,
    precision: str | None = None,
    whole: bool = False,
    force: bool = False,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> tuple[PlanOutcome, ...]:
    """Every engine of a model, built for this machine unless the store has it.

    However many processes ask for one engine at once, one builds it and the others wait and take its.

    Args:
        target: "tensorrt" or "tensorrt-rtx".
        precision: None is the lowest the bundle has, which is what it was built for.
        force: build it even if it is there; the new one replaces it.

    Raises: as `build_engine`; ModelIncompatible (20) if the bundle lacks the precision; IntegrityError (21);
        LockTimeout (31); OutputNotWritable (30).
    """
    options = options or BuildOptions()
    for line in store.clean(onnx_hashes(bundle)):
        note(line)
    chosen = precision or list(bundle.models)[-1]
    if chosen not in bundle.models:
        raise ModelIncompatible(
            f"the bundle has no model in {chosen}, only in: {', '.join(bundle.models)}",
            "choose a --precision that the bundle has",
            key="precision_missing",
        )
    return tuple(
        _ensure(store, target, source, engine_options(source, options), force, lock_timeout_s)
        for source in sources_of(chosen, model_of(bundle, chosen), whole=whole)
    )


def _ensure(
    store: PlanStore, target: str, source: EngineSource, options: BuildOptions, force: bool, lock_timeout_s: float
) -> PlanOutcome:
    key = plan_key(plan_identity(source, load_flavour(target), options))
    found = None if force else _verified(store, key)
    if found is not None:
        return PlanOutcome(key, "found", found)
    store.prepare(key)
    waiting = f"another process is building engine {key}; waiting for it"
    with locked(
        store.key_lock(key), lock_timeout_s, what=f"the build of engine {key}", waiting=lambda: note(waiting)
    ) as waited:
        found = None if force and not waited else _verified(store, key)
        if found is not None:
            return PlanOutcome(key, "waited" if waited else "found", found)
        built = build_engine(source, target, options)
        store.put(built.plan, built.meta)
        return PlanOutcome(key, "built", built.meta)


def _verified(store: PlanStore, key: str) -> Mapping[str, Any] | None:
    """The meta data of the plan of that key, its bytes checked; a damaged one is quarantined and counts as none."""
    entry = store.find(key)
    if entry is None:
        return None
    try:
        store.read(entry)
    except IntegrityError as error:
        if entry.source == "bundle":
            raise
        note(error.message)
        return None
    return entry.meta
