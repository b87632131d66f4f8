"""Packing: the header, the tables against the matrices, the places of the tables."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.errors import GeometryRefused
from fourphase.runtime.geometry import Region, SeriesGeometry
from fourphase.runtime.kernel_plan import BLOCK, HEADER, KernelPlan
from fourphase.runtime.preprocess import plan_sampling
from tests.support.volumes import grid

CONFIG = dataclasses.replace(PreprocessingConfig(), size=(5, 9, 33))
SHAPE = (9, 12, 14)
GRID = grid(SHAPE, origin=(-7, -9, -10))
TILTED = grid(SHAPE, origin=(-7, -9, -10), shear=(0.2, 0.4))
REGION = Region((-5.2, -4.3, -7.1), (4.1, 3.9, 6.3))


def packed(geometry: SeriesGeometry) -> KernelPlan:
    return KernelPlan.of(plan_sampling(geometry, REGION, CONFIG), CONFIG)


def test_the_header_says_what_the_plan_is() -> None:
    sampling = plan_sampling(GRID, REGION, CONFIG)
    plan = KernelPlan.of(sampling, CONFIG)
    shape = sampling.window.shape
    header = plan.data[: HEADER.itemsize].view(HEADER)[0]
    assert tuple(header["size"]) == plan.size == CONFIG.size
    assert header["channels"] == plan.channels == 3
    assert tuple(header["window"]) == shape == plan.window.shape
    assert tuple(header["stride"]) == (shape[1] * shape[2], shape[2], 1)
    assert header["background_hu"] == -1024
    assert not plan.general
    assert plan.data.size % 8 == 0
    assert plan.output_bytes(half=True) == 5 * 3 * 9 * 33 * 2
    assert plan.grid == (2, 2, 5)
    assert BLOCK[0] * BLOCK[1] * BLOCK[2] == 256  # the kernels' __launch_bounds__


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_tables_are_the_matrices(axis: int) -> None:
    sampling = plan_sampling(GRID, REGION, CONFIG)
    plan = KernelPlan.of(sampling, CONFIG)
    header = plan.data[: HEADER.itemsize].view(HEADER)[0]
    matrix = sampling.matrices[axis].toarray()
    taps, cells = int(header["taps"][axis]), plan.size[axis] * int(header["taps"][axis])
    index = np.frombuffer(plan.data, np.int32, cells, header["index_at"][axis]).reshape(-1, taps)
    weight = np.frombuffer(plan.data, np.float32, cells, header["weight_at"][axis]).reshape(-1, taps)
    dense = np.zeros_like(matrix)
    np.add.at(dense, (np.arange(len(matrix))[:, None], index), weight)
    np.testing.assert_array_equal(dense, matrix)
    assert taps == np.count_nonzero(matrix, axis=1).max() <= 4


def test_tables_do_not_overlap_and_are_aligned() -> None:
    for plan in (packed(GRID), packed(TILTED)):
        header = plan.data[: HEADER.itemsize].view(HEADER)[0]
        names = [name for name in HEADER.fields or () if name.endswith("_at")]
        places = np.concatenate([np.atleast_1d(header[name]) for name in names])
        used = places[places > 0]
        assert len(used) == (7 if not plan.general else 13)
        assert len(set(used.tolist())) == len(used)
        assert (used % 8 == 0).all()
        assert used.min() >= HEADER.itemsize
        assert used.max() < plan.data.size


def test_positions_too_far_for_fixed_point_are_refused() -> None:
    far = dataclasses.replace(TILTED, positions=TILTED.positions + 2.0**21)
    with pytest.raises(GeometryRefused, match="kilometre") as caught:
        KernelPlan.of(plan_sampling(far, REGION, CONFIG), CONFIG)
    assert caught.value.code == 14
