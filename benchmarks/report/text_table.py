"""A table of texts, as Markdown or HTML. What stands in it is for others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fourphase.export.report_markup import Markup, details, element

__all__ = ["Strong", "Table", "escaped"]

#: What Markdown would read as markup.
_SPECIAL = re.compile(r"([\\`*\[\]<>|])")


class Strong(str):
    """A cell that stands out: the fastest of its row."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """Attributes:
    note: one or two sentences below it.
    folded: on the page it is shown when asked for.
    words: heads of columns that hold text and not numbers; the first column always does.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    folded: bool = False
    words: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table under a heading of the third level."""
        rule = "|".join("---" if self._is_text(index) else "---:" for index in range(len(self.head)))
        lines = [f"### {escaped(self.title)}", "", f"| {' | '.join(map(escaped, self.head))} |", f"|{rule}|"]
        lines += [f"| {' | '.join(map(_marked, row))} |" for row in self.rows]
        return "\n".join([*lines, *(["", escaped(self.note)] if self.note else [])]) + "\n"

    def html(self) -> Markup:
        kinds = ["t" if self._is_text(index) else "n" for index in range(len(self.head))]
        head = element("tr", *(element("th", name, scope="col", class_=kind)
                               for name, kind in zip(self.head, kinds, strict=True)))  # fmt: skip
        body = element("tbody", *(_html_row(row, kinds) for row in self.rows))
        shown = element("div", element("table", element("thead", head), body), class_="wide")
        note = element("p", self.note, class_="soft") if self.note else Markup("")
        if self.folded:
            return details(f"{self.title}: {len(self.rows)} rows", shown, note)
        return Markup(element("h3", self.title) + shown + note)

    def _is_text(self, index: int) -> bool:
        return index == 0 or self.head[index] in self.words


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _marked(cell: str) -> str:
    return f"**{escaped(cell)}**" if isinstance(cell, Strong) else escaped(cell)


def _html_row(row: tuple[str, ...], kinds: Sequence[str]) -> Markup:
    first, *others = (element("b", cell) if isinstance(cell, Strong) else cell for cell in row)
    cells = (element("td", cell, class_=kind) for cell, kind in zip(others, kinds[1:], strict=True))
    return element("tr", element("th", first, scope="row"), *cells)
