"""Golden inputs: channels that are windows of one HU image, the same bytes everywhere."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from fourphase.export.golden import golden_codes
from fourphase.runtime.config import PreprocessingConfig

CONFIG = PreprocessingConfig()


def test_every_channel_sees_the_same_hu_through_its_own_window() -> None:
    """HU are read back from the channel of the narrowest window, which resolves them best."""
    codes = golden_codes(2, 4, replace(CONFIG, size=(9, 20, 24))).astype(np.float64)
    narrow = min(range(3), key=lambda index: np.ptp(CONFIG.windows_hu[index]))
    low, high = CONFIG.windows_hu[narrow]
    hu = low + codes[:, :, :, narrow] / 255 * (high - low)
    np.testing.assert_allclose((hu.min(), hu.max()), (low, high), atol=2, err_msg="the narrowest window in full")
    for index, (low, high) in enumerate(CONFIG.windows_hu):
        expected = np.interp(hu, (low, high), (0, 255))
        np.testing.assert_allclose(codes[:, :, :, index], expected, rtol=0, atol=0.5 + 1e-9)


def test_blocks_differ_between_studies_and_phases_and_are_cut_to_size() -> None:
    codes = golden_codes(2, 4, replace(CONFIG, size=(9, 20, 24)))
    assert codes.shape == (2, 4, 9, 3, 20, 24)
    assert codes.dtype == np.uint8
    assert codes.flags.c_contiguous
    assert len({study_phase.tobytes() for study_phase in codes.reshape(8, -1)}) == 8
    np.testing.assert_array_equal(codes[:, :, 0:4], np.repeat(codes[:, :, :1], 4, axis=2))
    assert (codes[:, :, 3] != codes[:, :, 4]).any()
    assert (codes[..., 7, :] != codes[..., 8, :]).any()
    assert (codes[..., :, 7] != codes[..., :, 8]).any()


def test_the_bytes_are_the_seeds() -> None:
    """Random bits and IEEE arithmetic: the same on every machine, so that two machines' reports are of one question."""
    codes = golden_codes(1, 4, replace(CONFIG, size=(8, 16, 16)))
    assert hashlib.sha256(codes.tobytes()).hexdigest()[:16] == "50413329d4a5f3c7"
    assert (golden_codes(1, 4, replace(CONFIG, size=(8, 16, 16)), seed=1) != codes).any()


@pytest.mark.parametrize("windows", [((0.0, 0.5),), ((-1000.0, 1000.0), (500.25, 500.75))])
def test_windows_narrower_than_one_hu_still_vary(windows: tuple[tuple[float, float], ...]) -> None:
    channels = len(windows)
    config = replace(CONFIG, windows_hu=windows, mean=(0.5,) * channels, std=(0.5,) * channels, size=(8, 64, 64))
    codes = golden_codes(1, 4, config)
    narrow = len(windows) - 1
    assert np.ptp(codes[:, :, :, narrow].astype(int)) > 240
