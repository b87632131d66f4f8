"""Calibration sets of random studies for the small network, and a network in which one block overflows FP16."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from fourphase.calibration.calibrate import write_calibration_set
from fourphase.calibration.calibration_set import CalibrationSet
from fourphase.export.network import FourPhaseNet
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.pipeline import PreparedStudy
from tests.support.networks import SMALL, random_study

__all__ = ["poisoned", "write_random_set"]

PHASES = ("NC", "ART", "PV", "DL")


def write_random_set(
    target: Path, count: int, seed: int, *, config: PreprocessingConfig = SMALL, labelled: bool = True
) -> CalibrationSet:
    """A set of `count` random studies as `random_study` makes them; the classes alternate."""
    series: Any = SimpleNamespace(series=SimpleNamespace(slices=range(8)))
    studies = [
        SimpleNamespace(uid=f"1.2.{seed}.{index}", input=random_study(seed=100 * seed + index)[0], phases=_all(series))
        for index in range(count)
    ]
    labels = [("HCC", "ICC")[index % 2] for index in range(count)] if labelled else None
    return write_calibration_set(
        target, (cast(PreparedStudy, study) for study in studies), config, PHASES, labels=labels
    )


def _all(series: Any) -> dict[str, Any]:
    return dict.fromkeys(PHASES, series)


def poisoned(network: FourPhaseNet, factor: float = 2.0**17) -> FourPhaseNet:
    """Scales one map inside stage 3 of the arterial trunk beyond FP16, and back: the same function in FP32.

    A power of two moves no bit of an FP32 value, so that the outputs stay what they were.
    """
    state = network.state_dict()
    prefix = "trunks.ART.stages.3.1"
    for name in ("bn1.weight", "bn1.bias"):
        state[f"{prefix}.{name}"].mul_(factor)
    state[f"{prefix}.conv2.weight"].div_(factor)
    return network
