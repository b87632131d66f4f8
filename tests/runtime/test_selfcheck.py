from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fourphase.runtime.backend import Outputs
from fourphase.runtime.backends import choose_backend
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.errors import SelfCheckFailed
from fourphase.runtime.golden import Tolerance
from fourphase.runtime.selfcheck import self_check
from tests.support.logits_alone import write_logits_alone
from tests.support.tiny_bundle import TINY_MODEL, tiny_golden, tiny_model, write_tiny

Floats = NDArray[np.float32]


class Fake:
    """Answers with the golden outputs plus `error` (of the last study of a batch), and keeps the sizes of its runs."""

    name, precision = "fake", "fp32"

    def __init__(
        self,
        bundle: Bundle,
        error: float = 0.0,
        phase_error: float = 0.0,
        max_batch: int | None = None,
        wrong_at: int | None = None,
    ) -> None:
        self.golden, self.error, self.phase_error = bundle.golden(), np.float32(error), phase_error
        self.max_batch, self.wrong_at = max_batch, wrong_at
        self.batches: list[int] = []

    @property
    def runs(self) -> int:
        return len(self.batches)

    def close(self) -> None:
        raise AssertionError("not the check's to close")

    def infer(self, study: Floats) -> Outputs:
        self.batches.append(len(study))
        rows = [
            next(i for i in range(len(self.golden)) if np.array_equal(self.golden.study(i)[0], one)) for one in study
        ]
        phases = self.golden.phase_logits
        logits, phase_logits = self.golden.logits[rows].copy(), None if phases is None else phases[rows].copy()
        if self.wrong_at in (None, len(study)):
            logits[-1] += self.error
            if phase_logits is not None:
                phase_logits[-1, 2, 1] += self.phase_error
        return Outputs(logits, phase_logits)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny(tmp_path / "bundle", golden=tiny_golden(tolerance=Tolerance(1e-3, 0.0, 1e-3)))


def test_the_real_backend_passes_on_every_input(bundle: Bundle) -> None:
    check = self_check(choose_backend(bundle).backend, bundle, all_inputs=True)
    assert check.inputs == 2
    assert check.max_abs_difference < 1e-5
    assert check.tolerance == Tolerance(1e-3, 0.0, 1e-3)


def test_one_input_is_run_unless_all_are_asked_for(bundle: Bundle) -> None:
    fake = Fake(bundle)
    assert self_check(fake, bundle).inputs == fake.runs == 1
    assert self_check(fake, bundle, all_inputs=True).inputs == fake.runs - 1 == 2


def test_the_measured_difference_is_reported(bundle: Bundle) -> None:
    assert self_check(Fake(bundle, error=5e-4), bundle).max_abs_difference == pytest.approx(5e-4, rel=1e-2)


@pytest.mark.parametrize(
    ("error", "phase_error", "name"),
    [(2e-3, 0.0, "^self-check of fake fp32 failed: logits"), (0.0, 2e-3, "phase_logits"), (np.nan, 0.0, "logits")],
)
def test_a_backend_off_the_golden_output_fails(bundle: Bundle, error: float, phase_error: float, name: str) -> None:
    with pytest.raises(SelfCheckFailed, match=name) as caught:
        self_check(Fake(bundle, error, phase_error), bundle)
    assert caught.value.code == 23
    assert "0.001" in caught.value.message
    assert "nan" in caught.value.message or "0.002" in caught.value.message


def test_the_relative_tolerance_counts(tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "bundle", golden=tiny_golden(tolerance=Tolerance(0.0, 0.5, 0.0)))
    smallest = float(np.abs(bundle.golden().logits[0]).min())
    self_check(Fake(bundle, error=0.4 * smallest), bundle)
    with pytest.raises(SelfCheckFailed):
        self_check(Fake(bundle, error=0.6 * smallest), bundle)


def test_phase_logits_have_a_tolerance_of_their_own(tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "bundle", golden=tiny_golden(tolerance=Tolerance(1e-3, 0.0, 5e-2)))
    self_check(Fake(bundle, phase_error=2e-2), bundle)
    for error, phase_error in ((2e-2, 0.0), (0.0, 6e-2)):
        with pytest.raises(SelfCheckFailed):
            self_check(Fake(bundle, error, phase_error), bundle)


def test_another_model_behind_right_hashes_fails(tmp_path: Path) -> None:
    altered = write_tiny(tmp_path / "bundle", tiny_model(TINY_MODEL.replace("{0.1, -0.2}", "{0.1, -0.21}")))
    with pytest.raises(SelfCheckFailed, match=r"off its golden value by 0\.01 "):
        self_check(choose_backend(altered).backend, altered)


def test_an_engine_is_also_run_at_the_most_it_takes(bundle: Bundle) -> None:
    fake = Fake(bundle, max_batch=3)
    assert self_check(fake, bundle).batches == (1, 3)
    assert fake.batches == [1, 3]
    assert self_check(Fake(bundle, max_batch=1), bundle, all_inputs=True).batches == (1,)


def test_what_is_wrong_at_the_largest_batch_alone_is_found(bundle: Bundle) -> None:
    with pytest.raises(SelfCheckFailed):
        self_check(Fake(bundle, error=0.1, max_batch=3, wrong_at=3), bundle)
    self_check(Fake(bundle, error=0.1, max_batch=2, wrong_at=3), bundle)


def test_logits_alone_are_checked_alone(tmp_path: Path) -> None:
    bundle = write_logits_alone(tmp_path / "bundle")
    assert self_check(Fake(bundle, error=1e-6), bundle).max_abs_difference == pytest.approx(1e-6, rel=0.1)
    with pytest.raises(SelfCheckFailed, match="logits is off its golden value"):
        self_check(Fake(bundle, error=2e-3), bundle)


@pytest.mark.parametrize("given", [True, False])
def test_phase_logits_that_only_one_side_has_fail(tmp_path: Path, bundle: Bundle, given: bool) -> None:
    alone = write_logits_alone(tmp_path / "alone")
    backend, other = (Fake(bundle), alone) if given else (Fake(alone), bundle)
    with pytest.raises(SelfCheckFailed, match="unexpected phase_logits" if given else "no phase_logits"):
        self_check(backend, other)
