from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from fourphase.benchmarks.phantoms.nifti import write_label_mask


def load(path: Path) -> Any:
    return nibabel.Nifti1Image.from_filename(path)


def test_nibabel_reads_the_same_voxels_at_the_same_places(tmp_path: Path) -> None:
    mask = (np.random.default_rng(0).random((5, 7, 9)) < 0.3).astype(np.uint8)
    origin, spacing = (-120.5, -300.25, 411.0), (0.75, 0.8, 2.5)
    write_label_mask(tmp_path / "mask.nii.gz", mask, origin, spacing)
    image = load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), mask.transpose(2, 1, 0))
    assert image.get_data_dtype() == np.uint8
    assert image.header.get_xyzt_units()[0] == "mm"
    index = np.array([8, 3, 4])
    ras = image.affine @ [*index, 1]
    np.testing.assert_allclose(ras[:3] * [-1, -1, 1], origin + index * spacing, atol=1e-4)


def test_both_affines_agree(tmp_path: Path) -> None:
    write_label_mask(tmp_path / "mask.nii.gz", np.ones((2, 3, 4), np.uint8), (10.0, -20.0, 30.0), (0.7, 0.9, 3.0))
    header = load(tmp_path / "mask.nii.gz").header
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-5)
    assert header.get_zooms() == (np.float32(0.7), np.float32(0.9), np.float32(3.0))


def test_the_same_mask_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label_mask(tmp_path / name, np.ones((2, 3, 4), np.uint8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
