from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fourphase.calibration.blocks import Policy
from fourphase.calibration.gates import DEFAULTS, Acceptance, judge, read_acceptance, require
from fourphase.calibration.ladder import BlockError, Rung, Step, require_passed
from fourphase.runtime.errors import AccuracyGateFailed, InputMissing, ParityFailed, UsageError

GENERATOR = np.random.default_rng(0)
TRUTH = np.arange(40) % 2 == 1
LOGITS = GENERATOR.normal(size=(40, 2)).astype(np.float32) + np.stack([~TRUTH, TRUTH], axis=1)


def test_equal_logits_pass_every_gate() -> None:
    verdict = judge("int8", LOGITS, LOGITS.copy(), DEFAULTS["int8"], TRUTH)
    assert verdict.failed == ()
    assert verdict.flips == 0
    assert dict(verdict.bars) == {"mlperf_99": True, "mlperf_99_9": True}
    assert verdict.to_dict()["sqnr_db"] is None
    require(verdict, DEFAULTS["int8"])


def test_noise_fails_parity_first() -> None:
    noisy = LOGITS + GENERATOR.normal(size=LOGITS.shape).astype(np.float32)
    verdict = judge("fp16", LOGITS, noisy, DEFAULTS["fp16"], TRUTH)
    assert "min_sqnr_db" in verdict.failed
    with pytest.raises(ParityFailed, match="fp16 fails the gate min_sqnr_db"):
        require(verdict, DEFAULTS["fp16"])


def test_the_error_carries_the_table_it_is_given() -> None:
    verdict = judge("fp16", LOGITS, LOGITS + 1, DEFAULTS["fp16"], TRUTH)
    with pytest.raises(ParityFailed) as caught:
        require(verdict, DEFAULTS["fp16"], [{"block": "stem", "SQNR": "3.0 dB"}])
    assert list(caught.value.table) == [{"block": "stem", "SQNR": "3.0 dB"}]


def test_a_failed_rung_shows_the_worst_phase_of_every_block() -> None:
    verdict = judge("fp16", LOGITS, LOGITS + 1, DEFAULTS["fp16"], TRUTH)
    blocks = (
        BlockError("stem/NC", "fp16", 40.0, 0.1, 1.0),
        BlockError("stem/PV", "fp16", 31.25, 0.2, 1.0),
        BlockError("gru", "fp32", None, 0.0, 1.0),
        BlockError("mix1/NC", "fp16", 50.0, 0.1, 1.0),
        BlockError("mix1/PV", "fp16", None, None, 1e6),
    )
    with pytest.raises(ParityFailed) as caught:
        require_passed([Rung(Step("fp16", Policy(()), onnx.ModelProto()), verdict, DEFAULTS["fp16"], blocks)])
    rows = [(row["block"], row["SQNR"]) for row in caught.value.table]
    assert rows == [("stem/PV", "31.2 dB"), ("gru", "equal"), ("mix1/PV", "not finite")]


def test_one_changed_decision_fails_at_zero_flips() -> None:
    changed = LOGITS.copy()
    nearest = int(np.abs(LOGITS[:, 0] - LOGITS[:, 1]).argmin())
    changed[nearest] = changed[nearest, ::-1]
    verdict = judge("int8", LOGITS, changed, Acceptance(10.0), TRUTH)
    assert verdict.flips == 1
    with pytest.raises(AccuracyGateFailed, match="1 of 40 decisions changed, 0 allowed"):
        require(verdict, Acceptance(10.0))
    require(judge("int8", LOGITS, changed, Acceptance(10.0, max_flips=1), TRUTH), Acceptance(10.0, max_flips=1))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_by_default_no_decision_may_change(precision: str) -> None:
    assert DEFAULTS[precision].max_flips == 0


def test_a_loss_of_auc_fails_with_its_size() -> None:
    worse = LOGITS.copy()
    worse[TRUTH, 1] -= 1.5
    thresholds = Acceptance(-100.0, max_flips=40)
    verdict = judge("int8", LOGITS, worse, thresholds, TRUTH)
    assert verdict.auc_change is not None
    change, low, high = verdict.auc_change
    assert change < -0.1
    assert low <= change <= high
    assert verdict.bars["mlperf_99"] is False
    with pytest.raises(AccuracyGateFailed, match="max_auc_drop"):
        require(verdict, thresholds)


def test_nan_fails_whatever_the_thresholds() -> None:
    broken = LOGITS.copy()
    broken[0, 0] = np.nan
    thresholds = Acceptance(-1000.0, max_flips=1000)
    with pytest.raises(ParityFailed, match="not finite"):
        require(judge("fp16", LOGITS, broken, thresholds), thresholds)


def test_without_labels_there_is_no_auc() -> None:
    verdict = judge("fp16", LOGITS, LOGITS + np.float32(1e-6), DEFAULTS["fp16"])
    assert verdict.auc is None
    assert verdict.auc_change is None
    assert verdict.failed == ()


def test_accept_toml_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "accept.toml"
    path.write_text("[int8]\nmax_flips = 3\n")
    read = read_acceptance(path)
    assert read["int8"] == replace(DEFAULTS["int8"], max_flips=3)
    assert read["fp16"] == DEFAULTS["fp16"]
    assert read_acceptance(None) == DEFAULTS


@pytest.mark.parametrize(
    "text", ["[int4]\n", "[int8]\nmax_flip = 1\n", "[int8]\nmax_flips = 'a'\n", "int8 = 3\n", "[int8\n"]
)
def test_a_wrong_accept_toml_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "accept.toml"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_acceptance(path)
    with pytest.raises(InputMissing):
        read_acceptance(tmp_path / "absent.toml")
