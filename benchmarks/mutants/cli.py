"""`fp-bench mutants`: thousands of damaged studies through the reader, counted by what was done and what came of it.

A run fails if one mutant ends in a traceback, a crash, a hang, a leak, a changed input, or is accepted with a geometry
that is wrong within box and margin.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.runtime.console import be_quiet, progress, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import OutputNotWritable

if TYPE_CHECKING:
    from fourphase.benchmarks.mutants.check import Verdict
    from fourphase.benchmarks.mutants.study import BaseStudy

__all__ = ["FORBIDDEN", "keep_mutant", "mutants", "outcome_of", "summary"]

#: What must not occur once.
FORBIDDEN = ("wrong", "unexplained", "bug", "crash", "hang", "leak", "modified")
OUTCOMES = (
    *("refused", "unchanged", "notice", "within tolerance", "consistent change", "missing, said"),
    *("other phase throughout", "order exchanged", "scaling", "pixels", "codec corruption", *FORBIDDEN),
)
#: Numbers of mutants that are named per outcome, to repeat them with --only.
NAMED = 20


def mutants(
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 10000,
    seed: Annotated[int, typer.Option(help="Of the whole run; a mutant is known by seed and number.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 2,
    only: Annotated[int | None, typer.Option(help="Run only the mutant of this number, and say what it is.")] = None,
    keep: Annotated[Path | None, typer.Option(help="With --only: a new folder for the mutant's files and box.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Damage a small study in thousands of ways, read each, and count what came of it; 1 if anything forbidden did.

    Example: fp-bench mutants --count 1000
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    numbers = list(range(count)) if only is None else [only]
    if only is not None and keep is not None:
        keep_mutant(keep, seed, only)
    started = time.perf_counter()
    verdicts = run(numbers, seed, workers)
    body = summary(verdicts, seed, time.perf_counter() - started)
    with stdout_checked():
        if not json_output:
            _print_tables(verdicts, body)
            for verdict in verdicts if only is not None else ():
                print(f"mutant {only} of seed {seed}: {verdict.variant}, {verdict.kind}: {verdict.what}")
                print(f"  {outcome_of(verdict)}: {verdict.detail or '-'}; input off by {verdict.off_hu:g} HU")
        print(json.dumps(body))
    if any(body["forbidden"].values()):
        raise typer.Exit(1)


def run(numbers: Sequence[int], seed: int, workers: int) -> list[Verdict]:
    """The verdicts by number; those of lost workers with what the mutant was."""
    import dataclasses

    from fourphase.benchmarks.mutants.kinds import make_mutant
    from fourphase.benchmarks.mutants.pool import run_mutants

    verdicts: list[Verdict] = []
    with progress("mutants", len(numbers)) as advance:

        def ended(verdict: Verdict) -> None:
            if not verdict.kind:
                mutant = make_mutant(_bases(), seed, verdict.number)
                what = mutant.change.what
                verdict = dataclasses.replace(verdict, variant=mutant.variant, kind=mutant.kind, what=what)
            verdicts.append(verdict)
            advance(1)

        run_mutants(numbers, ended, seed=seed, workers=min(workers, len(numbers)))
    return sorted(verdicts, key=lambda verdict: verdict.number)


@lru_cache(maxsize=1)
def _bases() -> Mapping[str, BaseStudy]:
    from fourphase.benchmarks.mutants.study import BaseStudies

    return BaseStudies()


def keep_mutant(folder: Path, seed: int, number: int) -> None:
    """Writes a mutant's study, a folder or a zip, and its box.

    Raises: OutputNotWritable if the folder is there already or cannot be written.
    """
    from fourphase.benchmarks.mutants.kinds import make_mutant

    mutant = make_mutant(_bases(), seed, number)
    base, change = _bases()[mutant.variant], mutant.change
    try:
        folder.mkdir(parents=True)
        (folder / "box.json").write_text(base.box_json)
        if change.archive is not None:
            (folder / "study.zip").write_bytes(change.archive)
            return
        for name, content in {**base.files, **change.files}.items():
            if isinstance(content, bytes):
                path = folder / "study" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    except OSError:
        raise OutputNotWritable("the folder for the mutant cannot be written", "give --keep a new folder") from None


def outcome_of(verdict: Verdict) -> str:
    """One of OUTCOMES; what a codec made of damaged data is told from pixels that nothing could tell."""
    from fourphase.benchmarks.mutants.study import VARIANTS

    compressed = VARIANTS[verdict.variant].compressed
    if verdict.outcome == "pixels" and compressed and verdict.kind != "pixels exchanged":
        return "codec corruption"
    return verdict.outcome


def summary(verdicts: Sequence[Verdict], seed: int, seconds: float) -> dict[str, Any]:
    """The counts as JSON types."""
    outcomes = Counter(outcome_of(verdict) for verdict in verdicts)
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    variants: dict[str, Counter[str]] = defaultdict(Counter)
    numbers: dict[str, list[int]] = defaultdict(list)
    for verdict in verdicts:
        outcome = outcome_of(verdict)
        kinds[verdict.kind][outcome] += 1
        variants[verdict.variant][outcome] += 1
        flags = [flag for flag in ("leak", "modified") if getattr(verdict, flag)]
        for name in (outcome, *flags) if outcome not in ("refused", "unchanged", "notice") else flags:
            numbers[name] = [*numbers[name], verdict.number][:NAMED]
    flagged = {flag: sum(getattr(verdict, flag) for verdict in verdicts) for flag in ("leak", "modified")}
    return {
        "schema": "fourphase.mutants/1",
        "count": len(verdicts),
        "seed": seed,
        "seconds": round(seconds, 1),
        "forbidden": {name: flagged.get(name, outcomes[name]) for name in FORBIDDEN},
        "outcomes": {name: outcomes[name] for name in OUTCOMES if outcomes[name]},
        "refused": dict(Counter(verdict.detail for verdict in verdicts if verdict.outcome == "refused").most_common()),
        "notices": dict(Counter(verdict.detail for verdict in verdicts if verdict.outcome == "notice").most_common()),
        "kinds": {name: dict(kinds[name]) for name in sorted(kinds)},
        "variants": {name: dict(variants[name]) for name in sorted(variants)},
        "numbers": dict(numbers),
    }


def _print_tables(verdicts: Sequence[Verdict], body: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=200)
    for title, rows in (("what was done", body["kinds"]), ("how it is encoded", body["variants"])):
        columns = [name for name in OUTCOMES if name in body["outcomes"]]
        table = Table(title, "mutants", *columns)
        for name, counts in rows.items():
            table.add_row(name, str(sum(counts.values())), *(str(counts.get(column, "")) for column in columns))
        table.add_section()
        table.add_row("all", str(body["count"]), *(str(body["outcomes"][column]) for column in columns))
        console.print(table)
    reasons = ", ".join(f"{key} {times}" for key, times in body["refused"].items())
    console.print(f"refused by code and key: {reasons or 'none'}", soft_wrap=True)
    bad = ", ".join(f"{name} {times}" for name, times in body["forbidden"].items())
    console.print(f"forbidden: {bad}; {body['seconds']:g} s", soft_wrap=True)
