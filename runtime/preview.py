"""A prepared study -> one PNG that lets a person see at a glance whether phases and lesion box are right.

Above, the axial slice through the middle of the box, as radiologists look at it (patient's right on the left, back
below); beneath, the coronal one (head above). Values come through the sampling the network's input comes through.
Nothing of the header but the series' number is shown or written, and the picture is not for diagnosis.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import FourphaseError
from fourphase.runtime.geometry import Region
from fourphase.runtime.phases import PhaseMatch
from fourphase.runtime.preview_drawing import CORONAL_MARKS, GAP, TITLE, Panel, draw_panel, footer_lines, line_height
from fourphase.runtime.slices import OUTSIDE_HU, RegionGrid, sample_region

if TYPE_CHECKING:
    from fourphase.runtime.pipeline import PreparedStudy

__all__ = ["preview_png"]

Float: TypeAlias = NDArray[np.float64]

SPACING_MM = 1.0
MOST_WIDTH, MOST_HEIGHT = 1600, 1400
#: The coronal picture shows this much above and below the box.
AROUND_BOX_MM = 60.0
#: Left free around the dashed outline.
EDGE_MM = 3.0
WINDOW_LEVEL, WINDOW_WIDTH = 40.0, 400.0
#: What was not scanned, so that it is not taken for air.
NOT_SCANNED = (20, 30, 64)
#: Between the panels.
PAGE = (38, 38, 38)


@dataclass(frozen=True)
class _View:
    """What all panels show, relative to each phase's box centre: so the box has the same place in every panel.

    Attributes:
        low, high: (x, y, z) mm from the centre.
        spacing_mm: per pixel.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    spacing_mm: float

    @property
    def counts(self) -> tuple[int, int, int]:
        """Pixels along x, y, z."""
        x, y, z = (
            max(1, math.ceil((high - low) / self.spacing_mm - 1e-6))
            for low, high in zip(self.low, self.high, strict=True)
        )
        return x, y, z


def preview_png(prepared: PreparedStudy, config: PreprocessingConfig) -> bytes:
    """The picture, at most about 1600 pixels wide; the same study gives the same bytes.

    Args:
        prepared: phases in the model's order, and the box.
        config: the model's; its margin is drawn.

    Raises:
        ModuleNotFoundError: Pillow (extra `preview`) is not installed.
        GeometryRefused: a phase has no geometry. A slice that cannot be read is said in its panel.
    """
    from PIL import Image, ImageDraw

    view = _view(prepared, config.margin_mm)
    panels = [
        [_panel(phase, match, prepared.box.by_phase[phase], view, config.margin_mm, axis) for axis in (2, 1)]
        for phase, match in prepared.phases.items()
    ]
    cell = max(TITLE.least_width, view.counts[0])
    rows = [TITLE.height + view.counts[axis] + GAP for axis in (1, 2)]
    width = GAP + len(panels) * (cell + GAP)
    footer = footer_lines(_footer(view, config.margin_mm), width - 2 * GAP)
    picture = Image.new("RGB", (width, GAP + sum(rows) + len(footer) * line_height() + GAP), PAGE)
    draw = ImageDraw.Draw(picture)
    for column, pair in enumerate(panels):
        left = GAP + column * (cell + GAP)
        for panel, top in zip(pair, (GAP, GAP + rows[0]), strict=True):
            draw_panel(picture, draw, panel, (left, top), cell)
    for index, line in enumerate(footer):
        line.draw(draw, (GAP, GAP + sum(rows) + index * line_height()))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _view(prepared: PreparedStudy, margin_mm: float) -> _View:
    """The whole field of view in plane; along z what was scanned near the box, and the box with its margin anyway."""
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    tallest = 0.0
    for phase, match in prepared.phases.items():
        region, bounds = prepared.box.by_phase[phase], match.series.geometry.bounds()
        low = np.minimum(low, np.array(bounds.min) - _centre(region))
        high = np.maximum(high, np.array(bounds.max) - _centre(region))
        tallest = max(tallest, region.extent_mm[2])
    near, least = tallest / 2 + AROUND_BOX_MM, tallest / 2 + margin_mm + EDGE_MM
    low[2] = min(max(low[2], -near), -least)
    high[2] = max(min(high[2], near), least)
    across, down, along = (float(value) for value in high - low)
    room = MOST_WIDTH / len(prepared.phases) - 2 * GAP
    spacing = max(SPACING_MM, across / room, (down + along) / MOST_HEIGHT)
    return _View(
        (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2])), spacing
    )


def _centre(region: Region) -> Float:
    return np.asarray((np.array(region.min) + np.array(region.max)) / 2, np.float64)


def _panel(phase: str, match: PhaseMatch, region: Region, view: _View, margin_mm: float, axis: int) -> Panel:
    """One plane through the centre of the phase's box, across patient axis `axis`: 2 is axial, 1 coronal."""
    number = match.series.number
    plane = "axial" if axis == 2 else "coronal"
    title = f"{phase}   series {'without number' if number is None else number}   {plane}"
    boxes = [_in_pixels(box, _centre(region), view, axis) for box in (region, region.grown(margin_mm))]
    marks = CORONAL_MARKS if axis == 1 else None
    counts = list(view.counts)
    low = _centre(region) + np.array(view.low)
    counts[axis], low[axis] = 1, _centre(region)[axis] - view.spacing_mm / 2
    grid = RegionGrid((float(low[0]), float(low[1]), float(low[2])), (counts[0], counts[1], counts[2]), view.spacing_mm)
    try:
        sampled = sample_region(match.series, grid)
    except FourphaseError as fault:
        blank = np.zeros((counts[3 - axis], counts[0], 3), np.uint8)
        return Panel(title, blank, boxes[0], boxes[1], view.spacing_mm, marks, f"not readable ({fault.key})")
    if sampled.step > 1:
        title += f"   (1 slice in {sampled.step})"
    hu = sampled.hu[0] if axis == 2 else sampled.hu[::-1, 0]
    return Panel(title, _windowed(hu), boxes[0], boxes[1], view.spacing_mm, marks)


def _in_pixels(region: Region, centre: Float, view: _View, axis: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) pixels that hold the faces of a region."""
    low, high = (np.array(corner) - centre for corner in (region.min, region.max))
    left, right = (value - view.low[0] for value in (low[0], high[0]))
    if axis == 2:
        top, bottom = (value - view.low[1] for value in (low[1], high[1]))
    else:
        head = view.low[2] + view.counts[2] * view.spacing_mm
        top, bottom = head - high[2], head - low[2]
    first = [math.floor(value / view.spacing_mm + 1e-6) for value in (left, top)]
    last = [math.ceil(value / view.spacing_mm - 1e-6) - 1 for value in (right, bottom)]
    return first[0], first[1], max(first[0], last[0]), max(first[1], last[1])


def _windowed(hu: NDArray[np.float32]) -> NDArray[np.uint8]:
    """HU (rows, columns) -> RGB (rows, columns, 3)."""
    share = (hu - (WINDOW_LEVEL - WINDOW_WIDTH / 2)) / WINDOW_WIDTH
    grey = np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)
    colours = np.repeat(grey[..., None], 3, axis=-1)
    colours[hu < OUTSIDE_HU / 2] = NOT_SCANNED
    return colours


def _footer(view: _View, margin_mm: float) -> tuple[str, ...]:
    return (
        f"window {WINDOW_LEVEL:.0f}/{WINDOW_WIDTH:.0f} HU, {view.spacing_mm:.2f} mm per pixel",
        f"solid: lesion box, dashed: with its margin of {margin_mm:g} mm",
        "blue: not scanned",
        "for checking phases and box, not for diagnosis",
    )
