"""The kernel's arithmetic, built for this machine, against the NumPy path and SimpleITK; its cubins; its two homes."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fourphase.runtime import kernel_module
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.geometry import Region, SeriesGeometry
from fourphase.runtime.kernel_module import FLAGS, kernel_name
from fourphase.runtime.kernel_plan import HEADER, KernelPlan
from fourphase.runtime.preprocess import normalized, plan_sampling
from tests.support.host_kernel import COMPILER, case_file, host_kernel, sanitized_program
from tests.support.volumes import ORIENTATIONS, grid, noise_volume, resampled, resized, turned

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no g++")

CONFIG = PreprocessingConfig()
SMALL = dataclasses.replace(CONFIG, size=(9, 11, 13))
SHAPE = (9, 12, 14)
#: The contract allows 0.5. Both compute in float32 over 4096 HU; measured: 0 separable, 1e-3 general.
TOLERANCE_HU = 0.01
HEADER_FILE = Path(kernel_module.__file__).with_name("sampling_kernel.h")
DEVICE_FILE = HEADER_FILE.with_suffix(".cu")
NVCC = shutil.which("nvcc")
OBLIQUE = turned(0.3, -0.2, 0.1)
INSIDE = Region((-6.2, -4.3, -7.1), (4.1, 3.9, 6.3))


def centred(geometry: SeriesGeometry) -> SeriesGeometry:
    """Moved so that the middle of the volume is near the origin, on quarter millimetres."""
    bounds = geometry.bounds()
    middle = (np.array(bounds.min) + np.array(bounds.max)) / 2
    return dataclasses.replace(geometry, positions=geometry.positions - np.round(middle * 4) / 4)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """The same phase for NumPy and for the kernel."""

    expected: NDArray[np.float32]
    plan: KernelPlan
    voxels: NDArray[Any]

    @property
    def error_hu(self) -> float:
        return float(np.abs(host_kernel().hu(self.plan, self.voxels) - self.expected).max())


def case(
    geometry: SeriesGeometry,
    region: Region,
    config: PreprocessingConfig = SMALL,
    *,
    separable: bool | None = None,
    volume: NDArray[Any] | None = None,
) -> Case:
    sampling = plan_sampling(geometry, region, config, separable=separable)
    if volume is None:
        volume = np.rint(noise_volume((geometry.slices, geometry.rows, geometry.columns))).astype(np.int16)
    part = sampling.window
    voxels = np.ascontiguousarray(volume[part.slices, part.rows, part.columns])
    return Case(sampling.resample(voxels), KernelPlan.of(sampling, config), voxels)


def launched(
    given: Case, dtype: type[np.float32] | type[np.float16] = np.float32, phases: int = 1, phase: int = 0
) -> NDArray[Any]:
    """(P, T, C, H, W), not a number where nothing was written."""
    plan = given.plan
    depth, rows, columns = plan.size
    output = np.full((phases, depth, plan.channels, rows, columns), np.nan, dtype)
    host_kernel().launch(plan, given.voxels, output[phase])
    return output


# ---- HU against the NumPy path


FULL = grid((20, 60, 70), spacing=(2.5, 0.8, 0.7), origin=(-20, -25, 100))
FULL_REGION = Region((-10.3, -12.2, 108.1), (12.4, 9.7, 130.6)).grown(CONFIG.margin_mm)
GEOMETRIES = {
    "axis-aligned": grid(SHAPE),
    "oblique": grid(SHAPE, row=OBLIQUE[0], column=OBLIQUE[1]),
    "gantry tilt": grid(SHAPE, shear=(0, 0.6)),
    "oblique and sheared": grid(SHAPE, row=OBLIQUE[0], column=OBLIQUE[1], shear=(-0.7, 0.4)),
    "non-square pixels": grid(SHAPE, spacing=(3.0, 0.6, 1.7)),
    "slices towards the feet": grid(SHAPE, row=(1, 0, 0), column=(0, -1, 0)),
    "feet first, prone": grid(SHAPE, row=(-1, 0, 0), column=(0, -1, 0)),
    "coronal": grid(SHAPE, row=(1, 0, 0), column=(0, 0, -1)),
    "sagittal": grid(SHAPE, row=(0, 1, 0), column=(0, 0, -1)),
    "voxels below 1 mm": grid(SHAPE, spacing=(0.4, 0.3, 0.35)),
}


@needs_compiler
@pytest.mark.parametrize("separable", [None, False], ids=["as planned", "general"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_kernel_equals_numpy(name: str, separable: bool | None) -> None:
    found = case(centred(GEOMETRIES[name]), INSIDE, separable=separable)
    assert np.ptp(found.expected) > 1000
    assert found.error_hu <= TOLERANCE_HU


@needs_compiler
@pytest.mark.parametrize("shear", [(0.0, 0.0), (0.0, 0.6)], ids=["separable", "tilted"])
def test_the_networks_own_grid(shear: tuple[float, float]) -> None:
    geometry = grid((20, 60, 70), spacing=(2.5, 0.8, 0.7), origin=(-20, -25, 100), shear=shear)
    found = case(geometry, FULL_REGION, CONFIG)
    assert found.plan.general == any(shear)
    assert found.error_hu <= TOLERANCE_HU


@needs_compiler
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("distance", [8.0, 1000.0], ids=["partly outside", "fully outside"])
@pytest.mark.parametrize("direction", [(sign * (a == 0), sign * (a == 1), sign * (a == 2))
                                       for a in range(3) for sign in (1, -1)])  # fmt: skip
def test_boxes_beyond_the_volume(direction: tuple[int, int, int], distance: float, separable: bool) -> None:
    shift = np.array(direction) * distance
    region = Region.of(np.array(INSIDE.min) + shift, np.array(INSIDE.max) + shift)
    found = case(centred(grid(SHAPE)), region, separable=separable)
    background = found.expected == CONFIG.background_hu
    assert background.all() == (distance > 100)
    assert background.any()
    assert found.error_hu <= TOLERANCE_HU


@needs_compiler
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_boxes_one_sample_thick(axis: int, separable: bool) -> None:
    high = np.array(INSIDE.max)
    high[axis] = INSIDE.min[axis] + 0.4
    found = case(centred(grid(SHAPE)), Region.of(np.array(INSIDE.min), high), separable=separable)
    assert found.error_hu <= TOLERANCE_HU


@needs_compiler
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize(
    ("size", "spacing"), [((1, 1, 1), 1.0), ((33, 7, 65), 1.0), ((5, 64, 3), 0.8), ((8, 9, 7), 3.1)]
)
def test_other_sizes_and_sample_distances(size: tuple[int, int, int], spacing: float, separable: bool) -> None:
    config = dataclasses.replace(CONFIG, size=size, spacing_mm=spacing, background_hu=-2000.0)
    assert case(centred(grid(SHAPE)), INSIDE, config, separable=separable).error_hu <= TOLERANCE_HU


@needs_compiler
@pytest.mark.parametrize("separable", [True, False])
def test_float_voxels(separable: bool) -> None:
    """HU of series whose rescale is not whole."""
    found = case(centred(grid(SHAPE)), INSIDE, separable=separable, volume=noise_volume(SHAPE))
    assert found.voxels.dtype == np.float32
    assert found.error_hu <= TOLERANCE_HU


@needs_compiler
@pytest.mark.parametrize("separable", [True, False])
def test_a_sample_exactly_on_the_surface_still_holds_the_edge(separable: bool) -> None:
    """1 mm voxels, samples at -1.5, -0.5, ...: the first is background, the second belongs to the edge."""
    config = dataclasses.replace(SMALL, size=(4, 4, 4))
    geometry = grid((8, 8, 8), spacing=(1, 1, 1))
    region = Region((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))
    found = case(geometry, region, config, separable=separable, volume=np.full((8, 8, 8), 100, np.int16))
    expected = np.full((4, 4, 4), -1024.0)
    expected[1:, 1:, 1:] = 100.0
    np.testing.assert_array_equal(host_kernel().hu(found.plan, found.voxels), expected)


@needs_compiler
def test_uneven_slices_are_sampled_where_they_are() -> None:
    """A volume that is its own depth: linear between slices, whatever their distances."""
    depths = np.array([0.0, 2.5, 5.0, 10.0, 11.0, 15.0])
    positions = np.array([[0, 0, z] for z in depths])
    geometry = SeriesGeometry(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), positions, (1.0, 1.0), 12, 12)
    volume = np.broadcast_to(100 * depths[:, None, None], (6, 12, 12)).astype(np.float32)
    region = Region((2.0, 2.0, 1.0), (10.0, 9.0, 14.0))
    config = dataclasses.replace(SMALL, size=(13, 7, 8))  # one output per sample
    for separable in (True, False):
        given = case(geometry, region, config, separable=separable, volume=volume)
        found = host_kernel().hu(given.plan, given.voxels)
        expected = 100 * (1.5 + np.arange(13.0))
        np.testing.assert_allclose(found, np.broadcast_to(expected[:, None, None], (13, 7, 8)), atol=TOLERANCE_HU)


ANGLES = st.integers(-3100, 3100).map(lambda thousandths: thousandths / 1000)
SPACINGS = st.tuples(*[st.sampled_from([0.75, 1.0, 1.5, 2.5, 5.0])] * 3)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    """Inside, partly or wholly outside; the odd fraction keeps samples off the volume's exact surface."""
    low = np.array([draw(st.integers(-80, 60)) / 4 + 0.0137 for _ in range(3)])
    return Region.of(low, low + np.array([draw(st.integers(1, 100)) / 4 for _ in range(3)]))


@needs_compiler
@settings(max_examples=100)
@given(st.sampled_from(ORIENTATIONS), SPACINGS, regions())
def test_every_orientation_and_region(orientation: Any, spacing: tuple[float, float, float], region: Region) -> None:
    geometry = centred(grid(SHAPE, row=orientation[0], column=orientation[1], spacing=spacing))
    assert case(geometry, region).error_hu <= TOLERANCE_HU
    assert case(geometry, region, separable=False).error_hu <= TOLERANCE_HU


@needs_compiler
@settings(max_examples=100)
@given(st.tuples(ANGLES, ANGLES, ANGLES), st.tuples(*[st.floats(-1.5, 1.5)] * 2), SPACINGS, regions())
def test_any_turn_and_tilt(
    angles: tuple[float, float, float], shear: tuple[float, float], spacing: tuple[float, float, float], region: Region
) -> None:
    row, column = turned(*angles)
    geometry = centred(grid(SHAPE, row=row, column=column, spacing=spacing, shear=shear))
    assert case(geometry, region, separable=False).error_hu <= TOLERANCE_HU


@needs_compiler
@pytest.mark.parametrize("name", ["axis-aligned", "oblique"])
def test_the_kernel_equals_simpleitk_and_torch(name: str) -> None:
    """The contract's two steps on the whole volume by other people's code."""
    geometry, volume = centred(GEOMETRIES[name]), np.rint(noise_volume(SHAPE)).astype(np.int16)
    given = case(geometry, INSIDE, volume=volume)
    expected = resized(resampled(volume, geometry, INSIDE, SMALL), SMALL.size)
    np.testing.assert_allclose(host_kernel().hu(given.plan, given.voxels), expected, atol=2e-2)


# ---- what is written


@needs_compiler
def test_channels_are_those_of_numpy_bit_for_bit() -> None:
    given = case(centred(grid(SHAPE)), INSIDE)
    hu = host_kernel().hu(given.plan, given.voxels)
    np.testing.assert_array_equal(launched(given)[0], normalized(hu, SMALL))


@needs_compiler
@pytest.mark.parametrize("separable", [True, False])
def test_half_output_is_the_float_output_rounded(separable: bool) -> None:
    given = case(centred(grid(SHAPE)), INSIDE, separable=separable)
    with np.errstate(over="raise"):
        expected = launched(given).astype(np.float16)
    np.testing.assert_array_equal(launched(given, np.float16), expected)


@needs_compiler
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_windows_clip_exactly_at_their_ends(channel: int) -> None:
    low, high = CONFIG.windows_hu[channel]
    steps = [low - 500, low - 1, low, low + 1, high - 1, high, high + 1, high + 500]
    config = dataclasses.replace(CONFIG, size=(3, 3, 3))  # one output per sample, between two voxels: exact weights
    values = []
    for hu in steps:
        volume = np.full((8, 8, 8), hu, np.int16)
        given = case(grid((8, 8, 8), spacing=(1, 1, 1)), Region((2, 2, 2), (5, 5, 5)), config, volume=volume)
        (value,) = np.unique(launched(given)[0, :, channel])
        values.append(value)
    assert values[0] == values[1] == values[2] < values[3] < values[4] < values[5] == values[6] == values[7]
    mean, std = CONFIG.mean[channel], CONFIG.std[channel]
    np.testing.assert_allclose([values[0], values[-1]], [(0 - mean) / std, (1 - mean) / std], atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [(9, 11, 13), (2, 8, 32), (3, 9, 33), (1, 1, 1)])
def test_every_element_of_the_phase_is_written_and_nothing_else(
    size: tuple[int, int, int], dtype: type[np.float32] | type[np.float16]
) -> None:
    given = case(centred(grid(SHAPE)), INSIDE, dataclasses.replace(CONFIG, size=size))
    output = launched(given, dtype, phases=3, phase=1)
    assert np.isfinite(output[1]).all()
    assert np.isnan(output[[0, 2]]).all()


@needs_compiler
def test_a_voxel_that_is_not_a_number_shows() -> None:
    volume = noise_volume(SHAPE)
    volume[:] = np.nan
    with np.errstate(invalid="ignore"):
        given = case(centred(grid(SHAPE)), INSIDE, volume=volume)
    assert np.isnan(host_kernel().hu(given.plan, given.voxels)).all()
    depth, rows, columns = given.plan.size
    output = np.zeros((depth, given.plan.channels, rows, columns), np.float32)
    host_kernel().launch(given.plan, given.voxels, output)
    assert np.isnan(output).all()


@needs_compiler
def test_rounding_to_half_is_ieee() -> None:
    """Every half, the floats half-way between neighbours and next to those, and random bit patterns."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / np.float32(2)
    ends = np.array([65519.99, 65520.0, 65536.0, 1e38, np.inf, 2.0**-25, 2.0**-26, 1e-45, 0.0], np.float32)
    patterns = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    positive: list[NDArray[np.float32]] = [
        halves,
        ties,
        np.nextafter(ties, np.float32(0)),
        np.nextafter(ties, np.float32(np.inf)),
        ends,
    ]
    values = np.concatenate([*positive, *(-part for part in positive), patterns])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    found = host_kernel().half(values)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    known = ~np.isnan(values)
    np.testing.assert_array_equal(found[known].view(np.uint16), expected[known].view(np.uint16))


# ---- one source for both homes


def code(path: Path) -> str:
    """The text without comments and continued lines."""
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\\\n", " ", text)


def test_the_device_file_computes_nothing() -> None:
    """Only the thread's place, one call, and names: no sample, no number, no operator on either."""
    text = code(DEVICE_FILE)
    include, thread, kernel, *instances = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    assert include == '#include "sampling_kernel.h"'
    assert thread == (
        "#define FOURPHASE_THREAD (int)blockIdx.z, (int)(blockIdx.y * blockDim.y + threadIdx.y),"
        " (int)(blockIdx.x * blockDim.x + threadIdx.x)"
    )
    body = kernel[kernel.index("{") + 1 : kernel.rindex("}")].strip()
    assert body == (
        "const FourphaseVoxels given = {voxels, is_float};"
        " fourphase_write(plan, given, general, output, is_half, FOURPHASE_THREAD);"
    )
    expected = [
        f"FOURPHASE_KERNEL({kernel_name(general=general, half=half)}, {int(general)}, {int(half)})"
        for general in (False, True)
        for half in (False, True)
    ]
    assert instances == expected


def test_the_header_differs_between_homes_only_in_names() -> None:
    """Two conditions: how functions are declared, and how a float's bits are read."""
    branches = re.findall(r"#if defined\(__CUDACC__\)\n(.*?)#else\n(.*?)#endif", code(HEADER_FILE), flags=re.DOTALL)
    assert len(branches) == code(HEADER_FILE).count("CUDA")
    assert [" ".join(device.split()) for device, _ in branches] == [
        "#define FOURPHASE_DEVICE static __device__ __forceinline__",
        "return __float_as_uint(value);",
    ]
    assert code(HEADER_FILE).count("#include") == 1  # string.h, for the host


@needs_compiler
def test_the_plan_is_laid_out_as_in_the_header() -> None:
    body = re.search(r"typedef struct FourphasePlan \{(.*?)\}", code(HEADER_FILE), flags=re.DOTALL)
    assert body is not None
    found = re.findall(r"(int|float) (\w+)(?:\[(\d)\])?;", body[1])
    assert HEADER.names is not None
    expected = []
    for name in HEADER.names:
        field = HEADER[name]
        kind = {"i": "int", "f": "float"}[field.base.kind]
        expected.append((kind, name, str(field.shape[0]) if field.shape else ""))
    assert found == expected
    assert host_kernel().plan_bytes == HEADER.itemsize


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
@pytest.mark.parametrize("architecture", ["sm_87", "sm_89", "sm_90", "sm_110"])
def test_the_kernels_compile_for_every_target(architecture: str, tmp_path: Path) -> None:
    assert NVCC is not None
    target = tmp_path / "kernel.cubin"
    command = [NVCC, "--cubin", f"-arch={architecture}", *FLAGS, "-Werror", "all-warnings", "-o", str(target)]
    outcome = subprocess.run([*command, str(DEVICE_FILE)], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    cubin = target.read_bytes()
    assert cubin[:4] == b"\x7fELF"
    for general in (False, True):
        for half in (False, True):
            assert kernel_name(general=general, half=half).encode() in cubin


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_the_header_is_c99() -> None:
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-x", "c", "-fsyntax-only"]
    outcome = subprocess.run([*command, str(HEADER_FILE)], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sanitized_program(tmp_path_factory.mktemp("sanitized"))


def run_sanitized(program: Path, data: bytes, folder: Path) -> subprocess.CompletedProcess[bytes]:
    path = folder / "case"
    path.write_bytes(data)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([str(program), str(path)], capture_output=True, check=False, env=environment)


@needs_compiler
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("shift", [0.0, 8.0, 1000.0], ids=["inside", "partly outside", "fully outside"])
def test_no_byte_outside_the_buffers_is_touched(
    sanitized: Path, tmp_path: Path, shift: float, separable: bool, half: bool
) -> None:
    """Plan, voxels and output of exactly their sizes, under the address and undefined behaviour sanitizers.

    One output per sample, dense enough for some to lie in the last half voxel of every axis at once.
    """
    config = dataclasses.replace(CONFIG, size=(33, 20, 26), spacing_mm=0.4)
    region = Region.of(np.array(INSIDE.min) + shift, np.array(INSIDE.max) + shift)
    for shear in ((0.0, 0.0),) if separable else ((0.0, 0.0), (0.3, 0.6)):
        given = case(centred(grid(SHAPE, shear=shear)), region, config, separable=separable)
        outcome = run_sanitized(sanitized, case_file(given.plan, given.voxels, half=half), tmp_path)
        assert outcome.returncode == 0, outcome.stderr.decode()
        expected = launched(given, np.float16 if half else np.float32)
        assert outcome.stdout == expected.tobytes()


@needs_compiler
@pytest.mark.parametrize("missing", ["output", "voxels"])
def test_the_sanitizer_sees_one_element_too_few(sanitized: Path, tmp_path: Path, missing: str) -> None:
    given = case(centred(grid(SHAPE)), INSIDE)
    size = given.plan.output_bytes(half=False)
    if missing == "output":
        data = case_file(given.plan, given.voxels, half=False, output_bytes=size - 4)
    else:
        data = case_file(given.plan, given.voxels.ravel()[:-1], half=False)
    outcome = run_sanitized(sanitized, data, tmp_path)
    assert outcome.returncode != 0
    assert b"heap-buffer-overflow" in outcome.stderr
