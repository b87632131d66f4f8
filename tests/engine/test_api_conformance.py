"""Holds every TensorRT name the engine room uses against the API that TensorRT 10.0 to 11.4 share, without a GPU.

`data/trt_api_common.json` lists the names read off the bindings of 10.0.1, 10.3, 10.7, 10.9, 10.13.3, 10.16.1, 11.0
and 11.4. The engine room names its TensorRT objects by ROLES, so that methods of instances are seen too.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fourphase.engine
import fourphase.runtime
from fourphase.runtime.flavour import RTX_ONLY

ROOMS = tuple(Path(room.__path__[0]) for room in (fourphase.engine, fourphase.runtime))
ENGINE = ROOMS[0]
COMMON = frozenset(json.loads((Path(__file__).parent / "data" / "trt_api_common.json").read_text()))
TRT = re.compile(r"\btrt\b")
ROLES = {
    "base": "ILogger",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "error": "ParserError",
    "inspector": "EngineInspector",
    "mine": "ITimingCache",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
    "tensor": "ITensor",
}


def chain(node: ast.expr) -> list[str]:
    """a.b.c -> ["a", "b", "c"]; [] if it does not start at a name."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        start = chain(node.value)
        return [*start, node.attr] if start else []
    return []


def api_name(node: ast.expr) -> str | None:
    """The TensorRT name of an expression: trt.A.B and flavour.trt.A.B -> "A.B", config.c -> "IBuilderConfig.c"."""
    parts = [part for part in chain(node) if not part.startswith("__")]
    if "trt" in parts[:-1]:
        return ".".join(parts[parts.index("trt") + 1 :][:2])
    if len(parts) > 1 and parts[0] in ROLES:
        return f"{ROLES[parts[0]]}.{parts[1]}"
    return None


def uses(source: str) -> Iterator[tuple[str, ast.expr]]:
    """Every TensorRT name in a module."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := api_name(node)):
            yield name, node


def is_rtx_only(name: str) -> bool:
    return name in RTX_ONLY or name.partition(".")[0] in RTX_ONLY


def names_outside(source: str, api: frozenset[str] = COMMON) -> list[str]:
    """The names a module uses that are in neither list."""
    return sorted({name for name, _ in uses(source) if name not in api and not is_rtx_only(name)})


def modules() -> list[Path]:
    """Those that speak of TensorRT's module by its name `trt`, and those that are handed its objects."""
    speaking = (path for room in ROOMS for path in room.rglob("*.py") if TRT.search(path.read_text()))
    return sorted({*speaking, ENGINE / "parse.py", ENGINE / "timing_cache.py"})


def test_the_collector_sees_what_the_builder_uses() -> None:
    seen = {name for path in modules() for name, _ in uses(path.read_text())}
    assert {
        "Builder",
        "BuilderFlag.TF32",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "Builder.build_serialized_network",
        "IBuilderConfig.set_memory_pool_limit",
        "IOptimizationProfile.set_shape",
        "OnnxParser.num_errors",
        "ParserError.node_name",
        "ITimingCache.serialize",
        "EngineInspector.get_engine_information",
        "HardwareCompatibilityLevel.AMPERE_PLUS",
        "ILogger.INTERNAL_ERROR",
        "ComputeCapability.CURRENT",
    } <= seen


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.name)
def test_every_name_is_in_all_supported_versions(path: Path) -> None:
    assert names_outside(path.read_text()) == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16"),
        ("flag = flavour.trt.BuilderFlag.INT8", "BuilderFlag.INT8"),
        ("trt.IInt8EntropyCalibrator2", "IInt8EntropyCalibrator2"),
        ("trt; builder.platform_has_fast_fp16", "Builder.platform_has_fast_fp16"),
        ("trt; parser.supports_model(b'')", "OnnxParser.supports_model"),
    ],
)
def test_a_name_that_was_removed_is_found(line: str, name: str) -> None:
    assert names_outside(line) == [name]


def test_a_name_that_goes_missing_is_found() -> None:
    source = (ENGINE / "builder.py").read_text()
    assert names_outside(source, COMMON - {"BuilderFlag.TF32"}) == ["BuilderFlag.TF32"]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.name)
def test_no_name_hides_from_the_collector(path: Path) -> None:
    """A hasattr guard around a removed flag builds something else in silence."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not {call.id for call in calls if isinstance(call, ast.Name)} & {"getattr", "hasattr", "eval", "exec"}


def rtx_functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("_rtx_")]


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.name)
def test_rtx_only_names_stand_behind_the_flavour_check(path: Path) -> None:
    """They are used in functions `_rtx_*` only, and those are called under `if flavour.is_rtx` only."""
    tree = ast.parse(path.read_text())
    allowed = {id(node) for function in rtx_functions(tree) for node in ast.walk(function)}
    names = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (name := api_name(node))
        and is_rtx_only(name)
        and id(node) not in allowed
    }
    assert names == set()
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "flavour.is_rtx"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id.startswith("_rtx_") and id(node) not in allowed:
            assert id(node) in guarded, f"line {node.lineno}"


def test_every_exception_is_used_and_justified() -> None:
    used = {name for path in modules() for name, _ in uses(path.read_text())}
    for name, reason in RTX_ONLY.items():
        assert name not in COMMON
        assert name in used
        assert len(reason) > 10


@pytest.mark.rtx
def test_tensorrt_for_rtx_has_every_name() -> None:
    import tensorrt_rtx

    for path in modules():
        for name, _ in uses(path.read_text()):
            found = tensorrt_rtx
            for part in name.split("."):
                assert hasattr(found, part), name
                found = getattr(found, part)
