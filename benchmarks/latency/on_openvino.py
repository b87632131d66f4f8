"""The bundle's model in OpenVINO, through the product's own backend: what a user really runs."""

from __future__ import annotations

from fourphase.benchmarks.latency.candidate import Task
from fourphase.benchmarks.latency.product import loaded_product
from fourphase.benchmarks.latency.runtimes import Loaded
from fourphase.runtime import openvino_backend

__all__ = ["REQUIREMENTS", "load", "why_not"]

REQUIREMENTS = openvino_backend.REQUIREMENTS


def why_not(precision: str, device: str) -> str | None:
    """As the product's backend; it runs on the CPU whatever the device."""
    if not openvino_backend.is_available():
        return f"the package {REQUIREMENTS[0]} is not installed"
    return openvino_backend.why_not(precision)


def load(task: Task) -> Loaded:
    """Raises: as `loaded_product`."""
    return loaded_product(openvino_backend.load_backend, task)
