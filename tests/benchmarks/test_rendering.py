from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fourphase.benchmarks.phantoms.phantom import KINDS, PHASES, make_phantom
from fourphase.benchmarks.phantoms.phantom_dicom import write_study
from fourphase.benchmarks.phantoms.rendering import augmented, render_hu, to_input
from fourphase.runtime.config import PreprocessingConfig
from fourphase.runtime.pipeline import StudyRequest, prepare_study

SMALL = PreprocessingConfig(size=(12, 24, 24))


@pytest.mark.parametrize("seed", [0, 5])
def test_training_sees_what_a_deployed_model_sees(seed: int, tmp_path: Path) -> None:
    phantom = replace(make_phantom(KINDS[seed % 2], seed), noise_hu=0.0)
    written = write_study(tmp_path / "case", phantom, None, None, lambda steps: None)
    deployed = prepare_study(StudyRequest(written.dicom, written.box), PHASES, SMALL).input
    rendered = to_input(render_hu(phantom, SMALL), SMALL)
    assert rendered.shape == (4, 12, 3, 24, 24)
    np.testing.assert_allclose(rendered, deployed, atol=1e-3)


def test_training_varies_the_box_but_repeats_itself() -> None:
    phantom = make_phantom("ICC", 1)
    first, again, other = (render_hu(phantom, SMALL, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1


def test_augmentation_keeps_phases_together() -> None:
    """Mirroring and calibration treat all phases alike: differences between phases keep their size and order."""
    hu = np.zeros((4, 6, 8, 8), dtype=np.float32)
    hu[:, 1, 2, 3] = (100, 200, 300, 400)
    for seed in range(20):
        result = augmented(hu, np.random.default_rng(seed))
        background = np.median(result, axis=(1, 2, 3))
        assert np.abs(background).max() < 35
        peaks = [np.unravel_index(int(volume.argmax()), volume.shape) for volume in result]
        assert len(set(peaks)) == 1
        heights = np.array([volume.max() for volume in result]) - background
        np.testing.assert_allclose(heights / heights[0], [1, 2, 3, 4], rtol=1e-3)


def test_augmentation_mirrors_every_axis_and_transposes() -> None:
    hu = np.zeros((4, 6, 8, 8), dtype=np.float32)
    hu[:, 1, 2, 3] = 1000
    results = [augmented(hu, np.random.default_rng(seed))[0] for seed in range(120)]
    places = {tuple(int(i) for i in np.unravel_index(int(volume.argmax()), (6, 8, 8))) for volume in results}
    mirrored = {(z, y, x) for z in (1, 4) for y in (2, 5) for x in (3, 4)}
    assert places == mirrored | {(z, x, y) for z, y, x in mirrored}
