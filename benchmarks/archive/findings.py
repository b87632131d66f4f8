"""What the figures of a trial mean, in sentences: which mode is fastest, whether it is linear, and what holds it back.

Every sentence is made from what was measured. For a mode on C cores, with the share b of their time that it used and
the processor time c per study (b1 and c1 of one core alone), the speedup is C * (b / b1) * (c1 / c): what is missing to
C is time in which it did not run, or work that became slower, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from fourphase.benchmarks.archive.trial import Measured

__all__ = ["explain", "fastest"]

#: From this efficiency on (the interval's lower end) a mode is called linear.
_LINEAR = 0.9
#: Losses below this share are not told.
_TOLD = 0.05


def fastest(found: Sequence[Measured]) -> Measured | None:
    """The mode on this machine with the shortest median; Ray is not among them.

    Only one that did the work can be it: with the fewest failed studies, and the results of the first that was
    measured. None if there is none.
    """
    return min(_usable(found), key=lambda one: one.seconds, default=None)


def _usable(found: Sequence[Measured]) -> list[Measured]:
    """The modes of which one can be called the fastest."""
    reference = next((one for one in found if one.turns), None)
    here = [one for one in found if one.turns and not one.reason and not one.mode.address and one.done]
    fewest = min((one.worst.failed for one in here), default=0)
    return [one for one in here if reference and one.worst.failed == fewest and one.agrees(reference)]


def explain(found: Sequence[Measured]) -> list[str]:
    """Sentences about every mode that was measured; the first of `found` is the reference, one core alone."""
    reference, *others = found
    if not reference.turns or reference.reason:
        how = "measured to the end" if reference.turns else "measured"
        return [f"One core alone was not {how}: {reference.reason or 'no rounds'}."]
    measured = [one for one in others if one.turns and not one.reason]
    sentences = [sentence for one in measured for sentence in _about(one, reference)]
    sentences += _best(found) if measured else [_alone(others)]
    return [*sentences, *_disturbed([reference, *measured]), *_memory(measured)]


def _alone(others: Sequence[Measured]) -> str:
    """Why there is nothing to hold against one core."""
    if all(one.mode.address for one in others):
        return "There is one core: nothing can run beside anything."
    return "No other way than one core alone was measured to the end: the rows say why."


def _about(one: Measured, reference: Measured) -> list[str]:
    name, cores, speedup = title(one), one.mode.cores, one.speedup(reference)
    if speedup.value is None or speedup.low is None or speedup.high is None:
        return [f"{name}: no speedup is quoted ({speedup.refused})."]
    efficiency = speedup.value / cores
    said = f"{name}: {speedup.value:.2f} times one core ({speedup.low:.2f} to {speedup.high:.2f})"
    if speedup.low / cores >= _LINEAR:
        return [f"{said}, {efficiency:.0%} of what {cores} cores could give: linear."]
    return [f"{said}, {efficiency:.0%} of what {cores} cores could give: not linear.", *_losses(one, reference)]


def _losses(one: Measured, reference: Measured) -> list[str]:
    """Slower work, and unused time: at the end, while storage is waited for, and the rest: steps on one thread."""
    losses = []
    slower = one.cpu_s_per_study / reference.cpu_s_per_study
    if slower > 1 + _TOLD:
        losses.append(
            f"{title(one)}: a study costs {slower:.2f} times the processor time that it costs on one core alone: the "
            f"cores share memory and caches, and threads wait for each other."
        )
    idle = max(reference.busy - one.busy, 0.0)
    if idle > _TOLD:
        waiting = one.waiting
        told = "not to be told here" if waiting is None else f"{waiting:.0%} of the time"
        serial = "; the rest lies in steps that one thread does" if one.mode.threads > 1 else ""
        losses.append(
            f"{title(one)}: it uses its cores {one.busy:.0%} of the time. At the end, when no study is left: "
            f"{one.idle:.0%} lost; something waited for storage: {told}{serial}."
        )
    return losses or [f"{title(one)}: neither unused cores nor slower work explain it; the rounds differ too much."]


def _best(found: Sequence[Measured]) -> list[str]:
    usable = _usable(found)
    best = fastest(found)
    if best is None:
        return ["No way is called the fastest: none ran a study to its end with the results of one core."]
    said = [f"The fastest on this machine: {title(best)}, {best.studies_per_hour or 0.0:.0f} studies an hour."]
    others = [one for one in usable if one is not best]
    if not others:
        return said
    second = min(others, key=lambda one: one.seconds)
    ratio = best.speedup(second)
    if ratio.value is None:
        return [*said, f"Whether it beats {title(second)} is not told: {ratio.refused}."]
    if ratio.low is not None and ratio.low > 1:
        return [*said, f"{title(second)} takes {ratio.value:.2f} times as long ({ratio.low:.2f} to {ratio.high:.2f})."]
    return [*said, f"{title(second)} cannot be told apart from it ({ratio.low:.2f} to {ratio.high:.2f})."]


def _disturbed(measured: Sequence[Measured]) -> list[str]:
    shares = [one.busy_elsewhere for part in measured for one in part.watched if one.busy_elsewhere is not None]
    if not shares or median(shares) <= _TOLD:
        return []
    return [f"Other programs took {median(shares):.0%} of the cores meanwhile: the figures are too low."]


def _memory(measured: Sequence[Measured]) -> list[str]:
    if not measured:
        return []
    most = max(measured, key=lambda one: one.turns[-1].peak_bytes)
    peak = most.turns[-1].peak_bytes
    return [f"The most memory: {peak / 1e9:.1f} GB for {title(most)}, {peak / most.mode.workers / 1e9:.1f} GB each."]


def title(one: Measured) -> str:
    """ "2 processes, 1 core each"."""
    mode = one.mode
    kind = "one process" if mode.workers == 1 and not mode.address else f"{mode.workers} processes"
    cores = f"{mode.threads} core{'s' if mode.threads > 1 else ''}{' each' if mode.workers > 1 else ''}"
    return f"{kind}, {cores}{' (Ray)' if mode.address else ''}"
