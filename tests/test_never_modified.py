"""Inputs are only read, outputs are complete or absent, and the same study gives the same numbers however it is stored.

The commands run as processes: they are killed, ended, starved of disk, and started twice at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
)

from fourphase.runtime.decode_pool import close_shared_pool
from fourphase.runtime.pipeline import StudyRequest, prepare_study
from tests.support.dicom import COMPRESSED, DESCRIPTIONS, file_bytes, stored_values, uid, write_series
from tests.support.markers import MARKS
from tests.support.segments import FOR_HIGHDICOM
from tests.support.tiny_bundle import PHASES, PREPROCESSING, write_tiny
from tests.test_privacy import write_hospital

BOX = {"space": "LPS_mm", "min": [-2, -4, 6], "max": [2, 4, 12]}
SMALL = replace(PREPROCESSING, margin_mm=2.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("bundle") / "tiny.bundle", preprocessing=SMALL).path


def write_study(folder: Path, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Path:
    """Four phases of 8 x 40 x 48 voxels, large enough for every codec; box.json lies beside dicom/."""
    for number, (phase, (description, seconds)) in enumerate(DESCRIPTIONS.items(), 2):
        minutes, seconds = divmod(15 * 60 + seconds, 60)
        defaults: dict[str, Any] = {
            **FOR_HIGHDICOM,
            "SeriesInstanceUID": uid("series", phase),
            "SeriesNumber": number,
            "SeriesDescription": description,
            "AcquisitionTime": f"10{minutes:02d}{seconds:02d}",
        }
        voxels = smooth((8, 40, 48), number)
        write_series(folder / "dicom" / f"s{number}", voxels, transfer_syntax=syntax, **{**defaults, **elements})
    (folder / "box.json").write_text(json.dumps(BOX))
    return folder


def smooth(shape: tuple[int, int, int], seed: int) -> NDArray[np.uint16]:
    """Neighbouring slices resemble each other, as those of a patient do; compressed series are checked for it."""
    noise = stored_values(shape, seed).astype(np.float64) - 1074
    ramp = np.linspace(-60, 60, shape[1])[:, None] + np.linspace(-30, 30, shape[2])
    return np.asarray(np.rint(1074 + ramp + noise / 8), np.uint16)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that is only read."""
    return write_study(tmp_path_factory.mktemp("studies") / "study")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three studies of compressed slices."""
    folder = tmp_path_factory.mktemp("several")
    for name in "abc":
        write_study(folder / name, JPEGLSLossless, StudyInstanceUID=uid("study", name))
    return folder


def line(*arguments: object, program: str | None = None) -> list[str]:
    start = ["-m", "fourphase.runtime.cli"] if program is None else ["-c", program]
    return [sys.executable, *start, *map(str, arguments)]


def run(*arguments: object, program: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = line(*arguments, program=program)
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def everything(folder: Path) -> dict[str, tuple[object, ...]]:
    """Name -> what may not change of a file or folder: bytes, times of data and of status, rights, inode."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        found[str(path.relative_to(folder))] = (
            *(content, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode, status.st_ino),
            status.st_nlink,
        )
    return found


def visible(output: Path) -> list[str]:
    """The files of an output folder; a temporary file that a kill left is hidden."""
    paths = (path.relative_to(output) for path in output.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not any(part.startswith(".") for part in path.parts))


def complete_results(output: Path) -> list[dict[str, Any]]:
    """Every result.json, each of which must be whole."""
    found = []
    for path in sorted(output.glob("*/result.json")):
        body = json.loads(path.read_bytes())
        assert body["schema"] == "fourphase.result/1"
        assert list(body)[-1] == "warnings"
        assert body["case"] == path.parent.name
        found.append(body)
    return found


def without_times(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "timings_ms"}


# ---- never modified


def test_studies_of_every_kind_are_left_as_they_were(tmp_path: Path, bundle: Path) -> None:
    """Whole ones and those that fail with 10 to 17; boxes, masks, segmentations and structure sets lie among them."""
    inputs = tmp_path / "in"
    codes = write_hospital(inputs / "studies", MARKS[0])
    before = everything(inputs)
    arguments = ["--each", inputs / "studies", "--box", f"{MARKS[0].text} box.json", "--bundle", bundle]
    done = run(*arguments, "--output", tmp_path / "out", "--preview", "--sr", "--quiet")
    assert done.returncode == 40, done.stderr
    assert sorted(set(codes)) == [0, *range(10, 18)]
    assert everything(inputs) == before


WATCHED = """
import os, sys
folder = sys.argv.pop(1)
def inside(path):
    named = isinstance(path, (str, bytes, os.PathLike))
    return named and os.path.realpath(os.fsdecode(path)).startswith(folder)
CHANGES = ("os.remove", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.chmod", "os.chown",
           "os.utime", "os.truncate", "os.setxattr", "os.removexattr")
def watch(event, arguments):
    writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    if (writes or event in CHANGES) and any(map(inside, arguments)):
        os.write(2, f"WRITTEN {event}\\n".encode())
        os._exit(99)
sys.addaudithook(watch)
from fourphase.runtime import cli
cli.main()
"""


def test_nothing_is_opened_for_writing_and_a_read_only_study_will_do(tmp_path: Path, bundle: Path) -> None:
    """By rights, and by the interpreter's audit events, because rights do not stop root."""
    inputs = write_study(tmp_path / "in")
    archive = inputs / "study.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (inputs / "dicom").rglob("*"):
            file.write(path, path.relative_to(inputs))
    paths = [inputs, *inputs.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = everything(inputs)
    try:
        for number, study in enumerate((inputs / "dicom", archive)):
            arguments = [inputs, study, "--box", inputs / "box.json", "--bundle", bundle, "--preview", "--sr"]
            done = run(*arguments, "--output", tmp_path / f"out{number}", program=WATCHED)
            assert done.returncode == 0, done.stderr
            assert len(complete_results(tmp_path / f"out{number}")) == 1
        refused = run(
            inputs, "-c", program=WATCHED.replace("from fourphase", "open(folder + '/x', 'w')\nfrom fourphase")
        )
        assert refused.returncode == 99, "the watch works"
        assert everything(inputs) == before
    finally:
        for path in paths:
            path.chmod(0o755)


# ---- complete or absent


KILLED = """
import os, sys
from pathlib import Path
import highdicom, PIL.Image  # before the forks
from fourphase.runtime import run_outputs
from fourphase.runtime.pipeline import StudyRequest, load_model, run_study
study, box, bundle, output = map(Path, sys.argv[1:])
model = load_model(bundle)
request = StudyRequest(study, box)
result, prepared = run_study(model, request, keep_input=True)
asked = run_outputs._request_hash(model, request)
STEPS = ("open", "os.rename", "os.mkdir", "os.remove")
number = 0
ended = None
while ended != 0:
    number += 1
    folder = output / str(number)
    process = os.fork()
    if process == 0:
        seen = 0
        def step(dying=lambda: None):
            global seen
            seen += 1
            if seen == number:
                dying()
                os.kill(os.getpid(), 9)
        def count(event, arguments):
            if event in STEPS and str(output) in str(arguments[0]):
                step()
        class Half:
            def __init__(self, handle): self.handle = handle
            def __enter__(self): return self
            def __exit__(self, *error): self.handle.close()
            def __getattr__(self, name): return getattr(self.handle, name)
            def write(self, data):
                step(lambda: (self.handle.write(data[: len(data) // 2]), self.handle.flush()))
                return self.handle.write(data)
        true_open = Path.open
        Path.open = lambda path, mode="r", *more, **options: (
            Half(true_open(path, mode, *more, **options)) if "b" in mode and "r" not in mode
            else true_open(path, mode, *more, **options)
        )
        sys.addaudithook(count)
        files = run_outputs.RunFiles(folder, preview=True, sr=True, input=folder / "input.npy")
        failures = run_outputs._write(result, prepared, model.bundle.preprocessing, files, asked)
        os._exit(1 if failures else 0)
    ended = os.waitpid(process, 0)[1]
    assert ended in (0, 9), ended
print(number)
"""


def test_a_kill_at_any_step_of_writing_leaves_whole_files_only(tmp_path: Path, case: Path, bundle: Path) -> None:
    """A process per step dies by SIGKILL: before a file is opened, renamed, made or removed, half through a write."""
    done = run(case / "dicom", case / "box.json", bundle, tmp_path, program=KILLED)
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 20
    (whole,) = complete_results(tmp_path / str(steps))
    content = {path.name: path.read_bytes() for path in (tmp_path / str(steps)).rglob("*") if path.is_file()}
    assert sorted(content) == ["input.npy", "preview.png", "request.json", "result.json", "sr.dcm"]
    held = []
    for number in range(1, steps):
        output = tmp_path / str(number)
        held.append(tuple(visible(output)))
        for name in visible(output):
            assert (output / name).read_bytes() == content[Path(name).name], (number, name)
        assert all(body == whole for body in complete_results(output))
        if (output / whole["case"] / "request.json").exists():
            assert len(visible(output)) == len(content), "it counts as done, so all of it is there"
    assert held[0] == ()
    assert len(set(held)) == 6, "none, then one file more each"


@pytest.mark.slow
def test_kills_at_random_moments_leave_nothing_that_a_later_run_trips_over(
    tmp_path: Path, case: Path, bundle: Path
) -> None:
    """Of folders and of zips; what was unpacked of a zip is a patient's data, and the next run removes it."""
    archive, area, output = tmp_path / "study.zip", tmp_path / "tmp", tmp_path / "out"
    area.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in (case / "dicom").rglob("*"):
            file.write(path, path.relative_to(case))
    arguments = ["--box", case / "box.json", "--bundle", bundle, "--output", output, "--preview", "--quiet"]
    environment = {"FOURPHASE_TMP": str(area)}
    started = time.monotonic()
    first = run(archive, *arguments, **environment)
    needed_s = time.monotonic() - started
    assert first.returncode == 0, first.stderr
    (reference,) = complete_results(output)
    chance, killed = random.Random(5), 0
    for number in range(20):
        if number % 4 == 0:
            shutil.rmtree(output)
        study = archive if number % 2 else case / "dicom"
        command = line(study, *arguments)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **environment}) as process:
            time.sleep(chance.uniform(0.3, 1.05) * needed_s)
            process.kill()
        killed += process.returncode == -signal.SIGKILL
        assert all(without_times(body) == without_times(reference) for body in complete_results(output))
        for left in area.iterdir():
            assert stat.S_IMODE(left.stat().st_mode) == 0o700
            os.utime(left, (1, 1))  # as if it had been left for long
    assert killed >= 5
    for study in (case / "dicom", archive):
        last = run(study, *arguments, **environment)
        assert last.returncode == 0, last.stderr
    (final,) = complete_results(output)
    assert without_times(final) == without_times(reference)
    assert list(area.iterdir()) == []
    assert visible(output) == sorted(
        f"{final['case']}/{name}" for name in ("preview.png", "request.json", "result.json")
    )


def test_what_a_killed_run_unpacked_is_removed_by_the_next(tmp_path: Path, case: Path, bundle: Path) -> None:
    """But not what a living one holds, nor what is new, nor what others made."""
    area = tmp_path / "tmp"
    names = ("fourphase-study-old", "fourphase-study-new", "other-old", "fourphase-study-held")
    for name in names:
        (area / name / "s2").mkdir(parents=True)
        (area / name / "s2" / "IM1").write_text("a patient's")
    for name in names:
        if name.endswith(("old", "held")):
            os.utime(area / name, (1, 1))
    (area / "fourphase-study-link").symlink_to(case)
    archive = tmp_path / "study.zip"
    shutil.make_archive(str(archive.with_suffix("")), "zip", case / "dicom")
    holder = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)"
    holder += "; print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(area / names[3])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        done = run(archive, "--box", case / "box.json", "--bundle", bundle, "--quiet", FOURPHASE_TMP=str(area))
        process.kill()
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in area.iterdir()) == sorted([*names[1:], "fourphase-study-link"])
    assert (case / "dicom").is_dir()


# ---- ended by SIGTERM


TERMINATED = """
import hashlib, sys, time
place, folder = sys.argv.pop(1), sys.argv.pop(1)
from fourphase.runtime import cli, decode_pool, run_outputs, study, study_input
def ready():
    print("ready", file=sys.stderr, flush=True)
true_headers, true_run = study.read_slice_headers, run_outputs.run_study
number = 0
def headers(*arguments):
    global number
    number += 1
    if number == 10:
        ready()
    time.sleep(0.5 if number > 10 else 0)
    return true_headers(*arguments)
def infer(self):
    ready()
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**31 - 1)  # a native call in which no handler runs
def next_study(*arguments, **options):
    global number
    number += 1
    if number == 2:
        ready()
        time.sleep(60)
    return true_run(*arguments, **options)
if place == "scan":
    study.read_slice_headers = headers
if place == "inference":
    for kind in vars(study_input).values():
        if isinstance(kind, type) and "infer" in vars(kind):
            kind.infer = infer
if place == "decode":
    sys.path.insert(0, folder)
    decode_pool._shared = decode_pool.DecodePool(decoder="slow_decoder")
if place == "between":
    run_outputs.run_study = next_study
cli.main()
"""
SLOW_DECODER = """
import os, time
def decode_here(frame, form):
    open(os.path.join(os.path.dirname(__file__), "ready"), "w").close()
    time.sleep(60)
"""


def children_of(process: int) -> list[int]:
    """Decoding children that were started for a process; the number is on their command line, whoever owns them now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"fourphase.runtime.decode_worker" in words and str(process).encode() in words:
            found.append(int(folder.name))
    return found


def gone(process: int) -> bool:
    for _ in range(40):
        if not children_of(process):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("scan", signal.SIGTERM),
        ("decode", signal.SIGTERM),
        ("inference", signal.SIGTERM),
        ("between", signal.SIGTERM),
        ("decode", signal.SIGKILL),
    ],
)
def test_a_signal_ends_a_run_soon_and_leaves_no_process_and_no_copy(
    tmp_path: Path, several: Path, bundle: Path, place: str, number: signal.Signals
) -> None:
    """Of SIGKILL the copy of a zip stays, until the next run."""
    area, tools, studies = tmp_path / "tmp", tmp_path / "tools", tmp_path / "studies"
    for folder in (area, tools, studies):
        folder.mkdir()
    (tools / "slow_decoder.py").write_text(SLOW_DECODER)
    for name in "ab":
        shutil.make_archive(str(studies / name), "zip", several / name / "dicom")
    box = several / "a" / "box.json"
    arguments = [place, tools, "--each", studies, "--box", several / "{study}" / box.name, "--bundle", bundle]
    command = line(*arguments, "--output", tmp_path / "out", "--quiet", program=TERMINATED)
    environment = {**os.environ, "FOURPHASE_TMP": str(area)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            if place == "decode":
                for _ in range(400):
                    if (tools / "ready").exists():
                        break
                    time.sleep(0.05)
                assert children_of(process.pid)
            else:
                assert process.stderr.readline() == "ready\n"
            started = time.monotonic()
            process.send_signal(number)
            _, error = process.communicate(timeout=15)
            assert time.monotonic() - started < 5
        finally:
            process.kill()
    assert gone(process.pid)
    if number == signal.SIGKILL:
        return
    assert process.returncode == 143, error
    assert "Traceback" not in error
    assert list(area.iterdir()) == []
    assert len(complete_results(tmp_path / "out")) == (1 if place == "between" else 0)
    totals = json.loads((tmp_path / "out" / "summary.json").read_text())["totals"]
    assert totals["pending"] == (1 if place == "between" else 2)


@pytest.mark.slow
def test_sigterm_at_random_moments_ends_soon(tmp_path: Path, several: Path, bundle: Path) -> None:
    arguments = ["--each", several, "--box", "box.json", "--bundle", bundle, "--preview", "--sr", "--force"]
    command = line(*arguments, "--output", tmp_path / "out", "--quiet")
    started = time.monotonic()
    subprocess.run(command, check=True)
    needed_s, chance, codes = time.monotonic() - started, random.Random(7), []
    for _ in range(10):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            time.sleep(chance.uniform(0.1, 1.0) * needed_s)
            asked = time.monotonic()
            process.terminate()
            _, error = process.communicate(timeout=15)
        assert time.monotonic() - asked < 5
        assert process.returncode in (143, 0, -signal.SIGTERM), error  # the last: before the command was there
        assert "Traceback" not in error
        assert gone(process.pid)
        codes.append(process.returncode)
        complete_results(tmp_path / "out")
        json.loads((tmp_path / "out" / "summary.json").read_text())
    assert codes.count(143) >= 3


# ---- full disks


STARVED = """
import resource, sys
name = sys.argv.pop(1)
from fourphase.runtime import atomic
true = atomic.write_file
def write_file(path, data):
    if path.name == name:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    try:
        true(path, data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
atomic.write_file = write_file
from fourphase.runtime import cli
cli.main()
"""


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("result.json", set()),
        ("input.npy", {"result.json", "preview.png", "sr.dcm"}),
        ("preview.png", {"result.json", "input.npy", "sr.dcm"}),
        ("sr.dcm", {"result.json", "input.npy", "preview.png"}),
        ("summary.csv", set()),
        ("summary.json", {"summary.csv"}),
    ],
)
def test_a_file_that_does_not_fit_is_code_30_and_absent(
    tmp_path: Path, case: Path, bundle: Path, name: str, written: set[str]
) -> None:
    """The system's limit on file sizes stands for a full disk: a part is written, then the write fails."""
    output = tmp_path / "out"
    arguments: list[object] = [name]
    if name.startswith("summary"):
        arguments += ["--each", case.parent, "--box", "box.json"]
    else:
        arguments += [
            case / "dicom",
            "--box",
            case / "box.json",
            "--save-input",
            output / "input.npy",
            "--preview",
            "--sr",
        ]
    done = run(*arguments, "--bundle", bundle, "--output", output, "--quiet", program=STARVED)
    assert done.returncode == 30, done.stderr
    assert f"error: cannot write {output}" in done.stderr
    assert "Traceback" not in done.stderr
    assert {Path(path).name for path in visible(output)} == written
    assert not list(output.rglob(".*")), "nor is the part there"


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", str(folder)], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_code_30_and_leaves_no_part(tmp_path: Path, case: Path, bundle: Path) -> None:
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    with small_disk(tmp_path / "disk", 16):
        filler, output = tmp_path / "disk" / "filler", tmp_path / "disk" / "out"
        filler.write_bytes(bytes(12 << 10))
        arguments = ["--box", case / "box.json", "--bundle", bundle, "--quiet"]
        for more in (["--output", output], ["--save-input", tmp_path / "disk" / "input.npy"]):
            (tmp_path / "disk" / "last").write_bytes(bytes(4096))
            done = run(case / "dicom", *arguments, *more)
            assert done.returncode == 30, done.stderr
            assert "no space left on device" in done.stderr
            left = [path.name for path in (tmp_path / "disk").rglob("*") if path.is_file()]
            assert sorted(left) == ["filler", "last"]
        filler.unlink()
        (tmp_path / "disk" / "last").unlink()
        done = run(case / "dicom", *arguments, "--output", output)
        assert done.returncode == 0, done.stderr


# ---- two at once


def test_two_runs_with_one_output_at_once_both_end_well(tmp_path: Path, several: Path, bundle: Path) -> None:
    output = tmp_path / "out"
    command = line(
        "--each", several, "--box", "box.json", "--bundle", bundle, "--output", output, "--preview", "--quiet"
    )
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    bodies = complete_results(output)
    assert len(bodies) == 3
    assert not list(output.rglob(".*"))
    totals = json.loads((output / "summary.json").read_text())["totals"]
    assert (totals["studies"], totals["failed"], totals["pending"]) == (3, 0, 0)
    again = run(*command[3:])
    assert again.returncode == 0, again.stderr
    assert json.loads((output / "summary.json").read_text())["totals"]["skipped"] == 3, "every record fits its files"


# ---- the same study, stored otherwise


def network_input(case: Path) -> NDArray[np.float32]:
    return prepare_study(StudyRequest(case / "dicom", case / "box.json"), PHASES, SMALL).input


@pytest.fixture(scope="module")
def plain(case: Path) -> NDArray[np.float32]:
    array = network_input(case)
    assert array.std() > 0.1
    return array


LOSSLESS = (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, *COMPRESSED)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: UID(syntax).keyword)
def test_every_lossless_syntax_gives_the_same_bits(
    tmp_path: Path, case: Path, plain: NDArray[np.float32], syntax: str
) -> None:
    shutil.copytree(case, tmp_path / "case")
    for path in (tmp_path / "case" / "dicom").rglob("*"):
        if path.is_file():
            path.write_bytes(_encoded(path, syntax))
            assert dcmread(path).file_meta.TransferSyntaxUID == syntax
    try:
        np.testing.assert_array_equal(network_input(tmp_path / "case"), plain)
    finally:
        close_shared_pool()


def _encoded(path: Path, syntax: str) -> bytes:
    dataset = dcmread(path)
    if syntax != DeflatedExplicitVRLittleEndian:
        return file_bytes(dataset, syntax)
    buffer = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_names_and_order_of_files_do_not_count(tmp_path: Path, case: Path, plain: NDArray[np.float32]) -> None:
    """All phases in one folder, under names in a random order, some deep, some hidden, with any extension."""
    files = [path for path in (case / "dicom").rglob("*") if path.is_file()]
    numbers = np.random.default_rng(3).permutation(len(files))
    for number, path in zip(numbers, files, strict=True):
        folder = tmp_path / "dicom" / ("a/b" if number % 3 == 0 else ".c" if number % 3 == 1 else "")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{number:03d}{('', '.dcm', '.txt', '.json')[number % 4]}")
    shutil.copy(case / "box.json", tmp_path)
    np.testing.assert_array_equal(network_input(tmp_path), plain)


def test_slices_in_the_other_order_are_the_same_volume(tmp_path: Path, case: Path, plain: NDArray[np.float32]) -> None:
    """File names from the head down, InstanceNumbers reversed; only ImagePositionPatient says where a slice is."""
    for series in sorted((case / "dicom").iterdir()):
        paths = sorted(series.iterdir(), key=lambda path: -float(dcmread(path).ImagePositionPatient[2]))
        (tmp_path / "dicom" / series.name).mkdir(parents=True)
        numbers = [int(dcmread(path).InstanceNumber) for path in paths]
        for index, (path, number) in enumerate(zip(paths, reversed(numbers), strict=True)):
            dataset = dcmread(path)
            assert dataset.InstanceNumber != number
            dataset.InstanceNumber = number
            dataset.save_as(tmp_path / "dicom" / series.name / f"{index:03d}")
    shutil.copy(case / "box.json", tmp_path)
    np.testing.assert_array_equal(network_input(tmp_path), plain)


def test_a_saved_input_is_the_same_file_whatever_the_syntax(tmp_path: Path, several: Path, bundle: Path) -> None:
    """Through the command: compressed, plain, and zipped."""
    write_study(tmp_path / "plain", StudyInstanceUID=uid("study", "a"))
    shutil.make_archive(str(tmp_path / "zipped"), "zip", several / "a" / "dicom")
    saved = []
    for number, study in enumerate((several / "a" / "dicom", tmp_path / "plain" / "dicom", tmp_path / "zipped.zip")):
        target = tmp_path / f"{number}.npy"
        done = run(study, "--box", several / "a" / "box.json", "--bundle", bundle, "--save-input", target, "--json")
        assert done.returncode == 0, done.stderr
        saved.append((target.read_bytes(), json.loads(done.stdout)["prediction"], json.loads(done.stdout)["case"]))
    assert saved[0] == saved[1] == saved[2]
