"""What has no number in a report, and why: sections, candidates, refused ratios and fits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fourphase.benchmarks.report.document import is_complete
from fourphase.benchmarks.report.reading import Row, dig, rows_of, section_of, status_of
from fourphase.benchmarks.report.sections import SECTIONS
from fourphase.benchmarks.report.text_table import Table
from fourphase.benchmarks.report.words import listed, runtime_name, way_name

__all__ = ["Gap", "gap_table", "gaps_of"]

#: What the GRU's forms are called in rows.
_FORMS = ("loop ", "unrolled ")
_NONE_ENDED = "no study came to its end"
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Gap:
    """What is not in the report, and why.

    Attributes:
        of: the network that it is of, or the form and size of a GRU; "" where it is of no one of several.
    """

    section: str
    what: str
    status: str
    reason: str
    of: str = ""


def gaps_of(report: Row) -> list[Gap]:
    """Everything that has no number: sections, candidates, refused ratios and fits."""
    gaps = []
    for name, section in SECTIONS.items():
        found = section_of(report, name)
        if not found:
            gaps.append(Gap(section.title, "the whole section", "not measured", "it is not in this report"))
        elif not is_complete(found):
            gaps.append(Gap(section.title, "the whole section", status_of(found), str(found.get("reason") or "")))
        gaps += [Gap(section.title, *gap) for gap in _gaps(found)]
    return gaps


def gap_table(report: Row) -> Table | None:
    """Gaps of one section, status and reason are one row, so that `TensorRT is not installed` is said once.

    So are reasons that differ in numbers only: `noisy: the interval … to … is wider than 1.25 x`. None without a gap.
    """
    gaps = gaps_of(report)
    if not gaps:
        return None
    everyone = {section.title: _all_of(section_of(report, name)) for name, section in SECTIONS.items()}
    grouped: dict[tuple[str, str, str], list[Gap]] = {}
    for gap in gaps:
        grouped.setdefault((gap.section, gap.status, _NUMBER.sub("…", gap.reason)), []).append(gap)
    rows = [
        (
            section,
            status,
            _common([gap.reason for gap in group]) or "no reason is given",
            _whats(group, everyone[section]),
        )
        for (section, status, _), group in grouped.items()
    ]
    return Table("Gaps", ("section", "status", "why", "what"), rows, words=("section", "status", "why", "what"))


def _common(reasons: Sequence[str]) -> str:
    """The reasons' text, with … for numbers that differ."""
    columns = zip(*(_NUMBER.findall(reason) for reason in reasons), strict=True)
    numbers = [column[0] if len(set(column)) == 1 else "…" for column in columns]
    pieces = _NUMBER.split(reasons[0])
    return "".join(text + number for text, number in zip(pieces, [*numbers, ""], strict=True))


def _whats(gaps: Sequence[Gap], everyone: frozenset[str]) -> str:
    """`TensorRT FP32, TensorRT FP16: every network`: what lacks the same networks is said together."""
    members: dict[str, list[str]] = {}
    for gap in gaps:
        members.setdefault(gap.what, []).extend([gap.of] if gap.of else [])
    whats: dict[tuple[str, ...], list[str]] = {}
    for what, names in members.items():
        whats.setdefault(tuple(names), []).append(what)
    return "; ".join(
        f"{listed(texts)}: {_names(names, everyone)}" if names else "; ".join(texts) for names, texts in whats.items()
    )


def _names(names: Sequence[str], everyone: frozenset[str]) -> str:
    if len(names) > 1 and everyone <= set(names):
        return "every form and size" if names[0].startswith(_FORMS) else "every network"
    return f"{', '.join(names)}{' (slices x hidden size)' if names[0].startswith(_FORMS) else ''}"


def _all_of(section: Row) -> frozenset[str]:
    """All networks, or forms and sizes, that the section has rows of, measured or not."""
    return frozenset(_of(row) for row in rows_of(section)) - {""}


def _of(row: Row) -> str:
    if "form" in row:
        return f"{row['form']} {row['slices']} x {row['hidden']}"
    return str(row["network"]) if "precision" in row and "network" in row else ""


def _gaps(section: Row) -> Iterable[tuple[str, ...]]:
    """In the order of Gap's fields after the section."""
    for row in rows_of(section):
        if status_of(row) != "ok":
            yield _what(row), status_of(row), str(row.get("reason") or ""), _of(row)
        elif row.get("int8_reason"):
            yield f"{row['network']} in INT8", "failed", str(row["int8_reason"])
        speedup = row.get("speedup")
        if isinstance(speedup, Mapping) and speedup.get("value") is None:
            yield f"speed-up of {_row_name(row)}", "ratio refused", str(speedup.get("refused") or "")
        if "mode" in row and status_of(row) == "ok" and not row.get("studies_per_hour"):
            yield f"studies per hour of {_row_name(row)}", "not measured", str(row.get("reason") or _NONE_ENDED)
    paired = section.get("paired_ratio")
    if paired is not None and paired.get("value") is None:
        yield "theirs over ours", "ratio refused", str(paired.get("refused") or "")
    for name, row in (section.get("pipelines") or {}).items():
        if status_of(row) != "ok":
            yield name, status_of(row), str(row.get("reason") or "")
    for pair in (*rows_of(section, "pairs"), *rows_of(section, "ratios"), *rows_of(section, "torch_ratios")):
        if dig(pair, "ratio", "value") is None:
            yield _pair_name(pair), "ratio refused", str(dig(pair, "ratio", "refused") or "")
    for sweep in rows_of(section, "sweeps"):
        name = f"{sweep['network']} over {sweep['what']}, {way_name(sweep['runtime'], sweep['precision'])}"
        for point in rows_of(sweep, "points"):
            if status_of(point) != "ok":
                yield f"{name}, {point['x']}", status_of(point), str(point.get("reason") or "")
        if sweep.get("fit") is None:
            yield name, "fit refused", str(sweep.get("reason") or "")


def _what(row: Row) -> str:
    if "form" in row:
        return runtime_name(row["runtime"])
    return _way_name(row) if _of(row) else _row_name(row)


def _row_name(row: Row) -> str:
    if "mode" in row:
        return f"{row['mode']}, {row['workers']} workers"
    return f"{row['network']} in {_way_name(row)}" if "runtime" in row else str(row.get("network"))


def _way_name(row: Row) -> str:
    batch = "" if row.get("batch") in (None, 1) else f", batch {row['batch']}"
    return f"{way_name(row['runtime'], row['precision'])}{batch}"


def _pair_name(pair: Row) -> str:
    if "slices" in pair:
        form = f", {pair['form']} over torch" if "form" in pair else ", loop over unrolled"
        return f"{runtime_name(pair['runtime'])}{form}, {pair['slices']} slices, hidden {pair['hidden']}"
    a, b = (side if isinstance(side, str) else _row_name(side) for side in (pair["a"], pair["b"]))
    return f"{a} over {b}"
