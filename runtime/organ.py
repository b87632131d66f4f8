"""A coarse volume and a lesion box in it -> the organ around the lesion, which moves with it when the patient breathes.

The liver slides along the chest wall and the spine, which stay where they are; comparing those would find no movement.
A rough mask is enough here, nothing is measured on it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["organ_around"]

#: Around the median HU of the box's surroundings, what belongs to the organ; muscle lies 40 HU below an enhanced liver.
TOLERANCE_HU = 25.0
#: Two voxels that smoothing and erosion take, and one beyond: the organ's surface shows its place best.
GROWN_VOXELS = 3
#: HU from which a voxel is bone, and never the organ.
BONE_HU = 300.0


def organ_around(hu: NDArray[np.float32], near: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The tissue like that near the box and connected to it, with its surface, and what is near the box in any case.

    Args:
        hu: float32 (z, y, x), voxels of a few millimetres.
        near: bool (z, y, x), the box with its margin; at least one voxel.

    Returns: bool (z, y, x).
    """
    smooth = ndimage.uniform_filter(hu, 3)
    alike = np.abs(smooth - np.median(smooth[near])) <= TOLERANCE_HU
    # Eroded by a voxel, so that a thin bridge (the muscle between two ribs) does not carry it into the chest wall.
    labels, _ = ndimage.label(ndimage.binary_erosion(alike))
    kept = np.unique(labels[near])
    organ = np.isin(labels, kept[kept > 0]) | near
    grown = ndimage.binary_dilation(organ, iterations=GROWN_VOXELS)
    return np.asarray(grown & (hu < BONE_HU))
