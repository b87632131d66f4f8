"""Which modes a cluster gives, and a Ray that never places a worker: on a Ray that is played."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fourphase.benchmarks.archive import ray_team
from fourphase.benchmarks.archive.job import Job
from fourphase.benchmarks.archive.modes import ALONE, Mode, modes_of
from fourphase.benchmarks.archive.ray_team import RayTeam, free_cores
from fourphase.benchmarks.archive.team import Ready
from fourphase.runtime.errors import EnvironmentFault, UsageError


class PlayedRay:
    """A cluster of 16 cores, of which `free` are; as many actors come up. References are (method, actor)."""

    exceptions = SimpleNamespace(RayActorError=type("RayActorError", (Exception,), {}))

    def __init__(self, free: float) -> None:
        self.free = free
        self.timeouts: list[float | None] = []
        self.shut = False

    def init(self, **_: object) -> None:
        pass

    def shutdown(self) -> None:
        self.shut = True

    def kill(self, actor: object) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 16.0}

    def available_resources(self) -> dict[str, float]:
        return {"CPU": self.free} if self.free else {}

    def remote(self, **_: object) -> Any:
        made: list[int] = []

        def make() -> SimpleNamespace:
            number = len(made)
            made.append(number)
            methods = ("place", "prepare", "run")
            return SimpleNamespace(
                **{name: SimpleNamespace(remote=lambda *_, name=name: (name, number)) for name in methods}
            )

        return lambda kind: SimpleNamespace(remote=make)

    def wait(self, flying: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
        self.timeouts.append(timeout)
        return [one for one in flying if one[1] < self.free][:num_returns], []

    def get(self, reference: tuple[str, int]) -> dict[str, Any]:
        if reference[0] == "place":
            return {"node": "n", "cpus": [0, 1], "pid": 7}
        return {"ready": {"cpu_s": 1.0, "peak_bytes": 1, "read_bytes": None}, "model": {}}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedRay:
    ray = PlayedRay(8)
    monkeypatch.setattr(ray_team, "require_ray", lambda: ray)
    return ray


def test_only_cores_that_are_free_are_offered(played: PlayedRay) -> None:
    assert free_cores("auto") == 8
    assert played.shut
    assert modes_of(2, None, "auto")[-1] == Mode("ray", 8, 1, "auto")


def test_a_cluster_takes_more_workers_than_this_machine_has_cores(played: PlayedRay) -> None:
    assert modes_of(2, 6, "auto") == [ALONE, Mode("one process", 1, 2), Mode("ray", 6, 1, "auto")]
    for workers, ray in ((6, ""), (6, "local"), (0, "auto")):
        with pytest.raises(UsageError) as caught:
            modes_of(2, workers, ray)
        assert caught.value.key == "workers_too_many"


@pytest.mark.parametrize(("free", "workers", "asked"), [(0, None, 1), (8, 9, 9)])
def test_a_cluster_without_that_many_free_cores_is_busy(
    played: PlayedRay, free: int, workers: int | None, asked: int
) -> None:
    played.free = free
    mode = modes_of(2, workers, "auto")[-1]
    assert mode.missing == f"the cluster has {free} free cores, {asked} are asked for"
    with pytest.raises(EnvironmentFault) as caught:
        modes_of(2, workers, "auto", must=True)
    assert caught.value.key == "ray_busy"


def test_a_worker_that_is_never_placed_is_waited_for_until_nothing_else_of_ours_works(played: PlayedRay) -> None:
    played.free = 1
    team = RayTeam(Job("bundle"), 2, 1, "auto")
    team.start(0)
    team.start(1)
    event = team.wait()
    assert isinstance(event, Ready)
    assert event.worker == 0
    with pytest.raises(EnvironmentFault, match="no free core") as caught:
        team.wait()
    assert caught.value.key == "ray_busy"
    limit = ray_team._PLACED_WITHIN_S
    assert played.timeouts == [limit, None, limit], "none while the first worker loads the bundle"
