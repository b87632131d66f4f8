"""The C-STORE and C-ECHO receiver of `fp-listen` (pynetdicom): one instance after the other into the spool, or refused.

Success is answered when the instance is on disk under its final name. Only configured calling AE titles are served;
what a connection may cost is bounded (see `guard`), and a TLS handshake holds up nobody else. Which studies are
run is the worker's question. It needs the extra [listen].
"""

from __future__ import annotations

import hashlib
import socket
import socketserver
import ssl
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fourphase.runtime.errors import EnvironmentFault
from fourphase.runtime.listen.guard import Guard, Limits, Traffic
from fourphase.runtime.listen.instance import (
    IGNORED,
    KINDS,
    OUT_OF_RESOURCES,
    TRANSFER_SYNTAXES,
    Refused,
    limit_of,
    read_identity,
    study_in_memory,
)
from fourphase.runtime.listen.log import EventLog
from fourphase.runtime.listen.spool import Spool

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.events import Event
    from pynetdicom.transport import ThreadedAssociationServer

__all__ = ["Address", "Receiver"]

_VERIFICATION = "1.2.840.10008.1.1"
_SUCCESS, _FAILED = 0x0000, 0x0110


@dataclass(frozen=True)
class Address:
    """Where to listen, under which AE title, and the calling AE titles that are served."""

    aet: str
    bind: str
    port: int
    allow: tuple[str, ...]


class Receiver:
    """Listens from its making on; `stop` ends it. `port` is the one that was given, or what the system chose for 0.

    Raises: EnvironmentFault (24): the port cannot be bound.
    """

    def __init__(
        self, address: Address, spool: Spool, log: EventLog, limits: Limits, tls: ssl.SSLContext | None = None
    ) -> None:
        self._spool, self._log, self._limits = spool, log, limits
        self._stored: dict[int, Counter[str]] = {}
        ae = _application_entity(address, limits)
        try:
            self._server = _make_server(ae, address, self._handlers(), limits, tls, log)
        except OSError as error:
            raise EnvironmentFault(
                f"port {address.port} cannot be listened on: {(error.strerror or 'error').lower()}",
                "choose another --port or --bind, or stop what listens there",
                key="port_unavailable",
            ) from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), daemon=True, name="receiver")
        self._thread.start()

    def stop(self) -> None:
        """Takes no more connections and aborts those that are open; what was acknowledged is on disk."""
        socketserver.BaseServer.shutdown(self._server)
        self._server.server_close()
        for association in self._server.active_associations:
            threading.Thread(target=association.abort, daemon=True).start()

    def _handlers(self) -> list[Any]:
        from pynetdicom import evt

        return [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, lambda event: _SUCCESS),
            (evt.EVT_ACCEPTED, self._on_accepted),
            (evt.EVT_REJECTED, self._on_rejected),
            (evt.EVT_CONN_CLOSE, self._on_closed),
        ]

    def _on_store(self, event: Event) -> int:
        counts = self._stored.setdefault(id(event.assoc), Counter())
        try:
            outcome = self._store(event)
        except Refused as refused:
            self._log.attention("refused", peer=_peer(event), status=f"{refused.status:04X}", reason=refused.reason)
            counts["refused"] += 1
            return refused.status
        except Exception as error:
            self._log.bug("store", error)
            return _FAILED
        counts[outcome] += 1
        return _SUCCESS

    def _store(self, event: Event) -> str:
        """ "stored", "duplicate" or "ignored"."""
        from pynetdicom.dsutils import encode_file_meta

        request: Any = event.request
        if request.DataSet is None:
            raise Refused(0xA900, "no_data_set")
        sop_class, data = str(request.AffectedSOPClassUID), request.DataSet.getbuffer()
        if sop_class != str(event.context.abstract_syntax):
            raise Refused(0xA900, "class_of_another_context")
        if sop_class not in KINDS:
            return "ignored"
        if len(data) > limit_of(sop_class, self._limits.instance_bytes):
            raise Refused(OUT_OF_RESOURCES, "instance_too_large")
        syntax = str(event.context.transfer_syntax)
        digest = hashlib.sha256(syntax.encode() + b"\0")
        digest.update(data)
        head = bytes(128) + b"DICM" + encode_file_meta(event.file_meta)
        sop_uid = str(request.AffectedSOPInstanceUID)
        try:
            with self._spool.incoming((head, data)) as path:
                identity = read_identity(path, sop_class, sop_uid)
                return "stored" if self._spool.keep(path, identity, digest.hexdigest()) else "duplicate"
        except Refused as refused:
            if refused.status == OUT_OF_RESOURCES and (study := study_in_memory(data, syntax)):
                self._spool.remember_refusal(study, sop_uid, digest.hexdigest())
            raise

    def _on_accepted(self, event: Event) -> None:
        self._log.info("association", peer=_peer(event))

    def _on_rejected(self, event: Event) -> None:
        self._log.attention("rejected", peer=_peer(event))

    def _on_closed(self, event: Event) -> None:
        counts = self._stored.pop(id(event.assoc), None)
        if counts:
            self._log.info("association_ended", peer=_peer(event), **counts)


def _peer(event: Event) -> str:
    requestor = event.assoc.requestor
    return f"{requestor.ae_title}:{requestor.address}"


def _application_entity(address: Address, limits: Limits) -> ApplicationEntity:
    from pynetdicom import ALL_TRANSFER_SYNTAXES
    from pynetdicom.ae import ApplicationEntity

    ae = ApplicationEntity(address.aet)
    ae.require_called_aet = True
    ae.require_calling_aet = list(address.allow)
    ae.maximum_associations = limits.associations
    ae.maximum_pdu_size = limits.pdu_bytes
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = limits.idle_s
    ae.add_supported_context(_VERIFICATION)
    for sop_class in KINDS:
        ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    for sop_class in IGNORED:
        ae.add_supported_context(sop_class, list(ALL_TRANSFER_SYNTAXES))
    return ae


def _make_server(
    ae: ApplicationEntity,
    address: Address,
    handlers: list[Any],
    limits: Limits,
    tls: ssl.SSLContext | None,
    log: EventLog,
) -> ThreadedAssociationServer:
    """A server whose connections are bounded from their first byte, and whose TLS handshakes hold up nobody else."""
    from pynetdicom import _config, evt
    from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

    _config.LOG_HANDLER_LEVEL = "none"
    traffic = Traffic(limits.in_flight_bytes)

    class Handler(RequestHandler):
        def handle(self) -> None:
            association = self._create_association()
            guard = Guard(association, limits, traffic)
            association.dul.socket.recv = guard.recv  # type: ignore[method-assign, union-attr]
            # pynetdicom leaves the descriptor open, until it is collected, where the peer went first.
            association.bind(evt.EVT_CONN_CLOSE, lambda event: self.request.close())
            evt.trigger(association, evt.EVT_CONN_OPEN, {"address": self.client_address})
            association.start()

    class Server(ThreadedAssociationServer):
        daemon_threads = True
        request_queue_size = 64

        def get_request(self) -> tuple[socket.socket, Any]:
            client, peer = self.socket.accept()  # type: ignore[union-attr]
            client.settimeout(limits.idle_s)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return client, peer

        def verify_request(self, request: Any, client_address: Any) -> bool:
            if traffic.connect(limits.connections, len(self.active_associations)):
                return True
            log.attention("too_many_connections")
            return False

        def finish_request(self, request: Any, client_address: Any) -> None:
            try:
                secured = tls.wrap_socket(request, server_side=True) if tls else request
                super().finish_request(secured, client_address)
            finally:
                traffic.connected()

        def handle_error(self, request: Any, client_address: Any) -> None:
            log.attention("connection_refused", reason="tls" if tls else "handshake")

    return ae.make_server(
        (address.bind, address.port), ae_title=address.aet, evt_handlers=handlers, server_class=Server,
        request_handler=Handler,
    )  # fmt: skip
