from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special

from fourphase.runtime.errors import Notice, OutputNotWritable
from fourphase.runtime.result import NOTICE, SALT_VARIABLE, PhaseRecord, StudyResult, case_hash, softmax, write_result


def result(logits: NDArray[np.float32] | None = None, **changes: Any) -> StudyResult:
    fields: dict[str, Any] = {
        "case": "0123456789abcdef",
        "classes": ("HCC", "ICC"),
        "logits": np.array([1.25, -1.0], np.float32) if logits is None else logits,
        "phases": {"NC": PhaseRecord("1.2.3", 2, 58, ("order",)), "ART": PhaseRecord("1.2.4", None, 60, ())},
        "box": {"space": "LPS_mm", "min": [0, 0, 0], "max": [1, 1, 1], "source": "json"},
        "breathing": {"reference": "ART", "shift_mm": {"NC": [0.0, 1.0, -6.5], "ART": [0.0, 0.0, 0.0]}},
        "preprocessing": {"hash": "ab", "device": "cpu", "reason": "asked for"},
        "model": {"bundle": "b", "sha256": "c", "precision": "fp32"},
        "backend": {"name": "onnxruntime", "reason": "no CUDA device", "self_check": "passed"},
        "timings_ms": {"scan": 1.26, "total": 2.0},
        "warnings": (Notice("tilt", "a tilt"),),
    }
    return StudyResult(**{**fields, **changes})


def test_the_json_has_the_contracts_keys_and_says_what_it_is() -> None:
    content = json.loads(result().to_json())
    contract = {"schema", "case", "prediction", "phases", "box", "preprocessing", "model", "backend", "timings_ms"}
    assert contract | {"warnings"} <= set(content)
    assert content["schema"] == "fourphase.result/1"
    assert content["notice"] == NOTICE == "model output, not a diagnosis"
    assert content["prediction"]["label"] == "HCC"
    assert content["prediction"]["logits"] == [1.25, -1.0]
    assert content["phases"]["ART"] == {
        "series_instance_uid": "1.2.4",
        "series_number": None,
        "slices": 60,
        "evidence": [],
    }
    assert content["preprocessing"] == {"hash": "ab", "device": "cpu", "reason": "asked for"}
    assert content["breathing"] == {"reference": "ART", "shift_mm": {"NC": [0.0, 1.0, -6.5], "ART": [0.0, 0.0, 0.0]}}
    assert content["warnings"] == [{"key": "tilt", "message": "a tilt"}]


def test_label_and_probabilities_follow_the_logits() -> None:
    other = result(np.array([-3.0, 2.0], np.float32))
    assert other.label == "ICC"
    expected = special.softmax(np.array([-3.0, 2.0]))
    assert other.probabilities == {"HCC": round(expected[0], 6), "ICC": round(expected[1], 6)}


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=5))
def test_softmax_is_scipys_and_never_overflows(values: list[float]) -> None:
    logits = np.array(values, np.float32)
    np.testing.assert_allclose(softmax(logits), special.softmax(logits.astype(np.float64)), atol=1e-12)


def test_nan_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        result(np.array([np.nan, 0.0], np.float32)).to_json()


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write_result(result(), tmp_path)
    first = path.read_bytes()
    assert path == tmp_path / "0123456789abcdef" / "result.json"
    assert write_result(result(), tmp_path).read_bytes() == first
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_an_output_that_cannot_be_written_is_code_30(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputNotWritable) as caught:
        write_result(result(), tmp_path / "taken")
    assert caught.value.code == 30


def test_the_case_hash_is_salted_by_the_site_or_the_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SALT_VARIABLE, raising=False)
    by_bundle = {case_hash("1.2.3", bundle) for bundle in ("a", "b")}
    monkeypatch.setenv(SALT_VARIABLE, "secret")
    by_site = {case_hash("1.2.3", bundle) for bundle in ("a", "b")}
    assert len(by_bundle) == 2
    assert len(by_site) == 1
    assert by_site.isdisjoint(by_bundle)
    assert case_hash("1.2.3", "a") != case_hash("1.2.4", "a")
    assert len(case_hash("1.2.3", "a")) == 16
