"""What a hazard is: something that happens to studies between scanner and reader, done on purpose to a sound one.

It also holds what hazards are done with: a copy of the sound study, and its slices to be changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import PYDICOM_ROOT_UID, UID, generate_uid

from fourphase.benchmarks.hazards.study import HURT, Grid, SoundStudy, file_name

__all__ = [
    "EXACT", "FAR", "MIDDLE", "REGRIDDED", "REORDERED", "ROUNDED", "Bound", "Case", "Hazard", "change", "change_all",
    "copy_of", "other_uid",
]  # fmt: skip

#: A slice through the lesion, and one far from box and margin.
MIDDLE, FAR = 14, 25


@dataclass(frozen=True)
class Bound:
    """How far the network's input may be from the undisturbed one: markers in mm, HU on average."""

    mm: float
    hu: float


#: The same voxels: the same input.
EXACT = Bound(0.0, 0.0)
#: The same voxels in another order: sums in float32 differ in their last digits.
REORDERED = Bound(1e-5, 1e-3)
#: Scaled so that stored values are rounded otherwise.
ROUNDED = Bound(0.01, 0.5)
#: The same body on another voxel grid: what interpolation between voxels of 2 x 2 x 2.5 mm differs by.
REGRIDDED = Bound(0.1, 3.0)


@dataclass(frozen=True, eq=False)
class Case:
    """A copy of the sound study, for a hazard to be done to.

    Attributes:
        sound: what it is a copy of.
        root: the study's folder, one subfolder per phase.
    """

    sound: SoundStudy
    root: Path

    @property
    def series(self) -> Path:
        """The folder of the series that is hurt; readers that read one series are given this."""
        return self.root / HURT

    def path(self, index: int) -> Path:
        """A slice of the hurt series, counted from the feet."""
        return self.series / file_name(index)

    def paths(self) -> list[Path]:
        return [self.path(index) for index in range(len(self.sound.grid.positions))]

    def all_paths(self) -> list[Path]:
        """Every file of the study."""
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    def rewrite(self, grid: Grid, **elements: object) -> list[Path]:
        """The hurt series on another grid, in the place of the old one."""
        shutil.rmtree(self.series)
        return self.sound.write_phase(self.series, HURT, grid, **elements)


@dataclass(frozen=True, eq=False)
class Hazard:
    """One hazard.

    Attributes:
        key: its name.
        what: what happens, as it stands in the table.
        apply: does it to a copy of the sound study.
        ours: our outcome, `HazardOutcome.words` of `hazard_ours`: "refused: 14 slices_missing", "read: gantry_tilt".
        test: the test that holds the rule, path::name.
        bound: of the input, where it is read.
        ours_only: the other readers have nothing to do with it, and why.
        meanwhile: what happens while the study is read.
    """

    key: str
    what: str
    apply: Callable[[Case], None]
    ours: str
    test: str
    bound: Bound = EXACT
    ours_only: str = ""
    meanwhile: Callable[[Case], None] | None = None


def copy_of(sound: SoundStudy, folder: Path) -> Case:
    """A new copy of the sound study in an empty or missing folder."""
    shutil.copytree(sound.study, folder / "study")
    return Case(sound, folder / "study")


def other_uid(*parts: str) -> UID:
    """A UID that is nobody's, the same for the same parts."""
    return generate_uid(prefix=PYDICOM_ROOT_UID, entropy_srcs=["hazard", *parts])


def change(path: Path, edit: Callable[[Dataset], object]) -> None:
    """Rewrites a file after `edit` has changed its data set."""
    dataset = dcmread(path)
    edit(dataset)
    dcmwrite(path, dataset)


def change_all(paths: list[Path], edit: Callable[[Dataset], object]) -> None:
    for path in paths:
        change(path, edit)
