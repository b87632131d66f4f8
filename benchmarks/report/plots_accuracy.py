"""The plots of the accuracy section: AUC with intervals, ROC curves, calibration curves. All of phantoms."""

from __future__ import annotations

from collections.abc import Sequence

from fourphase.benchmarks.report.answers_latency import OURS, is_baseline
from fourphase.benchmarks.report.page_parts import columns_of, finding
from fourphase.benchmarks.report.reading import Row, dig, rows_of, status_of
from fourphase.benchmarks.report.svg_base import legend, linear_axis
from fourphase.benchmarks.report.svg_rows import WIDE, Estimate, forest
from fourphase.benchmarks.report.svg_xy import Point, Series, xy_plot
from fourphase.benchmarks.report.words import difference_text
from fourphase.export.report_markup import Markup

__all__ = ["accuracy_plots"]

_SIZE = (440.0, 400.0)
_KEY = (("square", "ours", OURS), ("square", "variant", "its variants"), ("square", "baseline", "baselines"))


def accuracy_plots(section: Row) -> list[Markup]:
    rows = [row for row in rows_of(section) if status_of(row) == "ok"]
    if not rows:
        return []
    return [_auc(rows), *_int8(rows), *columns_of([*_roc(rows), *_calibration(rows)])]


def _colour(network: str) -> str:
    return "ours" if network == OURS else "baseline" if is_baseline(network) else "variant"


def _auc(rows: Sequence[Row]) -> Markup:
    ordered = sorted(rows, key=lambda row: -row["auc"]["value"])
    estimates = [
        Estimate(row["network"], auc["value"], auc["low"], auc["high"],
                 f"{auc['value']:.3f} ({auc['low']:.3f}–{auc['high']:.3f})", _colour(row["network"]),
                 f"{row['network']}: AUC {auc['value']:.3f}")
        for row in ordered if (auc := row["auc"])
    ]  # fmt: skip
    best = ordered[0]
    overlapping = sum(row["auc"]["high"] >= best["auc"]["low"] for row in ordered[1:])
    heading = (
        f"On phantoms, {best['network']} has the largest AUC; the intervals of {overlapping} others overlap with it"
    )
    drawn = forest(heading, "AUC of each network on synthetic phantoms, with 95 % bootstrap intervals.",
                   "AUC on synthetic phantoms", estimates, strong=OURS, width=WIDE, ratio=False)  # fmt: skip
    return finding(heading, drawn, "", legend(_KEY))


def _int8(rows: Sequence[Row]) -> list[Markup]:
    estimates = [
        Estimate(row["network"], change["value"], change["low"], change["high"],
                 difference_text(change), _colour(row["network"]),
                 f"{row['network']}: {row['int8']['flipped']} decisions flipped")
        for row in rows if (change := dig(row, "int8", "auc_against_fp32"))
    ]  # fmt: skip
    if not estimates:
        return []
    lower = sum(one.high is not None and one.high < 0 for one in estimates)
    which = (
        f"the AUC of {lower} of {len(estimates)} networks, at 95 % each"
        if lower
        else "no network's AUC by more than its interval"
    )
    heading = f"On phantoms, INT8 lowers {which}"
    drawn = forest(heading, "AUC of INT8 minus that of FP32 on the same phantoms, with 95 % bootstrap intervals.",
                   "AUC of INT8 minus FP32's, on synthetic phantoms", sorted(estimates, key=lambda one: one.value or 0),
                   strong=OURS, width=WIDE, ratio=False, line_at=0.0)  # fmt: skip
    return [finding(heading, drawn, "", legend(_KEY))]


def _roc(rows: Sequence[Row]) -> list[Markup]:
    curves = [
        Series([Point(x, y) for x, y in zip(row["roc"]["fpr"], row["roc"]["tpr"], strict=True)],
               _colour(row["network"]), shape="", strong=row["network"] == OURS)
        for row in _ours_last(rows) if dig(row, "roc", "fpr")
    ]  # fmt: skip
    heading = "ROC curves, on phantoms"
    return [_square(heading, "True against false positive rate.", "false positive rate", "true positive rate", curves)]


def _calibration(rows: Sequence[Row]) -> list[Markup]:
    curves = [
        Series(
            [Point(x, y, f"{row['network']}: predicted {x:.2f}, observed {y:.2f}, {n} phantoms")
             for x, y, n in zip(*(row["calibration_curve"][key] for key in ("predicted", "observed", "count")),
                                strict=True)],
            _colour(row["network"]), shape="circle" if row["network"] == OURS else "", strong=row["network"] == OURS,
        )
        for row in _ours_last(rows) if dig(row, "calibration_curve", "predicted")
    ]  # fmt: skip
    heading = "Calibration, on phantoms: on the diagonal, probabilities are what they say"
    return [_square(heading, "Observed share against predicted probability.", "predicted probability",
                    "observed share", curves)]  # fmt: skip


def _ours_last(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: ("baseline", "variant", "ours").index(_colour(row["network"])))


def _square(heading: str, description: str, across: str, up: str, curves: Sequence[Series]) -> Markup:
    width, height = _SIZE
    x, y = linear_axis((0.0, 1.0), 44, width - 16), linear_axis((0.0, 1.0), height - 46, 34)
    drawn = xy_plot(heading, description, (x, across), (y, up), curves, _SIZE, [((0.0, 0.0), (1.0, 1.0))])
    return finding(heading, drawn, "", legend(_KEY))
