"""`fp-listen` as a process: with real senders and a real archive, killed, ended and asked."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from fourphase.benchmarks.listen_load import Plan, measure
from fourphase.runtime.errors import IntegrityError
from fourphase.runtime.listen import service as listen_service
from fourphase.runtime.listen.config import ListenOptions
from fourphase.runtime.listen.spool import Spool
from fourphase.runtime.listen.status import spool_status
from fourphase.runtime.plan_choice import PlanPolicy
from tests.support.dicom import uid, write_phases
from tests.support.listen import LEFT_OPEN, dcmtk_program, unused_port
from tests.support.tiny_bundle import write_tiny

pytestmark = LEFT_OPEN

BOX = '{"space": "LPS_mm", "min": [-4, -8, 4], "max": [4, 2, 14]}'
Waited = Callable[[], object]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("bundle") / "tiny.bundle").path


class Site:
    """fp-listen on a folder; `start` may be called again after `kill`."""

    def __init__(self, root: Path, bundle: Path, *more: str) -> None:
        self.root, self.spool, self.log = root, root / "spool", root / "log.txt"
        self.port = unused_port()
        boxes = root / "boxes"
        boxes.mkdir(parents=True)
        box = boxes / f"{uid('study')}.json"
        box.write_text(BOX)
        os.utime(box, (1, 1))
        self.command = [
            sys.executable, "-m", "fourphase.runtime.listen.cli", "--bundle", str(bundle), "--spool", str(self.spool),
            "--allow", "SCANNER", "--bind", "127.0.0.1", "--port", str(self.port), "--boxes", str(boxes),
            "--quiet-seconds", "1", "--backend", "onnxruntime", *more,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.log.touch()
        told = self.log.read_text().count(" listening ")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, umask=0o022)
        self.wait(lambda: self.log.read_text().count(" listening ") > told or (self.process and self.process.poll()))

    def wait(self, condition: Waited, seconds: float = 40.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    @property
    def states(self) -> dict[str, int]:
        return dict(spool_status(self.spool)["states"])


@contextmanager
def on(root: Path, bundle: Path, *more: str) -> Iterator[Site]:
    site = Site(root, bundle, *more)
    try:
        yield site
    finally:
        if site.process is not None and site.process.poll() is None:
            site.process.kill()
            site.process.wait()


def send(site: Site, folder: Path) -> None:
    titles = ["-aet", "SCANNER", "-aec", "FOURPHASE"]
    command = [dcmtk_program("storescu"), *titles, "+sd", "+r", "127.0.0.1", str(site.port), str(folder)]
    subprocess.run(command, check=True, timeout=60)


@contextmanager
def storescp(folder: Path, port: int) -> Iterator[None]:
    folder.mkdir()
    with subprocess.Popen([dcmtk_program("storescp"), "-aet", "ARCHIVE", "-od", str(folder), str(port)]) as process:
        try:
            yield
        finally:
            process.terminate()


def test_a_study_goes_in_and_its_sr_comes_out_though_the_process_is_killed_twice(tmp_path: Path, bundle: Path) -> None:
    """SIGKILL with the study received, and again with its SR waiting for an archive that is away."""
    study, received, archive_port = tmp_path / "study", tmp_path / "received", unused_port()
    write_phases(study)
    with on(tmp_path / "site", bundle, "--send-to", f"ARCHIVE@127.0.0.1:{archive_port}") as site:
        site.start()
        send(site, study)
        assert site.end(signal.SIGKILL) == -signal.SIGKILL
        assert site.states["receiving"] == 1
        site.start()
        site.wait(lambda: "send_failed" in site.log.read_text())
        assert site.end(signal.SIGKILL) == -signal.SIGKILL
        assert (site.states["done"], spool_status(site.spool)["unsent"]) == (1, 1)
        with storescp(received, archive_port):
            site.start()
            site.wait(lambda: " sent " in site.log.read_text())
            started = time.monotonic()
            assert site.end(signal.SIGTERM) == 143
            assert time.monotonic() - started < 5
        [report] = [dcmread(path) for path in received.iterdir()]
        assert report.StudyInstanceUID == uid("study")
        assert report.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
        [result] = site.spool.glob("results/*/result.json")
        assert report == dcmread(result.with_name("sr.dcm"))
        assert site.log.read_text().count(" done ") == 1
        _check_private(site)


def _check_private(site: Site) -> None:
    """No patient data in the log, in names, or in the result; no UID of the study in the log and in names."""
    log = site.log.read_text()
    names = " ".join(str(path.relative_to(site.spool)) for path in site.spool.rglob("*"))
    results = "".join(path.read_text() for path in site.spool.glob("results/*/*.json"))
    for text, markers in ((log + names, ("MARKER", uid("study"), uid("series", "ART"))), (results, ("MARKER",))):
        for marker in markers:
            assert marker not in text
    assert "Traceback" not in log
    assert site.spool.stat().st_mode & 0o777 == 0o700
    assert not [path for path in site.spool.rglob("*") if path.stat().st_mode & 0o077]


def test_once_ends_by_itself_and_a_second_process_is_kept_out(tmp_path: Path, bundle: Path) -> None:
    write_phases(tmp_path / "study")
    with on(tmp_path / "site", bundle, "--once") as site:
        site.start()
        told = site.log.read_text()
        assert " model backend=onnxruntime precision=fp32 reason=asked_for" in told
        second = subprocess.run(site.command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 31, second.stderr
        send(site, tmp_path / "study")
        assert site.process is not None
        assert site.process.wait(60) == 0
        assert site.states["done"] == 1


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fourphase.runtime.listen.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_status_is_one_json_object(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    done = run("--status", "--spool", str(tmp_path))
    assert done.returncode == 0
    assert json.loads(done.stdout)["states"] == dict.fromkeys(("receiving", "waiting", "running", "done", "failed"), 0)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--status"], 2, "no spool is given"),
        (["--status", "--spool", "none"], 10, "there is no spool"),
        (["--retry-failed", "--spool", "none"], 2, "there is no spool"),
        (["--spool", "s", "--bundle", "b"], 2, "no calling AE title"),
        (["--spool", "s", "--allow", "A"], 2, "no bundle"),
        (["--spool", "s", "--bundle", "none", "--allow", "A"], 20, "error: "),
        (["--spool", "s", "--bundle", "b", "--allow", "A", "--boxes", "none"], 10, "--boxes"),
        (["--spool", "s", "--bundle", "b", "--allow", "A", "--phases", "none"], 10, "phases file"),
        (["--spool", "s", "--bundle", "b", "--allow", "A", "--plans", "none"], 10, "--plans"),
        (["--spool", "/proc/x", "--bundle", "b", "--allow", "A"], 30, "fix: give --spool a folder"),
    ],
)
def test_what_is_missing_is_told(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    given = [str(tmp_path / one) if one in ("s", "b", "none") else one for one in arguments]
    done = run(*given)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_retry_can_be_asked_for_beside_a_running_process(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    assert run("--retry-failed", "--spool", str(tmp_path)).returncode == 0
    assert (tmp_path / "retry-failed").exists()


def test_a_model_that_does_not_prove_itself_is_never_listened_for(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise IntegrityError("another hash", "copy the bundle again")

    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("it listens")

    monkeypatch.setattr("fourphase.runtime.pipeline.load_model", broken)
    monkeypatch.setattr(listen_service, "Receiver", never)
    monkeypatch.setattr(listen_service, "silence_libraries", lambda: None)
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    with pytest.raises(IntegrityError):
        listen_service.serve(ListenOptions(tmp_path / "spool", bundle, allow=("SCANNER",)), quiet=False)


def test_a_study_that_does_not_end_holds_up_the_end_by_some_seconds_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, let_go = threading.Event(), threading.Event()

    class Stuck:
        settled = 0

        def step(self) -> bool:
            begun.set()
            return let_go.wait(60)

    class StuckSender:
        start = staticmethod(lambda: None)
        stop = staticmethod(time.sleep)

    signalled: list[float] = []

    def signal_comes(*arguments: object) -> None:
        assert begun.wait(10)
        signalled.append(time.monotonic())
        raise SystemExit(143)

    monkeypatch.setattr(listen_service, "Worker", lambda *arguments: Stuck())
    monkeypatch.setattr(listen_service._Runner, "_model", lambda self: None)
    monkeypatch.setattr(listen_service, "Sender", lambda *arguments: StuckSender())
    monkeypatch.setattr(listen_service, "_wait", signal_comes)
    monkeypatch.setattr(listen_service, "silence_libraries", lambda: None)
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    options = ListenOptions(
        tmp_path, tmp_path, bind="127.0.0.1", port=0, allow=("SCANNER",), send_to="ARCHIVE@127.0.0.1:104"
    )
    with pytest.raises(SystemExit):
        listen_service.serve(options, quiet=False)
    assert 3.9 < time.monotonic() - signalled[0] < 4.5
    let_go.set()


def test_an_archive_that_does_not_answer_holds_up_the_end_by_some_seconds_only(tmp_path: Path, bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        to = f"ARCHIVE@127.0.0.1:{silent.getsockname()[1]}"
        with on(tmp_path / "site", bundle, "--send-to", to) as site:
            (site.spool / "outbox").mkdir(parents=True)
            (site.spool / "outbox" / "a.dcm").write_bytes(b"")
            site.start()
            silent.settimeout(20)
            with silent.accept()[0]:
                started = time.monotonic()
                assert site.end(signal.SIGTERM) == 143
                assert time.monotonic() - started < 4.5


def test_a_folder_that_others_use_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "somebody's").touch()
    tmp_path.chmod(0o755)
    listen_service._make_private(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_spool_and_results_of_an_earlier_version_become_private(tmp_path: Path) -> None:
    Spool(tmp_path, 10**9)
    (tmp_path / "results").mkdir()
    for folder in (tmp_path, tmp_path / "results"):
        folder.chmod(0o755)
    listen_service._make_private(tmp_path)
    assert [folder.stat().st_mode & 0o777 for folder in (tmp_path, tmp_path / "results")] == [0o700, 0o700]


def test_engines_of_this_machine_are_looked_for(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[PlanPolicy] = []

    def load(*arguments: Any, plans: PlanPolicy, **options: Any) -> Any:
        asked.append(plans)
        raise IntegrityError("enough", "seen")

    monkeypatch.setattr("fourphase.runtime.pipeline.load_model", load)
    monkeypatch.setattr(listen_service, "silence_libraries", lambda: None)
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    options = ListenOptions(tmp_path / "spool", bundle, allow=("SCANNER",), plans=tmp_path)
    with pytest.raises(IntegrityError):
        listen_service.serve(options, quiet=False)
    assert asked == [PlanPolicy(tmp_path, False, False)]


@pytest.mark.slow
def test_many_studies_through_a_process_that_is_killed_are_each_run_once(tmp_path: Path, bundle: Path) -> None:
    counts = measure(Plan(bundle, studies=8, clients=4, kills=2, slices=8, quiet_s=3.0, timeout_s=240), tmp_path)
    assert counts["ok"], counts
    assert (counts["results"], counts["sr_instances"], counts["kills"], counts["exit_code"]) == (8, 8, 2, 143)
