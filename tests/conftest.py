"""Skips, with the reason, the tests whose machine or extra is not there; no example of hypothesis is timed."""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import HealthCheck, settings

from fourphase.runtime.cuda import probe

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


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
