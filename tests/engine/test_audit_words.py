"""The audit for people and for programs: a line, a table of what is wrong, JSON."""

from __future__ import annotations

import json

import pytest

from fourphase.engine.audit import read_inspector, require_precision
from fourphase.runtime.errors import EngineBuildFailed
from tests.support.inspector_answers import FIXTURES, HELD, MIXED, audit_of, engine_of, layer


def test_the_summary_says_what_was_counted() -> None:
    found = audit_of("11_mixed", MIXED).summary
    assert found == "8 layers, of their bytes fp32 0%, fp16 57%, int8 29%, mixed 14%"


def test_every_phase_is_counted_in_its_own_block() -> None:
    other = {**HELD["fp16"], "Name": "node_Conv_1965", "Metadata": "[ONNX Layer: node_Conv_1965]"}
    text = json.dumps({"Layers": [HELD["fp16"], other], "Bindings": []})
    audit = read_inspector(text, {"node_Conv_1961": "stem/NC", "node_Conv_1965": "stem/ART"})
    assert audit.by_block == {"stem/NC": {"fp16": 1}, "stem/ART": {"fp16": 1}}


def test_a_table_of_violations_fits_and_holds_no_control_characters() -> None:
    name = "node_Conv_1961\x1b[31m \ud800 " + "+ a_long_name" * 20
    audit = engine_of(layer("gemm", "Float", "Float", Name=name))
    with pytest.raises(EngineBuildFailed) as caught:
        require_precision(audit, {"stem/NC": "fp16"})
    (row,) = caught.value.table
    assert row["layer"] == f"{'node_Conv_1961?[31m ? + a_long_name+ a_long_name'[:33]}..."
    # Five borders and two blanks a column stand beside the cells; "gate4.channel/ART" is the longest block's name.
    assert len("gate4.channel/ART") + len("asked") + len("unknown?") + len(row["layer"]) + 4 * 3 + 1 <= 80


@pytest.mark.parametrize("name", FIXTURES)
def test_an_audit_is_json(name: str) -> None:
    audit = audit_of(name)
    body = audit.to_dict()
    assert json.loads(json.dumps(body)) == body
    assert body["schema"] == "fourphase.audit/1"
    assert len(body["layers"]) == len(audit.layers)
    for key in ("share_of_layers", "share_of_bytes"):
        assert sum(share[key] for share in audit.by_precision.values()) == pytest.approx(1)
