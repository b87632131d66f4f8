"""A network of the registry as a bundle, with untrained weights: what a benchmark runs that was given no bundle.

It goes the road of a user's checkpoint: export, parity, FP16 types, Q/DQ. Left out is what judges accuracy, which an
untrained network has none of: gates, the literal evaluation of lowered models, reports. Int8 scales are of a few
phantoms, so a prepared network says how fast int8 is and nothing of how accurate. Kept in the cache, by content.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from fourphase.benchmarks.guarded_steps import Outcome, Save
from fourphase.benchmarks.latency.candidate import PRECISIONS
from fourphase.benchmarks.latency.lowering import lowered_steps
from fourphase.benchmarks.latency.prepared_contents import bundle_contents
from fourphase.benchmarks.latency.scratch import folder_for_this_run
from fourphase.benchmarks.networks import BASELINES, NETWORKS, TINY, Scale
from fourphase.benchmarks.phantoms.phantom_set import PhantomSet
from fourphase.calibration.ladder import Step
from fourphase.engine.bundle import write_bundle
from fourphase.export.build import VerifiedModel, verified_onnx
from fourphase.export.build_report import tool_versions
from fourphase.export.checkpoint import Checkpoint, checkpoint_of_module
from fourphase.export.config import PHASES, NetworkConfig
from fourphase.export.network import FourPhaseNet
from fourphase.runtime.atomic import new_directory
from fourphase.runtime.bundle import load_bundle
from fourphase.runtime.cache import cache_folder
from fourphase.runtime.config import PreprocessingConfig, canonical_json
from fourphase.runtime.console import note
from fourphase.runtime.errors import FourphaseError, UsageError
from fourphase.runtime.locks import locked

__all__ = ["NOT_ACCURACY", "Prepared", "benchmarks_folder", "prepare", "prepare_step", "prepared_before"]


#: Said wherever an int8 number of a prepared network stands.
NOT_ACCURACY = "untrained weights, int8 scales of 2 phantoms: speed only, no accuracy"
_SCALES_OF, _DIFFICULTY = 2, 0.5
_BUNDLE, _WEIGHTS, _RECORD = "bundle", "weights.safetensors", "prepared.json"
#: What the files depend on; a change to any of it makes a new folder.
_ROOMS = ("export", "calibration", "engine", "benchmarks/baselines", "benchmarks/phantoms")
_FILES = (
    "benchmarks/networks.py",
    "benchmarks/latency/prepare.py",
    "benchmarks/latency/lowering.py",
    "benchmarks/latency/prepared_contents.py",
)
#: Longer than any network takes: another process prepares the same one.
_LOCK_TIMEOUT_S = 3600.0
#: Of the digest in a folder's name; seconds after which another version's folder is taken to be in nobody's use.
_DIGITS, _OUTDATED_S = 16, 86400.0


@dataclass(frozen=True)
class Prepared:
    """A network of the registry, ready to be measured.

    Attributes:
        quick: at TINY scale.
        bundle: the bundle's directory.
        missing: precision -> why the bundle lacks it.
    """

    network: str
    quick: bool
    bundle: Path
    missing: Mapping[str, str]

    def module(self) -> nn.Module:
        """The very weights that the bundle was made of: eval mode, float32, on the CPU."""
        from safetensors.torch import load_file

        with torch.device("meta"):
            module, _ = NETWORKS[self.network](_scale(self.quick), 1)
        module.load_state_dict(load_file(self.bundle.parent / _WEIGHTS), assign=True)
        return module.eval()


def prepare(
    network: str, *, quick: bool, precisions: Sequence[str] = ("fp32", "int8"), work: Path | None = None
) -> Prepared:
    """The bundle of a network of `networks.NETWORKS`, made unless it is in the cache.

    Args:
        quick: at TINY scale.
        precisions: out of fp32, fp16 and int8; fp32 is always there.
        work: where it is kept instead of the cache's folder "benchmarks".

    Raises: UsageError for an unknown network or precision; ExportRefused (25), ParityFailed (27) for the FP32 model;
        OutputNotWritable (30).
    """
    _check(network, precisions)
    wanted, folder = _place(network, quick, precisions, work)
    with locked(folder.with_suffix(".lock"), _LOCK_TIMEOUT_S, what=f"the preparation of {network}"):
        found = _found(folder, network, quick)
        if found is None:
            note(f"preparing {network}{' (tiny)' if quick else ''}: once, then it is in the cache")
            found = _made(folder, network, quick, wanted)
            _remove_outdated(folder)
        return found


def prepared_before(
    network: str, *, quick: bool, precisions: Sequence[str] = ("fp32", "int8"), work: Path | None = None
) -> Prepared | None:
    """What `prepare` would find in the cache; None if it would have to make it. Raises: UsageError."""
    _check(network, precisions)
    return _found(_place(network, quick, precisions, work)[1], network, quick)


def prepare_step(save: Save, *, network: str, quick: bool, precisions: Sequence[str], work: str) -> Outcome:
    """`prepare` as a step in a process of its own, whose memory goes with it. Result: `bundle`, `missing`."""
    made = prepare(network, quick=quick, precisions=precisions, work=Path(work))
    return Outcome("ok", result={"bundle": str(made.bundle), "missing": dict(made.missing)})


def benchmarks_folder() -> Path:
    """Where prepared networks are kept: in the cache, or, where it cannot be written, in a folder for this run."""
    return cache_folder("benchmarks") or folder_for_this_run("fourphase-benchmarks-")


def _place(network: str, quick: bool, precisions: Sequence[str], work: Path | None) -> tuple[tuple[str, ...], Path]:
    wanted = tuple(name for name in PRECISIONS if name == "fp32" or name in precisions)
    kind = f"{network}-{'tiny' if quick else 'full'}-{'-'.join(wanted)}"
    return wanted, (work or benchmarks_folder()) / f"{kind}-{_digest(network, quick, wanted)[:_DIGITS]}"


def _check(network: str, precisions: Sequence[str]) -> None:
    if network not in NETWORKS:
        raise UsageError(f"unknown network {network!r}", f"choose one of {', '.join(NETWORKS)}", key="network_unknown")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UsageError(
                f"unknown precision {precision!r}", f"choose one of {', '.join(PRECISIONS)}", key="precision_unknown"
            )


def _scale(quick: bool) -> Scale:
    return TINY if quick else Scale()


def _digest(network: str, quick: bool, precisions: Sequence[str]) -> str:
    """sha256 of everything that the files are made from: the choice, the versions, and the sources of the rooms."""
    root = Path(__file__).resolve().parents[2]
    sources = sorted(path for room in _ROOMS for path in (root / room).glob("*.py"))
    digest = hashlib.sha256()
    for path in (*sources, *(root / name for name in _FILES)):
        digest.update(path.read_bytes())
    made_from = {"network": network, "scale": asdict(_scale(quick)), "precisions": list(precisions)}
    digest.update(canonical_json({**made_from, "tools": dict(tool_versions())}).encode())
    return digest.hexdigest()


def _remove_outdated(folder: Path) -> None:
    """Removes what other versions made of the same network: at full size each is hundreds of megabytes."""
    others = [path for path in folder.parent.glob(f"{folder.name[:-_DIGITS]}{'?' * _DIGITS}") if path != folder]
    for other in others:
        record = other / _RECORD
        if record.is_file() and time.time() - record.stat().st_mtime > _OUTDATED_S:
            shutil.rmtree(other, ignore_errors=True)
            other.with_suffix(".lock").unlink(missing_ok=True)


def _found(folder: Path, network: str, quick: bool) -> Prepared | None:
    """What an earlier call left, if it is whole."""
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        load_bundle(folder / _BUNDLE)
    except (OSError, ValueError, FourphaseError):
        return None
    return Prepared(network, quick, folder / _BUNDLE, record["missing"])


def _made(folder: Path, network: str, quick: bool, precisions: Sequence[str]) -> Prepared:
    weights, checkpoint = _checkpoint(network, quick)
    verified = verified_onnx(checkpoint)
    steps, missing = _steps(verified, precisions)
    contents = bundle_contents(verified, steps, _calibration(verified))
    with new_directory(folder) as temporary:
        write_bundle(temporary / _BUNDLE, contents)
        (temporary / _WEIGHTS).write_bytes(weights)
        (temporary / _RECORD).write_text(json.dumps({"network": network, "quick": quick, "missing": missing}) + "\n")
    return Prepared(network, quick, folder / _BUNDLE, missing)


def _checkpoint(network: str, quick: bool) -> tuple[bytes, Checkpoint]:
    """The weights as a .safetensors file, and the network in memory as a checkpoint."""
    from safetensors.torch import save

    scale = _scale(quick)
    module, study = NETWORKS[network](scale, 1)
    phases = PHASES if network in BASELINES else cast(FourPhaseNet, module).config.phases
    assert len(phases) == study.shape[1]
    state = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
    preprocessing = PreprocessingConfig(size=scale.size)
    return save(state), checkpoint_of_module(module, preprocessing, phases=phases, classes=NetworkConfig.classes)


def _steps(verified: VerifiedModel, precisions: Sequence[str]) -> tuple[list[Step], dict[str, str]]:
    """FP32 and what could be lowered; the reason for what could not."""
    data = _calibration(verified)
    steps, missing = list(lowered_steps(verified.model, (), data)), {}
    for precision in precisions[1:]:
        try:
            steps += lowered_steps(verified.model, (precision,), data)[1:]
        except FourphaseError as error:
            missing[precision] = f"it cannot be made: {error.message}"
    return steps, missing


def _calibration(verified: VerifiedModel) -> PhantomSet:
    checkpoint = verified.checkpoint
    phases = checkpoint.interface.phases
    return PhantomSet(_SCALES_OF, 0, _DIFFICULTY, checkpoint.preprocessing, phases, purpose="calibration")
