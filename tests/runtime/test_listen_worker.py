"""Each content of a study is run once, whatever arrives in between and wherever the process ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from fourphase.runtime.atomic import write_file
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.errors import (
    GPU_LOST,
    BoxInvalid,
    EnvironmentFault,
    GPUUnavailable,
    OutputNotWritable,
    PhaseMissing,
)
from fourphase.runtime.listen import results as listen_results
from fourphase.runtime.listen import worker as listen_worker
from fourphase.runtime.listen.outbox import Outbox
from fourphase.runtime.listen.spool import Spool
from fourphase.runtime.listen.status import spool_status
from fourphase.runtime.listen.worker import MOST_ATTEMPTS, RETRY_MARK, Rules, Worker
from fourphase.runtime.pipeline import LoadedModel, PreparedStudy, StudyRequest, load_model, run_study
from fourphase.runtime.result import StudyResult
from tests.support.dicom import uid, write_phases
from tests.support.listen import Log, ct_image, keep, rtstruct
from tests.support.tiny_bundle import write_tiny

BOX = '{"space": "LPS_mm", "min": [-4, -8, 4], "max": [4, 2, 14]}'


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    bundle: Bundle = write_tiny(tmp_path_factory.mktemp("bundle") / "tiny.bundle")
    return load_model(bundle.path, backend="onnxruntime")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    written = write_phases(tmp_path_factory.mktemp("study"))
    return [path for paths in written.values() for path in paths]


@pytest.fixture
def real_sr() -> None:
    """The SR is the real one, which takes half a second; otherwise a text stands for it."""


@pytest.fixture(autouse=True)
def cheap_sr(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_sr" not in request.fixturenames:
        monkeypatch.setattr("fourphase.runtime.sr.write_sr", _same_sr)


def _same_sr(result: StudyResult, prepared: PreparedStudy, path: Path) -> None:
    write_file(path, f"SR of {result.case}".encode())


class Site:
    """A spool with its worker; `restart` is another process on the same folder."""

    def __init__(self, root: Path, model: LoadedModel, **rules: Any) -> None:
        self.root, self.model = root, model
        self.boxes = root / "boxes"
        self.boxes.mkdir(parents=True)
        defaults = {"output": root / "results", "boxes": self.boxes, "quiet_s": 0.0, "send": True}
        self.rules = Rules(**{**defaults, **rules})
        self.runs: list[int] = []
        self.fault: Callable[[StudyRequest], None] = lambda request: None
        self.restart()

    def restart(self) -> None:
        self.log = Log()
        self.spool, self.outbox = Spool(self.root / "spool", 10**9), Outbox(self.root / "spool" / "outbox")
        self.worker = Worker(self.spool, self.outbox, self.model, self.rules, self.log, self._run)

    def _run(self, model: LoadedModel, request: StudyRequest) -> Any:
        self.runs.append(sum(1 for _ in request.folder.iterdir()))
        self.fault(request)
        return run_study(model, request)

    def receive(self, images: list[Path]) -> None:
        for path in images:
            keep(self.spool, dcmread(path))

    def give_box(self, text: str = BOX) -> Path:
        path = self.boxes / f"{uid('study')}.json"
        path.write_text(text)
        return self.age(path)

    @staticmethod
    def age(path: Path) -> Path:
        import os

        os.utime(path, (time.time() - 60, time.time() - 60))
        return path

    def step(self, times: int = 3) -> None:
        for _ in range(times):
            self.worker.step()

    @property
    def state(self) -> str:
        [entry] = self.spool.entries
        return entry.state.state

    @property
    def results(self) -> list[Path]:
        return sorted((self.root / "results").glob("*/result.json"))


@pytest.fixture
def site(tmp_path: Path, model: LoadedModel) -> Site:
    return Site(tmp_path, model)


def test_a_study_is_run_once_when_it_is_quiet(site: Site, images: list[Path], real_sr: None) -> None:
    site.give_box()
    site.worker = Worker(site.spool, site.outbox, site.model, replace(site.rules, quiet_s=0.3), site.log, site._run)
    site.receive(images)
    assert not site.worker.step()
    assert site.runs == []
    time.sleep(0.35)
    assert site.worker.step()
    assert not site.worker.step()
    assert (site.runs, site.state) == ([32], "done")
    [result] = site.results
    assert json.loads(result.read_bytes())["schema"] == "fourphase.result/1"
    assert json.loads((result.parent / "run.json").read_bytes())["revision"] == 1
    assert dcmread(result.parent / "sr.dcm").StudyInstanceUID == uid("study")
    [waiting] = site.outbox.waiting()
    assert waiting.read_bytes() == (result.parent / "sr.dcm").read_bytes()


def test_the_result_is_what_fp_run_says(site: Site, images: list[Path]) -> None:
    box = site.give_box()
    site.receive(images)
    site.step()
    theirs, _ = run_study(site.model, StudyRequest(images[0].parents[1], box))
    ours = json.loads(site.results[0].read_bytes())
    assert ours["prediction"] == theirs.to_dict()["prediction"]
    assert ours["case"] == theirs.case == site.results[0].parent.name


def test_without_a_box_it_waits_and_never_guesses(site: Site, images: list[Path]) -> None:
    site.receive(images)
    site.step()
    site.restart()
    site.step()
    assert (site.runs, site.state, len(site.log.named("waiting_for_box"))) == ([], "waiting", 0)
    site.give_box()
    site.step()
    assert (site.runs, site.state) == ([32], "done")


def test_a_box_that_is_being_written_is_not_read(site: Site, images: list[Path]) -> None:
    (site.boxes / f"{uid('study')}.json").write_text(BOX[:10])
    site.receive(images)
    site.step()
    assert site.state == "waiting"


def test_a_received_structure_set_is_the_box(site: Site, images: list[Path]) -> None:
    asked: list[StudyRequest] = []

    def look(request: StudyRequest) -> None:
        asked.append(request)
        assert dcmread(request.box).Modality == "RTSTRUCT"
        raise PhaseMissing("enough", "seen")

    site.fault = look
    site.rules = replace(site.rules, roi="Lesion", label=3)
    site.restart()
    site.receive(images)
    site.step()
    assert site.state == "waiting"
    keep(site.spool, rtstruct())
    site.step()
    assert [(one.roi, one.label) for one in asked] == [("Lesion", None)]


def test_two_boxes_are_refused_until_the_site_says_which(site: Site, images: list[Path]) -> None:
    site.receive(images)
    keep(site.spool, rtstruct())
    keep(site.spool, rtstruct(SOPInstanceUID=uid("another")))
    site.step()
    assert (site.state, site.runs) == ("failed", [])
    assert json.loads(next(site.root.rglob("error.json")).read_bytes())["error"]["key"] == "box_several"
    site.give_box()
    site.step()
    assert (site.state, site.runs) == ("done", [34])
    assert not list(site.root.rglob("error.json"))


def test_a_resend_is_not_run_again_before_or_after_a_restart(site: Site, images: list[Path]) -> None:
    site.give_box()
    site.receive(images)
    site.step()
    site.receive(images)
    site.step()
    site.restart()
    site.receive(images[::-1])
    site.step()
    assert (site.runs, len(site.results), len(site.outbox.waiting())) == ([32], 1, 1)


def test_a_changed_study_is_another_revision_with_its_own_result(site: Site, images: list[Path]) -> None:
    site.give_box()
    site.receive(images)
    site.step()
    keep(site.spool, ct_image(99, SeriesInstanceUID=uid("late"), SeriesNumber=77, SeriesDescription="scout"))
    site.step()
    assert site.runs == [32, 33]
    revisions = [json.loads((path.parent / "run.json").read_bytes())["revision"] for path in site.results]
    assert revisions == [1, 2]
    assert site.results[1].parent.name == site.results[0].parent.name + "-2"


def test_what_arrives_during_a_run_is_run_afterwards(site: Site, images: list[Path]) -> None:
    site.give_box()
    site.receive(images[:-1])
    site.fault = lambda request: None if len(site.runs) > 1 else site.receive(images[-1:])
    site.step()
    assert site.runs == [31, 32]


@pytest.mark.parametrize("point", ["begun", "result", "sr", "outbox", "state"])
def test_a_kill_at_any_point_loses_nothing_and_shows_nothing_twice(
    site: Site, images: list[Path], point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object, **options: object) -> Any:
        raise Killed

    def killed_after(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            real(*arguments, **options)
            raise Killed

        return run

    site.give_box()
    site.receive(images)
    if point == "begun":
        site.fault = killed
    elif point == "result":
        monkeypatch.setattr("fourphase.runtime.sr.write_sr", killed)
    elif point == "sr":
        monkeypatch.setattr(listen_worker, "write_outcome", killed_after(listen_results.write_outcome))
    elif point == "outbox":
        monkeypatch.setattr(Outbox, "put", killed_after(Outbox.put))
    else:
        monkeypatch.setattr(Worker, "_done", killed_after(Worker._done))
    with pytest.raises(Killed):
        site.step()
    before = [path.read_bytes() for path in site.results]
    monkeypatch.undo()
    monkeypatch.setattr("fourphase.runtime.sr.write_sr", _same_sr)
    site.fault = lambda request: None
    site.restart()
    assert site.state == ("done" if point == "state" else "running")
    site.step()
    assert site.state == "done"
    assert [path.read_bytes() for path in site.results][: len(before)] == before  # written once
    assert (len(site.results), len(site.outbox.waiting())) == (1, 1)
    assert len(site.runs) == (1 if point == "state" else 2)


def test_an_sr_that_was_sent_just_before_the_kill_is_not_sent_by_the_repeated_run(
    site: Site, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.give_box()
    site.receive(images)
    real = Outbox.put

    def sent_at_once(self: Outbox, name: str, data: bytes) -> None:
        real(self, name, data)
        self.sent(self.waiting()[0])
        raise Killed

    monkeypatch.setattr(Outbox, "put", sent_at_once)
    with pytest.raises(Killed):
        site.step()
    monkeypatch.undo()
    monkeypatch.setattr("fourphase.runtime.sr.write_sr", _same_sr)
    site.restart()
    site.step()
    assert (site.state, site.outbox.waiting(), len(site.results)) == ("done", [], 1)


def test_a_failed_study_stays_until_somebody_asks(site: Site, images: list[Path]) -> None:
    site.give_box()
    site.receive(images[:24])  # no delayed phase
    site.step()
    site.restart()
    site.receive(images[:24])
    site.step()
    assert (site.state, site.runs) == ("failed", [24])
    error = json.loads(next(site.root.rglob("error.json")).read_bytes())
    assert (error["schema"], error["error"]["code"]) == ("fourphase.error/1", 12)
    assert spool_status(site.root / "spool")["failed"][0]["code"] == 12
    (site.root / "spool" / RETRY_MARK).touch()
    site.step()
    assert site.runs == [24, 24]
    site.receive(images[24:])
    site.step()
    assert (site.state, site.runs) == ("done", [24, 24, 32])


def test_a_corrected_box_is_tried(site: Site, images: list[Path]) -> None:
    site.give_box(BOX[:-1])
    site.receive(images)
    site.step()
    assert (site.state, site.runs) == ("failed", [32])
    site.give_box()
    site.step()
    assert (site.state, site.runs) == ("done", [32, 32])


def test_the_machines_fault_is_not_the_studys(site: Site, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(request: StudyRequest) -> None:
        raise OutputNotWritable("the disk is full", "free space")

    site.give_box()
    site.receive(images)
    site.fault = full
    monkeypatch.setattr(listen_worker, "_MACHINE_RETRY_S", 0.0)
    for _ in range(2 * MOST_ATTEMPTS):
        site.step(1)
    assert site.state == "receiving"
    site.fault = lambda request: None
    site.step()
    assert (site.state, len(site.results)) == ("done", 1)


def test_a_missing_package_is_told_and_not_tried_for_ever(site: Site, images: list[Path]) -> None:
    def missing(request: StudyRequest) -> None:
        raise EnvironmentFault("no decoder", "install it")

    site.give_box()
    site.receive(images)
    site.fault = missing
    site.step()
    assert (site.state, site.runs) == ("failed", [32])


def test_a_lost_gpu_ends_the_process_and_not_the_study(site: Site, images: list[Path]) -> None:
    def lost(request: StudyRequest) -> None:
        raise GPUUnavailable("lost", "restart", key=GPU_LOST)

    site.give_box()
    site.receive(images)
    site.fault = lost
    with pytest.raises(GPUUnavailable):
        site.step()
    site.fault = lambda request: None
    site.restart()
    site.step()
    assert site.state == "done"


def test_a_study_that_takes_the_process_down_is_given_up(site: Site, images: list[Path]) -> None:
    def dies(request: StudyRequest) -> None:
        raise Killed

    site.give_box()
    site.receive(images)
    site.fault = dies
    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(Killed):
            site.step()
        site.restart()
    site.step()
    assert (site.state, len(site.runs)) == ("failed", MOST_ATTEMPTS)
    assert "run_cut_off" in next(site.root.rglob("error.json")).read_text()


def test_a_bug_fails_the_study_and_tells_no_patient_data(site: Site, images: list[Path]) -> None:
    def bug(request: StudyRequest) -> None:
        raise ValueError("MARKER^NAME")

    site.give_box()
    site.receive(images)
    site.fault = bug
    site.step()
    assert site.state == "failed"
    [told] = site.log.named("bug")
    assert told["type"] == "ValueError"
    assert "MARKER" not in str(site.log.events) + next(site.root.rglob("error.json")).read_text()


def test_a_failing_sr_never_costs_the_result(site: Site, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise BoxInvalid("no", "no")

    monkeypatch.setattr("fourphase.runtime.sr.write_sr", refused)
    site.give_box()
    site.receive(images)
    site.step()
    assert (site.state, len(site.results), site.outbox.waiting()) == ("failed", 1, [])


def test_instances_are_deleted_after_sending_and_the_study_is_still_known(
    tmp_path: Path, model: LoadedModel, images: list[Path]
) -> None:
    site = Site(tmp_path, model, keep_s=0.0)
    site.give_box()
    site.receive(images)
    site.step()
    assert len(list(site.root.glob("spool/studies/*/instances/*"))) == 32  # its SR is not sent yet
    site.outbox.sent(site.outbox.waiting()[0])
    site.step()
    assert not list(site.root.glob("spool/studies/*/instances/*"))
    site.restart()
    site.receive(images[:10])
    site.step()
    assert (site.runs, site.log.named("duplicate")[0]["instances"]) == ([32], 10)
    assert not list(site.root.glob("spool/studies/*/instances/*"))
    keep(site.spool, ct_image(99))
    site.receive(images)
    site.step()
    assert site.runs == [32, 33]


def test_a_study_is_forgotten_in_the_end(tmp_path: Path, model: LoadedModel, images: list[Path]) -> None:
    site = Site(tmp_path, model, keep_s=0.0, remember_s=0.0)
    site.give_box()
    site.receive(images)
    site.step(1)
    site.outbox.sent(site.outbox.waiting()[0])
    site.step()
    assert site.spool.entries == []
    assert not list(site.root.glob("spool/studies/*"))
    assert not list(site.root.glob("spool/outbox/*"))
    assert len(site.results) == 1


def test_the_status_counts_what_is_there(site: Site, images: list[Path]) -> None:
    site.receive(images)
    before = spool_status(site.root / "spool")
    assert (before["states"]["receiving"], before["instances"]) == (1, 32)
    assert before["bytes"] == sum(path.stat().st_size for path in images)
    site.give_box()
    site.step()
    after = spool_status(site.root / "spool")
    assert (after["states"]["done"], after["states"]["receiving"], after["unsent"]) == (1, 0, 1)
    keep(site.spool, ct_image(99))
    assert spool_status(site.root / "spool")["states"]["receiving"] == 1
