"""Skips, with the reason, the tests whose machine or extra is not there."""

from __future__ import annotations

import importlib.util

import pytest

from fourphase.runtime.cuda import probe


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
