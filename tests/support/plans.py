"""The description of a plan of TensorRT proper for an L4, as a starting point."""

from __future__ import annotations

from typing import Any

__all__ = ["FLAGS", "META"]

FLAGS = {"hardware_compatibility": "none", "version_compatible": False}
META: dict[str, Any] = {
    "schema": "fourphase.engine/2",
    "onnx_sha256": "a" * 64,
    "part": "whole",
    "slices": None,
    "precision": "fp16",
    "flavour": "tensorrt",
    "version": "10.13.3.9",
    "cuda": "13.0",
    "driver": "580.1",
    "gpu": {"name": "NVIDIA L4", "compute_capability": "8.9"},
    "compute_capabilities": ["8.9"],
    "os": "linux",
    "arch": "x86_64",
    "batch": [1, 1, 2],
    "flags": FLAGS,
    "plan_sha256": "b" * 64,
}
