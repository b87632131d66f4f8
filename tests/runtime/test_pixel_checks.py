from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import JPEG2000Lossless, RLELossless
from scipy import ndimage

from fourphase.runtime.errors import PixelDataError
from fourphase.runtime.pixel_checks import first_implausible
from fourphase.runtime.pixels import read_hu
from fourphase.runtime.preprocess import VoxelWindow
from fourphase.runtime.study import read_study
from tests.support.dicom import stored_values, write_series

Volume = NDArray[np.int16]
SHAPE = (9, 120, 140)


def body(seed: int = 0, noise_hu: float = 20.0, step: float = 1.0) -> Volume:
    """An ellipse of soft tissue in air on a table, with blobs of fat, bone and gas that change from slice to slice."""
    rng = np.random.default_rng(seed)
    depth, rows, columns = SHAPE
    z, y, x = np.ogrid[:depth, :rows, :columns]
    widths = 1 + 0.01 * step * z
    inside = ((y - 55) / (45 * widths)) ** 2 + ((x - 70) / (60 * widths)) ** 2 < 1
    texture = ndimage.gaussian_filter(rng.normal(size=SHAPE), (4 / step, 5, 5))
    texture /= texture.std()
    hu = np.where(inside, 50 + 30 * texture, -1000.0)
    hu[inside & (texture > 2)] = 700
    hu[inside & (texture < -2)] = -800
    hu[:, 108:111, 10:130] = -200  # the table
    return np.clip(hu + rng.normal(0, noise_hu, SHAPE), -1024, 3071).astype(np.int16)


def streaks(volume: Volume, index: int, amplitude: float, rays: int) -> Volume:
    """A clip in one slice only, with the streaks that metal throws."""
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]] - np.array([60, 65])[:, None, None]
    distance = np.hypot(rows, columns)
    wave = np.sin(rays * np.arctan2(rows, columns) + 0.3)
    shadow = amplitude * np.sign(wave) * np.abs(wave) ** 4 * np.exp(-distance / 60)
    plane = np.where(distance < 5, 3071, volume[index] + shadow)
    changed = volume.copy()
    changed[index] = np.clip(plane, -1024, 3071)
    return changed


# ---- intact


@pytest.mark.parametrize("noise_hu", [0.0, 10.0, 40.0, 150.0])
@pytest.mark.parametrize("step", [0.5, 1.0, 3.0])
def test_bodies_pass(noise_hu: float, step: float) -> None:
    for seed in range(4):
        assert first_implausible(body(seed, noise_hu, step)) is None


@pytest.mark.parametrize("sigma", [0, 1, 5, 40, 150, 400])
def test_noise_without_any_anatomy_passes(sigma: int) -> None:
    noise = np.random.default_rng(sigma).normal(50, sigma, SHAPE)
    assert first_implausible(np.clip(noise, -1024, 3071).astype(np.int16)) is None


def test_air_and_its_border_pass() -> None:
    volume = np.full(SHAPE, -1024, np.int16)
    assert first_implausible(volume) is None
    volume[:, 60:] = body()[:, 60:]
    assert first_implausible(volume) is None


@pytest.mark.parametrize("amplitude", [50.0, 150.0, 400.0])
@pytest.mark.parametrize("rays", [4, 9, 24])
def test_metal_in_one_slice_passes(amplitude: float, rays: int) -> None:
    for index in (0, 4, 8):
        assert first_implausible(streaks(body(), index, amplitude, rays)) is None


@given(st.integers(0, 20), st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=30)
def test_slices_that_jump_sideways_pass(seed: int, rows: int, columns: int) -> None:
    """A breath between two slices of a step-and-shoot scan: up to 4 pixels either way."""
    volume = body(seed)
    volume[5] = np.roll(volume[5], (rows // 5 - 4, columns // 5 - 4), axis=(0, 1))
    assert first_implausible(volume) is None


@pytest.mark.parametrize("shape", [(2, 120, 140), (9, 15, 140), (9, 120, 15), (0, 120, 140), (1, 1, 1)])
def test_too_little_to_tell(shape: tuple[int, int, int]) -> None:
    garbage = np.random.default_rng(0).integers(-1000, 3000, shape).astype(np.int16)
    assert first_implausible(garbage) is None


# ---- damaged


@pytest.mark.parametrize("index", range(9))
@pytest.mark.parametrize("offset", [-400, 400])
def test_rows_that_are_off_from_somewhere_on(index: int, offset: int) -> None:
    """A predictive codec adds a wrong difference to all that follows. Air cannot show it: it is clipped at -1024."""
    volume = body()[:, 20:90, 40:100]
    volume[index, 40:] = np.clip(volume[index, 40:] + offset, -1024, 3071)
    assert first_implausible(volume) == index


@pytest.mark.parametrize("index", [0, 1, 4, 7, 8])
@pytest.mark.parametrize(("offset", "columns"), [(-300, slice(15, 140)), (300, slice(20, 140)), (900, slice(60, 100))])
def test_one_row_that_is_off(index: int, offset: int, columns: slice) -> None:
    """A wrong difference in JPEG Lossless shifts the rest of its row only: the next starts from the row above."""
    volume = body()
    volume[index, 50, columns] += offset
    assert first_implausible(np.clip(volume, -1024, 3071).astype(np.int16)) == index


def test_garbage_in_the_lower_half() -> None:
    volume = body()
    volume[3, 60:] = np.random.default_rng(1).integers(-1024, 3072, (60, 140))
    assert first_implausible(volume) == 3


def test_whole_bytes_shifted_along_the_rows() -> None:
    """RLE that lost count in the high bytes: neighbours in memory, not in place."""
    volume = body()
    high, low = (volume[4].astype(np.int32) + 1024) >> 8, (volume[4].astype(np.int32) + 1024) & 255
    volume[4] = ((np.roll(high, 47 * 140 + 60) << 8) | low) - 1024
    assert first_implausible(volume) == 4


def test_float_volumes_are_checked_too() -> None:
    volume = body().astype(np.float32) + 0.25
    assert first_implausible(volume) is None
    volume[6, 30:90] += 900
    assert first_implausible(volume) == 6


# ---- in place


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_a_slice_that_a_codec_made_up_is_15(tmp_path: Path, syntax: str) -> None:
    """The frame is valid: it holds another picture."""
    values = stored_values((5, 40, 48))
    values[3, 10:] += 600
    write_series(tmp_path / "packed", values, transfer_syntax=syntax)
    (series,) = read_study(tmp_path / "packed").series
    with pytest.raises(PixelDataError, match="series 1, slice 4 of 5, has pixels that do not continue") as caught:
        read_hu(series, VoxelWindow(slice(1, 5), slice(0, 40), slice(0, 48)))
    assert (caught.value.code, caught.value.key) == (15, "slice_implausible")
    # Of the uncompressed series the same picture is what the scanner sent.
    plain = tmp_path / "plain"
    write_series(plain, values)
    (series,) = read_study(plain).series
    assert read_hu(series, VoxelWindow(slice(1, 5), slice(0, 40), slice(0, 48))).shape == (4, 40, 48)
