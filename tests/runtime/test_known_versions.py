from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.runtime import flavour
from fourphase.runtime import known_versions as known
from fourphase.runtime.known_versions import at_least, cuda_of_wheel, is_of_jetpack, jetpack_of, numbers, reports_on


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.13.3.9", (10, 13, 3, 9)),
        ("6.2.1+b38", (6, 2, 1)),
        ("10.3.0.30-1+cuda12.5", (10, 3, 0, 30)),
        (" v1.2", (1, 2)),
        ("13", (13,)),
        ("2.13.0+cpu", (2, 13, 0)),
        ("abc", ()),
        ("", ()),
        (None, ()),
        ("١٢.٣", ()),
        ("." * 9, ()),
    ],
)
def test_a_version_is_its_leading_numbers(text: str | None, expected: tuple[int, ...]) -> None:
    assert numbers(text) == expected


@given(st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=6), st.sampled_from(["", "+cu13", "-rc1", "~x", " "]))
def test_numbers_are_read_back(parts: list[int], rest: str) -> None:
    assert numbers(".".join(map(str, parts)) + rest) == tuple(parts)


@given(st.text(), st.text())
def test_no_text_makes_a_look_up_raise(version: str, other: str) -> None:
    numbers(version)
    at_least(version, other)
    cuda_of_wheel(version)
    reports_on(version, other, jetson=True)
    family = jetpack_of(version, other) or known.JETPACKS[0]
    is_of_jetpack(version, family, other)


@given(st.text("0123456789.", max_size=5000))
def test_digits_without_end_are_no_version_and_no_error(text: str) -> None:
    assert all(part < 10**9 for part in numbers(text))


@pytest.mark.parametrize(
    ("version", "floor", "expected"),
    [("1.26", "1.26", True), ("1.26.0", "1.26", True), ("1.9", "1.26", False), ("2", "1.26", True), ("?", "1", None)],
)
def test_versions_are_compared_as_numbers(version: str, floor: str, expected: bool | None) -> None:
    assert at_least(version, floor) is expected


@pytest.mark.parametrize(
    ("jetpack", "l4t", "cuda"),
    [
        ("6.1", None, "12.6"),
        ("6.2.1+b38", "36.4.4", "12.6"),
        (None, "36.5.0", "12.6"),
        ("7.0", None, "13.0"),
        ("7.1", "38.4", "13.0"),
        (None, "38.2.1", "13.0"),
        ("7.2.2", None, "13.2"),
        (None, "39.2.0", "13.2"),
        ("6.0", "36.4.3", None),
        (None, "36.3.0", None),
        ("5.1.2", "35.4.1", None),
        (None, None, None),
        ("8.0", None, None),
    ],
)
def test_a_jetpack_is_found_by_its_version_or_by_jetson_linux(
    jetpack: str | None, l4t: str | None, cuda: str | None
) -> None:
    family = jetpack_of(jetpack, l4t)
    assert (family and family.cuda) == cuda


@pytest.mark.parametrize(
    ("jetpack", "version", "expected"),
    [
        ("6.2", "10.3.0.30", True),
        ("6.2", "10.7.0", True),
        ("6.2", "10.8.0", False),
        ("6.2", "10.30.0", False),
        ("7.1", "10.13.3.9", True),
        ("7.1", "10.16.2", False),
        ("7.2", "10.16.2", True),
        ("7.2.1", "11.4.1", False),
        ("7.2.2", "11.4.1", True),
        ("7.2.2", "11.4.0", False),
    ],
)
def test_which_tensorrt_belongs_to_which_jetpack(jetpack: str, version: str, expected: bool) -> None:
    family = jetpack_of(jetpack, None)
    assert family is not None
    assert is_of_jetpack(version, family, jetpack) is expected


@pytest.mark.parametrize(
    ("version", "capability", "jetson", "verdict"),
    [
        ("10.2.0.19", "8.9", False, "bad"),
        ("10.13.3.9", "11.0", True, "bad"),
        ("10.14.1", "11.0", False, "bad"),
        ("10.13.3.9", "8.9", False, "watch"),
        ("10.16.2", "11.0", True, "watch"),
        ("11.0.0", "8.7", True, "unsupported"),
        ("11.4.0", "11.0", True, "unsupported"),
        ("11.4.1", "11.0", True, "watch"),
        ("11.4.0", "8.9", False, "watch"),
        ("10.3.0", "8.7", True, "watch"),
        ("10.7.0", "8.7", True, None),
        ("10.14.1", "8.9", False, "watch"),
        ("?", "11.0", True, None),
    ],
)
def test_the_worst_report_comes_first(version: str, capability: str, jetson: bool, verdict: str | None) -> None:
    reports = reports_on(version, capability, jetson=jetson)
    assert (reports[0].verdict if reports else None) == verdict
    order = ["bad", "unsupported", "watch"]
    assert [report.verdict for report in reports] == sorted((r.verdict for r in reports), key=order.index)


def test_a_report_for_one_gpu_is_silent_about_others() -> None:
    def sources(capability: str | None) -> set[str]:
        return {report.source for report in reports_on("10.14.1", capability, jetson=False)}

    assert any(source.endswith("/4822") for source in sources("12.0"))
    assert not any(source.endswith("/4822") for source in sources("8.9") | sources(None))


@pytest.mark.parametrize("report", known.REPORTS, ids=lambda report: report.source.rpartition("/")[2])
def test_every_report_names_a_page_and_a_cure(report: known.Report) -> None:
    assert report.source.startswith("https://")
    assert report.verdict in ("bad", "unsupported", "watch")
    assert report.versions[0] < report.versions[1]
    assert report.cure
    assert not report.what.endswith(".")
    assert set(report.capabilities) <= set(known.CAPABILITIES)


def test_the_families_of_jetpack_do_not_overlap() -> None:
    for ends in ([family.versions for family in known.JETPACKS], [family.l4t for family in known.JETPACKS]):
        assert all(left[1] <= right[0] for left, right in itertools.pairwise(ends))
    assert all(family.source.startswith("https://") for family in known.JETPACKS)


def test_every_number_has_a_source() -> None:
    assert all(source.startswith("https://") or source == known.OURS for source in known.SOURCES.values())
    assert {"TENSORRT_FLOOR", "DRIVER_FLOORS", "TENSORRT_DRIVER_FLOOR", "RTX_CAPABILITIES"} <= set(known.SOURCES)


def test_the_floor_is_the_one_that_loading_enforces() -> None:
    assert known.TENSORRT_FLOOR == flavour._FLOOR


@pytest.mark.parametrize(
    ("name", "cuda"),
    [("tensorrt-cu13-libs", 13), ("tensorrt-cu12", 12), ("tensorrt-rtx-cu13", 13), ("tensorrt", None), ("cu13", None)],
)
def test_a_wheel_names_its_cuda(name: str, cuda: int | None) -> None:
    assert cuda_of_wheel(name) == cuda


@pytest.mark.rtx
def test_the_gpus_of_tensorrt_for_rtx_are_those_of_the_module() -> None:
    import tensorrt_rtx

    members = [name[2:] for name in tensorrt_rtx.ComputeCapability.__members__ if name[2:].isdigit()]
    assert [f"{digits[:-1]}.{digits[-1]}" for digits in members] == list(known.RTX_CAPABILITIES)
    assert set(known.RTX_CAPABILITIES) <= set(known.CAPABILITIES)
