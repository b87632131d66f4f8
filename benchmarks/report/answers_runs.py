"""What end to end and archive say in sentences, and which pair and which mode may stand in a headline.

A headline takes our fastest pipeline against the plain one that others are compared with, not the pair that differs
most; and of an archive the fastest mode among those that lost the fewest studies and gave one core's results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fourphase.benchmarks.end_to_end.pipelines import REFERENCE
from fourphase.benchmarks.report.reading import Row, dig, rows_of, status_of
from fourphase.benchmarks.report.words import counted, listed, significant, time_text

__all__ = ["archive_answers", "best_archive", "end_to_end_answers", "fastest_plain", "headline_pair", "headline_text"]


def warm_totals(section: Row) -> dict[str, float]:
    """Pipeline -> median of a warm study, in ms."""
    pipelines: Mapping[str, Row] = section.get("pipelines") or {}
    return {
        name: float(dig(row, "warm", "total_ms", "p50"))
        for name, row in pipelines.items()
        if status_of(row) == "ok" and dig(row, "warm", "total_ms")
    }


def headline_pair(section: Row) -> Row | None:
    """A plain pipeline over our fastest one: the reference if that ratio is quoted, else the fastest plain one."""
    totals = warm_totals(section)
    told = [pair for pair in rows_of(section, "ratios") if dig(pair, "ratio", "value") and pair["b"] in totals]
    told = [pair for pair in told if pair["a"] == REFERENCE] or told
    return min(told, key=lambda pair: (totals[pair["b"]], totals.get(pair["a"], float("inf"))), default=None)


def fastest_plain(section: Row, ours: str) -> Row | None:
    """The pair of the fastest plain pipeline over `ours`, quoted or refused."""
    totals = warm_totals(section)
    pairs = [pair for pair in rows_of(section, "ratios") if pair["b"] == ours and pair["a"] in totals]
    return min(pairs, key=lambda pair: totals[pair["a"]], default=None)


def headline_text(section: Row, pair: Row) -> str:
    """`; over plain-onnxruntime, the fastest plain one, 1.9×`: what the headline's pair does not say; "" if it does."""
    plain = fastest_plain(section, pair["b"])
    if plain is None or plain["a"] == pair["a"]:
        return ""
    value = dig(plain, "ratio", "value")
    return f"; over {plain['a']}, the fastest plain one, {f'{value:.1f}×' if value else 'no ratio is quoted'}"


def end_to_end_answers(section: Row) -> Iterator[str]:
    totals = warm_totals(section)
    ours = {pair["b"] for pair in rows_of(section, "ratios")} & totals.keys()
    if not ours:
        return
    best = min(ours, key=totals.__getitem__)
    against = [pair for pair in rows_of(section, "ratios") if pair["b"] == best]
    plain = fastest_plain(section, best) if len(against) > 1 else None
    told = [text for pair in against if (text := _pair_text(pair, pair is plain))]
    files = dig(section, "study", "files")
    study = f" of a study of {files:,} files" if files else ""
    what = f"From DICOM to result, warm, {best} takes {time_text(totals[best])}{study}"
    if not told:
        yield f"{what}; no ratio over another pipeline can be quoted."
        return
    refused = ""
    if plain is not None and not dig(plain, "ratio", "value"):
        refused = f" Over {plain['a']}, the fastest plain one, no ratio can be quoted."
    yield f"{what}: {listed(told)}.{refused}"


def _pair_text(pair: Row, fastest: bool) -> str:
    ratio = pair.get("ratio") or {}
    if ratio.get("value") is None:
        return ""
    plain = f"{pair['a']} (the fastest plain one)" if fastest else pair["a"]
    return f"{ratio['value']:.1f} ({ratio['low']:.1f} to {ratio['high']:.1f}) times as fast as {plain}"


def best_archive(section: Row) -> Row | None:
    """The row with the most studies per hour among those with the fewest failures and one core's results."""
    rows = [row for row in rows_of(section) if status_of(row) == "ok" and row.get("studies_per_hour")]
    rows = [row for row in rows if row.get("same_results") is not False]
    fewest = min((_failed(row) for row in rows), default=0)
    return max((row for row in rows if _failed(row) == fewest), key=lambda row: float(row["studies_per_hour"]),
               default=None)  # fmt: skip


def _failed(row: Row) -> int:
    return int(row.get("failed") or 0)


def archive_answers(section: Row) -> Iterator[str]:
    best = best_archive(section)
    if best is None:
        return
    workers = counted(best["workers"], "worker", "workers")
    threads = counted(best["threads_each"], "thread", "threads")
    failed = counted(_failed(best), "study", "studies")
    yield (
        f"An archive runs through at {significant(best['studies_per_hour'])} studies per hour at best "
        f"({best['mode']}, {workers} of {threads})" + (f"; {failed} failed." if _failed(best) else ".")
    )
