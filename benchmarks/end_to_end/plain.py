"""The plain pipeline, as a capable user would write it in a day: SimpleITK in front of torch or ONNX Runtime.

Whole series are read by GDCM, resampled to 1 mm over the region of the lesion box only, resized and windowed by the
contract's numbers; every library uses all cores. It checks nothing that a user would not think of checking: phases are
taken in the order of their acquisition times, and nobody looks for breathing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.end_to_end.pipelines import PIPELINES, Job
from fourphase.benchmarks.preprocess_bench import series_files
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import PhaseMissing

__all__ = ["PlainPipeline", "network_input"]

Floats = NDArray[np.float32]
Corner = Sequence[float]


class PlainPipeline:
    """SimpleITK, then the network in FP32; after `load` it may run any number of times."""

    def __init__(self, job: Job) -> None:
        self._job, self._runtime = job, PIPELINES[job.name].runtime
        self._last: tuple[Floats, Floats, list[int]] | None = None

    def imports(self) -> None:
        """Imports the packages, so that their time is known."""
        import SimpleITK  # noqa: F401

        if self._runtime == "onnxruntime":
            import onnxruntime  # noqa: F401
        else:
            import torch  # noqa: F401

    def load(self) -> None:
        """Loads the network and reads what its input must look like."""
        bundle = load_bundle(Path(self._job.bundle))
        self._config, self._phases, self._classes = bundle.preprocessing, bundle.phases, bundle.classes
        self._infer = self._session(bundle) if self._runtime == "onnxruntime" else self._torch_module()

    def run(self) -> dict[str, float]:
        """One study to its result; returns milliseconds per step."""
        import SimpleITK as sitk

        steps = {"scan": 0.0, "read": 0.0, "preprocess": 0.0, "inference": 0.0}
        with _timed(steps, "scan"):
            low, high = _region(Path(self._job.box), self._config.margin_mm)
            files = series_files(sitk, Path(self._job.study))
            if len(files) != len(self._phases):
                raise PhaseMissing(
                    f"the plain pipeline found {len(files)} series, not {len(self._phases)}",
                    "give a study that holds one series per phase and no other",
                )
        study = np.empty((1, len(files), self._config.size[0], 3, *self._config.size[1:]), dtype=np.float32)
        for index, names in enumerate(files):
            with _timed(steps, "read"):
                volume = sitk.ReadImage(list(names))
            with _timed(steps, "preprocess"):
                study[0, index] = network_input(sitk, volume, low, high, self._config)
        with _timed(steps, "inference"):
            logits = self._infer(study)[0]
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        json.dumps({name: float(share) for name, share in zip(self._classes, shares, strict=True)})
        self._last = (study[0], logits, [len(names) for names in files])
        return steps

    def save(self, path: Path) -> dict[str, Any]:
        """Writes the last run's input (P, T, C, H, W) and logits (K,) as .npz; returns what else is known of it."""
        assert self._last is not None
        study, logits, slices = self._last
        np.savez(path, input=study, logits=logits)
        return {"slices": slices, "device": self._device}

    def _session(self, bundle: Bundle) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._job.threads
        model = bundle.path / bundle.models["fp32"].file
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._device = "cpu"
        return lambda study: session.run(["logits"], {"study": study})[0]

    def _torch_module(self) -> Any:
        import torch

        torch.set_num_threads(self._job.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._device = device.type
        # The file was written by the parent process: the whole module, so that no random weights are made first.
        module = torch.load(self._job.module, weights_only=False).eval().to(device)
        forward = torch.compile(module) if self._runtime == "torch-compile" else module

        def infer(study: Floats) -> Floats:
            with torch.inference_mode():
                outputs = forward(torch.from_numpy(study).to(device))
            logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
            answer: Floats = logits.cpu().numpy()
            return answer

        return infer


def network_input(sitk: Any, volume: Any, low: Corner, high: Corner, config: PreprocessingConfig) -> Floats:
    """The contract's preprocessing of one phase by SimpleITK alone: float32 (T, C, H, W).

    Args:
        sitk: the package.
        volume: HU, axis-aligned or not.
        low, high: the region's corners, LPS mm.

    SimpleITK holds the edge value for half a voxel and knows half-pixel centres, as the contract does.
    """
    extent = np.subtract(high, low)
    count = np.maximum(1, np.floor(extent / config.spacing_mm + 0.5)).astype(int)
    millimetres = _resampled(sitk, volume, low, [config.spacing_mm] * 3, count.tolist(), config.background_hu)
    size = config.size[::-1]
    spacing = count * config.spacing_mm / size
    grid = _resampled(sitk, millimetres, low, spacing.tolist(), size, config.background_hu)
    hu = sitk.GetArrayViewFromImage(grid)
    channels = np.empty((config.size[0], config.channels, *config.size[1:]), dtype=np.float32)
    for channel, ((a, b), mean, std) in enumerate(zip(config.windows_hu, config.mean, config.std, strict=True)):
        channels[:, channel] = (np.clip((hu - a) / (b - a), 0, 1) - mean) / std
    return channels


def _resampled(sitk: Any, image: Any, low: Corner, spacing: Corner, size: Sequence[int], background: float) -> Any:
    """Linear samples on a grid whose first voxel begins at `low`."""
    first = [start + step / 2 for start, step in zip(low, spacing, strict=True)]
    straight = np.eye(3).ravel().tolist()
    return sitk.Resample(
        image, [int(n) for n in size], sitk.Transform(), sitk.sitkLinear, first, spacing, straight, background,
        sitk.sitkFloat32,
    )  # fmt: skip


def _region(box: Path, margin_mm: float) -> tuple[list[float], list[float]]:
    """The corners of a JSON box, grown by the margin."""
    given = json.loads(box.read_text(encoding="utf-8"))
    return [value - margin_mm for value in given["min"]], [value + margin_mm for value in given["max"]]


@contextmanager
def _timed(steps: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    steps[name] += 1e3 * (time.perf_counter() - started)
