"""The README is true: its file tree is the repository's, its commands run, its table of codes is the error tree's."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fourphase.runtime import errors
from tests.support.tiny_bundle import write_tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = ("export", "engine", "runtime", "calibration", "benchmarks")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_tree_lists_every_module_once() -> None:
    listed = re.findall(r"^  ([a-z0-9_]+\.py) ", README, flags=re.MULTILINE)
    modules = [
        path.name for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if path.name != "__init__.py"
    ]
    assert sorted(listed) == sorted(modules)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        assert target.startswith("https://doi.org/") or (ROOT / target).exists(), target


def test_every_exit_code_is_in_the_table() -> None:
    codes = {
        kind.code
        for name in errors.__all__
        if isinstance(kind := getattr(errors, name), type) and hasattr(kind, "code")
    }
    table = README.split("### When something is wrong")[1].split("##")[0]
    named = {int(number) for number in re.findall(r"\b(\d{1,3})\b", table)}
    assert codes - {28, 29} <= named


def test_the_configuration_in_the_readme_is_read(tmp_path: Path) -> None:
    from fourphase.export.checkpoint import read_config
    from fourphase.export.config import NetworkConfig
    from fourphase.runtime.config import PreprocessingConfig

    (text,) = blocks("toml")
    path = tmp_path / "net.toml"
    path.write_text(text)
    sections = read_config(path)
    assert NetworkConfig.from_dict(sections["network"]) == NetworkConfig()
    assert PreprocessingConfig.from_dict(sections["preprocessing"]) == PreprocessingConfig()


def test_the_line_for_many_studies_runs_as_printed(tmp_path: Path) -> None:
    """With the phantoms of `fp-bench phantom`, and a tiny model in the place of a trained one."""
    line = next(text for block in blocks("sh") for text in block.splitlines() if text.startswith("fp-run --each"))
    program, *arguments = shlex.split(line)
    binaries = Path(sys.executable).parent
    write_tiny(tmp_path / "liver.bundle")
    for command in (["fp-bench", "phantom", "-o", "studies", "--count", "2"], [program, *arguments]):
        ran = subprocess.run(
            [str(binaries / command[0]), *command[1:]], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert ran.returncode == 0, ran.stderr
    results = tmp_path / "results"
    totals = json.loads((results / "summary.json").read_text(encoding="ascii"))["totals"]
    assert totals["done"] == 2
    for name in ("result.json", "preview.png", "sr.dcm"):
        assert len(list(results.glob(f"*/{name}"))) == 2, name


@pytest.mark.slow
def test_the_session_runs_as_printed(tmp_path: Path) -> None:
    """Every command of the README's session, in its order; the answers must be those that it shows."""
    (session,) = blocks("console")
    binaries = Path(sys.executable).parent
    for step in session.split("$ ")[1:]:
        line, _, shown = step.partition("\n")
        program, *arguments = shlex.split(line)
        outcome = subprocess.run(
            [str(binaries / program), *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert outcome.returncode == 0, outcome.stderr
        if program == "fp-run":
            answer = next(text for text in shown.splitlines() if text.startswith(("HCC", "ICC")))
            assert answer.split()[0] in outcome.stdout
            assert "model output, not a diagnosis" in outcome.stdout
    (library,) = blocks("python")
    (case,) = (tmp_path / "studies").iterdir()
    (case / "dicom").rename(tmp_path / "study")
    (case / "lesion_box.json").rename(tmp_path / "lesion_box.json")
    outcome = subprocess.run([sys.executable, "-c", library], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith(("HCC {", "ICC {"))
