"""Collected against ONNX Runtime's own outputs and its MinMax calibrator; the cache refuses what it is not for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from fourphase.calibration.blocks import with_outputs
from fourphase.calibration.calibration_set import CalibrationSet
from fourphase.calibration.int8 import scale_of
from fourphase.calibration.qdq import quantizable_values
from fourphase.calibration.scales import (
    ActivationHistograms,
    Scales,
    collect_histograms,
    read_scales,
    scales_from,
    write_scales,
)
from fourphase.calibration.thresholds import ALGORITHMS
from fourphase.runtime.errors import FourphaseError, IntegrityError, ModelIncompatible, UsageError
from tests.support.quantizable import quantizable_model, studies, write_set

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    return write_set(tmp_path_factory.mktemp("calibration") / "set", studies(4))


@pytest.fixture(scope="module")
def model() -> bytes:
    return bytes(quantizable_model().SerializeToString())


@pytest.fixture(scope="module")
def activations(model: bytes, data: CalibrationSet) -> ActivationHistograms:
    return collect_histograms(model, quantizable_values(onnx.load_from_string(model)), data)


def outputs_of(model: bytes, name: str, data: CalibrationSet) -> Floats:
    marked = with_outputs(onnx.load_from_string(model), [name]).SerializeToString()
    session = onnxruntime.InferenceSession(marked, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run([name], {"study": study})[0] for study in data.studies()])


@pytest.mark.parametrize("name", ["stem", "s1_b", "s2_skip"])
def test_every_value_of_every_study_is_counted(
    model: bytes, data: CalibrationSet, activations: ActivationHistograms, name: str
) -> None:
    values, histogram = outputs_of(model, name, data), activations.histograms[name]
    assert histogram.counts.sum() + histogram.zeros == values.size
    assert histogram.largest == pytest.approx(float(np.abs(values).max()), rel=1e-6)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, data: CalibrationSet) -> None:
        self.studies = data.studies()

    def get_next(self) -> Any:
        study = next(self.studies, None)
        return None if study is None else {"study": study}


def test_minmax_is_onnxruntimes(
    model: bytes, data: CalibrationSet, activations: ActivationHistograms, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(model)
    calibrator = create_calibrator(
        str(tmp_path / "model.onnx"),
        ["Conv", "Add"],
        augmented_model_path=str(tmp_path / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"symmetric": True},
    )
    calibrator.collect_data(Reader(data))
    ranges = calibrator.compute_data()
    scales = scales_from(activations, "minmax")
    assert len(scales.values) > 8
    for name, scale in scales.values.items():
        if name in ranges:
            assert scale == pytest.approx(float(np.max(ranges[name].range_value[1])) / 127, rel=1.1e-3), name


def test_scales_say_what_they_are_of(model: bytes, data: CalibrationSet, activations: ActivationHistograms) -> None:
    for algorithm in ALGORITHMS:
        scales = scales_from(activations, algorithm)
        assert scales.algorithm == algorithm
        assert scales.onnx_sha256 == hashlib.sha256(model).hexdigest()
        assert scales.data_hash == data.hash
        assert set(scales.tools) == {"fourphase", "numpy", "onnxruntime"}
        assert all(np.float32(np.float16(scale)) == scale > 0 for scale in scales.values.values())
        largest = {name: scale_of(histogram.largest) for name, histogram in activations.histograms.items()}
        assert all(scale <= largest[name] for name, scale in scales.values.items())


def test_a_second_run_gives_the_same_scales(
    model: bytes, data: CalibrationSet, activations: ActivationHistograms
) -> None:
    again = collect_histograms(model, list(activations.histograms), data)
    for algorithm in ALGORITHMS:
        assert scales_from(again, algorithm) == scales_from(activations, algorithm)


def test_an_unknown_algorithm_is_refused(activations: ActivationHistograms) -> None:
    with pytest.raises(UsageError, match="unknown calibration algorithm 'kl'"):
        scales_from(activations, "kl")


def test_a_value_that_the_model_lacks_is_refused(model: bytes, data: CalibrationSet) -> None:
    with pytest.raises(ModelIncompatible, match="cannot load the model with its activations"):
        collect_histograms(model, ["stem", "nowhere"], data)


def test_a_model_of_another_input_is_refused(model: bytes, data: CalibrationSet) -> None:
    other = onnx.load_from_string(model)
    other.graph.input[0].type.tensor_type.shape.dim[5].dim_value = 16
    with pytest.raises(ModelIncompatible, match="cannot run the model on the calibration set"):
        collect_histograms(other.SerializeToString(), ["stem"], data)


def test_an_activation_that_overflows_is_refused_and_named(model: bytes, data: CalibrationSet) -> None:
    other = onnx.load_from_string(model)
    weight = next(tensor for tensor in other.graph.initializer if tensor.name == "s1_w1")
    huge = np.full(list(weight.dims), 3e38, dtype=np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(huge, "s1_w1"))
    with pytest.raises(ModelIncompatible, match="not finite in 's1_a'"):
        collect_histograms(other.SerializeToString(), ["stem", "s1_a"], data)


@pytest.fixture
def cached(activations: ActivationHistograms, tmp_path: Path) -> tuple[Path, Scales]:
    scales = scales_from(activations, "mse")
    write_scales(tmp_path / "scales.json", scales)
    return tmp_path / "scales.json", scales


def read(path: Path, scales: Scales, changes: dict[str, str] | None = None) -> Scales:
    keys: dict[str, Any] = {name: getattr(scales, name) for name in ("onnx_sha256", "data_hash", "algorithm")}
    return read_scales(path, **{**keys, **(changes or {})})


def test_scales_come_back_as_they_were(cached: tuple[Path, Scales]) -> None:
    assert read(*cached) == cached[1]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"onnx_sha256": "0" * 64}, "another model"),
        ({"data_hash": "0" * 64}, "another calibration set"),
        ({"algorithm": "minmax"}, "another algorithm"),
    ],
)
def test_scales_of_something_else_are_refused(cached: tuple[Path, Scales], changes: dict[str, str], text: str) -> None:
    with pytest.raises(ModelIncompatible, match=text) as caught:
        read(*cached, changes)
    assert caught.value.key == "scales_stale"


def test_scales_of_other_tools_are_refused(cached: tuple[Path, Scales]) -> None:
    path, scales = cached
    write_scales(path, replace(scales, tools={**scales.tools, "onnxruntime": "1.0"}))
    with pytest.raises(ModelIncompatible, match="another tool version"):
        read(path, scales)


def doubled(path: Path) -> None:
    document = json.loads(path.read_text())
    document["values"]["stem"] *= 2
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (doubled, IntegrityError),
        (lambda path: path.write_text("{"), IntegrityError),
        (lambda path: path.write_text('{"schema": "fourphase.scales/1", "sha256": ""}'), IntegrityError),
        (lambda path: path.write_text('{"schema": "other"}'), ModelIncompatible),
        (lambda path: path.unlink(), ModelIncompatible),
    ],
)
def test_altered_scales_are_refused(
    cached: tuple[Path, Scales], damage: Callable[[Path], Any], error: type[FourphaseError]
) -> None:
    damage(cached[0])
    with pytest.raises(error):
        read(*cached)
