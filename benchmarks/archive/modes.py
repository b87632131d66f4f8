"""How studies are spread over cores: one process, several processes, or Ray; each mode makes a team of workers.

What a mode gains is measured by `trial`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from fourphase.benchmarks.archive.job import Job
from fourphase.benchmarks.archive.team import ProcessTeam, Team, chunks
from fourphase.runtime.errors import EnvironmentFault, UsageError

__all__ = ["ALONE", "Mode", "modes_of", "splits", "team_of", "usable_cores"]


@dataclass(frozen=True)
class Mode:
    """A way to run many studies.

    Attributes:
        name: "one process", "processes" or "ray".
        threads: cores of each worker.
        address: Ray's; "" without Ray.
        missing: why it cannot be had here; "" if it can.
    """

    name: str
    workers: int
    threads: int
    address: str = ""
    missing: str = ""

    @property
    def cores(self) -> int:
        return self.workers * self.threads


#: The reference.
ALONE = Mode("one process", 1, 1)


def usable_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def splits(cores: int) -> list[tuple[int, int]]:
    """(workers, threads of each) for every way to use all cores, fewest workers first."""
    return [(workers, cores // workers) for workers in range(1, cores + 1) if cores % workers == 0]


def modes_of(cores: int, workers: int | None, ray: str = "", *, must: bool = False) -> list[Mode]:
    """The modes that are compared: the reference, every split (or one process and that many), and Ray.

    Args:
        workers: None for every split; on a cluster also more than this machine has cores, for Ray alone.
        ray: LOCAL, a cluster's address, or "" for no Ray.
        must: a Ray that cannot be had is an error; otherwise it is a mode with the reason.

    Raises: UsageError (2) for more workers than cores; EnvironmentFault (24).
    """
    from fourphase.benchmarks.archive.ray_team import LOCAL

    too_many = workers is not None and workers > cores and ray in ("", LOCAL)
    if too_many or (workers is not None and workers < 1):
        cause = f"{workers} workers are asked for, this process may use {cores} cores"
        raise UsageError(cause, f"give --workers auto, or a number from 1 to {cores}", key="workers_too_many")
    if workers is None:
        pairs = splits(cores)
    else:
        pairs = sorted({(1, cores), (workers, cores // workers)} if workers <= cores else {(1, cores)})
    names = {1: "one process"}
    local = [Mode(names.get(count, "processes"), count, threads) for count, threads in pairs]
    modes = [ALONE, *(mode for mode in local if mode != ALONE)]
    return [*modes, _ray_mode(cores, workers, ray, must)] if ray else modes


def _ray_mode(cores: int, workers: int | None, address: str, must: bool) -> Mode:
    """One core each, unless a number of workers is asked for; all of a cluster's cores that are free are taken."""
    from fourphase.benchmarks.archive.ray_team import LOCAL, free_cores, require_ray

    try:
        require_ray()
        offered = cores if address == LOCAL else free_cores(address)
        if offered < (workers or 1):
            raise _busy(offered, workers or 1)
    except EnvironmentFault as fault:
        if must:
            raise
        return Mode("ray", workers or cores, 1, address, fault.message)
    if workers is not None and address == LOCAL:
        return Mode("ray", workers, cores // workers, address)
    return Mode("ray", workers or offered, 1, address)


def _busy(offered: int, workers: int) -> EnvironmentFault:
    return EnvironmentFault(
        f"the cluster has {offered} free cores, {workers} are asked for",
        "wait for it to have more, or use fewer --workers",
        key="ray_busy",
    )


def team_of(mode: Mode, job: Job, cpus: Sequence[int]) -> Team:
    """The workers of a mode, not yet started. Raises: EnvironmentFault (24) without Ray."""
    if mode.address:
        from fourphase.benchmarks.archive.ray_team import RayTeam

        return RayTeam(job, mode.workers, mode.threads, mode.address)
    return ProcessTeam(job, chunks(cpus, mode.workers, mode.threads))
