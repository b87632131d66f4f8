"""Our pipeline, exactly as `fp-run` runs it: the same functions, self-check and checks of the study included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fourphase.benchmarks.end_to_end.pipelines import PIPELINES, Job

__all__ = ["OurPipeline"]


class OurPipeline:
    """`load_model`, then `run_one` as often as one likes."""

    def __init__(self, job: Job) -> None:
        self._job, self._pipeline = job, PIPELINES[job.name]

    def imports(self) -> None:
        """Imports the run time; the backend's package is imported by `load`, as in fp-run."""
        import fourphase.runtime.pipeline
        import fourphase.runtime.run_outputs  # noqa: F401

    def load(self) -> None:
        """Loads and verifies the bundle, and proves the backend on the golden input."""
        from fourphase.runtime.pipeline import StudyRequest, load_model

        name, precision = self._pipeline.runtime, self._pipeline.precision
        self._model = load_model(Path(self._job.bundle), backend=name, require=name, precision=precision)
        self._request = StudyRequest(Path(self._job.study), Path(self._job.box))

    def run(self) -> dict[str, float]:
        """One study to its result; returns milliseconds per step as the result tells them, without the total."""
        body = self._run(None)
        json.dumps(body, indent=1, allow_nan=False)
        return {name: value for name, value in body["timings_ms"].items() if name != "total"}

    def save(self, path: Path) -> dict[str, Any]:
        """Runs once more, and writes the network's input (P, T, C, H, W) and the logits (K,) as .npz."""
        array = path.with_suffix(".npy")
        body = self._run(array)
        logits = np.array(body["prediction"]["logits"], dtype=np.float32)
        np.savez(path, input=np.load(array), logits=logits)
        array.unlink()
        slices = [phase["slices"] for phase in body["phases"].values()]
        return {"slices": slices, "device": "gpu" if self._pipeline.runtime.startswith("tensorrt") else "cpu"}

    def _run(self, array: Path | None) -> Any:
        """The result as JSON. Raises: what went wrong."""
        from fourphase.runtime.run_outputs import RunFiles, run_one

        outcome = run_one(self._model, self._request, RunFiles(input=array))
        if outcome.failures:
            raise outcome.failures[0]
        return outcome.body
