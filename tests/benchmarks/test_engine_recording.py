"""What is kept of an engine: the inspector's own words, whatever the audit makes of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fourphase.benchmarks.gpu import engine_recording
from fourphase.benchmarks.gpu.engine_recording import build_record, built_anyway, record_engine
from fourphase.engine.build import EnginePlan
from fourphase.engine.options import DEFAULT_OPTIONS, EngineSource
from fourphase.runtime.errors import EngineBuildFailed
from tests.support.inspector_answers import BLOCKS, text_of

TRT = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="input"), LayerInformationFormat=SimpleNamespace(JSON="json"))
FP16 = dict.fromkeys(BLOCKS.values(), "fp16")
SOURCE = EngineSource(b"", "fp16", blocks=BLOCKS, precisions=FP16)


class Inspector:
    def __init__(self, texts: dict[Any, str]) -> None:
        self.texts, self.execution_context = texts, None

    def get_engine_information(self, kind: str) -> str:
        assert kind == "json"
        return self.texts[self.execution_context.name]  # type: ignore[attr-defined]


def context(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, set_input_shape=lambda tensor, shape: (tensor, shape) == ("study", (2, 8)))


def engine(**texts: str) -> SimpleNamespace:
    """An engine whose inspector says something else of each context."""
    return SimpleNamespace(
        num_io_tensors=1,
        get_tensor_name=lambda index: "study",
        get_tensor_mode=lambda name: "input",
        get_tensor_profile_shape=lambda name, profile: ((1, 8), (2, 8), (4, 8)),
        create_execution_context=lambda: context("new"),
        create_engine_inspector=lambda: Inspector(texts),
    )


def test_the_inspectors_words_are_kept_and_judged(tmp_path: Path) -> None:
    text = text_of("10_fp16")
    record = record_engine(TRT, engine(new=text), SOURCE, tmp_path / "one.json")
    assert (tmp_path / "one.json").read_text() == text
    assert record["file"] == "one.json"
    assert record["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert (record["held"], record["error"]) == (True, None)
    assert record["audit"]["dialect"] == "10"
    assert record["audit"]["by_precision"]["fp16"]["layers"] > 0
    assert "layers" not in record["audit"]
    json.dumps(record, allow_nan=False)


def test_a_context_that_ran_is_asked_instead_of_a_new_one(tmp_path: Path) -> None:
    both = engine(new=text_of("10_fp16"), ran=text_of("11_tf32"))
    record = record_engine(TRT, both, SOURCE, tmp_path / "ran.json", context("ran"))
    assert (tmp_path / "ran.json").read_text() == text_of("11_tf32")
    assert record["audit"]["dialect"] == "11"
    assert record["held"] is False


def test_what_the_audit_cannot_read_is_kept_all_the_same(tmp_path: Path) -> None:
    record = record_engine(TRT, engine(new="no JSON"), SOURCE, tmp_path / "odd.json")
    assert (tmp_path / "odd.json").read_text() == "no JSON"
    assert (record["audit"], record["held"], record["bytes"]) == (None, False, 7)
    assert record["error"]["code"] == 26
    refusing = engine(new="")
    refusing.create_execution_context = lambda: None
    assert record_engine(TRT, refusing, SOURCE, tmp_path / "none.json")["error"]["key"] == "gpu_out_of_memory"
    assert not (tmp_path / "none.json").exists()


def test_an_engine_that_holds_another_precision_is_named() -> None:
    wanted = EngineSource(b"", "fp32", blocks=BLOCKS, precisions=dict.fromkeys(BLOCKS.values(), "fp32"))
    record = record_engine(TRT, engine(new=text_of("10_fp16")), wanted, None)
    assert (record["held"], record["file"]) == (False, None)
    assert record["error"]["key"] == "precision_not_held"


def test_only_a_refusal_of_the_audit_is_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[EngineSource] = []
    key = "precision_not_held"

    def build(source: EngineSource, target: str, options: Any) -> EnginePlan:
        sources.append(source)
        if source.precisions:
            raise EngineBuildFailed("the engine does not hold fp16", "ask for fp32", key=key)
        return EnginePlan(b"plan", {"audit": {"layers": [1], "dialect": "10"}, "build_seconds": 2.0})

    monkeypatch.setattr(engine_recording, "build_engine", build)
    built, refusal = built_anyway(SOURCE, "tensorrt", DEFAULT_OPTIONS)
    assert refusal is not None
    assert [dict(source.precisions) for source in sources] == [FP16, {}]
    record = build_record(built, refusal)
    assert (record["plan_bytes"], record["audit"], record["build_seconds"]) == (4, {"dialect": "10"}, 2.0)
    assert record["audit_refused"]["key"] == "precision_not_held"
    key = "out_of_memory"
    with pytest.raises(EngineBuildFailed, match="does not hold"):
        built_anyway(SOURCE, "tensorrt", DEFAULT_OPTIONS)
