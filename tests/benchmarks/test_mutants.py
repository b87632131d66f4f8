import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.filebase import DicomBytesIO
from typer.testing import CliRunner

from fourphase.benchmarks.cli import app
from fourphase.benchmarks.mutants.check import Bench, Verdict
from fourphase.benchmarks.mutants.cli import FORBIDDEN, summary
from fourphase.benchmarks.mutants.elements import encoded, layout_of, rebuilt
from fourphase.benchmarks.mutants.kinds import KINDS, make_mutant
from fourphase.benchmarks.mutants.mutant import Change, Content, Mutant, phase_files
from fourphase.benchmarks.mutants.pool import run_mutants
from fourphase.benchmarks.mutants.study import MARKER, PHASES, VARIANTS, BaseStudies, BaseStudy
from fourphase.runtime import pipeline, series, series_checks
from fourphase.runtime.errors import Notice
from fourphase.runtime.pixels import read_hu

POSITION, SPACING, SLOPE = 0x00200032, 0x00280030, 0x00281053


@pytest.fixture(scope="module")
def bases() -> Mapping[str, BaseStudy]:
    return BaseStudies()


@pytest.fixture(scope="module")
def bench(bases: Mapping[str, BaseStudy], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), bases)


def mutant(files: dict[str, Content], variant: str = "explicit") -> Mutant:
    return Mutant(0, variant, "test", Change("test", files))


def with_value(base: BaseStudy, name: str, tag: int, value: bytes) -> bytes:
    layout = layout_of(base.files[name])
    (element,) = (one for one in layout.elements if one.tag == tag)
    new = encoded(tag, element.vr, value, little=True, implicit=False)
    return rebuilt(layout, [(element.start, element.end, new)])


def shifted(base: BaseStudy, phase: str, indices: range | list[int], by: tuple[float, float, float]) -> Mutant:
    files: dict[str, Content] = {}
    for index in indices:
        name = phase_files(base, phase)[index]
        value = "\\".join(f"{number:.6f}" for number in base.truth.positions[index] + by).encode()
        files[name] = with_value(base, name, POSITION, value)
    return mutant(files, base.variant.name)


# ---- the sound studies


def test_sound_studies_hold_what_they_say(bases: Mapping[str, BaseStudy]) -> None:
    """Read by pydicom: positions, and the same pixels in every encoding of one geometry."""
    stored: dict[str, Any] = {}
    for name in ("explicit", "big_endian", "deflated", "rle", "jpeg_lossless", "jpeg_ls", "jpeg_2000"):
        files = phase_files(bases[name], "ART")
        dataset = pydicom.dcmread(DicomBytesIO(bases[name].files[files[3]]))
        assert dataset.file_meta.TransferSyntaxUID == VARIANTS[name].transfer_syntax
        assert dataset.ImagePositionPatient == pytest.approx(bases[name].truth.positions[3].tolist())
        stored[name] = dataset.pixel_array
    assert all((values == stored["explicit"]).all() for values in stored.values())
    assert 900 < stored["explicit"].mean() < 1300
    enhanced = pydicom.dcmread(DicomBytesIO(next(iter(bases["enhanced"].files.values()))))
    groups = enhanced.PerFrameFunctionalGroupsSequence
    places = [group.PlanePositionSequence[0].ImagePositionPatient for group in groups]
    assert np.array(places, dtype=float) == pytest.approx(bases["enhanced"].truth.positions)


def test_every_element_is_found(bases: Mapping[str, BaseStudy]) -> None:
    """Against pydicom: the same tags in the same order, and the file again if nothing is edited."""
    for base in bases.values():
        content = next(iter(base.files.values()))
        dataset = pydicom.dcmread(DicomBytesIO(content))
        expected = [int(element.tag) for part in (dataset.file_meta, dataset) for element in part.iterall()]
        layout = layout_of(content)
        assert [element.tag for element in layout.elements] == expected
        assert layout.deflated or rebuilt(layout, []) == content


def test_a_mutant_is_known_by_seed_and_number(bases: Mapping[str, BaseStudy]) -> None:
    made = [make_mutant(bases, 3, number) for number in range(150)]
    assert made == [make_mutant(bases, 3, number) for number in range(150)]
    assert {one.kind for one in made} == set(KINDS)
    same = [
        dict(one.change.files).items() <= bases[one.variant].files.items() for one in made if not one.change.archive
    ]
    assert sum(same) < 0.1 * len(made)  # a value may be replaced by itself


# ---- the whole


def test_a_small_run_has_nothing_forbidden() -> None:
    result = CliRunner().invoke(app, ["mutants", "--count", "100", "--seed", "5", "--quiet"], catch_exceptions=False)
    body = json.loads(result.stdout.splitlines()[-1])
    assert body["forbidden"] == dict.fromkeys(FORBIDDEN, 0), body["numbers"]
    assert result.exit_code == 0
    assert sum(body["outcomes"].values()) == body["count"] == 100
    assert sum(body["refused"].values()) == body["outcomes"]["refused"] > 20
    assert body["outcomes"]["unchanged"] > 20


def test_one_mutant_is_repeated_and_kept(tmp_path: Path, bases: Mapping[str, BaseStudy]) -> None:
    arguments = ["mutants", "--only", "5", "--seed", "0", "--keep", str(tmp_path / "kept"), "--quiet"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    one = make_mutant(bases, 0, 5)
    assert one.change.what in result.stdout
    kept = {path.relative_to(tmp_path / "kept/study").as_posix(): path for path in tmp_path.rglob(f"{MARKER}*/*/*")}
    assert {name: path.read_bytes() for name, path in kept.items() if path.is_file()} == {
        **bases[one.variant].files,
        **one.change.files,
    }


# ---- the oracle: a weakened reader is caught


def test_nothing_changed_is_unchanged(bench: Bench) -> None:
    assert bench.check(mutant({})).outcome == "unchanged"
    assert bench.check(mutant({}, "jpeg_ls")).outcome == "unchanged"


def test_a_missing_slice_accepted_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = mutant({phase_files(bench.bases["explicit"], "PV")[6]: None})
    assert bench.check(gone).detail == "14 slices_missing"
    monkeypatch.setattr(pipeline, "check_coverage", lambda series, region: ())
    verdict = bench.check(gone)
    assert (verdict.outcome, verdict.off_hu > 5) == ("wrong", True)
    assert "[6]" in verdict.detail


def test_a_missing_end_accepted_without_a_word_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    names = phase_files(bench.bases["explicit"], "PV")
    gone = mutant(dict.fromkeys(names[9:]))
    assert bench.check(gone).outcome == "missing, said"
    monkeypatch.setattr(pipeline, "check_coverage", lambda series, region: ())
    assert bench.check(gone).outcome == "wrong"


def test_every_second_slice_accepted_without_a_word_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = mutant(dict.fromkeys(phase_files(bench.bases["explicit"], "NC")[::2]))
    assert bench.check(gone).outcome == "missing, said"
    monkeypatch.setattr(series, "_far_apart", lambda tags, grid: False)
    assert bench.check(gone).outcome == "wrong"


def test_a_displaced_slice_accepted_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = shifted(bench.bases["explicit"], "ART", [5], (3, 0, 0))
    assert bench.check(aside).detail == "14 slice_displaced"
    monkeypatch.setattr(series_checks, "_check_lateral", lambda geometry: None)
    assert bench.check(aside).outcome == "wrong"


def test_a_displacement_along_the_normal_accepted_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    further = shifted(bench.bases["explicit"], "ART", [5], (0, 0, 1.2))
    assert bench.check(further).detail == "14 slices_missing"
    monkeypatch.setattr(pipeline, "check_coverage", lambda series, region: ())
    assert bench.check(further).outcome == "wrong"


def test_another_spacing_accepted_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    base = bench.bases["explicit"]
    files: dict[str, Content] = {
        name: with_value(base, name, SPACING, b"1.7\\1.6") for name in phase_files(base, "DL")[:7]
    }
    assert bench.check(mutant(files)).detail == "14 mixed_pixel_spacing"
    monkeypatch.setattr(series_checks, "_check_uniform", lambda slices: None)
    assert bench.check(mutant(files)).outcome == "wrong"


def test_a_foreign_slice_accepted_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of ART takes the identity of PV and its neighbour's place; the one that lay there is gone."""
    base = bench.bases["explicit"]
    own, foreign = phase_files(base, "PV")[6], phase_files(base, "ART")[6]
    layouts = [layout_of(base.files[name]) for name in (own, foreign)]
    edits = []
    for tag in (0x0008103E, 0x0020000E, 0x00200011, 0x00200012, 0x00080032, 0x00080018):
        theirs, ours = (next(one for one in layout.elements if one.tag == tag) for layout in layouts)
        edits.append((ours.start, ours.end, layouts[0].data[theirs.start : theirs.end]))
    disguised = rebuilt(layouts[1], edits)
    verdict = bench.check(mutant({foreign: disguised, own: None}))
    assert verdict.detail == "14 slices_missing"  # ART lacks it
    monkeypatch.setattr(pipeline, "check_coverage", lambda series, region: ())
    verdict = bench.check(mutant({foreign: disguised, own: None}))
    assert (verdict.outcome, "foreign" in verdict.detail or "missing" in verdict.detail) == ("wrong", True)


def test_a_whole_phase_elsewhere_is_a_consistent_change(bench: Bench) -> None:
    base = bench.bases["explicit"]
    assert bench.check(shifted(base, "ART", range(12), (0, 0, 2))).outcome == "consistent change"
    assert bench.check(shifted(base, "ART", range(12), (0.2, 0, 0))).outcome == "within tolerance"


def test_scaling_and_pixels_are_told_apart(bench: Bench) -> None:
    base = bench.bases["explicit"]
    name = phase_files(base, "ART")[6]
    scaled = bench.check(mutant({name: with_value(base, name, SLOPE, b"1.05")}))
    assert (scaled.outcome, "rescale_differs" in scaled.detail) == ("scaling", True)
    spoilt = base.files[name][:-1200] + bytes(4) + base.files[name][-1196:]
    assert bench.check(mutant({name: spoilt})).outcome == "pixels"


def test_a_change_nothing_explains_is_unexplained(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.check(mutant({})).outcome == "unchanged"
    monkeypatch.setattr(pipeline, "read_hu", lambda series, window: read_hu(series, window) + np.int16(5))
    assert bench.check(mutant({})).outcome == "unexplained"


# ---- what is forbidden is seen


def test_a_reader_that_leaks_is_heard(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_study = pipeline.prepare_study

    def leaking(how: str) -> Any:
        def run(*arguments: Any) -> Any:
            if how == "print":
                print(f"reading {MARKER.lower()}")
            elif how == "log":
                logging.getLogger("elsewhere").debug("file %s", MARKER)
            elif how == "descriptor":
                os.write(2, MARKER.encode())
            prepared = prepare_study(*arguments)
            if how == "notice":
                object.__setattr__(prepared, "warnings", (Notice("x", f"patient {MARKER}"),))
            return prepared

        return run

    assert not bench.check(mutant({})).leak
    for how in ("print", "log", "descriptor", "notice"):
        monkeypatch.setattr(pipeline, "prepare_study", leaking(how))
        assert bench.check(mutant({})).leak, how


def test_a_reader_that_writes_or_raises_is_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def writing(request: pipeline.StudyRequest, *rest: Any) -> None:
        next(path for path in sorted(request.folder.rglob("*")) if path.is_file()).touch()
        raise ValueError("no FourphaseError")

    monkeypatch.setattr(pipeline, "prepare_study", writing)
    verdict = bench.check(mutant({}))
    assert (verdict.outcome, verdict.modified) == ("bug", True)
    assert "ValueError" in verdict.detail


WORKER = """
import sys, json, time, os
print("ready", flush=True)
for line in sys.stdin:
    number = int(line)
    if number == 2:
        os.abort()
    if number == 4:
        time.sleep(60)
    row = {"number": number, "variant": "rle", "kind": "zip", "what": "", "outcome": "unchanged", "detail": ""}
    print(json.dumps(row), flush=True)
"""


def test_workers_that_die_or_hang_are_counted_and_replaced() -> None:
    verdicts: list[Verdict] = []
    run_mutants(range(8), verdicts.append, workers=2, limit_s=1.5, command=[sys.executable, "-c", WORKER])
    outcomes = {verdict.number: verdict.outcome for verdict in verdicts}
    assert outcomes == {**dict.fromkeys(range(8), "unchanged"), 2: "crash", 4: "hang"}


def test_a_worker_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="does not start"):
        run_mutants(range(3), lambda verdict: None, command=[sys.executable, "-c", "raise SystemExit(3)"])


def test_the_summary_counts() -> None:
    rows = [("explicit", "wrong", False), ("jpeg_ls", "pixels", True), ("explicit", "pixels", False)]
    verdicts = [
        Verdict(number, variant, "zip", "", outcome, "", leak=leak)
        for number, (variant, outcome, leak) in enumerate(rows)
    ]
    body = summary(verdicts, 0, 1.0)
    assert Counter(body["outcomes"]) == {"wrong": 1, "codec corruption": 1, "pixels": 1}
    assert {name: count for name, count in body["forbidden"].items() if count} == {"wrong": 1, "leak": 1}
    assert body["numbers"] == {"wrong": [0], "codec corruption": [1], "leak": [1], "pixels": [2]}
    assert set(PHASES) == {"NC", "ART", "PV", "DL"}
