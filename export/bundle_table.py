"""What `fp-export inspect` prints: the bundle, and which of its plans this machine could load."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fourphase.export.ladder_table import precisions_text
from fourphase.runtime.bundle import Bundle
from fourphase.runtime.plan_choice import PlanReport
from fourphase.runtime.plan_meta import Machine

__all__ = ["print_bundle", "print_plans"]


def print_bundle(bundle: Bundle) -> None:
    """Everything the manifest says, but for the plans."""
    console = Console(highlight=False)
    console.print(f"bundle sha256 {bundle.sha256}", markup=False)
    console.print(f"classes {', '.join(bundle.classes)}; phases {', '.join(bundle.phases)}", markup=False)
    console.print(f"input float32 (batch, {', '.join(map(str, bundle.input_shape))})", markup=False)
    console.print(f"network {json.dumps(dict(bundle.network))}", markup=False, soft_wrap=True)
    console.print(f"preprocessing {bundle.preprocessing.hash}", markup=False)
    for precision, model in bundle.models.items():
        split = f", split in chunks of {model.split.slices} slices" if model.split else ""
        console.print(f"model {precision}: {model.file}, {precisions_text(model.blocks)}{split}", markup=False)
    if bundle.calibration:
        made = bundle.calibration
        console.print(
            f"calibration: {made['studies']} studies, {made['algorithm']}, set {made['hash'][:16]}", markup=False
        )
    ladder = bundle.parity.get("ladder")
    for key, whose in (("torch_fp32_to_onnx_fp32", "PyTorch"), ("given_onnx_to_onnx_fp32", "the given ONNX")):
        first = bundle.parity.get(key)
        if first:
            worst = f"worst {first['worst_block']} at {first['worst_relative']:.1e}"
            console.print(f"parity with {whose}: {worst}", markup=False)
    if ladder:
        judged = ladder["judged_on"]
        console.print(
            f"judged on {judged['studies']} studies ({judged['source']}), against {ladder['baseline']}", markup=False
        )
        for precision, verdict in ladder["verdicts"].items():
            noise = "equal" if verdict["sqnr_db"] is None else f"{verdict['sqnr_db']:.1f} dB"
            console.print(f"  {precision}: {noise}, {verdict['flips']} flips", markup=False)
    console.print(f"made with {', '.join(f'{name} {number}' for name, number in bundle.tools.items())}", markup=False)
    table = Table("file", "bytes", "sha256")
    for name, record in bundle.files.items():
        table.add_row(name, f"{record.bytes:,}", record.sha256[:16])
    console.print(table)
    console.print("hashes as the manifest has them; fp-export verify checks them")


def print_plans(machine: Machine, plans: Sequence[PlanReport]) -> None:
    """One line per plan: whether it fits this machine, or everything that speaks against it."""
    console = Console(highlight=False)
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items()) or "no TensorRT"
    console.print(f"this machine: {machine.gpu.reason}; {versions}", markup=False)
    if not plans:
        console.print("no engines; fp-export build-plan builds one where TensorRT is installed")
    for plan in plans:
        meta = plan.entry.meta or {}
        what = f"{meta['precision']} {meta['part']}, {meta['flavour']} {meta['version']}: " if meta else ""
        verdict = "fits this machine" if plan.fits else "; ".join(plan.reasons)
        console.print(f"engine {plan.entry.key} ({plan.entry.source}): {what}{verdict}", markup=False)
