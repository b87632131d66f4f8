"""Every rule by constructed facts, every probe by constructed files, every child by constructed modules."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.runtime import cuda, doctor_child, doctor_facts
from fourphase.runtime.decoders import DECODERS
from fourphase.runtime.doctor import _SYNTAXES, checks_of, verdict_of
from fourphase.runtime.doctor_child import ChildFailed, ask, without_paths
from fourphase.runtime.doctor_facts import PROBES, collect, jetpack_in, l4t_in, memory_in, power_mode_in
from fourphase.runtime.doctor_types import (
    SECTIONS,
    STATUSES,
    Backend,
    Check,
    Decoder,
    Disk,
    Facts,
    Gpu,
    Jetson,
    Module,
)

GIB = 1 << 30
CPU_BACKENDS = (
    Backend("tensorrt", False, False),
    Backend("tensorrt-rtx", False, False),
    Backend("onnxruntime", True, True),
    Backend("openvino", True, False),
)
#: A server without a GPU on which everything is in order.
SERVER = Facts(
    python="3.11.7",
    memory_bytes=64 * GIB,
    int8="AVX512-VNNI",
    disks=(Disk("temporary files", 90 * GIB, True), Disk("cache", 90 * GIB, True)),
    gpu_reason="no CUDA device (no NVIDIA driver)",
    modules={"numpy": Module("2.4.6"), "onnxruntime": Module("1.32.0"), "gdcm": Module("3.2.6")},
    distributions={"fourphase": "0.1.0", "onnxruntime": "1.32.0"},
    requirements={
        "numpy": ("numpy", "1.26"),
        "onnxruntime": ("onnxruntime", "1.20"),
        "python-gdcm": ("gdcm", "3.0.24"),
    },
    target=("none", "TensorRT is not installed, and TensorRT for RTX is not installed"),
    backends=CPU_BACKENDS,
    decoders=(Decoder("python-gdcm", ("1.2.840.10008.1.2.4.70",)),),
)
L4 = Gpu("NVIDIA L4", "8.9", "13.0", "580.65.06", 1, 22 * GIB, integrated=False)
ORIN = replace(
    SERVER,
    python="3.10.12",
    system="linux aarch64",
    venv="system packages visible",
    int8=None,
    jetson=Jetson("NVIDIA Jetson AGX Orin Developer Kit", "36.4.3", "6.2", "MAXN"),
    gpu=Gpu("Orin", "8.7", "12.6", "540.4.0", 1, 61 * GIB, integrated=True),
    modules={**SERVER.modules, "tensorrt": Module("10.3.0")},
    apt_tensorrt=("3.10",),
    target=("tensorrt", "TensorRT is installed"),
)
THOR = replace(
    ORIN,
    python="3.12.3",
    jetson=Jetson("NVIDIA Jetson AGX Thor Developer Kit", "38.4", "7.1"),
    gpu=Gpu("NVIDIA Thor", "11.0", "13.0", "580.00", 1, 122 * GIB, integrated=True),
    modules={**SERVER.modules, "tensorrt": Module("10.13.3.9")},
    apt_tensorrt=("3.12",),
)
WORKSTATION = replace(
    SERVER,
    gpu=L4,
    modules={**SERVER.modules, "tensorrt": Module("11.4.0")},
    target=("tensorrt", "TensorRT is installed"),
)


def by_key(facts: Facts) -> dict[str, Check]:
    """The checks by key, after what must hold for every machine."""
    checks = checks_of(facts)
    found = {check.key: check for check in checks}
    assert len(found) == len(checks), "a key comes twice"
    for check in checks:
        assert check.section in SECTIONS
        assert check.status in STATUSES
        assert check.key.startswith(f"{check.section}.")
        assert check.message
        assert not check.message.endswith(".")
        assert bool(check.hint) or check.status in ("ok", "note"), check
    places = [SECTIONS.index(check.section) for check in checks]
    assert places == sorted(places)
    return found


def status(facts: Facts, key: str) -> str:
    return by_key(facts)[key].status


def code(facts: Facts) -> int:
    return verdict_of(facts, checks_of(facts)).code


def troubles(facts: Facts) -> dict[str, str]:
    return {key: check.status for key, check in by_key(facts).items() if check.status in ("warning", "problem")}


def test_a_server_without_a_gpu_is_fine() -> None:
    found = by_key(SERVER)
    assert troubles(SERVER) == {}
    assert found["gpu.device"] == Check(
        "gpu.device", "gpu", "note", "no CUDA device (no NVIDIA driver); fp-run works on the CPU"
    )
    assert found["machine.memory"].message == "64.0 GiB of memory"
    assert found["packages.required"].message == "numpy 2.4.6, onnxruntime 1.32.0, python-gdcm 3.2.6"
    verdict = verdict_of(SERVER, checks_of(SERVER))
    assert verdict.code == 0
    assert verdict.fp_run == "fp-run would use onnxruntime on the CPU: no CUDA device (no NVIDIA driver)"
    assert "would choose none: TensorRT is not installed" in verdict.build_engine


def test_nothing_at_all_is_judged_without_a_crash() -> None:
    found = by_key(Facts())
    assert found["tensorrt.tensorrt"].status == "note"
    assert verdict_of(Facts(), checks_of(Facts())).fp_run.startswith("fp-run does not work here")


def test_an_orin_with_jetpack_6() -> None:
    found = by_key(ORIN)
    assert troubles(ORIN) == {}
    assert "JetPack 6.2, Jetson Linux 36.4.3" in found["machine.jetson"].message
    assert found["tensorrt.tensorrt"].message == "TensorRT 10.3.0"
    assert "transformer" in found["tensorrt.reports"].message
    assert found["tensorrt.reports"].status == "note"
    assert found["machine.power"].message.startswith("power mode MAXN")
    assert "shared with the CPU" in found["gpu.device"].message
    assert "(Jetson Orin)" in found["gpu.device"].message
    assert "choose tensorrt" in verdict_of(ORIN, checks_of(ORIN)).build_engine


def test_the_tensorrt_of_thor_with_jetpack_7_1_is_known_bad() -> None:
    found = by_key(THOR)
    assert troubles(THOR) == {"tensorrt.tensorrt": "problem"}
    assert "largest batch is 1" in found["tensorrt.tensorrt"].message
    assert "JetPack 7.2" in found["tensorrt.tensorrt"].hint
    assert "issues/151" in found["tensorrt.tensorrt"].hint
    verdict = verdict_of(THOR, checks_of(THOR))
    assert verdict.code == 24
    assert "But: TensorRT 10.13.3.9" in verdict.build_engine
    assert "But" not in verdict.fp_run  # it computes on the CPU


def test_thor_with_jetpack_7_2_is_fine() -> None:
    thor = replace(THOR, jetson=Jetson("NVIDIA Jetson AGX Thor", "39.2.0", "7.2"))
    assert troubles(replace(thor, modules={**SERVER.modules, "tensorrt": Module("10.16.2.10")})) == {}


def test_the_same_tensorrt_on_another_gpu_is_no_problem() -> None:
    facts = replace(WORKSTATION, modules={**SERVER.modules, "tensorrt": Module("10.13.3.9")})
    assert troubles(facts) == {}


def test_a_known_bad_version_that_would_not_be_used_is_a_warning() -> None:
    modules = {**SERVER.modules, "tensorrt": Module("10.2.0.19")}
    unused = replace(SERVER, modules=modules)
    assert troubles(unused) == {"tensorrt.tensorrt": "warning"}
    assert code(unused) == 0
    used = replace(WORKSTATION, modules=modules)
    assert troubles(used) == {"tensorrt.tensorrt": "problem"}
    assert code(used) == 24
    assert "10.2.0" in by_key(used)["tensorrt.tensorrt"].message


def test_where_the_target_is_not_known_a_gpu_counts_as_used() -> None:
    assert code(replace(THOR, target=None, unknown={"target": "no answer"})) == 24


def test_an_x86_server_with_tensorrt_11_4() -> None:
    assert troubles(WORKSTATION) == {}
    assert by_key(WORKSTATION)["tensorrt.tensorrt"].message == "TensorRT 11.4.0"
    assert "(L4, L40, RTX 40)" in by_key(WORKSTATION)["gpu.device"].message


def test_tensorrt_11_on_a_jetson_is_not_supported() -> None:
    modules = {**SERVER.modules, "tensorrt": Module("11.4.0")}
    facts = replace(ORIN, modules=modules)
    assert troubles(facts) == {"tensorrt.tensorrt": "warning", "tensorrt.jetpack": "warning"}
    assert "does not support" in by_key(facts)["tensorrt.tensorrt"].message
    newest = replace(facts, jetson=replace(ORIN.jetson, jetpack="7.2.2"), python="3.12.3")  # type: ignore[type-var]
    assert troubles(replace(newest, modules={**SERVER.modules, "tensorrt": Module("11.4.1")})) == {}


@pytest.mark.parametrize("version", ["8.5.2.2", "8.6.1", "10.0.1", "10.1.0"])
def test_an_old_tensorrt_is_refused_and_fp_run_still_works(version: str) -> None:
    facts = replace(WORKSTATION, modules={**SERVER.modules, "tensorrt": Module(version)})
    assert troubles(facts) == {"tensorrt.tensorrt": "warning"}
    assert "too old" in by_key(facts)["tensorrt.tensorrt"].message
    verdict = verdict_of(facts, checks_of(facts))
    assert verdict.code == 0
    assert "But: TensorRT" in verdict.build_engine


@pytest.mark.parametrize(
    ("version", "expected", "part"),
    [("12.0.1", "note", "newer"), ("11.5.0", "note", "newer"), ("11.4.9", "ok", ""), (None, "warning", "in no table")],
)
def test_a_version_that_no_table_holds(version: str | None, expected: str, part: str) -> None:
    facts = replace(WORKSTATION, modules={**SERVER.modules, "tensorrt": Module(version)})
    assert status(facts, "tensorrt.tensorrt") == expected
    assert part in by_key(facts)["tensorrt.tensorrt"].message


def test_an_empty_shell_from_pip() -> None:
    reason = "ModuleNotFoundError: No module named 'tensorrt_bindings'"
    facts = replace(WORKSTATION, modules={**SERVER.modules, "tensorrt": Module(error=reason)})
    check = by_key(facts)["tensorrt.tensorrt"]
    assert check.status == "warning"
    assert reason in check.message
    assert "empty shell" in check.hint
    assert code(facts) == 0
    assert f"But: TensorRT cannot be loaded: {reason}" in verdict_of(facts, checks_of(facts)).build_engine


def test_on_a_jetson_the_cure_is_apt() -> None:
    facts = replace(ORIN, modules={**SERVER.modules, "tensorrt": Module(error="x")})
    assert "--system-site-packages" in by_key(facts)["tensorrt.tensorrt"].hint
    missing = replace(ORIN, modules=SERVER.modules)
    assert status(missing, "tensorrt.tensorrt") == "warning"
    hidden = replace(missing, venv="isolated")
    assert "not visible in this venv" in by_key(hidden)["tensorrt.tensorrt"].message
    assert "3.10" in by_key(hidden)["tensorrt.tensorrt"].message


def test_the_lean_run_time_alone_does_not_build() -> None:
    facts = replace(SERVER, distributions={"tensorrt-lean-cu13": "11.4.0"})
    assert "lean" in by_key(facts)["tensorrt.tensorrt"].message


def test_another_python_than_jetpacks() -> None:
    facts = replace(ORIN, python="3.12.3")
    assert troubles(facts) == {"tensorrt.python": "warning"}
    assert "python3.10 -m venv --system-site-packages" in by_key(facts)["tensorrt.python"].hint


def test_another_tensorrt_than_jetpacks() -> None:
    facts = replace(ORIN, modules={**SERVER.modules, "tensorrt": Module("10.9.0")})
    assert troubles(facts) == {"tensorrt.jetpack": "warning"}
    assert "which has 10.3" in by_key(facts)["tensorrt.jetpack"].message


def test_pip_has_no_tensorrt_for_jetpack_6() -> None:
    wheel = {"tensorrt-cu12": "10.3.0"}
    assert troubles(replace(ORIN, distributions=wheel)) == {"tensorrt.pip": "warning"}
    assert "tensorrt.pip" not in by_key(replace(WORKSTATION, distributions=wheel))
    # apt's module has metadata too
    assert "tensorrt.pip" not in by_key(replace(ORIN, distributions={"tensorrt": "10.3.0"}))


@pytest.mark.parametrize(
    ("jetson", "expected"),
    [
        (Jetson("Jetson", "35.4.1", "5.1.2"), "warning"),
        (Jetson("Jetson", "36.3.0", None), "warning"),
        (Jetson("Jetson", None, "6.0"), "warning"),
        (Jetson("Jetson", None, None), "note"),
        (Jetson("Jetson", "40.1", None), "note"),
        (Jetson("Jetson", "38.2.1", None), "ok"),
    ],
)
def test_the_age_of_jetpack(jetson: Jetson, expected: str) -> None:
    assert status(replace(ORIN, jetson=jetson), "machine.jetson") == expected


def test_a_jetson_without_its_gpu_is_told_the_containers_flag() -> None:
    facts = replace(ORIN, gpu=None)
    assert status(facts, "gpu.device") == "warning"
    assert "--runtime nvidia" in by_key(facts)["gpu.device"].hint
    assert code(facts) == 0


def test_a_small_jetson_is_told_of_split_engines() -> None:
    assert "machine.memory_small" not in by_key(ORIN)
    small = replace(ORIN, memory_bytes=7 * GIB + GIB // 2)
    assert "split engines" in by_key(small)["machine.memory_small"].message
    assert "machine.memory_small" not in by_key(replace(SERVER, memory_bytes=8 * GIB))


def test_tensorrt_for_rtx_alone() -> None:
    facts = replace(
        SERVER,
        modules={**SERVER.modules, "tensorrt_rtx": Module("1.7.1.116")},
        target=("tensorrt-rtx", "no CUDA device; TensorRT for RTX builds without a GPU"),
    )
    assert troubles(facts) == {}
    assert "8.9, 12.0" in by_key(facts)["tensorrt.tensorrt_rtx"].message
    h100 = replace(facts, gpu=replace(L4, name="NVIDIA H100", compute_capability="9.0"))
    assert troubles(h100) == {"tensorrt.tensorrt_rtx": "warning"}
    assert "But: TensorRT for RTX" in verdict_of(h100, checks_of(h100)).build_engine
    both = replace(h100, target=("tensorrt", ""), modules={**facts.modules, "tensorrt": Module("11.4.0")})
    assert status(both, "tensorrt.tensorrt_rtx") == "note"


def test_a_wheel_for_a_newer_cuda_than_the_driver() -> None:
    old = replace(WORKSTATION, gpu=replace(L4, cuda="12.4", driver="550.54"), distributions={"tensorrt-cu13": "11.4.0"})
    assert troubles(old) == {"tensorrt.cuda": "warning"}
    assert "580" in by_key(old)["tensorrt.cuda"].hint
    assert troubles(replace(old, distributions={"tensorrt-cu12": "11.4.0"})) == {}
    assert troubles(replace(old, gpu=L4)) == {}


@pytest.mark.parametrize(
    ("gpu", "key"),
    [
        (replace(L4, driver="530.30.02"), "gpu.driver"),
        (replace(L4, compute_capability="7.0"), "gpu.capability"),
        (replace(L4, compute_capability="6.1"), "gpu.capability"),
    ],
)
def test_an_old_driver_and_an_old_gpu(gpu: Gpu, key: str) -> None:
    assert troubles(replace(WORKSTATION, gpu=gpu)) == {key: "warning"}


@pytest.mark.parametrize("driver", ["535.54.03", "535", None, "strange"])
def test_a_driver_that_is_new_enough_or_not_known(driver: str | None) -> None:
    assert troubles(replace(WORKSTATION, gpu=replace(L4, driver=driver))) == {}


def test_a_jetsons_driver_is_numbered_otherwise() -> None:
    assert ORIN.gpu is not None
    assert troubles(replace(ORIN, gpu=replace(ORIN.gpu, driver="34.1"))) == {}


def test_several_gpus() -> None:
    assert (
        "4 devices, the first is used" in by_key(replace(WORKSTATION, gpu=replace(L4, count=4)))["gpu.device"].message
    )


def test_two_onnxruntimes() -> None:
    facts = replace(SERVER, distributions={"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.26.0"})
    assert troubles(facts) == {"packages.onnxruntimes": "warning"}
    hint = by_key(facts)["packages.onnxruntimes"].hint
    assert hint.startswith("pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime")
    assert code(facts) == 0
    alone = replace(SERVER, distributions={"onnxruntime-gpu": "1.26.0"})
    assert status(alone, "packages.onnxruntimes") == "note"


def test_onnxruntime_broken_or_missing_is_a_problem() -> None:
    broken = replace(SERVER, modules={**SERVER.modules, "onnxruntime": Module(error="ImportError: GLIBC")})
    assert troubles(broken) == {"backends.onnxruntime": "problem"}
    assert verdict_of(broken, checks_of(broken)).fp_run.startswith("fp-run does not work here")
    modules = {name: module for name, module in SERVER.modules.items() if name != "onnxruntime"}
    backends = tuple(replace(b, available=False) if b.name == "onnxruntime" else b for b in CPU_BACKENDS)
    missing = replace(SERVER, modules=modules, backends=backends)
    assert troubles(missing) == {"backends.onnxruntime": "problem"}
    assert (code(broken), code(missing)) == (24, 24)


def test_a_required_package_missing_broken_or_old_is_a_problem() -> None:
    without = {name: module for name, module in SERVER.modules.items() if name != "numpy"}
    for numpy, part in ((None, "not installed"), (Module(error="died"), "died"), (Module("1.25.9"), "older than 1.26")):
        facts = replace(SERVER, modules={**without, "numpy": numpy} if numpy else without)
        assert troubles(facts) == {"packages.numpy": "problem"}
        assert part in by_key(facts)["packages.numpy"].message
        assert by_key(facts)["packages.numpy"].hint == "pip install 'numpy>=1.26'"
        verdict = verdict_of(facts, checks_of(facts))
        assert verdict.code == 24
        assert "But: numpy" in verdict.fp_run


def test_a_missing_decoder_names_its_syntaxes_and_its_package() -> None:
    missing = Decoder("python-gdcm", ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"), "not installed")
    modules = {name: module for name, module in SERVER.modules.items() if name != "gdcm"}
    facts = replace(SERVER, decoders=(missing,), modules=modules)
    assert troubles(facts) == {"decoders.python-gdcm": "problem"}
    check = by_key(facts)["decoders.python-gdcm"]
    assert check.message == "JPEG Lossless, JPEG Lossless SV1: python-gdcm: not installed"
    assert check.hint == "pip install --force-reinstall python-gdcm"
    assert code(facts) == 24


def test_every_transfer_syntax_has_a_name() -> None:
    assert set(_SYNTAXES) == set(DECODERS)


def test_openvino_without_instructions_for_int8() -> None:
    backends = tuple(replace(backend, built=True, available=True) for backend in CPU_BACKENDS if backend.name != "x")
    facts = replace(SERVER, backends=backends, int8=None, modules={**SERVER.modules, "openvino": Module("2026.4.1")})
    assert troubles(facts) == {"backends.openvino": "warning"}
    assert "silently wrong" in by_key(facts)["backends.openvino"].message
    good = replace(facts, int8="AMX")
    assert troubles(good) == {}
    assert "openvino (AMX) for bundles with int8" in verdict_of(good, checks_of(good)).fp_run
    unknown = replace(facts, unknown={"int8": "boom"})
    assert "backends.openvino" not in troubles(unknown)


def gpu_backends(available: bool = True) -> tuple[Backend, ...]:
    needs = "pycuda>=2024.1"
    both = (Backend("tensorrt", True, available, needs), Backend("tensorrt-rtx", True, available, needs))
    return (*both, *CPU_BACKENDS[2:])


def test_a_gpu_backend_that_works_is_in_the_verdict() -> None:
    facts = replace(WORKSTATION, backends=gpu_backends())
    assert troubles(facts) == {}
    assert status(facts, "backends.tensorrt") == "ok"
    assert by_key(facts)["backends.tensorrt-rtx"].message == "tensorrt-rtx: its module is not installed"
    text = verdict_of(facts, checks_of(facts)).fp_run
    assert text == "fp-run would use tensorrt if the bundle has an engine that fits, else the CPU"
    thor = replace(THOR, backends=gpu_backends())
    assert "But: TensorRT 10.13.3.9" in verdict_of(thor, checks_of(thor)).fp_run
    both = replace(facts, modules={**facts.modules, "tensorrt_rtx": Module("1.7.1.116")})
    assert "use tensorrt or tensorrt-rtx if" in verdict_of(both, checks_of(both)).fp_run


@pytest.mark.parametrize(
    ("facts", "expected", "part"),
    [
        (replace(SERVER, backends=gpu_backends()), "note", "needs a GPU"),
        (replace(WORKSTATION, backends=gpu_backends(available=False)), "warning", "because pycuda>=2024.1 is not"),
        (replace(WORKSTATION, backends=gpu_backends(), modules=SERVER.modules), "note", "is not installed"),
        (
            replace(WORKSTATION, backends=gpu_backends(), modules={**SERVER.modules, "tensorrt": Module(error="x")}),
            "note",
            "broken",
        ),
        (
            replace(WORKSTATION, backends=gpu_backends(), modules={**SERVER.modules, "tensorrt": Module("8.6.1")}),
            "note",
            "8.6.1 is refused",
        ),
        (
            replace(
                WORKSTATION, backends=gpu_backends(), modules={**WORKSTATION.modules, "pycuda": Module(error="ABI")}
            ),
            "warning",
            "cannot be loaded: ABI",
        ),
    ],
)
def test_why_a_gpu_backend_does_not_run(facts: Facts, expected: str, part: str) -> None:
    check = by_key(facts)["backends.tensorrt"]
    assert check.status == expected
    assert part in check.message
    verdict = verdict_of(facts, checks_of(facts))
    assert verdict.code == 0
    assert verdict.fp_run.startswith("fp-run would use onnxruntime on the CPU")


def test_disks() -> None:
    full = replace(SERVER, disks=(Disk("temporary files", GIB, True), Disk("cache", 90 * GIB, False)))
    assert troubles(full) == {"machine.disk_temporary": "warning", "machine.disk_cache": "warning"}
    assert "TMPDIR" in by_key(full)["machine.disk_temporary"].hint
    assert "FOURPHASE_CACHE" in by_key(full)["machine.disk_cache"].hint


texts = st.none() | st.text(max_size=30) | st.from_regex(r"\d{1,4}(\.\d{1,3}){0,4}\S?", fullmatch=True)
modules = st.builds(Module, texts, texts)


@given(
    facts=st.builds(
        Facts,
        python=st.text(max_size=10),
        jetson=st.none() | st.builds(Jetson, st.text(max_size=9), texts, texts, texts),
        gpu=st.none() | st.builds(Gpu, st.text(), st.text(max_size=5), st.text(max_size=5), texts),
        modules=st.dictionaries(st.sampled_from(["tensorrt", "tensorrt_rtx", "onnxruntime", "numpy"]), modules),
        distributions=st.dictionaries(st.text(max_size=20) | st.just("tensorrt-cu99"), st.text(max_size=9)),
        requirements=st.dictionaries(st.text(max_size=9), st.tuples(st.text(max_size=9), st.text(max_size=9))),
        target=st.none() | st.tuples(st.text(max_size=9), st.text(max_size=9)),
        unknown=st.dictionaries(st.sampled_from(list(PROBES)), st.text(max_size=9)),
    )
)
def test_no_facts_make_a_rule_raise(facts: Facts) -> None:
    checks = checks_of(facts)
    verdict = verdict_of(facts, checks)
    assert verdict.code in (0, 24)
    assert verdict.code == (24 if any(check.status == "problem" for check in checks) else 0)


# -- probes -----------------------------------------------------------------------------------------------------------

L4T = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"
DPKG = """Package: nvidia-jetpack-runtime
Status: install ok installed
Version: 9.9

Package: nvidia-jetpack
Status: {status}
Architecture: arm64
Version: 6.2.1+b38
Description: NVIDIA Jetpack Meta Package
 more text

Package: other
Status: install ok installed
Version: 1.0
"""


def test_files_of_a_jetson_are_read() -> None:
    assert l4t_in(L4T) == "36.4.3"
    assert l4t_in("# R38 (release), REVISION: 2.1, ...") == "38.2.1"
    assert jetpack_in(DPKG.format(status="install ok installed")) == "6.2.1"
    assert jetpack_in(DPKG.format(status="deinstall ok config-files")) is None
    assert memory_in("MemTotal:       32 kB\nMemFree: 1 kB\n") == 32768
    assert power_mode_in("NV Power Mode: MODE_30W\n2\n") == "MODE_30W"


@given(st.text() | st.binary().map(lambda data: data.decode(errors="replace")))
def test_no_file_makes_a_parser_raise(text: str) -> None:
    for parse in (l4t_in, jetpack_in, power_mode_in, memory_in):
        for prefix in ("", "Package: nvidia-jetpack\n", "R36 (release), REVISION: ", "NV Power Mode: ", "MemTotal: "):
            parse(prefix + text)


def test_the_jetson_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, l4t, dpkg, nvpmodel = (tmp_path / name for name in ("model", "l4t", "dpkg", "nvpmodel"))
    for name, path in (("_DEVICE_TREE", model), ("_L4T", l4t), ("_DPKG", dpkg), ("_NVPMODEL", nvpmodel)):
        monkeypatch.setattr(doctor_facts, name, path)
    assert PROBES["jetson"]() == {}
    model.write_bytes(b"Raspberry Pi 5\0")
    assert PROBES["jetson"]() == {}
    model.write_bytes(b"NVIDIA Jetson Orin Nano\0")
    assert PROBES["jetson"]() == {"jetson": Jetson("NVIDIA Jetson Orin Nano", None, None, None)}
    l4t.write_text(L4T)
    dpkg.write_text(DPKG.format(status="install ok installed"))
    nvpmodel.write_text("#!/bin/sh\n[ $# = 1 ] && [ $1 = -q ] && echo 'NV Power Mode: 15W'\n")
    nvpmodel.chmod(0o755)
    assert PROBES["jetson"]() == {"jetson": Jetson("NVIDIA Jetson Orin Nano", "36.4.3", "6.2.1", "15W")}


def test_a_containers_limit_is_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8388608 kB\n")
    monkeypatch.setattr(doctor_facts, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(doctor_facts, "_CGROUP_LIMIT", tmp_path / "max")
    for limit, expected in (("max\n", 8 * GIB), ("4294967296\n", 4 * GIB), ("9223372036854771712", 8 * GIB)):
        (tmp_path / "max").write_text(limit)
        assert PROBES["memory"]() == {"memory_bytes": expected}


def test_a_cache_that_is_not_there_yet_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURPHASE_CACHE", str(tmp_path / "a" / "b"))
    cache = PROBES["disks"]()["disks"][1]
    assert cache.purpose == "cache"
    assert cache.writable
    assert cache.free_bytes > 0
    assert not (tmp_path / "a").exists()


def test_apts_tensorrt_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_facts, "_APT_PYTHONS", tmp_path)
    (tmp_path / "python3.12" / "dist-packages" / "tensorrt").mkdir(parents=True)
    (tmp_path / "python3.10" / "dist-packages").mkdir(parents=True)
    assert PROBES["apt"]() == {"apt_tensorrt": ("3.12",)}


def test_the_requirements_are_those_of_the_packages_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = ["numpy>=1.26", "Scipy (>=1.13,<2)", "rich", "python-gdcm!=3.1,>=3.0.24", "onnx>=1; extra == 'export'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: stated)
    assert doctor_facts._required() == {"numpy": "1.26", "python-gdcm": "3.0.24", "rich": "", "scipy": "1.13"}


def test_every_probe_may_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def boom() -> dict[str, Any]:
        raise RuntimeError(f"cannot read {os.path.expanduser('~')}/secret/x")

    for name in list(PROBES):
        monkeypatch.setitem(PROBES, name, boom)
    facts = collect()
    assert set(facts.unknown) == set(PROBES)
    assert replace(facts, unknown={}) == Facts()
    found = by_key(facts)
    rows = [check for check in found.values() if ".unknown_" in check.key]
    assert len(rows) == len(PROBES)
    assert all(check.status == "warning" and "could not be found out: RuntimeError" in check.message for check in rows)
    assert "secret" not in json.dumps(asdict(facts))
    verdict = verdict_of(facts, checks_of(facts))
    assert verdict.code == 0
    assert "could not be found out" in verdict.fp_run
    assert "could not be found out" in verdict.build_engine


@pytest.mark.parametrize("name", list(PROBES))
def test_one_probe_that_raises_leaves_the_others(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(doctor_facts, "PROBES", dict.fromkeys(PROBES, dict))
    monkeypatch.setitem(doctor_facts.PROBES, "memory", lambda: {"memory_bytes": 5})
    monkeypatch.setitem(doctor_facts.PROBES, name, lambda: os.environ["NO SUCH VARIABLE"])
    facts = collect()
    assert set(facts.unknown) == {name}
    assert facts.memory_bytes == (None if name == "memory" else 5)


# -- children ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """fake(name, source) puts a module where this process, and so its children, find it first."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)

    return write


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os\nos.abort()", "the process died (signal 6)"),
        ("import os\nos._exit(3)", "the process ended (3)"),
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10: cannot open"),
        ("raise ImportError('cannot load /home/dr.jones/lib/libnvinfer.so.10')", "cannot load libnvinfer.so.10"),
        ("import no_such_thing", "No module named 'no_such_thing'"),
        ("print('noise' * 5000)\nraise SystemExit(0)", "the process ended (0)"),
    ],
)
def test_a_module_that_breaks_on_import_is_reported(fake: Any, source: str, reason: str) -> None:
    fake("tensorrt", source)
    module = doctor_facts._imported("tensorrt")
    assert module.version is None
    assert reason in (module.error or "")
    assert "jones" not in (module.error or "")


def test_a_module_that_hangs_is_given_up(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("tensorrt", "import time\ntime.sleep(60)")
    monkeypatch.setattr(doctor_child, "_TIMEOUT_S", 1.0)
    assert doctor_facts._imported("tensorrt") == Module(error="no answer within 1 s")


def test_a_module_that_prints_is_still_read(fake: Any) -> None:
    fake("tensorrt", "print('fourphase.doctor is not my name')\nprint('x', end='')\n__version__ = '10.3.0'")
    assert doctor_facts._imported("tensorrt") == Module("10.3.0")


def test_importing_tensorrt_creates_nothing(fake: Any) -> None:
    fake("tensorrt", "__version__ = '10.3.0'\ndef __getattr__(name):\n    raise SystemExit(f'touched {name}')")
    assert doctor_facts._imported("tensorrt") == Module("10.3.0")


def test_what_two_onnxruntimes_leave_behind_is_broken(fake: Any) -> None:
    fake("onnxruntime", "")
    assert "overwrote each other" in (doctor_facts._imported("onnxruntime").error or "")


def test_openvinos_telemetry_stays_off(fake: Any) -> None:
    fake("openvino_telemetry", "raise SystemExit('imported')")
    fake("openvino", "try:\n    import openvino_telemetry\nexcept ImportError:\n    pass\n__version__ = '2026.4.1-1-x'")
    assert doctor_facts._imported("openvino") == Module("2026.4.1")


def test_a_decoder_is_tried_on_its_picture() -> None:
    found = PROBES["decoders"]()["decoders"]
    assert {syntax for decoder in found for syntax in decoder.syntaxes} == set(DECODERS)
    assert {decoder.package: decoder.error for decoder in found} == dict.fromkeys(doctor_child._PICTURES)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os\nos.abort()", "died"),
        ("raise ImportError('libCharLS.so: no')", "cannot be imported: libCharLS.so: no"),
        ("import jpeg_ls_part", "cannot be imported: No module named 'jpeg_ls_part'"),
        ("def decode_pixel_data(data):\n    raise ValueError", "does not decode a test picture"),
        ("def decode_pixel_data(data):\n    return bytearray(128), {}", "does not decode a test picture"),
    ],
)
def test_a_decoder_that_fails_is_reported(fake: Any, source: str, reason: str) -> None:
    fake("jpeg_ls", source)
    assert reason in (doctor_facts._tried("pyjpegls") or "")


def test_a_decoder_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdcm", None)
    # In this process: a child would find the installed one.
    assert doctor_child._answer_decode("python-gdcm") == "not installed"


def test_the_backends_are_those_of_fp_run() -> None:
    from fourphase.runtime.backends import BACKENDS

    found = {backend.name: backend for backend in PROBES["backends"]()["backends"]}
    assert list(found) == [name for name in BACKENDS if name != "auto"]
    assert found["onnxruntime"] == Backend("onnxruntime", True, True, "onnxruntime>=1.20")
    assert found["openvino"].built


def test_a_question_nobody_answers() -> None:
    with pytest.raises(ChildFailed, match="KeyError"):
        ask("what is the time")


class Driver:
    """libcuda with two Orins of which the first is asked."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, handle: Any, ordinal: int) -> int:
        return 0

    def cuDeviceGetName(self, name: Any, length: int, handle: Any) -> int:
        name.value = b"Orin"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: Any) -> int:
        # cuda.h: COMPUTE_CAPABILITY_MAJOR 75, MINOR 76, INTEGRATED 18
        value._obj.value = {75: 8, 76: 7, 18: 1}[attribute]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12060
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, handle: Any) -> int:
        size._obj.value = 61 << 30
        return 0


def test_the_gpu_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    monkeypatch.setattr(cuda, "_DRIVER_VERSION", tmp_path / "absent")
    found = doctor_child._answer_gpu()
    assert Gpu(**found["gpu"]) == Gpu("Orin", "8.7", "12.6", None, 2, 61 << 30, integrated=True)


def test_the_gpu_probe_takes_the_childs_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_facts, "ask", lambda *question: {"gpu": None, "reason": "no CUDA device"})
    assert PROBES["gpu"]() == {"gpu": None, "gpu_reason": "no CUDA device"}
    monkeypatch.setattr(doctor_facts, "ask", lambda *question: {"gpu": asdict(L4), "reason": "CUDA device"})
    assert PROBES["gpu"]()["gpu"] == L4


@pytest.mark.gpu
def test_the_real_gpu_is_found() -> None:
    gpu = PROBES["gpu"]()["gpu"]
    assert gpu is not None
    assert gpu.memory_bytes > GIB
    assert gpu.integrated in (True, False)


# -- privacy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open /home/dr.jones/x/libcuda.so.1: no", "cannot open libcuda.so.1: no"),
        ("in '/home/jones'", "in '(a path)'"),
        ("in /home/john.doe/", "in (a path)"),
        ("from (/mnt/a/b.cpython-311.so)", "from (b.cpython-311.so)"),
        ("10/20", "10(a path)"),
        ("two\nlines  here", "two lines here"),
        ("x" * 999, "x" * 200),
    ],
)
def test_paths_are_taken_out(text: str, expected: str) -> None:
    assert without_paths(text) == expected


def test_a_home_with_blanks_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/Jane Doe")
    assert without_paths("cannot open '/home/Jane Doe/lib/a.so'") == "cannot open 'a.so'"
