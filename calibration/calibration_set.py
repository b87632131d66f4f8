"""The calibration set as an artefact: preprocessed studies in a directory, with what is needed to trust them.

    DIR/calibration.json     cases, labels, phases, HU histograms, preprocessing, sha256 of every file
    DIR/cases/<hash>.npy     one study each, float16 (P, T, C, H, W), windowed and normalised

Read study by study: memory does not grow with the number of studies, and what is used is what was hashed. There is no
default set and no random data. `calibrate` makes a set from DICOM; nothing here computes scales.

float16 and not the golden file's 8 bits: on a network trained on phantoms, rounding the input to float16 left the
logits 74 dB above the error, 8 bits 50 dB, which is as much as FP16 arithmetic itself costs.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.runtime.bundle import is_safe_name
from fourphase.runtime.config import PreprocessingConfig, canonical_json
from fourphase.runtime.errors import InputMissing, IntegrityError, ModelIncompatible, PixelDataError, UsageError

__all__ = ["MANIFEST", "SCHEMA", "STORED", "CalibrationCase", "CalibrationSet", "check_overlap", "load_calibration_set"]

SCHEMA = "fourphase.calibration-set/1"
MANIFEST = "calibration.json"
#: How a study is stored.
STORED = np.dtype("<f2")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CalibrationCase:
    """One study of the set.

    Attributes:
        case: salted hash of the study's UID; two lesions of one study share it.
        file: relative to the set. sha256, bytes: of that file; the hash also tells equal content apart.
        slices: phase -> slices of the series it was read from.
        label: the true class, such as "HCC"; None where it is not known.
    """

    case: str
    file: str
    sha256: str
    bytes: int
    slices: Mapping[str, int]
    label: str | None = None


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """A checked manifest; the studies are read and verified one by one.

    Attributes:
        cases: ordered by content, so that the order in which studies were given does not matter.
        shape: (P, T, C, H, W) of one study.
        hu_histograms: see `hu_histogram`.
        salted: whether the case hashes were made with the site's secret. salt_mark: what tells one from another.
    """

    path: Path
    cases: tuple[CalibrationCase, ...]
    phases: tuple[str, ...]
    preprocessing: PreprocessingConfig
    shape: tuple[int, ...]
    hu_histograms: Mapping[str, Any]
    salted: bool
    salt_mark: str

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def hash(self) -> str:
        """sha256 of everything that scales depend on: content of the studies, phase order, preprocessing; no labels."""
        content = [self.preprocessing.hash, list(self.phases), sorted(case.sha256 for case in self.cases)]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The true class of every study, in the order of `study`; None unless all are known."""
        known = tuple(case.label for case in self.cases if case.label is not None)
        return known if len(known) == len(self) else None

    def check_salt(self, mark: str) -> None:
        """Raises: UsageError (2) if this set's case hashes cannot be compared with those made under `mark`."""
        if mark != self.salt_mark:
            raise UsageError(
                "the two sets were not made with the same FOURPHASE_SALT, so their cases cannot be compared",
                "make both with the same FOURPHASE_SALT, or both without",
                key="calibration_salt",
            )

    def studies(self) -> Iterator[Floats]:
        """The studies one after the other, float32 (1, P, T, C, H, W). Raises: as `study`."""
        return (self.study(index) for index in range(len(self)))

    def study(self, index: int) -> Floats:
        """Study `index` as the network takes it, float32 (1, P, T, C, H, W).

        Raises: IntegrityError (21) if the file is not what was written; PixelDataError (15) for a value that is not
            finite.
        """
        case = self.cases[index]
        try:
            data = (self.path / case.file).read_bytes()
        except OSError as error:
            raise _damaged(f"{case.file} cannot be read ({(error.strerror or 'error').lower()})") from error
        if hashlib.sha256(data).hexdigest() != case.sha256:
            raise _damaged(f"{case.file} differs from its manifest (sha256)")
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise _damaged(f"{case.file} is not an array") from error
        if array.dtype != STORED or array.shape != self.shape:
            raise _damaged(f"{case.file} is {array.dtype} {array.shape}, not {STORED} {self.shape}")
        if not np.isfinite(array).all():
            raise PixelDataError(
                f"study {index + 1} of {len(self)} of the calibration set holds values that are not finite",
                "make the calibration set again without that study",
                key="input_not_finite",
            )
        study: Floats = array.astype(np.float32)[None]
        return study


def load_calibration_set(
    path: Path, preprocessing: PreprocessingConfig | None, phases: Sequence[str] | None = None
) -> CalibrationSet:
    """Reads and checks a set's manifest; the studies are verified when they are read.

    Args:
        preprocessing, phases: of the model to calibrate, the phases in its order; None to leave that unchecked.

    Raises: InputMissing (10) if there is no set or none with studies; ModelIncompatible (20) for another schema,
        preprocessing or phase order; IntegrityError (21) for a manifest or files that are not what was written.
    """
    manifest = _read_manifest(path)
    try:
        found = _parse(path, manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(f"its {MANIFEST} is invalid") from error
    if preprocessing is not None and found.preprocessing.hash != preprocessing.hash:
        raise ModelIncompatible(
            f"the calibration set's preprocessing is {found.preprocessing.hash}, the model's {preprocessing.hash}",
            "make the calibration set again with the model's preprocessing (fp-export calibrate --checkpoint)",
            key="calibration_preprocessing",
        )
    if phases is not None and found.phases != tuple(phases):
        raise ModelIncompatible(
            f"the calibration set's phases are {', '.join(found.phases)}, the model's {', '.join(phases)}",
            "make the calibration set again with the model's phases",
            key="calibration_phases",
        )
    _check_files(found)
    return found


def check_overlap(data: CalibrationSet, other: CalibrationSet | Iterable[str], names: Sequence[str] = ()) -> None:
    """Refuses to calibrate on what a model is judged on.

    Args:
        other: another set, or case hashes and content hashes (sha256) as they come.
        names: what the error calls the studies of `data`; by default their case hashes.

    Raises: UsageError (2) if a study is in both, by its UID's hash or by its content; as `check_salt` for a set.
    """
    if isinstance(other, CalibrationSet):
        other.check_salt(data.salt_mark)
        other = [name for case in other.cases for name in (case.case, case.sha256)]
    known, names = set(other), names or [case.case for case in data.cases]
    shared = [name for name, case in zip(names, data.cases, strict=True) if {case.case, case.sha256} & known]
    if shared:
        raise UsageError(
            f"{len(shared)} of {len(data)} calibration studies are also in the other set: {', '.join(sorted(shared))}",
            "calibrate on other studies, or leave these out of the evaluation",
            key="calibration_overlap",
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except OSError as error:
        raise InputMissing(
            f"{path} is not a calibration set: {MANIFEST} cannot be read ({(error.strerror or 'error').lower()})",
            "give a directory written by fp-export calibrate",
            key="calibration_missing",
        ) from error
    except ValueError as error:
        raise _damaged(f"its {MANIFEST} is not valid JSON") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ModelIncompatible(
            f"the calibration set's schema is not {SCHEMA}",
            "make it again with fp-export calibrate of this version",
            key="schema_unknown",
        )
    return manifest


def _parse(path: Path, manifest: Mapping[str, Any]) -> CalibrationSet:
    phases = tuple(manifest["phases"])
    preprocessing = PreprocessingConfig.from_dict(manifest["preprocessing"])
    slices, rows, columns = preprocessing.size
    return CalibrationSet(
        path=path,
        cases=tuple(_case(section) for section in manifest["cases"]),
        phases=phases,
        preprocessing=preprocessing,
        shape=(len(phases), slices, preprocessing.channels, rows, columns),
        hu_histograms=manifest["hu_histograms"],
        salted=bool(manifest["salted"]),
        salt_mark=str(manifest["salt_mark"]),
    )


def _case(section: Mapping[str, Any]) -> CalibrationCase:
    case = CalibrationCase(**section)
    if not isinstance(case.label, str | None):
        raise TypeError("a label is no text")
    return case


def _check_files(found: CalibrationSet) -> None:
    """Every study is there with its size, so that a half-copied set is refused before any work."""
    if not found.cases:
        raise InputMissing(
            "the calibration set holds no studies", "make it again with at least one study", key="calibration_empty"
        )
    for case in found.cases:
        file = found.path / case.file
        if not is_safe_name(case.file) or not file.is_file() or file.stat().st_size != case.bytes:
            raise _damaged(f"{case.file} is missing or not of the size its manifest says")


def _damaged(problem: str) -> IntegrityError:
    return IntegrityError(
        f"the calibration set is damaged: {problem}", "copy it again from its source, or make it again"
    )
