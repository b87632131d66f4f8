"""The exported graph of the small network; most tests here use smaller graphs still."""

from __future__ import annotations

import onnx
import pytest

from tests.support.networks import exported_small


@pytest.fixture
def model() -> onnx.ModelProto:
    """A fresh copy, free to be doctored."""
    return onnx.load_model_from_string(exported_small())
