"""A benchmark's numbers and names as words, the same wherever they stand: tables, plots, sentences."""

from __future__ import annotations

from collections.abc import Sequence

from fourphase.benchmarks.report.reading import Row

__all__ = [
    "DASH",
    "candidate_name",
    "counted",
    "difference_text",
    "listed",
    "megabytes",
    "paired_text",
    "ratio_text",
    "runtime_name",
    "significant",
    "time_text",
    "way_name",
]

#: Stands where there is no number; why is in the table of gaps.
DASH = "–"
_RUNTIMES = {
    "torch-eager": "torch eager",
    "torch-compile": "torch.compile",
    "cuda-graph": "CUDA graph",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT for RTX",
}


def significant(value: float | None, digits: int = 3) -> str:
    """`2,868`, `28.7`, `2.87`, `0.00287`: at least this many digits, and all before the point."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    scientific = f"{value:.{digits - 1}e}"
    exponent = int(scientific.partition("e")[2])
    if not -4 < exponent < 15:
        return scientific
    return f"{float(scientific) if exponent < digits else value:,.{max(digits - 1 - exponent, 0)}f}"


def time_text(ms: float | None) -> str:
    """`2.87 s`, `931 ms`."""
    if ms is None:
        return DASH
    return f"{significant(ms / 1e3)} s" if ms >= 1e3 else f"{significant(ms)} ms"


def megabytes(count: float | None) -> str:
    return DASH if count is None else significant(count / 1e6)


def ratio_text(ratio: Row | None) -> str:
    """`1.92 (1.85–2.00)`; `refused` without a value."""
    if ratio is None:
        return DASH
    if ratio.get("value") is None:
        return "refused"
    ends = f" ({ratio['low']:.2f}–{ratio['high']:.2f})" if ratio.get("low") is not None else ""
    return f"{ratio['value']:.2f}{ends}"


def difference_text(value: Row) -> str:
    """`−0.012 (−0.031 to +0.007)`."""
    return f"{value['value']:+.3f} ({value['low']:+.3f} to {value['high']:+.3f})".replace("-", "−")


def paired_text(ratio: Row | None) -> str:
    """The ratio of the preprocessing benchmark as a sentence without its end."""
    if ratio is None or ratio.get("value") is None:
        return f"No ratio is quoted: {(ratio or {}).get('refused') or 'it was not measured in turns'}"
    return f"{ratio_text(ratio)} (theirs over ours; above 1, ours is faster)"


def runtime_name(runtime: str) -> str:
    return _RUNTIMES.get(runtime, runtime)


def way_name(runtime: str, precision: str) -> str:
    """`OpenVINO INT8`."""
    return f"{runtime_name(runtime)} {precision.upper()}"


def candidate_name(row: Row) -> str:
    """`four-phase in OpenVINO INT8`."""
    return f"{row['network']} in {way_name(row['runtime'], row['precision'])}"


def counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
