"""The other readers on a hazard, each as its users call it: SimpleITK, dicom2nifti, dcm2niix.

Every read happens in a process of its own, with bounded memory and time, because some hazards take readers down. Which
outcome is right is not decided here, only how far it is from the truth: `ReaderOutcome.off`.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.hazards.hazard import Bound
from fourphase.benchmarks.hazards.study import HURT, MARKER_HU, MARKERS, SoundStudy
from fourphase.runtime.errors import UsageError

__all__ = ["READERS", "ReaderOutcome", "read_with", "reader_version"]

Float = NDArray[np.float64]

_SIMPLEITK, _DICOM2NIFTI, _DCM2NIIX = "simpleitk", "dicom2nifti", "dcm2niix"
READERS = (_SIMPLEITK, _DICOM2NIFTI, _DCM2NIIX)
_PACKAGES = {_SIMPLEITK: "SimpleITK", _DICOM2NIFTI: "dicom2nifti"}
_MEMORY_BYTES, _SECONDS = 4 * 2**30, 20.0
#: A marker is looked for this far from its place within the axial plane, mm; along the body anywhere.
_REACH_MM = 9.0
#: A slice with fewer voxels of the body tells nothing.
_LEAST_VOXELS = 40
_BODY_HU = -300.0
#: A marker of a few voxels is found this well; stored values are rounded.
_RIGHT = Bound(0.5, 1.0)
_MARGIN_MM = 10.0
#: LPS of DICOM from RAS of NIfTI.
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class ReaderOutcome:
    """What a reader made of a series.

    Attributes:
        kind: "read", "refused", "died" (with its process), "hung" or "absent".
        volumes: how many it gave; the one with most voxels was looked at.
        off: where it puts the markers, mm, and within lesion box and margin the HU of its worst slice, on average over
            the body's voxels, both against the truth at the places that it claims; None if nothing was read.
        lost: markers that are nowhere.
        said: what it warned of, without numbers and names.
    """

    kind: str
    volumes: int = 0
    off: Bound | None = None
    lost: int = 0
    said: frozenset[str] = frozenset()

    def words(self, usual: frozenset[str] = frozenset()) -> str:
        """The outcome as it stands in the table.

        Args:
            usual: what it says of the sound study, too.
        """
        if self.off is None:
            return {"absent": "not installed", "hung": f"no end in {_SECONDS:.0f} s"}.get(self.kind, self.kind)
        found = []
        if self.lost:
            found.append(f"{self.lost} of {MARKERS} markers gone")
        if self.off.mm > _RIGHT.mm:
            found.append(f"{self.off.mm:.0f} mm off" if self.off.mm >= 1 else f"{self.off.mm:.1f} mm off")
        elif self.off.hu > _RIGHT.hu and not self.lost:
            found.append(f"{self.off.hu:.0f} HU off")
        words = ["warned" if self.said - usual else "silent", *(found or ["right"])]
        if self.volumes > 1:
            words.append(f"{self.volumes} volumes")
        return "right" if words == ["silent", "right"] else ", ".join(words)


@dataclass(frozen=True, eq=False)
class _Volume:
    """HU and the matrix from an index, as the array has it, to LPS mm, float64 (4, 4)."""

    hu: Float
    matrix: Float


def reader_version(name: str) -> str:
    """The version of a reader, '' where it is not installed.

    Raises: UsageError for an unknown reader.
    """
    if name not in READERS:
        raise UsageError(f"unknown reader {name!r}", f"choose out of ours, {', '.join(READERS)}", key="reader_unknown")
    if name == _DCM2NIIX:
        program = shutil.which(name)
        if program is None:
            return ""
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"v(\d[\w.]*)", said)
        return found[1] if found else "unknown"
    try:
        return version(_PACKAGES[name])
    except PackageNotFoundError:
        return ""


def read_with(name: str, folder: Path, sound: SoundStudy) -> ReaderOutcome:
    """Reads the series in a folder with one of READERS and compares it with the truth."""
    if not reader_version(name):
        return ReaderOutcome("absent")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["SimpleITK", "dicom2nifti", __name__])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, folder, sound, send))
    process.start()
    send.close()
    try:
        outcome: ReaderOutcome = receive.recv() if receive.poll(_SECONDS) else ReaderOutcome("hung")
    except EOFError:
        outcome = ReaderOutcome("died")
    finally:
        process.kill()
        process.join()
        receive.close()
    return outcome


def _child(name: str, folder: Path, sound: SoundStudy, send: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as scratch:
        said = Path(scratch, "said")
        _redirect(said)
        send.send(_outcome(_READ[name], folder, Path(scratch), sound, said))


def _redirect(target: Path) -> None:
    """Everything that is printed goes into a file, C++ included."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _outcome(
    read: Callable[[Path, Path], list[_Volume]], folder: Path, scratch: Path, sound: SoundStudy, said: Path
) -> ReaderOutcome:
    with warnings.catch_warnings(record=True) as caught, redirect_stderr(io.StringIO()) as python:
        warnings.simplefilter("always")
        try:
            volumes = read(folder, scratch)
        except Exception:  # whatever the reader refuses with
            return ReaderOutcome("refused")
    if not volumes:
        return ReaderOutcome("refused")
    sys.stdout.flush()
    text = said.read_text(errors="replace") + python.getvalue()
    spoken = {_plain(str(one.message)) for one in caught}
    spoken |= {_plain(line) for line in text.splitlines() if re.search(r"warn|error", line, re.IGNORECASE)}
    largest = max(volumes, key=lambda volume: volume.hu.size)
    off, lost = _compared(largest, sound)
    return ReaderOutcome("read", len(volumes), off, lost, frozenset(spoken))


def _plain(text: str) -> str:
    """Without numbers and paths, which differ from run to run."""
    return re.sub(r"\S*/\S*|0x[0-9a-f]+|\d+", "", text).strip()


def _simpleitk(folder: Path, scratch: Path) -> list[_Volume]:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return [_Volume(sitk.GetArrayFromImage(image).T.astype(np.float64), matrix)]


def _dicom2nifti(folder: Path, scratch: Path) -> list[_Volume]:
    import dicom2nifti

    dicom2nifti.dicom_series_to_nifti(str(folder), str(scratch / "out.nii"), reorient_nifti=False)
    return _niftis([scratch / "out.nii"])


def _dcm2niix(folder: Path, scratch: Path) -> list[_Volume]:
    command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "v", "-o", str(scratch), str(folder)]
    subprocess.run(command, check=True, timeout=_SECONDS)
    return _niftis(scratch.glob("*.nii"))


_READ: dict[str, Callable[[Path, Path], list[_Volume]]] = {
    _SIMPLEITK: _simpleitk,
    _DICOM2NIFTI: _dicom2nifti,
    _DCM2NIIX: _dcm2niix,
}


def _niftis(paths: Iterable[Path]) -> list[_Volume]:
    import nibabel

    images: list[Any] = [nibabel.load(path) for path in sorted(paths)]
    return [_Volume(_first_volume(np.asarray(image.get_fdata())), _RAS_TO_LPS @ image.affine) for image in images]


def _first_volume(array: Float) -> Float:
    return array[..., 0] if array.ndim > 3 else array


def _compared(volume: _Volume, sound: SoundStudy) -> tuple[Bound, int]:
    """(where markers and HU are off, markers that are nowhere)."""
    hu = volume.hu if volume.hu.ndim == 3 else volume.hu[..., None]
    index = np.moveaxis(np.indices(hu.shape), 0, -1)
    points = index @ volume.matrix[:3, :3].T + volume.matrix[:3, 3]
    errors = [_marker_error(points, hu, marker) for marker in sound.markers]
    found = [error for error in errors if np.isfinite(error)]
    return Bound(max(found, default=0.0), _worst_slice(points, hu, sound)), len(errors) - len(found)


def _marker_error(points: Float, hu: Float, marker: Float) -> float:
    """Distance of a marker's centre of brightness from its place, mm; infinite if there is none."""
    near = ((points[..., :2] - marker[:2]) ** 2).sum(axis=-1) < _REACH_MM**2
    weights = np.clip(hu[near] - MARKER_HU, 0, None)
    if not weights.sum():
        return float("inf")
    centre = (points[near] * weights[:, None]).sum(axis=0) / weights.sum()
    return float(np.linalg.norm(centre - marker))


def _worst_slice(points: Float, hu: Float, sound: SoundStudy) -> float:
    """The largest mean difference from the truth, HU, of a slice's voxels that lie in the body."""
    truth, region = sound.hu(HURT, points), sound.box.grown(_MARGIN_MM)
    needed = ((points >= region.min) & (points <= region.max)).all(axis=-1) & (truth > _BODY_HU)
    differences = []
    for index in range(hu.shape[2]):
        body = needed[..., index]
        if np.count_nonzero(body) >= _LEAST_VOXELS:
            differences.append(float(np.abs(hu[..., index][body] - truth[..., index][body]).mean()))
    return float(np.nan_to_num(differences, nan=np.inf).max(initial=0.0))
