"""What fp-export triton writes, by Triton's own schema, by ONNX Runtime, and by the client of docs/triton.md.

No Triton runs here. The schema below holds the fields that are used, with the names, numbers and types of Triton's
model_config.proto; protobuf's text parser refuses every other field, and where tritonclient is installed the two are
held against each other.
"""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import typer
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from numpy.typing import NDArray
from typer.testing import CliRunner

from fourphase.engine.bundle import OnnxModel
from fourphase.export.triton import TritonRequest, write_repository
from fourphase.export.triton_command import triton
from fourphase.runtime.bundle import Bundle, load_bundle
from fourphase.runtime.errors import FourphaseError, IntegrityError, ModelIncompatible, OutputNotWritable, UsageError
from fourphase.runtime.plan_store import PlanStore
from tests.support.tiny_bundle import PREPROCESSING, SHAPE, reference_outputs, tiny_contents, tiny_model, write_tiny

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "triton.md").read_text(encoding="utf-8")

#: Message -> field -> (number, type). "[]" is repeated, "{}" a map from string.
SCHEMA: dict[str, dict[str, tuple[int, str]]] = {
    "ModelConfig": {
        "name": (1, "string"), "backend": (17, "string"), "max_batch_size": (4, "int32"), "input": (5, "ModelInput[]"),
        "output": (6, "ModelOutput[]"), "optimization": (12, "ModelOptimizationPolicy"),
        "dynamic_batching": (11, "ModelDynamicBatching"), "instance_group": (7, "ModelInstanceGroup[]"),
        "default_model_filename": (8, "string"), "model_warmup": (16, "ModelWarmup[]"),
    },
    "ModelInput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (4, "int64[]")},
    "ModelOutput": {
        "name": (1, "string"), "data_type": (2, "DataType"), "dims": (3, "int64[]"), "label_filename": (4, "string"),
    },
    "ModelInstanceGroup": {"kind": (4, "ModelInstanceGroup.Kind"), "count": (2, "int32")},
    "ModelDynamicBatching": {"preferred_batch_size": (1, "int32[]")},
    "ModelWarmup": {
        "name": (1, "string"), "batch_size": (2, "uint32"), "inputs": (3, "ModelWarmup.Input{}"),
    },
    "ModelWarmup.Input": {"data_type": (1, "DataType"), "dims": (2, "int64[]"), "input_data_file": (5, "string")},
    "ModelOptimizationPolicy": {
        "graph": (1, "ModelOptimizationPolicy.Graph"),
        "execution_accelerators": (4, "ModelOptimizationPolicy.ExecutionAccelerators"),
    },
    "ModelOptimizationPolicy.Graph": {"level": (1, "int32")},
    "ModelOptimizationPolicy.ExecutionAccelerators": {
        "gpu_execution_accelerator": (1, "ModelOptimizationPolicy.ExecutionAccelerators.Accelerator[]"),
    },
    "ModelOptimizationPolicy.ExecutionAccelerators.Accelerator": {"name": (1, "string"), "parameters": (2, "string{}")},
}  # fmt: skip
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_FP16": 10, "TYPE_FP32": 11},
    "ModelInstanceGroup.Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2},
}
FIELD = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "string": FIELD.TYPE_STRING, "int32": FIELD.TYPE_INT32, "uint32": FIELD.TYPE_UINT32, "int64": FIELD.TYPE_INT64,
}  # fmt: skip


def _model_config_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="triton_fields.proto", package="inference", syntax="proto3")
    made: dict[str, Any] = {}
    for full in SCHEMA:
        parent, _, name = full.rpartition(".")
        made[full] = made[parent].nested_type.add(name=name) if parent else file.message_type.add(name=name)
    for full, values in ENUMS.items():
        parent, _, name = full.rpartition(".")
        enum = made[parent].enum_type.add(name=name) if parent else file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for full, fields in SCHEMA.items():
        for name, (number, kind) in fields.items():
            _add_field(made[full], full, name, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def _add_field(message: Any, owner: str, name: str, number: int, kind: str) -> None:
    field = message.field.add(name=name, number=number)
    field.label = FIELD.LABEL_REPEATED if kind.endswith(("[]", "{}")) else FIELD.LABEL_OPTIONAL
    if kind.endswith("{}"):
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field(entry, f"{owner}.{entry.name}", "key", 1, "string")
        _add_field(entry, f"{owner}.{entry.name}", "value", 2, kind[:-2])
        kind = f"{owner}.{entry.name}"
    kind = kind.removesuffix("[]")
    if kind in SCALARS:
        field.type = SCALARS[kind]
        return
    field.type = FIELD.TYPE_ENUM if kind in ENUMS else FIELD.TYPE_MESSAGE
    field.type_name = f".inference.{kind}"


MODEL_CONFIG = _model_config_class()


def parsed(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), MODEL_CONFIG())


def _fields(descriptor: Any) -> dict[str, tuple[int, int]]:
    return {field.name: (field.number, field.type) for field in descriptor.fields}


def test_the_schema_is_tritons() -> None:
    real = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    for full in SCHEMA:
        theirs, ours = real.ModelConfig.DESCRIPTOR.file, MODEL_CONFIG.DESCRIPTOR.file
        found = [file.pool.FindMessageTypeByName(f"inference.{full}") for file in (theirs, ours)]
        assert _fields(found[1]).items() <= _fields(found[0]).items(), full
    for full, values in ENUMS.items():
        enum = real.ModelConfig.DESCRIPTOR.file.pool.FindEnumTypeByName(f"inference.{full}")
        assert values.items() <= {value.name: value.number for value in enum.values}.items()


def test_an_unknown_field_is_refused_by_the_parser() -> None:
    with pytest.raises(text_format.ParseError, match="max_batch"):
        text_format.Parse("max_batch: 2", MODEL_CONFIG())


# What is written.


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny(tmp_path / "tiny.bundle")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def test_every_field_of_an_onnx_on_a_gpu(bundle: Bundle, models: Path) -> None:
    write_repository(bundle, models, TritonRequest(max_batch=3, instances=2))
    expected = """
        name: "fourphase" backend: "onnxruntime" default_model_filename: "model.onnx" max_batch_size: 3
        input { name: "study" data_type: TYPE_FP32 dims: [4, 2, 3, 4, 5] }
        output { name: "logits" data_type: TYPE_FP32 dims: 2 label_filename: "labels.txt" }
        output { name: "phase_logits" data_type: TYPE_FP32 dims: [4, 2] }
        instance_group { count: 2 kind: KIND_GPU }
        dynamic_batching { }
        optimization { execution_accelerators { gpu_execution_accelerator {
          name: "cuda" parameters { key: "use_tf32" value: "0" } } } }
        model_warmup { name: "golden-0" batch_size: 1 inputs { key: "study" value {
          data_type: TYPE_FP32 dims: [4, 2, 3, 4, 5] input_data_file: "golden-0.f32" } } }
        model_warmup { name: "golden-1" batch_size: 1 inputs { key: "study" value {
          data_type: TYPE_FP32 dims: [4, 2, 3, 4, 5] input_data_file: "golden-1.f32" } } }
        model_warmup { name: "golden-0-largest-batch" batch_size: 3 inputs { key: "study" value {
          data_type: TYPE_FP32 dims: [4, 2, 3, 4, 5] input_data_file: "golden-0.f32" } } }
    """
    assert parsed(models / "fourphase") == text_format.Parse(expected, MODEL_CONFIG())


def test_a_cpu_and_single_studies(bundle: Bundle, models: Path) -> None:
    write_repository(bundle, models, TritonRequest(max_batch=1, device="cpu", name="night-1"))
    config = parsed(models / "night-1")
    assert (config.name, config.max_batch_size) == ("night-1", 1)
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (1, ENUMS["ModelInstanceGroup.Kind"]["KIND_CPU"])
    ]
    assert not config.HasField("dynamic_batching")
    assert not config.HasField("optimization")
    assert [(run.name, run.batch_size) for run in config.model_warmup] == [("golden-0", 1), ("golden-1", 1)]


def test_outputs_of_a_model_brought_along_keep_their_type(tmp_path: Path, models: Path) -> None:
    text = onnx.printer.to_text(onnx.load_from_string(tiny_model()))
    half = (
        text.replace("float[B,2] logits", "float16[B,2] logits")
        .replace("logits = ReduceMean", "wide = ReduceMean")
        .replace("\n}", "\n   logits = Cast <to = 10> (wide)\n}", 1)
    )
    assert half.count("float16") == 1
    bundle = write_tiny(tmp_path / "half.bundle", tiny_model(half))
    write_repository(bundle, models, TritonRequest())
    types_of = {output.name: output.data_type for output in parsed(models / "fourphase").output}
    assert types_of == {"logits": ENUMS["DataType"]["TYPE_FP16"], "phase_logits": ENUMS["DataType"]["TYPE_FP32"]}


def run(folder: Path, study: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The repository's ONNX as its configuration says it is to be run, on the CPU."""
    config = parsed(folder)
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Triton's numbers: 0 all, -1 basic, 1 extended, 2 none.
    options.graph_optimization_level = {0: levels.ORT_ENABLE_ALL, 2: levels.ORT_DISABLE_ALL}[
        config.optimization.graph.level
    ]
    model = (folder / "1" / config.default_model_filename).read_bytes()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[np.float32]] = session.run(
        [output.name for output in config.output], {config.input[0].name: study}
    )
    return outputs


def test_the_onnx_runs_with_the_shapes_of_the_configuration(bundle: Bundle, models: Path) -> None:
    write_repository(bundle, models, TritonRequest(max_batch=3))
    config = parsed(models / "fourphase")
    for batch in (1, config.max_batch_size):
        study = np.random.default_rng(batch).normal(size=(batch, *config.input[0].dims)).astype(np.float32)
        found = run(models / "fourphase", study)
        for output, array, wanted in zip(config.output, found, reference_outputs(tiny_model(), study), strict=True):
            assert array.shape == (batch, *output.dims)
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)


#: A convolution between Q/DQ pairs with scales so small that the product of two is nothing in FP16.
QUANTIZED = """
<ir_version: 10, opset_import: ["" : 20]>
quantized (float[B, 4, 2, 3, 4, 5] study) => (float[B, 2] logits, float[B, 4, 2] phase_logits)
<float16 step, float16[2] steps, float16[2] bias, int8 zero = {0}, int8[2] zeros = {0, 0},
 int8[2, 3, 1, 1] codes = {90, -70, 50, -30, 100, 110}, int64[4] fold = {-1, 3, 4, 5}, int64[2] hw = {2, 3},
 int64[4] unfold = {-1, 4, 2, 2}, int64[1] two = {2}, int64[1] one = {1}>
{
  slices = Reshape(study, fold)
  half = Cast<to = 10>(slices)
  q = QuantizeLinear(half, step, zero)
  x = DequantizeLinear(q, step, zero)
  w = DequantizeLinear<axis = 0>(codes, steps, zeros)
  c = Conv(x, w, bias)
  q2 = QuantizeLinear(c, step, zero)
  y = DequantizeLinear(q2, step, zero)
  back = Cast<to = 1>(y)
  pooled = ReduceMean<keepdims = 0>(back, hw)
  per_slice = Reshape(pooled, unfold)
  phase_logits = ReduceMean<keepdims = 0>(per_slice, two)
  logits = ReduceMean<keepdims = 0>(phase_logits, one)
}
"""


def test_a_quantized_model_is_run_without_the_optimiser_that_loses_its_biases(tmp_path: Path, models: Path) -> None:
    model = onnx.parser.parse_model(QUANTIZED)
    for name, values in (("step", 1.2e-4), ("steps", [1.1e-4, 1.3e-4]), ("bias", [0.004, 0.006])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.float16), name))
    data = model.SerializeToString()
    contents = {**tiny_contents().models, "int8": OnnxModel(data, {"stem": "int8"})}
    bundle = write_tiny(tmp_path / "b", models=contents)
    record = write_repository(bundle, models, TritonRequest(precision="int8", device="cpu"))
    assert record["quantized"]
    study = np.random.default_rng(0).uniform(-0.01, 0.01, (2, *SHAPE)).astype(np.float32)
    wanted = reference_outputs(data, study)
    assert np.abs(wanted[0]).max() > 3e-3, "without a bias there would be nothing to lose"
    for found, reference in zip(run(models / "fourphase", study), wanted, strict=True):
        np.testing.assert_allclose(found, reference, atol=1.3e-4)
    assert parsed(models / "fourphase").optimization.graph.level == 2


def test_the_warm_up_files_are_the_golden_inputs(bundle: Bundle, models: Path) -> None:
    record = write_repository(bundle, models, TritonRequest())
    golden = bundle.golden()
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    for index, entry in enumerate(record["golden"]):
        raw = (models / "fourphase" / entry["input"]).read_bytes()
        assert len(raw) == 4 * int(np.prod(parsed(models / "fourphase").input[0].dims))
        study = np.frombuffer(raw, "<f4").reshape(1, *SHAPE)
        np.testing.assert_allclose(study[0], (golden.codes[index] / 255 - mean) / std, rtol=1e-5, atol=1e-6)
        logits, phase_logits = run(models / "fourphase", study.astype(np.float32))
        np.testing.assert_allclose(logits[0], entry["logits"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(phase_logits[0], entry["phase_logits"], rtol=1e-4, atol=1e-5)


def test_the_record_says_what_was_served_and_from_what(bundle: Bundle, models: Path) -> None:
    record = write_repository(bundle, models, TritonRequest())
    folder = models / "fourphase"
    assert json.loads((folder / "fourphase.json").read_text()) == record
    assert (record["schema"], record["bundle"]["sha256"]) == ("fourphase.triton/1", bundle.sha256)
    assert (record["classes"], record["phases"]) == (["HCC", "ICC"], ["NC", "ART", "PV", "DL"])
    assert record["preprocessing"]["hash"] == PREPROCESSING.hash
    assert record["engine"] is None
    assert (folder / "labels.txt").read_text() == "HCC\nICC\n"
    assert (folder / "1" / "model.onnx").read_bytes() == (bundle.path / "model.fp32.onnx").read_bytes()
    on_disk = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert set(on_disk) == {*record["files"], "fourphase.json"}
    for name, entry in record["files"].items():
        assert entry == {"sha256": hashlib.sha256(on_disk[name]).hexdigest(), "bytes": len(on_disk[name])}


def test_a_changed_bundle_is_refused_and_the_old_model_stays(bundle: Bundle, models: Path) -> None:
    write_repository(bundle, models, TritonRequest())
    before = {path: path.read_bytes() for path in models.rglob("*") if path.is_file()}
    model = bundle.path / "model.fp32.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.fp32\.onnx"):
        write_repository(load_bundle(bundle.path), models, TritonRequest())
    assert {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == before


def test_ours_is_replaced_and_neighbours_are_left_alone(bundle: Bundle, models: Path) -> None:
    neighbour = models / "other" / "config.pbtxt"
    neighbour.parent.mkdir(parents=True)
    neighbour.write_text("theirs")
    write_repository(bundle, models, TritonRequest(instances=1))
    (models / "fourphase" / "left-over").write_text("old")
    write_repository(bundle, models, TritonRequest(instances=4))
    assert parsed(models / "fourphase").instance_group[0].count == 4
    assert not (models / "fourphase" / "left-over").exists()
    assert neighbour.read_text() == "theirs"
    assert sorted(path.name for path in models.iterdir()) == ["fourphase", "other"]


@pytest.mark.parametrize("content", ["config.pbtxt", "fourphase.json", None])
def test_what_is_not_ours_is_never_replaced(bundle: Bundle, models: Path, content: str | None) -> None:
    target = models / "fourphase"
    if content is None:
        models.mkdir()
        target.write_text("a file")
    else:
        target.mkdir(parents=True)
        (target / content).write_text('{"schema": "other"}')
    before = {path: path.read_bytes() for path in models.rglob("*") if path.is_file()}
    with pytest.raises(OutputNotWritable) as caught:
        write_repository(bundle, models, TritonRequest())
    assert caught.value.key == "target_not_ours"
    assert {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == before


# Engines. Their bytes are never looked at, here or in Triton's configuration.


def plan_meta(bundle: Bundle, plan: bytes, **changes: Any) -> dict[str, Any]:
    meta = {
        "schema": "fourphase.engine/2",
        "onnx_sha256": bundle.files["model.fp32.onnx"].sha256,
        "part": "whole",
        "slices": None,
        "precision": "fp32",
        "flavour": "tensorrt",
        "version": "10.16.1.11",
        "cuda": "13.2",
        "driver": "595.71",
        "gpu": {"name": "NVIDIA L4", "compute_capability": "8.9"},
        "compute_capabilities": ["8.9"],
        "os": "linux",
        "arch": "x86_64",
        "batch": [1, 2, 4],
        "flags": {"version_compatible": False, "dla_core": None},
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
    }
    return {**meta, **changes}


def add_plan(bundle: Bundle, plan: bytes = b"a plan", folder: Path | None = None, **changes: Any) -> str:
    return PlanStore(bundle, folder).put(plan, plan_meta(bundle, plan, **changes)).key


def test_an_engine_is_served_as_it_is(bundle: Bundle, models: Path) -> None:
    key = add_plan(bundle)
    record = write_repository(bundle, models, TritonRequest(plan=key))
    config = parsed(models / "fourphase")
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 4)
    assert (models / "fourphase" / "1" / "model.plan").read_bytes() == b"a plan"
    assert not (models / "fourphase" / "1" / "model.onnx").exists()
    assert list(config.dynamic_batching.preferred_batch_size) == [2]
    assert not config.HasField("optimization")
    assert [run.batch_size for run in config.model_warmup] == [1, 1, 4]
    assert (record["engine"]["key"], record["engine"]["version"]) == (key, "10.16.1.11")
    assert list(config.input[0].dims) == list(SHAPE)


def test_the_only_engine_is_found_without_its_key(bundle: Bundle, models: Path, tmp_path: Path) -> None:
    add_plan(bundle, flavour="tensorrt-rtx")
    key = add_plan(bundle, folder=tmp_path / "plans")
    request = TritonRequest(backend="tensorrt", plans=tmp_path / "plans", max_batch=1)
    assert write_repository(bundle, models, request)["engine"]["key"] == key
    assert parsed(models / "fourphase").max_batch_size == 1


def test_a_preferred_batch_is_never_beyond_the_largest(bundle: Bundle, models: Path) -> None:
    key = add_plan(bundle, batch=[1, 4, 8])
    write_repository(bundle, models, TritonRequest(plan=key, max_batch=2))
    config = parsed(models / "fourphase")
    assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (2, [2])


UNSERVABLE: dict[str, tuple[dict[str, Any], str, str]] = {
    "RTX": ({"flavour": "tensorrt-rtx"}, "TensorRT for RTX", "TensorRT itself"),
    "trunk": ({"part": "trunk", "slices": 8}, "trunk of a split network", "--whole"),
    "tail": ({"part": "tail"}, "tail of a split network", "--whole"),
    "stale": ({"onnx_sha256": "0" * 64}, "another model", "build-plan"),
    "host code": ({"flags": {"version_compatible": True}}, "host code", "version compatibility"),
    "no single study": ({"batch": [2, 2, 4]}, "no single study", "build-plan"),
}


@pytest.mark.parametrize("name", UNSERVABLE)
@pytest.mark.parametrize("named", [True, False])
def test_an_engine_that_triton_cannot_serve_is_refused(name: str, named: bool, bundle: Bundle, models: Path) -> None:
    changes, cause, cure = UNSERVABLE[name]
    key = add_plan(bundle, **changes)
    request = TritonRequest(plan=key) if named else TritonRequest(backend="tensorrt")
    with pytest.raises(ModelIncompatible) as caught:
        write_repository(bundle, models, request)
    assert (caught.value.code, caught.value.key) == (20, "plan_not_servable")
    assert cause in caught.value.message
    assert key in caught.value.message
    assert cure in caught.value.hint
    assert not models.exists()


def test_a_damaged_engine_is_refused(bundle: Bundle, models: Path) -> None:
    key = add_plan(bundle)
    (bundle.path / "engines" / f"{key}.plan").write_bytes(b"another plan")
    with pytest.raises(IntegrityError):
        write_repository(bundle, models, TritonRequest(plan=key))
    assert not models.exists()


def test_which_engine_is_never_guessed(bundle: Bundle, models: Path) -> None:
    keys = sorted((add_plan(bundle), add_plan(bundle, batch=[1, 1, 1])))
    with pytest.raises(UsageError, match=f"{keys[0]}, {keys[1]} can all be served"):
        write_repository(bundle, models, TritonRequest(backend="tensorrt"))
    with pytest.raises(ModelIncompatible, match="no engine 0123"):
        write_repository(bundle, models, TritonRequest(plan="0123"))
    add_plan(bundle, part="tail")
    with pytest.raises(ModelIncompatible, match="is fp32, not int8") as caught:
        write_repository(bundle, models, TritonRequest(plan=keys[0], precision="int8"))
    with pytest.raises(ModelIncompatible) as caught:
        write_repository(bundle, models, TritonRequest(backend="tensorrt", precision="int8"))
    assert len(caught.value.table) == 3


def test_the_engines_profile_bounds_the_batch(bundle: Bundle, models: Path) -> None:
    key = add_plan(bundle)
    with pytest.raises(UsageError, match="at most 4 studies at once, not 5"):
        write_repository(bundle, models, TritonRequest(plan=key, max_batch=5))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"backend": "openvino"}, "unknown backend"),
        ({"device": "dla"}, "unknown device"),
        ({"name": "../models"}, "no model can be called"),
        ({"name": ".hidden"}, "no model can be called"),
        ({"name": 'a"b'}, "no model can be called"),
        ({"instances": 0}, "0 instances"),
        ({"max_batch": 0}, "batch of 0"),
        ({"plan": "0123", "backend": "onnxruntime"}, "runs no plan"),
        ({"backend": "tensorrt", "device": "cpu"}, "needs a GPU"),
    ],
)
def test_wrong_use_is_code_2(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        TritonRequest(**changes)


def test_a_missing_precision_and_a_class_that_is_no_line(bundle: Bundle, models: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelIncompatible, match="no model in int8, only in: fp32"):
        write_repository(bundle, models, TritonRequest(precision="int8"))
    odd = write_tiny(tmp_path / "odd.bundle", classes=("HCC", "I\nCC"))
    with pytest.raises(ModelIncompatible, match="no line of text"):
        write_repository(odd, models, TritonRequest())


# The command, and the client of the guide.


def fp_export_triton(*arguments: str | Path) -> Any:
    app = typer.Typer()
    app.command("triton")(triton)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_says_what_was_written_and_what_is_not_proven(bundle: Bundle, models: Path) -> None:
    outcome = fp_export_triton(bundle.path, "-o", models, "--max-batch", "3")
    assert outcome.exit_code == 0, outcome.output
    for expected in ("onnxruntime on gpu", "batch 1 to 3", "no Triton ran here", bundle.sha256[:12]):
        assert expected in outcome.output
    key = add_plan(bundle)
    outcome = fp_export_triton(bundle.path, "-o", models, "--plan", key, "--json")
    assert json.loads(outcome.stdout)["engine"]["key"] == key
    assert "TensorRT 10.16.1.11 on NVIDIA L4" in outcome.stderr
    assert not fp_export_triton(bundle.path, "-o", models, "--quiet").stderr
    error = fp_export_triton(bundle.path, "-o", models, "--backend", "tensorrt", "--device", "cpu").exception
    assert isinstance(error, FourphaseError)
    assert error.code == 2


class StandIn(types.ModuleType):
    """tritonclient.grpc as far as the client uses it, over the repository itself; adds `error` to every logit."""

    def __init__(self, models: Path, error: float) -> None:
        super().__init__("tritonclient.grpc")
        batches: list[int] = []

        class InferInput:
            def __init__(self, name: str, shape: list[int], datatype: str) -> None:
                self.wanted = (name, tuple(shape), datatype)

            def set_data_from_numpy(self, array: NDArray[np.float32]) -> None:
                assert self.wanted == ("study", array.shape, "FP32")
                assert array.dtype == np.float32
                self.array = array

        class Answer:
            def __init__(self, outputs: dict[str, NDArray[np.float32]]) -> None:
                self.outputs = outputs

            def as_numpy(self, name: str) -> NDArray[np.float32]:
                return self.outputs[name]

        class InferenceServerClient:
            def __init__(self, url: str) -> None:
                assert url == "localhost:8001"

            def infer(self, model_name: str, inputs: list[InferInput]) -> Answer:
                found = run(models / model_name, inputs[0].array)
                batches.append(len(inputs[0].array))
                return Answer({"logits": found[0] + np.float32(error), "phase_logits": found[1]})

        self.InferInput, self.InferenceServerClient, self.batches = InferInput, InferenceServerClient, batches


@pytest.mark.parametrize(("error", "code"), [(0.0, 0), (1e-2, 1), (float("nan"), 1)])
def test_the_guides_client_tells_a_right_server_from_a_wrong_one(
    error: float, code: int, bundle: Bundle, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_repository(bundle, models, TritonRequest(max_batch=3))
    (client,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    script = tmp_path / "check_golden.py"
    script.write_text(client)
    stand_in = StandIn(models, error)
    monkeypatch.setitem(sys.modules, "tritonclient", types.ModuleType("tritonclient"))
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", stand_in)
    monkeypatch.setattr(sys, "argv", ["check_golden.py", str(models / "fourphase"), "localhost:8001"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script))
    assert ended.value.code == code
    assert stand_in.batches == [1, 3, 1, 3]
    assert ("WRONG" in capsys.readouterr().out) == bool(code)


def test_the_guide_shows_commands_that_exist() -> None:
    options = {option for line in re.findall(r"^fp-export triton .*", GUIDE, flags=re.MULTILINE)
               for option in re.findall(r"--[a-z-]+", line)}  # fmt: skip
    helped = fp_export_triton("--help").output
    assert options
    for option in options:
        assert option in helped


def test_a_request_is_what_it_says() -> None:
    assert TritonRequest().chosen_backend == "onnxruntime"
    assert TritonRequest(plan="0123").chosen_backend == "tensorrt"
    assert replace(TritonRequest(), backend="tensorrt").chosen_backend == "tensorrt"
