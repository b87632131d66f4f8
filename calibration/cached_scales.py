"""Int8 scales of a model on a calibration set, computed once: a second build with the same of both reads them back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version

import onnx

from fourphase.calibration.calibration_set import CalibrationSet
from fourphase.calibration.qdq import quantizable_values
from fourphase.calibration.scales import Scales, collect_histograms, read_scales, scales_from, write_scales
from fourphase.runtime.cache import cache_folder
from fourphase.runtime.errors import FourphaseError

__all__ = ["CachedScales", "cached_scales"]


@dataclass(frozen=True)
class CachedScales:
    """`from_cache` tells whether they were computed now or read back."""

    scales: Scales
    from_cache: bool


def cached_scales(model: bytes, data: CalibrationSet, algorithm: str) -> CachedScales:
    """The scales of every activation that any policy may quantize.

    A cached file that was altered, or that other tools wrote, is replaced. Without a place to write, nothing is kept.

    Raises: as `collect_histograms` and `scales_from`.
    """
    digest = hashlib.sha256(model).hexdigest()
    folder = cache_folder("scales")
    name = hashlib.sha256(f"{digest} {data.hash} {algorithm} {version('fourphase')}".encode()).hexdigest()[:24]
    path = folder / f"{name}.json" if folder else None
    if path is not None and path.exists():
        try:
            return CachedScales(read_scales(path, onnx_sha256=digest, data_hash=data.hash, algorithm=algorithm), True)
        except FourphaseError:
            path.unlink(missing_ok=True)
    names = quantizable_values(onnx.load_model_from_string(model))
    scales = scales_from(collect_histograms(model, names, data), algorithm)
    if path is not None:
        write_scales(path, scales)
    return CachedScales(scales, False)
