from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import JPEGLSLossless

from fourphase.runtime import breathing, pixels, slices
from fourphase.runtime.box import FittedBox
from fourphase.runtime.breathing import BreathingShift, estimate_shifts
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import GeometryRefused, PixelDataError
from fourphase.runtime.geometry import Region
from fourphase.runtime.pixels import Hounsfield
from fourphase.runtime.preprocess import VoxelWindow
from fourphase.runtime.series import Series
from fourphase.runtime.slices import SampledRegion
from fourphase.runtime.study import read_study
from fourphase.runtime.translation import EdgeField, best_translation, edge_field, make_template
from tests.support.dicom import DESCRIPTIONS, stored_values, write_phases, write_series
from tests.support.moving_volumes import LESION_MM, moving_body, write_moving_phases

CONFIG = PreprocessingConfig()
PHASES = tuple(DESCRIPTIONS)
BOX = Region((-LESION_MM,) * 3, (LESION_MM,) * 3)
TOLERANCE_MM = 1.5


def found(folder: Path, phases: tuple[str, ...] = PHASES) -> dict[str, Series]:
    return dict(zip(phases, read_study(folder).series, strict=True))


def one_box(region: Region = BOX, phases: tuple[str, ...] = PHASES) -> FittedBox:
    return FittedBox(region, dict.fromkeys(phases, region), (0.0, 0.0, 0.0), "json", ())


def estimated(folder: Path, box: FittedBox | None = None, phases: tuple[str, ...] = PHASES) -> BreathingShift:
    return estimate_shifts(found(folder, phases), box or one_box(phases=phases), CONFIG)


def assert_near(shift: Any, expected: Any, tolerance_mm: float = TOLERANCE_MM) -> None:
    assert shift is not None
    np.testing.assert_allclose(np.asarray(shift, float), np.asarray(expected, float), atol=tolerance_mm)


def moved(series: Series, by: Any) -> Series:
    """As if the table had told another position: every ImagePositionPatient plus an offset."""
    positions = series.geometry.positions + np.asarray(by, float)
    return dataclasses.replace(series, grid=dataclasses.replace(series.geometry, positions=positions))


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Series]:
    """Four phases without breathing, with CT noise and different slice distances."""
    folder = tmp_path_factory.mktemp("still")
    write_moving_phases(folder, {}, thickness={"NC": 5.0, "ART": 2.0, "DL": 1.25})
    return found(folder)


# ---- shifts that are there


@pytest.mark.parametrize("z", [4.0, -18.3, 25.0])
def test_the_liver_moves_and_the_wall_does_not(tmp_path: Path, z: float) -> None:
    """What breathing looks like: ribs, muscle and fat stay; contrast differs in every phase."""
    truth = {"NC": (0, 0, z), "ART": (2.0, -3.0, -z / 2), "DL": (-1.0, 4.0, z / 3)}
    write_moving_phases(tmp_path, truth)
    result = estimated(tmp_path)
    assert result.reference == "PV"
    assert result.shift_mm["PV"] == (0.0, 0.0, 0.0)
    for phase, shift in truth.items():
        assert_near(result.shift_mm[phase], shift, TOLERANCE_MM)
    told = {phase for phase in truth for notice in result.warnings if f"phase {phase} " in notice.message}
    length = {phase: float(np.linalg.norm(shift)) for phase, shift in truth.items()}
    assert {phase for phase in truth if length[phase] > 5 + TOLERANCE_MM} <= told
    assert not {phase for phase in truth if length[phase] < 5 - TOLERANCE_MM} & told
    assert {notice.key for notice in result.warnings} <= {"breathing_shift"}


@settings(max_examples=15, derandomize=True)
@given(st.tuples(st.floats(-12, 12), st.floats(-12, 12), st.floats(-26, 26)), st.sampled_from(["NC", "ART", "DL"]))
def test_any_offset_of_a_series_is_recovered(
    still: dict[str, Series], by: tuple[float, float, float], phase: str
) -> None:
    result = estimate_shifts({**still, phase: moved(still[phase], by)}, one_box(), CONFIG)
    assert_near(result.shift_mm[phase], by, TOLERANCE_MM)


def test_no_shift_no_warning(still: dict[str, Series]) -> None:
    result = estimate_shifts(still, one_box(), CONFIG)
    for shift in result.shift_mm.values():
        assert_near(shift, (0, 0, 0), 1.0)
    assert result.warnings == ()
    assert result.unreliable == {}
    assert all(score is not None and score > 0.5 for score in result.score.values())


def test_the_first_phase_is_the_reference_without_pv(still: dict[str, Series]) -> None:
    some = {phase: still[phase] for phase in ("ART", "DL")}
    result = estimate_shifts({**some, "DL": moved(some["DL"], (0, 0, 9))}, one_box(), CONFIG)
    assert result.reference == "ART"
    assert_near(result.shift_mm["DL"], (0, 0, 9), TOLERANCE_MM)


def test_boxes_per_phase_leave_the_residual(still: dict[str, Series]) -> None:
    """The box of ART was drawn 10 mm higher, its tissue lies 12 mm higher: 2 mm remain, and no warning."""
    raised = Region((BOX.min[0], BOX.min[1], BOX.min[2] + 10), (BOX.max[0], BOX.max[1], BOX.max[2] + 10))
    boxes = FittedBox(BOX, {**dict.fromkeys(PHASES, BOX), "ART": raised}, (0.0, 0.0, 0.0), "json", ())
    result = estimate_shifts({**still, "ART": moved(still["ART"], (0, 0, 12))}, boxes, CONFIG)
    assert_near(result.shift_mm["ART"], (0, 0, 2), TOLERANCE_MM)
    assert result.warnings == ()


def test_the_section_and_the_warning_name_phase_and_millimetres(still: dict[str, Series]) -> None:
    result = estimate_shifts({**still, "DL": moved(still["DL"], (0, 0, 12))}, one_box(), CONFIG)
    section = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert section["reference"] == "PV"
    assert list(section["shift_mm"]) == list(PHASES)
    assert abs(section["shift_mm"]["DL"][2] - 12) < TOLERANCE_MM
    (warning,) = result.warnings
    assert warning.key == "breathing_shift"
    assert "phase DL lies 12 mm away from PV" in warning.message


# ---- other scans


@pytest.mark.parametrize("degrees", [4.0, 20.0])
def test_oblique_series_take_the_general_path(still: dict[str, Series], degrees: float) -> None:
    """All phases turned about x, the box at their centre: the shift turns with them."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])

    def turned(series: Series) -> Series:
        geometry = series.geometry
        return dataclasses.replace(
            series,
            grid=dataclasses.replace(
                geometry,
                positions=geometry.positions @ rotation.T,
                row_direction=rotation @ geometry.row_direction,
                column_direction=rotation @ geometry.column_direction,
            ),
        )

    rotated = {phase: turned(still[phase]) for phase in ("ART", "PV")}
    assert not rotated["PV"].geometry.is_axis_aligned
    result = estimate_shifts({**rotated, "ART": moved(rotated["ART"], (0, 3, 9))}, one_box(), CONFIG)
    assert_near(result.shift_mm["ART"], (0, 3, 9), TOLERANCE_MM)


def test_a_phase_that_ends_near_the_lesion(still: dict[str, Series]) -> None:
    """20 mm above the box ART stops: the scan's end is no edge of the body."""
    art = moved(still["ART"], (0, 0, 7))
    keep = art.geometry.positions[:, 2] < BOX.max[2] + 20
    cut = dataclasses.replace(
        art,
        slices=tuple(header for header, kept in zip(art.slices, keep, strict=True) if kept),
        grid=dataclasses.replace(art.geometry, positions=art.geometry.positions[keep]),
    )
    result = estimate_shifts({"PV": still["PV"], "ART": cut}, one_box(), CONFIG)
    assert_near(result.shift_mm["ART"], (0, 0, 7), TOLERANCE_MM)


def test_compressed_slices_are_decoded_sparingly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = {"ART": (0.0, 0.0, 11.0)}
    write_moving_phases(tmp_path, truth, phases=("ART", "PV"), thickness={"ART": 2.0, "PV": 2.0})
    read: list[int] = []
    count_reads(monkeypatch, read)
    series = {
        phase: dataclasses.replace(
            one,
            slices=tuple(
                dataclasses.replace(
                    header, pixels=dataclasses.replace(header.pixels, transfer_syntax=str(JPEGLSLossless))
                )
                for header in one.slices
            ),
        )
        for phase, one in found(tmp_path, ("ART", "PV")).items()
    }
    result = estimate_shifts(series, one_box(phases=("ART", "PV")), CONFIG)
    assert max(read) <= slices.COMPRESSED_SLICES
    assert_near(result.shift_mm["ART"], truth["ART"], 2.0)


def count_reads(monkeypatch: pytest.MonkeyPatch, read: list[int]) -> None:
    """Counts slices, and reads them as uncompressed, which they are."""
    original = pixels.read_hu

    def counting(series: Series, window: VoxelWindow) -> Hounsfield:
        read.append(window.shape[0])
        native = "1.2.840.10008.1.2.1"
        headers = tuple(
            dataclasses.replace(header, pixels=dataclasses.replace(header.pixels, transfer_syntax=native))
            for header in series.slices
        )
        return original(dataclasses.replace(series, slices=headers), window)

    monkeypatch.setattr(slices, "read_hu", counting)


# ---- nothing to go by


def noise_only(folder: Path) -> None:
    voxels = (40, 60, 60)
    for number, phase in enumerate(PHASES, 2):
        description, seconds = DESCRIPTIONS[phase]
        elements: dict[str, Any] = {
            "SeriesInstanceUID": f"1.2.{number}",
            "SeriesNumber": number,
            "SeriesDescription": description,
            "AcquisitionTime": f"10{15 + seconds // 60:02d}{seconds % 60:02d}",
            "PixelSpacing": [3, 3],
        }
        origin = (-90, -90, -60)
        write_series(folder / phase, stored_values(voxels, number), origin=origin, step=(0, 0, 3), **elements)


def flat(folder: Path) -> None:
    write_phases(folder, PatientID="")
    for path in folder.rglob("IM*"):
        raw = path.read_bytes()
        path.write_bytes(raw[:-512] + b"\x32\x04" * 256)


@pytest.mark.parametrize("make", [noise_only, flat, write_phases])
def test_noise_and_flat_tissue_are_unreliable_without_a_warning(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path)
    region = Region((-5, -5, 4), (5, 5, 14)) if make is not noise_only else BOX
    result = estimated(tmp_path, one_box(region))
    assert set(result.unreliable) == {"NC", "ART", "DL"}
    assert all(result.shift_mm[phase] is None for phase in result.unreliable)
    assert result.warnings == ()
    assert json.loads(json.dumps(result.to_dict()))["unreliable"]["NC"]


@pytest.mark.parametrize("by", [(0, 0, 32), (0, 20, 0), (0, 0, 55)])
def test_a_shift_beyond_the_search_is_no_number(still: dict[str, Series], by: tuple[int, int, int]) -> None:
    result = estimate_shifts({"PV": still["PV"], "NC": moved(still["NC"], by)}, one_box(), CONFIG)
    assert result.shift_mm["NC"] is None
    if max(by) < 40:
        assert result.unreliable["NC"] == "the shift is beyond what is searched"
    assert result.warnings == ()


def rings(period_mm: float, shift_mm: float) -> NDArray[np.float32]:
    """A tube along z with rings around it, HU on a grid of 3 mm."""
    axis = np.arange(-24, 24) * 3.0
    x, y, z = axis, axis[:, None], np.arange(-32, 32)[:, None, None] * 3.0
    radius = 24 + 6 * np.sin(2 * np.pi * (z - shift_mm) / period_mm)
    return np.asarray(20 + 100 * np.clip((radius - np.hypot(x, y)) / 3 + 0.5, 0, 1), np.float32)


@pytest.mark.parametrize("period_mm", [18.0, 24.0, 1e6])
def test_what_looks_the_same_elsewhere_is_no_number(monkeypatch: pytest.MonkeyPatch, period_mm: float) -> None:
    """Rings every few millimetres, or a plain tube: x and y can be told, z cannot."""
    noise = np.random.default_rng(0).normal(0, 1, (2, 64, 48, 48)).astype(np.float32)
    volumes = iter([rings(period_mm, 5) + noise[0], rings(period_mm, 0) + noise[1]])
    monkeypatch.setattr(breathing, "sample_region", lambda *_, **__: SampledRegion(next(volumes), 1))
    anything: Any = object()
    result = estimate_shifts({"ART": anything, "PV": anything}, one_box(phases=("ART", "PV")), CONFIG)
    assert set(result.unreliable) == {"ART"}
    if period_mm < 100:
        assert result.unreliable["ART"] == "several shifts fit equally well"


# ---- faults


def test_a_damaged_slice_beside_the_lesion_stops_nothing_and_is_named(tmp_path: Path) -> None:
    some = ("ART", "PV", "DL")
    write_moving_phases(tmp_path, {"DL": (0, 0, 8.0)}, phases=some)
    series = found(tmp_path, some)
    far = series["ART"].slices[int(np.argmin(np.abs(series["ART"].geometry.depths - 50)))]
    far.path.write_bytes(far.path.read_bytes()[:-2000])
    result = estimate_shifts(series, one_box(), CONFIG)
    assert result.shift_mm["ART"] is None
    assert_near(result.shift_mm["DL"], (0, 0, 8), TOLERANCE_MM)
    unread = [notice for notice in result.warnings if notice.key == "breathing_unread"]
    assert len(unread) == 1
    assert "phase ART" in unread[0].message
    assert "pixel_data" in unread[0].message
    assert far.path.name not in unread[0].message


@pytest.mark.parametrize("fault", [PixelDataError("a", "b", key="pixel_limits"), GeometryRefused("a", "b")])
def test_without_the_reference_nothing_is_known(
    still: dict[str, Series], monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    original = slices.sample_region

    def failing(series: Series, *args: Any, **options: Any) -> Any:
        if series is still["PV"]:
            raise fault
        return original(series, *args, **options)

    monkeypatch.setattr(breathing, "sample_region", failing)
    result = estimate_shifts(still, one_box(), CONFIG)
    assert set(result.unreliable) == {"NC", "ART", "DL"}
    assert [notice.key for notice in result.warnings] == ["breathing_unread"]


@pytest.mark.parametrize("extent", [(2.0, 2.0, 2.0), (150.0, 100.0, 120.0), (300.0, 300.0, 300.0)])
def test_small_and_huge_boxes(still: dict[str, Series], extent: tuple[float, float, float]) -> None:
    half = np.array(extent) / 2
    result = estimate_shifts(
        {"PV": still["PV"], "ART": moved(still["ART"], (0, 0, 10))}, one_box(Region.of(-half, half)), CONFIG
    )
    shift = result.shift_mm["ART"]
    if shift is not None:
        assert_near(shift, (0, 0, 10), 2.0)
    assert shift is not None or result.unreliable["ART"]


# ---- the comparison itself


@settings(max_examples=30, derandomize=True)
@given(st.tuples(st.integers(-4, 4), st.integers(-3, 3), st.integers(-2, 2)), st.booleans())
def test_whole_voxels_are_exact_also_with_bright_and_dark_swapped(by: tuple[int, int, int], swapped: bool) -> None:
    """A volume rolled by whole voxels, and its negative (what enhancement does to an edge)."""
    axis = np.arange(-16, 16) * 4.0
    hu = moving_body("PV", axis, axis[:, None], axis[:, None, None]).astype(np.float32)
    hu = np.clip(hu, -100, 250)
    other = np.roll(hu, by, axis=(0, 1, 2))
    other = 150 - other if swapped else other
    nowhere = np.zeros(hu.shape, bool)
    field = edge_field(hu, nowhere, 4.0)
    template = make_template(field, np.ones(field.valid.shape, bool), (6, 6, 6))
    assert template is not None
    match = best_translation(template, edge_field(other, nowhere, 4.0), 2.0)
    assert match is not None
    np.testing.assert_allclose(match.shift, by, atol=0.35)
    assert match.score > 0.95


def test_parts_of_a_voxel() -> None:
    """The body as a formula, sampled at 4 mm: the largest error of three axes, over forty displacements.

    Measured: median 0.19 mm, largest 0.80 mm; without refinement between voxels 1.59 and 2.30 mm. There are worse
    displacements: (2, 1, 2) mm, half a voxel along two axes, is found 1.31 mm off.
    """
    axis = np.arange(-16, 16) * 4.0

    def field_of(shift: tuple[float, ...]) -> EdgeField:
        body = moving_body("PV", axis, axis[:, None], axis[:, None, None], shift, wall_moves=True)
        return edge_field(body.astype(np.float32), np.zeros(body.shape, bool), 4.0)

    still = field_of((0.0, 0.0, 0.0))
    template = make_template(still, np.ones(still.valid.shape, bool), (4, 4, 4))
    assert template is not None
    errors = []
    for by in np.random.default_rng(1).uniform(-6, 6, (40, 3)):
        match = best_translation(template, field_of(tuple(by)), 2.0)
        assert match is not None
        errors.append(np.abs(np.array(match.shift) * 4 - by[::-1]).max())
    assert np.median(errors) < 0.3
    assert max(errors) < 1.25


def test_what_was_not_scanned_has_no_edges() -> None:
    """Whatever stands there, and as far as smoothing and gradient reach."""
    hu = np.random.default_rng(0).normal(60, 40, (14, 14, 14)).astype(np.float32)
    outside = np.zeros(hu.shape, bool)
    outside[9:] = True
    fields = [edge_field(np.where(outside, np.float32(value), hu), outside, 3.0) for value in (-1e5, 200)]
    np.testing.assert_array_equal(fields[0].tensor, fields[1].tensor)
    assert fields[0].valid.any(axis=(1, 2)).tolist() == [True] * 5 + [False] * 5
    assert not fields[0].tensor[:, 5:].any()
    assert fields[0].tensor[:, :5].any()


def test_the_same_input_gives_the_same_numbers(still: dict[str, Series]) -> None:
    first, second = (estimate_shifts(still, one_box(), CONFIG) for _ in range(2))
    assert (first.shift_mm, first.score) == (second.shift_mm, second.score)
