"""The sound study that hazards are done to: a small four-phase phantom with bright markers at known places, no noise.

HU are a closed form of place and phase, so a series can be written on any grid, and whatever a reader makes of it can
be compared with the truth. Beside the body lies air. What is done to the study is said in `hazard_geometry`,
`_identity`, `_pixels`, `_files` and `_arrivals`.

    FOLDER/study/<phase>/<file>   CT Image Storage, Explicit VR Little Endian
    FOLDER/box.json               the lesion box, LPS mm
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from fourphase.benchmarks.phantoms.dicom_writer import base_dataset, decimal, fill, save, set_pixels
from fourphase.benchmarks.phantoms.phantom import AIR_HU, PHASES, Phantom, make_phantom
from fourphase.benchmarks.phantoms.phantom_headers import StudyHeader, make_header
from fourphase.benchmarks.phantoms.scan import make_scans
from fourphase.runtime.geometry import Region

__all__ = [
    "HURT",
    "INNER_MARKERS",
    "INTERCEPT",
    "MARKERS",
    "MARKER_HU",
    "PHASES",
    "Grid",
    "SoundStudy",
    "file_name",
    "make_sound",
    "steps",
]

Float = NDArray[np.float64]

#: The phase whose series the hazards are done to, unless they concern the whole study.
HURT = "PV"
INTERCEPT = -1024
#: HU that only markers have: what lies above, weighted by how much, gives a marker's place.
MARKER_HU = 400.0
_MARKER_PEAK, _MARKER_SIGMA_MM = 800.0, 3.0
#: From the box's centre, LPS mm: four within box and margin, two outside; in the plane at least 18 mm apart.
_MARKERS = ((9, 9, -12), (-12, 10, -4), (10, -10, 6), (-12, -10, 13), (-30, 0, 26), (-31, 18, -26))
INNER_MARKERS, MARKERS = 4, len(_MARKERS)
#: The body ends this far to the left of the box: within the margin, so that the network's input shows some air.
_BODY_END_MM, _SKIN_MM = 1.0, 4.0
_SLICES, _ROWS, _COLUMNS = 28, 48, 48
_SPACING, _STEP_MM = (2.0, 2.0), 2.5
#: A phantom whose header is in English, with unsigned pixels, and whose lesion is small.
_KIND, _SEED = "HCC", 2


@dataclass(frozen=True, eq=False)
class Grid:
    """Where a series' voxels are, LPS mm.

    Attributes:
        positions: centre of every slice's first voxel, float64 (slices, 3).
        orientation: ImageOrientationPatient, float64 (6,).
        spacing: (dy, dx) as PixelSpacing has them.
        shape: (rows, columns).
    """

    positions: Float
    orientation: Float
    spacing: tuple[float, float] = _SPACING
    shape: tuple[int, int] = (_ROWS, _COLUMNS)

    def points(self, index: int) -> Float:
        """Voxel centres of a slice, float64 (rows, columns, 3)."""
        row, column = self.orientation[:3], self.orientation[3:]
        y, x = np.mgrid[: self.shape[0], : self.shape[1]][..., None]
        moved = x * self.spacing[1] * row + y * self.spacing[0] * column
        return np.asarray(self.positions[index] + moved, dtype=np.float64)

    @classmethod
    def around(
        cls,
        centre: Float,
        orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
        spacing: tuple[float, float] = _SPACING,
        shape: tuple[int, int] = (_ROWS, _COLUMNS),
        *,
        offsets: Sequence[float] | None = None,
        shear: float = 0.0,
    ) -> Grid:
        """Slices around a point.

        Args:
            offsets: of the slices along the normal, mm; default 28 of them, 2.5 mm apart.
            shear: mm along the columns per mm along the normal, as a tilted gantry gives.
        """
        directions = np.array(orientation, dtype=np.float64)
        row, column = directions[:3], directions[3:]
        if offsets is None:
            offsets = steps(_SLICES, _STEP_MM)
        corner = centre - row * spacing[1] * (shape[1] - 1) / 2 - column * spacing[0] * (shape[0] - 1) / 2
        positions = corner + np.array(offsets)[:, None] * (np.cross(row, column) + shear * column)
        return cls(np.round(positions, 6), directions, spacing, shape)


@dataclass(frozen=True, eq=False)
class SoundStudy:
    """The study before anything is done to it.

    Attributes:
        folder: where it is written.
        phantom: without noise and breathing.
        header: what its files say of themselves.
        box: of the lesion, without margin.
    """

    folder: Path
    phantom: Phantom
    header: StudyHeader
    box: Region

    @property
    def study(self) -> Path:
        return self.folder / "study"

    @property
    def box_file(self) -> Path:
        return self.folder / "box.json"

    @cached_property
    def centre(self) -> Float:
        return np.asarray(np.round((np.array(self.box.min) + np.array(self.box.max)) / 2))

    @property
    def markers(self) -> Float:
        """Centres of the markers, float64 (n, 3); the first INNER_MARKERS lie within box and margin."""
        return np.asarray(self.centre + np.array(_MARKERS), dtype=np.float64)

    @property
    def body_end(self) -> float:
        """Beyond this x there is air."""
        return float(self.box.max[0]) + _BODY_END_MM

    @property
    def grid(self) -> Grid:
        return Grid.around(self.centre)

    def hu(self, phase: str, points: Float) -> Float:
        """HU at points (..., 3)."""
        x, y, z = np.moveaxis(points, -1, 0)
        values = self.phantom.hu(phase, x, y, z).astype(np.float64)
        for marker in self.markers:
            distance = ((points - marker) ** 2).sum(axis=-1)
            values += _MARKER_PEAK * np.exp(-distance / (2 * _MARKER_SIGMA_MM**2))
        air = np.clip((x - self.body_end) / _SKIN_MM, 0, 1)
        return np.asarray(values * (1 - air) + AIR_HU * air, dtype=np.float64)

    def dataset(self, phase: str, grid: Grid, index: int, **elements: Any) -> Dataset:
        """One slice; `elements` replace what it says of itself (by keyword; None takes one away)."""
        series = self.header.series[phase]
        image = base_dataset(self.header, series)
        usual: dict[str, Any] = {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": self.header.instance_uid(series, index),
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "SliceThickness": "2.5",
            "KVP": "120",
            "ConvolutionKernel": self.header.kernel,
            "PatientPosition": "HFS",
            "FrameOfReferenceUID": self.header.frame_of_reference_uid,
            "PositionReferenceIndicator": "",
            "InstanceNumber": index + 1,
            "ImagePositionPatient": [decimal(value) for value in grid.positions[index]],
            "ImageOrientationPatient": [decimal(value) for value in grid.orientation],
            "PixelSpacing": [decimal(value) for value in grid.spacing],
            "RescaleIntercept": str(INTERCEPT),
            "RescaleSlope": "1",
            "RescaleType": "HU",
        }
        if phase != "NC":
            usual |= {"ContrastBolusAgent": self.header.agent, "ContrastBolusStartTime": self.header.bolus_time}
        merged = {**usual, **elements}
        fill(image, {keyword: value for keyword, value in merged.items() if value is not None})
        hu = np.clip(np.rint(self.hu(phase, grid.points(index))), -1024, 3071)
        set_pixels(image, (hu - INTERCEPT).astype(np.uint16))
        return image

    def write_phase(self, folder: Path, phase: str, grid: Grid, **elements: Any) -> list[Path]:
        """Writes a series, one file per slice; returns the files in the order of the slices."""
        paths = [folder / file_name(index) for index in range(len(grid.positions))]
        for index, path in enumerate(paths):
            save(path, self.dataset(phase, grid, index, **elements))
        return paths


def steps(count: int, step_mm: float) -> list[float]:
    """Offsets of slices around their middle, mm."""
    return [step_mm * (index - (count - 1) / 2) for index in range(count)]


def file_name(index: int) -> str:
    """Says nothing of the order."""
    return f"IM{(index * 37 + 11) % 101:04d}"


def make_sound(folder: Path) -> SoundStudy:
    """Writes the sound study into a folder; the same bytes whenever it is made."""
    phantom = make_phantom(_KIND, _SEED)
    still = (0.0, 0.0, 0.0)
    phantom = replace(phantom, shifts=(still, still, still, still), noise_hu=0.0)
    header = make_header(phantom, make_scans(phantom, 64, 20)[HURT])
    bounds = phantom.lesion_bounds
    study = SoundStudy(folder, phantom, header, Region.of(np.round(bounds.min), np.round(bounds.max)))
    for phase in PHASES:
        study.write_phase(study.study / phase, phase, study.grid)
    content = {
        "space": "LPS_mm",
        "min": list(study.box.min),
        "max": list(study.box.max),
        "frame_of_reference_uid": str(header.frame_of_reference_uid),
    }
    study.box_file.write_text(json.dumps(content), encoding="utf-8")
    return study
