"""Study -> result, without torch: what runs beside the scanner, as a library.

    from fourphase.runtime import StudyRequest, load_model, run_study
    model = load_model(Path("liver.bundle"))
    result, prepared = run_study(model, StudyRequest(Path("study"), Path("lesion_box.json")))

Importing this package loads nothing heavy; the names below are imported at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourphase.runtime.config import PreprocessingConfig
    from fourphase.runtime.errors import FourphaseError
    from fourphase.runtime.pipeline import (
        LoadedModel,
        PreparedStudy,
        StudyRequest,
        load_model,
        prepare_study,
        run_study,
    )
    from fourphase.runtime.result import StudyResult

__all__ = [
    "FourphaseError",
    "LoadedModel",
    "PreparedStudy",
    "PreprocessingConfig",
    "StudyRequest",
    "StudyResult",
    "load_model",
    "prepare_study",
    "run_study",
]

_MODULES = {
    "FourphaseError": "errors",
    "PreprocessingConfig": "config",
    "StudyResult": "result",
    **dict.fromkeys(
        ("LoadedModel", "PreparedStudy", "StudyRequest", "load_model", "prepare_study", "run_study"), "pipeline"
    ),
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fourphase.runtime.{_MODULES[name]}"), name)
