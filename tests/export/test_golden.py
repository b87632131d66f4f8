"""Golden inputs: windows of one HU image, the same bytes everywhere; golden outputs: how far off a program may be."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import onnx
import pytest

from fourphase.calibration.blocks import Policy
from fourphase.calibration.ladder import Step
from fourphase.calibration.rounding import rounding_session
from fourphase.export import golden
from fourphase.export.golden import GoldenStudies, golden_codes, golden_file
from fourphase.runtime.config import PreprocessingConfig
from tests.support.lowered_bundle import write_lowered
from tests.support.quantizable import PREPROCESSING, SHAPE

CONFIG = PreprocessingConfig()
PHASES = SHAPE[0]


def test_every_channel_sees_the_same_hu_through_its_own_window() -> None:
    """HU are read back from the channel of the narrowest window, which resolves them best."""
    codes = golden_codes(2, 4, replace(CONFIG, size=(9, 20, 24))).astype(np.float64)
    narrow = min(range(3), key=lambda index: np.ptp(CONFIG.windows_hu[index]))
    low, high = CONFIG.windows_hu[narrow]
    hu = low + codes[:, :, :, narrow] / 255 * (high - low)
    np.testing.assert_allclose((hu.min(), hu.max()), (low, high), atol=2, err_msg="the narrowest window in full")
    for index, (low, high) in enumerate(CONFIG.windows_hu):
        expected = np.interp(hu, (low, high), (0, 255))
        np.testing.assert_allclose(codes[:, :, :, index], expected, rtol=0, atol=0.5 + 1e-9)


def test_blocks_differ_between_studies_and_phases_and_are_cut_to_size() -> None:
    codes = golden_codes(2, 4, replace(CONFIG, size=(9, 20, 24)))
    assert codes.shape == (2, 4, 9, 3, 20, 24)
    assert codes.dtype == np.uint8
    assert codes.flags.c_contiguous
    assert len({study_phase.tobytes() for study_phase in codes.reshape(8, -1)}) == 8
    np.testing.assert_array_equal(codes[:, :, 0:4], np.repeat(codes[:, :, :1], 4, axis=2))
    assert (codes[:, :, 3] != codes[:, :, 4]).any()
    assert (codes[..., 7, :] != codes[..., 8, :]).any()
    assert (codes[..., :, 7] != codes[..., :, 8]).any()


def test_the_bytes_are_the_seeds() -> None:
    """Random bits and IEEE arithmetic: the same on every machine, so that two machines' reports are of one question."""
    codes = golden_codes(1, 4, replace(CONFIG, size=(8, 16, 16)))
    assert hashlib.sha256(codes.tobytes()).hexdigest()[:16] == "50413329d4a5f3c7"
    assert (golden_codes(1, 4, replace(CONFIG, size=(8, 16, 16)), seed=1) != codes).any()


@pytest.mark.parametrize("windows", [((0.0, 0.5),), ((-1000.0, 1000.0), (500.25, 500.75))])
def test_windows_narrower_than_one_hu_still_vary(windows: tuple[tuple[float, float], ...]) -> None:
    channels = len(windows)
    config = replace(CONFIG, windows_hu=windows, mean=(0.5,) * channels, std=(0.5,) * channels, size=(8, 64, 64))
    codes = golden_codes(1, 4, config)
    narrow = len(windows) - 1
    assert np.ptp(codes[:, :, :, narrow].astype(int)) > 240


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Step, ...]:
    bundle = write_lowered(tmp_path_factory.mktemp("lowered") / "b")
    models = {name: onnx.load_model_from_string(bundle.read(bundle.models[name].file)) for name in ("fp16", "int8")}
    return tuple(Step(name, Policy(()), model) for name, model in models.items())


def test_no_tolerance_is_below_its_share_of_the_largest_logit(
    steps: tuple[Step, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = GoldenStudies(golden_codes(1, PHASES, PREPROCESSING), PREPROCESSING)
    fp32 = {"logits": np.zeros((1, 2), np.float32), "phase_logits": np.zeros((1, PHASES, 2), np.float32)}
    monkeypatch.setattr(golden, "_SPREAD_FACTOR", 0.0)
    for name, share in (("fp16", 1e-3), ("int8", 1e-2)):
        found = golden_file(studies, fp32, steps).outputs[name]
        assert found.tolerance.atol == pytest.approx(share * float(np.abs(found.logits).max()))
        assert found.phase_logits is not None
        assert found.tolerance.phase_atol == pytest.approx(share * float(np.abs(found.phase_logits).max()))


def test_int8_is_measured_over_several_roundings(steps: tuple[Step, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which codes move is chance: one comparison may see too little. FP16, which is smooth, is compared once."""
    studies = GoldenStudies(golden_codes(2, PHASES, PREPROCESSING), PREPROCESSING)
    fp32 = {"logits": np.zeros((2, 2), np.float32), "phase_logits": np.zeros((2, PHASES, 2), np.float32)}
    monkeypatch.setattr(golden, "_LOWERED_FLOOR", {"fp16": 0.0, "int8": 0.0})
    several = golden_file(studies, fp32, steps).outputs
    monkeypatch.setattr(golden, "_DRAWS", {"fp16": 0, "int8": 0})
    once = golden_file(studies, fp32, steps).outputs
    assert several["fp16"].tolerance == once["fp16"].tolerance
    assert several["int8"].tolerance.atol >= once["int8"].tolerance.atol
    assert several["int8"].tolerance.phase_atol >= once["int8"].tolerance.phase_atol
    assert several["int8"].tolerance != once["int8"].tolerance


def test_the_tolerance_is_four_times_what_rounding_may_do(
    steps: tuple[Step, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP16's is computed again here; int8's holds for inputs rounded in ways that it was not measured on."""
    monkeypatch.setattr(golden, "_LOWERED_FLOOR", {"fp16": 0.0, "int8": 0.0})
    studies = GoldenStudies(golden_codes(2, PHASES, PREPROCESSING), PREPROCESSING)
    fp32 = {"logits": np.zeros((2, 2), np.float32), "phase_logits": np.zeros((2, PHASES, 2), np.float32)}
    made = golden_file(studies, fp32, steps)
    again = golden_file(studies, fp32, steps).outputs
    assert [again[name].tolerance for name in again] == [made.outputs[name].tolerance for name in made.outputs]
    inputs = [studies.study(index) for index in range(2)]
    spread = {}
    for step in steps:
        literal, fused = rounding_session(step.model), rounding_session(step.model, rounds=False)
        expected = made.outputs[step.precision]
        np.testing.assert_array_equal(expected.logits, np.concatenate([literal(study)["logits"] for study in inputs]))
        spread[step.precision] = max(
            float(np.abs(literal(study)["logits"] - fused(study)["logits"]).max()) for study in inputs
        )
    atol = {name: made.outputs[name].tolerance.atol for name in spread}
    assert atol["fp16"] == pytest.approx(4 * spread["fp16"])
    assert atol["int8"] >= 4 * spread["int8"] > 0
    run, generator = rounding_session(steps[1].model), np.random.default_rng(7)
    for study in inputs:
        rounded = (study * (1 + generator.uniform(-(2.0**-11), 2.0**-11, study.shape))).astype(np.float32)
        assert float(np.abs(run(rounded)["logits"] - run(study)["logits"]).max()) < atol["int8"]
