"""The parent's side of `worker`: a graph that runs in a process of its own and takes its turn when asked."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Apart", "ApartFailed"]

Floats = NDArray[np.float32]
_WORKER = "fourphase.benchmarks.scaling.worker"
#: Seconds for loading a graph, and for the inferences of a turn: a hang must end some time.
LIMIT_S = 1200.0


class ApartFailed(Exception):
    """The process ended before its time; the text says how, in one line."""


class Apart:
    """A loaded graph in a process of its own; a context manager that ends it.

    Attributes:
        outputs: output name -> array of the first inference.
        prepare_s, once_ms: seconds to load, ms of the second inference.
        peak_bytes: largest resident memory of the process so far.
    """

    def __init__(
        self, runtime: str, model: Path, input_name: str, shape: Sequence[int], *, limit_s: float = LIMIT_S
    ) -> None:
        """Raises: ApartFailed if the graph does not load or run, or not within `limit_s`."""
        self._limit_s = limit_s
        self._folder = tempfile.TemporaryDirectory()
        saved, self._said = Path(self._folder.name, "outputs.npz"), Path(self._folder.name, "stderr")
        arguments = [runtime, str(model), input_name, json.dumps(list(shape)), str(saved)]
        with self._said.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        self.peak_bytes = 0
        try:
            first = self._answer()
        except BaseException:
            self.close()
            raise
        self.prepare_s, self.once_ms = float(first["prepare_s"]), float(first["once_ms"])
        with np.load(saved) as arrays:
            self.outputs: dict[str, Floats] = {name: arrays[name] for name in arrays.files}

    def run(self, count: int) -> list[float]:
        """Times of `count` inferences in ms. Raises: ApartFailed."""
        assert self._process.stdin is not None
        try:
            print(count, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise ApartFailed(self._end()) from None
        return [float(ms) for ms in self._answer()["ms"]]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # An answer is one line, written at once: where its first byte is, the rest is.
        if not select.select([self._process.stdout], [], [], self._limit_s)[0]:
            self._process.kill()
            raise ApartFailed(f"stopped: no answer within {self._limit_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise ApartFailed(self._end())
        answer: dict[str, Any] = json.loads(line)
        self.peak_bytes = int(answer["peak_bytes"])
        return answer

    def _end(self) -> str:
        code = self._process.wait()
        if code < 0:
            hint = " (memory ran out?)" if code == -signal.SIGKILL else ""
            return f"its process was ended by {signal.Signals(-code).name}{hint}"
        lines = self._said.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"its process ended with exit code {code}"

    def close(self) -> None:
        """Ends the process; twice is once."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
