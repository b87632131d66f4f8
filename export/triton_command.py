"""`fp-export triton`: a model of a bundle as a model of a Triton repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fourphase.runtime.console import be_quiet, note, say_errors_as_json, stdout_checked

__all__ = ["triton"]


def triton(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle whose model is to be served.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="REPOSITORY", help="The repository; REPOSITORY/NAME is written.")
    ],
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8; default: the plan's, else fp32.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="onnxruntime or tensorrt; default: tensorrt with --plan, else onnxruntime.")
    ] = None,
    plan: Annotated[str | None, typer.Option(metavar="KEY", help="The engine to serve (fp-export inspect).")] = None,
    plans: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder of engines besides the bundle's own.")
    ] = None,
    name: Annotated[str, typer.Option(help="The model's name in Triton.")] = "fourphase",
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Studies per run; default: the engine's largest batch, or 2.")
    ] = None,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the model per GPU, or in all on a CPU.")] = 1,
    device: Annotated[str, typer.Option(help="gpu or cpu.")] = "gpu",
    json_output: Annotated[bool, typer.Option("--json", help="Print the model's record as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Write a Triton model repository, for those who outgrow one machine. Triton is the server; see docs/triton.md.

    Example: fp-export triton liver.bundle -o models --precision fp16
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    from fourphase.export.triton import TritonRequest, write_repository
    from fourphase.runtime.bundle import load_bundle

    request = TritonRequest(precision, backend, plan, plans, name, max_batch, instances, device)
    record = write_repository(load_bundle(bundle), output, request)
    for text in _notes(record):
        note(f"note: {text}")
    with stdout_checked():
        print(json.dumps(record, indent=1) if json_output else _summary(record, output))


def _summary(record: dict[str, Any], repository: Path) -> str:
    engine = record["engine"]
    origin = f"engine {engine['key']}" if engine else f"model {record['precision']}"
    size = sum(file["bytes"] for file in record["files"].values())
    return (
        f"{record['backend']} on {record['device']}: {origin}, batch 1 to {record['max_batch']},"
        f" {record['instances']} instance(s), {len(record['golden'])} golden inputs\n"
        f"wrote {repository / record['name']} ({size / 1e6:.1f} MB), bundle sha256 {record['bundle']['sha256'][:12]}"
    )


def _notes(record: dict[str, Any]) -> list[str]:
    """What the person who starts Triton must know."""
    notes = ["no Triton ran here; compare its golden outputs before use (docs/triton.md)"]
    if record["engine"]:
        gpu = (record["engine"]["gpu"] or {}).get("name", "the GPU it was built on")
        notes.append(f"this engine needs a Triton with TensorRT {record['engine']['version']} on {gpu}")
    elif record["quantized"]:
        notes.append("ONNX Runtime's optimisers are off: they lose biases of quantized models (docs/precision.md)")
    return notes
