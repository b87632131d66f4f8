"""The receiver with real senders: DCMTK's tools, pynetdicom's, and sockets that break the rules."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEGLosslessSV1, RLELossless

from fourphase.runtime.listen.config import resolve_options, server_tls
from fourphase.runtime.listen.guard import Limits
from fourphase.runtime.listen.server import Address, Receiver
from fourphase.runtime.listen.spool import Spool
from tests.support.dicom import file_bytes, slice_dataset, uid, write_phases
from tests.support.listen import LEFT_OPEN, SCANNER, Log, association, ct_image, dcmtk_program, rtstruct, send

pytestmark = LEFT_OPEN

ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"
LIMITS = Limits(idle_s=5.0)


class Site:
    def __init__(self, root: Path, limits: Limits = LIMITS, tls: ssl.SSLContext | None = None, quota: int = 10**9):
        self.root, self.log = root, Log()
        self.spool = Spool(root, quota)
        address = Address("FOURPHASE", "127.0.0.1", 0, (SCANNER, "OTHER"))
        self.receiver = Receiver(address, self.spool, self.log, limits, tls)
        self.port = self.receiver.port

    @property
    def files(self) -> list[Path]:
        return sorted(self.root.glob("studies/*/instances/*"))

    def waited_for(self, event: str, seconds: float = 10.0) -> list[dict[str, object]]:
        until = time.monotonic() + seconds
        while not self.log.named(event) and time.monotonic() < until:
            time.sleep(0.02)
        return self.log.named(event)


@contextmanager
def listening(root: Path, **options: Any) -> Iterator[Site]:
    site = Site(root, **options)
    try:
        yield site
    finally:
        site.receiver.stop()
        until = time.monotonic() + 5
        while site.receiver._server.active_associations and time.monotonic() < until:
            time.sleep(0.02)
        with warnings.catch_warnings():  # pynetdicom leaves sockets of failed senders to the garbage collector
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with listening(tmp_path / "spool") as opened:
        yield opened


def dcmtk(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [dcmtk_program(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_echoscu_is_answered(site: Site) -> None:
    done = dcmtk("echoscu", "-aet", SCANNER, "-aec", "FOURPHASE", "127.0.0.1", str(site.port))
    assert done.returncode == 0, done.stderr


def test_storescu_sends_a_study_and_the_data_sets_are_on_disk_as_they_came(site: Site, tmp_path: Path) -> None:
    written = write_phases(tmp_path / "study")
    arguments = ["-aet", SCANNER, "-aec", "FOURPHASE", "+sd", "+r", "127.0.0.1", str(site.port)]
    done = dcmtk("storescu", *arguments, str(tmp_path / "study"))
    assert done.returncode == 0, done.stderr
    sent = {bytes(dcmread(path).PixelData): dcmread(path) for paths in written.values() for path in paths}
    kept = [dcmread(path) for path in site.files]
    assert len(kept) == len(sent) == 32
    assert all(sent[bytes(image.PixelData)] == image for image in kept)
    assert [event for event, _ in site.log.events] == ["association", "association_ended"]


@pytest.mark.parametrize(
    ("calling", "called"), [("STRANGER", "FOURPHASE"), (SCANNER, "ANY-SCP"), (SCANNER.lower(), "FOURPHASE")]
)
def test_only_configured_titles_are_served(site: Site, calling: str, called: str) -> None:
    done = dcmtk("echoscu", "-aet", calling, "-aec", called, "127.0.0.1", str(site.port))
    assert "Association Rejected" in done.stderr
    assert done.returncode != 0
    assert site.waited_for("rejected")


def test_compressed_images_are_kept_as_they_came(site: Site, tmp_path: Path) -> None:
    for number, (syntax, option) in enumerate(((JPEGLosslessSV1, "-xs"), (RLELossless, "-xr"))):
        path = tmp_path / f"image{number}.dcm"
        path.write_bytes(file_bytes(ct_image(number), syntax))
        done = dcmtk("storescu", option, "-aet", SCANNER, "-aec", "FOURPHASE", "127.0.0.1", str(site.port), str(path))
        assert done.returncode == 0, done.stderr
    kept = {dcmread(path).file_meta.TransferSyntaxUID: dcmread(path).PixelData for path in site.files}
    assert kept == {
        syntax: dcmread(tmp_path / f"image{number}.dcm").PixelData
        for number, syntax in enumerate((JPEGLosslessSV1, RLELossless))
    }


def test_what_cannot_be_decoded_is_not_negotiated(site: Site) -> None:
    from pynetdicom import AE

    ae = AE(SCANNER)
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.4.51")
    opened = ae.associate("127.0.0.1", site.port, ae_title="FOURPHASE")
    assert not opened.accepted_contexts
    if opened.is_established:
        opened.abort()


def test_a_lossless_syntax_is_preferred(site: Site) -> None:
    from pynetdicom import AE

    ae = AE(SCANNER)
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.2", ["1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.80"])
    opened = ae.associate("127.0.0.1", site.port, ae_title="FOURPHASE")
    assert [one.transfer_syntax[0] for one in opened.accepted_contexts] == ["1.2.840.10008.1.2.4.80"]
    opened.release()


def test_what_comes_with_a_study_is_accepted_and_not_kept(site: Site) -> None:
    capture = ct_image(5, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    assert send(site.port, [ct_image(), capture, rtstruct()]) == [0x0000] * 3
    assert sorted(path.name.split(".")[1] for path in site.files) == ["ct", "rtstruct"]
    assert site.waited_for("association_ended")[0]["ignored"] == 1


def test_a_resend_is_answered_with_success_and_kept_once(site: Site) -> None:
    assert send(site.port, [ct_image(), ct_image()]) == [0, 0]
    assert send(site.port, [ct_image()]) == [0]
    assert len(site.files) == 1


def test_a_data_set_without_a_study_is_refused_and_the_next_one_taken(site: Site) -> None:
    images = [ct_image(0, StudyInstanceUID=None), ct_image(1, StudyInstanceUID="1"), ct_image(2)]
    assert send(site.port, images) == [0xA900, 0xA900, 0x0000]
    assert len(site.files) == 1


def test_a_full_disk_is_answered_out_of_resources(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert send(site.port, [ct_image()]) == [0xA700]
    monkeypatch.undo()
    assert not site.files
    assert send(site.port, [ct_image()]) == [0x0000]


def test_the_spools_limit_is_answered_out_of_resources(tmp_path: Path) -> None:
    with listening(tmp_path, quota=5000) as site:
        assert send(site.port, [ct_image(0), ct_image(1)]) == [0x0000, 0xA700]


def test_no_patient_data_and_no_uid_is_logged(site: Site) -> None:
    send(
        site.port,
        [ct_image(), ct_image(0, StudyInstanceUID=None), ct_image(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")],
    )
    send(site.port, [ct_image()], aet="MARKER")
    assert site.waited_for("association_ended")
    told = str([(event, fields) for event, fields in site.log.events if event != "rejected"])
    for marker in ("MARKER", uid("study"), uid("image", 0), str(site.root)):
        assert marker not in told


def test_an_instance_above_the_limit_ends_the_connection(tmp_path: Path) -> None:
    with listening(tmp_path, limits=replace(LIMITS, instance_bytes=2**20)) as site:
        big = slice_dataset(np.zeros((1024, 1536), np.uint16), (0, 0, 0), SOPClassUID=ENHANCED)
        assert send(site.port, [big]) == [None]
        assert send(site.port, [ct_image()]) == [0]
        assert not list(site.root.glob("incoming/*"))


def test_all_that_is_in_flight_is_bounded(tmp_path: Path) -> None:
    with listening(tmp_path, limits=replace(LIMITS, in_flight_bytes=2**20)) as site:
        big = slice_dataset(np.zeros((1024, 1536), np.uint16), (0, 0, 0), SOPClassUID=ENHANCED)
        assert send(site.port, [big]) == [None]
        assert send(site.port, [ct_image()]) == [0]


def raw(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def closed_after(connection: socket.socket, seconds: float) -> float:
    """Seconds until the other side closed."""
    started = time.monotonic()
    connection.settimeout(seconds)
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - started


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"\x01",
        b"\x01\x00\x00\x00\x10\x00" + b"\x00\x01",
        b"GET / HTTP/1.0\r\n\r\n",
        struct.pack(">BBL", 1, 0, 2**32 - 1) + bytes(100),
        struct.pack(">BBL", 4, 0, 0),
        struct.pack(">BBL", 1, 0, 200) + bytes(200),
        bytes(10_000),
    ],
    ids=["silent", "one byte", "half", "http", "4 GiB", "data first", "zeros", "zeros only"],
)
def test_who_does_not_speak_dicom_is_cut_off(tmp_path: Path, first: bytes) -> None:
    with listening(tmp_path, limits=replace(LIMITS, idle_s=0.6)) as site, raw(site.port) as connection:
        connection.sendall(first)
        assert closed_after(connection, 8) < 6
        assert send(site.port, [ct_image()]) == [0]


def test_a_trickle_of_bytes_is_cut_off(tmp_path: Path) -> None:
    """One byte every 0.2 s never meets a timeout between bytes of 0.6 s; the PDU's own time ends it."""
    with listening(tmp_path, limits=replace(LIMITS, idle_s=0.6)) as site, raw(site.port) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 1000))
        started = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - started < 8:
                connection.sendall(b"\0")
                time.sleep(0.2)
        assert time.monotonic() - started < 6


def test_a_message_may_not_take_for_ever(tmp_path: Path) -> None:
    """PDUs that come in time, of a message that never ends."""
    with listening(tmp_path, limits=replace(LIMITS, message_s=1.0)) as site, association(site.port) as opened:
        pdv = struct.pack(">LBB", 4, 1, 1) + b"\0\0"  # command, not the last fragment
        started = time.monotonic()
        while opened.is_established and time.monotonic() - started < 8:
            opened.dul.socket.send(struct.pack(">BBL", 4, 0, len(pdv)) + pdv)  # type: ignore[union-attr]
            time.sleep(0.1)
        assert not opened.is_established


def test_messages_do_not_queue_up(site: Site) -> None:
    """A sender that does not wait for answers is cut off, however small its messages are."""
    with association(site.port) as opened:
        command = _echo_command()
        pdv = struct.pack(">LBB", len(command) + 2, 1, 3) + command
        pdu = struct.pack(">BBL", 4, 0, len(pdv)) + pdv
        started = time.monotonic()
        while opened.is_established and time.monotonic() - started < 8:
            opened.dul.socket.send(pdu * 50)  # type: ignore[union-attr]
        assert not opened.is_established


def _echo_command() -> bytes:
    def element(tag: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, tag, len(value)) + value

    rest = element(0x0002, b"1.2.840.10008.1.1\0") + element(0x0100, b"\x30\x00")
    rest += element(0x0110, b"\x01\x00") + element(0x0800, b"\x01\x01")
    return element(0x0000, struct.pack("<L", len(rest))) + rest


def test_one_sender_cannot_hold_the_server(tmp_path: Path) -> None:
    limits = replace(LIMITS, associations=2, connections=4, idle_s=1.0)
    with listening(tmp_path, limits=limits) as site:
        silent = [raw(site.port) for _ in range(12)]
        try:
            assert site.waited_for("too_many_connections")
            until = time.monotonic() + 15
            while not site.files and time.monotonic() < until:
                send(site.port, [ct_image()])
                time.sleep(0.1)
            assert len(site.files) == 1
        finally:
            for connection in silent:
                connection.close()


def test_more_associations_than_allowed_are_rejected_and_work_later(tmp_path: Path) -> None:
    with listening(tmp_path, limits=replace(LIMITS, associations=1)) as site:
        with association(site.port) as first, association(site.port) as second:
            assert first.is_established
            assert second.is_rejected
        assert site.waited_for("rejected")
        until = time.monotonic() + 5
        while site.receiver._server.active_associations and time.monotonic() < until:
            time.sleep(0.02)
        assert send(site.port, [ct_image()]) == [0]


def test_senders_at_once_lose_nothing(site: Site) -> None:
    statuses: list[list[int | None]] = []

    def send_ten(first: int) -> None:
        statuses.append(send(site.port, [ct_image(first + index) for index in range(10)]))

    senders = [threading.Thread(target=send_ten, args=(first,)) for first in range(0, 40, 10)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert statuses == [[0] * 10] * 4
    assert len(site.files) == 40


Certificate = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Makes a self-signed certificate for 127.0.0.1: (certificate, key)."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def make(name: str) -> tuple[Path, Path]:
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        if not cert.exists():
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(cert),
                 "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"],
                check=True, capture_output=True,
            )  # fmt: skip
        return cert, key

    return make


def server_context(certificate: Certificate, clients: str | None = None) -> ssl.SSLContext:
    cert, key = certificate("server")
    flags = {"spool": "x", "tls_cert": cert, "tls_key": key}
    context = server_tls(resolve_options(flags | ({"tls_ca": certificate(clients)[0]} if clients else {}), None))
    assert context is not None
    return context


def client_context(certificate: Certificate, own: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate("server")[0]))
    if own:
        context.load_cert_chain(*certificate(own))
    return context


def test_with_tls_nothing_else_is_served(tmp_path: Path, certificate: Certificate) -> None:
    with listening(tmp_path, tls=server_context(certificate)) as site:
        tls_args = (client_context(certificate), "127.0.0.1")
        assert send(site.port, [ct_image()], tls_args=tls_args) == [0]
        assert send(site.port, [ct_image(1)]) == [None]
        assert len(site.files) == 1


def test_only_clients_with_a_certificate_of_the_authority_are_served(tmp_path: Path, certificate: Certificate) -> None:
    with listening(tmp_path, tls=server_context(certificate, clients="known")) as site:
        known = (client_context(certificate, "known"), "127.0.0.1")
        assert send(site.port, [ct_image()], tls_args=known) == [0]
        for own in (None, "unknown"):
            assert send(site.port, [ct_image(1)], tls_args=(client_context(certificate, own), "127.0.0.1")) == [None]
        assert site.waited_for("connection_refused")
        assert len(site.files) == 1


def test_old_tls_is_refused(certificate: Certificate) -> None:
    assert server_context(certificate).minimum_version == ssl.TLSVersion.TLSv1_2


def test_dcmtk_sends_with_tls(tmp_path: Path, certificate: Certificate) -> None:
    (tmp_path / "image.dcm").write_bytes(file_bytes(ct_image()))
    with listening(tmp_path / "spool", tls=server_context(certificate, clients="known")) as site:
        cert, key = certificate("known")
        done = dcmtk(
            "storescu", "-aet", SCANNER, "-aec", "FOURPHASE", "+tls", str(key), str(cert), "+cf",
            str(certificate("server")[0]), "127.0.0.1", str(site.port), str(tmp_path / "image.dcm"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(site.files) == 1


def test_an_unfinished_tls_handshake_holds_up_nobody(tmp_path: Path, certificate: Certificate) -> None:
    with listening(tmp_path, tls=server_context(certificate)) as site:
        silent = [raw(site.port) for _ in range(3)]
        try:
            started = time.monotonic()
            tls_args = (client_context(certificate), "127.0.0.1")
            assert send(site.port, [ct_image()], tls_args=tls_args) == [0]
            assert time.monotonic() - started < 4
        finally:
            for connection in silent:
                connection.close()


def test_a_port_in_use_is_told(site: Site) -> None:
    from fourphase.runtime.errors import EnvironmentFault

    with pytest.raises(EnvironmentFault) as caught:
        Receiver(Address("FOURPHASE", "127.0.0.1", site.port, (SCANNER,)), site.spool, site.log, LIMITS)
    assert (caught.value.code, caught.value.key) == (24, "port_unavailable")
