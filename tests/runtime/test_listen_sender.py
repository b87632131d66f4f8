"""SRs reach the archive once, however often it is away, and a refused one does not hold up the others."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from fourphase.runtime.errors import OutputNotWritable, UsageError
from fourphase.runtime.listen import sender as listen_sender
from fourphase.runtime.listen.outbox import Outbox
from fourphase.runtime.listen.sender import Peer, Sender, parse_peer
from tests.support.dicom import file_bytes, uid
from tests.support.listen import LEFT_OPEN, Log, dcmtk_program, unused_port

pytestmark = LEFT_OPEN

SR = "1.2.840.10008.5.1.4.1.1.88.34"
LITTLE = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
BIG = "1.2.840.10008.1.2.2"


def report(number: int) -> bytes:
    dataset = Dataset()
    for keyword, value in {
        "SOPClassUID": SR, "SOPInstanceUID": uid("sr", number), "StudyInstanceUID": uid("study"), "Modality": "SR",
        "PatientName": "MARKER^NAME",
    }.items():  # fmt: skip
        setattr(dataset, keyword, value)
    return file_bytes(dataset)


@contextmanager
def archive(answer: Callable[[Any], int], port: int = 0, syntaxes: Sequence[str] = LITTLE) -> Iterator[int]:
    ae = AE("ARCHIVE")
    ae.add_supported_context(SR, list(syntaxes))
    ae.require_called_aet = True
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)])
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def sender(outbox: Outbox, port: int, aet: str = "ARCHIVE") -> Sender:
    return Sender(outbox, Peer(aet, "127.0.0.1", port), "FOURPHASE", Log())


def log_of(one: Sender) -> Log:
    assert isinstance(one._log, Log)
    return one._log


def test_storescp_receives_what_is_in_the_outbox(outbox: Outbox, tmp_path: Path) -> None:
    storescp = dcmtk_program("storescp")
    outbox.put("a", report(1))
    outbox.put("b", report(2))
    port, received = unused_port(), tmp_path / "received"
    received.mkdir()
    with subprocess.Popen([storescp, "-aet", "ARCHIVE", "-od", str(received), str(port)]) as scp:
        try:
            until = time.monotonic() + 10
            while not sender(outbox, port).send_all(outbox.waiting()) and time.monotonic() < until:
                time.sleep(0.1)
        finally:
            scp.send_signal(signal.SIGTERM)
    assert {dcmread(path).SOPInstanceUID for path in received.iterdir()} == {uid("sr", 1), uid("sr", 2)}
    assert outbox.waiting() == []


def test_a_refused_one_stays_and_the_others_go(outbox: Outbox) -> None:
    for number in range(4):
        outbox.put(f"{number}", report(number))
    refused = uid("sr", 1)
    with archive(lambda event: 0xA900 if event.request.AffectedSOPInstanceUID == refused else 0xB000) as port:
        one = sender(outbox, port)
        assert not one.send_all(outbox.waiting())
    assert [path.stem for path in outbox.waiting()] == ["1"]
    assert log_of(one).named("send_failed")[0]["status"] == "A900"
    assert "MARKER" not in str(log_of(one).events)
    assert uid("sr", 1) not in str(log_of(one).events)


@pytest.mark.parametrize("syntaxes", [(BIG, *LITTLE), (BIG, LITTLE[1])])
def test_an_archive_that_prefers_big_endian_gets_little(outbox: Outbox, syntaxes: tuple[str, ...]) -> None:
    outbox.put("a", report(1))
    with archive(lambda event: 0, syntaxes=syntaxes) as port:
        assert sender(outbox, port).send_all(outbox.waiting())


def abort_at(*numbers: int) -> Callable[[Any], int]:
    """An archive that breaks the connection over some SRs."""
    poison = {uid("sr", number) for number in numbers}

    def take(event: Any) -> int:
        if str(event.request.AffectedSOPInstanceUID) in poison:
            event.assoc.abort()
        return 0

    return take


def test_one_that_breaks_the_connection_holds_up_no_other(outbox: Outbox) -> None:
    for number in range(5):
        outbox.put(f"{number}", report(number))
    with archive(abort_at(0, 2)) as port:
        one = sender(outbox, port)
        assert not one.send_all(outbox.waiting())
        assert {path.stem for path in outbox.waiting()} == {"0", "2"}
        assert [one._waits.failures(name) for name in ("0.dcm", "1.dcm", "2.dcm", "")] == [1, 0, 1, 0]
        outbox.put("5", report(5))
        one._round()  # those that failed are not due yet
        assert {path.stem for path in outbox.waiting()} == {"0", "2"}


def test_an_archive_that_breaks_every_connection_is_left_alone(outbox: Outbox) -> None:
    for number in range(9):
        outbox.put(f"{number}", report(number))
    with archive(abort_at(*range(9))) as port:
        one = sender(outbox, port)
        assert not one.send_all(outbox.waiting())
    assert len(log_of(one).named("send_failed")) == 3
    assert one._waits.delay("") == listen_sender._FIRST_RETRY_S


def test_a_new_sr_goes_at_once_though_another_waits_for_its_tenth_try(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen_sender, "_POLL_S", 0.02)
    outbox.put("a", report(0))
    with archive(lambda event: 0xA900 if event.request.AffectedSOPInstanceUID == uid("sr", 0) else 0) as port:
        one = sender(outbox, port)
        for _ in range(10):
            one._waits.failed("a.dcm")
        one.start()
        outbox.put("b", report(1))
        until = time.monotonic() + 5
        while len(outbox.waiting()) > 1 and time.monotonic() < until:
            time.sleep(0.02)
        one.stop(5)
    assert [path.stem for path in outbox.waiting()] == ["a"]


def test_a_disk_that_fails_does_not_end_the_sender(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_sender, "_FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(listen_sender, "_POLL_S", 0.02)
    faults = [OSError(5, "input/output error"), ValueError("MARKER")]
    real = outbox.waiting

    def waiting() -> list[Path]:
        if faults:
            raise faults.pop()
        return real()

    monkeypatch.setattr(outbox, "waiting", waiting)
    outbox.put("a", report(1))
    with archive(lambda event: 0) as port:
        one = sender(outbox, port)
        one.start()
        until = time.monotonic() + 5
        while not log_of(one).named("sent") and time.monotonic() < until:
            time.sleep(0.02)
        one.stop(5)
    assert [event for event, _ in log_of(one).events] == ["bug", "send_failed", "sent"]
    assert "MARKER" not in str(log_of(one).events)


def test_an_archive_that_is_away_is_tried_until_it_is_back(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_sender, "_FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(listen_sender, "_POLL_S", 0.02)
    received: list[str] = []

    def take(event: Any) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    outbox.put("a", report(1))
    port = unused_port()
    one = sender(outbox, port)
    one.start()
    try:
        until = time.monotonic() + 10
        while len(log_of(one).named("send_again")) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        with archive(take, port):
            while outbox.waiting() and time.monotonic() < until:
                time.sleep(0.02)
    finally:
        one.stop(5)
    assert received == [uid("sr", 1)]
    delays = [fields["retry_s"] for fields in log_of(one).named("send_again")]
    assert delays[:3] == [0.05, 0.1, 0.2]


def test_the_wait_has_a_limit(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_sender, "_FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(listen_sender, "_LAST_RETRY_S", 0.04)
    monkeypatch.setattr(listen_sender, "_POLL_S", 0.001)
    outbox.put("a", report(1))
    one = sender(outbox, unused_port())
    one.start()
    until = time.monotonic() + 5
    while len(log_of(one).named("send_again")) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    one.stop(5)
    assert [fields["retry_s"] for fields in log_of(one).named("send_again")][:5] == [0.01, 0.02, 0.04, 0.04, 0.04]


def test_another_title_than_the_archives_is_told(outbox: Outbox) -> None:
    outbox.put("a", report(1))
    with archive(lambda event: 0) as port:
        one = sender(outbox, port, aet="WRONG")
        assert not one.send_all(outbox.waiting())
    assert log_of(one).named("send_failed") == [{"reason": "rejected"}]
    assert len(outbox.waiting()) == 1


def test_a_damaged_file_does_not_end_the_sender(outbox: Outbox) -> None:
    outbox.put("a", b"MARKER")
    with archive(lambda event: 0) as port:
        one = sender(outbox, port)
        assert not one.send_all(outbox.waiting())
    assert log_of(one).named("bug")
    assert "MARKER" not in str(log_of(one).events)


def test_what_was_sent_is_not_put_again(outbox: Outbox, tmp_path: Path) -> None:
    outbox.put("key-run", b"1")
    assert outbox.holds("key")
    outbox.sent(outbox.waiting()[0])
    again = Outbox(tmp_path / "outbox")
    again.put("key-run", b"1")
    assert (again.waiting(), again.holds("key")) == ([], False)
    again.put("key-other", b"2")
    assert [path.name for path in again.waiting()] == ["key-other.dcm"]


def test_a_kill_between_mark_and_deletion_sends_nothing_again(outbox: Outbox, tmp_path: Path) -> None:
    outbox.put("a", b"1")
    (tmp_path / "outbox" / "a.sent").touch()
    (tmp_path / "outbox" / ".b.dcm.1-2.tmp").touch()
    assert Outbox(tmp_path / "outbox").waiting() == []
    assert [path.name for path in (tmp_path / "outbox").iterdir()] == ["a.sent"]


def test_an_outbox_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputNotWritable):
        Outbox(tmp_path / "file" / "outbox")


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("PACS@10.0.0.7:104", Peer("PACS", "10.0.0.7", 104)),
        ("MY PACS@pacs.example.org:11112", Peer("MY PACS", "pacs.example.org", 11112)),
        ("PACS@[::1]:104", Peer("PACS", "::1", 104)),
    ],
)
def test_a_peer_is_title_host_and_port(text: str, peer: Peer) -> None:
    assert parse_peer(text) == peer


@pytest.mark.parametrize(
    "text", ["", "PACS", "PACS@host", "PACS@host:", "PACS@:104", "@host:104", "PACS@host:0", "PACS@host:65536",
             "PACS@host:1o4", "SEVENTEENCHARACTR@host:104", "P\\S@host:104", "PÄCS@host:104", "PACS@host:-1"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_peer(text)
    assert caught.value.key == "send_to"
