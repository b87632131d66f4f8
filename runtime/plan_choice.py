"""Which plans of a bundle compute a model here: whole, or trunk and tail; and why the others do not fit.

The order of a load: a plan that fits exactly, one built now if that was allowed, else none and the reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourphase.runtime.bundle import Bundle
from fourphase.runtime.console import progress
from fourphase.runtime.errors import EngineBuildFailed, FourphaseError, error_from_dict
from fourphase.runtime.plan_meta import Machine, misfits
from fourphase.runtime.plan_store import PlanEntry, PlanStore

__all__ = ["REBUILD_COMMAND", "FittingPlans", "PlanPolicy", "PlanReport", "fitting_plans", "rebuild", "report_plans"]

#: Building needs the room `engine`, which this room does not import: it is a program of its own.
REBUILD_COMMAND = (sys.executable, "-m", "fourphase.engine.plan_command")


@dataclass(frozen=True)
class PlanPolicy:
    """What the run time may do with plans.

    Attributes:
        folder: where plans built for this machine lie; None is the bundle's own `engines/`.
        rebuild: build the plan for this machine if none fits.
        host_code: load plans that carry a run time of their own, which runs host code out of the file.
    """

    folder: Path | None = None
    rebuild: bool = False
    host_code: bool = False


@dataclass(frozen=True)
class PlanReport:
    """One plan against this machine; `reasons` is empty if it fits."""

    entry: PlanEntry
    reasons: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        meta = self.entry.meta or {}
        kept = ("part", "slices", "precision", "flavour", "version", "compute_capabilities", "batch")
        described = {name: meta[name] for name in kept if name in meta}
        return {"key": self.entry.key, "source": self.entry.source, **described, "reasons": list(self.reasons)}


@dataclass(frozen=True, eq=False)
class FittingPlans:
    """Verified plans that compute one model together.

    Attributes:
        plans: "whole" -> bytes, or "trunk" and "tail" -> bytes. keys: likewise, their keys.
        slices: how many slices the trunk takes at once; None for a whole plan.
        max_batch: studies per run.
        dla_core: the accelerator that the trunk was built for; None for none.
        host_code: one of them carries a run time of its own; it fits only because that was allowed.
    """

    flavour: str
    precision: str
    plans: Mapping[str, bytes]
    keys: Mapping[str, str]
    slices: int | None
    max_batch: int
    host_code: bool = False
    dla_core: int | None = None


def report_plans(bundle: Bundle, machine: Machine, policy: PlanPolicy | None = None) -> tuple[PlanReport, ...]:
    """Every plan of the bundle and why it does not fit this machine. Raises: IntegrityError (21)."""
    policy = policy or PlanPolicy()
    return tuple(_report(entry, bundle, machine, policy) for entry in PlanStore(bundle, policy.folder).entries())


def fitting_plans(
    bundle: Bundle, machine: Machine, precisions: Sequence[str], flavours: Sequence[str], policy: PlanPolicy
) -> tuple[FittingPlans | None, str]:
    """The plans that fit, by precision and flavour in the order given; what else fits, or why none does.

    Raises: IntegrityError (21) for a plan that was changed after it was built: it is never passed over in silence.
    """
    store = PlanStore(bundle, policy.folder)
    reports = report_plans(bundle, machine, policy)
    for precision in precisions:
        for flavour in flavours:
            for files in _forms(bundle, precision):
                chosen = [_fitting(reports, bundle, flavour, file, part) for part, file in files.items()]
                if all(chosen):
                    others = sum(len(found) - 1 for found in chosen)
                    loaded = _loaded(store, [found[0] for found in chosen], flavour, precision)
                    return loaded, f"; of {others + 1} that fit the newest" if others else ""
    return None, _why_none(reports)


def rebuild(bundle: Bundle, flavour: str, precision: str, policy: PlanPolicy) -> None:
    """Builds the plans of one model for this machine, in a program of its own, into the plan store.

    Raises: what the build raises (22, 24, 26, 30, 31).
    """
    command = [*REBUILD_COMMAND, str(bundle.path), "--target", flavour, "--precision", precision, "--json", "--quiet"]
    if policy.folder is not None:
        command += ["--plans", str(policy.folder)]
    with progress(f"building the {precision} engine for this machine with {flavour}", None):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise _build_error(done)


def _build_error(done: subprocess.CompletedProcess[str]) -> FourphaseError:
    try:
        return error_from_dict(json.loads(done.stdout)["error"])
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        return EngineBuildFailed(
            f"the engine could not be built for this machine (exit code {done.returncode}): {last}",
            "run fp-export build-plan to see all of it",
        )


def _report(entry: PlanEntry, bundle: Bundle, machine: Machine, policy: PlanPolicy) -> PlanReport:
    if entry.meta is None:
        return PlanReport(entry, (entry.problem or "it cannot be used",))
    hashes = {
        bundle.files[file].sha256
        for precision in bundle.models
        for form in _forms(bundle, precision)
        for file in form.values()
    }
    return PlanReport(entry, misfits(entry.meta, machine, hashes, host_code=policy.host_code))


def _forms(bundle: Bundle, precision: str) -> list[dict[str, str]]:
    """Part -> the file its engine is built from, in the forms a model may take; split first if it was split."""
    model = bundle.models[precision]
    whole = {"whole": model.file}
    return [whole] if model.split is None else [{"trunk": model.split.trunk, "tail": model.split.tail}, whole]


def _fitting(reports: Sequence[PlanReport], bundle: Bundle, flavour: str, file: str, part: str) -> list[PlanEntry]:
    """The plans of one part that fit, the newest first; those of the bundle itself last."""
    wanted = {"onnx_sha256": bundle.files[file].sha256, "flavour": flavour, "part": part}
    entries = [report.entry for report in reports if report.fits and report.entry.meta is not None]
    found = [entry for entry in entries if entry.meta and all(entry.meta[name] == wanted[name] for name in wanted)]
    return sorted(found, key=lambda entry: -entry.written_at)


def _loaded(store: PlanStore, entries: Sequence[PlanEntry], flavour: str, precision: str) -> FittingPlans:
    metas = [entry.meta for entry in entries if entry.meta is not None]
    batches = [meta["batch"][2] for meta in metas if meta["part"] != "trunk"]
    return FittingPlans(
        flavour=flavour,
        precision=precision,
        plans={meta["part"]: store.read(entry) for entry, meta in zip(entries, metas, strict=True)},
        keys={meta["part"]: entry.key for entry, meta in zip(entries, metas, strict=True)},
        slices=next((meta["slices"] for meta in metas if meta["part"] == "trunk"), None),
        max_batch=min(batches),
        host_code=any(meta["flags"].get("version_compatible") for meta in metas),
        dla_core=next((meta["flags"].get("dla_core") for meta in metas if meta["part"] == "trunk"), None),
    )


def _why_none(reports: Sequence[PlanReport]) -> str:
    """What speaks against the plan that comes nearest."""
    unfit = [report for report in reports if not report.fits]
    if not reports:
        return "the bundle has no plan"
    if not unfit:
        return "no plan of the precision and kind asked for fits"
    nearest = min(unfit, key=lambda report: (report.entry.meta is None, len(report.reasons)))
    more = f", and {len(reports) - 1} more" if len(reports) > 1 else ""
    return f"no plan fits (engine {nearest.entry.key}: {'; '.join(nearest.reasons)}{more})"
