"""A study of which an instance was just refused for want of room is not run as if it were whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from fourphase.runtime.listen import refusals as listen_refusals
from fourphase.runtime.listen.guard import Limits
from fourphase.runtime.listen.instance import study_in_memory
from fourphase.runtime.listen.outbox import Outbox
from fourphase.runtime.listen.refusals import Refusals
from fourphase.runtime.listen.server import Address, Receiver
from fourphase.runtime.listen.spool import Spool
from fourphase.runtime.listen.worker import RETRY_MARK, Rules, Worker
from fourphase.runtime.pipeline import LoadedModel, load_model, run_study
from tests.support.dicom import file_bytes, uid, write_phases
from tests.support.listen import LEFT_OPEN, SCANNER, Log, ct_image, send
from tests.support.tiny_bundle import write_tiny

pytestmark = LEFT_OPEN

BOX = '{"space": "LPS_mm", "min": [-4, -8, 4], "max": [4, 2, 14]}'
Y = "1.2.840.10008.1.2"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_tiny(tmp_path_factory.mktemp("bundle") / "tiny.bundle").path, backend="onnxruntime")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    written = write_phases(tmp_path_factory.mktemp("study"))
    return [dcmread(path) for paths in written.values() for path in paths]


class Site:
    """Receiver and worker on one spool; `full` makes the disk so."""

    def __init__(self, root: Path, model: LoadedModel, patch: pytest.MonkeyPatch) -> None:
        self.root, self.model, self.patch, self.log = root, model, patch, Log()
        self.spool, self.runs = Spool(root / "spool", 10**9), 0
        self.boxes = root / "boxes"
        self.boxes.mkdir()
        address = Address("FOURPHASE", "127.0.0.1", 0, (SCANNER,))
        self.receiver = Receiver(address, self.spool, self.log, Limits(idle_s=5.0))
        self.work()

    def work(self, hold_s: float = 3600.0) -> None:
        rules = Rules(self.root / "results", self.boxes, quiet_s=0.0, hold_s=hold_s)
        self.worker = Worker(self.spool, Outbox(self.root / "outbox"), self.model, rules, self.log, self._run)

    def _run(self, *arguments: Any) -> Any:
        self.runs += 1
        return run_study(*arguments)

    def give_box(self) -> None:
        import os

        path = self.boxes / f"{uid('study')}.json"
        path.write_text(BOX)
        os.utime(path, (1, 1))

    def send(self, images: list[Dataset], *, full: bool = False) -> set[int | None]:
        with self.patch.context() as patch:
            if full:
                patch.setattr(self.spool, "_limit", 0)
            return set(send(self.receiver.port, images))

    def step(self) -> tuple[str, int]:
        for _ in range(3):
            self.worker.step()
        [entry] = self.spool.entries
        return entry.state.state, self.runs


@contextmanager
def opened(root: Path, model: LoadedModel, patch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(root, model, patch)
    patch.setattr("fourphase.runtime.sr.write_sr", lambda result, prepared, path: path.write_bytes(b"SR"))
    try:
        yield site
    finally:
        site.receiver.stop()


@pytest.fixture
def site(tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with opened(tmp_path, model, monkeypatch) as one:
        one.give_box()
        yield one


@pytest.mark.parametrize("first", [True, False], ids=["before the others", "after the others"])
def test_a_study_waits_for_what_was_refused(site: Site, images: list[Dataset], first: bool) -> None:
    some, others = images[:3], images[3:]
    if first:
        assert site.send(some, full=True) == {0xA700}
    assert site.send(others) == {0}
    if not first:
        assert site.send(some, full=True) == {0xA700}
    assert site.step() == ("receiving", 0)
    assert [fields["refused"] for fields in site.log.named("held")] == [3]
    site.send(some[:2])
    assert site.step() == ("receiving", 0)
    site.send(some[2:])
    assert site.step() == ("done", 1)
    assert uid("study") not in str(site.log.events)


def test_it_is_given_up_in_the_end_and_not_run_unless_asked(site: Site, images: list[Dataset]) -> None:
    site.send(images[1:])
    site.send(images[:1], full=True)
    site.work(hold_s=0.0)
    assert site.step() == ("failed", 0)
    error = json.loads(next(site.root.rglob("error.json")).read_bytes())["error"]
    assert error["key"] == "instances_refused"
    site.spool = Spool(site.root / "spool", 10**9)  # another process, which knows of no refusal
    site.work()
    (site.boxes / f"{uid('study')}.json").write_text(BOX + " ")
    site.give_box()
    assert site.step() == ("failed", 0)
    (site.spool.root / RETRY_MARK).touch()
    assert site.step() == ("done", 1)


def test_the_images_cure_a_study_that_was_given_up(site: Site, images: list[Dataset]) -> None:
    site.send(images[1:])
    site.send(images[:1], full=True)
    site.work(hold_s=0.0)
    assert site.step() == ("failed", 0)
    site.send(images)
    assert site.step() == ("done", 1)


def test_a_refused_resend_of_what_is_there_changes_nothing(site: Site, images: list[Dataset]) -> None:
    site.send(images)
    site.send(images, full=True)
    assert site.step() == ("done", 1)
    [entry] = site.spool.entries
    site.spool.delete_files(entry)
    site.send(images, full=True)
    assert site.spool.refusals.of(entry.key) is None


def test_a_disk_that_fails_at_the_last_step_is_a_refusal_too(
    site: Site, images: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.send(images[1:])
    with monkeypatch.context() as patch:
        patch.setattr("fourphase.runtime.listen.spool.os.replace", _broken)
        assert set(send(site.receiver.port, images[:1])) == {0xA700}
    assert site.step() == ("receiving", 0)


def _broken(*arguments: object) -> None:
    raise OSError(5, "Input/output error")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_refusals, "_MOST", 3)
    refusals = Refusals()
    for key, sop in (("a", "1"), ("b", "1"), ("a", "2"), ("a", "2"), ("c", "1")):
        refusals.add(key, sop)
    assert [refusals.of(key) is None for key in "abc"] == [False, True, False]
    refusals.stored("c", "1")
    refusals.stored("c", "1")
    refusals.forget("a")
    assert (refusals._count, refusals._studies) == (0, {})


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", Y, "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.70"])
def test_the_study_is_known_from_memory(syntax: str) -> None:
    from io import BytesIO

    from pynetdicom.dsutils import encode

    image = dcmread(BytesIO(file_bytes(ct_image())))
    data = encode(image, syntax == Y, True, syntax.endswith(".99"))
    assert data is not None
    assert study_in_memory(memoryview(data), syntax) == uid("study")
    for cut in range(0, 300, 7):
        assert study_in_memory(memoryview(data[:cut]), syntax) in ("", uid("study"))
