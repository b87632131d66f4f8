"""Results of tiny studies for tests of what is made out of a result: a real run of the tiny model, in milliseconds.

>>> result, prepared = run_tiny(model, write_study(tmp_path))
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fourphase.runtime.pipeline import LoadedModel, PreparedStudy, StudyRequest, load_model, run_study
from fourphase.runtime.result import StudyResult
from tests.support.dicom import stored_values, uid, write_series
from tests.support.tiny_bundle import write_tiny

__all__ = ["BOX", "SLICES", "STEP_MM", "run_tiny", "tiny_loaded", "write_study"]

#: LPS mm; with its margin of 10 mm it needs some of the slices that `write_study` writes, not all.
BOX = {"min": [-4.25, -6.0, 31.5], "max": [4.0, 6.125, 41.0]}
SLICES, STEP_MM = 30, 2.5
#: ASCII, so that every character set can write them.
DESCRIPTIONS = {"NC": "native", "ART": "arterial", "PV": "portal venous", "DL": "delayed"}


def tiny_loaded(folder: Path) -> LoadedModel:
    """The tiny bundle, loaded for the CPU; once per module is enough."""
    return load_model(write_tiny(folder / "tiny.bundle").path, backend="onnxruntime")


def write_study(folder: Path, **elements: Any) -> Path:
    """Four phases of 30 slices, 2.5 mm apart from z = 0, in subfolders; `elements` as for `write_series`."""
    for number, (phase, description) in enumerate(DESCRIPTIONS.items(), 2):
        defaults = {
            "SeriesInstanceUID": uid("series", phase),
            "SeriesNumber": number,
            "SeriesDescription": description,
            "AcquisitionNumber": number,
            "AcquisitionTime": f"10{15 + number}00",
        }
        voxels = stored_values((SLICES, 16, 16), number)
        write_series(folder / phase, voxels, step=(0.0, 0.0, STEP_MM), **{**defaults, **elements})
    return folder


def run_tiny(model: LoadedModel, study: Path, box: dict[str, Any] | None = None) -> tuple[StudyResult, PreparedStudy]:
    """Runs the study with a box, which is written beside it."""
    path = study.with_name(f"{study.name}_box.json")
    path.write_text(json.dumps({"space": "LPS_mm", **(box or BOX)}))
    return run_study(model, StudyRequest(study, path))
