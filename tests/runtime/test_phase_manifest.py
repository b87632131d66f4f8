from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.runtime.console import print_error
from fourphase.runtime.errors import InputMissing, PhaseAmbiguous, PhaseMissing, UsageError
from fourphase.runtime.phase_manifest import SCHEMA, PhaseManifest, SiteRule, read_manifest
from fourphase.runtime.phases import PhaseMatch, assign_phases
from fourphase.runtime.report import print_result
from fourphase.runtime.result import PhaseRecord
from fourphase.runtime.study import read_study
from tests.runtime.test_result import result
from tests.support.dicom import write_phases

PHASES = ("NC", "ART", "PV", "DL")
#: What a site calls its phases; none of it is a word of ours. "Oberbauch B" is the delayed one here.
NAMES = {"NC": "Oberbauch D", "ART": "Oberbauch_A 2.5", "PV": "Oberbauch Ç", "DL": "OBERBAUCH B"}
BOX = {"min": [0, 0, 0], "max": [1, 1, 1], "margin_mm": 10, "source": "json"}
RULES = """
[NC]
descriptions = ["oberbauch d"]
[ART]
descriptions = ["Oberbauch A*"]
[PV]
descriptions = ["Oberbauch C"]
[DL]
descriptions = ["Oberbauch B", "something else"]
"""


def manifest(folder: Path, text: str = RULES) -> PhaseManifest:
    path = folder / "phases.toml"
    path.write_text(f'schema = "{SCHEMA}"\n{text}', encoding="utf-8")
    return read_manifest(path)


def study(folder: Path, names: dict[str, str] = NAMES) -> Path:
    """The four phases with a site's descriptions, and times that lie in the order of acquisition."""
    for phase, name in names.items():
        write_phases(folder, [phase], SeriesDescription=name)
    return folder


def matched(folder: Path, site: PhaseManifest | None, **overrides: str) -> tuple[dict[str, PhaseMatch], set[str]]:
    matches, notices = assign_phases(read_study(folder), PHASES, overrides, site=site)
    return matches, {notice.key for notice in notices}


def test_a_sites_names_are_understood_and_said_to_be_the_evidence(tmp_path: Path) -> None:
    folder = study(tmp_path / "study")
    matches, notices = matched(folder, manifest(tmp_path))
    assert {phase: match.series.number for phase, match in matches.items()} == {"NC": 2, "ART": 3, "PV": 4, "DL": 5}
    assert matches["ART"].evidence == ("site:Oberbauch A*",)
    assert notices == set()


def test_without_the_file_the_same_study_rests_on_the_order_alone(tmp_path: Path) -> None:
    folder = study(tmp_path / "study")
    assert matched(folder, None)[0]["ART"].evidence == ("order",)


def test_a_rule_replaces_our_words(tmp_path: Path) -> None:
    """A site that calls its arterial phase "early venous" and its venous one "Lung kernel venous"."""
    names = {"NC": "nativ", "ART": "frueh venoes", "PV": "Lung venoes", "DL": "spaet"}
    folder = study(tmp_path / "study", names)
    with pytest.raises((PhaseAmbiguous, PhaseMissing)):
        matched(folder, None)
    site = manifest(tmp_path, '[ART]\ndescriptions = ["frueh*"]\n[PV]\ndescriptions = ["lung ven*"]')
    matches, _ = matched(folder, site)
    assert matches["ART"].evidence == ("site:frueh*",)
    assert matches["PV"].evidence == ("site:lung ven*",)
    assert matches["NC"].evidence == ("description:nativ",)


def test_ignored_series_are_no_phase(tmp_path: Path) -> None:
    folder = study(tmp_path / "study", {"NC": "plain", "ART": "art", "PV": "portal", "DL": "late"})
    more = {"SeriesInstanceUID": "1.2.3", "SeriesNumber": 9, "AcquisitionTime": "103000"}
    write_phases(folder / "more", ["ART"], SeriesDescription="art research", **more)
    with pytest.raises(PhaseAmbiguous):
        matched(folder, None)
    matches, _ = matched(folder, manifest(tmp_path, '[ignore]\ndescriptions = ["*research*"]'))
    assert matches["ART"].series.number == 3
    assert matches["ART"].evidence == ("description:art",)


def test_tags_against_a_rule_are_told(tmp_path: Path) -> None:
    """The file wins over what the tags say of the agent; the order of times is still held."""
    folder = study(tmp_path / "study", {**NAMES, "NC": "other"})
    write_phases(folder, ["NC"], SeriesDescription="Oberbauch D", ContrastBolusAgentPhase="DELAYED")
    matches, notices = matched(folder, manifest(tmp_path))
    assert matches["NC"].evidence == ("site:oberbauch d", "agent_phase:delayed")
    assert notices == {"site_rule_contradicts_tags"}


def test_times_are_never_overruled(tmp_path: Path) -> None:
    swapped = {**NAMES, "ART": NAMES["PV"], "PV": NAMES["ART"]}
    with pytest.raises(PhaseAmbiguous) as caught:
        matched(study(tmp_path / "study", swapped), manifest(tmp_path))
    assert caught.value.key == "times_contradict"


def test_an_option_wins_over_the_file(tmp_path: Path) -> None:
    folder = study(tmp_path / "study")
    matches, notices = matched(folder, manifest(tmp_path), ART="4", PV="3")
    assert matches["ART"].series.number == 4
    assert notices == {"override_contradicts_tags", "override_contradicts_times"}


def test_a_description_of_two_phases_is_a_fault_of_the_file(tmp_path: Path) -> None:
    site = manifest(tmp_path, '[ART]\ndescriptions = ["ober*"]\n[PV]\ndescriptions = ["*bauch c"]')
    with pytest.raises(UsageError, match=r"'ober\*' \(ART\) and '\*bauch c' \(PV\)") as caught:
        matched(study(tmp_path / "study"), site)
    assert caught.value.key == "phases_file_conflict"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[ART", "not valid TOML"),
        ('schema = "fourphase.phases/2"', "another schema"),
        (f'schema = "{SCHEMA}"\n[ARTERIAL]\ndescriptions = ["x"]', "unknown entries: ARTERIAL"),
        (f'schema = "{SCHEMA}"\n[ART]\npatterns = ["x"]', r"exactly one key in \[ART\]"),
        (f'schema = "{SCHEMA}"\n[ART]\ndescriptions = "x"', "a list of texts"),
        (f'schema = "{SCHEMA}"\n[ART]\ndescriptions = ["x", "* ?"]', "fits every series"),
        (f'schema = "{SCHEMA}"\nART = 1', r"exactly one key in \[ART\]"),
    ],
)
def test_a_wrong_file_is_2(tmp_path: Path, text: str, cause: str) -> None:
    path = tmp_path / "phases.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=cause):
        read_manifest(path)


def test_no_such_file_is_10(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputMissing):
            read_manifest(path)


@given(raw=st.binary(max_size=300))
def test_any_bytes_are_a_file_or_2(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(raw)
    with pytest.raises(UsageError):
        read_manifest(path)


def test_an_empty_description_fits_nothing() -> None:
    assert PhaseManifest((SiteRule("ART", "a*"),)).rule_for("") is None


def test_a_pattern_that_looks_like_markup_is_printed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """rich would take [/a] for the end of a style, and fail."""
    print_result(result(phases={"NC": PhaseRecord("1.2", 1, 8, ("site:*[/a]nc[b]*",))}, box=BOX))
    assert "site:*[/a]nc[b]*" in capsys.readouterr().out
    print_error(PhaseAmbiguous("which", "this", table=[{"evidence": "site:[/x]"}]))
    assert "site:[/x]" in capsys.readouterr().err
