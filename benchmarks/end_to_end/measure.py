"""Pipelines measured on one study: each starts cold in a process of its own, then all take turns, warm.

A pipeline that fails is a row with its reason, and the others go on. All figures are of one run on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fourphase.benchmarks.end_to_end.agreement import Agreement, agreement, read_answer
from fourphase.benchmarks.end_to_end.pipelines import REFERENCE, Job, Pipeline, checked_path
from fourphase.benchmarks.end_to_end.process import PipelineFailed, PipelineProcess
from fourphase.benchmarks.end_to_end.study import StudyFiles, drop_page_cache, into_page_cache, packages_into_page_cache
from fourphase.benchmarks.end_to_end.worker import TOTAL
from fourphase.benchmarks.latency.ratio import Ratio, paired_ratio, refused_if_busy
from fourphase.benchmarks.latency.sensor_sources import usable_cores
from fourphase.benchmarks.latency.sensors import Watched, watch
from fourphase.benchmarks.latency.statistics import summary
from fourphase.runtime.console import progress

__all__ = ["Measured", "Plan", "Row", "measure"]

#: Studies that each warm pipeline runs uncounted, after its cold one.
WARMUPS = 1
#: Where torch.compile keeps what it compiled; empty for every cold start, for that is what cold means.
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        missing: pipeline -> why it cannot run here. left_out: likewise, why it is not measured.
        bundle, module: the network as a bundle, and its weights as torch.save wrote the module.
        rounds: in each of which every pipeline runs one study.
        cold_starts: of each pipeline; the last one's process stays for the rounds.
        drop_caches: before every cold start, if the kernel lets us.
    """

    pipelines: tuple[Pipeline, ...]
    missing: Mapping[str, str]
    left_out: Mapping[str, str]
    bundle: Path
    module: Path
    rounds: int
    cold_starts: int
    drop_caches: bool = False


@dataclass(eq=False)
class Row:
    """One pipeline, as it goes.

    Attributes:
        status: "ok", "missing", "failed" or "not measured"; reason: "" for ok.
        cold: per start, warm: per round: step -> ms, "total" among them.
        logits: of the first study; empty if it came to none.
        device: "cpu" or "gpu"; slices: per phase, in the pipeline's order.
    """

    pipeline: Pipeline
    status: str = "ok"
    reason: str = ""
    cold: list[dict[str, float]] = field(default_factory=list)
    warm: list[dict[str, float]] = field(default_factory=list)
    peak_bytes: int | None = None
    logits: list[float] = field(default_factory=list)
    device: str | None = None
    slices: list[int] = field(default_factory=list)
    agreement: Agreement | None = None

    @property
    def totals_ms(self) -> list[float]:
        """One per round."""
        return [steps[TOTAL] for steps in self.warm]

    @property
    def was_started(self) -> bool:
        return self.status in ("ok", "failed")

    def fail(self, reason: str) -> None:
        self.status, self.reason = "failed", reason

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; medians over cold starts and over rounds."""
        warm = None
        if self.warm:
            totals = self.totals_ms
            warm = {"steps_ms": _medians(self.warm), "total_ms": summary(totals), "round_medians_ms": totals}
        return {
            "what": self.pipeline.what,
            "ours": self.pipeline.ours,
            "runtime": self.pipeline.runtime,
            "precision": self.pipeline.precision,
            "device": self.device,
            "status": self.status,
            "reason": self.reason,
            "cold_starts": len(self.cold),
            "cold_ms": _medians(self.cold, keep=(TOTAL,)) if self.cold else None,
            "warm": warm,
            "peak_bytes": self.peak_bytes,
            "logits": self.logits,
        }


@dataclass(frozen=True, eq=False)
class Measured:
    """All rows, and what the machine did meanwhile."""

    study: StudyFiles
    bytes: int
    rows: Mapping[str, Row]
    notes: tuple[str, ...]
    watched: Watched | None = None

    def ratios(self) -> Iterator[tuple[str, str, Ratio]]:
        """Every plain pipeline over every one of ours that came to an end: above 1, the plain one takes longer.

        None has a value if others disturbed the rounds.
        """
        busy = None if self.watched is None else self.watched.busy_elsewhere
        for a in self.rows.values():
            for b in self.rows.values():
                if not a.pipeline.ours and b.pipeline.ours and a.was_started and b.was_started:
                    yield a.pipeline.name, b.pipeline.name, refused_if_busy(_ratio(a, b), busy)

    def to_dict(self) -> dict[str, Any]:
        """JSON types only: study, pipelines, ratios, agreement, watched, notes."""
        slices = self.rows[REFERENCE].slices if REFERENCE in self.rows else []
        study = {
            "what": self.study.what,
            "phantom": self.study.phantom,
            "slices_per_phase": slices[0] if len(set(slices)) == 1 else slices,
            "files": len(self.study.files),
            "bytes": self.bytes,
        }
        return {
            "study": study,
            "pipelines": {name: row.to_dict() for name, row in self.rows.items()},
            "ratios": [{"a": a, "b": b, "ratio": ratio.to_dict()} for a, b, ratio in self.ratios()],
            "agreement": {name: row.agreement.to_dict() for name, row in self.rows.items() if row.agreement},
            "watched": self.watched and self.watched.to_dict(),
            "notes": list(self.notes),
        }


def measure(plan: Plan, study: StudyFiles, so_far: Callable[[Measured], None]) -> Measured:
    """Measures every pipeline of the plan.

    Args:
        so_far: told after every stage what there is.
    """
    rows = {pipeline.name: Row(pipeline) for pipeline in plan.pipelines}
    for status, reasons in (("not measured", plan.left_out), ("missing", plan.missing)):
        for name, reason in reasons.items():
            rows[name].status, rows[name].reason = status, reason
    measured = Measured(study, into_page_cache(study), rows, _cache_notes(plan))
    with TemporaryDirectory(prefix="fourphase-end-to-end-") as scratch, _processes() as running:
        _start_all(plan, study, rows, running, Path(scratch))
        so_far(measured)
        with watch() as watcher:
            _take_turns(plan, rows, running, lambda: so_far(measured))
        for name in list(running):
            with _failing(rows[name], running):
                rows[name].peak_bytes = running[name].peak_bytes()
    return Measured(study, measured.bytes, rows, measured.notes, watcher.result())


def _cache_notes(plan: Plan) -> tuple[str, ...]:
    """What cold means in this run, and the page cache brought into that state."""
    compiled = "torch.compile starts cold with nothing compiled before"
    refused = drop_page_cache() if plan.drop_caches else ""
    if plan.drop_caches and not refused:
        return ("cold: a new process and an empty page cache", compiled)
    packages_into_page_cache(plan.bundle, plan.module)
    if refused:
        return (f"cold: a new process; {refused}, so files are in it", compiled)
    return ("cold: a new process; files, packages among them, are in the page cache", compiled)


def _start_all(
    plan: Plan, study: StudyFiles, rows: Mapping[str, Row], running: dict[str, PipelineProcess], scratch: Path
) -> None:
    """Every pipeline cold, one after the other; then what they make of the study is compared."""
    able = [row for row in rows.values() if row.status == "ok"]
    with progress("starting cold", plan.cold_starts * len(able)) as advance:
        for turn in range(plan.cold_starts):
            for row in able:
                if row.status == "ok":
                    _start(plan, study, row, running, scratch / f"compiled-{turn}")
                advance(1)
    for row in able:
        _compare(row, running, scratch)


def _start(plan: Plan, study: StudyFiles, row: Row, running: dict[str, PipelineProcess], compiled: Path) -> None:
    name = row.pipeline.name
    if name in running:
        running.pop(name).close()
    paths = {"study": study.folder, "box": study.box, "bundle": plan.bundle, "module": plan.module}
    job = Job(name, threads=len(usable_cores()), **{key: checked_path(path) for key, path in paths.items()})
    if plan.drop_caches:
        drop_page_cache()
    with _failing(row, running):
        running[name] = PipelineProcess(job, environment={_COMPILED: str(compiled)})
        row.cold.append(running[name].cold_ms)


def _compare(row: Row, running: dict[str, PipelineProcess], scratch: Path) -> None:
    """What the pipeline makes of the study, beside what the reference made of it, which comes first."""
    name, saved, wanted = row.pipeline.name, scratch / f"{row.pipeline.name}.npz", scratch / f"{REFERENCE}.npz"
    if row.status != "ok":
        return
    with _failing(row, running):
        known = running[name].save(saved)
        row.slices, row.device = known["slices"], known["device"]
        answer = read_answer(saved)
        if not np.isfinite(answer.logits).all():
            saved.unlink()  # nothing to compare others with
            raise PipelineFailed("its logits are not finite")
        row.logits = [float(value) for value in answer.logits]
        if wanted.exists():
            row.agreement = agreement(read_answer(wanted), answer, exact=row.pipeline.precision == "fp32")
            if row.agreement.refused:
                row.fail(row.agreement.refused)


def _take_turns(
    plan: Plan, rows: Mapping[str, Row], running: dict[str, PipelineProcess], so_far: Callable[[], None]
) -> None:
    """A round is one study of every pipeline that still runs; one that fails is out.

    One that computes something else than the reference is measured all the same, but takes part in no ratio.
    """
    with progress("measuring, in turns", (WARMUPS + plan.rounds) * len(running)) as advance:
        for turn in range(-WARMUPS, plan.rounds):
            for name in list(running):
                with _failing(rows[name], running):
                    steps = running[name].run()
                    if turn >= 0:
                        rows[name].warm.append(steps)
                advance(1)
            so_far()


def _ratio(a: Row, b: Row) -> Ratio:
    """Refused where one of the two failed, or where nobody knows that they compute the same."""
    for row in (a, b):
        if row.status != "ok":
            return Ratio(None, None, None, 0, f"{row.pipeline.name} failed: {row.reason}")
        if row.agreement is None:
            return Ratio(None, None, None, 0, f"there is no {REFERENCE} to compare {row.pipeline.name}'s answer with")
    return paired_ratio(a.totals_ms, b.totals_ms)


def _medians(runs: Sequence[Mapping[str, float]], keep: Sequence[str] = ()) -> dict[str, float]:
    """Per step; the total only if it is to be kept, since a summary says more of it."""
    names = [name for name in runs[0] if name != TOTAL or name in keep]
    return {name: median(run[name] for run in runs) for name in names}


@contextmanager
def _processes() -> Iterator[dict[str, PipelineProcess]]:
    """Pipeline -> its process; whatever happens, all of them end."""
    running: dict[str, PipelineProcess] = {}
    try:
        yield running
    finally:
        for process in running.values():
            process.close()


@contextmanager
def _failing(row: Row, running: dict[str, PipelineProcess]) -> Iterator[None]:
    """A pipeline's failure is its row's reason and the end of its process, and nobody else's."""
    try:
        yield
    except PipelineFailed as error:
        row.fail(str(error))
        process = running.pop(row.pipeline.name, None)
        if process is not None:
            process.close()
