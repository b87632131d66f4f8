"""The tiny model as a 3D CNN would be: one output, `logits` (B, K), and nothing about single phases."""

from __future__ import annotations

from pathlib import Path

from fourphase.runtime.backend import LOGITS_ALONE
from fourphase.runtime.bundle import Bundle
from tests.support.tiny_bundle import TINY_MODEL, tiny_golden, tiny_model, write_tiny

__all__ = ["LOGITS_ALONE_MODEL", "write_logits_alone"]

LOGITS_ALONE_MODEL = TINY_MODEL.replace(", float[B, 4, 2] phase_logits)", ")")


def write_logits_alone(target: Path, model: bytes | None = None, **changes: object) -> Bundle:
    """A bundle of that model; its golden logits are the tiny model's, by onnx's reference evaluator."""
    known: dict[str, object] = {"outputs": LOGITS_ALONE, "golden": tiny_golden(phase_logits=None)}
    return write_tiny(target, model or tiny_model(LOGITS_ALONE_MODEL), **{**known, **changes})
