"""The archive on a local Ray: the same results as without, a killed actor, and what is refused. Each in a process.

(Ray keeps threads, sockets and warnings of its own, which are not this suite's.)
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.dicom import write_phases
from tests.support.tiny_bundle import PREPROCESSING, write_tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra [ray]"),
]

BOX = {"space": "LPS_mm", "min": [-2, -4, 6], "max": [2, 4, 12]}

#: argv: bundle, studies, output, number of the study whose actor is killed (0: none). Two actors of one core each, also
#: where there is only one core.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from fourphase.benchmarks.archive.job import Job, tasks_of
from fourphase.benchmarks.archive.modes import ALONE, Mode
from fourphase.benchmarks.archive.ray_team import LOCAL, RayTeam
from fourphase.benchmarks.archive.studies import find_studies
from fourphase.benchmarks.archive.whole import run_whole

bundle, studies, output, deadly = sys.argv[1:5]

class Killing(RayTeam):
    left = 1
    def give(self, worker, task):
        super().give(worker, task)
        if task.number == int(deadly) and self.left:
            self.left = 0
            os.kill(self.pids[worker], signal.SIGKILL)

tasks = tasks_of(find_studies(Path(studies), "box.json").requests)
make = lambda mode, job, cpus: Killing(job, mode.workers, mode.threads, mode.address)
ray = run_whole(Mode("ray", 2, 1, LOCAL), Job(bundle, output=output + "/ray"), tasks, ("HCC", "ICC"), make=make)
alone = run_whole(ALONE, Job(bundle, output=output + "/alone"), tasks, ("HCC", "ICC"))
print(json.dumps([ray, alone]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny.bundle"
    write_tiny(path, preprocessing=replace(PREPROCESSING, margin_mm=2.0))
    return path


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "studies"
    for name in "abc":
        write_phases(folder / name / "dicom", StudyInstanceUID=f"1.2.3.{ord(name)}")
        (folder / name / "box.json").write_text(json.dumps(BOX))
    return folder


def results(folder: Path) -> dict[str, Any]:
    found = {path.parent.name: json.loads(path.read_bytes()) for path in folder.glob("*/result.json")}
    return {case: {key: value for key, value in body.items() if key != "timings_ms"} for case, body in found.items()}


@pytest.mark.parametrize("deadly", [0, 2], ids=["sound", "killed"])
def test_ray_gives_the_results_of_one_process(bundle: Path, studies: Path, tmp_path: Path, deadly: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(bundle), str(studies), str(tmp_path), str(deadly)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    ray, alone = json.loads(done.stdout.splitlines()[-1])
    assert ray["totals"] == alone["totals"]
    assert alone["totals"]["done"] == 3
    assert results(tmp_path / "ray") == results(tmp_path / "alone")
    assert len(results(tmp_path / "ray")) == 3
    assert [one["study"] for one in ray["lost_workers"]] == ([deadly] if deadly else [])
    assert not list((tmp_path / "ray").glob(".fourphase*")), "the file of the proof is gone"
