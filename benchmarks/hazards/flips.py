"""Which turned-over bytes of a compressed slice are seen: random ones, one at a time, in a slice with noise.

A codec that fails is refused, as is a slice that does not continue its neighbours; what is read all the same is
compared with what was written. Damage to uncompressed bytes changes single pixels and is not looked for.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from fourphase.benchmarks.hazards.codecs import COMPRESSED, codestream, replace_codestream, transcode
from fourphase.benchmarks.hazards.hazard import change
from fourphase.benchmarks.hazards.study import HURT, INTERCEPT, Grid, SoundStudy, steps
from fourphase.runtime.errors import PixelDataError
from fourphase.runtime.pixels import read_hu
from fourphase.runtime.preprocess import VoxelWindow
from fourphase.runtime.study import read_study

__all__ = ["FlipCount", "count_flips"]

_SIDE, _SLICES, _SPACING_MM, _NOISE_HU = 256, 5, 0.8, 12.0
#: A slice whose HU change by less, on average, shows the same.
_SMALL_HU = 1.0


@dataclass(frozen=True)
class FlipCount:
    """What became of so many flips in one syntax.

    Attributes:
        refused: with PixelDataError (15).
        small: read, and the slice changed by less than 1 HU on average.
        unseen: read, and it changed by more; worst_hu: by how much on average, at worst.
    """

    syntax: str
    flips: int
    refused: int
    small: int
    unseen: int
    worst_hu: float

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "worst_hu": round(self.worst_hu, 1)}


def count_flips(folder: Path, sound: SoundStudy, flips: int) -> list[FlipCount]:
    """Counts for every compressed syntax; writes below `folder`."""
    return [_count(folder / name, sound, name, flips) for name in COMPRESSED]


def _count(folder: Path, sound: SoundStudy, name: str, flips: int) -> FlipCount:
    paths = _write(folder, sound)
    for path in paths:
        transcode(path, COMPRESSED[name])
    middle = paths[_SLICES // 2]
    good = codestream(middle)
    sound_hu = _read(folder)
    rng = np.random.default_rng(6)
    refused, changes = 0, []
    for _ in range(flips):
        frame = bytearray(good)
        frame[int(rng.integers(len(frame)))] ^= int(rng.integers(1, 256))
        replace_codestream(middle, bytes(frame))
        try:
            changes.append(float(np.abs(_read(folder) - sound_hu)[_SLICES // 2].mean()))
        except PixelDataError:
            refused += 1
    shutil.rmtree(folder)
    unseen = [change for change in changes if change >= _SMALL_HU]
    return FlipCount(name, flips, refused, len(changes) - len(unseen), len(unseen), max(unseen, default=0.0))


def _write(folder: Path, sound: SoundStudy) -> list[Path]:
    grid = Grid.around(
        sound.centre, spacing=(_SPACING_MM, _SPACING_MM), shape=(_SIDE, _SIDE), offsets=steps(_SLICES, 2.5)
    )
    rng = np.random.default_rng(5)
    paths = sound.write_phase(folder, HURT, grid)
    for index, path in enumerate(paths):
        hu = sound.hu(HURT, grid.points(index))
        stored = np.clip(np.rint(hu + rng.normal(0, _NOISE_HU, hu.shape)) - INTERCEPT, 0, 4095).astype("<u2")

        def edit(dataset: Dataset, pixels: bytes = stored.tobytes()) -> None:
            dataset.PixelData = pixels

        change(path, edit)
    return paths


def _read(folder: Path) -> Any:
    (series,) = read_study(folder).series
    window = VoxelWindow(slice(0, _SLICES), slice(0, _SIDE), slice(0, _SIDE))
    return read_hu(series, window).astype(np.int32)
