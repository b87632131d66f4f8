"""The archive by real worker processes: the bytes that fp-run writes, workers that are killed, failures, resume."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import typer

from fourphase.benchmarks.archive import command
from fourphase.benchmarks.archive.command import archive, archive_step, run_archive
from fourphase.benchmarks.archive.job import Job, Task, tasks_of
from fourphase.benchmarks.archive.modes import ALONE, Mode, team_of, usable_cores
from fourphase.benchmarks.archive.options import ArchiveOptions
from fourphase.benchmarks.archive.proof import check_proof, proved
from fourphase.benchmarks.archive.studies import Found, find_studies
from fourphase.benchmarks.archive.team import ProcessTeam, Team, chunks
from fourphase.benchmarks.archive.trial import measure_modes
from fourphase.benchmarks.archive.whole import run_whole
from fourphase.benchmarks.archive.worker import digest_of, used
from fourphase.runtime import console
from fourphase.runtime.errors import FourphaseError, IntegrityError, ModelIncompatible, SomeStudiesFailed
from tests.support.dicom import write_phases
from tests.support.tiny_bundle import PREPROCESSING, write_tiny

BOX = {"space": "LPS_mm", "min": [-2, -4, 6], "max": [2, 4, 12]}
CLASSES = ("HCC", "ICC")
#: One worker is enough to show what several do, and two cores are all that a small machine has.
PAIR = Mode("processes", 2, 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny.bundle"
    write_tiny(path, preprocessing=replace(PREPROCESSING, margin_mm=2.0))
    return path


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies a, b and c, and d, which has no arterial phase; only read."""
    folder = tmp_path_factory.mktemp("archive") / "studies"
    for name in "abcd":
        write_phases(folder / name / "dicom", StudyInstanceUID=f"1.2.3.{ord(name)}")
        (folder / name / "box.json").write_text(json.dumps(BOX))
    shutil.rmtree(sorted(path for path in (folder / "d" / "dicom").iterdir() if path.is_dir())[1])
    return folder


@pytest.fixture(scope="module")
def by_fp_run(bundle: Path, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What fp-run writes of the same studies."""
    output = tmp_path_factory.mktemp("fp-run") / "out"
    command = [sys.executable, "-m", "fourphase.runtime.cli", "--each", str(studies), "--box", "box.json", "--quiet"]
    done = subprocess.run([*command, "--bundle", str(bundle), "--output", str(output)], check=False, stderr=-3)
    assert done.returncode == 40
    return output


def tasks(studies: Path) -> list[Task]:
    return tasks_of(find_studies(studies, "box.json").requests)


def job(bundle: Path, output: Path) -> Job:
    return Job(str(bundle), output=str(output))


def timeless(folder: Path) -> dict[str, bytes]:
    """Every file's bytes without times, and records without the hash of a result that holds times."""
    times = rb'"timings_ms": \{[^}]*\}|"seconds": [0-9.]+|"result.json": "[0-9a-f]{64}"'
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files["summary.csv"] = re.sub(rb"[0-9.]+(?=\r\n)", b"", files["summary.csv"])
    return {name: re.sub(times, b"", data) for name, data in files.items()}


def summary_of(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "summary.json").read_text()))


class Killing(ProcessTeam):
    """Kills the worker that is given a certain study, as often as `times` says."""

    def __init__(self, job: Job, cpus: Sequence[Sequence[int]], number: int, times: int) -> None:
        super().__init__(job, cpus)
        self._number, self._times = number, times

    def give(self, worker: int, task: Task) -> None:
        super().give(worker, task)
        if task.number == self._number and self._times:
            self._times -= 1
            os.kill(self.pids[worker], signal.SIGKILL)


def killing(number: int, times: int) -> Callable[[Mode, Job, Sequence[int]], Team]:
    return lambda mode, job, cpus: Killing(job, [[cpus[0]], [cpus[-1]]], number, times)


@pytest.mark.parametrize("mode", [ALONE, PAIR], ids=["one", "two"])
def test_results_records_and_summary_are_those_of_fp_run(
    bundle: Path, studies: Path, by_fp_run: Path, tmp_path: Path, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(mode: Mode, job: Job, cpus: Sequence[int]) -> Team:
        return ProcessTeam(job, [[cpus[0]], [cpus[-1]]][: mode.workers])

    run = run_whole(mode, job(bundle, tmp_path / "out"), tasks(studies), CLASSES, make=make)
    assert timeless(tmp_path / "out") == timeless(by_fp_run)
    assert run["totals"] == {"studies": 4, "done": 3, "skipped": 0, "failed": 1, "pending": 0, "ignored": 0}
    assert [(one["study"], one["error"]["code"]) for one in run["failures"]] == [(4, 12)]
    assert run["lost_workers"] == []
    assert "error: study 4 of 4: no series fo" in capsys.readouterr().err


def test_a_killed_worker_costs_no_study(
    bundle: Path, studies: Path, by_fp_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_whole(PAIR, job(bundle, tmp_path / "out"), tasks(studies), CLASSES, make=killing(2, 1))
    assert timeless(tmp_path / "out") == timeless(by_fp_run)
    assert run["lost_workers"] == [{"study": 2, "why": "was ended by SIGKILL"}]
    assert "while it ran study 2, which was run again" in capsys.readouterr().err


def test_a_study_that_kills_every_worker_fails_and_can_be_resumed(
    bundle: Path, studies: Path, by_fp_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run = run_whole(PAIR, job(bundle, output), tasks(studies), CLASSES, make=killing(2, 9))
    assert [entry["status"] for entry in summary_of(output)["studies"]] == ["done", "failed", "done", "failed"]
    assert [one["error"]["key"] for one in run["failures"]] == ["worker_died", "phase_missing"]
    run_whole(ALONE, job(bundle, output), tasks(studies), CLASSES)
    states = [entry["status"] for entry in summary_of(output)["studies"]]
    assert states == ["skipped", "done", "skipped", "failed"]
    for path in by_fp_run.glob("*/result.json"):
        ours = json.loads((output / path.parent.name / "result.json").read_text())
        assert digest_of(ours) == digest_of(json.loads(path.read_text()))


def test_a_bundle_that_cannot_be_loaded_ends_it_with_its_own_error(studies: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatible) as caught:
        run_whole(ALONE, job(tmp_path / "none", tmp_path / "out"), tasks(studies), CLASSES)
    assert caught.value.key == "bundle_missing"
    assert summary_of(tmp_path / "out")["totals"]["pending"] == 4


def test_workers_are_pinned_to_their_cores(bundle: Path, studies: Path) -> None:
    cpus = usable_cores()
    team = team_of(Mode("processes", len(cpus), 1), job(bundle, Path()), cpus)
    assert isinstance(team, ProcessTeam)
    try:
        for worker in range(team.size):
            team.start(worker)
        for _ in range(team.size):
            team.wait()
        found = [os.sched_getaffinity(pid) for pid in team.pids.values()]
    finally:
        team.close()
    assert found == [{cpu} for cpu in cpus]
    assert found == [set(one) for one in chunks(cpus, len(cpus), 1)]


def test_modes_take_turns_and_leave_nothing(bundle: Path, studies: Path, tmp_path: Path) -> None:
    order: list[str] = []

    def make(mode: Mode, job: Job, cpus: Sequence[int]) -> Team:
        order.append(mode.name)
        assert Path(job.output).is_dir()
        outputs.append(Path(job.output))
        return team_of(mode, job, cpus)

    outputs: list[Path] = []
    modes = [ALONE, Mode("again", 1, 1)]
    found = measure_modes(modes, job(bundle, tmp_path), tasks(studies)[:2], 2, lambda _: None, make)
    assert order == ["one process", "again"] * 2
    assert len(set(outputs)) == 4
    assert not any(path.exists() for path in outputs)
    assert list(tmp_path.iterdir()) == []
    row = found[1].row(found[0])
    assert (row["same_results"], row["failed"], row["backend"]["precision"]) == (True, 0, "fp32")
    assert 0 < found[0].busy < 1.2
    assert found[0].cpu_s_per_study > 0


def test_what_a_process_has_used_is_what_the_kernel_says() -> None:
    before = used()
    kept = bytearray(64 << 20)
    sum(range(3_000_000))
    after = used()
    times = os.times()
    assert before.cpu_s < after.cpu_s
    assert after.cpu_s == pytest.approx(sum(times[:4]), abs=0.3)
    assert after.peak_bytes >= len(kept)
    assert after.read_bytes is None or after.read_bytes >= 0


# ---- the proof of a shared path


def test_a_worker_that_sees_the_same_passes(bundle: Path, studies: Path, tmp_path: Path) -> None:
    with proved(job(bundle, tmp_path), tasks(studies)) as shown:
        check_proof(Job.from_dict(json.loads(json.dumps(shown.to_dict()))))
    assert list(tmp_path.iterdir()) == [], "the file of the proof is gone"


@pytest.mark.parametrize("other", ["bundle", "no bundle", "studies", "content", "output"])
def test_a_worker_that_sees_something_else_is_refused(bundle: Path, studies: Path, tmp_path: Path, other: str) -> None:
    copy = tmp_path / "studies"
    shutil.copytree(studies, copy)
    (tmp_path / "out").mkdir()
    with proved(job(bundle, tmp_path / "out"), tasks(copy)) as shown:
        check_proof(shown)
        if other == "bundle":
            shown = replace(shown, bundle=str(write_tiny(tmp_path / "other").path))
        elif other == "no bundle":
            shown = replace(shown, bundle=str(tmp_path / "none"))
        elif other == "studies":
            shutil.rmtree(copy / "b")
        elif other == "content":
            next(path for path in (copy / "a").rglob("*") if path.is_file()).write_bytes(b"else")
        else:
            shown = replace(shown, output=str(tmp_path))
        with pytest.raises(IntegrityError, match="under the same path") as caught:
            check_proof(shown)
    assert (caught.value.code, caught.value.key) == (21, "not_shared")


# ---- the command


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def last(self) -> dict[str, Any]:
        return dict(json.loads(self.out.strip().splitlines()[-1]))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(archive)

    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["fp-bench archive", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            console.run_app(app, "fp-bench archive")
        out, err = capsys.readouterr()
        return Ran(int(caught.value.code or 0), out, err)

    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield run
    console.be_quiet(False)
    console.say_errors_as_json(False)
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_the_command_writes_the_archive_and_says_40(
    bench: Callable[..., Ran], bundle: Path, studies: Path, by_fp_run: Path, tmp_path: Path
) -> None:
    given = [studies, "--bundle", bundle, "--box", "box.json", "--output", tmp_path / "out", "--rounds", "0"]
    first = bench(*given)
    assert first.code == 40
    assert "1 of 4 studies failed" in first.err
    assert timeless(tmp_path / "out") == timeless(by_fp_run)
    assert first.last["schema"] == "fourphase.archive/1"
    (row,) = first.last["rows"]
    assert (row["status"], row["speedup"], row["failed"]) == ("ok", None, 1)
    assert "the archive: 4 studies, 3 done, 1 failed" in first.out
    assert str(tmp_path) not in first.out
    again = bench(*given)
    assert again.code == 30
    assert "--resume" in again.err
    resumed = bench(*given, "--resume", "--json", "--quiet")
    assert resumed.code == 40
    assert json.loads(resumed.out)["run"]["totals"]["skipped"] == 3


def test_a_rehearsal_of_all_modes_is_marked(bench: Callable[..., Ran], bundle: Path, studies: Path) -> None:
    sound = [studies, "--bundle", bundle, "--box", "box.json", "--quick", "--workers", "1", "--sample", "2"]
    ran = bench(*sound)
    assert ran.code == 0, ran.err
    assert "REHEARSAL" in ran.out
    result = ran.last
    assert (result["quick"], result["studies"], result["run"]) == (True, 4, None)
    assert result["settings"]["protocol"]["studies_per_round"] == 2
    assert all(row["status"] == "ok" and row["same_results"] for row in result["rows"])
    assert result["rows"][0]["speedup"]["value"] is None, "two rounds make no interval"
    assert "machine" in result


@pytest.mark.parametrize(
    ("arguments", "code", "cause"),
    [
        (["studies"], 2, "no bundle"),
        (["--box", "box.json"], 2, "--box belongs to STUDIES"),
        (["--rounds", "0"], 2, "nothing to do"),
        (["--workers", "many"], 2, "--workers many"),
        (["--workers", "0"], 2, "--workers 0"),
        (["--ray", "ray://nowhere:1"], 2, "a Ray cluster needs an output folder"),
        (["empty", "--bundle", "b"], 10, "the folder holds no studies"),
        (["studies", "--bundle", "b", "--box", "none.json"], 10, "no study has such a lesion box"),
        (["studies", "--bundle", "b", "--box", "box.json", "--output", "studies/a/out"], 2, "lies in a study folder"),
        (["studies", "--bundle", "b", "--box", "box.json"], 20, "is not a bundle"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    bench: Callable[..., Ran], studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], code: int, cause: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("studies").symlink_to(studies)
    Path("empty").mkdir()
    ran = bench(*arguments)
    assert ran.code == code, ran.err
    assert cause in ran.err
    assert ran.out == ""


def test_an_output_for_ray_without_ray_is_refused(
    bench: Callable[..., Ran], studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for, it is never replaced by something else."""
    monkeypatch.setattr("fourphase.benchmarks.archive.ray_team.importlib.util.find_spec", lambda _: None)
    ran = bench(studies, "--bundle", "b", "--box", "box.json", "--ray", "local", "--output", tmp_path / "out")
    assert (ran.code, "fourphase[ray]" in ran.err) == (24, True)
    assert not (tmp_path / "out").exists()


def test_the_step_of_the_report_gives_the_commands_object(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourphase.benchmarks.archive.modes.usable_cores", lambda: [min(os.sched_getaffinity(0))])
    outcome = archive_step(lambda _: None, quick=True, bundle=str(bundle), count=2, rounds=1, ray="")
    assert (outcome.status, outcome.result["schema"], outcome.result["phantoms"]) == ("ok", "fourphase.archive/1", True)
    assert [(row["status"], row["failed"]) for row in outcome.result["rows"]] == [("ok", 0)]
    assert "There is one core: nothing can run beside anything." in outcome.result["explanation"]
    json.dumps(outcome.result, allow_nan=False)


def test_the_step_of_the_report_fails_if_no_study_was_run(
    bundle: Path, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only study has no arterial phase."""

    @contextmanager
    def one_that_fails(count: int, *, quick: bool) -> Iterator[Found]:
        yield Found(find_studies(studies, "box.json").requests[3:], 0, phantoms=True)

    monkeypatch.setattr("fourphase.benchmarks.archive.studies.phantoms", one_that_fails)
    monkeypatch.setattr("fourphase.benchmarks.archive.modes.usable_cores", lambda: [min(os.sched_getaffinity(0))])
    outcome = archive_step(lambda _: None, quick=True, bundle=str(bundle), rounds=1, ray="")
    assert outcome.status == "failed"
    assert outcome.reason.startswith("no study was run to its end; the first: no series fo")
    (row,) = outcome.result["rows"]
    assert (row["status"], row["failed"], row["studies_per_hour"]) == ("failed", 1, None)
    json.dumps(outcome.result, allow_nan=False)


def test_the_machine_is_described_before_any_study_is_run(
    bench: Callable[..., Ran], bundle: Path, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing for it must not be missed after hours."""

    def refuse(_: object) -> None:
        raise FourphaseError("nothing is known of this machine", "ask somebody")

    monkeypatch.setattr("fourphase.benchmarks.machine.describe_machine", refuse)
    given = [studies, "--bundle", bundle, "--box", "box.json", "--output", tmp_path / "out", "--rounds", "0"]
    assert "nothing is known of this machine" in bench(*given).err
    assert list((tmp_path / "out").rglob("*")) == []


def test_neither_folders_nor_a_clusters_address_are_in_the_json(
    bundle: Path, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    options = ArchiveOptions(studies, bundle, "box.json", output, ray="ray://head.clinic:10001")

    def played(options: ArchiveOptions, *_: object) -> dict[str, Any]:
        said = f"{output}/a/result.json cannot be written; {studies}/a; {bundle}; {Path.home()}/x"
        return {"run": {"failures": [said]}, "settings": command._settings(options, 2, 8)}

    monkeypatch.setattr(command, "_run", played)
    monkeypatch.setattr(command, "check_options", lambda _: None)
    result = run_archive(options)
    said = "<output>/a/result.json cannot be written; <studies>/a; <bundle>; <home>/x"
    assert result["run"]["failures"] == [said]
    assert result["settings"]["ray"] == "cluster"
    assert command._settings(replace(options, ray="local"), 2, 8)["ray"] == "local"


@pytest.mark.parametrize(
    ("run", "in_rounds", "cause"),
    [(None, 2, "2 of the 4 studies of a round"), (3, 2, "3 of 9 studies"), (0, 1, "1 of the 4 studies of a round")],
)
def test_failures_are_told_of_those_that_were_run(run: int | None, in_rounds: int, cause: str) -> None:
    result = {
        "rows": [{"failed": 0}, {"failed": in_rounds}, {"failed": None}],
        "settings": {"protocol": {"studies_per_round": 4}},
        "studies": 9,
        "run": None if run is None else {"totals": {"failed": run}},
    }
    with pytest.raises(SomeStudiesFailed, match=f"^{cause} failed"):
        command._fail_if_studies_failed(result)
    command._fail_if_studies_failed({**result, "rows": [{"failed": 0}], "run": None})


def test_an_error_in_a_worker_is_the_error_it_was(bundle: Path, studies: Path, tmp_path: Path) -> None:
    wrong = replace(job(bundle, tmp_path), precision="int8")
    with pytest.raises(FourphaseError, match="int8") as caught:
        run_whole(ALONE, wrong, tasks(studies), CLASSES)
    assert caught.value.key == "precision_missing"
