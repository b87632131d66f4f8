"""Running graphs on studies, and lowering them, on a graph small enough to compute by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from fourphase.calibration.blocks import Policy
from fourphase.calibration.evaluation import evaluate, fp32_session, literal_session, positives_of
from fourphase.calibration.gates import DEFAULTS
from fourphase.calibration.ladder import Baseline, Jury, Step, block_errors, climb
from fourphase.calibration.lowering import Lowering, blocks_of, lowered_model, lowest_precision
from fourphase.calibration.qdq import quantizable_blocks, quantized_model
from fourphase.calibration.scales import Scales
from fourphase.calibration.typed import typed_model
from fourphase.runtime.errors import UsageError
from tests.support.quantizable import quantizable_model, studies

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Given:
    arrays: Sequence[Floats]
    labels: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.arrays)

    def study(self, index: int) -> Floats:
        return self.arrays[index][None]


def test_every_run_sees_every_study_in_order() -> None:
    seen: list[tuple[str, float]] = []

    def run(name: str, study: Floats) -> Mapping[str, Floats]:
        seen.append((name, float(study.flat[0])))
        return {"logits": study.reshape(1, -1)[:, :2]}

    arrays = studies(3)
    logits = evaluate({name: lambda study, name=name: run(name, study) for name in "ab"}, Given(arrays))  # type: ignore[misc]
    np.testing.assert_array_equal(logits["a"], np.stack([array.reshape(-1)[:2] for array in arrays]))
    assert [name for name, _ in seen] == ["a", "b"] * 3


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (None, ("HCC", "ICC"), None),
        (["HCC", "ICC", "HCC"], ("HCC", "ICC"), [False, True, False]),
        (["HCC", "ICC", "HCC"], ("ICC", "HCC"), [True, False, True]),
        (["HCC", "HCC", "HCC"], ("HCC", "ICC"), None),
        (["HCC", "ICC", "X"], ("HCC", "ICC", "X"), None),
    ],
)
def test_the_second_class_is_positive(
    labels: list[str] | None, classes: tuple[str, ...], expected: list[bool] | None
) -> None:
    found = positives_of(Given(studies(3), labels), classes)
    assert (None if found is None else found.tolist()) == expected


def test_a_label_that_is_no_class_is_an_error() -> None:
    with pytest.raises(UsageError, match="'hcc'"):
        positives_of(Given(studies(2), ["hcc", "ICC"]), ("HCC", "ICC"))


def scales_of(model: onnx.ModelProto) -> Scales:
    from fourphase.calibration.qdq import quantizable_values

    return Scales(dict.fromkeys(quantizable_values(model), 0.03125), "minmax", "", "", {})


def test_lowering_is_quantizing_then_typing() -> None:
    model = quantizable_model()
    policy, scales = Policy.of({"*": "fp16", "stage": "int8", "head": "fp32"}), scales_of(model)
    by_hand = typed_model(quantized_model(model, policy, scales), policy)
    study = studies(1)[0][None]
    found = lowered_model(model, policy, scales)
    np.testing.assert_array_equal(literal_session(found)(study)["logits"], literal_session(by_hand)(study)["logits"])
    assert found.SerializeToString() == lowered_model(model, policy, scales).SerializeToString()
    with pytest.raises(UsageError, match="needs scales"):
        lowered_model(model, policy)


def test_one_lowering_serves_many_policies_and_leaves_its_graph_alone() -> None:
    model = quantizable_model()
    before, lowering = model.SerializeToString(), Lowering(model, scales_of(model))
    for rules in ({"stage1": "int8"}, {"*": "fp16"}, {}):
        graph = lowering.graph(Policy.of(rules))
        kinds = {node.op_type for node in graph.graph}
        assert ("QuantizeLinear" in kinds) == ("int8" in rules.values())
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("rules", "name"), [({}, "fp32"), ({"*": "fp16"}, "fp16"), ({"*": "fp16", "stage1": "int8"}, "int8")]
)
def test_a_policy_is_called_by_its_lowest_precision(rules: dict[str, str], name: str) -> None:
    assert lowest_precision(Policy.of(rules), blocks_of(quantizable_model())) == name


def test_the_blocks_in_which_int8_pays_hold_a_quantized_layer() -> None:
    paying = quantizable_blocks(quantizable_model())
    assert {"stage1", "stage2", "mlp"} <= paying
    assert "stem" not in paying, "three input channels fill no int8 kernel"


def test_the_ladder_measures_each_rung_against_the_same_baseline() -> None:
    model, data = quantizable_model(), Given(studies(4), ["HCC", "ICC"] * 2)
    policy = Policy.of({"*": "fp16", "head": "fp32"})
    steps = (Step("fp32", Policy(()), model), Step("fp16", policy, lowered_model(model, policy)))
    rungs = climb(steps, Baseline.of_onnx(model), Jury(data, "evaluation set"), DEFAULTS, ("HCC", "ICC"))
    assert rungs[0].verdict.sqnr_db == np.inf
    reference = evaluate({"": fp32_session(model.SerializeToString())}, data)[""].astype(np.float64)
    rounded = evaluate({"": literal_session(steps[1].model)}, data)[""]
    expected = 10 * np.log10(np.square(reference).sum() / np.square(reference - rounded).sum())
    assert rungs[1].verdict.sqnr_db == pytest.approx(expected, abs=1e-6)
    assert 40 < expected < 90


def test_blocks_are_measured_on_their_own_values() -> None:
    model, study = quantizable_model(), studies(1)[0][None]
    policy = Policy.of({"stage1": "fp16"})
    step = Step("fp16", policy, lowered_model(model, policy))
    reference = Baseline.of_onnx(model).blocks(study)
    rows = {row.block: row for row in block_errors(step, reference, study)}
    noise = rows["stem"].sqnr_db
    assert noise is None or noise > 120, "what lies before the lowered block is equal but for FP32's own rounding"
    assert rows["stage1"].precision == "fp16"
    assert rows["stage1"].max_abs is not None
    assert rows["stage1"].max_abs <= rows["stage1"].peak * 2**-9
    assert rows["stage1"].peak == pytest.approx(float(np.abs(reference["stage1"]).max()))
    wrong = {**reference, "stage2": np.full_like(reference["stage2"], np.inf)}
    assert {row.block: row for row in block_errors(step, wrong, study)}["stage2"].sqnr_db is None
