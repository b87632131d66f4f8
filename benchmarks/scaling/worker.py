"""One graph in a process of its own: loads it, runs it as often as it is told, and tells its peak memory.

Nothing of torch is loaded, so that the peak is the runtime's. Speaks in lines: after loading, one JSON object; then for
each number on stdin so many inferences, and one JSON object with their times.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.scaling.cpu_runtimes import LoadedGraph, load_graph
from fourphase.benchmarks.with_parent import end_with_parent

__all__ = ["example_input", "peak_bytes"]

Floats = NDArray[np.float32]
_STATUS = Path("/proc/self/status")


def example_input(shape: Sequence[int]) -> Floats:
    """The same normal values for the same shape, in every process. float32."""
    return np.random.default_rng(0).standard_normal(tuple(shape), dtype=np.float32)


def peak_bytes() -> int:
    """Largest resident memory of this process.

    Not getrusage: its maximum survives exec, so a child would start with what its parent had.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


def _timed_ms(graph: LoadedGraph, inputs: Mapping[str, Floats]) -> float:
    started = time.perf_counter()
    graph.run(inputs)
    return 1e3 * (time.perf_counter() - started)


def _say(**content: object) -> None:
    print(json.dumps(content), flush=True)


def _main(runtime: str, model: str, name: str, shape: str, outputs: str) -> None:
    end_with_parent(1)
    graph = load_graph(runtime, Path(model).read_bytes())
    inputs = {name: example_input(json.loads(shape))}
    np.savez(outputs, **graph.run(inputs))  # type: ignore[arg-type]
    # The first inference also allocates; this one says how many fit into a round.
    _say(prepare_s=graph.prepare_s, once_ms=_timed_ms(graph, inputs), peak_bytes=peak_bytes())
    for line in sys.stdin:
        if int(line) > 1:
            graph.run(inputs)  # others ran meanwhile: caches are cold
        _say(ms=[_timed_ms(graph, inputs) for _ in range(int(line))], peak_bytes=peak_bytes())


if __name__ == "__main__":
    _main(*sys.argv[1:])
