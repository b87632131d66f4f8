"""The engines of a kit's bundle, built as `fp-export` builds them, in every form that this GPU can load."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourphase.benchmarks.gpu.engine_recording import build_record, built_anyway
from fourphase.benchmarks.gpu.kit import BATCH
from fourphase.benchmarks.guarded_steps import Save, error_record
from fourphase.engine.build import EnginePlan
from fourphase.engine.bundle import model_of
from fourphase.engine.options import BuildOptions
from fourphase.engine.plans import engine_options, sources_of
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.cuda import probe
from fourphase.runtime.cuda_context import is_available
from fourphase.runtime.errors import FourphaseError
from fourphase.runtime.tensorrt_backend import EngineParts, load_engine_backend

__all__ = ["Engines", "clock", "engines_of_forms", "form_name", "golden_studies", "needs_gpu", "no_pycuda"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Engines:
    """One form of a model. `slices`: of the trunk; None for the whole."""

    plans: tuple[EnginePlan, ...]
    slices: int | None
    capability: str | None

    def parts(self, precision: str) -> EngineParts:
        plans = {plan.meta["part"]: plan.plan for plan in self.plans}
        return EngineParts(plans, self.slices, self.plans[0].meta["flavour"], precision, BATCH)


def engines_of_forms(
    bundle: Bundle,
    precision: str,
    target: str,
    device: str,
    capabilities: Sequence[str | None],
    result: dict[str, Any],
    save: Save,
) -> dict[str, Engines]:
    """Form -> engines: the whole, and trunk and tail where the bundle has them; those that load on this device."""
    model = model_of(bundle, precision)
    forms = {"whole": None, **({"split": model.split.slices} if model.split else {})}
    engines = {}
    for form, slices in forms.items():
        for capability in capabilities:
            try:
                built, records = _built(bundle, precision, target, form == "whole", capability)
                result["builds"][form] = records
                found = Engines(built, slices, capability)
                if device == "cuda":
                    load_engine_backend(found.parts(precision), bundle, use_graph=False).close()
            except FourphaseError as error:
                result["refused"].append({"form": form, "capability": capability, "error": error_record(error)})
                continue
            finally:
                save(result)
            engines[form] = found
            break
    return engines


def _built(
    bundle: Bundle, precision: str, target: str, whole: bool, capability: str | None
) -> tuple[tuple[EnginePlan, ...], list[dict[str, Any]]]:
    options = BuildOptions(batch=(1, 1, BATCH), compute_capabilities=(capability,) if capability else ())
    built = [
        built_anyway(source, target, engine_options(source, options))
        for source in sources_of(precision, model_of(bundle, precision), whole=whole)
    ]
    records = [{"part": plan.meta["part"], **build_record(plan, refusal)} for plan, refusal in built]
    return tuple(plan for plan, _ in built), records


def form_name(form: str, use_graph: bool) -> str:
    return f"{form}, {'CUDA graph' if use_graph else 'plain'}"


def no_pycuda(device: str) -> str:
    """A rehearsal without a GPU builds the engines all the same."""
    return "" if device == "cpu" or is_available() else "pycuda is not installed"


def needs_gpu(device: str) -> str:
    return f"needs a CUDA device: {probe().reason}" if device == "cpu" else ""


def golden_studies(bundle: Bundle, count: int) -> Floats:
    golden = bundle.golden("fp32")
    return np.concatenate([golden.study(index % len(golden)) for index in range(count)])


@contextmanager
def clock() -> Iterator[list[float]]:
    """The block's seconds, once it is through."""
    found: list[float] = []
    started = time.perf_counter()
    yield found
    found.append(time.perf_counter() - started)
