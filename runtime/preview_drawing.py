"""Panels of the preview: pixels with a title, the lesion box, a scale bar and the patient's directions. No DICOM here.

Pillow (extra `preview`) is imported where it is used; its built-in font is the only one, so no machine differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

__all__ = ["AXIAL_MARKS", "CORONAL_MARKS", "GAP", "TITLE", "Line", "Panel", "draw_panel", "footer_lines", "line_height"]

Box: TypeAlias = tuple[int, int, int, int]
Point: TypeAlias = tuple[int, int]

GAP = 8
FONT_SIZE = 14
DASH = 4
BOX_COLOUR, MARGIN_COLOUR, TEXT_COLOUR, QUIET_COLOUR = (255, 214, 0), (0, 200, 255), (255, 255, 255), (170, 170, 170)
#: left, top, right, bottom: right, anterior, left, posterior; head and feet.
AXIAL_MARKS, CORONAL_MARKS = ("R", "A", "L", "P"), ("R", "H", "L", "F")
SCALE_BARS_MM = (100, 50, 20, 10, 5, 2, 1)
#: Pixels.
SHORTEST_BAR = 4


@dataclass(frozen=True)
class _Title:
    """The strip above a panel."""

    height: int
    least_width: int


TITLE = _Title(height=22, least_width=220)


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture.

    Attributes:
        title: above it.
        pixels: uint8 (rows, columns, 3).
        box, margin: left, top, right, bottom of the outlines, in pixels of the picture; may lie outside.
        spacing_mm: per pixel.
        marks: letters at the left, upper, right and lower side; None for an axial picture's.
        fault: why there are no pixels.
    """

    title: str
    pixels: NDArray[np.uint8]
    box: Box
    margin: Box
    spacing_mm: float
    marks: tuple[str, str, str, str] | None = None
    fault: str = ""


@dataclass(frozen=True)
class Line:
    """One line of small text."""

    text: str

    def draw(self, draw: ImageDraw, place: Point) -> None:
        draw.text(place, self.text, fill=QUIET_COLOUR, font=_font())


@cache
def _font() -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(FONT_SIZE)


def line_height() -> int:
    return FONT_SIZE + 4


def footer_lines(parts: Sequence[str], width: int) -> list[Line]:
    """Parts joined by dots, as many to a line as its width holds."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}  \u00b7  {part}" if lines else part
        if lines and _font().getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return [Line(text) for text in lines]


def draw_panel(picture: Image, draw: ImageDraw, panel: Panel, corner: Point, cell: int) -> None:
    """Draws a panel, its title at `corner` and its picture below, in the middle of a cell of that width."""
    from PIL import Image as Images

    rows, columns, _ = panel.pixels.shape
    drawn = Images.fromarray(panel.pixels)
    canvas = _draw_on(drawn)
    _dashed(canvas, panel.margin)
    canvas.rectangle(panel.box, outline=BOX_COLOUR)
    left, top = corner[0] + (cell - columns) // 2, corner[1] + TITLE.height
    draw.text((corner[0], corner[1] + 2), panel.title, fill=TEXT_COLOUR, font=_font())
    picture.paste(drawn, (left, top))
    middle, centre = left + columns // 2, top + rows // 2
    if panel.fault:
        _text(draw, (middle, centre), panel.fault, "mm")
        return
    sides = ((left + 4, centre, "lm"), (middle, top + 3, "mt"), (left + columns - 4, centre, "rm"))
    for letter, (x, y, anchor) in zip(
        panel.marks or AXIAL_MARKS, (*sides, (middle, top + rows - 4, "mb")), strict=True
    ):
        _text(draw, (x, y), letter, anchor)
    _scale_bar(draw, panel.spacing_mm, (left + 8, top + rows - 7), columns)


def _draw_on(image: Image) -> ImageDraw:
    from PIL import ImageDraw as Drawing

    return Drawing.Draw(image)


def _text(draw: ImageDraw, place: Point, text: str, anchor: str) -> None:
    """Readable on bright and on dark."""
    draw.text(place, text, fill=TEXT_COLOUR, font=_font(), anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))


def _scale_bar(draw: ImageDraw, spacing_mm: float, place: Point, columns: int) -> None:
    """The longest round length that takes no more than a quarter of the width, above it how long; none if too short."""
    fitting = [length for length in SCALE_BARS_MM if SHORTEST_BAR <= length / spacing_mm <= columns / 4]
    if not fitting:
        return
    x, y = place
    end = x + round(fitting[0] / spacing_mm) - 1
    draw.rectangle((x - 1, y - 1, end + 1, y + 2), fill=(0, 0, 0))
    draw.rectangle((x, y, end, y + 1), fill=TEXT_COLOUR)
    _text(draw, (x, y - 3), f"{fitting[0]} mm", "lb")


def _dashed(draw: ImageDraw, box: Box) -> None:
    left, top, right, bottom = box
    for start, stop in _dashes(left, right):
        draw.line((start, top, stop, top), fill=MARGIN_COLOUR)
        draw.line((start, bottom, stop, bottom), fill=MARGIN_COLOUR)
    for start, stop in _dashes(top, bottom):
        draw.line((left, start, left, stop), fill=MARGIN_COLOUR)
        draw.line((right, start, right, stop), fill=MARGIN_COLOUR)


def _dashes(first: int, last: int) -> Iterator[Point]:
    for start in range(first, last + 1, 2 * DASH):
        yield start, min(start + DASH - 1, last)
