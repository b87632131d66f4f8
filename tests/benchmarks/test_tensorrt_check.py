"""Engines on torch tensors against a stand-in for TensorRT that runs the ONNX itself and insists on the call sequence.

What only a GPU can show (that TensorRT computes the same) is what the GPU check is for; here it is shown that the check
would see it if not.
"""

from __future__ import annotations

import ast
import ctypes
import json
import operator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from fourphase.benchmarks.gpu import engine_on_tensors, tensorrt_check
from fourphase.benchmarks.gpu.engine_on_tensors import EngineOnTensors
from fourphase.benchmarks.gpu.kit import BATCH, KitModel
from fourphase.benchmarks.gpu.tensorrt_check import check_model, check_pair
from fourphase.benchmarks.guarded_steps import Outcome
from fourphase.engine.build import EnginePlan
from fourphase.runtime.cuda import Probe
from fourphase.runtime.errors import ModelIncompatible
from fourphase.runtime.flavour import Flavour
from fourphase.runtime.trt_logger import logger_of
from tests.support.tiny_bundle import SHAPE, reference_outputs, tiny_model

COMMON = Path(__file__).parents[1] / "engine" / "data" / "trt_api_common.json"
STUDIES = np.random.default_rng(3).normal(size=(BATCH, *SHAPE)).astype(np.float32)
FLOAT, HALF, INPUT, OUTPUT = object(), object(), object(), object()


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

    def __init__(self) -> None:
        pass


class Context:
    """Computes on raw addresses, and only after shapes, then addresses, were given."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape, self.addresses = shape, {}
        return shape[0] <= BATCH

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def infer_shapes(self) -> list[str]:
        return [] if self.shape else ["study"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], 2) if name == "logits" else (self.shape[0], 4, 2)

    def execute_async_v3(self, stream: int) -> bool:
        if self.trt.refuses:
            self.trt.logger.log(ILogger.ERROR, "enqueueV3: no kernel image is available")
            return False
        assert set(self.addresses) == {"study", "logits", "phase_logits"}
        study = self._array("study", self.shape)
        outputs = ReferenceEvaluator(self.trt.model).run(None, {"study": study})
        for name, value in zip(("logits", "phase_logits"), outputs, strict=True):
            rows = slice(None, -1) if self.trt.forgets_the_last_study and len(study) > 1 else slice(None)
            self._array(name, value.shape)[rows] = value[rows]
        return True

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
        floats = ctypes.POINTER(ctypes.c_float)
        return np.ctypeslib.as_array(ctypes.cast(self.addresses[name], floats), shape)


class FakeTensorRT:
    """The part of the module that an engine needs; a plan is the ONNX itself."""

    TensorIOMode = SimpleNamespace(INPUT=INPUT)
    DataType = SimpleNamespace(FLOAT=FLOAT)
    ILogger = ILogger

    def __init__(self) -> None:
        self.tells_more = False
        self.refuses = self.forgets_the_last_study = False
        self.dtype = FLOAT
        self.logger: Any = None
        self.model = onnx.ModelProto()

    def Runtime(self, logger: Any) -> SimpleNamespace:
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self.deserialize)

    def deserialize(self, plan: bytes) -> SimpleNamespace | None:
        if plan == b"built elsewhere":
            self.logger.log(ILogger.ERROR, "Error Code 35: CUDA driver version is insufficient")
            return None
        self.model = onnx.load_from_string(plan)
        names = ("logits", "study", "phase_logits")
        return SimpleNamespace(
            num_io_tensors=3,
            get_tensor_name=names.__getitem__,
            get_tensor_mode=lambda name: INPUT if name == "study" else OUTPUT,
            get_tensor_dtype=lambda name: self.dtype,
            create_execution_context=lambda: Context(self),
        )


@pytest.fixture
def trt() -> FakeTensorRT:
    fake = FakeTensorRT()
    logger_of(flavour(fake)).lines.clear()
    return fake


def flavour(trt: FakeTensorRT) -> Flavour:
    return Flavour("tensorrt-rtx", trt, "1.7.1", Probe(None, "no CUDA device"))


def content() -> KitModel:
    logits, phase_logits = reference_outputs(tiny_model(), STUDIES)
    outputs = {"logits": logits, "phase_logits": phase_logits}
    return KitModel("network", tiny_model(), {"study": STUDIES}, outputs, rows=1, cost=None)


def test_an_engine_computes_what_the_graph_does(trt: FakeTensorRT) -> None:
    engine = EngineOnTensors(flavour(trt), tiny_model(), device="cpu")
    logits, phase_logits = reference_outputs(tiny_model(), STUDIES)
    for batch in (BATCH, 1, 3):
        outputs = engine.infer({"study": STUDIES[:batch]})
        np.testing.assert_allclose(outputs["logits"], logits[:batch], rtol=1e-6)
        np.testing.assert_allclose(outputs["phase_logits"], phase_logits[:batch], rtol=1e-6)


def test_a_candidate_times_the_same_engine(trt: FakeTensorRT) -> None:
    engine = EngineOnTensors(flavour(trt), tiny_model(), device="cpu")
    assert engine.candidate({"study": STUDIES})().compute_ms > 0


@pytest.mark.parametrize(
    ("plan", "attributes", "batch", "message"),
    [
        (b"built elsewhere", {}, 1, "the plan was not deserialized: Error Code 35"),
        (None, {"refuses": True}, 1, "execute_async_v3 returned False: enqueueV3: no kernel image"),
        (None, {"dtype": HALF}, 1, "is not float32"),
        (None, {}, BATCH + 1, "study refuses its shape"),
    ],
)
def test_every_refusal_is_an_error_with_tensorrts_words(
    trt: FakeTensorRT, plan: bytes | None, attributes: dict[str, Any], batch: int, message: str
) -> None:
    for name, value in attributes.items():
        setattr(trt, name, value)
    with pytest.raises(RuntimeError, match=message):
        EngineOnTensors(flavour(trt), plan or tiny_model(), device="cpu").infer({"study": STUDIES[[0] * batch]})


def recorded(trt: Any, engine: Any, source: Any, target: Path, context: Any = None) -> dict[str, Any]:
    """As if the inspector knew more of a context that ran, of this engine."""
    text = "ran" if context is not None and trt.tells_more else "loaded"
    target.write_text(text)
    return {"file": target.name, "sha256": text, "held": True}


@pytest.fixture
def checked(trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The whole step on the stand-in, as if this machine had a GPU."""
    meta = {"compute_capabilities": ["9.0"], "profile": {}, "flags": {}, "build_seconds": 1.0, "warnings": []}
    monkeypatch.setattr(tensorrt_check, "load_flavour", lambda target: flavour(trt))
    monkeypatch.setattr(tensorrt_check, "load_kit_model", lambda kit, model: content())
    monkeypatch.setattr(tensorrt_check, "built_anyway", lambda source, *_: (EnginePlan(source.onnx, meta), None))
    monkeypatch.setattr(tensorrt_check, "FLAVOURS", {"tensorrt-rtx": "json"})
    monkeypatch.setattr(tensorrt_check, "EngineOnTensors", lambda f, plan: EngineOnTensors(f, plan, device="cpu"))
    monkeypatch.setattr(tensorrt_check, "record_engine", recorded)
    monkeypatch.setattr(tensorrt_check, "is_available", lambda: False)
    saved: list[Any] = []

    def run() -> Outcome:
        return check_model(
            saved.append, kit="kit", model="network", target="tensorrt-rtx", capability=None, device="cuda", quick=True,
            recordings=str(tmp_path),
        )  # fmt: skip

    return run


def test_an_engine_that_agrees_is_timed_at_both_batch_sizes(checked: Any) -> None:
    outcome = checked()
    assert outcome.status == "ok"
    assert [entry["batch"] for entry in outcome.result["comparisons"]] == [1, BATCH]
    assert all(entry["passed"] and entry["relative"] < 1e-5 for entry in outcome.result["comparisons"])
    assert [row["statistics"]["batch"] for row in outcome.result["rows"]] == [1, BATCH]
    assert outcome.result["build"]["plan_bytes"] == len(tiny_model())
    assert outcome.result["product"] == {"state": "skipped", "reason": "pycuda is not installed", "comparisons": []}


@pytest.mark.parametrize(("tells_more", "kept"), [(False, ["loaded"]), (True, ["loaded", "ran"])])
def test_an_engine_is_recorded_again_if_it_then_says_something_else(
    checked: Any, trt: FakeTensorRT, tmp_path: Path, tells_more: bool, kept: list[str]
) -> None:
    trt.tells_more = tells_more
    assert [record["when"] for record in checked().result["inspector"]] == kept
    files = [f"tensorrt-rtx-network-current.{when}.json" for when in kept]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert [(tmp_path / file).read_text() for file in files] == kept


class Session:
    """The product's run time; `off` is what it adds."""

    off, refuses = 0.0, False

    def __init__(self, flavour: Flavour, plan: bytes, inputs: Any, outputs: Any, max_rows: int) -> None:
        if self.refuses:
            raise ModelIncompatible("the engine takes 1 to 2 studies", "build it again", key="engine_interface")
        assert max_rows == BATCH
        self.model = plan

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = zip(("logits", "phase_logits"), reference_outputs(self.model, inputs["study"]), strict=True)
        return {name: value + np.float32(self.off) for name, value in outputs}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("off", "refuses", "state", "reason"),
    [
        (0, False, "ok", ""),
        (1, False, "failed", f"off the reference at batch 1, {BATCH}"),
        (0, True, "failed", "the engine takes 1 to 2 studies"),
    ],
)
def test_the_products_run_time_is_held_to_the_same(
    checked: Any, monkeypatch: pytest.MonkeyPatch, off: float, refuses: bool, state: str, reason: str
) -> None:
    monkeypatch.setattr(tensorrt_check, "is_available", lambda: True)
    monkeypatch.setattr(tensorrt_check, "SessionOnBuffers", Session)
    monkeypatch.setattr(Session, "off", off)
    monkeypatch.setattr(Session, "refuses", refuses)
    outcome = checked()
    assert (outcome.result["product"]["state"], outcome.result["product"]["reason"]) == (state, reason)
    assert outcome.status == state
    assert all(entry["passed"] for entry in outcome.result["comparisons"])  # torch's tensors are right all the same
    assert len(outcome.result["rows"]) == 2


@pytest.mark.usefixtures("checked")
def test_a_pair_is_timed_in_turns_by_the_first_capability_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(content: KitModel, target: str, capability: str | None) -> tuple[bytes, dict[str, Any]]:
        return (b"built elsewhere" if capability is None else content.onnx), {"for": capability}

    monkeypatch.setattr(tensorrt_check, "_built", built)
    loaded = iter(["gru", "gru-unrolled"])
    monkeypatch.setattr(tensorrt_check, "load_kit_model", lambda kit, model: replace(content(), name=next(loaded)))
    outcome = check_pair(
        lambda _: None, kit="kit", models=["gru", "gru-unrolled"], target="tensorrt-rtx", device="cuda", quick=True,
        capabilities=[None, "8.0"],
    )  # fmt: skip
    assert outcome.status == "ok"
    assert [one["capability"] for one in outcome.result["refused"]] == [None]
    assert "Error Code 35" in outcome.result["refused"][0]["error"]["message"]
    assert outcome.result["builds"] == [{"for": "8.0"}] * 2
    assert outcome.result["difference"]["max_abs"] == 0
    rows = [(row["variant"], row["batch"]) for row in outcome.result["rows"]]
    assert rows == [(name, batch) for batch in (1, BATCH) for name in ("gru", "gru-unrolled")]


def test_an_engine_that_is_wrong_only_at_batch_4_fails_and_is_not_timed(checked: Any, trt: FakeTensorRT) -> None:
    """What it leaves unwritten is NaN, not the last run's right answer."""
    trt.forgets_the_last_study = True
    outcome = checked()
    assert (outcome.status, outcome.reason) == ("failed", f"off the reference at batch {BATCH}")
    first, second = outcome.result["comparisons"]
    assert first["passed"]
    assert not second["finite"]
    assert second["relative"] is None
    assert outcome.result["rows"] == []


def test_a_flavour_that_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_check, "FLAVOURS", {"tensorrt": "not_a_module"})
    outcome = check_model(
        lambda _: None, kit="", model="gru", target="tensorrt", capability=None, device="cuda", quick=True
    )
    assert (outcome.status, outcome.reason) == ("skipped", "the Python module not_a_module is not installed")


def used_names() -> set[str]:
    """TensorRT names in the module; instances are known by the name they have there."""
    roles = {"runtime": "Runtime", "engine": "ICudaEngine", "context": "IExecutionContext"}
    used = set()
    tree = ast.parse(Path(engine_on_tensors.__file__).read_text())
    (body,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    for node in ast.walk(body):
        parts = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else [""]
        if parts[0] == "trt":
            used.add(".".join(parts[1:]))
        elif parts[0] in roles:
            used.add(f"{roles[parts[0]]}.{parts[1]}")
    return used


def test_every_tensorrt_name_is_in_all_supported_versions() -> None:
    """Names read off the bindings of TensorRT 10.0 to 11.4."""
    used = used_names()
    assert {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3", "TensorIOMode.INPUT"} <= used
    assert used <= frozenset(json.loads(COMMON.read_text()))


@pytest.mark.rtx
def test_tensorrt_for_rtx_has_every_name() -> None:
    import tensorrt_rtx

    for name in used_names():
        assert operator.attrgetter(name)(tensorrt_rtx) is not None
