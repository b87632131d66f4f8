"""A report's numbers and verdicts in words, the same wherever they stand on the page. It computes no figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fourphase.export.report_markup import Markup, Row, element

__all__ = [
    "auc_change",
    "bars_text",
    "bytes_text",
    "cache_text",
    "choice",
    "decibel",
    "gates_text",
    "gpu_text",
    "names_text",
    "number",
    "part_text",
    "passed_text",
    "policy_text",
    "sqnr_of",
    "studies_text",
    "sum_text",
    "times",
    "workspace_text",
]

_GATES = {
    "finite": "finite logits",
    "min_sqnr_db": "SQNR",
    "max_flips": "flipped decisions",
    "max_auc_drop": "AUC drop",
}
#: What a build did with the timing cache.
_CACHE = {
    "off": "not used",
    "miss": "there was none; what was measured is kept",
    "hit": "hit, nothing had to be measured",
    "extended": "hit in part, the rest was measured and is kept",
    "rejected": "TensorRT refused what was there; begun anew",
    "not kept": "its file is locked or cannot be written; nothing is kept",
}


def sqnr_of(row: Row) -> float:
    """In dB; inf for equal outputs, -inf where one is not finite. JSON has null for both; other keys tell which."""
    if row["sqnr_db"] is not None:
        return float(row["sqnr_db"])
    return math.inf if row.get("finite", row.get("max_abs", 0) is not None) else -math.inf


def times(factor: float | None) -> str:
    """A headroom, such as ×1,594; without a limit where there is none."""
    return "no limit" if factor is None else f"×{factor:,.{0 if factor >= 10 else 2}f}"


def number(value: float | None, form: str = ",", unit: str = "", none: str = "–") -> str:
    return none if value is None else f"{value:{form}}{unit}"


def studies_text(count: int) -> str:
    return f"{count:,} {'study' if count == 1 else 'studies'}"


def bytes_text(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 10_000 else f"{count:,} bytes"


def decibel(row: Row) -> str:
    value = sqnr_of(row)
    return f"{value:.1f} dB" if math.isfinite(value) else ("equal" if value > 0 else "not finite")


def _limit(words: str, value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{words} {value:g}{unit}"


def gates_text(step: Row) -> list[tuple[str, str]]:
    """What was measured and what was asked for: SQNR, flips, AUC."""
    verdict, gates = step["verdict"], step.get("gates") or {}
    change, allowed = verdict.get("auc_change"), gates.get("max_flips")
    free = allowed is not None and allowed >= verdict["studies"]
    return [
        (f"SQNR {decibel(verdict)}", _limit("at least", gates.get("min_sqnr_db"), " dB")),
        (f"{verdict['flips']} flipped decisions", "any number allowed" if free else _limit("at most", allowed)),
        (f"AUC change {change[0]:+.4f}", _limit("drop at most", gates.get("max_auc_drop"))) if change
        else ("AUC not judged", ""),
    ]  # fmt: skip


def auc_change(verdict: Row) -> str:
    change = verdict.get("auc_change")
    return f"{change[0]:+.4f} [{change[1]:+.4f}, {change[2]:+.4f}]" if change else "not judged"


def bars_text(verdict: Row) -> str:
    bars = verdict.get("bars") or {}
    marks = (f"{name.removeprefix('mlperf_').replace('_', '.')} % {'✓' if met else '✗'}" for name, met in bars.items())
    return ", ".join(marks) or "–"


def passed_text(failed: Sequence[str]) -> Markup:
    if failed:
        return element("b", f"✗ {names_text(failed)}", class_="bad")
    return element("b", "✓ passed", class_="good")


def names_text(failed: Sequence[str]) -> str:
    return ", ".join(_GATES.get(name, name) for name in failed)


def policy_text(step: Row) -> str:
    """`gru fp32, otherwise fp16`."""
    rules = dict(step.get("policy") or {})
    rest = rules.pop("*", "fp32")
    named = [f"{name} {precision}" for name, precision in rules.items()]
    return ", ".join([*named, f"otherwise {rest}"]) if named else f"all {rest}"


def choice(flag: bool | None, yes: str, no: str) -> str | None:
    return None if flag is None else (yes if flag else no)


def gpu_text(gpu: Row | None) -> str:
    return f"on {gpu['name']} ({gpu['compute_capability']})" if gpu else "without a GPU"


def part_text(engine: Row) -> str:
    """`trunk, 8 slices`."""
    slices = engine.get("slices")
    return f"{engine.get('part') or 'whole'}{f', {slices} slices' if slices else ''}"


def cache_text(cache: Row | None) -> str:
    if not cache:
        return ""
    state = str(cache["state"])
    return f"{state}: {cache['reason']}" if "reason" in cache else _CACHE.get(state, state)


def workspace_text(attempt: Row) -> str:
    return f"{attempt['workspace_bytes'] >> 20:,} MiB"


def sum_text(largest: Row | None) -> str:
    if not largest:
        return "–"
    return (
        f"{largest['operator']} {largest['node']}: {largest['terms']:,} terms, "
        f"magnitude {number(largest['magnitude'], ',.3g', none='not finite')}, error {largest['error']:.1e}"
    )
