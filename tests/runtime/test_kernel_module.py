"""Compiling: nvcc and NVRTC, the cache and what it is bound to, and what is said where neither compiler is there."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fourphase.runtime import kernel_module
from fourphase.runtime.errors import EnvironmentFault
from fourphase.runtime.kernel_module import compile_module, kernel_name

needs_nvcc = pytest.mark.skipif(kernel_module._nvcc() is None, reason="there is no nvcc")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FOURPHASE_CACHE", str(folder))
    return folder / "kernels"


@needs_nvcc
def test_nvcc_compiles_once_per_gpu(cache: Path) -> None:
    first, again = compile_module("8.9"), compile_module("8.9")
    assert first.cubin[:4] == b"\x7fELF"
    assert (first.compiler, first.cached, again.cached) == ("nvcc", False, True)
    assert (again.cubin, again.compiler) == (first.cubin, "nvcc")
    assert compile_module("8.7").cubin != first.cubin
    assert len(list(cache.glob("*.cubin"))) == 2
    for general, half in itertools.product((False, True), repeat=2):
        assert kernel_name(general=general, half=half).encode() in first.cubin


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The architectures compiled for, by a stand-in compiler."""
    seen: list[str] = []

    def compiled(architecture: str, texts: list[bytes]) -> tuple[str, bytes]:
        seen.append(architecture)
        return "nvcc", b"\x7fELF" + architecture.encode()

    monkeypatch.setattr(kernel_module, "_compiled", compiled)
    return seen


def test_a_damaged_cache_entry_is_made_again(cache: Path, compilations: list[str]) -> None:
    good = compile_module("8.9").cubin
    (entry,) = cache.glob("*.cubin")
    whole = entry.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + b"?", b"", b"{}\n" + good, b"[]\n", b"\xff\xfe"):
        entry.write_bytes(damaged)
        made = compile_module("8.9")
        assert (made.cubin, made.cached) == (good, False)
        assert entry.read_bytes() == whole
    assert compile_module("8.9").cached
    assert compilations == ["sm_89"] * 7


@pytest.mark.usefixtures("cache")
def test_other_sources_flags_or_gpus_are_other_entries(
    compilations: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compile_module("8.9")
    compile_module("11.0")
    monkeypatch.setattr(kernel_module, "FLAGS", ("--fmad=true",))
    compile_module("8.9")
    for name in kernel_module._SOURCES:
        (tmp_path / name).write_bytes(b"other")
    monkeypatch.setattr(kernel_module, "__file__", str(tmp_path / "kernel_module.py"))
    compile_module("8.9")
    assert compilations == ["sm_89", "sm_110", "sm_89", "sm_89"]


def test_a_cache_that_cannot_be_written_costs_time_only(
    compilations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FOURPHASE_CACHE", str(tmp_path / "file"))
    assert not compile_module("8.9").cached
    assert not compile_module("8.9").cached
    assert compilations == ["sm_89"] * 2


def fake_nvrtc(result: str = "NVRTC_SUCCESS") -> Any:
    """cuda.bindings.nvrtc as far as it is used; compiling ends with `result`."""
    module: Any = ModuleType("cuda.bindings.nvrtc")
    codes = {name: SimpleNamespace(name=name) for name in ("NVRTC_SUCCESS", result)}
    success = codes["NVRTC_SUCCESS"]
    module.nvrtcResult = SimpleNamespace(NVRTC_SUCCESS=success)
    module.nvrtcVersion = lambda: (success, 13, 0)
    module.nvrtcCreateProgram = lambda source, name, count, headers, names: (success, (source, name, headers, names))
    module.nvrtcCompileProgram = lambda program, count, options: (codes[result],)
    module.nvrtcGetCUBINSize = lambda program: (success, 4)
    module.nvrtcGetCUBIN = lambda program, cubin: (success,)
    module.nvrtcDestroyProgram = lambda program: (success,)
    return module


def broken_nvcc(folder: Path) -> str:
    path = folder / "nvcc"
    path.write_text(
        "#!/bin/sh\necho 'nvcc warning : old' >&2\necho \"nvcc fatal : Value 'sm_110' unknown\" >&2\nexit 1\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.usefixtures("cache")
def test_nvrtc_takes_over_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", fake_nvrtc())
    monkeypatch.setattr(kernel_module, "_nvcc", lambda: broken_nvcc(tmp_path))
    module = compile_module("11.0")
    assert module.compiler == "NVRTC 13.0 (nvcc says: nvcc fatal : Value 'sm_110' unknown)"
    monkeypatch.setattr(kernel_module, "_nvcc", lambda: None)
    assert compile_module("9.0").compiler == "NVRTC 13.0 (nvcc is not installed)"


@pytest.mark.usefixtures("cache")
def test_no_compiler_is_an_error_with_both_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "_nvcc", lambda: None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(EnvironmentFault, match="nvcc is not installed; NVRTC is not installed") as caught:
        compile_module("8.9")
    assert (caught.value.code, caught.value.key) == (24, "kernel_not_compiled")
    assert "install nvcc" in caught.value.hint
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", fake_nvrtc("NVRTC_ERROR_INVALID_OPTION"))
    with pytest.raises(EnvironmentFault, match="NVRTC says: NVRTC_ERROR_INVALID_OPTION"):
        compile_module("8.9")


def test_nvrtc_compiles_for_every_target() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    texts = [Path(kernel_module.__file__).with_name(name).read_bytes() for name in kernel_module._SOURCES]
    for architecture in ("sm_87", "sm_89", "sm_90"):
        try:
            name, cubin = kernel_module._by_nvrtc(architecture, texts)
        except kernel_module._CannotCompile as error:
            pytest.skip(str(error))
        assert name.startswith("NVRTC ")
        assert cubin[:4] == b"\x7fELF"
