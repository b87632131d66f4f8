"""Decides what becomes of each study of the spool and runs one at a time: receiving, waiting, running, done or failed.

A study is complete when no instance came for `quiet_s`. It runs once per content: what is known is not run again, a run
that was cut off is repeated, a failed one stays until its content or its box changes or somebody asks. Nothing is
received or sent here; what is to be sent goes to the outbox before the study is done.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fourphase.runtime.errors import GPU_LOST, EnvironmentFault, FourphaseError, MachineError
from fourphase.runtime.listen.box import FoundBox, box_signature, find_box
from fourphase.runtime.listen.log import EventLog
from fourphase.runtime.listen.outbox import Outbox
from fourphase.runtime.listen.results import Written, run_key, write_outcome
from fourphase.runtime.listen.spool import Entry, Spool

if TYPE_CHECKING:
    from fourphase.runtime.listen.refusals import Refusal
    from fourphase.runtime.pipeline import LoadedModel, PreparedStudy, StudyRequest
    from fourphase.runtime.result import StudyResult

    Run = Callable[[LoadedModel, StudyRequest], tuple[StudyResult, PreparedStudy]]

__all__ = ["MOST_ATTEMPTS", "RETRY_MARK", "Rules", "Worker"]

#: A study that was cut off so often takes the process down itself.
MOST_ATTEMPTS = 6
#: The machine's faults (a full disk, a GPU out of memory) pass; the study is tried again after this.
_MACHINE_RETRY_S = 30.0
#: A file in the spool by which an operator asks for failed studies to be run again.
RETRY_MARK = "retry-failed"


@dataclass(frozen=True)
class Rules:
    """What the operator decided.

    Attributes:
        output: where results go. boxes: the site's lesion boxes, or None.
        quiet_s: a study without a new instance for so long is complete.
        keep_s: how long a done study's instances stay; inf for ever.
        remember_s: how long it is known afterwards that the study was done.
        hold_s: a study of which an instance was refused is held for so long; then it is failed.
        send: whether SRs go to the outbox.
        label, roi: which lesion in a mask, segmentation or structure set. site: the site's phases.toml.
    """

    output: Path
    boxes: Path | None = None
    quiet_s: float = 10.0
    keep_s: float = 24 * 3600.0
    remember_s: float = 90 * 24 * 3600.0
    hold_s: float = 3600.0
    send: bool = False
    label: int | None = None
    roi: str | None = None
    site: Path | None = None


class Worker:
    """Looks after the spool; `step` is called again and again, by one thread."""

    def __init__(
        self, spool: Spool, outbox: Outbox, model: LoadedModel, rules: Rules, log: EventLog, run: Run | None = None
    ) -> None:
        from fourphase.runtime.pipeline import run_study

        self._spool, self._outbox, self._model, self._rules, self._log = spool, outbox, model, rules, log
        self._run: Run = run or run_study
        self.settled = 0

    def step(self) -> bool:
        """Looks once at every study and runs at most one; true if one was run.

        Raises: GPUUnavailable (22, gpu_lost): the process must end; the study will be run by the next one.
        """
        self._retry_if_asked()
        now = time.monotonic()
        for entry in sorted(self._spool.entries, key=lambda one: one.active):
            try:
                if now >= max(entry.active + self._rules.quiet_s, entry.not_before) and self._look_at(entry):
                    return True
            except (OSError, MachineError) as error:
                self._put_off(entry, error)
        return False

    def _look_at(self, entry: Entry) -> bool:
        state = entry.state
        looked_for = state.state in ("failed", "waiting")
        # Whatever its box says, images are missing; only they or somebody who asks help.
        refused = state.error is not None and state.error.get("key") == _REFUSED
        box_changed = looked_for and not refused and box_signature(self._rules.boxes, state.uid) != state.box
        if not (entry.news or box_changed):
            self._retire(entry)
            return False
        names = self._spool.names(entry)
        if state.state in ("done", "failed") and names <= set(state.content) and not box_changed:
            if names and state.files_deleted:  # a resend of what has been done
                self._log.info("duplicate", study=entry.key[:12], instances=len(names))
                self._spool.delete_files(entry)
            return False
        if not names:
            return False
        if refusal := self._spool.refusals.of(entry.key):
            return self._hold(entry, names, refusal)
        return self._begin(entry, names)

    def _hold(self, entry: Entry, names: frozenset[str], refusal: Refusal) -> bool:
        """It would be run without images that its sender still has; true if it was given up."""
        if time.monotonic() - refusal.last >= self._rules.hold_s:
            self._fail(entry, names, box_signature(self._rules.boxes, entry.state.uid), _refused(len(refusal.sops)))
            return True
        entry.news = True  # looked at again until the refused ones have come
        entry.not_before = time.monotonic() + self._rules.quiet_s
        if not refusal.told:
            refusal.told = True
            self._log.attention("held", study=entry.key[:12], refused=len(refusal.sops), hold_s=self._rules.hold_s)
        return False

    def _begin(self, entry: Entry, names: frozenset[str]) -> bool:
        state = entry.state
        attempts = state.attempts if state.state == "running" and set(state.content) == names else 0
        if attempts >= MOST_ATTEMPTS:
            self._fail(entry, names, box_signature(self._rules.boxes, state.uid), _cut_off(attempts))
            return True
        try:
            box = find_box(self._rules.boxes, state.uid, names)
        except FourphaseError as error:
            self._fail(entry, names, box_signature(self._rules.boxes, state.uid), error)
            return True
        if box is None:
            if state.state != "waiting" or set(state.content) != names:
                content = tuple(sorted(names))
                self._spool.save(entry, state="waiting", content=content, box="", attempts=0, error=None)
                self._log.attention("waiting_for_box", study=entry.key[:12], instances=len(names))
            return False
        folder = self._spool.snapshot(entry, names)
        if folder is None:
            entry.news = True
            return False
        content = tuple(sorted(names))
        self._spool.save(
            entry, state="running", content=content, attempts=attempts + 1, error=None, files_deleted=False, box=""
        )
        try:
            self._run_study(entry, folder, names, box)
        finally:
            self._spool.drop_snapshot(entry)
        return True

    def _run_study(self, entry: Entry, folder: Path, names: frozenset[str], box: FoundBox) -> None:
        attempt = entry.state.attempts
        self._log.info("running", study=entry.key[:12], instances=len(names), box=box.kind, attempt=attempt)
        started = time.monotonic()
        try:
            request = self._request(folder, box)
            given = request.box.read_bytes() if box.signature else b""
            key = run_key(names, given, self._settings())
            result, prepared = self._run(self._model, request)
            written = write_outcome(result, prepared, self._rules.output, key)
        except FourphaseError as error:
            if isinstance(error, MachineError) and not isinstance(error, EnvironmentFault):
                raise
            self._fail(entry, names, box.signature, error)
        except OSError:
            raise
        except Exception as error:
            self._log.bug("run", error)
            self._fail(entry, names, box.signature, FourphaseError(*_BUG))
        else:
            self._done(entry, written, result.case, key, box, time.monotonic() - started)

    def _request(self, folder: Path, box: FoundBox) -> StudyRequest:
        from fourphase.runtime.pipeline import StudyRequest

        path = box.path if box.signature else folder / box.path
        label = None if box.kind in ("json", "rtstruct") else self._rules.label
        roi = self._rules.roi if box.kind in ("seg", "rtstruct") else None
        return StudyRequest(folder, path, label, {}, roi, self._rules.site)

    def _settings(self) -> dict[str, str]:
        site = self._rules.site
        return {
            "bundle": self._model.bundle.sha256,
            "precision": self._model.choice.backend.precision,
            "label": str(self._rules.label),
            "roi": str(self._rules.roi),
            "site": hashlib.sha256(site.read_bytes()).hexdigest() if site else "",
        }

    def _done(self, entry: Entry, written: Written, case: str, key: str, box: FoundBox, seconds: float) -> None:
        """The outbox first: a study that is done has its SR there, or it was sent."""
        if self._rules.send:
            self._outbox.put(f"{entry.key}-{key[:16]}", written.sr.read_bytes())
        self._spool.save(
            entry, state="done", case=case, revision=written.revision, attempts=0, box=box.signature, error=None
        )
        self.settled += 1
        again = {} if written.new else {"again": True}
        self._log.info(
            "done", study=entry.key[:12], case=case, revision=written.revision, seconds=f"{seconds:.2f}", **again
        )

    def _fail(self, entry: Entry, names: frozenset[str], box: str, error: FourphaseError) -> None:
        self._spool.save(
            entry, state="failed", content=tuple(sorted(names)), box=box, attempts=0, error=error.to_dict()
        )
        self.settled += 1
        self._log.attention("failed", study=entry.key[:12], code=error.code, key=error.key)

    def _put_off(self, entry: Entry, error: OSError | MachineError) -> None:
        key = error.key if isinstance(error, MachineError) else "disk"
        if key == GPU_LOST:
            raise error
        with suppress(OSError, MachineError):
            self._spool.save(entry, state="receiving", attempts=0)
        entry.news = True
        entry.not_before = time.monotonic() + _MACHINE_RETRY_S
        self._log.attention("put_off", study=entry.key[:12], key=key, retry_s=_MACHINE_RETRY_S)

    def _retire(self, entry: Entry) -> None:
        """Deletes what a done study does not need any more."""
        state, age_s = entry.state, time.time() - entry.state.changed
        limit_s = self._rules.remember_s if state.files_deleted else self._rules.keep_s
        if state.state != "done" or age_s < limit_s or self._outbox.holds(entry.key):
            return
        if state.files_deleted:
            self._spool.forget(entry)
            self._outbox.forget(entry.key)
        else:
            self._spool.delete_files(entry)
            self._log.info("instances_deleted", study=entry.key[:12])

    def _retry_if_asked(self) -> None:
        mark = self._spool.root / RETRY_MARK
        if not mark.exists():
            return
        mark.unlink(missing_ok=True)
        for entry in self._spool.entries:
            if entry.state.state == "failed":
                self._spool.refusals.forget(entry.key)
                self._spool.save(entry, state="receiving", content=(), error=None)
                entry.news = True
                self._log.info("retry", study=entry.key[:12])


_BUG = ("an unexpected error stopped the run", "report it with the lines of the log around it")
_REFUSED = "instances_refused"


def _refused(count: int) -> FourphaseError:
    return FourphaseError(
        f"{count} instances of the study were refused for want of room and have not come again",
        "make room and send the study again, or ask with --retry-failed to run what has come",
        key=_REFUSED,
    )


def _cut_off(attempts: int) -> FourphaseError:
    return FourphaseError(
        f"the process ended {attempts} times while it ran this study",
        "run the study with fp-run to see why, then ask again with --retry-failed",
        key="run_cut_off",
    )
