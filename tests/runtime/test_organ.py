from __future__ import annotations

import numpy as np

from fourphase.runtime.organ import GROWN_VOXELS, organ_around


def test_the_liver_without_the_chest_wall() -> None:
    """A ball of 110 HU in fat, a thin bridge to muscle of 90 HU, ribs in it: the ball and its surface only."""
    z, y, x = np.meshgrid(*[np.arange(40.0)] * 3, indexing="ij")
    distance = np.sqrt((z - 20) ** 2 + (y - 20) ** 2 + (x - 17) ** 2)
    hu = np.full(z.shape, -100.0, np.float32)
    hu[(x > 22) & (np.hypot(z - 20, y - 20) < 2)] = 100
    hu[x > 33] = 90
    hu[(x > 35) & (z % 8 < 3)] = 600
    hu[distance < 10] = 110
    hu += np.asarray(np.random.default_rng(0).normal(0, 10, hu.shape), np.float32)
    organ = organ_around(hu, distance < 4)
    assert organ[distance < 10].mean() > 0.98
    assert not organ[x > 33 + GROWN_VOXELS].any()
    assert organ[(distance > 10) & (distance < 10.4)].mean() > 0.8
    assert not organ[(distance > 13) & (x < 20)].any()


def test_what_is_near_the_box_is_always_kept_but_never_bone() -> None:
    """A lesion in no organ: half air, half bone."""
    hu = np.full((15, 15, 15), -900.0, np.float32)
    hu[:, :, 8:] = 700
    near = np.zeros(hu.shape, bool)
    near[5:10, 5:10, 5:10] = True
    organ = organ_around(hu, near)
    assert organ[near & (hu < 0)].all()
    assert not organ[hu > 300].any()
