"""`fp-bench hazards`: what happens to studies on their way, what our reader makes of it, and what other readers do.

Every hazard is done to a copy of one small phantom study with markers at known places. Ours reads the whole study as
`fp-run` does; the others read the series that is hurt, as their users would. One phantom proves no reader right; it
shows what each does about a fault that it can see.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.runtime.console import be_quiet, progress, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import OutputNotWritable, UsageError

if TYPE_CHECKING:
    from fourphase.benchmarks.hazards.flips import FlipCount
    from fourphase.benchmarks.hazards.hazard import Hazard
    from fourphase.benchmarks.hazards.study import SoundStudy

__all__ = ["OURS", "HazardRow", "HazardTable", "all_hazards", "hazards", "run_hazards"]

OURS = "ours"
SCHEMA = "fourphase.hazards/1"
_TITLES = {OURS: "fourphase", "simpleitk": "SimpleITK", "dicom2nifti": "dicom2nifti", "dcm2niix": "dcm2niix"}


@dataclass(frozen=True)
class HazardRow:
    """One hazard and what each reader makes of it.

    Attributes:
        words: reader -> its outcome as it stands in the table.
        off: reader -> (mm, HU) where it read; see `hazard_ours.OurReader` and `hazard_readers.ReaderOutcome`.
        as_expected: our outcome is the hazard's `ours` and within its bound; True where ours did not run.
    """

    key: str
    what: str
    test: str
    words: dict[str, str]
    off: dict[str, tuple[float, float]]
    as_expected: bool = True


@dataclass(frozen=True)
class HazardTable:
    """All rows of a run.

    Attributes:
        versions: reader -> its version, '' where it is not installed.
        flips: what became of random flips in compressed slices, if they were asked for.
    """

    versions: dict[str, str]
    rows: tuple[HazardRow, ...]
    flips: tuple[FlipCount, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        rows = [
            {"key": row.key, "what": row.what, "test": row.test, "as_expected": row.as_expected, "outcomes": row.words,
             "off_mm_hu": {name: [round(value, 3) for value in off] for name, off in row.off.items()}}
            for row in self.rows
        ]  # fmt: skip
        flips = {"flips": [count.to_dict() for count in self.flips]} if self.flips else {}
        return {"schema": SCHEMA, "versions": self.versions, "hazards": rows, **flips}

    def markdown(self) -> str:
        """The table for a document; our outcome as code."""
        names = list(self.versions)
        titles = [f"{_TITLES[name]} {self.versions[name]}".strip() for name in names]
        lines = [f"| hazard | {' | '.join(titles)} | test |", "|---" * (len(names) + 2) + "|"]
        for row in self.rows:
            cells = [f"`{row.words[name]}`" if name == OURS else row.words[name] for name in names]
            lines.append(f"| {row.what} | {' | '.join(cells)} | `{row.test.rsplit('/', 1)[1]}` |")
        return "\n".join(lines) + "\n"


def all_hazards() -> tuple[Hazard, ...]:
    """Every Hazard, in the order of the table."""
    from fourphase.benchmarks.hazards.arrivals import ARRIVALS
    from fourphase.benchmarks.hazards.files import FILES
    from fourphase.benchmarks.hazards.geometry import GEOMETRY
    from fourphase.benchmarks.hazards.identity import IDENTITY
    from fourphase.benchmarks.hazards.pixels import PIXELS

    return (*GEOMETRY, *IDENTITY, *PIXELS, *FILES, *ARRIVALS)


def run_hazards(folder: Path, readers: Sequence[str], *, keep: bool = False, flips: int = 0) -> HazardTable:
    """Does every hazard to a study below `folder`, which is empty, and reads it.

    Args:
        readers: OURS and names out of `hazard_readers.READERS`.
        keep: leave the studies there.
        flips: random flips per compressed syntax to be counted, too.

    Raises: UsageError for an unknown reader.
    """
    from fourphase.benchmarks.hazards.flips import count_flips
    from fourphase.benchmarks.hazards.readers import read_with, reader_version
    from fourphase.benchmarks.hazards.study import make_sound

    versions = {name: version("fourphase") if name == OURS else reader_version(name) for name in readers}
    sound = make_sound(folder / "sound")
    run = _Run(sound, folder, tuple(readers))
    run.usual = {name: read_with(name, sound.study / "PV", sound).said for name in readers if name != OURS}
    rows = []
    chosen = all_hazards()
    with progress("doing hazards", len(chosen)) as advance:
        for hazard in chosen:
            rows.append(run.row(hazard))
            if not keep:
                shutil.rmtree(folder / hazard.key)
            advance(1)
    return HazardTable(versions, tuple(rows), tuple(count_flips(folder / "flips", sound, flips) if flips else ()))


class _Run:
    def __init__(self, sound: SoundStudy, folder: Path, readers: tuple[str, ...]) -> None:
        from fourphase.benchmarks.hazards.ours import OurReader

        self.usual: dict[str, frozenset[str]] = {}
        self._sound, self._folder, self._readers = sound, folder, readers
        self._ours = OurReader(sound)

    def row(self, hazard: Hazard) -> HazardRow:
        from fourphase.benchmarks.hazards.hazard import copy_of
        from fourphase.benchmarks.hazards.readers import read_with

        case = copy_of(self._sound, self._folder / hazard.key)
        hazard.apply(case)
        words: dict[str, str] = {}
        off: dict[str, tuple[float, float]] = {}
        as_expected = True
        for name in self._readers:
            if name == OURS:
                ours = self._ours.outcome(hazard, case)
                words[name], as_expected = ours.words, ours.is_as_expected(hazard)
                found = ours.off
            elif hazard.ours_only:
                words[name], found = hazard.ours_only, None
            else:
                outcome = read_with(name, case.series, self._sound)
                words[name], found = outcome.words(self.usual[name]), outcome.off
            if found is not None:
                off[name] = (found.mm, found.hu)
        return HazardRow(hazard.key, hazard.what, hazard.test, words, off, as_expected)


def hazards(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Keep the studies in this new folder.")] = None,
    readers: Annotated[str, typer.Option(help="Which readers, with commas.")] = "ours,simpleitk,dicom2nifti,dcm2niix",
    flips: Annotated[int, typer.Option(min=0, help="Also count random flips per compressed syntax.")] = 0,
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Do every known hazard to a phantom study and compare what DICOM readers make of it.

    Example: fp-bench hazards --markdown hazards.md
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    names = [name.strip() for name in readers.split(",")]
    if len(set(names)) < len(names):
        raise UsageError("--readers names a reader twice", "name each reader once", key="reader_twice")
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputNotWritable(f"{output} exists and is not empty", "choose another --output", key="output_exists")
    with tempfile.TemporaryDirectory() as scratch:
        table = run_hazards(output or Path(scratch), names, keep=output is not None, flips=flips)
    if markdown is not None:
        from fourphase.runtime.atomic import write_file

        write_file(markdown, table.markdown().encode())
    with stdout_checked():
        if not json_output:
            _print(table)
        print(json.dumps(table.to_dict()))


def _print(table: HazardTable) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table("hazard", *(f"{_TITLES[name]} {number or 'absent'}" for name, number in table.versions.items()))
    for row in table.rows:
        shown.add_row(row.what, *(row.words[name] for name in table.versions))
    console = Console(highlight=False, soft_wrap=True)
    console.print(shown)
    for count in table.flips:
        console.print(
            f"{count.flips} flips in {count.syntax}: refused {count.refused}, small {count.small}, "
            f"unseen {count.unseen} (at worst {count.worst_hu:.0f} HU on average)"
        )
    unexpected = [row.key for row in table.rows if not row.as_expected]
    if unexpected:
        console.print(f"our reader did something else than expected: {', '.join(unexpected)}")
