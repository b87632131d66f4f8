"""Which plan fits which machine, and what is said of those that do not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.runtime.cuda import Device, Probe
from fourphase.runtime.errors import ModelIncompatible
from fourphase.runtime.plan_meta import KEY_FIELDS, Machine, check_meta, misfits, plan_key, this_machine
from tests.support.plans import FLAGS, META

L4 = Device("NVIDIA L4", "8.9", "13.0", "580.1")
RTX = {**META, "flavour": "tensorrt-rtx", "version": "1.7.1.116", "gpu": None, "cuda": None, "driver": None}


def machine(device: Device | None = L4, **versions: str) -> Machine:
    found = {"tensorrt": "10.13.3.9", "tensorrt-rtx": "1.7.1.116", **versions}
    probe = Probe(device, "a device" if device else "no CUDA device (no NVIDIA driver)")
    return Machine({name: version for name, version in found.items() if version}, probe, "linux", "x86_64")


def reasons(meta: dict[str, Any], here: Machine, **options: Any) -> tuple[str, ...]:
    return misfits(meta, here, {"a" * 64}, **options)


def test_a_plan_fits_where_it_was_built() -> None:
    assert reasons(META, machine()) == ()
    assert reasons(RTX, machine()) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"onnx_sha256": "c" * 64}, "built from another model"),
        ({"arch": "aarch64"}, "for linux aarch64, this is linux x86_64"),
        ({"version": "10.3.0.26"}, "built with tensorrt 10.3.0.26, installed is 10.13.3.9"),
        ({"compute_capabilities": ["8.7"]}, "for compute capability 8.7, this GPU has 8.9"),
        ({"gpu": {"name": "NVIDIA L40S", "compute_capability": "8.9"}}, "built on NVIDIA L40S, this is NVIDIA L4"),
        ({"gpu": None}, "built on an unknown GPU, this is NVIDIA L4"),
        ({"driver": "570.0"}, "built with driver 570.0, this is 580.1"),
        ({"cuda": "12.8"}, "built with cuda 12.8, this is 13.0"),
        ({"flags": {**FLAGS, "version_compatible": True}}, "host code from plans is not allowed"),
        ({"batch": [2, 2, 4]}, "it takes 2 studies at least"),
    ],
)
def test_each_difference_is_named(change: dict[str, Any], said: str) -> None:
    (reason,) = reasons({**META, **change}, machine())
    assert said in reason


def test_a_machine_without_gpu_or_tensorrt_says_so() -> None:
    assert reasons(META, machine(None)) == ("no CUDA device (no NVIDIA driver)",)
    assert reasons(META, machine(tensorrt="")) == ("tensorrt is not installed or cannot be loaded",)


def test_an_engine_of_rtx_fits_every_gpu_of_its_kind_but_one_version() -> None:
    l40 = Device("NVIDIA L40", "8.9", "12.8", "570.9")
    assert reasons(RTX, machine(l40)) == ()
    assert reasons({**RTX, "compute_capabilities": ["8.6", "8.9"]}, machine(l40)) == ()
    assert reasons(RTX, machine(Device("NVIDIA A10", "8.6", "13.0", "580.1"))) != ()
    assert "1.7.1.116" in reasons(RTX, replace(machine(), versions={"tensorrt-rtx": "1.7.2.1"}))[0]


def test_compatibility_widens_what_fits() -> None:
    a100 = Device("NVIDIA A100", "8.0", "13.0", "580.1")
    turing = Device("Tesla T4", "7.5", "13.0", "580.1")
    ampere = {**META, "flags": {**FLAGS, "hardware_compatibility": "ampere-plus"}}
    assert reasons(ampere, machine(a100)) == ()
    assert reasons(ampere, machine(turing)) != ()
    same = {**META, "flags": {**FLAGS, "hardware_compatibility": "same-compute-capability"}}
    assert reasons(same, machine(Device("NVIDIA L40", "8.9", "13.0", "580.1"))) == ()
    assert reasons(same, machine(a100)) != ()
    version = {
        **META,
        "version": "10.3.0.26",
        "cuda": "12.6",
        "driver": "540.4",
        "flags": {**FLAGS, "version_compatible": True},
    }
    assert reasons(version, machine(), host_code=True) == ()
    assert reasons({**version, "version": "10.16.0.1"}, machine(), host_code=True) != (), "an older run time"
    assert reasons({**version, "version": "9.3.0.26"}, machine(), host_code=True) != ()


@pytest.mark.parametrize("name", [*KEY_FIELDS, "plan_sha256"])
def test_meta_data_without_a_field_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelIncompatible, match=name):
        check_meta({key: value for key, value in META.items() if key != name})
    with pytest.raises(ModelIncompatible, match=name):
        check_meta({**META, name: 1.5})
    assert check_meta(META) == META


@pytest.mark.parametrize("change", [{"part": "half"}, {"part": "trunk"}, {"slices": 8}, {"part": "tail", "slices": 8}])
def test_part_and_slices_belong_together(change: dict[str, Any]) -> None:
    with pytest.raises(ModelIncompatible, match="part and slices"):
        check_meta({**META, **change})


@pytest.mark.parametrize("batch", [[], [1, 2], [0, 1, 1], [2, 1, 2], [1, "1", 2], [1, True, 2]])
def test_a_batch_that_is_no_profile_is_refused(batch: list[Any]) -> None:
    with pytest.raises(ModelIncompatible, match="batch"):
        check_meta({**META, "batch": batch})


def test_the_key_is_that_of_what_decides() -> None:
    assert plan_key({**META, "warnings": ["x"], "plan_sha256": "c"}) == plan_key(META)
    changed = {plan_key({**META, name: "other"}) for name in KEY_FIELDS}
    assert len(changed | {plan_key(META)}) == len(KEY_FIELDS) + 1
    with pytest.raises(ValueError, match="JSON compliant"):
        plan_key({**META, "batch": [math.nan]})


@given(st.dictionaries(st.sampled_from([*META, "x"]), st.none() | st.integers() | st.text() | st.lists(st.text())))
def test_strange_meta_data_is_refused_or_usable(change: dict[str, Any]) -> None:
    try:
        meta = check_meta({**META, **change})
    except ModelIncompatible:
        return
    assert all(isinstance(reason, str) for reason in reasons(meta, machine()))


def test_this_machine_is_looked_at_without_creating_anything() -> None:
    here = this_machine()
    assert here.os == "linux"
    assert set(here.versions) <= {"tensorrt", "tensorrt-rtx"}
