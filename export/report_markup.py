"""HTML elements for the report, whose text is escaped unless it is HTML already: tables, figures, lists of facts."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "Column",
    "Markup",
    "Row",
    "code",
    "details",
    "element",
    "facts_of",
    "figure",
    "lines_of",
    "stacked",
    "table",
]

Row = Mapping[str, Any]


class Markup(str):
    """Text that is HTML already; any other text is escaped when it enters an element."""


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """One element; `class_` stands for class, other underscores for hyphens."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for name, value in attributes.items()
    )
    inside = "".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in content)
    return Markup(f"<{tag}{named}>{inside}</{tag}>")


class Column(NamedTuple):
    """A column of a table: its head, and its cell for one row of the report."""

    head: str
    cell: Callable[[Row], object]
    text: bool = False


def table(columns: Sequence[Column], rows: Iterable[Row]) -> Markup:
    head = element(
        "tr", *(element("th", column.head, scope="col", class_="t" if column.text else "n") for column in columns)
    )
    first, *others = columns
    body = [
        element(
            "tr",
            element("th", first.cell(row), scope="row"),
            *(element("td", column.cell(row), class_="t" if column.text else "n") for column in others),
        )
        for row in rows
    ]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="wide")


def figure(plot: Markup, caption: Iterable[Markup]) -> Markup:
    return element("figure", plot, element("figcaption", *caption))


def lines_of(lines: Iterable[str]) -> list[Markup]:
    return [element("p", line) for line in lines]


def details(summary: str, *parts: Markup) -> Markup:
    return element("details", element("summary", summary), *parts)


def facts_of(facts: Mapping[str, object]) -> Markup:
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    return element(
        "dl", *(element(tag, part) for name, value in known.items() for tag, part in (("dt", name), ("dd", value)))
    )


def code(value: str | None) -> Markup | None:
    return None if value is None else element("code", value)


def stacked(value: str, small: str) -> Markup:
    return Markup(element("span", value) + (element("small", small) if small else ""))
