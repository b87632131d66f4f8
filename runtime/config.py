"""The preprocessing a model was trained with, as one frozen dataclass that travels in the bundle's manifest.

It does not touch pixels; `preprocess` does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fourphase.runtime.errors import ModelIncompatible

__all__ = ["PreprocessingConfig", "canonical_json"]


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: the same value always gives the same bytes, so it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True)
class PreprocessingConfig:
    """Region, resampling, windows and normalisation of one model's input.

    Attributes:
        margin_mm: the lesion box grows by this much on every side.
        spacing_mm: isotropic sample distance of the first resampling.
        size: (slices, rows, columns) of the network's input.
        windows_hu: (low, high) of each channel's window, in HU; clipped to [0, 1].
        mean, std: per channel, applied after the window.
        background_hu: the value outside the scanned volume.

    The defaults are the contract's; Qiao et al. 2024 for 1 mm, 10 mm and 64 x 128 x 128, the windows are ours.
    """

    margin_mm: float = 10.0
    spacing_mm: float = 1.0
    size: tuple[int, int, int] = (64, 128, 128)
    windows_hu: tuple[tuple[float, float], ...] = ((-1000.0, 1000.0), (-160.0, 240.0), (-15.0, 135.0))
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    background_hu: float = -1024.0

    def __post_init__(self) -> None:
        channels = len(self.windows_hu)
        problems = [
            ("windows_hu, mean and std differ in length", not channels == len(self.mean) == len(self.std) > 0),
            ("size is not three positive integers", len(self.size) != 3 or min(self.size) < 1),
            ("spacing_mm is not positive", not self.spacing_mm > 0),
            ("margin_mm is negative", not self.margin_mm >= 0),
            ("a window's low is not below its high", any(not low < high for low, high in self.windows_hu)),
            ("std is not positive", any(not value > 0 for value in self.std)),
            ("a number is not finite", not all(map(math.isfinite, self._numbers()))),
        ]
        for problem, found in problems:
            if found:
                raise ModelIncompatible(
                    f"the preprocessing section is invalid: {problem}",
                    "export the bundle again, or correct the section that the checkpoint carries",
                    key="preprocessing_invalid",
                )

    def _numbers(self) -> list[float]:
        windows = [value for window in self.windows_hu for value in window]
        return [self.margin_mm, self.spacing_mm, self.background_hu, *self.mean, *self.std, *windows]

    @property
    def channels(self) -> int:
        return len(self.windows_hu)

    @property
    def hash(self) -> str:
        """sha256 of the section's canonical JSON, first 16 hex digits."""
        return hashlib.sha256(canonical_json(self.to_dict()).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> PreprocessingConfig:
        """Reads the section of a manifest or a checkpoint; unknown keys are an error, never ignored."""
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(section) - names)
        if unknown:
            raise ModelIncompatible(
                f"unknown preprocessing keys: {', '.join(unknown)}",
                "update fourphase, or correct the section",
                key="preprocessing_invalid",
            )
        try:
            return cls(**{name: _typed(name, value) for name, value in section.items()})
        except (TypeError, ValueError) as error:
            raise ModelIncompatible(
                f"the preprocessing section is invalid: {error}", "correct the section", key="preprocessing_invalid"
            ) from error


def _typed(name: str, value: Any) -> Any:
    """JSON has lists and may write 1 for 1.0; the dataclass (and its hash) has tuples and floats."""
    if name == "size":
        return tuple(int(item) for item in value)
    if name == "windows_hu":
        return tuple((float(low), float(high)) for low, high in value)
    if name in ("mean", "std"):
        return tuple(float(item) for item in value)
    return float(value)
