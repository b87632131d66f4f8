"""`fp-bench preprocess`: reading and preprocessing a study, ours beside a whole-volume SimpleITK pipeline in one run.

Each run is a process of its own, so that its peak memory is its own; imports are done before the clock starts. The two
take turns; quoted are the medians, and their ratio in turns with its interval. The first run of each, which brings the
files into the page cache, is not counted.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.latency.ratio import Ratio, paired_ratio
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.console import progress
from fourphase.runtime.errors import EnvironmentFault, InputMissing

if TYPE_CHECKING:
    from fourphase.benchmarks.guarded_steps import Outcome, Save

__all__ = [
    "OURS",
    "PHASES",
    "REPEATS",
    "THEIRS",
    "Comparison",
    "compare_pipelines",
    "preprocess_step",
    "require_simpleitk",
    "result_of",
    "series_files",
    "simpleitk_missing",
]

PHASES = ("NC", "ART", "PV", "DL")
OURS, THEIRS = "fourphase", "SimpleITK whole volume"
#: Counted runs of each pipeline. An interval needs 5; with one slow run among 5 it was too wide to be quoted.
REPEATS = 9
Input = NDArray[np.float32]
Float = NDArray[np.float64]
#: (0008,0032), as SimpleITK names it.
_ACQUISITION_TIME = "0008|0032"
#: Fewer images are a localizer or a dose sheet.
_FEWEST_SLICES = 2
#: Cause and cure.
_MISSING = ("SimpleITK is not installed", "pip install 'fourphase[dev]'")


@dataclass(frozen=True)
class Comparison:
    """What was measured of one study.

    Attributes:
        repeats: counted runs of each pipeline.
        seconds: pipeline -> median of scan + read + preprocess, by the wall clock.
        spread: pipeline -> (fastest, slowest) run.
        runs: pipeline -> seconds of every counted run, in turns.
        import_seconds: pipeline -> median of what importing its packages takes, which `seconds` leaves out.
        peak_mb: pipeline -> largest resident memory of a run's process, MB.
        shares: pipeline -> step -> share of its time.
        max_difference: between the two pipelines' inputs, in normalised units.
    """

    repeats: int
    slices: int
    seconds: Mapping[str, float]
    spread: Mapping[str, tuple[float, float]]
    runs: Mapping[str, Sequence[float]]
    import_seconds: Mapping[str, float]
    peak_mb: Mapping[str, float]
    shares: Mapping[str, Mapping[str, float]]
    max_difference: float

    @property
    def paired(self) -> Ratio:
        """Theirs over ours with its interval, or why none is quoted (fewer than 5 runs, noise)."""
        return paired_ratio(self.runs[THEIRS], self.runs[OURS])

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "fourphase.preprocess-bench/1",
            "repeats": self.repeats,
            "slices": self.slices,
            "seconds": dict(self.seconds),
            "spread": {name: list(ends) for name, ends in self.spread.items()},
            "import_seconds": dict(self.import_seconds),
            "peak_mb": dict(self.peak_mb),
            "shares": {name: dict(steps) for name, steps in self.shares.items()},
            "runs": {name: list(seconds) for name, seconds in self.runs.items()},
            "paired_ratio": self.paired.to_dict(),
            "max_difference": self.max_difference,
        }


def compare_pipelines(folder: Path, box: Path, repeats: int = REPEATS) -> Comparison:
    """Measures both pipelines on one study.

    Raises: EnvironmentFault (24) without SimpleITK, InputMissing (10) and the study's own errors.
    """
    require_simpleitk()
    if not folder.is_dir() or not box.is_file():
        raise InputMissing("the study folder or its lesion box does not exist", "give STUDY_DIR and --box FILE")
    runs: dict[str, list[dict[str, Any]]] = {OURS: [], THEIRS: []}
    inputs: dict[str, Input] = {}
    with tempfile.TemporaryDirectory() as scratch, progress("measuring", 2 * (repeats + 1)) as advance:
        for turn in range(repeats + 1):
            for name in runs:
                saved = Path(scratch) / f"{len(inputs)}.npy" if turn == 0 else None
                outcome = _run_apart(name, folder, box, saved)
                if saved is not None:
                    inputs[name] = np.load(saved)
                else:
                    runs[name].append(outcome)
                advance(1)
    return _summary(runs, inputs, repeats)


def preprocess_step(save: Save, *, quick: bool, repeats: int = REPEATS) -> Outcome:
    """The command as a step of the report: on a phantom of 4 x 250 slices of 512 x 512, `quick` on a small one.

    Without SimpleITK it is skipped.
    """
    from fourphase.benchmarks.end_to_end.study import phantom_study
    from fourphase.benchmarks.guarded_steps import Outcome

    missing = simpleitk_missing()
    if missing:
        return Outcome("skipped", missing)
    with phantom_study(None, quick=quick) as study:
        comparison = compare_pipelines(study.folder, study.box, 2 if quick else repeats)
    return Outcome("ok", result=result_of(comparison, study.what, quick=quick))


def result_of(comparison: Comparison, study: str, *, quick: bool) -> dict[str, Any]:
    """The JSON object of a run on this machine; `study`: how a reader should name what was read."""
    from fourphase.benchmarks.machine import describe_machine

    settings = {
        "study": study,
        "slices": comparison.slices,
        "repeats": comparison.repeats,
        "threads": len(os.sched_getaffinity(0)),
    }
    machine = dict(describe_machine(lambda _: None).result)
    return {**comparison.to_dict(), "machine": machine, "quick": quick, "settings": settings}


def _summary(runs: Mapping[str, list[dict[str, Any]]], inputs: Mapping[str, Input], repeats: int) -> Comparison:
    totals = {name: [run["seconds"] for run in rows] for name, rows in runs.items()}
    shares = {}
    for name, rows in runs.items():
        steps = {step: statistics.median(run["steps"][step] for run in rows) for step in rows[0]["steps"]}
        whole = sum(steps.values())
        shares[name] = {step: value / whole for step, value in steps.items()}
    return Comparison(
        repeats=repeats,
        slices=int(runs[OURS][0]["slices"]),
        seconds={name: statistics.median(values) for name, values in totals.items()},
        spread={name: (min(values), max(values)) for name, values in totals.items()},
        runs=totals,
        import_seconds={name: statistics.median(run["import_seconds"] for run in rows) for name, rows in runs.items()},
        peak_mb={name: max(run["peak_mb"] for run in rows) for name, rows in runs.items()},
        shares=shares,
        max_difference=float(np.abs(inputs[OURS] - inputs[THEIRS]).max()),
    )


def _run_apart(name: str, folder: Path, box: Path, saved: Path | None) -> dict[str, Any]:
    """One run in a fresh process; its last line is one JSON object, or the error a person should see."""
    arguments = [name, str(folder), str(box), *([] if saved is None else [str(saved)])]
    command = [sys.executable, "-m", "fourphase.benchmarks.preprocess_bench", *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        reason = (outcome.stderr.strip() or "no message").splitlines()[-1]
        raise InputMissing(
            f"{name} could not read the study: {reason}", "run fp-run on it to see what is wrong with it"
        )
    return dict(json.loads(outcome.stdout.splitlines()[-1]))


def _ours(folder: Path, box: Path) -> Callable[[], tuple[Input, dict[str, float], int]]:
    from fourphase.runtime.pipeline import StudyRequest, prepare_study

    def run() -> tuple[Input, dict[str, float], int]:
        prepared = prepare_study(StudyRequest(folder, box), PHASES, PreprocessingConfig())
        steps = {step: value / 1e3 for step, value in prepared.timings_ms.items()}
        return prepared.input, steps, sum(len(match.series.slices) for match in prepared.phases.values())

    return run


def _theirs(folder: Path, box: Path) -> Callable[[], tuple[Input, dict[str, float], int]]:
    """What one would write in a day: find series, read whole volumes, resample to 1 mm, crop, resize, window."""
    import SimpleITK as sitk
    from scipy import ndimage

    config = PreprocessingConfig()
    region = json.loads(box.read_text())
    low = np.array(region["min"]) - config.margin_mm
    high = np.array(region["max"]) + config.margin_mm

    def run() -> tuple[Input, dict[str, float], int]:
        steps = {"scan": 0.0, "read": 0.0, "preprocess": 0.0}
        with _timed(steps, "scan"):
            files = series_files(sitk, folder)
        array = np.empty((len(files), config.size[0], config.channels, *config.size[1:]), dtype=np.float32)
        for index, names in enumerate(files):
            with _timed(steps, "read"):
                volume = sitk.ReadImage(list(names))
            with _timed(steps, "preprocess"):
                array[index] = _whole_volume(sitk, ndimage, volume, low, high, config)
        return array, steps, sum(map(len, files))

    return run


def series_files(sitk: Any, folder: Path) -> list[tuple[str, ...]]:
    """The files of every stack below `folder`, in the order of their acquisition times; `sitk` is the package."""
    found = []
    for parent in sorted({path.parent for path in folder.rglob("*") if path.is_file()}):
        for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(parent)):
            names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(parent), uid)
            if len(names) > _FEWEST_SLICES:
                reader = sitk.ImageFileReader()
                reader.SetFileName(names[0])
                reader.ReadImageInformation()
                found.append((reader.GetMetaData(_ACQUISITION_TIME), tuple(names)))
    return [names for _, names in sorted(found)]


def _whole_volume(sitk: Any, ndimage: Any, volume: Any, low: Float, high: Float, config: PreprocessingConfig) -> Input:
    """The contract's preprocessing of the whole volume: (T, C, H, W). The 1 mm grid is anchored at the region."""
    extent = np.array(volume.GetSize()) * np.array(volume.GetSpacing())
    begin = np.floor(np.array(volume.GetOrigin()) - low - 0.5)
    first = low + 0.5 + begin
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetOutputSpacing((1.0, 1.0, 1.0))
    resampler.SetOutputOrigin(tuple(first))
    resampler.SetSize([int(value) + 2 for value in np.ceil(extent)])
    resampler.SetDefaultPixelValue(config.background_hu)
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    millimetres = sitk.GetArrayFromImage(resampler.Execute(volume))
    count = np.maximum(1, np.floor(high - low + 0.5)).astype(int)
    cropped = _cropped(millimetres, -begin[::-1].astype(int), count[::-1], config.background_hu)
    factors = np.array(config.size) / cropped.shape
    hu = ndimage.zoom(cropped, factors, order=1, mode="nearest", grid_mode=True)
    windows = zip(config.windows_hu, config.mean, config.std, strict=True)
    channels = [(np.clip((hu - a) / (b - a), 0, 1) - mean) / std for (a, b), mean, std in windows]
    return np.stack(channels, axis=1).astype(np.float32)


def _cropped(array: Input, begin: NDArray[np.int_], count: NDArray[np.int_], background: float) -> Input:
    """array[begin : begin + count] along every axis, `background` where that lies outside."""
    result = np.full(tuple(count), background, dtype=np.float32)
    low = np.maximum(begin, 0)
    high = np.minimum(begin + count, array.shape)
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    placed = tuple(slice(a, b) for a, b in zip(low - begin, high - begin, strict=True))
    result[placed] = array[inside]
    return result


@contextmanager
def _timed(steps: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    steps[name] += time.perf_counter() - started


def require_simpleitk() -> None:
    """Raises: EnvironmentFault (24) naming the extra, before a study is written or read."""
    if find_spec("SimpleITK") is None:
        raise EnvironmentFault(*_MISSING, key="extra_missing")


def simpleitk_missing() -> str:
    """Why a step of the report that needs SimpleITK is skipped; "" if it is not."""
    return "" if find_spec("SimpleITK") else ": ".join(_MISSING)


def _peak_mb() -> float:
    """Largest resident memory of this process, MB.

    Not getrusage: its maximum survives exec, so a child would start with what its parent had.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6  # type: ignore[index]


def _main(arguments: list[str]) -> None:
    """The child process: imports, then one timed run."""
    name, folder, box, *saved = arguments
    started = time.perf_counter()
    run = (_ours if name == OURS else _theirs)(Path(folder), Path(box))
    imported = time.perf_counter()
    array, steps, slices = run()
    seconds, peak_mb = time.perf_counter() - imported, _peak_mb()
    if saved:
        np.save(saved[0], array)
    measured = {"seconds": seconds, "import_seconds": imported - started, "peak_mb": peak_mb}
    print(json.dumps({**measured, "steps": steps, "slices": slices}))


if __name__ == "__main__":
    _main(sys.argv[1:])
