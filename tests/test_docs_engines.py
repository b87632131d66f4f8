"""docs/engines.md is true: its commands parse, its table holds every error of the engine room and the plan store."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from fourphase.benchmarks.cli import app as bench
from fourphase.engine.builder import OUT_OF_MEMORY, WORKSPACE_TOO_SMALL
from fourphase.engine.options import PRICES, BuildOptions
from fourphase.export.cli import app as export
from fourphase.runtime import errors
from fourphase.runtime.cli import app as run
from fourphase.runtime.doctor_cli import app as doctor
from fourphase.runtime.plan_meta import KEY_FIELDS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
APPS: dict[str, Any] = {"fp-export": export, "fp-run": run, "fp-doctor": doctor, "fp-bench": bench}
#: The engine room and the plan store: every error they raise is in the table.
TOLD = sorted([*(ROOT / "engine").glob("*.py"), *(ROOT / "runtime").glob("plan_*.py")])
SOURCES = [path for room in ("engine", "runtime", "export") for path in sorted((ROOT / room).glob("*.py"))]
KINDS: dict[str, Any] = {name: kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type)}
Raised = tuple[str, int | None]
#: Keys that have a name.
CONSTANTS = {"OUT_OF_MEMORY": OUT_OF_MEMORY, "WORKSPACE_TOO_SMALL": WORKSPACE_TOO_SMALL, "GPU_LOST": errors.GPU_LOST}


def command_lines(page: str) -> list[str]:
    """Those of shell blocks, and those typed in console blocks, without comments."""
    blocks = re.findall(r"```(sh|console)\n(.*?)```", page, flags=re.DOTALL)
    lines = [
        line.removeprefix("$ ")
        for kind, block in blocks
        for line in block.splitlines()
        if kind == "sh" or line.startswith("$ ")
    ]
    inline = re.findall(r"`(fp-[a-z]+ [^`]*-[^`]*)`", page)
    return [line for line in [*lines, *(text for text in inline if " --" in text)] if line.strip()]


def parse(line: str) -> None:
    """Raises what the command line would be refused with."""
    words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    command = typer.main.get_command(APPS[words[0]])
    name, arguments = words[0], words[1:]
    if hasattr(command, "commands"):
        name, arguments = arguments[0], arguments[1:]
        command = command.commands[name]
    command.make_context(name, arguments)


def options_of_all() -> set[str]:
    commands = [typer.main.get_command(app) for app in APPS.values()]
    leaves = [leaf for command in commands for leaf in getattr(command, "commands", {"": command}).values()]
    return {option for leaf in leaves for parameter in leaf.params for option in parameter.opts}


def table_of_errors(page: str) -> dict[str, int]:
    """key -> exit code."""
    table = page.partition("## When something goes wrong")[2]
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", table, flags=re.MULTILINE)
    named = [(key, int(code)) for code, keys in rows for key in re.findall(r"`([a-z_]+)`", keys)]
    assert len(dict(named)) == len(named), "a key comes twice"
    return dict(named)


class Errors(ast.NodeVisitor):
    """The errors of one module, (key, exit code or None where only running would tell)."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: set[Raised] = set()
        self.helpers = {
            node.name: KINDS.get(node.returns.id)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name)
        } | {"build_error": errors.EngineBuildFailed}
        self.visit(tree)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        kind: Any = KINDS.get(name) or self.helpers.get(name)
        for key in self.keys_of(keywords.get("key"), node.args if name == "_failed" else ()):
            self.found.add((key, getattr(kind, "code", None)))
        if (name in KINDS or name == "build_error") and "key" not in keywords and node.args and hasattr(kind, "code"):
            self.found.add((kind.key, kind.code))
        self.generic_visit(node)

    def keys_of(self, value: ast.expr | None, arguments: Any) -> Iterator[str]:
        for one in (value, *arguments[:1]):
            if isinstance(one, ast.Constant) and isinstance(one.value, str) and re.fullmatch("[a-z_]+", one.value):
                yield one.value
            elif isinstance(one, ast.Name) and one.id in CONSTANTS:
                yield CONSTANTS[one.id]


def raised_in(paths: list[Path]) -> set[Raised]:
    """Of these modules, and those that the builder chooses by what TensorRT said."""
    found = {error for path in paths for error in Errors(ast.parse(path.read_text(encoding="utf-8"))).found}
    return found | {(key, errors.EngineBuildFailed.code) for key in CONSTANTS.values()}


def test_every_command_on_the_page_parses() -> None:
    lines = command_lines(PAGE)
    assert len(lines) > 10
    assert {shlex.split(re.sub(r"^[A-Z_]+=\S+ ", "", line))[0] for line in lines} >= {"fp-export", "fp-run"}
    for line in lines:
        parse(line)


@pytest.mark.parametrize("line", ["fp-export build-plan b --plan x", "fp-run s --bundle b --rebuilds 2", "fp-export"])
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"No such option|list index"):
        parse(line)


def test_every_option_on_the_page_exists() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE))
    assert len(named) > 15
    assert named <= options_of_all()


def test_every_option_of_a_build_has_its_price() -> None:
    table = PAGE.partition("## Options and their price")[2].partition("\n## ")[0]
    export_commands = typer.main.get_command(export)
    assert hasattr(export_commands, "commands")
    build, plan = (export_commands.commands[name] for name in ("build-engine", "build-plan"))
    both = {name for parameter in plan.params for name in parameter.opts if name.startswith("--")}
    shared = both & {name for parameter in build.params for name in parameter.opts} - {"--json", "--quiet", "--target"}
    assert shared | {"--split", "--rebuilds", "--whole", "--force", "--plans", "--lock-timeout"} <= set(
        re.findall(r"--[a-z-]+", table)
    )
    options = BuildOptions()
    assert f"| `--batch MIN,OPT,MAX` | `{','.join(map(str, options.batch))}` |" in table
    assert f"| `--workspace MIB` | `{options.workspace_bytes >> 20}` |" in table
    for name in ("ampere-plus", "same-compute-capability"):
        assert f"| `--hardware-compatibility {name}` | `none` | {PRICES[name]} |" in table


def test_the_parts_of_the_key_are_listed() -> None:
    table = PAGE.partition("## The key")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*`) \|", table, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == [
        *["onnx_sha256", "part", "slices", "precision", "flavour", "version", "cuda", "driver", "gpu"],
        *["compute_capabilities", "os", "arch", "batch", "flags"],
    ]
    assert re.findall(r"`(\w+)`", " ".join(rows)) == list(KEY_FIELDS)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("raise EngineBuildFailed('a', 'b', key='new_key')", ("new_key", 26)),
        ("raise UsageError('a', 'b')", ("usage", 2)),
        ("raise build_error('a')", ("engine_build_failed", 26)),
        ("raise build_error('a', key=OUT_OF_MEMORY)", ("build_out_of_memory", 26)),
        ("def _odd() -> IntegrityError: ...\nraise _odd('a', key='odd')", ("odd", 21)),
    ],
)
def test_the_collector_sees_what_is_raised(line: str, found: Raised) -> None:
    assert Errors(ast.parse(line)).found == {found}


def test_every_error_of_the_engine_room_and_the_plan_store_is_in_the_table() -> None:
    table = table_of_errors(PAGE)
    raised = raised_in(TOLD)
    assert {"precision_not_held", "build_out_of_memory", "plan_damaged", "output_not_writable"} <= dict(raised).keys()
    assert {key for key, _ in raised} - table.keys() == set()


def test_every_key_of_the_table_exists_and_has_its_code() -> None:
    table = table_of_errors(PAGE)
    raised = raised_in(SOURCES) | {(kind.key, kind.code) for kind in KINDS.values() if hasattr(kind, "code")}
    # The keys that a helper passes on, where only running tells the class.
    passed_on = {"engine_not_loadable", "model_not_runnable", "engine_refused"}
    for key, code in table.items():
        codes = {found for name, found in raised if name == key}
        if key in passed_on:
            assert any(
                f'key="{key}"' in path.read_text() or f'key: str = "{key}"' in path.read_text() for path in SOURCES
            )
            continue
        assert code in codes, (key, codes)
    assert set(table.values()) >= {2, 20, 21, 22, 23, 24, 26, 30, 31}


def test_every_code_of_the_table_is_the_contracts() -> None:
    codes = {kind.code for kind in KINDS.values() if hasattr(kind, "code")}
    assert set(table_of_errors(PAGE).values()) <= codes


def test_every_link_leads_somewhere() -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", PAGE):
        path = ROOT / "docs" / target if target else ROOT / "docs" / "engines.md"
        assert path.exists(), target
        heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not anchor or anchor in anchors, f"{target}#{anchor}"


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", PAGE)
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name
