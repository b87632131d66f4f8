"""`fp-listen` as a whole: lock, spool, model, receiver, worker and sender, from the start to an orderly end.

The worker has a thread of its own in which the model is loaded, because a GPU's context belongs to its thread.
Listening begins when the model has proved itself. On SIGTERM the reception ends at once, and the study and the SR under
way get 4 s together; what is not finished then is run by the next process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fourphase.runtime.errors import InputMissing, UsageError
from fourphase.runtime.listen.config import ListenOptions, client_tls, server_tls
from fourphase.runtime.listen.files import not_writable
from fourphase.runtime.listen.guard import Limits
from fourphase.runtime.listen.log import EventLog, silence_libraries
from fourphase.runtime.listen.outbox import Outbox
from fourphase.runtime.listen.sender import Sender, parse_peer
from fourphase.runtime.listen.server import Address, Receiver
from fourphase.runtime.listen.spool import Spool
from fourphase.runtime.listen.worker import Rules, Worker
from fourphase.runtime.locks import locked

if TYPE_CHECKING:
    from fourphase.runtime.pipeline import LoadedModel

__all__ = ["serve"]

_TICK_S = 0.2
_GRACE_S = 4.0


def serve(options: ListenOptions, quiet: bool) -> None:
    """Receives, runs and sends until a signal comes, or --max-studies are done and sent.

    Raises: FourphaseError of the start (2, 10, 20 to 24, 30, 31), and 22 when the GPU is lost.
    """
    if options.bundle is None or not options.allow:
        missing = "bundle" if options.bundle is None else "calling AE title"
        hint = (
            "give --bundle DIR" if options.bundle is None else "give --allow AET for each sender; others are rejected"
        )
        raise UsageError(f"no {missing} is given", hint, key="listen_incomplete")
    _check_site(options)
    import highdicom  # noqa: F401 - missing, it should be missed now and not after the first study
    import pynetdicom  # noqa: F401

    silence_libraries()
    log = EventLog(quiet)
    threading.excepthook = lambda args: log.bug("thread", args.exc_value or RuntimeError())
    received, sent = server_tls(options), client_tls(options)
    peer = parse_peer(options.send_to) if options.send_to else None
    with _private_files(options, log), locked(options.spool / "lock", 2.0, what="the spool"):
        spool = Spool(options.spool, int(options.spool_limit_gb * 1e9))
        outbox = Outbox(options.spool / "outbox")
        grace = _Grace()
        runner = _Runner(options, spool, outbox, log, grace)
        sender = Sender(outbox, peer, options.aet, log, sent) if peer else None
        with runner.running():
            address = Address(options.aet.strip(), options.bind, options.port, options.allow)
            receiver = Receiver(address, spool, log, _limits(options), received)
            _tell_start(options, log, receiver.port, spool.damaged)
            try:
                if sender:
                    sender.start()
                _wait(runner, outbox if sender else None, options.max_studies)
            finally:
                grace.begin()
                log.info("stopping")
                receiver.stop()
                if sender:
                    sender.stop(min(1.0, grace.left()))


def _tell_start(options: ListenOptions, log: EventLog, port: int, damaged: int) -> None:
    tls = options.tls_cert is not None
    log.info("listening", aet=options.aet.strip(), address=f"{options.bind}:{port}", tls=tls)
    if not tls and options.bind not in ("127.0.0.1", "localhost", "::1"):
        log.attention("no_tls", note="AE_titles_are_no_passwords_keep_this_port_in_a_trusted_network")
    if damaged:
        log.attention("damaged_studies", count=damaged)


@contextmanager
def _private_files(options: ListenOptions, log: EventLog) -> Iterator[None]:
    """Makes the spool's folder; nobody else may read what is written within the context.

    Raises: OutputNotWritable (30).
    """
    mask = os.umask(0o077)
    try:
        try:
            _make_private(options.spool)
        except OSError as error:
            raise not_writable(error) from error
        if options.spool.stat().st_mode & 0o077:
            log.attention("spool_not_private", note="make_it_yours_with_mode_0700")
        yield
    finally:
        os.umask(mask)


def _make_private(spool: Path) -> None:
    """A folder that others use too, /tmp for example, is left as it is; what we make in it is private all the same."""
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours = (spool / "salt").exists() or not any(spool.iterdir())
    with (spool / "lock").open("ab"):
        pass
    for folder in (spool, spool / "results"):
        if ours and folder.is_dir():
            with suppress(PermissionError):  # another user's; told by the caller
                folder.chmod(0o700)


class _Grace:
    """The seconds that all threads together have from the signal on."""

    def __init__(self) -> None:
        self._until: float | None = None

    def begin(self) -> None:
        """The first call counts."""
        if self._until is None:
            self._until = time.monotonic() + _GRACE_S

    def left(self) -> float:
        return max(0.0, (self._until or 0.0) - time.monotonic())


def _check_site(options: ListenOptions) -> None:
    """What would otherwise fail every study."""
    from fourphase.runtime.phase_manifest import read_manifest

    if options.phases:
        read_manifest(options.phases)
    if options.boxes and not options.boxes.is_dir():
        raise InputMissing("the folder of --boxes does not exist", "make it, or give another --boxes DIR")
    if options.plans and not options.plans.is_dir():
        raise InputMissing("the folder of --plans does not exist", "give the DIR of fp-export build-plan --plans")


class _Runner:
    """The worker's thread."""

    def __init__(self, options: ListenOptions, spool: Spool, outbox: Outbox, log: EventLog, grace: _Grace) -> None:
        self._grace = grace
        self._options, self._spool, self._outbox, self._log = options, spool, outbox, log
        self._stopped, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="worker")
        self.error: BaseException | None = None
        self.settled = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Starts the thread; entered when the model is loaded. At the end the study under way gets some seconds."""
        self._thread.start()
        try:
            while not self._ready.wait(_TICK_S):
                pass
            self.check()
            yield
        finally:
            self._grace.begin()
            self._stopped.set()
            self._thread.join(self._grace.left())

    def check(self) -> None:
        """Raises what ended the thread."""
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            worker = Worker(self._spool, self._outbox, self._model(), _rules(self._options), self._log)
            self._ready.set()
            while not self._stopped.is_set():
                busy = worker.step()
                self.settled = worker.settled
                if not busy:
                    self._stopped.wait(_TICK_S)
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    def _model(self) -> LoadedModel:
        from fourphase.runtime.pipeline import load_model
        from fourphase.runtime.plan_choice import PlanPolicy

        options = self._options
        assert options.bundle is not None
        model = load_model(
            options.bundle,
            backend=options.backend,
            require=options.require_backend,
            precision=options.precision,
            plans=PlanPolicy(options.plans, False, False),
            preprocess=options.preprocess,
        )
        choice = model.choice
        self._log.info("model", backend=choice.backend.name, precision=choice.backend.precision, reason=choice.reason)
        return model


def _wait(runner: _Runner, outbox: Outbox | None, most: int | None) -> None:
    while True:
        runner.check()
        if most is not None and runner.settled >= most and not (outbox and outbox.waiting()):
            return
        time.sleep(_TICK_S)


def _rules(options: ListenOptions) -> Rules:
    output: Path = options.output or options.spool / "results"
    keep_s = float("inf") if options.keep else options.keep_hours * 3600.0
    return Rules(
        output=output,
        boxes=options.boxes,
        quiet_s=options.quiet_seconds,
        keep_s=keep_s,
        remember_s=options.remember_days * 86400.0,
        send=options.send_to is not None,
        label=options.label,
        roi=options.roi,
        site=options.phases,
    )


def _limits(options: ListenOptions) -> Limits:
    return Limits(
        associations=options.max_associations,
        connections=4 * options.max_associations,
        instance_bytes=int(options.max_instance_mb * 2**20),
        idle_s=options.idle_seconds,
    )
