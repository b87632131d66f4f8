"""Sends the SRs of the outbox to the configured archive (C-STORE SCU, pynetdicom), for as long as it takes.

After a failure it waits 5 s, then twice as long each time, up to 10 minutes; an SR that the archive refuses does not
hold up the others. What was sent is marked on disk. It needs the extra [listen].
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
_FIRST_RETRY_S, _LAST_RETRY_S = 5.0, 600.0
_POLL_S = 0.5


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
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="sender")

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """An SR under way is finished if that takes no longer; otherwise it is sent again next time."""
        self._stopped.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        delay_s = _FIRST_RETRY_S
        while not self._stopped.wait(_POLL_S):
            waiting = self._outbox.waiting()
            if not waiting:
                continue
            if self.send_all(waiting):
                delay_s = _FIRST_RETRY_S
                continue
            self._log.attention("send_again", waiting=len(self._outbox.waiting()), retry_s=delay_s)
            self._stopped.wait(delay_s)
            delay_s = min(2 * delay_s, _LAST_RETRY_S)

    def send_all(self, paths: list[Path]) -> bool:
        """Sends these files over one association; whether all were taken. Never raises."""
        try:
            association = self._associate()
            if association is None:
                return False
            try:
                return sum(self._send(association, path) for path in paths) == len(paths)
            finally:
                if association.is_established:
                    association.release()
        except (OSError, FourphaseError) as error:
            self._log.attention("send_failed", reason=error.key if isinstance(error, FourphaseError) else "disk")
        except Exception as error:
            self._log.bug("send", error)
        return False

    def _associate(self) -> Association | None:
        from pynetdicom.ae import ApplicationEntity

        ae = ApplicationEntity(self._own_aet)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60.0
        ae.connection_timeout = 10.0
        ae.add_requested_context(_COMPREHENSIVE_3D_SR)
        tls = (self._tls, self._peer.host) if self._tls else None
        association = ae.associate(self._peer.host, self._peer.port, ae_title=self._peer.aet, tls_args=tls)
        if association.is_established:
            return association
        reason = "rejected" if association.is_rejected else "aborted" if association.is_aborted else "unreachable"
        self._log.attention("send_failed", reason=reason)
        return None

    def _send(self, association: Association, path: Path) -> bool:
        if self._stopped.is_set() or not association.is_established:
            return False
        started = time.monotonic()
        status = association.send_c_store(path)
        code = int(status.Status) if "Status" in status else None
        study = path.name[:12]
        if code is None or (code != 0x0000 and code >> 12 != 0xB):  # warnings: stored all the same (PS3.4 B.2.3)
            self._log.attention("send_failed", study=study, status="none" if code is None else f"{code:04X}")
            return False
        self._outbox.sent(path)
        self._log.info("sent", study=study, status=f"{code:04X}", seconds=f"{time.monotonic() - started:.2f}")
        return True
