"""Bounds what one connection of `fp-listen` may cost: bytes and seconds of a PDU and of a message, memory of all.

pynetdicom reads as many bytes as a PDU says it has (up to 4 GiB), waits for them as long as it takes, and collects the
PDUs of a message without an end. Here a connection that goes beyond a limit is closed. Nothing is interpreted.
"""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pynetdicom.association import Association

__all__ = ["Guard", "Limits", "Traffic"]

#: PDU type, reserved byte, length (PS3.8 9.3.1).
_PDU_HEADER = 6
#: An A-ASSOCIATE-RQ with 128 contexts and all transfer syntaxes is far smaller; P-DATA is what we ask for.
_LARGEST_PDU = 2**20
_CHUNK = 64 * 1024
#: Without an asynchronous operations window one message is under way (PS3.7 D.3.3.3).
_MOST_QUEUED = 1


@dataclass(frozen=True)
class Limits:
    """What the receiver takes.

    Attributes:
        associations: at once. connections: open sockets, those that have not asked for an association included.
        instance_bytes: of one instance; a single-frame image is limited further.
        in_flight_bytes: of all messages that are being received.
        idle_s: between two PDUs, for a PDU, and for each answer of a peer. message_s: for one instance.
        pdu_bytes: what senders are asked not to exceed.
    """

    associations: int = 16
    connections: int = 64
    instance_bytes: int = 2**30
    in_flight_bytes: int = 2**31
    idle_s: float = 60.0
    message_s: float = 600.0
    pdu_bytes: int = 128 * 1024


class Traffic:
    """What all connections together hold."""

    def __init__(self, in_flight_bytes: int) -> None:
        self._limit = in_flight_bytes
        self._lock = threading.Lock()
        self._guards: weakref.WeakSet[Guard] = weakref.WeakSet()
        self._connecting = 0

    def connect(self, most: int, open_associations: int) -> bool:
        """Whether one more connection may begin; if so, `connected` must follow."""
        with self._lock:
            if self._connecting + open_associations >= most:
                return False
            self._connecting += 1
            return True

    def connected(self) -> None:
        with self._lock:
            self._connecting -= 1

    def add(self, guard: Guard) -> None:
        with self._lock:
            self._guards.add(guard)

    def is_full(self) -> bool:
        with self._lock:
            return sum(guard.message_bytes for guard in self._guards if guard.is_open) > self._limit


class Guard:
    """Reads for one association in place of `AssociationSocket.recv`.

    Attributes:
        message_bytes: received of the message that is under way.
    """

    def __init__(self, association: Association, limits: Limits, traffic: Traffic) -> None:
        self._association = weakref.ref(association)
        self._limits, self._traffic = limits, traffic
        self.message_bytes = 0
        self._message_until = time.monotonic() + limits.message_s
        traffic.add(self)

    @property
    def is_open(self) -> bool:
        association = self._association()
        return association is not None and association.is_alive()

    def recv(self, nr_bytes: int) -> bytearray:
        """Exactly as many bytes, fewer if the peer closed.

        Raises: OSError: a limit is passed, or the socket's own error; pynetdicom then closes the connection.
        """
        association = self._association()
        transport = association.dul.socket if association else None
        if association is None or transport is None or transport.socket is None:
            raise OSError("closed")
        if nr_bytes == _PDU_HEADER:
            self._between_pdus(association)
        self.message_bytes += nr_bytes
        if nr_bytes > _LARGEST_PDU or self.message_bytes > self._limits.instance_bytes + _LARGEST_PDU:
            raise OSError("too large")
        if self._traffic.is_full():
            raise OSError("too much in flight")
        received = bytearray()
        until = min(time.monotonic() + self._limits.idle_s, self._message_until)
        while len(received) < nr_bytes:
            if time.monotonic() > until:
                raise TimeoutError("too slow")
            part = transport.socket.recv(min(_CHUNK, nr_bytes - len(received)))
            if not part:
                break
            received += part
        return received

    def _between_pdus(self, association: Association) -> None:
        if association.dimse.msg_queue.qsize() > _MOST_QUEUED:
            raise OSError("too many messages")
        if association.dimse.message is None:
            self.message_bytes = 0
            self._message_until = time.monotonic() + self._limits.message_s
