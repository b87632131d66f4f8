"""Study folder -> result, step by step in the order of the room: study, phases, box, pixels, preprocess, backend.

Every step's time is kept; of preprocessing on a GPU the host's part only, the GPU's is part of "inference". Nothing is
written here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.backend import Outputs
from fourphase.runtime.backends import Choice, choose_backend
from fourphase.runtime.box import FittedBox, check_coverage, fit_box, read_box
from fourphase.runtime.breathing import BreathingShift, estimate_shifts
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.config import PreprocessingConfig, canonical_json
from fourphase.runtime.console import progress
from fourphase.runtime.errors import Notice, UsageError
from fourphase.runtime.gpu_preprocess import Hounsfield
from fourphase.runtime.phase_manifest import read_manifest
from fourphase.runtime.phases import PhaseMatch, assign_phases
from fourphase.runtime.pixels import read_hu
from fourphase.runtime.plan_choice import PlanPolicy
from fourphase.runtime.preprocess import SamplingPlan, plan_sampling
from fourphase.runtime.result import PhaseRecord, StudyResult, case_hash
from fourphase.runtime.selfcheck import SelfCheck, self_check
from fourphase.runtime.study import read_study
from fourphase.runtime.study_input import HostInput, Preprocessing, check_wanted, load_preprocessing

__all__ = ["LoadedModel", "PreparedStudy", "StudyRequest", "load_model", "prepare_study", "run_study"]


@dataclass(frozen=True)
class StudyRequest:
    """What to read: a study folder, its lesion box, and what the user says about it.

    Attributes:
        folder: holds the DICOM files, at any depth (a zip: see study_archive.open_study).
        box: JSON, NIfTI mask, DICOM SEG or RTSTRUCT. label, roi: which lesion in it, by number or name.
        phases: phase -> SeriesInstanceUID, SeriesNumber or subfolder; overrides the evidence.
        site: the site's phases.toml.
    """

    folder: Path
    box: Path
    label: int | None = None
    phases: Mapping[str, str] = field(default_factory=dict)
    roi: str | None = None
    site: Path | None = None


@dataclass(frozen=True, eq=False)
class PreparedStudy:
    """A study as the network takes it.

    Attributes:
        array: as `input`, or None: it was made on the GPU and stayed there.
        timings_ms: scan, read, preprocess.
    """

    uid: str
    array: NDArray[np.float32] | None
    phases: Mapping[str, PhaseMatch]
    box: FittedBox
    warnings: tuple[Notice, ...]
    timings_ms: Mapping[str, float]

    @property
    def input(self) -> NDArray[np.float32]:
        """float32 (P, T, C, H, W), windowed and normalised: what the network sees.

        Raises: UsageError if it stayed on the GPU.
        """
        if self.array is None:
            raise UsageError(
                "the network's input was made on the GPU and not kept",
                "call run_study with keep_input=True",
                key="input_not_kept",
            )
        return self.array


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A verified bundle with a backend that reproduced its golden output, and what makes its inputs."""

    bundle: Bundle
    choice: Choice
    check: SelfCheck
    preprocessing: Preprocessing


def load_model(
    path: Path,
    *,
    backend: str = "auto",
    require: str | None = None,
    precision: str | None = None,
    plans: PlanPolicy | None = None,
    preprocess: str = "auto",
) -> LoadedModel:
    """Loads a bundle, chooses a backend and proves it on the golden input.

    Args:
        preprocess: "cpu", "gpu" (an error without an engine on a GPU) or "auto", the CPU in this version.

    Raises: UsageError (2), ModelIncompatible (20), IntegrityError (21), GPUUnavailable (22), SelfCheckFailed (23),
        EnvironmentFault (24).
    """
    check_wanted(preprocess, backend, require)
    with progress("loading the model", None):
        bundle = load_bundle(path)
        choice = choose_backend(bundle, backend, require=require, precision=precision, plans=plans)
        check = self_check(choice.backend, bundle)
        return LoadedModel(bundle, choice, check, load_preprocessing(preprocess, choice, bundle))


def prepare_study(request: StudyRequest, phases: Sequence[str], config: PreprocessingConfig) -> PreparedStudy:
    """Reads and preprocesses a study on the CPU; only the voxels that the box needs are decoded.

    Raises: the StudyError that applies (10 to 17).
    """
    clock = _Clock()
    found = _scanned(request, phases, config, clock)
    target = HostInput(len(phases), config)
    notices = _sample(found, config, target.put, clock)
    return found.prepared(target.values, notices, clock.timings_ms)


def run_study(
    model: LoadedModel, request: StudyRequest, *, keep_input: bool = False
) -> tuple[StudyResult, PreparedStudy]:
    """Runs one study through a loaded model; also returns the prepared study.

    Args:
        keep_input: return the network's input also where it was made on the GPU (for --save-input).

    Raises: as `prepare_study`, and what the backend raises.
    """
    started = time.perf_counter()
    clock, config = _Clock(), model.bundle.preprocessing
    found = _scanned(request, model.bundle.phases, config, clock)
    with model.preprocessing.study() as target:
        notices = _sample(found, config, target.put, clock)
        breathing = _breathing(found, config, clock)
        notices += breathing.warnings
        timings = dict(clock.timings_ms)
        with clock.step("inference"), progress("inference", None):
            outputs = target.infer()
        clock.timings_ms["total"] = (time.perf_counter() - started) * 1e3
        array = target.array() if keep_input or model.preprocessing.device == "cpu" else None
    prepared = found.prepared(array, notices, timings)
    return _result(model, prepared, breathing, outputs, clock.timings_ms), prepared


@dataclass(frozen=True, eq=False)
class _Scanned:
    """A study whose pixels have not been read."""

    uid: str
    phases: Mapping[str, PhaseMatch]
    box: FittedBox
    warnings: tuple[Notice, ...]

    def prepared(
        self, array: NDArray[np.float32] | None, notices: Sequence[Notice], timings_ms: Mapping[str, float]
    ) -> PreparedStudy:
        warnings = tuple(dict.fromkeys([*self.warnings, *notices]))
        return PreparedStudy(self.uid, array, self.phases, self.box, warnings, timings_ms)


def _scanned(request: StudyRequest, phases: Sequence[str], config: PreprocessingConfig, clock: _Clock) -> _Scanned:
    with clock.step("scan"):
        study = read_study(request.folder)
        given = read_box(request.box, request.label, request.roi)
        around = given.region.grown(config.margin_mm)
        site = read_manifest(request.site) if request.site else None
        matches, notices = assign_phases(study, phases, request.phases, site=site, region=around)
        box = fit_box(given, {phase: match.series for phase, match in matches.items()})
    ordered = {phase: matches[phase] for phase in phases}
    return _Scanned(study.uid, ordered, box, (*study.warnings, *notices, *box.warnings))


def _sample(
    found: _Scanned,
    config: PreprocessingConfig,
    put: Callable[[int, SamplingPlan, Hounsfield], None],
    clock: _Clock,
) -> list[Notice]:
    """Reads the voxels that each phase needs and hands them on with the plan for them."""
    notices: list[Notice] = []
    with progress("reading the phases", len(found.phases)) as advance:
        for index, (phase, match) in enumerate(found.phases.items()):
            with clock.step("preprocess"):
                region = found.box.by_phase[phase].grown(config.margin_mm)
                notices += check_coverage(match.series, region)
                plan = plan_sampling(match.series.geometry, region, config)
            with clock.step("read"):
                hu = read_hu(match.series, plan.window)
            with clock.step("preprocess"):
                put(index, plan, hu)
            advance(1)
    return notices


def _breathing(found: _Scanned, config: PreprocessingConfig, clock: _Clock) -> BreathingShift:
    with clock.step("breathing"):
        return estimate_shifts({phase: match.series for phase, match in found.phases.items()}, found.box, config)


def _result(
    model: LoadedModel,
    prepared: PreparedStudy,
    breathing: BreathingShift,
    outputs: Outputs,
    timings_ms: Mapping[str, float],
) -> StudyResult:
    bundle, made = model.bundle, model.preprocessing
    box = _box_section(prepared.box, bundle.preprocessing.margin_mm)
    return StudyResult(
        case=case_hash(f"{prepared.uid}\0{canonical_json(box)}", bundle.sha256),
        classes=bundle.classes,
        logits=outputs.logits[0],
        phases={phase: _record(match) for phase, match in prepared.phases.items()},
        box=box | _about_the_box(prepared.box),
        breathing=breathing.to_dict(),
        preprocessing={"hash": bundle.preprocessing.hash, "device": made.device, "reason": made.reason},
        model={"bundle": bundle.path.name, "sha256": bundle.sha256, "precision": model.choice.backend.precision},
        backend=_backend_section(model.choice),
        timings_ms=timings_ms,
        warnings=prepared.warnings,
    )


def _backend_section(choice: Choice) -> dict[str, Any]:
    section: dict[str, Any] = {"name": choice.backend.name, "reason": choice.reason, "self_check": "passed"}
    return section | ({"plans": dict(choice.plans)} if choice.plans else {})


class _Clock:
    """Adds up the milliseconds spent in named steps, in the order in which a study passes them."""

    def __init__(self) -> None:
        self.timings_ms = {"scan": 0.0, "read": 0.0, "preprocess": 0.0}

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


def _about_the_box(box: FittedBox) -> dict[str, Any]:
    """What does not identify it: how much was cut off, and where it comes from."""
    drawn_on = {"drawn_on": list(box.drawn_on)} if box.drawn_on else {}
    return {"clipped_mm": _rounded(box.clipped_mm), "source": box.source, **drawn_on}


def _rounded(values: Sequence[float]) -> list[float]:
    """Coordinates to a micrometre: what lies below is floating point."""
    return [round(float(value), 3) for value in values]
