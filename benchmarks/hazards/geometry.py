"""Hazards of place: where slices lie, how they are turned, and which are there."""

from __future__ import annotations

from functools import partial

import numpy as np
from pydicom.dataset import Dataset

from fourphase.benchmarks.hazards.hazard import FAR, MIDDLE, REGRIDDED, REORDERED, Case, Hazard, change
from fourphase.benchmarks.hazards.study import HURT, Grid, steps
from fourphase.benchmarks.phantoms.dicom_writer import save

__all__ = ["GEOMETRY"]

STUDY, BOX = "tests/runtime/test_study.py::", "tests/runtime/test_box.py::"
#: Slices lost on the way within the box.
_LOST = 6
_TILT_DEGREES, _OBLIQUE_DEGREES = 15.0, 20.0


def _missing(case: Case) -> None:
    for index in range(MIDDLE - _LOST // 2, MIDDLE + _LOST // 2):
        case.path(index).unlink()


def _missing_outside(case: Case) -> None:
    for index in (FAR - 1, FAR):
        case.path(index).unlink()


def _variable(case: Case) -> None:
    """From the middle on twice the distance: two scans in one series."""
    offsets = steps(28, 2.5)
    case.rewrite(Grid.around(case.sound.centre, offsets=[*offsets[:14], *offsets[15::2]]))


def _overlapping(case: Case) -> None:
    case.rewrite(Grid.around(case.sound.centre, offsets=steps(56, 1.25)))


def _tilt(case: Case) -> None:
    shear = float(np.tan(np.radians(_TILT_DEGREES)))
    case.rewrite(Grid.around(case.sound.centre, shape=(64, 48), shear=shear), GantryDetectorTilt=str(_TILT_DEGREES))


def _oblique(case: Case) -> None:
    angle = np.radians(_OBLIQUE_DEGREES)
    turned = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))
    case.rewrite(Grid.around(case.sound.centre, turned, shape=(64, 48), offsets=steps(36, 2.5)))


def _coronal(case: Case) -> None:
    case.rewrite(Grid.around(case.sound.centre, (1, 0, 0, 0, 0, -1), offsets=steps(36, 2.5)))


def _feet_first(case: Case) -> None:
    case.rewrite(Grid.around(case.sound.centre, (-1, 0, 0, 0, 1, 0)), PatientPosition="FFS")


def _non_square(case: Case) -> None:
    case.rewrite(Grid.around(case.sound.centre, spacing=(1.5, 2.0), shape=(64, 48)))


def _set(dataset: Dataset, keyword: str, value: object) -> None:
    setattr(dataset, keyword, value)


def _reversed(case: Case) -> None:
    for number, path in enumerate(reversed(case.paths()), 1):
        change(path, partial(_set, keyword="InstanceNumber", value=number))


def _one_slice(case: Case, grid: Grid) -> None:
    """The middle slice is scanned, and says so, as on another grid."""
    save(case.path(MIDDLE), case.sound.dataset(HURT, grid, MIDDLE))


def _spacing(case: Case) -> None:
    grid = case.sound.grid
    _one_slice(case, Grid(grid.positions, grid.orientation, (2.6, 2.6)))


def _orientation(case: Case) -> None:
    turned = (0.9848078, 0.1736482, 0, -0.1736482, 0.9848078, 0)
    _one_slice(case, Grid.around(case.sound.centre, turned))


def _displaced(case: Case) -> None:
    _one_slice(case, Grid.around(np.add(case.sound.centre, (8, 0, 0))))


GEOMETRY = (
    Hazard(
        "missing_inside",
        "6 slices missing within the lesion box",
        _missing,
        "refused: 14 slices_missing",
        BOX + "test_a_missing_slice_is_14_only_where_it_is_needed",
    ),
    Hazard(
        "missing_outside",
        "2 slices missing away from the lesion",
        _missing_outside,
        "read: slices_missing_elsewhere",
        BOX + "test_a_missing_slice_is_14_only_where_it_is_needed",
    ),
    Hazard(
        "variable_spacing",
        "slice distance doubles half way",
        _variable,
        "refused: 14 slices_missing",
        BOX + "test_a_missing_slice_is_14_only_where_it_is_needed",
    ),
    Hazard(
        "overlapping",
        "slices overlap by half (thickness 2.5 mm, distance 1.25 mm)",
        _overlapping,
        "read",
        BOX + "test_no_gap_no_notice",
        REGRIDDED,
    ),
    Hazard(
        "gantry_tilt",
        "gantry tilt of 15 degrees",
        _tilt,
        "read: gantry_tilt",
        STUDY + "test_tilt_is_told",
        REGRIDDED,
    ),
    Hazard(
        "oblique",
        "oblique acquisition, turned by 20 degrees",
        _oblique,
        "read",
        STUDY + "test_every_orientation_puts_voxels_where_they_were_scanned",
        REGRIDDED,
    ),
    Hazard(
        "coronal",
        "coronal acquisition",
        _coronal,
        "read",
        STUDY + "test_every_orientation_puts_voxels_where_they_were_scanned",
        REGRIDDED,
    ),
    Hazard(
        "feet_first",
        "feet first: rows run from left to right",
        _feet_first,
        "read",
        STUDY + "test_every_orientation_puts_voxels_where_they_were_scanned",
        REORDERED,
    ),
    Hazard(
        "non_square",
        "pixels of 1.5 x 2 mm",
        _non_square,
        "read",
        STUDY + "test_pixel_spacing_is_row_spacing_first",
        REGRIDDED,
    ),
    Hazard(
        "instance_number_reversed",
        "InstanceNumber runs the other way",
        _reversed,
        "read",
        STUDY + "test_sorted_by_position_not_by_number",
    ),
    Hazard(
        "pixel_spacing_differs",
        "one slice with another PixelSpacing",
        _spacing,
        "refused: 14 mixed_pixel_spacing",
        STUDY + "test_faults_stay_on_the_series",
    ),
    Hazard(
        "orientation_differs",
        "one slice turned by 10 degrees",
        _orientation,
        "refused: 14 mixed_orientation",
        STUDY + "test_faults_stay_on_the_series",
    ),
    Hazard(
        "slice_displaced",
        "one slice 8 mm to the side",
        _displaced,
        "refused: 14 slice_displaced",
        STUDY + "test_a_displaced_slice_is_refused_wherever_it_lies",
    ),
)
