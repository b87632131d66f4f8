"""Skips, with the reason, the tests whose machine or extra is not there; no example of hypothesis is timed.

Files with slow tests come first: several processes share the files, and the longest must not be left for the end. Each
process keeps to one core, and so does what it starts: threads that wait for each other across processes cost more than
a second core gains.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
from hypothesis import HealthCheck, settings

from fourphase.runtime.console import be_quiet, say_errors_as_json
from fourphase.runtime.cuda import probe

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _fresh_console() -> None:
    """A command that a test ran in this process with --quiet or --json leaves that behind."""
    be_quiet(False)
    say_errors_as_json(False)


def pytest_configure() -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = probe()
    reasons = {
        "rtx": None if importlib.util.find_spec("tensorrt_rtx") else "TensorRT for RTX is not installed (extra [rtx])",
        "gpu": None if gpu.device else gpu.reason,
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
