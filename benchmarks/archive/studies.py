"""The studies and the bundle that an archive run gets when it is given none: phantoms, and an untrained network.

Said loudly wherever their figures stand: they tell how fast, nothing of how right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fourphase.runtime.batch import boxes_of, check_boxes, list_studies
from fourphase.runtime.console import progress
from fourphase.runtime.pipeline import StudyRequest

__all__ = ["BOX", "Found", "default_bundle", "find_studies", "phantoms"]

#: As phantoms call their lesion box.
BOX = "lesion_box.json"
#: (rows and columns, slices) of a phantom for a rehearsal; None for what the phantom's own protocol has.
_QUICK, _FULL = (64, 24), (None, None)


@dataclass(frozen=True)
class Found:
    """Studies with their boxes, and how many other files lay beside them."""

    requests: Sequence[StudyRequest]
    ignored: int
    phantoms: bool


def find_studies(folder: Path, box: str) -> Found:
    """Every folder and zip file in `folder`, with its box; both as `fp-run --each` takes them.

    Raises: InputMissing (10), UsageError (2).
    """
    studies, ignored = list_studies([folder])
    boxes = boxes_of(studies, [Path(box)], each=True)
    requests = [StudyRequest(study, own) for study, own in zip(studies, boxes, strict=True)]
    check_boxes(requests, each=True)
    return Found(requests, ignored, phantoms=False)


@contextmanager
def phantoms(count: int, *, quick: bool) -> Iterator[Found]:
    """`count` phantom studies in a temporary folder, HCC and ICC in turn."""
    from fourphase.benchmarks.phantoms.phantom import KINDS, make_phantom
    from fourphase.benchmarks.phantoms.phantom_dicom import write_study

    matrix, slices = _QUICK if quick else _FULL
    with TemporaryDirectory(prefix="fourphase-phantoms-") as scratch:
        with progress(f"writing {count} phantom studies", count) as advance:
            for index in range(count):
                phantom = make_phantom(KINDS[index % len(KINDS)], index)
                write_study(Path(scratch) / f"{index:04d}", phantom, matrix, slices, lambda _: None)
                advance(1)
        yield Found(find_studies(Path(scratch), BOX).requests, 0, phantoms=True)


def default_bundle(*, quick: bool) -> tuple[Path, dict[str, Any]]:
    """The bundle of the untrained network of the paper, and what is to be said of it."""
    from fourphase.benchmarks.latency.prepare import NOT_ACCURACY, prepare

    prepared = prepare("four-phase", quick=quick)
    return prepared.bundle, {"network": prepared.network, "note": NOT_ACCURACY, "missing": dict(prepared.missing)}
