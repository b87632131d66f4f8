"""Measures networks in runtimes, at precisions and batches: peaks, preparation, groups in turns, rows, ratios, limits.

What cannot be measured is a row with its reason. Every number is of this run; none is estimated.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fourphase.benchmarks.guarded_steps import Save, Step, run_step
from fourphase.benchmarks.latency.availability import Availability
from fourphase.benchmarks.latency.candidate import PRECISIONS, Candidate, Task
from fourphase.benchmarks.latency.groups import Group, available_bytes, network_groups, parts, runtime_groups
from fourphase.benchmarks.latency.limits import limit_of
from fourphase.benchmarks.latency.options import LatencyOptions, chosen_networks, rounds_of
from fourphase.benchmarks.latency.prepare import NOT_ACCURACY, benchmarks_folder
from fourphase.benchmarks.latency.rows import empty_row, measured_row, pairs_of
from fourphase.benchmarks.latency.runtimes import RUNTIMES
from fourphase.benchmarks.latency.studies import reference_outputs
from fourphase.benchmarks.latency.subjects import Subject, bundle_subject, prepared_subject
from fourphase.benchmarks.latency.turns import Played, play
from fourphase.benchmarks.latency.workers import Patience
from fourphase.benchmarks.machine import describe_machine
from fourphase.benchmarks.places import machine_places, readable
from fourphase.runtime.console import progress
from fourphase.runtime.errors import UsageError

__all__ = ["SCHEMA", "LatencyBench"]

SCHEMA = "fourphase.latency/1"
_PEAKS_S = 600.0
#: What a candidate is taken to need while nothing was measured; at full size, peaks of 0.4 to 1.2 GB were seen.
_GUESS_BYTES, _QUICK_GUESS_BYTES = 2 << 30, 1 << 29


class LatencyBench:
    """One run; `run` returns the JSON object that the command prints."""

    def __init__(self, options: LatencyOptions, save: Save, *, quick: bool, patience: Patience | None = None) -> None:
        """Raises: UsageError for an unknown network."""
        self.options, self.quick, self.patience = options, quick, patience
        self.networks = chosen_networks(options)
        self.runtimes = tuple(name for name in RUNTIMES if not options.runtimes or name in options.runtimes)
        self.precisions = tuple(name for name in PRECISIONS if not options.precisions or name in options.precisions)
        self.rounds = rounds_of(options, quick)
        usable = len(os.sched_getaffinity(0))
        # In a rehearsal threads would wait for each other longer than the tiny layers take.
        self.threads = min(options.threads or (1 if quick else usable), usable)
        self.work = Path(options.work) if options.work else benchmarks_folder()
        self.available = Availability(options.precisions, options.runtimes, quick=quick)
        self._save = save
        self._machine = describe_machine(lambda record: None).result
        self._played: dict[Candidate, list[Played]] = {}
        self._subjects: dict[str, Subject] = {}
        self._peaks: dict[str, dict[str, Any]] = {}
        self._rows: dict[Candidate, dict[str, Any]] = {}
        self._pairs: list[dict[str, Any]] = []
        self._notes: list[str] = []

    def run(self) -> dict[str, Any]:
        """Raises: ModelIncompatible, IntegrityError for a BUNDLE that is none; EnvironmentFault (24), GPUUnavailable
        (22) for a required runtime that cannot be measured."""
        options = self.options
        self.available.check_named(options.runtimes, self.precisions, require=options.require)
        wanted = self._wanted()
        self._measure_peaks(wanted)
        for group in network_groups(wanted):
            self._play(group)
        right = [one for one in wanted if self._rows[one]["status"] == "ok"]
        for group in runtime_groups(right):
            self._play(group)
        return self.result()

    def result(self) -> dict[str, Any]:
        """Everything so far; JSON types only, no path of this machine."""
        rounds, device = self.rounds, self.available.main_device
        settings = {
            "protocol": {**asdict(rounds), "order": "in turns, a worker per candidate, one running at a time"},
            "threads": self.threads,
            "device": device,
            "batches": list(self.options.batches),
            "runtimes": list(self.runtimes),
            "precisions": list(self.precisions),
            "prepared_networks": NOT_ACCURACY,
            "difference_against": "eager FP32 PyTorch, on the bundle's golden inputs",
            "notes": self._notes,
        }
        found = {
            "schema": SCHEMA,
            "quick": self.quick,
            "machine": self._machine,
            "settings": settings,
            "peaks": self._peaks.get(device, {}),
            **({"peaks_cpu": self._peaks.get("cpu", {})} if device != "cpu" else {}),
            "networks": {name: subject.to_dict() for name, subject in self._subjects.items()},
            "rows": list(self._rows.values()),
            "pairs": self._pairs,
        }
        cleaned: dict[str, Any] = readable(found, {str(self.work): "<work>", **machine_places()})
        return cleaned

    def _wanted(self) -> list[Candidate]:
        """What will be measured; the rest gets its row at once."""
        needed = self.available.models_needed(self.runtimes, self.precisions)
        for path in self.options.bundles:
            subject = bundle_subject(Path(path), self.options.checkpoint)
            if subject.name in self._subjects:
                raise UsageError(
                    f"two bundles are called {subject.name!r}", "rename one of the folders", key="bundle_twice"
                )
            self._subjects[subject.name] = subject
        for name in self.networks:
            subject = prepared_subject(name, needed, quick=self.quick, work=self.work)
            self._subjects[subject.name] = subject
        wanted = []
        for subject in self._subjects.values():
            for candidate in self._candidates(subject.name):
                status, reason = self._why_not(subject, candidate)
                self._rows[candidate] = empty_row(candidate, status, reason, self.available.device(candidate.runtime))
                if status == "not measured":
                    wanted.append(candidate)
        return wanted

    def _candidates(self, name: str) -> list[Candidate]:
        return [
            Candidate(name, runtime, precision, batch)
            for batch in dict.fromkeys(self.options.batches)
            for runtime in self.runtimes
            for precision in self.precisions
        ]

    def _why_not(self, subject: Subject, candidate: Candidate) -> tuple[str, str]:
        """A row's status and reason before anything is measured."""
        reason = self.available.why_not_of(subject, candidate.runtime, candidate.precision)
        if reason is not None:
            return "missing", reason
        return ("failed", subject.problem) if subject.problem else ("not measured", "the run ended before its turn")

    def _measure_peaks(self, wanted: Sequence[Candidate]) -> None:
        for device in dict.fromkeys(self.available.device(one.runtime) for one in wanted):
            arguments = {"device": device, "quick": self.quick, "threads": self.threads}
            record = run_step(Step("peaks", "fourphase.benchmarks.latency.limits:measure_peaks", arguments), _PEAKS_S)
            self._peaks[device] = dict(record["result"])
            if record["status"] != "ok":
                self._notes.append(f"the peaks of {device} were not measured to the end: {record['reason']}")

    def _play(self, group: Group) -> None:
        """Measures a group, in as many parts as memory asks for."""
        divided = parts(group, self._need, available_bytes())
        if len(divided) > 1:
            self._notes.append(f"{group.words}: too large for the memory, measured in {len(divided)} parts")
        for part in divided:
            # One that failed or was wrong in an earlier part or group is not tried again.
            tasks = {one: self._task(one) for one in part if self._rows[one]["status"] != "failed"}
            with progress(f"{group.words}", self.rounds.rounds * len(part)) as advance:
                result = play(tasks, self.rounds, patience=self.patience, advance=advance)
            for candidate, game in result.played.items():
                self._played.setdefault(candidate, []).append(game)
                self._rows[candidate] = self._row(candidate)
            wrong = [one for one in part if self._rows[one]["status"] != "ok"]
            self._pairs += pairs_of(Group(group.kind, part), result, wrong)
            self._save(self.result())

    def _task(self, candidate: Candidate) -> Task:
        return self._subjects[candidate.network].task(candidate, self.available.device(candidate.runtime), self.threads)

    def _need(self, candidate: Candidate) -> int:
        """Its own peak if it was measured, else the largest of its network, else of any, else a guess."""
        for found in (
            [candidate],
            [one for one in self._played if one.network == candidate.network],
            list(self._played),
        ):
            peaks = [(self._rows[one]["memory"] or {}).get("host_peak_bytes") for one in found if one in self._played]
            known = [peak for peak in peaks if peak]
            if known:
                return int(max(known))
        return _QUICK_GUESS_BYTES if self.quick else _GUESS_BYTES

    def _row(self, candidate: Candidate) -> dict[str, Any]:
        subject = self._subjects[candidate.network]
        assert subject.bundle is not None
        reference = reference_outputs(subject.bundle, candidate.batch)
        device = self.available.device(candidate.runtime)
        row = measured_row(candidate, self._played[candidate], reference, device)
        if row["statistics"] and subject.cost:
            peaks = self._peaks.get(device, {})
            row["limit"] = _with_times(limit_of(subject.cost, peaks, candidate.precision, candidate.batch), row)
        return row


def _with_times(limit: dict[str, Any] | None, row: Mapping[str, Any]) -> dict[str, Any] | None:
    return limit and {**limit, "times": row["statistics"]["latency_ms"]["p50"] / limit["limit_ms"]}
