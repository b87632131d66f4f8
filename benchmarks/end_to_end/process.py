"""A pipeline's process as its parent sees it: asks, waits for so long, and says why there is no answer."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fourphase.benchmarks.end_to_end.pipelines import Job

__all__ = ["PipelineFailed", "PipelineProcess"]

#: A compiler may take minutes for a large network; a hang must end some time.
LIMIT_S = 1200.0


class PipelineFailed(Exception):
    """One sentence on why a pipeline gives no more answers."""


class PipelineProcess:
    """Starts a pipeline cold.

    Attributes:
        cold_ms: start, import, load, the first study's steps, rest and total, in ms.

    Raises: PipelineFailed.
    """

    def __init__(self, job: Job, *, limit_s: float = LIMIT_S, environment: Mapping[str, str] | None = None) -> None:
        self._limit_s = limit_s
        self._answers: queue.Queue[str | None] = queue.Queue()
        arguments = [str(time.monotonic_ns()), json.dumps(job.to_dict())]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fourphase.benchmarks.end_to_end.worker", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **(environment or {})}, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.cold_ms: dict[str, float] = self._answer()
        except BaseException:  # also when this process is told to end
            self.close()
            raise

    def run(self) -> dict[str, float]:
        """One study: milliseconds of its steps, the rest and the total. Raises: PipelineFailed."""
        return self._ask("run")

    def save(self, path: Path) -> dict[str, Any]:
        """Lets it write the input and logits of a run (.npz); returns slices per phase and device."""
        return self._ask(f"save {path}")

    def peak_bytes(self) -> int | None:
        """Its largest resident memory so far."""
        found: int | None = self._ask("peak")["peak_bytes"]
        return found

    def close(self) -> None:
        """Ends the process and what it started, whatever they are doing."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def _ask(self, order: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=self._limit_s)
        except queue.Empty:
            raise PipelineFailed(f"no answer within {self._limit_s:g} s") from None
        if line is None:
            raise self._ended()
        body: dict[str, Any] = json.loads(line)
        if "error" in body:
            raise PipelineFailed(str(body["error"]))
        return body

    def _ended(self) -> PipelineFailed:
        code = self._process.wait()
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return PipelineFailed(f"its process {how}")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put(None)
