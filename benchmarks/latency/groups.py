"""Which candidates take turns: all ways to run one network, then all networks in one way; and how many fit in memory.

Candidates of a group are loaded at the same time, so a group that memory does not hold is divided: each part has the
anchor, against which the others' ratios are formed. Arithmetic only; nothing is started here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fourphase.benchmarks.latency.candidate import Candidate

__all__ = ["SPARED_BYTES", "Group", "available_bytes", "group_pairs", "network_groups", "parts", "runtime_groups"]

#: Memory that is left to the machine.
SPARED_BYTES = 1 << 30
_MEMINFO = Path("/proc/meminfo")
#: What the others of a network are compared with, and of networks.
_ANCHOR, _ANCHOR_NETWORK = ("torch-eager", "fp32"), "four-phase"
#: The comparison that decides on int8 on a CPU.
_INT8_PAIR = (("onnxruntime", "fp32"), ("openvino", "int8"))
#: Runtimes that compute an FP16 model in FP32: on a CPU, where alone they run here.
_NO_FP16 = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Group:
    """Candidates that take turns. `kind`: "runtimes" (of one network) or "networks" (in one runtime)."""

    kind: str
    candidates: tuple[Candidate, ...]

    @property
    def anchor(self) -> Candidate:
        """What the others are compared with: eager FP32, or four-phase; else the first."""
        wanted = [one for one in self.candidates if _is_anchor(one, self.kind)]
        return (wanted or self.candidates)[0]

    @property
    def words(self) -> str:
        one = self.candidates[0]
        batch = f", batch {one.batch}" if one.batch > 1 else ""
        return f"{one.network if self.kind == 'runtimes' else f'{one.runtime} {one.precision}'}{batch}"


def _is_anchor(candidate: Candidate, kind: str) -> bool:
    if kind == "networks":
        return candidate.network == _ANCHOR_NETWORK
    return (candidate.runtime, candidate.precision) == _ANCHOR


def network_groups(candidates: Sequence[Candidate]) -> list[Group]:
    """One group per network and batch; also one that has a single candidate, which is measured there."""
    keys = dict.fromkeys((one.network, one.batch) for one in candidates)
    return [Group("runtimes", tuple(one for one in candidates if (one.network, one.batch) == key)) for key in keys]


def runtime_groups(candidates: Sequence[Candidate]) -> list[Group]:
    """One group per runtime, precision and batch that at least two networks have."""
    keys = dict.fromkeys((one.runtime, one.precision, one.batch) for one in candidates)
    groups = [
        Group("networks", tuple(one for one in candidates if (one.runtime, one.precision, one.batch) == key))
        for key in keys
    ]
    return [group for group in groups if len(group.candidates) > 1]


def parts(group: Group, need: Callable[[Candidate], int], available: int) -> list[tuple[Candidate, ...]]:
    """The group divided so that each part fits, the anchor first in each.

    A candidate that does not even fit beside the anchor is tried with it all the same: if memory does not suffice, its
    row says so.

    Args:
        need: bytes that a candidate takes. available: bytes that there are; SPARED_BYTES of them are not used.
    """
    anchor, room = group.anchor, available - SPARED_BYTES
    found: list[tuple[Candidate, ...]] = []
    part = [anchor]
    for candidate in group.candidates:
        if candidate == anchor:
            continue
        if len(part) > 1 and sum(map(need, (*part, candidate))) > room:
            found.append(tuple(part))
            part = [anchor]
        part.append(candidate)
    return [*found, tuple(part)]


def group_pairs(group: Group, measured: Sequence[Candidate]) -> list[tuple[Candidate, Candidate, str]]:
    """(a, b, kind of pair) for those that were measured together: a is expected to take longer.

    Of a network: the anchor over each; FP32 over each lower precision that the runtime has; ONNX Runtime's FP32 over
    OpenVINO's int8. Of a runtime: each network over four-phase.
    """
    if not measured:
        return []
    anchor = group.anchor if group.anchor in measured else measured[0]
    others = [one for one in measured if one != anchor]
    if group.kind == "networks":
        return [(one, anchor, "networks") for one in others]
    pairs = [(anchor, one) for one in others]
    pairs += [
        (one, two)
        for one in measured
        for two in measured
        if one.runtime == two.runtime and one.precision == "fp32" != two.precision
    ]
    ways = {(one.runtime, one.precision): one for one in measured}
    if all(way in ways for way in _INT8_PAIR):
        pairs.append((ways[_INT8_PAIR[0]], ways[_INT8_PAIR[1]]))
    named = [(a, b, "precisions" if a.runtime == b.runtime else "runtimes") for a, b in dict.fromkeys(pairs)]
    return [pair for pair in named if not (pair[2] == "precisions" and _is_fp16_in_name_only(pair))]


def _is_fp16_in_name_only(pair: tuple[Candidate, Candidate, str]) -> bool:
    return any(one.precision == "fp16" and one.runtime in _NO_FP16 for one in pair[:2])


def available_bytes() -> int:
    """What the kernel says programs may still take; without limit where it says nothing."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return 1 << 62
