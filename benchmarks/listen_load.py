"""Many studies through `fp-listen` from several senders at once, while it is killed again and again: is each run once?

    python -m fourphase.benchmarks.listen_load --bundle BUNDLE [--studies 200] [--clients 4] [--kills 5]

Everything runs on this machine and its loopback addresses: the senders and the archive that takes the SRs in this
process, `fp-listen` in one that is killed with SIGKILL and started again. A sender that fails sends the whole study
again, as scanners do. Speed is not measured. The last line is one JSON object; the exit code is 1 if a study was lost
or run twice.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from fourphase.runtime.console import run_app
from fourphase.runtime.listen.status import spool_status

__all__ = ["Archive", "Plan", "measure", "study_images", "study_uid"]

PHASES = (("nativ", "100000"), ("arteriell", "100035"), ("portalvenös", "100110"), ("Spätphase", "100315"))
ROWS = 16
BOX = {"space": "LPS_mm", "min": [-4, -8, 4], "max": [4, 2, 14]}
_RETRY_S = 0.3

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Plan:
    """What is tried. slices: per phase; quiet_s: after which fp-listen takes a study to be complete."""

    bundle: Path
    studies: int = 200
    clients: int = 4
    kills: int = 5
    slices: int = 8
    quiet_s: float = 4.0
    seed: int = 0
    timeout_s: float = 1800.0


def study_uid(number: int) -> str:
    return _uid("study", number)


def study_images(number: int, slices: int) -> list[Dataset]:
    """A small four-phase study, other pixels for each number, the same each time."""
    rng = np.random.default_rng(number)
    images = []
    for phase, (description, moment) in enumerate(PHASES):
        for index in range(slices):
            pixels = np.clip(rng.normal(1074 + 20 * phase, 40, (ROWS, ROWS)), 0, 4095).astype(np.uint16)
            images.append(_image(number, phase, index, description, moment, pixels.tobytes()))
    return images


def _image(number: int, phase: int, index: int, description: str, moment: str, pixels: bytes) -> Dataset:
    image = Dataset()
    elements: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": _uid("image", number, phase, index),
        "StudyInstanceUID": study_uid(number),
        "SeriesInstanceUID": _uid("series", number, phase),
        "FrameOfReferenceUID": _uid("frame", number),
        "StudyDate": "20200101",
        "StudyTime": "100000",
        "AcquisitionDate": "20200101",
        "AcquisitionTime": moment,
        "Modality": "CT",
        "PatientName": f"LOAD^{number}",
        "PatientID": f"LOAD-{number}",
        "SeriesDescription": description,
        "SeriesNumber": phase + 2,
        "AcquisitionNumber": phase + 1,
        "InstanceNumber": index + 1,
        "ConvolutionKernel": "B30f",
        "ImagePositionPatient": [-8.0, -12.0, 2.5 * index],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1.5, 1.0],
        "SliceThickness": 2.5,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": ROWS,
        "Columns": ROWS,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "PixelData": pixels,
    }
    for keyword, value in elements.items():
        setattr(image, keyword, value)
    image["PixelData"].VR = "OW"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = CTImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = UID(image.SOPInstanceUID)
    return image


def _uid(*parts: object) -> str:
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, repr(parts)).int}"


@dataclass
class Archive:
    """Takes SRs: how often each instance came, and of which study it is."""

    received: Counter[str] = field(default_factory=Counter)
    studies: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def listening(self) -> Iterator[int]:
        """Yields the port."""
        from pynetdicom import AE, evt
        from pynetdicom.sop_class import Comprehensive3DSRStorage  # type: ignore[attr-defined]

        ae = AE("ARCHIVE")
        ae.add_supported_context(Comprehensive3DSRStorage)
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._take)])
        assert server is not None
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()

    def _take(self, event: Any) -> int:
        with self.lock:
            self.received[str(event.request.AffectedSOPInstanceUID)] += 1
            self.studies[str(event.request.AffectedSOPInstanceUID)] = str(event.dataset.StudyInstanceUID)
        return 0x0000


@dataclass
class _Sending:
    """What the senders did."""

    acknowledged: int = 0
    resent_studies: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def _send_studies(numbers: range, plan: Plan, port: int, sending: _Sending, stop: threading.Event) -> None:
    for number in numbers:
        images = study_images(number, plan.slices)
        cut_off = False
        while not stop.is_set() and (sent := _send_study(images, port, sending)) < len(images):
            cut_off = cut_off or sent > 0
            stop.wait(_RETRY_S)
        with sending.lock:
            sending.resent_studies += cut_off


def _send_study(images: list[Dataset], port: int, sending: _Sending) -> int:
    """How many were acknowledged before the connection broke."""
    from pynetdicom import AE

    ae = AE("SCANNER")
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title="FOURPHASE")
    sent = 0
    try:
        for image in images:
            status = association.send_c_store(image) if association.is_established else Dataset()
            if "Status" not in status or status.Status != 0x0000:
                break
            sent += 1
            with sending.lock:
                sending.acknowledged += 1
        return sent
    except RuntimeError:  # the association went between the look and the sending
        return sent
    finally:
        if association.is_established:
            association.release()


class _Listener:
    """`fp-listen` as a process."""

    def __init__(self, plan: Plan, work: Path, archive_port: int) -> None:
        self.spool, self._log = work / "spool", work / "log.txt"
        self.port = _free_port()
        self._command = [
            sys.executable, "-m", "fourphase.runtime.listen.cli",
            "--bundle", str(plan.bundle), "--spool", str(self.spool),
            "--allow", "SCANNER", "--bind", "127.0.0.1", "--port", str(self.port), "--boxes", str(work / "boxes"),
            "--send-to", f"ARCHIVE@127.0.0.1:{archive_port}", "--quiet-seconds", str(plan.quiet_s),
            "--backend", "onnxruntime",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stderr=log, stdout=log)

    def kill(self) -> dict[str, int]:
        """SIGKILL; the states of the studies as it left them."""
        self._process.kill()
        self._process.wait()
        return dict(spool_status(self.spool)["states"]) if (self.spool / "studies").is_dir() else {}

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")


def measure(plan: Plan, work: Path) -> dict[str, Any]:
    """Sends, kills and restarts; returns the counts."""
    boxes = work / "boxes"
    boxes.mkdir()
    for number in range(plan.studies):
        (boxes / f"{study_uid(number)}.json").write_text(json.dumps(BOX), encoding="ascii")
    archive, sending, stop = Archive(), _Sending(), threading.Event()
    started = time.monotonic()
    with archive.listening() as archive_port:
        listener = _Listener(plan, work, archive_port)
        clients = [
            threading.Thread(
                target=_send_studies,
                args=(range(first, plan.studies, plan.clients), plan, listener.port, sending, stop),
                daemon=True,
            )
            for first in range(plan.clients)
        ]
        for client in clients:
            client.start()
        kills = _kill_while_working(plan, listener, archive, sending, started)
        time.sleep(2 * plan.quiet_s)  # what is run twice would be sent now
        stop.set()
        code = listener.stop()
    return _counts(plan, listener, archive, sending, kills) | {
        "exit_code": code,
        "seconds": round(time.monotonic() - started, 1),
    }


def _kill_while_working(
    plan: Plan, listener: _Listener, archive: Archive, sending: _Sending, started: float
) -> list[dict[str, int]]:
    """Kills at random moments between the first instance and the last SR; returns once every study's SR is there."""
    images = plan.studies * len(PHASES) * plan.slices
    chance = random.Random(plan.seed)
    moments = sorted(chance.uniform(0.01, 0.97) for _ in range(plan.kills))
    kills: list[dict[str, int]] = []
    while time.monotonic() - started < plan.timeout_s:
        progress = min(1.0, sending.acknowledged / images) / 2 + len(archive.received) / plan.studies / 2
        if moments and progress >= moments[0]:
            moments.pop(0)
            time.sleep(chance.uniform(0.0, 2.0))  # not just after something was finished
            kills.append(listener.kill())
            print(f"killed at {progress:.0%}: {kills[-1]}", flush=True)
            listener.start()
        if not moments and len(set(archive.studies.values())) == plan.studies:
            break
        time.sleep(0.02)
    return kills


def _counts(
    plan: Plan, listener: _Listener, archive: Archive, sending: _Sending, kills: list[dict[str, int]]
) -> dict[str, Any]:
    results = [path for path in (listener.spool / "results").glob("*/result.json") if json.loads(path.read_bytes())]
    runs = [json.loads(path.read_bytes()) for path in (listener.spool / "results").glob("*/run.json")]
    status = spool_status(listener.spool)
    counts: dict[str, Any] = {
        "schema": "fourphase.listen_load/1",
        "studies": plan.studies,
        "clients": plan.clients,
        "kills": len(kills),
        "running_when_killed": sum(states.get("running", 0) for states in kills),
        "results": len(results),
        "later_revisions": sum(run["revision"] != 1 for run in runs),
        "sr_instances": len(archive.received),
        "sr_studies": len(set(archive.studies.values())),
        "sr_resends": sum(archive.received.values()) - len(archive.received),
        "studies_sent_again": sending.resent_studies,
        "images_acknowledged": sending.acknowledged,
        "states": status["states"],
        "unsent": status["unsent"],
        "bugs": listener.log.count(" bug "),
    }
    expected = dict.fromkeys(("results", "sr_instances", "sr_studies"), plan.studies) | {
        "later_revisions": 0,
        "bugs": 0,
    }
    done = status["states"]["done"] == plan.studies and status["unsent"] == 0
    counts["ok"] = done and all(counts[name] == value for name, value in expected.items())
    return counts


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@app.command()
def run(
    bundle: Annotated[Path, typer.Option(help="A bundle for onnxruntime.")],
    studies: Annotated[int, typer.Option(help="How many studies.")] = 200,
    clients: Annotated[int, typer.Option(help="How many senders at once.")] = 4,
    kills: Annotated[int, typer.Option(help="How often fp-listen is killed.")] = 5,
    slices: Annotated[int, typer.Option(help="Slices per phase.")] = 8,
    quiet_seconds: Annotated[float, typer.Option(help="As for fp-listen.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Chooses the moments of the kills.")] = 0,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep spool and log there.")] = None,
) -> None:
    """Send studies through fp-listen while it is killed again and again; count results.

    Example: python -m fourphase.benchmarks.listen_load --bundle liver.bundle --studies 20 --kills 2
    """
    plan = Plan(bundle, studies, clients, kills, slices, quiet_seconds, seed)
    with tempfile.TemporaryDirectory() as folder:
        work = keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        counts = measure(plan, work)
    print(json.dumps(counts))
    if not counts["ok"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_app(app, "listen_load")
