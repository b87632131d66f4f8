"""The study that is measured: a phantom written for the occasion, or the user's; and the page cache it lies in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from fourphase.runtime.console import note, progress
from fourphase.runtime.errors import InputMissing, UsageError

__all__ = [
    "DROP_CACHES",
    "StudyFiles",
    "drop_page_cache",
    "given_study",
    "into_page_cache",
    "packages_into_page_cache",
    "phantom_study",
]

SLICES, MATRIX = 250, 512
#: Small enough for a rehearsal, large enough for the lesion box and the tissue around it.
QUICK_SLICES, QUICK_MATRIX = 40, 96
_CHUNK = 1 << 20
#: What the pipelines import that is large; the first to start would else pay for the disk.
_PACKAGES = ("SimpleITK", "torch", "onnxruntime", "openvino")
#: Writing 3 frees what the kernel keeps of files; only root may.
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class StudyFiles:
    """A study on disk.

    Attributes:
        what: how a reader should name it.
        phantom: it is synthetic.
    """

    folder: Path
    box: Path
    what: str
    phantom: bool

    @property
    def files(self) -> list[Path]:
        """Every regular file, sorted."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


@contextmanager
def phantom_study(slices: int | None, *, quick: bool) -> Iterator[StudyFiles]:
    """A phantom's study that lives as long as the context.

    Args:
        slices: per phase; None for 250 of 512 x 512, for `quick` 40 of 96 x 96.
    """
    from fourphase.benchmarks.phantoms.phantom import PHASES, make_phantom
    from fourphase.benchmarks.phantoms.phantom_dicom import write_study

    matrix = QUICK_MATRIX if quick else MATRIX
    count = slices or (QUICK_SLICES if quick else SLICES)
    what = f"phantom of {len(PHASES)} x {count} slices of {matrix} x {matrix}"
    note(f"writing a {what}")
    with TemporaryDirectory(prefix="fourphase-end-to-end-") as scratch:
        with progress("writing the phantom", len(PHASES) * count) as advance:
            written = write_study(Path(scratch, "study"), make_phantom("HCC", 1), matrix, count, advance)
        yield StudyFiles(written.dicom, written.box, what, phantom=True)


def given_study(folder: Path, box: Path) -> StudyFiles:
    """The user's own. Raises: InputMissing (10), UsageError (2) for a box that the plain pipelines cannot read."""
    if not folder.is_dir() or not box.is_file():
        raise InputMissing("the study folder or its lesion box does not exist", "give STUDY_DIR and --box FILE.json")
    if box.suffix != ".json":
        raise UsageError(
            "the plain pipelines read a JSON box only", "give the box as JSON (LPS mm): --box FILE.json", key="box_json"
        )
    return StudyFiles(folder, box, "the study given", phantom=False)


def into_page_cache(study: StudyFiles) -> int:
    """Reads every file once, so that no pipeline meets a colder disk than another; returns their bytes."""
    return sum(map(_read, study.files))


def packages_into_page_cache(*others: Path, packages: Sequence[str] = _PACKAGES) -> int:
    """The same for the files of the packages that are installed and below `others`; returns their bytes."""
    specs = [find_spec(package) for package in packages]
    folders = [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]
    total = 0
    for root in (*folders, *others):
        for path in [root] if root.is_file() else root.rglob("*"):
            with suppress(OSError):  # what cannot be read is no part of a start
                total += _read(path) if path.is_file() else 0
    return total


def _read(path: Path) -> int:
    total = 0
    with path.open("rb") as handle:
        while data := handle.read(_CHUNK):
            total += len(data)
    return total


def drop_page_cache(switch: Path = DROP_CACHES) -> str:
    """Asks the kernel to forget what it keeps of files; returns why it would not, "" if it did."""
    os.sync()
    try:
        switch.write_text("3\n", encoding="ascii")
    except OSError as error:
        return f"the page cache could not be emptied ({(error.strerror or 'error').lower()}): only root may"
    return ""
