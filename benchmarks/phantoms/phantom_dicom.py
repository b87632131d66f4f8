"""Writes a phantom as a four-phase DICOM study: one CT file per slice, a localizer and a dose sheet to be skipped.

    OUT/dicom/<series>/<file>   CT Image Storage, Explicit VR Little Endian; names say nothing, as in an archive
    OUT/lesion_box.json         the lesion box, LPS mm
    OUT/lesion_mask.nii.gz      the lesion as a label mask on the portal venous grid
    OUT/truth.json              what was drawn

The same phantom gives the same bytes. Compressed syntaxes, multi-frame and oblique series are not written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage

from fourphase.benchmarks.phantoms.dicom_writer import base_dataset, decimal, fill, save, set_pixels
from fourphase.benchmarks.phantoms.nifti import write_label_mask
from fourphase.benchmarks.phantoms.phantom import BOX_PHASE, PHASES, Phantom
from fourphase.benchmarks.phantoms.phantom_headers import SeriesHeader, StudyHeader, make_header
from fourphase.benchmarks.phantoms.scan import Scan, lesion_voxels, make_scans
from fourphase.runtime.atomic import new_directory, write_file
from fourphase.runtime.errors import OutputNotWritable
from fourphase.runtime.preprocess import VoxelWindow

__all__ = ["WrittenStudy", "check_new", "write_study"]

_SLICES_AT_A_TIME = 16
_UNSIGNED_INTERCEPT = -1024


@dataclass(frozen=True)
class WrittenStudy:
    """Where a study was written, and what is in it.

    Attributes:
        shape: (slices, rows, columns) of every series.
        bytes_written: of the DICOM files.
    """

    folder: Path
    kind: str
    seed: int
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    descriptions: tuple[str, ...]
    bytes_written: int

    @property
    def dicom(self) -> Path:
        return self.folder / "dicom"

    @property
    def box(self) -> Path:
        return self.folder / "lesion_box.json"


def write_study(
    folder: Path, phantom: Phantom, matrix: int | None, slices: int | None, advance: Callable[[int], None]
) -> WrittenStudy:
    """Writes one study into a new or empty folder; complete or absent, never half.

    Args:
        matrix, slices: see `make_scans`.
        advance: called with the number of slices just written.

    Raises: OutputNotWritable if the folder holds anything; UsageError for an impossible size.
    """
    check_new(folder)
    scans = make_scans(phantom, matrix, slices)
    header = make_header(phantom, scans[BOX_PHASE])
    with new_directory(folder) as target:
        written = sum(_write_series(target / "dicom", header, phantom, scans[phase], advance) for phase in PHASES)
        written += _write_extras(target / "dicom", header, phantom)
        _write_lesion(target, header, phantom, scans[BOX_PHASE])
    scan = scans[BOX_PHASE]
    return WrittenStudy(
        folder=folder,
        kind=phantom.kind,
        seed=phantom.seed,
        shape=scan.shape,
        spacing_mm=(scan.pixel_spacing[1], scan.pixel_spacing[0], scan.slice_spacing),
        descriptions=tuple(header.series[phase].description for phase in PHASES),
        bytes_written=written,
    )


def check_new(folder: Path) -> None:
    """Raises OutputNotWritable if there is anything at `folder` but an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputNotWritable(
            f"{folder} exists and is not an empty folder",
            "choose another --output or --seed, or delete the folder",
            key="output_exists",
        )


def _write_series(root: Path, header: StudyHeader, phantom: Phantom, scan: Scan, advance: Callable[[int], None]) -> int:
    series, (count, _, _) = header.series[scan.phase], scan.shape
    names = _file_names(phantom, series, count)
    common = _series_dataset(header, series, scan)
    total = 0
    for index, hu in _slices(phantom, scan):
        number = count - index if header.head_to_feet else index + 1
        image = Dataset(common)
        image.SOPInstanceUID = header.instance_uid(series, number)
        image.InstanceNumber = number
        x, y, z = scan.origin
        image.ImagePositionPatient = [decimal(v) for v in (x, y, z + index * scan.slice_spacing)]
        set_pixels(image, hu if header.signed else (hu - _UNSIGNED_INTERCEPT).astype(np.uint16))
        total += save(root / series.folder / names[index], image)
        advance(1)
    return total


def _slices(phantom: Phantom, scan: Scan) -> Iterator[tuple[int, NDArray[np.int16]]]:
    """(index, HU) of every slice, feet first, computed a few at a time."""
    whole = scan.all_voxels
    for first in range(0, whole.slices.stop, _SLICES_AT_A_TIME):
        part = slice(first, min(first + _SLICES_AT_A_TIME, whole.slices.stop))
        yield from enumerate(scan.voxels(phantom, VoxelWindow(part, whole.rows, whole.columns)), start=first)


def _series_dataset(header: StudyHeader, series: SeriesHeader, scan: Scan) -> Dataset:
    """What all slices of a phase share (CT Image IOD, PS3.3 A.3)."""
    dataset = base_dataset(header, series)
    elements: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SliceThickness": decimal(scan.thickness),
        "KVP": "120",
        "ConvolutionKernel": header.kernel,
        "ProtocolName": "LIVER NC ART PV DL",
        "PatientPosition": "HFS",
        "FrameOfReferenceUID": header.frame_of_reference_uid,
        "PositionReferenceIndicator": "",
        "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
        "PixelSpacing": [decimal(value) for value in scan.pixel_spacing],
        "RescaleIntercept": "0" if header.signed else str(_UNSIGNED_INTERCEPT),
        "RescaleSlope": "1",
        "RescaleType": "HU",
        "WindowCenter": "40",
        "WindowWidth": "400",
    }
    if scan.phase != "NC":
        elements["ContrastBolusAgent"] = header.agent
        if header.bolus_time:
            elements["ContrastBolusStartTime"] = header.bolus_time
    fill(dataset, elements)
    return dataset


def _write_extras(root: Path, header: StudyHeader, phantom: Phantom) -> int:
    """A localizer and a screen capture of a dose sheet: every real study has such files, and no phase may be one."""
    return _write_localizer(root, header, phantom) + _write_dose_sheet(root, header)


def _write_localizer(root: Path, header: StudyHeader, phantom: Phantom) -> int:
    series, (x0, y0, z0) = header.localizer, phantom.offset
    x, z = x0 + np.linspace(-190, 190, 128), z0 + np.linspace(190, -190, 128)
    y = y0 + np.linspace(-130, 130, 40)
    hu = phantom.hu("NC", x[None, None, :], y[None, :, None], z[:, None, None]).mean(axis=1)
    image = base_dataset(header, series)
    elements: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": header.instance_uid(series, 1),
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        "InstanceNumber": 1,
        "SliceThickness": "1",
        "KVP": "120",
        "PatientPosition": "HFS",
        "FrameOfReferenceUID": header.frame_of_reference_uid,
        "PositionReferenceIndicator": "",
        "ImagePositionPatient": [decimal(value) for value in (x[0], y0, z[0])],
        "ImageOrientationPatient": ["1", "0", "0", "0", "0", "-1"],
        "PixelSpacing": [decimal(380 / 127)] * 2,
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
    }
    fill(image, elements)
    set_pixels(image, np.rint(hu).astype(np.int16))
    return save(root / series.folder / "IM000001", image)


def _write_dose_sheet(root: Path, header: StudyHeader) -> int:
    series, image = header.dose_sheet, base_dataset(header, header.dose_sheet)
    elements: dict[str, Any] = {
        "SOPClassUID": SecondaryCaptureImageStorage,
        "SOPInstanceUID": header.instance_uid(series, 1),
        "ImageType": ["DERIVED", "SECONDARY", "OTHER"],
        "ConversionType": "WSD",
        "InstanceNumber": 1,
        "PatientOrientation": "",
    }
    fill(image, elements)
    set_pixels(image, np.zeros((64, 64), dtype=np.uint8))
    return save(root / series.folder / "IM000001", image)


def _write_lesion(target: Path, header: StudyHeader, phantom: Phantom, scan: Scan) -> None:
    """Box, mask and truth; the box is the outer faces of the mask's voxels."""
    lesion = lesion_voxels(phantom, scan)
    box = {
        "space": "LPS_mm",
        "min": list(lesion.box.min),
        "max": list(lesion.box.max),
        "frame_of_reference_uid": str(header.frame_of_reference_uid),
    }
    mask = np.zeros(scan.shape, dtype=np.uint8)
    mask[lesion.window.slices, lesion.window.rows, lesion.window.columns] = lesion.mask
    dy, dx = scan.pixel_spacing
    truth = {
        "schema": "fourphase.phantom/1",
        "kind": phantom.kind,
        "seed": phantom.seed,
        "difficulty": phantom.difficulty,
        "lesion_ml": round(float(lesion.mask.sum()) * dx * dy * scan.slice_spacing / 1e3, 3),
        "noise_hu": round(phantom.noise_hu, 2),
        "breathing_mm": {phase: [round(v, 3) for v in phantom.shifts[i]] for i, phase in enumerate(PHASES)},
        "series": {phase: str(header.series[phase].uid) for phase in PHASES},
    }
    write_label_mask(target / "lesion_mask.nii.gz", mask, scan.origin, (dx, dy, scan.slice_spacing))
    for name, content in (("lesion_box.json", box), ("truth.json", truth)):
        write_file(target / name, (json.dumps(content, indent=1) + "\n").encode())


def _file_names(phantom: Phantom, series: SeriesHeader, count: int) -> list[str]:
    rng = np.random.default_rng([*phantom.entropy, 7, series.number])
    return [f"IM{number:06d}" for number in rng.choice(10**6, size=count, replace=False)]
