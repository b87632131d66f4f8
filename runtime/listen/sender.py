"""Sends the SRs of the outbox to the configured archive (C-STORE SCU, pynetdicom), for as long as it takes.

An SR that fails waits 5 s, then twice as long each time, up to 10 minutes, and holds up no other: where the association
is lost over it, the others go over the next one. An archive that is away is waited for in the same way. What was sent
is marked on disk. It needs the extra [listen].
"""

from __future__ import annotations

import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fourphase.runtime.errors import FourphaseError, UsageError
from fourphase.runtime.listen.log import EventLog
from fourphase.runtime.listen.outbox import Outbox

if TYPE_CHECKING:
    from pynetdicom.association import Association

__all__ = ["Peer", "Sender", "parse_peer"]

_COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
#: Explicit and Implicit VR Little Endian.
_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_FIRST_RETRY_S, _LAST_RETRY_S = 5.0, 600.0
_POLL_S = 0.5
#: Associations in a row that may be lost with nothing sent: then it is the archive, not an SR.
_MOST_LOST = 3
#: Stands for the archive itself among the names of files.
_PEER = ""
#: What becomes of an SR: without an answer the association is lost.
_SENT, _FAILED, _LOST = "sent", "failed", "lost"


@dataclass(frozen=True)
class Peer:
    """Another application entity on the network."""

    aet: str
    host: str
    port: int


def parse_peer(text: str) -> Peer:
    """AET@host:port; an IPv6 address in brackets.

    Raises: UsageError (2).
    """
    aet, at, address = text.partition("@")
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    valid = at and 0 < len(aet.strip()) <= 16 and aet.isascii() and "\\" not in aet and host
    if not valid or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            "--send-to is not AET@HOST:PORT", "write for example --send-to PACS@10.0.0.7:104", key="send_to"
        )
    return Peer(aet.strip(), host, int(port))


class _Waits:
    """How long what failed is left alone, by name: twice as long each time."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, float, float]] = {}  # failures, delay, until

    def is_over(self, name: str) -> bool:
        return name not in self._known or time.monotonic() >= self._known[name][2]

    def failures(self, name: str) -> int:
        return self._known[name][0] if name in self._known else 0

    def delay(self, name: str) -> float:
        """Of the last failure; 0 without one."""
        return self._known[name][1] if name in self._known else 0.0

    def failed(self, name: str) -> None:
        delay_s = min(2 * self.delay(name), _LAST_RETRY_S) or _FIRST_RETRY_S
        self._known[name] = self.failures(name) + 1, delay_s, time.monotonic() + delay_s

    def worked(self, name: str) -> None:
        self._known.pop(name, None)

    def keep(self, names: set[str]) -> None:
        """Forgets all others."""
        self._known = {name: known for name, known in self._known.items() if name in names}


class Sender:
    """Sends in a thread of its own until it is stopped.

    Args:
        own_aet: the calling AE title.
        tls: None sends without TLS.
    """

    def __init__(
        self, outbox: Outbox, peer: Peer, own_aet: str, log: EventLog, tls: ssl.SSLContext | None = None
    ) -> None:
        self._outbox, self._peer, self._own_aet, self._log, self._tls = outbox, peer, own_aet, log, tls
        self._waits = _Waits()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="sender")

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """An SR under way is finished if that takes no longer; otherwise it is sent again next time."""
        self._stopped.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_S):
            try:
                self._round()
            except Exception as error:
                if isinstance(error, OSError):
                    self._log.attention("send_failed", reason="disk")
                else:
                    self._log.bug("send", error)
                self._stopped.wait(_FIRST_RETRY_S)

    def _round(self) -> None:
        waiting = self._outbox.waiting()
        self._waits.keep({_PEER, *(path.name for path in waiting)})
        due = [path for path in waiting if self._waits.is_over(path.name)]
        if not due or not self._waits.is_over(_PEER):
            return
        # What failed before comes last: whatever it does to the archive, the others were sent by then.
        sent = self.send_all(sorted(due, key=lambda path: self._waits.failures(path.name)))
        if not sent and not self._stopped.is_set():
            delays = [self._waits.delay(path.name) for path in waiting]
            retry_s = self._waits.delay(_PEER) or min(filter(None, delays), default=_POLL_S)
            self._log.attention("send_again", waiting=len(self._outbox.waiting()), retry_s=retry_s)

    def send_all(self, paths: list[Path]) -> bool:
        """Sends these files, over another association where one is lost; whether all were taken."""
        left, sent, lost = list(paths), 0, 0
        while left and not self._stopped.is_set():
            association = self._associate() if lost < _MOST_LOST else None
            if association is None:
                self._waits.failed(_PEER)
                break
            taken, left = self._send_over(association, left)
            sent, lost = sent + taken, 0 if taken else lost + 1
        if sent:
            self._waits.worked(_PEER)
        return sent == len(paths)

    def _send_over(self, association: Association, paths: list[Path]) -> tuple[int, list[Path]]:
        """Until the association is lost: how many were taken, and those that were not tried."""
        sent = 0
        try:
            for number, path in enumerate(paths):
                if self._stopped.is_set() or not association.is_established:
                    return sent, paths[number:]
                outcome = self._send_safely(association, path)
                if outcome == _SENT:
                    sent += 1
                    self._waits.worked(path.name)
                else:
                    self._waits.failed(path.name)
                if outcome == _LOST:
                    return sent, paths[number + 1 :]
            return sent, []
        finally:
            if association.is_established:
                association.release()

    def _send_safely(self, association: Association, path: Path) -> str:
        try:
            return self._send(association, path)
        except (OSError, FourphaseError) as error:
            self._log.attention("send_failed", reason=error.key if isinstance(error, FourphaseError) else "disk")
        except Exception as error:
            self._log.bug("send", error)
        return _FAILED

    def _associate(self) -> Association | None:
        try:
            association = self._asked()
        except Exception as error:
            self._log.bug("associate", error)
            return None
        if association.is_established:
            return association
        reason = "rejected" if association.is_rejected else "aborted" if association.is_aborted else "unreachable"
        self._log.attention("send_failed", reason=reason)
        return None

    def _asked(self) -> Association:
        from pynetdicom.ae import ApplicationEntity

        ae = ApplicationEntity(self._own_aet)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60.0
        ae.connection_timeout = 10.0
        # Without big endian, which an archive may prefer and pydicom does not convert to.
        ae.add_requested_context(_COMPREHENSIVE_3D_SR, list(_SYNTAXES))
        tls = (self._tls, self._peer.host) if self._tls else None
        return ae.associate(self._peer.host, self._peer.port, ae_title=self._peer.aet, tls_args=tls)

    def _send(self, association: Association, path: Path) -> str:
        started = time.monotonic()
        status = association.send_c_store(path)
        code = int(status.Status) if "Status" in status else None
        study = path.name[:12]
        if code is None or (code != 0x0000 and code >> 12 != 0xB):  # warnings: stored all the same (PS3.4 B.2.3)
            self._log.attention("send_failed", study=study, status="none" if code is None else f"{code:04X}")
            return _LOST if code is None else _FAILED
        self._outbox.sent(path)
        self._log.info("sent", study=study, status=f"{code:04X}", seconds=f"{time.monotonic() - started:.2f}")
        return _SENT
