from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.runtime import slices
from fourphase.runtime.box import FittedBox
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.geometry import Region
from fourphase.runtime.phases import PhaseMatch
from fourphase.runtime.pipeline import PreparedStudy
from fourphase.runtime.preview import NOT_SCANNED, PAGE, preview_png
from fourphase.runtime.preview_drawing import BOX_COLOUR, GAP, MARGIN_COLOUR, TITLE, footer_lines
from fourphase.runtime.series import Series
from fourphase.runtime.study import read_study
from tests.support.dicom import write_series
from tests.support.volumes import ORIENTATIONS, grid, turned

Image: Any = pytest.importorskip("PIL.Image", reason="Pillow (extra preview) is not installed")

Pixels: TypeAlias = NDArray[np.int64]

CONFIG = PreprocessingConfig()
BALL, RADIUS_MM = np.array([14.0, -9.0, 6.0]), 5.0
BOX = Region.of(BALL - 7.5, BALL + 7.5)
SHAPE, SPACING = (48, 52, 60), (2.0, 1.5, 1.5)
HEAD_FIRST = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))


def write_ball(
    folder: Path, row: Sequence[float], column: Sequence[float], *, reverse: bool = False, **more: Any
) -> None:
    """Tissue of 40 HU with a ball of 400 HU at `BALL`; the volume's middle lies at the origin."""
    geometry = grid(SHAPE, row=row, column=column, spacing=SPACING)
    dy, dx = geometry.pixel_spacing
    k, r, c = np.meshgrid(*(np.arange(count) for count in SHAPE), indexing="ij")
    points = k[..., None] * geometry.normal * SPACING[0]
    points = points + r[..., None] * geometry.column_direction * dy + c[..., None] * geometry.row_direction * dx
    origin = -points.reshape(-1, 3).mean(axis=0)
    stored = np.where(np.linalg.norm(points + origin - BALL, axis=-1) <= RADIUS_MM, 1424, 1064).astype(np.uint16)
    step = geometry.normal * SPACING[0]
    if reverse:
        stored, origin, step = stored[::-1], origin + (SHAPE[0] - 1) * step, -step
    orientation = [float(value) for value in (*row, *column)]
    write_series(
        folder,
        stored,
        origin=origin,
        step=step.tolist(),
        ImageOrientationPatient=orientation,
        PixelSpacing=[dy, dx],
        **more,
    )


def prepared(folder: Path, phases: Sequence[str] = ("PV",), box: Region = BOX) -> PreparedStudy:
    matches = {phase: PhaseMatch(one, ()) for phase, one in zip(phases, read_study(folder).series, strict=True)}
    fitted = FittedBox(box, dict.fromkeys(phases, box), (0.0, 0.0, 0.0), "json", ())
    return PreparedStudy("1.2.3", None, matches, fitted, (), {})


def series_of(study: PreparedStudy) -> Series:
    return study.phases["PV"].series


def panels(study: PreparedStudy) -> tuple[Pixels, Pixels]:
    """The first phase's axial and coronal picture, (rows, columns, 3), cut out where the layout puts them."""
    picture = np.asarray(Image.open(io.BytesIO(preview_png(study, CONFIG))).convert("RGB")).astype(np.int64)
    low, high = bounds(study)
    across, down = (int(np.ceil(high[axis] - low[axis] - 1e-6)) for axis in (0, 1))
    along = int(np.ceil(high[2] - low[2] - 1e-6))
    left, top = GAP + (max(TITLE.least_width, across) - across) // 2, GAP + TITLE.height
    second = top + down + GAP + TITLE.height
    return picture[top : top + down, left : left + across], picture[second : second + along, left : left + across]


def bounds(study: PreparedStudy) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the panels show: the volume in plane; along z, what of it is near the box."""
    volume, box = series_of(study).geometry.bounds(), study.box.region
    low, high = np.array(volume.min), np.array(volume.max)
    middle, half = (box.min[2] + box.max[2]) / 2, box.extent_mm[2] / 2
    low[2] = min(max(low[2], middle - half - 60), middle - half - 13)
    high[2] = max(min(high[2], middle + half + 60), middle + half + 13)
    return low, high


def middle_of_ball(picture: Pixels, box: tuple[float, float, float, float]) -> NDArray[Any]:
    """(row, column) of the white pixels within the outline."""
    top, bottom, left, right = (round(value) for value in box)
    inside = picture[top + 2 : bottom - 2, left + 2 : right - 2].min(axis=-1) > 240
    assert inside.sum() > 40
    return np.asarray(np.argwhere(inside).mean(axis=0) + np.array([top + 2, left + 2]))


# ---- where things are


@pytest.mark.parametrize(
    ("row", "column", "reverse"),
    [
        (*HEAD_FIRST, False),
        (*HEAD_FIRST, True),
        ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), False),
        ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), True),
        (*CORONAL, False),
        ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), False),
        *((row, column, False) for row, column in ORIENTATIONS[::5]),
    ],
)
def test_the_ball_is_where_the_closed_form_says(
    tmp_path: Path, row: Sequence[float], column: Sequence[float], reverse: bool
) -> None:
    """Head first, feet first, slices either way, axial, coronal and sagittal acquisitions."""
    write_ball(tmp_path, row, column, reverse=reverse)
    study = prepared(tmp_path)
    low, high = bounds(study)
    axial, coronal = panels(study)
    x, y, z = BALL[0] - low[0] - 0.5, BALL[1] - low[1] - 0.5, high[2] - BALL[2] - 0.5
    found = middle_of_ball(axial, (y - 7, y + 7, x - 7, x + 7))
    np.testing.assert_allclose(found, (y, x), atol=0.8)
    # The coronal picture's uppermost row ends a whole number of pixels above its lower edge.
    found = middle_of_ball(coronal, (z - 7, z + 7, x - 7, x + 7))
    np.testing.assert_allclose(found, (z, x), atol=1.3)


def test_an_oblique_series_is_shown_upright(tmp_path: Path) -> None:
    row, column = turned(0.2, -0.1, 0.3)
    write_ball(tmp_path, row.tolist(), column.tolist())
    study = prepared(tmp_path)
    assert not series_of(study).geometry.is_axis_aligned
    low, _ = bounds(study)
    axial, _ = panels(study)
    x, y = BALL[0] - low[0] - 0.5, BALL[1] - low[1] - 0.5
    np.testing.assert_allclose(middle_of_ball(axial, (y - 7, y + 7, x - 7, x + 7)), (y, x), atol=0.8)
    assert (axial[1, 1] == NOT_SCANNED).all()


def test_the_patients_left_is_on_the_right_and_the_back_below(tmp_path: Path) -> None:
    """The ball is left of, in front of and above the volume's middle."""
    write_ball(tmp_path, *HEAD_FIRST)
    axial, coronal = panels(prepared(tmp_path))
    for picture in (axial, coronal):
        yellow = np.argwhere((picture == BOX_COLOUR).all(axis=-1)).mean(axis=0)
        assert yellow[1] > picture.shape[1] / 2
        assert yellow[0] < picture.shape[0] / 2


def test_outlines_at_the_closed_form_positions(tmp_path: Path) -> None:
    write_ball(tmp_path, *HEAD_FIRST)
    study = prepared(tmp_path)
    low, _ = bounds(study)
    axial, _ = panels(study)
    for colour, margin in ((BOX_COLOUR, 0.0), (MARGIN_COLOUR, CONFIG.margin_mm)):
        found = np.argwhere((axial == colour).all(axis=-1))
        first = [int(np.floor(BOX.min[axis] - margin - low[axis])) for axis in (1, 0)]
        last = [int(np.ceil(BOX.max[axis] + margin - low[axis])) - 1 for axis in (1, 0)]
        assert found.min(axis=0).tolist() == [max(value, 0) for value in first]
        assert found.max(axis=0).tolist() == last
        on_edge = (found == first).any(axis=1) | (found == last).any(axis=1)
        assert on_edge.all()
    solid = (axial == BOX_COLOUR).all(axis=-1)
    top, left = (int(np.floor(BOX.min[axis] - low[axis])) for axis in (1, 0))
    right = int(np.ceil(BOX.max[0] - low[0])) - 1
    assert solid[top, left : right + 1].all()


def test_grey_is_the_window(tmp_path: Path) -> None:
    """40 HU is the level: half of 255; outside the ball everything is tissue."""
    write_ball(tmp_path, *HEAD_FIRST)
    axial, _ = panels(prepared(tmp_path))
    assert axial[12, 30].tolist() == [128, 128, 128]


# ---- the whole picture


def starts(count: int) -> list[int]:
    """The left side of every panel."""
    return [GAP + index * (TITLE.least_width + GAP) for index in range(count)]


def four_phases(folder: Path) -> PreparedStudy:
    phases = ("NC", "ART", "PV", "DL")
    for number in range(2, 6):
        more: dict[str, Any] = {"SeriesInstanceUID": f"1.2.{number}", "SeriesNumber": number}
        more |= {"SeriesDescription": "MARKER text", "PatientName": "MARKER^NAME", "PatientID": "MARKER"}
        write_ball(folder / f"s{number}", *HEAD_FIRST, **more)
    return prepared(folder, phases)


def test_four_phases_deterministic_without_metadata(tmp_path: Path) -> None:
    study = four_phases(tmp_path)
    png = preview_png(study, CONFIG)
    assert png == preview_png(study, CONFIG)
    assert b"MARKER" not in png
    picture = Image.open(io.BytesIO(png))
    picture.load()
    assert picture.format == "PNG"
    assert picture.info == {}
    assert GAP * 5 + 4 * TITLE.least_width == picture.size[0]
    yellow = (np.asarray(picture) == BOX_COLOUR).all(axis=-1)
    columns = [np.flatnonzero(yellow[:, start : start + TITLE.least_width].any(axis=0)).tolist() for start in starts(4)]
    assert columns[0]
    assert columns == [columns[0]] * 4


def test_a_large_field_of_view_is_shrunk(tmp_path: Path) -> None:
    """500 mm across in four panels: at most about 1600 pixels."""
    for number in range(2, 6):
        stored = np.full((4, 64, 64), 1064, np.uint16)
        more: dict[str, Any] = {
            "SeriesInstanceUID": f"1.2.{number}",
            "SeriesNumber": number,
            "PixelSpacing": [7.8, 7.8],
        }
        write_series(tmp_path / f"s{number}", stored, origin=(-246, -246, -6), step=(0, 0, 4), **more)
    study = prepared(tmp_path, ("NC", "ART", "PV", "DL"), Region((-20, -20, -5), (20, 20, 5)))
    width, height = Image.open(io.BytesIO(preview_png(study, CONFIG))).size
    assert 1500 < width <= 1640
    assert height < 700


def test_an_absurd_volume_makes_no_absurd_picture(tmp_path: Path) -> None:
    stored = np.full((3, 500, 8), 1064, np.uint16)
    write_series(tmp_path, stored, origin=(0, 0, 0), step=(0, 0, 1000), PixelSpacing=[900, 1])
    study = prepared(tmp_path, box=Region((1, 1000, 100), (6, 1200, 400)))
    width, height = Image.open(io.BytesIO(preview_png(study, CONFIG))).size
    assert max(width, height) <= 1700


def test_boxes_per_phase_lie_at_the_same_pixel(tmp_path: Path) -> None:
    """Each panel is centred on its phase's box, so that tables at other positions do not matter."""
    study = four_phases(tmp_path)
    other = Region.of(np.array(BOX.min) - 10, np.array(BOX.max) - 10)
    boxes = FittedBox(BOX, {**study.box.by_phase, "DL": other}, (0.0, 0.0, 0.0), "json", ())
    png = preview_png(PreparedStudy("1", None, study.phases, boxes, (), {}), CONFIG)
    picture = np.asarray(Image.open(io.BytesIO(png)))
    yellow = (picture == BOX_COLOUR).all(axis=-1)
    rows = [np.flatnonzero(yellow[:, start : start + TITLE.least_width].any(axis=1)).tolist() for start in starts(4)]
    assert rows[0] == rows[3]
    assert (picture == NOT_SCANNED).all(axis=-1).any()


# ---- what can go wrong


def test_an_unreadable_slice_is_said_in_its_panel(tmp_path: Path) -> None:
    write_ball(tmp_path, *HEAD_FIRST)
    study = prepared(tmp_path)
    good_axial, good_coronal = panels(study)
    depths = series_of(study).geometry.depths
    far = series_of(study).slices[int(np.argmin(np.abs(depths - (BALL[2] - 30))))]
    far.path.write_bytes(far.path.read_bytes()[:-100])
    axial, coronal = panels(study)
    assert (axial == good_axial).all()
    assert (good_coronal[20, 8] == 128).all()
    assert (coronal[20, 8] == 0).all()
    assert (coronal == BOX_COLOUR).all(axis=-1).any()


def test_compressed_series_are_decoded_sparingly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture says so, and the ball stays where it is."""
    write_ball(tmp_path, *HEAD_FIRST)
    study = prepared(tmp_path)
    before = preview_png(study, CONFIG)
    monkeypatch.setattr(slices, "NATIVE_SLICES", 12)
    assert preview_png(study, CONFIG) != before
    low, high = bounds(study)
    _, coronal = panels(study)
    x, z = BALL[0] - low[0] - 0.5, high[2] - BALL[2] - 0.5
    assert coronal[round(z), round(x)].min() > 128


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`console.run_app` makes EnvironmentFault (24) of it."""
    write_ball(tmp_path, *HEAD_FIRST)
    study = prepared(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        preview_png(study, CONFIG)
    assert (caught.value.name or "").split(".")[0] == "PIL"


def test_the_footer_wraps() -> None:
    parts = ["window 40/400 HU", "solid: lesion box", "not for diagnosis"]
    assert len(footer_lines(parts, 2000)) == 1
    assert [line.text for line in footer_lines(parts, 10)] == parts


def test_the_page_is_no_colour_of_the_pictures() -> None:
    assert len({PAGE, NOT_SCANNED, BOX_COLOUR, MARGIN_COLOUR}) == 4
