"""`fp-export calibrate`: studies in, a calibration set out, and what it holds at one look. It computes no scales."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourphase.runtime.console import be_quiet, say_errors_as_json, stdout_checked
from fourphase.runtime.errors import UsageError

if TYPE_CHECKING:
    from fourphase.calibration.calibration_set import CalibrationSet
    from fourphase.calibration.case_table import CalibrationRequest
    from fourphase.runtime.config import PreprocessingConfig

__all__ = ["ModelInput", "calibrate", "calibration_report", "hu_quantile", "model_input", "plot_hu"]

#: Of the counted HU: what the table shows, and the range that the plot shows.
_TABLE_SHARES = {"p5_hu": 0.05, "median_hu": 0.5, "p95_hu": 0.95}
_PLOT_SHARES = (0.002, 0.998)


@dataclass(frozen=True)
class ModelInput:
    """What a set is made for.

    Attributes:
        source: where it was taken from, for a person.
        classes: None where no model is known.
    """

    source: str
    preprocessing: PreprocessingConfig
    phases: tuple[str, ...]
    classes: tuple[str, ...] | None


def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="The calibration set to write, a directory.")],
    studies: Annotated[
        list[Path] | None,
        typer.Argument(metavar="STUDY_DIR...", help="Study folders, or folders as fp-bench phantom writes them."),
    ] = None,
    box: Annotated[list[Path] | None, typer.Option(help="Lesion box, JSON or NIfTI; once per study, in order.")] = None,
    cases: Annotated[Path | None, typer.Option(help="Instead of STUDY_DIR: a CSV table of studies.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Preprocessing and phases are this bundle's.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Preprocessing and phases are this checkpoint's.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML: [network] or [model], [preprocessing]; overrides its.")
    ] = None,
    factory: Annotated[
        str | None,
        typer.Option("--model", metavar="PACKAGE.MODULE:FACTORY", help="Of a checkpoint of another network than ours."),
    ] = None,
    exclude: Annotated[list[Path] | None, typer.Option(help="A set to share no study with. Repeatable.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the HU per phase into FILE.png (extra [report]).")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Preprocess studies into a calibration set, which INT8 and the precision search need.

    The columns of a table are study, box and, optionally, label; its paths are relative to it.

    Example: fp-export calibrate studies/ -o calibration/ --bundle liver.bundle
    """
    be_quiet(quiet)
    say_errors_as_json(json_output)
    from fourphase.calibration import calibrate as steps
    from fourphase.calibration.calibration_set import load_calibration_set

    requests = _requests(studies or [], box or [], cases)
    _check_outputs(output, plot, exclude or [])
    others = [load_calibration_set(path, None) for path in exclude or []]
    model = model_input(bundle, checkpoint, config, factory)
    _check_labels(requests, model)
    data = steps.calibrate(requests, model.preprocessing, output, model.phases, others)
    if plot is not None:
        plot_hu(data, plot)
    report = calibration_report(data, model, len(others))
    with stdout_checked():
        if json_output:
            print(json.dumps(report, indent=1))
        else:
            _print_report(report)


def model_input(
    bundle: Path | None, checkpoint: Path | None, config: Path | None, model: str | None = None
) -> ModelInput:
    """Preprocessing and phases of a bundle, of a checkpoint (with `config`), of `config` alone, or the contract's.

    Args:
        model: the factory of a checkpoint that is not our network's.

    Raises: UsageError (2) for a bundle beside a checkpoint or a configuration, or a factory without a checkpoint; what
        reading them raises.
    """
    from fourphase.export.config import PHASES, NetworkConfig
    from fourphase.export.interface import Interface, interface_from_dict
    from fourphase.runtime.config import PreprocessingConfig

    if bundle is not None and (checkpoint is not None or config is not None):
        raise UsageError("--bundle is given beside --checkpoint or --config", "give only one", key="model_given_twice")
    if model is not None and checkpoint is None:
        raise UsageError(
            "--model makes a network for the weights of a checkpoint, and none is given",
            "give --checkpoint, or leave --model out",
            key="model_given",
        )
    if bundle is not None:
        from fourphase.runtime.bundle import load_bundle

        found = load_bundle(bundle)
        return ModelInput(f"the bundle {bundle}", found.preprocessing, found.phases, found.classes)
    source = f"the configuration {config}" if config is not None else f"the checkpoint {checkpoint}"
    if checkpoint is not None:
        from fourphase.export.source import load_source

        loaded = load_source(checkpoint, config, model)
        return ModelInput(source, loaded.preprocessing, loaded.interface.phases, loaded.interface.classes)
    if config is not None:
        from fourphase.export.checkpoint import read_config

        sections = read_config(config)
        named: NetworkConfig | Interface
        if "model" in sections:
            named = interface_from_dict(sections["model"])
        else:
            named = NetworkConfig.from_dict(sections.get("network", {}))
        preprocessing = PreprocessingConfig.from_dict(sections.get("preprocessing", {}))
        return ModelInput(source, preprocessing, named.phases, named.classes)
    return ModelInput("the contract's defaults", PreprocessingConfig(), PHASES, None)


def calibration_report(data: CalibrationSet, model: ModelInput, excluded: int) -> dict[str, Any]:
    """`fourphase.calibration-report/1`. `excluded`: how many sets were found to share no study with this one."""
    labels = Counter(case.label for case in data.cases if case.label is not None)
    low, high = data.hu_histograms["low"], data.hu_histograms["high"]
    return {
        "schema": "fourphase.calibration-report/1",
        "set": {
            "path": str(data.path),
            "hash": data.hash,
            "bytes": sum(case.bytes for case in data.cases),
            "salted": data.salted,
        },
        "studies": len(data),
        "labels": dict(sorted(labels.items())),
        "unlabelled": len(data) - labels.total(),
        "excluded_sets": excluded,
        "preprocessing": {"hash": data.preprocessing.hash, "source": model.source},
        "phases": {
            phase: {name: round(hu_quantile(counts, low, high, share), 1) for name, share in _TABLE_SHARES.items()}
            for phase, counts in data.hu_histograms["phases"].items()
        },
    }


def hu_quantile(counts: Sequence[int], low: float, high: float, share: float) -> float:
    """The HU below which `share` of the counted values lie, linear within its bin."""
    import numpy as np

    edges = np.linspace(low, high, len(counts) + 1)
    below = np.concatenate([[0], np.cumsum(counts)]) / np.sum(counts)
    return float(np.interp(share, below, edges))


def plot_hu(data: CalibrationSet, path: Path) -> None:
    """Writes the HU histograms of all phases as a PNG; the few lowest and highest values are left out.

    Raises: ModuleNotFoundError without matplotlib (the command names the extra), OutputNotWritable (30).
    """
    import io

    import numpy as np
    from matplotlib.figure import Figure

    from fourphase.runtime.atomic import write_file

    low, high = data.hu_histograms["low"], data.hu_histograms["high"]
    histograms = data.hu_histograms["phases"]
    edges = np.linspace(low, high, len(next(iter(histograms.values()))) + 1)
    ends = [hu_quantile(counts, low, high, share) for counts in histograms.values() for share in _PLOT_SHARES]
    figure = Figure(figsize=(7, 1.1 * len(histograms) + 0.8), layout="constrained")
    rows = figure.subplots(len(histograms), sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (phase, counts) in zip(rows, histograms.items(), strict=True):
        median = hu_quantile(counts, low, high, 0.5)
        axes.stairs(100 * np.array(counts) / sum(counts), edges, fill=True, color="C0", alpha=0.6)
        axes.axvline(median, color="0.2", linewidth=1)
        axes.set_ylabel(f"{phase}, %")
        axes.text(0.01, 0.75, f"median {median:.0f} HU", transform=axes.transAxes)
    rows[0].set(xlim=(min(ends), max(ends)), title=f"{len(data)} studies, lesion box with margin")
    rows[-1].set_xlabel(f"HU, bins of {edges[1] - edges[0]:.0f}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())


def _requests(studies: list[Path], boxes: list[Path], cases: Path | None) -> tuple[CalibrationRequest, ...]:
    from fourphase.calibration.case_table import read_case_table, study_requests

    if cases is None and not studies:
        raise UsageError("no study is given", "give STUDY_DIR, or --cases FILE.csv", key="studies_missing")
    if cases is None:
        return study_requests(studies, boxes)
    if studies or boxes:
        raise UsageError(
            "--cases is given beside STUDY_DIR or --box", "give the studies in one way only", key="studies_given_twice"
        )
    return read_case_table(cases)


def _check_outputs(output: Path, plot: Path | None, exclude: list[Path]) -> None:
    """What can be refused before any study is read."""
    from fourphase.calibration.calibrate import check_target
    from fourphase.runtime.atomic import check_file_target

    if output.resolve() in [path.resolve() for path in exclude]:
        raise UsageError(
            "the set to write is one that is excluded, and would replace it", "give another -o", key="output_excluded"
        )
    check_target(output)
    if plot is None:
        return
    if plot.suffix != ".png":
        raise UsageError(f"{plot.name} is not a .png file", "name it FILE.png", key="suffix")
    if output.resolve() in plot.resolve().parents:
        raise UsageError("the plot lies in the set", "put it beside the set", key="plot_in_set")
    import matplotlib  # noqa: F401  (a missing package is better found now)

    check_file_target(plot)


def _check_labels(requests: Sequence[CalibrationRequest], model: ModelInput) -> None:
    """A label that is no class of the model would count as the wrong class when the model is judged."""
    if model.classes is None:
        return
    for number, request in enumerate(requests, start=1):
        if request.label is not None and request.label not in model.classes:
            raise UsageError(
                f"study {number} of {len(requests)} has a label that is no class of {model.source}",
                f"the classes are {', '.join(model.classes)}; leave the label empty where it is not known",
                key="label_unknown",
            )


def _print_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    table = Table("phase", "median HU", "5 to 95 %", title="HU in the lesion boxes with their margin")
    for phase, hu in report["phases"].items():
        table.add_row(phase, f"{hu['median_hu']:.0f}", f"{hu['p5_hu']:.0f} to {hu['p95_hu']:.0f}")
    console.print(table)
    labels = [f"{count} {label}" for label, count in report["labels"].items()]
    labels += [f"{report['unlabelled']} without a label"] if report["unlabelled"] else []
    salted = "with" if report["set"]["salted"] else "without"
    console.print(f"studies        {report['studies']}: {', '.join(labels)}")
    console.print(f"case names     hashed {salted} FOURPHASE_SALT")
    if excluded := report["excluded_sets"]:
        console.print(f"excluded       {excluded} {'set' if excluded == 1 else 'sets'}: no study in common")
    console.print(f"preprocessing  {report['preprocessing']['hash']}, from {report['preprocessing']['source']}")
    console.print(f"set            {report['set']['hash']}")
    console.print(f"wrote {report['set']['path']} ({report['set']['bytes'] / 1e6:.1f} MB)")
