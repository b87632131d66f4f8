"""How ratios with intervals are drawn, and how those are said that are refused. Which ratios is for others."""

from __future__ import annotations

from collections.abc import Sequence

from fourphase.benchmarks.report.answers_latency import verdict_of
from fourphase.benchmarks.report.page_parts import finding
from fourphase.benchmarks.report.reading import Row, dig
from fourphase.benchmarks.report.svg_rows import HALF, Estimate, forest
from fourphase.benchmarks.report.words import ratio_text
from fourphase.export.report_markup import Markup

__all__ = ["estimate_of", "ratio_finding"]

#: More refusals than this are not said below a plot.
_MOST_SAID = 2


def estimate_of(pair: Row, row: str, colour: str = "") -> Estimate:
    """The ratio of a pair as a row of that name; coloured by its verdict unless `colour` is given."""
    ratio = pair.get("ratio") or {}
    value, low, high = (ratio.get(key) for key in ("value", "low", "high"))
    title = f"{row}: {ratio_text(ratio)} {ratio.get('refused') or ''}".strip()
    return Estimate(row, value, low, high, ratio_text(ratio), colour or verdict_of(pair), title)


def ratio_finding(
    heading: str, description: str, label: str, rows: Sequence[Estimate], pairs: Sequence[Row], width: float = HALF
) -> Markup:
    """A forest with what is refused below it; only the words where no ratio has an interval."""
    if not any(row.low is not None for row in rows):
        return finding(heading, Markup(""), _refusals(rows, pairs))
    return finding(heading, forest(heading, description, label, rows, width=width), _refusals(rows, pairs))


def _refusals(rows: Sequence[Estimate], pairs: Sequence[Row]) -> str:
    """Why ratios are not quoted; an interval that was too wide is drawn dashed."""
    reasons = {row.row: str(dig(pair, "ratio", "refused")) for row, pair in zip(rows, pairs, strict=True)
               if row.value is None}  # fmt: skip
    if len(set(reasons.values())) == 1 < len(reasons):
        return f"{len(reasons)} ratios are refused: {next(iter(reasons.values()))}."
    if len(reasons) > _MOST_SAID:
        return f"{len(reasons)} ratios are refused; why is said under “What is not here”."
    return f"Refused: {'; '.join(f'{name}: {reason}' for name, reason in reasons.items())}." if reasons else ""
