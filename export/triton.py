"""A bundle -> one model of a Triton repository: its configuration, the model, labels, golden inputs and a record.

It starts no server and builds no engine: a plan is one that the bundle has. Triton checks neither hashes nor golden
outputs, and none ran in this project; docs/triton.md says what is proven and has a client that does the checking.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from fourphase.runtime.atomic import new_directory
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.errors import ModelIncompatible, OutputNotWritable, UsageError
from fourphase.runtime.golden import Golden
from fourphase.runtime.inference_checks import Tensor, check_interface, first_line
from fourphase.runtime.plan_store import PlanEntry, PlanStore

__all__ = ["BACKENDS", "DEVICES", "RECORD", "SCHEMA", "TritonRequest", "write_repository"]

SCHEMA = "fourphase.triton/1"
#: The record beside config.pbtxt; a directory with one is ours and may be replaced.
RECORD = "fourphase.json"
BACKENDS = ("onnxruntime", "tensorrt")
DEVICES = ("gpu", "cpu")
#: The largest batch without a plan that says otherwise: the engines' default profile.
_MAX_BATCH = 2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16"}
#: Of ONNX Runtime's levels, the one number for "none" in Triton's configuration. At every other level ONNX Runtime 1.32
#: loses biases beside FP16 scales (docs/precision.md), and Triton cannot switch one optimiser off.
_NO_OPTIMIZERS = 2


@dataclass(frozen=True)
class TritonRequest:
    """What to write.

    Attributes:
        precision: of the model; None is the plan's, or the bundle's first (fp32).
        backend: one of BACKENDS; None is tensorrt if a plan is named, else onnxruntime.
        plan: the key of the plan to serve; None takes the only one that Triton can serve.
        plans: a folder of plans besides the bundle's own.
        name: the model's name, and its directory's in the repository.
        max_batch: studies per run; None is the plan's largest, or 2.
        instances: copies of the model per GPU, or in all on a CPU.
        device: one of DEVICES.
    """

    precision: str | None = None
    backend: str | None = None
    plan: str | None = None
    plans: Path | None = None
    name: str = "fourphase"
    max_batch: int | None = None
    instances: int = 1
    device: str = "gpu"

    def __post_init__(self) -> None:
        wrong = (
            (self.backend not in (None, *BACKENDS), f"unknown backend {self.backend!r}", f"{' or '.join(BACKENDS)}"),
            (self.device not in DEVICES, f"unknown device {self.device!r}", f"{' or '.join(DEVICES)}"),
            (not _NAME.fullmatch(self.name), f"no model can be called {self.name!r}", "letters, digits, '_', '-', '.'"),
            (self.instances < 1, f"{self.instances} instances serve nobody", "at least 1"),
            (self.max_batch is not None and self.max_batch < 1, f"a batch of {self.max_batch} is none", "at least 1"),
            (self.plan is not None and self.backend == "onnxruntime", "ONNX Runtime runs no plan", "no --plan"),
            (self.device == "cpu" and self.chosen_backend == "tensorrt", "TensorRT needs a GPU", "--device gpu"),
        )
        for applies, cause, allowed in wrong:
            if applies:
                raise UsageError(cause, f"give {allowed}", key="triton_request")

    @property
    def chosen_backend(self) -> str:
        return self.backend or ("onnxruntime" if self.plan is None else "tensorrt")


@dataclass(frozen=True)
class _Graph:
    """Of an ONNX: output -> "float32" or "float16", and whether it holds Q/DQ nodes."""

    outputs: Mapping[str, str]
    quantized: bool


@dataclass(frozen=True, eq=False)
class _Model:
    """What is served: its bytes, the plan they are of (None for an ONNX), and the best and the largest batch."""

    data: bytes
    precision: str
    plan: PlanEntry | None
    batch: tuple[int, int]
    graph: _Graph

    @property
    def file(self) -> str:
        return "model.onnx" if self.plan is None else "model.plan"


def write_repository(bundle: Bundle, repository: Path, request: TritonRequest) -> dict[str, Any]:
    """Writes the directory `repository`/NAME, complete or not at all; nothing else in the repository is touched.

    Returns: the content of its `fourphase.json`.

    Raises: ModelIncompatible (20) for a precision or plan that the bundle lacks or Triton cannot serve; IntegrityError
        (21); UsageError (2) for a batch beyond the plan's; OutputNotWritable (30), also if the target is not ours.
    """
    target = repository / request.name
    _check_target(target)
    if not all(name.isprintable() and name.strip() for name in bundle.classes):
        raise ModelIncompatible("a class name is no line of text", "export the bundle with other class names")
    model = _plan_model(bundle, request) if request.chosen_backend == "tensorrt" else _onnx_model(bundle, request)
    golden = bundle.golden(model.precision)
    files = {
        "config.pbtxt": _config(bundle, request, model, len(golden)).encode(),
        f"1/{model.file}": model.data,
        "labels.txt": "".join(f"{name}\n" for name in bundle.classes).encode(),
    }
    files |= {f"warmup/{_golden_file(index)}": golden.study(index).tobytes() for index in range(len(golden))}
    record = _record(bundle, request, model, golden, files)
    with new_directory(target) as folder:
        for name, data in {**files, RECORD: (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()}.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    return record


def _onnx_model(bundle: Bundle, request: TritonRequest) -> _Model:
    precision = request.precision or next(iter(bundle.models))
    if precision not in bundle.models:
        raise ModelIncompatible(
            f"the bundle has no model in {precision}, only in: {', '.join(bundle.models)}",
            "choose a --precision that the bundle has",
            key="precision_missing",
        )
    data = bundle.read(bundle.models[precision].file)
    return _Model(data, precision, None, (1, request.max_batch or _MAX_BATCH), _graph(data, bundle))


def _plan_model(bundle: Bundle, request: TritonRequest) -> _Model:
    store = PlanStore(bundle, request.plans)
    entry = _choose(store.entries(), bundle, request)
    meta = entry.meta or {}
    _, opt, most = meta["batch"]
    if request.max_batch is not None and request.max_batch > most:
        raise UsageError(
            f"engine {entry.key} takes at most {most} studies at once, not {request.max_batch}",
            "give a smaller --max-batch, or build an engine with a larger batch",
            key="batch_beyond_plan",
        )
    precision = meta["precision"]
    # The engine's inputs and outputs are those of the graph it was built from.
    graph = _graph(bundle.read(bundle.models[precision].file), bundle)
    largest = request.max_batch or most
    return _Model(store.read(entry), precision, entry, (min(opt, largest), largest), graph)


def _choose(entries: Sequence[PlanEntry], bundle: Bundle, request: TritonRequest) -> PlanEntry:
    """The plan asked for, or the only one that can be served."""
    wanted = {entry.key: entry for entry in entries if request.plan in (None, entry.key)}
    causes = {key: _why_not(entry, bundle, request.precision) for key, entry in wanted.items()}
    fitting = [key for key, cause in causes.items() if cause is None]
    if len(fitting) == 1:
        return wanted[fitting[0]]
    if fitting:
        cause = f"engines {', '.join(fitting)} can all be served"
        raise UsageError(cause, "choose one with --plan; fp-export inspect tells them apart", key="plan_ambiguous")
    refused = [cause for cause in causes.values() if cause is not None]
    if len(refused) == 1:
        raise ModelIncompatible(*refused[0], key="plan_not_servable")
    what = f"engine {request.plan}" if request.plan else "engine that Triton can serve"
    raise ModelIncompatible(
        f"the bundle has no {what}",
        "build one with fp-export build-plan where it will be served, or use --backend onnxruntime",
        key="plan_missing",
        table=[{"why not": cause} for cause, _ in refused],
    )


def _why_not(entry: PlanEntry, bundle: Bundle, precision: str | None) -> tuple[str, str] | None:
    """Why Triton cannot serve a plan, and the cure. Whether it fits the GPU that will serve it is not known here."""
    meta, this, instead = entry.meta, f"engine {entry.key}", "or use --backend onnxruntime"
    again = f"build it again with fp-export build-plan, {instead}"
    if meta is None or entry.problem is not None:
        return f"{this} cannot be used: {entry.problem}", again
    if meta["flavour"] != "tensorrt":
        cure = f"build one with TensorRT itself on the GPU that will serve it, {instead}"
        return f"{this} is one of TensorRT for RTX, for which Triton has no backend", cure
    if meta["part"] != "whole":
        cause = f"{this} is the {meta['part']} of a split network, and Triton serves one engine as one model"
        return cause, f"build a whole one with fp-export build-plan --whole, {instead}"
    model = bundle.models.get(meta["precision"])
    if model is None or meta["onnx_sha256"] != bundle.files[model.file].sha256:
        return f"{this} was built from another model", again
    if precision not in (None, meta["precision"]):
        return f"{this} is {meta['precision']}, not {precision}", f"choose another --precision, {instead}"
    if meta["flags"].get("version_compatible"):
        cause = f"{this} is version compatible: Triton would have to run host code from the file"
        return cause, f"build it without version compatibility, {instead}"
    if meta["batch"][0] > 1:
        return f"{this} takes no single study, which Triton will send", again
    return None


def _graph(data: bytes, bundle: Bundle) -> _Graph:
    """What is to be known of a model, once its names, types and shapes are those of the manifest."""
    try:
        graph = onnx.load_model_from_string(data).graph
    except Exception as error:  # protobuf's exceptions share no base class with others
        raise ModelIncompatible(
            f"the model is no ONNX: {first_line(error)}", "build the bundle again", key="model_not_loadable"
        ) from error
    weights = {weight.name for weight in graph.initializer}
    outputs = [_tensor(value) for value in graph.output]
    check_interface([_tensor(value) for value in graph.input if value.name not in weights], outputs, bundle)
    quantized = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node)
    return _Graph({tensor.name: tensor.type for tensor in outputs}, quantized)


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    known: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
    sizes = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
    return Tensor(value.name, known.get(tensor.elem_type, f"ONNX type {tensor.elem_type}"), sizes)


def _config(bundle: Bundle, request: TritonRequest, model: _Model, golden: int) -> str:
    """config.pbtxt: inference.ModelConfig of Triton's model_config.proto as protobuf text."""
    study = _dims(bundle.input_shape)
    shapes = {"logits": (len(bundle.classes),), "phase_logits": (len(bundle.phases), len(bundle.classes))}
    labels = {"logits": ' label_filename: "labels.txt"'}
    types = {name: _TYPES[kind] for name, kind in model.graph.outputs.items()}
    outputs = [
        f'  {{ name: "{name}" data_type: {types[name]} dims: {_dims(shape)}{labels.get(name, "")} }}'
        for name, shape in shapes.items()
        if name in bundle.outputs
    ]
    opt, largest = model.batch
    sizes = f" preferred_batch_size: [ {opt} ]" if opt > 1 else ""
    runs = [(f"golden-{index}", 1, index) for index in range(golden)]
    runs += [("golden-0-largest-batch", largest, 0)] if largest > 1 else []
    warmup = [
        f'  {{ name: "{name}" batch_size: {batch} inputs {{ key: "study" value {{ data_type: TYPE_FP32 dims: {study}'
        f' input_data_file: "{_golden_file(index)}" }} }} }}'
        for name, batch, index in runs
    ]
    lines = [
        f"# Written by fp-export triton; what it was made from is in {RECORD}.",
        f'name: "{request.name}"',
        f'backend: "{request.chosen_backend}"',
        f'default_model_filename: "{model.file}"',
        f"max_batch_size: {largest}",
        f'input [\n  {{ name: "study" data_type: TYPE_FP32 dims: {study} }}\n]',
        "output [\n" + ",\n".join(outputs) + "\n]",
        f"instance_group [\n  {{ count: {request.instances} kind: KIND_{request.device.upper()} }}\n]",
        *([f"dynamic_batching {{{sizes} }}"] if largest > 1 else []),
        *_optimization(request, model),
        "model_warmup [\n" + ",\n".join(warmup) + "\n]",
    ]
    return "\n".join(lines) + "\n"


def _optimization(request: TritonRequest, model: _Model) -> list[str]:
    """Only what keeps ONNX Runtime at what the graph says; TensorRT gets none."""
    if model.plan is not None:
        return []
    parts = [f"  graph {{ level: {_NO_OPTIMIZERS} }}"] if model.graph.quantized else []
    if request.device == "gpu":
        # On by default: 10 bits of mantissa in what calls itself FP32.
        off = 'parameters { key: "use_tf32" value: "0" }'
        parts.append(f'  execution_accelerators {{\n    gpu_execution_accelerator [ {{ name: "cuda" {off} }} ]\n  }}')
    return ["optimization {\n" + "\n".join(parts) + "\n}"] if parts else []


def _record(
    bundle: Bundle, request: TritonRequest, model: _Model, golden: Golden, files: Mapping[str, bytes]
) -> dict[str, Any]:
    engine = None if model.plan is None else {"key": model.plan.key, **(model.plan.meta or {})}
    record = {
        "schema": SCHEMA,
        "name": request.name,
        "backend": request.chosen_backend,
        "precision": model.precision,
        "quantized": model.graph.quantized,
        "device": request.device,
        "instances": request.instances,
        "max_batch": model.batch[1],
        "classes": list(bundle.classes),
        "phases": list(bundle.phases),
        "input": {"name": "study", "type": "float32", "shape": [None, *bundle.input_shape]},
        "preprocessing": {"hash": bundle.preprocessing.hash, **bundle.preprocessing.to_dict()},
        "bundle": {"sha256": bundle.sha256},
        "engine": engine,
        "golden": [
            {
                "input": f"warmup/{_golden_file(index)}",
                "logits": golden.logits[index].tolist(),
                **({} if golden.phase_logits is None else {"phase_logits": golden.phase_logits[index].tolist()}),
            }
            for index in range(len(golden))
        ],
        "tolerance": asdict(golden.tolerance),
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
        },
    }
    return dict(json.loads(json.dumps(record)))  # as a reader finds it


def _golden_file(index: int) -> str:
    return f"golden-{index}.f32"


def _dims(shape: Sequence[int]) -> str:
    return f"[ {', '.join(map(str, shape))} ]"


def _check_target(target: Path) -> None:
    """Raises: OutputNotWritable (30) unless the target is new, empty, or a model that this module wrote."""
    try:
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
        ours = taken and json.loads((target / RECORD).read_bytes()).get("schema") == SCHEMA
    except (OSError, ValueError, AttributeError):
        taken, ours = True, False
    if taken and not ours:
        cause = f"{target} exists and is not a model that fp-export triton wrote"
        raise OutputNotWritable(cause, "choose another repository or --name", key="target_not_ours")
