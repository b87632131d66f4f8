"""Workers as Ray actors, on this machine or on a cluster (extra `[ray]`): the same worker, reached otherwise.

Every actor is pinned to cores of its own on its machine, and proves first that it sees the caller's bundle, studies and
output folder. Ray decides on which machine an actor lives; nothing is sent to it but names and settings.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fourphase.benchmarks.archive.job import Job, Report, Task, Used
from fourphase.benchmarks.archive.team import Ended, Event, Ready, Reported, thread_limits
from fourphase.benchmarks.archive.worker import StudyRunner, pin, used
from fourphase.runtime.errors import EnvironmentFault, FourphaseError, error_from_dict

__all__ = ["LOCAL", "RayTeam", "RayWorker", "free_cores", "require_ray"]

#: `--ray local`: a Ray of its own on this machine, for as long as the team lives.
LOCAL = "local"
#: No object is ever stored: the smallest store that Ray takes.
_STORE_BYTES = 100 << 20
_ANSWERS_WITHIN_S = 5.0
#: A machine that is busy needs a while to start an actor; one without a free core never does.
_PLACED_WITHIN_S = 120.0
_QUIET = {"logging_level": "error", "log_to_driver": False}


def require_ray() -> Any:
    """The package. Raises: EnvironmentFault (24) if it is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise EnvironmentFault("the package ray is not installed", "pip install 'fourphase[ray]'", key="extra_missing")
    # Usage statistics would be sent from the machine of whoever runs this.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    return ray


class RayWorker:
    """What an actor does; see `worker.StudyRunner`. Every method takes and gives JSON types."""

    def __init__(self) -> None:
        self._runner: StudyRunner | None = None

    def place(self) -> dict[str, Any]:
        """Which machine it is on (Ray's own name for it), and the cores that may be used there."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return {"node": node, "cpus": sorted(os.sched_getaffinity(0)), "pid": os.getpid()}

    def prepare(self, cpus: list[int], job: Mapping[str, Any]) -> dict[str, Any]:
        """`{"ready"}` with the bundle loaded, or `{"error"}`."""
        pin(cpus)
        try:
            self._runner = StudyRunner(Job.from_dict(job))
        except FourphaseError as error:
            return {"error": error.to_dict()}
        return {"ready": vars(used()), "model": self._runner.model}

    def run(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """`{"report"}` of one study."""
        assert self._runner is not None
        return {"report": self._runner.run(Task(**task)).to_dict()}


class RayTeam:
    """Actors of `threads` cores each; `address`: LOCAL, or a cluster's as Ray writes it ("auto", "ray://HOST:10001").

    Raises: EnvironmentFault (24) if Ray is not installed, or no cluster answers.
    """

    def __init__(self, job: Job, workers: int, threads: int, address: str = LOCAL) -> None:
        self.size = workers
        self._ray, self._job, self._threads = require_ray(), job, threads
        _connect(self._ray, address, workers * threads)
        remote = self._ray.remote(num_cpus=threads, max_restarts=0, runtime_env={"env_vars": thread_limits(threads)})
        self._kind = remote(RayWorker)
        self._actors: dict[int, Any] = {}
        self._cpus: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._flying: dict[Any, int] = {}
        self._placing: set[Any] = set()
        self.pids: dict[int, int] = {}

    def start(self, worker: int) -> None:
        actor = self._kind.remote()
        self._actors[worker] = actor
        place = actor.place.remote()
        self._placing.add(place)
        self._flying[place] = worker

    def give(self, worker: int, task: Task) -> None:
        self._flying[self._actors[worker].run.remote(asdict(task))] = worker

    def wait(self) -> Event:
        while True:
            done = self._next()
            worker = self._flying.pop(done)
            self._placing.discard(done)
            try:
                body = self._ray.get(done)
            except self._ray.exceptions.RayActorError:
                return self._ended(worker)
            if "node" in body:
                self._prepare(worker, body)
            elif "error" in body:
                raise error_from_dict(body["error"])
            elif "ready" in body:
                return Ready(worker, Used(**body["ready"]), body["model"])
            else:
                return Reported(worker, Report.from_dict(body["report"]))

    def _next(self) -> Any:
        """The next answer. As long as an actor of ours works there will be one; Ray may never place another."""
        working = self._flying.keys() - self._placing
        done, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=None if working else _PLACED_WITHIN_S)
        if done:
            return done[0]
        raise EnvironmentFault(
            f"Ray has found no free core for a worker within {_PLACED_WITHIN_S:g} s",
            "look at ray status; wait for what runs there to end, or use fewer --workers",
            key="ray_busy",
        )

    def close(self) -> None:
        for actor in self._actors.values():
            with contextlib.suppress(Exception):  # it may have died, and Ray with it
                self._ray.kill(actor)
        self._ray.shutdown()

    def _prepare(self, worker: int, place: Mapping[str, Any]) -> None:
        """Cores of this worker's machine that no other worker of ours has."""
        taken = {cpu for node, cpus in self._cpus.values() if node == place["node"] for cpu in cpus}
        free = [cpu for cpu in place["cpus"] if cpu not in taken]
        chosen = tuple((free or place["cpus"])[: self._threads])
        self._cpus[worker] = (place["node"], chosen)
        self.pids[worker] = place["pid"]
        ready = self._actors[worker].prepare.remote(list(chosen), self._job.to_dict())
        self._flying[ready] = worker

    def _ended(self, worker: int) -> Ended:
        del self._actors[worker]
        self._cpus.pop(worker, None)
        return Ended(worker, "was ended, and Ray does not say by what")


def free_cores(address: str) -> int:
    """The cores of a cluster that nobody has taken. Raises: EnvironmentFault (24)."""
    ray = require_ray()
    _connect(ray, address, 0)
    try:
        return int(ray.available_resources().get("CPU", 0))
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes. Raises: OSError; "auto" and the like are left to Ray."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_ANSWERS_WITHIN_S).close()


def _connect(ray: Any, address: str, cores: int) -> None:
    try:
        _check_answers(address)
        if address == LOCAL:
            ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=_STORE_BYTES, **_QUIET)
        else:
            ray.init(address=address, **_QUIET)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise EnvironmentFault(
            f"Ray does not come up: {type(error).__name__}",
            "look at ray status; give --ray local, or the address of a running cluster",
            key="ray_unreachable",
        ) from error
