"""Study folder -> result, step by step in the order of the room: study, phases, box, pixels, preprocess, backend.

Every step's time is kept. Nothing is written here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backends import Choice, choose_backend
from fourphase.runtime.box import FittedBox, check_coverage, fit_box, read_box
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.config import PreprocessingConfig, canonical_json
from fourphase.runtime.console import progress
from fourphase.runtime.errors import Notice
from fourphase.runtime.phases import PhaseMatch, assign_phases
from fourphase.runtime.pixels import read_hu
from fourphase.runtime.plan_choice import PlanPolicy
from fourphase.runtime.preprocess import normalized, plan_sampling
from fourphase.runtime.result import PhaseRecord, StudyResult, case_hash
from fourphase.runtime.selfcheck import SelfCheck, self_check
from fourphase.runtime.study import read_study

__all__ = ["LoadedModel", "PreparedStudy", "StudyRequest", "load_model", "prepare_study", "run_study"]


@dataclass(frozen=True)
class StudyRequest:
    """What to read: a study folder, its lesion box, and what the user says about it.

    Attributes:
        folder: holds the DICOM files, at any depth.
        box: JSON or NIfTI mask. label: which label of the mask.
        phases: phase -> SeriesInstanceUID, SeriesNumber or subfolder; overrides the evidence.
    """

    folder: Path
    box: Path
    label: int | None = None
    phases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PreparedStudy:
    """A study as the network takes it.

    Attributes:
        input: float32 (P, T, C, H, W), windowed and normalised.
        timings_ms: scan, read, preprocess.
    """

    uid: str
    input: NDArray[np.float32]
    phases: Mapping[str, PhaseMatch]
    box: FittedBox
    warnings: tuple[Notice, ...]
    timings_ms: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A verified bundle with a backend that reproduced its golden output."""

    bundle: Bundle
    choice: Choice
    check: SelfCheck


def load_model(
    path: Path,
    *,
    backend: str = "auto",
    require: str | None = None,
    precision: str | None = None,
    plans: PlanPolicy | None = None,
) -> LoadedModel:
    """Loads a bundle, chooses a backend and proves it on the golden input.

    Raises: ModelIncompatible (20), IntegrityError (21), GPUUnavailable (22), SelfCheckFailed (23),
        EnvironmentFault (24).
    """
    with progress("loading the model", None):
        bundle = load_bundle(path)
        choice = choose_backend(bundle, backend, require=require, precision=precision, plans=plans)
        return LoadedModel(bundle, choice, self_check(choice.backend, bundle))


def prepare_study(request: StudyRequest, phases: Sequence[str], config: PreprocessingConfig) -> PreparedStudy:
    """Reads and preprocesses a study; only the voxels that the box needs are decoded.

    Raises: the StudyError that applies (10 to 17).
    """
    clock = _Clock()
    with clock.step("scan"):
        study = read_study(request.folder)
        given = read_box(request.box, request.label)
        around = given.region.grown(config.margin_mm)
        matches, notices = assign_phases(study, phases, request.phases, region=around)
        series = {phase: match.series for phase, match in matches.items()}
        box = fit_box(given, series)
    warnings = [*study.warnings, *notices, *box.warnings]
    slices, rows, columns = config.size
    array = np.empty((len(phases), slices, config.channels, rows, columns), dtype=np.float32)
    with progress("reading the phases", len(phases)) as advance:
        for index, phase in enumerate(phases):
            with clock.step("preprocess"):
                region = box.by_phase[phase].grown(config.margin_mm)
                warnings += check_coverage(series[phase], region)
                plan = plan_sampling(series[phase].geometry, region, config)
            with clock.step("read"):
                hu = read_hu(series[phase], plan.window)
            with clock.step("preprocess"):
                array[index] = normalized(plan.resample(hu), config)
            advance(1)
    return PreparedStudy(study.uid, array, matches, box, tuple(dict.fromkeys(warnings)), clock.timings_ms)


def run_study(model: LoadedModel, request: StudyRequest) -> tuple[StudyResult, PreparedStudy]:
    """Runs one study through a loaded model; also returns the prepared input (for --save-input)."""
    started = time.perf_counter()
    bundle = model.bundle
    prepared = prepare_study(request, bundle.phases, bundle.preprocessing)
    clock = _Clock(dict(prepared.timings_ms))
    with clock.step("inference"), progress("inference", None):
        outputs = model.choice.backend.infer(prepared.input[None])
    box = _box_section(prepared.box, bundle.preprocessing.margin_mm)
    clock.timings_ms["total"] = (time.perf_counter() - started) * 1e3
    result = StudyResult(
        case=case_hash(f"{prepared.uid}\0{canonical_json(box)}", bundle.sha256),
        classes=bundle.classes,
        logits=outputs.logits[0],
        phases={phase: _record(match) for phase, match in prepared.phases.items()},
        box={**box, "clipped_mm": _rounded(prepared.box.clipped_mm), "source": prepared.box.source},
        preprocessing_hash=bundle.preprocessing.hash,
        model={"bundle": bundle.path.name, "sha256": bundle.sha256, "precision": model.choice.backend.precision},
        backend=_backend_section(model.choice),
        timings_ms=clock.timings_ms,
        warnings=prepared.warnings,
    )
    return result, prepared


def _backend_section(choice: Choice) -> dict[str, Any]:
    section: dict[str, Any] = {"name": choice.backend.name, "reason": choice.reason, "self_check": "passed"}
    return section | ({"plans": dict(choice.plans)} if choice.plans else {})


class _Clock:
    """Adds up the milliseconds spent in named steps, in the order in which a study passes them."""

    def __init__(self, timings_ms: dict[str, float] | None = None) -> None:
        self.timings_ms = timings_ms or {"scan": 0.0, "read": 0.0, "preprocess": 0.0}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + (time.perf_counter() - started) * 1e3


def _record(match: PhaseMatch) -> PhaseRecord:
    series = match.series
    return PhaseRecord(series.uid, series.number, len(series.slices), match.evidence)


def _box_section(box: FittedBox, margin_mm: float) -> dict[str, Any]:
    """What identifies the box: its corners and margin; with a box per phase, min and max hold them all."""
    section: dict[str, Any] = {
        "space": "LPS_mm",
        "min": _rounded(box.region.min),
        "max": _rounded(box.region.max),
        "margin_mm": margin_mm,
    }
    if len(set(box.by_phase.values())) > 1:
        section["phases"] = {
            phase: {"min": _rounded(region.min), "max": _rounded(region.max)} for phase, region in box.by_phase.items()
        }
    return section


def _rounded(values: Sequence[float]) -> list[float]:
    """Coordinates to a micrometre: what lies below is floating point."""
    return [round(float(value), 3) for value in values]
