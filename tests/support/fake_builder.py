"""TensorRT as far as the builder needs it: exactly the names that 10.0 to 11.4 share, every call written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["COMMON", "FakeCache", "FakeTensorRT", "Member", "Recorder"]

COMMON = frozenset(json.loads((Path(__file__).parents[1] / "engine" / "data" / "trt_api_common.json").read_text()))


class Member:
    """An enum member of the fake TensorRT: usable as an int and as a key."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __int__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return self.name


class Recorder:
    """An object of class `owner` that has exactly the attributes of the common API and writes down every call."""

    def __init__(self, owner: str, calls: list[tuple[Any, ...]], **answers: Any) -> None:
        vars(self).update(_owner=owner, _calls=calls, _answers=answers)

    def __getattr__(self, name: str) -> Any:
        full = f"{self._owner}.{name}"
        if full not in COMMON:
            raise AttributeError(f"{full} is not in every supported TensorRT")
        answer = self._answers.get(name)
        if name in self._answers and not callable(answer):
            return answer

        def call(*arguments: Any) -> Any:
            self._calls.append((full, *arguments))
            return answer(*arguments) if callable(answer) else None

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        assert f"{self._owner}.{name}" in COMMON
        self._calls.append((f"{self._owner}.{name}", value))


class FakeTensorRT:
    """TensorRT as far as the builder needs it, with no name beyond the common API."""

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = (Member(name) for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO"))

    def __init__(
        self,
        plan: bytes | None = b"plan",
        *,
        error: str = "out of  memory",
        tactics: tuple[str, ...] = ("a", "b"),
        cores: int = 0,
    ) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.plan, self.error, self.tactics, self.cores = plan, error, tactics, cores
        self.measured: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name not in COMMON:
            raise AttributeError(f"{name} is not in every supported TensorRT")
        return FakeEnum(name)

    def Builder(self, logger: Any) -> Recorder:
        caches: list[FakeCache] = []

        def finish(network: Any, config: Any) -> bytes | None:
            logger.log(self.ILogger.WARNING, "slow\n tactic")
            logger.log(self.ILogger.INFO, "chatter")
            for cache in caches[-1:]:
                self.measured += sorted(set(self.tactics) - cache.entries)
                cache.entries |= set(self.tactics)
            if self.plan is None:
                logger.log(self.ILogger.ERROR, self.error)
            return self.plan

        def attach(cache: FakeCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            if cache.is_broken:
                return False
            caches.append(cache)
            return True

        config = Recorder(
            "IBuilderConfig",
            self.calls,
            # None is what TensorRT's null pointer becomes.
            create_timing_cache=lambda data: None if data == b"unreadable" else FakeCache(data),
            set_timing_cache=attach,
            get_timing_cache=lambda: caches[-1],
        )
        tensor = Recorder("ITensor", self.calls, name="study", shape=(-1, 4, 64, 3, 128, 128))
        network = Recorder("INetworkDefinition", self.calls, num_outputs=2, num_inputs=1, get_input=lambda i: tensor)
        return Recorder(
            "Builder",
            self.calls,
            num_DLA_cores=self.cores,
            create_network=lambda flags: network,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: Recorder("IOptimizationProfile", self.calls),
            build_serialized_network=finish,
        )

    def Runtime(self, logger: Any) -> Recorder:
        engine = Recorder("ICudaEngine", self.calls)
        return Recorder("Runtime", self.calls, deserialize_cuda_engine=lambda plan: engine)

    def OnnxParser(self, network: Any, logger: Any) -> Recorder:
        return Recorder("OnnxParser", self.calls, parse=lambda data: True, num_errors=0)


class FakeCache:
    """A timing cache: the tactics that were measured, one per line."""

    def __init__(self, data: bytes) -> None:
        lines = data.decode(errors="replace").split("\n") if data else ["cache"]
        self.is_broken = lines[0] != "cache"
        self.entries = set(lines[1:])

    def serialize(self) -> bytes:
        return "\n".join(["cache", *sorted(self.entries)]).encode()

    def combine(self, other: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if other.is_broken:
            return False
        self.entries |= other.entries
        return True


class FakeEnum:
    def __init__(self, owner: str) -> None:
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        if name == "__members__":
            # What an old version has; newer ones have more.
            own = [full.partition(".")[2] for full in COMMON if full.startswith(f"{self._owner}.")]
            return {member: Member(f"{self._owner}.{member}") for member in own if member.isupper()}
        assert f"{self._owner}.{name}" in COMMON
        return Member(f"{self._owner}.{name}")
