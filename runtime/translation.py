"""Two volumes of the same body -> how far the second's tissue is displaced, whatever contrast agent does to its HU.

Compared are the directions of edges, not HU: every voxel's normalised gradient n becomes the tensor n n^T without its
trace, which does not change when bright and dark swap, and which averages to zero where directions are random (noise).
The correlation is exhaustive over whole voxels (by FFT), counts only what both volumes show, and a parabola refines it.
Normalised gradient fields: Haber and Modersitzki, MICCAI 2006. Rotation and deformation are not looked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

__all__ = ["BORDER", "EdgeField", "Match", "Template", "best_translation", "edge_field", "make_template"]

Float = NDArray[np.float64]
Volume = NDArray[np.float32]

#: Soft tissue: beyond it, gas and bone have edges as strong as an organ's, no stronger.
TISSUE_HU = (-100.0, 250.0)
#: Voxels on either side that smoothing and gradient use up.
BORDER = 2
#: A gradient counts half when it is so many times the tissue's median one (its noise), and never below HU / mm.
EDGE_OVER_NOISE = 2.0
LEAST_EDGE = 2.0
#: A displacement is considered if this part of the reference's edges lies within the other volume.
LEAST_OVERLAP = 0.5
#: ... and the other's edges there have this part of their energy.
LEAST_ENERGY = 0.02
#: The score of the others; no correlation is below -1.
NOT_COMPARED = -2.0


@dataclass(frozen=True, eq=False)
class EdgeField:
    """Directions of edges.

    Attributes:
        tensor: float32 (5, z, y, x), the five independent numbers of each voxel's traceless tensor; 0 where unknown.
        valid: bool (z, y, x), whether the voxel and its neighbourhood were scanned.
    """

    tensor: Volume
    valid: NDArray[np.bool_]

    @property
    def energy(self) -> Volume:
        return np.asarray(np.einsum("czyx,czyx->zyx", self.tensor, self.tensor), np.float32)


@dataclass(frozen=True, eq=False)
class Template:
    """A reference's edges, ready to be looked for.

    Attributes:
        spectra: complex64 (7, ...): conjugate transforms of the tensor's numbers, of their energy, of where they are.
        energy: of all edges.
        size: of the transforms. search: voxels either way. Both (z, y, x).
    """

    spectra: NDArray[np.complex64]
    energy: float
    size: tuple[int, ...]
    search: tuple[int, int, int]


@dataclass(frozen=True)
class Match:
    """The best displacement.

    Attributes:
        shift: along (z, y, x), in voxels.
        score: correlation of the edge directions there, -1 to 1.
        rival: the highest score further than `apart` voxels from it.
        at_limit: the best lies on the border of what could be compared; its shift is in whole voxels.
    """

    shift: tuple[float, float, float]
    score: float
    rival: float
    at_limit: bool


def edge_field(hu: Volume, outside: NDArray[np.bool_], spacing_mm: float) -> EdgeField:
    """Edge directions of a volume, `BORDER` voxels smaller on every side.

    Args:
        hu: float32 (z, y, x).
        outside: where nothing was scanned.
    """
    valid = _eroded(~outside)
    values = _smoothed(np.clip(hu, *TISSUE_HU))
    inner = (slice(1, -1),) * 3
    gradient = np.empty((3, *valid.shape), np.float32)
    for axis in range(3):
        ahead, behind = list(inner), list(inner)
        ahead[axis], behind[axis] = slice(2, None), slice(None, -2)
        np.subtract(values[tuple(ahead)], values[tuple(behind)], out=gradient[axis])
    gradient /= np.float32(2 * spacing_mm)
    core = (slice(BORDER, -BORDER),) * 3
    squared = np.einsum("azyx,azyx->zyx", gradient, gradient)
    tissue = valid & (hu[core] > TISSUE_HU[0]) & (hu[core] < TISSUE_HU[1])
    noise = float(np.median(np.sqrt(squared[tissue]))) if tissue.any() else 0.0
    edge = max(EDGE_OVER_NOISE * noise, LEAST_EDGE)
    gradient *= np.where(valid, 1 / np.sqrt(squared + np.float32(edge**2)), np.float32(0))
    return EdgeField(_traceless(gradient), valid)


def make_template(reference: EdgeField, chosen: NDArray[np.bool_], search: tuple[int, int, int]) -> Template | None:
    """What is looked for: the reference's edges within `chosen`.

    Args:
        chosen: bool (z, y, x), of the field's size; within `search` voxels of a face it is not used.
        search: voxels along (z, y, x) by which a displacement may go either way.

    Returns: None if there are no edges.
    """
    used = np.zeros(chosen.shape, bool)
    used[tuple(slice(limit, -limit or None) for limit in search)] = True
    used &= reference.valid & chosen
    edges = reference.tensor * used
    own = np.einsum("czyx,czyx->zyx", edges, edges)
    energy = float(own.sum())
    if energy <= 0:
        return None
    counts: tuple[int, ...] = used.shape
    size = tuple(int(scipy.fft.next_fast_len(count, real=True)) for count in counts)
    stacked = np.concatenate([edges, own[None], used[None].astype(np.float32)])
    return Template(np.conj(scipy.fft.rfftn(stacked, size, axes=(1, 2, 3))), energy, size, search)


def best_translation(template: Template, moving: EdgeField, apart: float) -> Match | None:
    """How far the template is displaced in another field of the reference's size.

    Args:
        apart: voxels from the best beyond which another displacement is a rival.

    Returns: None if no displacement has enough edges in common.
    """
    score = _scores(template, moving)
    z, y, x = (int(index) for index in np.unravel_index(int(np.argmax(score)), score.shape))
    peak = np.array([z, y, x])
    best = float(score[z, y, x])
    if best == NOT_COMPARED:
        return None
    offsets = np.ogrid[tuple(slice(-at, n - at) for n, at in zip(score.shape, peak, strict=True))]
    far = score[sum(offset**2 for offset in offsets) > apart**2]
    around = score[tuple(slice(max(at - 1, 0), at + 2) for at in peak)]
    at_limit = around.size < 27 or bool((around == NOT_COMPARED).any())
    found = peak - template.search + (0 if at_limit else _vertex(around))
    shift = (float(found[0]), float(found[1]), float(found[2]))
    return Match(shift, best, float(far.max(initial=NOT_COMPARED)), at_limit)


def _scores(template: Template, moving: EdgeField) -> Float:
    """Correlation for every displacement, float64 (2 z + 1, 2 y + 1, 2 x + 1); `NOT_COMPARED` with too little overlap.

    Circular correlation is enough: the template lies `search` voxels inside, so nothing wraps into what is used.
    """
    size = template.size
    stacked = np.concatenate([moving.tensor, moving.valid[None].astype(np.float32), moving.energy[None]])
    product = scipy.fft.rfftn(stacked, size, axes=(1, 2, 3))
    product *= template.spectra
    spectra = np.stack([product[:5].sum(axis=0), product[5], product[6]])
    found = scipy.fft.irfftn(spectra, size, axes=(1, 2, 3))
    steps = np.ix_(*(np.arange(-limit, limit + 1) % n for limit, n in zip(template.search, size, strict=True)))
    common, seen, theirs = (found[index][steps].astype(np.float64) for index in range(3))
    enough = (seen >= LEAST_OVERLAP * template.energy) & (theirs > LEAST_ENERGY * template.energy)
    return np.where(enough, common / np.sqrt(np.where(enough, seen * theirs, 1.0)), NOT_COMPARED)


def _vertex(around: Float) -> Float:
    """Offset (z, y, x) of the top of the paraboloid through a peak and its neighbours (3, 3, 3), within a voxel.

    With its mixed terms: a slanted surface (the dome) makes a slanted ridge, whose top axis-wise parabolas miss.
    """
    steps = np.stack(np.meshgrid(*[np.arange(-1.0, 2.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    z, y, x = steps.T
    design = np.stack([np.ones(27), z, y, x, z * z, y * y, x * x, z * y, z * x, y * x], axis=1)
    _, *slope, zz, yy, xx, zy, zx, yx = np.linalg.lstsq(design, around.ravel(), rcond=None)[0]
    curvature = np.array([[2 * zz, zy, zx], [zy, 2 * yy, yx], [zx, yx, 2 * xx]])
    if np.linalg.eigvalsh(curvature).max() >= 0:
        return np.zeros(3)
    return np.clip(-np.linalg.solve(curvature, slope), -1, 1)


def _smoothed(values: Volume) -> Volume:
    """Binomial (1, 2, 1) / 4 along every axis; one voxel smaller on every side."""
    for axis in range(3):
        lines = np.moveaxis(values, axis, 0)
        values = np.moveaxis((lines[:-2] + lines[2:] + 2 * lines[1:-1]) * np.float32(0.25), 0, axis)
    return values


def _eroded(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True where the whole neighbourhood of `BORDER` voxels is; as much smaller."""
    for axis in range(3):
        lines = np.moveaxis(valid, axis, 0)
        count = len(lines) - 2 * BORDER
        kept = np.logical_and.reduce([lines[first : first + count] for first in range(2 * BORDER + 1)])
        valid = np.moveaxis(kept, 0, axis)
    return valid


def _traceless(direction: Volume) -> Volume:
    """n n^T - |n|^2 / 3 as five numbers whose dot product is the tensors' inner product."""
    z, y, x = direction
    tensor = np.empty((5, *z.shape), np.float32)
    root2, root6 = np.float32(2**0.5), np.float32(6**-0.5)
    for index, (a, b) in enumerate(((x, y), (x, z), (y, z))):
        np.multiply(a, b, out=tensor[index])
        tensor[index] *= root2
    tensor[3] = (x * x - y * y) / root2
    tensor[4] = (2 * z * z - x * x - y * y) * root6
    return tensor
