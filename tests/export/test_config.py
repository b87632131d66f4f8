from __future__ import annotations

import json
from typing import Any

import pytest

from fourphase.export.config import NetworkConfig
from fourphase.runtime.errors import UsageError


def test_ring_neighbours_of_four_phases_are_those_of_equation_1() -> None:
    phases = NetworkConfig().phases
    named = {phases[p]: {phases[q] for q in near} for p, near in enumerate(NetworkConfig().neighbours)}
    assert named == {"NC": {"ART", "DL"}, "ART": {"NC", "PV"}, "PV": {"ART", "DL"}, "DL": {"PV", "NC"}}


@pytest.mark.parametrize("phases", [("NC", "ART", "PV"), ("NC", "ART", "DL")])
def test_with_three_phases_the_ring_is_everybody(phases: tuple[str, ...]) -> None:
    ring = NetworkConfig(phases=phases)
    assert ring.neighbours == NetworkConfig(phases=phases, ipm_graph="all").neighbours == ((1, 2), (0, 2), (0, 1))


def test_chain_and_two_phases() -> None:
    assert NetworkConfig(ipm_graph="chain").neighbours == ((1,), (0, 2), (1, 3), (2,))
    assert NetworkConfig(phases=("ART", "PV")).neighbours == ((1,), (0,))


def test_survives_json() -> None:
    config = NetworkConfig(ipm_stages=(2, 4), lambda_aux=0.5, classes=("a", "b", "c"))
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"phases": ["NC"]}, "phases"),
        ({"phases": ["NC", "NC"]}, "phases"),
        ({"classes": ["HCC"]}, "classes"),
        ({"ipm_stages": [0]}, "ipm_stages"),
        ({"ipm_stages": [1, 1]}, "ipm_stages"),
        ({"ipm_graph": "star"}, "ipm_graph"),
        ({"stem_stride": 3}, "stem_stride"),
        ({"lambda_aux": 1.5}, "lambda_aux"),
        ({"width": 0}, "width"),
        ({"width": "64"}, "width"),
        ({"spm": 1}, "spm"),
        ({"depth": 18}, "depth"),
    ],
)
def test_a_wrong_key_is_named(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        NetworkConfig.from_dict(keys)
