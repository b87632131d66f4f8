from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourphase.runtime.errors import GeometryRefused, PhaseAmbiguous, PhaseMissing, UsageError
from fourphase.runtime.geometry import Region
from fourphase.runtime.phase_tokens import CLASSES, class_of_description, no_phase_word
from fourphase.runtime.phases import PhaseMatch, assign_phases
from fourphase.runtime.study import read_study
from tests.support.dicom import stored_values, uid, write_phases, write_series

PHASES = ("NC", "ART", "PV", "DL")
#: No evidence but the times: what an anonymiser leaves.
BARE: dict[str, Any] = {"SeriesDescription": None}


def assign(folder: Path, phases: Sequence[str] = PHASES, **overrides: str) -> dict[str, PhaseMatch]:
    return assign_phases(read_study(folder), phases, overrides)[0]


def notices(folder: Path, phases: Sequence[str] = PHASES, **overrides: str) -> set[str]:
    return {notice.key for notice in assign_phases(read_study(folder), phases, overrides)[1]}


def numbers(matches: Mapping[str, PhaseMatch]) -> dict[str, int | None]:
    return {phase: match.series.number for phase, match in matches.items()}


def evidence(matches: Mapping[str, PhaseMatch]) -> dict[str, tuple[str, ...]]:
    return {phase: match.evidence for phase, match in matches.items()}


def add(folder: Path, number: int, slices: int = 8, **elements: Any) -> None:
    """One more series."""
    defaults = {"SeriesInstanceUID": uid(number), "SeriesNumber": number}
    write_series(folder / f"s{number}", stored_values((slices, 16, 16), number), **{**defaults, **elements})


def ambiguous(folder: Path, phases: Sequence[str] = PHASES, **overrides: str) -> PhaseAmbiguous:
    with pytest.raises(PhaseAmbiguous) as caught:
        assign(folder, phases, **overrides)
    assert caught.value.code == 13
    assert caught.value.table
    return caught.value


# ---- words


WORDS = {
    "NC": """Abd Nativ 2.5|NON CON|noncontrast|non-contrast|Without|W/O|PLAIN|unenhanced|native|Pre contrast|C- 5.0|
        ohne KM|sans inj|sans injection|sin contraste|senza mdc|basale|sem contraste|腹部平扫|平掃|単純|조영전|
        NATIV_ABD|Nativphase""",
    "ART": """art|Leber arteriell|Arterial phase|artérielle|fase arteriosa|HAP|AP|late art|Late Arterial|LATE-ART|
        spätarteriell|动脉期|動脈相|동맥기|ART1.5|Abd_art_2.5|artériel tardif""",
    "PV": """portal|PVP|portal venous|portalvenös|Abd portalvenoes 2.5|portale|venous|veineux|fase venosa|venoso|
        Liver 70 s|70s|门脉期|门静脉期|静脉期|門脈相|문맥기|PORTAL-VENOUS|ｐｏｒｔａｌ""",
    "DL": """delay|DELAYED 3 MIN|late|equilibrium|spät|Spaetphase|tardif|fase tardiva|tardivo|retard|3 min|5min|180 s|
        延迟期|平衡期|遅延相|지연기|３ＭＩＮ""",
}
NO_WORD = """Abdomen|w/o & w|W/O and W|w/wo|wwo|with and without|C-/C+|LIVER NC/ART/PV/DL|portal delayed|artifact|
    artery|lateral|C-spine|B70s|13 min|0.5 min|post contrast|with contrast|smart|chart|relate|plate|carte|spatial|
    DL recon|mit und ohne KM"""
NO_PHASE = """Scout|TOPOGRAM|Topo|localizer|Surview|Dose Report|rapport|Smart Prep|smartprep|Monitoring|PreMonitoring|
    test bolus|bolus tracking|art MPR|MIP|VRT|art cor|Sag 2.0|lung|Bone|perfusion|iodine map|VMI|70keV|subtraction|
    Screen Save"""


def listed(texts: str) -> list[str]:
    return [text.strip() for text in texts.split("|")]


@pytest.mark.parametrize("phase", PHASES)
def test_words_of_facts(phase: str) -> None:
    found = {text: class_of_description(text) for text in listed(WORDS[phase])}
    assert {text: match and match[0] for text, match in found.items()} == dict.fromkeys(found, phase)


@pytest.mark.parametrize("description", ["", *listed(NO_WORD)])
def test_no_word_or_several(description: str) -> None:
    assert class_of_description(description) is None


@pytest.mark.parametrize("description", listed(NO_PHASE))
def test_words_of_no_phase(description: str) -> None:
    assert no_phase_word(description)


@pytest.mark.parametrize("description", ["cortex", "coronary", "lungworm", "simple", "monitored", "compression"])
def test_words_are_whole(description: str) -> None:
    assert no_phase_word(description) is None


@given(st.text(max_size=40))
def test_only_known_words_leave_a_description(text: str) -> None:
    match = class_of_description(text)
    assert match is None or (match[0] in CLASSES and class_of_description(match[1]) == match)


# ---- evidence


def test_descriptions_in_four_languages(tmp_path: Path) -> None:
    words = {"NC": "sin contraste", "ART": "动脉期", "PV": "portal venous", "DL": "tardif"}
    for phase, word in words.items():
        write_phases(tmp_path, [phase], SeriesDescription=word, SpecificCharacterSet="ISO_IR 192")
    matches = assign(tmp_path)
    assert numbers(matches) == {"NC": 2, "ART": 3, "PV": 4, "DL": 5}
    assert evidence(matches) == {phase: (f"description:{word}",) for phase, word in words.items()}


@pytest.mark.parametrize(
    ("phase", "value"),
    [("NC", "PRE_CONTRAST"), ("ART", "ARTERIAL"), ("PV", "PORTAL_VENOUS"), ("PV", "VENOUS"), ("DL", "DELAYED")],
)
def test_agent_phase(tmp_path: Path, phase: str, value: str) -> None:
    add(tmp_path, 2, ContrastBolusAgentPhase=value)
    assert evidence(assign(tmp_path, [phase])) == {phase: (f"agent_phase:{value.lower()}",)}


@pytest.mark.parametrize(
    ("delay", "phase"),
    [(-1, "NC"), (-3600, "NC"), (0, None), (14, None), (15, "ART"), (49, "ART"), (50, None), (51, "PV"), (110, "PV"),
     (111, None), (119, None), (120, "DL"), (600, "DL")],
)  # fmt: skip
@pytest.mark.parametrize("bolus", [43_200, 10, 86_390])
def test_injection_delay(tmp_path: Path, delay: int, phase: str | None, bolus: int) -> None:
    """Around noon and across midnight; SeriesTime and ContentTime must not matter."""

    def clock(seconds: int) -> str:
        seconds %= 86_400
        return f"{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}.500000"

    later = clock(bolus + 30)
    times: dict[str, Any] = {"AcquisitionTime": clock(bolus + delay), "ContrastBolusStartTime": clock(bolus)}
    add(tmp_path, 2, ContrastBolusAgent="Ultravist", SeriesTime=later, ContentTime=later, **times)
    if phase is None:
        assert "unknown" in str(ambiguous(tmp_path, ["ART"]).table)
    else:
        assert evidence(assign(tmp_path, [phase])) == {phase: (f"injection_delay:{delay}s",)}


def test_agent_none_is_native(tmp_path: Path) -> None:
    add(tmp_path, 2, ContrastBolusAgent="NONE")
    assert evidence(assign(tmp_path, ["NC"])) == {"NC": ("agent:none",)}


def test_order_of_four(tmp_path: Path) -> None:
    write_phases(tmp_path, **BARE)
    matches = assign(tmp_path)
    assert numbers(matches) == {"NC": 2, "ART": 3, "PV": 4, "DL": 5}
    assert set(evidence(matches).values()) == {("order",)}


def test_order_completes_descriptions_and_agrees(tmp_path: Path) -> None:
    write_phases(tmp_path, ["NC", "PV", "DL"])
    write_phases(tmp_path, ["ART"], **BARE)
    assert evidence(assign(tmp_path)) == {
        "NC": ("description:nativ", "order"), "ART": ("order",),
        "PV": ("description:portalvenos", "order"), "DL": ("description:spatphase", "order"),
    }  # fmt: skip


def test_order_across_midnight(tmp_path: Path) -> None:
    for number, time in [(2, "235000"), (3, "235935"), (4, "000010"), (5, "000215")]:
        add(tmp_path, number, AcquisitionTime=time, AcquisitionDate=None)
    assert numbers(assign(tmp_path)) == {"NC": 2, "ART": 3, "PV": 4, "DL": 5}


def test_order_by_date_across_midnight(tmp_path: Path) -> None:
    for number, date, time in [
        (2, "20200101", "235000"),
        (3, "20200101", "235935"),
        (4, "20200102", "000010"),
        (5, "20200102", "000215"),
    ]:
        add(tmp_path, number, AcquisitionTime=time, AcquisitionDate=date)
    assert numbers(assign(tmp_path)) == {"NC": 2, "ART": 3, "PV": 4, "DL": 5}


def test_order_needs_equal_coverage(tmp_path: Path) -> None:
    write_phases(tmp_path, ["NC", "ART", "PV"], **BARE)
    add(tmp_path, 9, slices=4, AcquisitionTime="102215")
    assert ambiguous(tmp_path).key == "phase_without_evidence"


def test_order_needs_four_candidates(tmp_path: Path) -> None:
    write_phases(tmp_path, **BARE)
    add(tmp_path, 9, AcquisitionTime="103000")
    assert ambiguous(tmp_path).key == "phase_without_evidence"


def test_order_needs_distinct_times(tmp_path: Path) -> None:
    write_phases(tmp_path, ["NC", "ART", "PV"], **BARE)
    add(tmp_path, 9, AcquisitionTime="102010")
    assert ambiguous(tmp_path).key == "phase_without_evidence"


def test_no_phase_series_do_not_count_as_candidates(tmp_path: Path) -> None:
    write_phases(tmp_path, **BARE)
    add(tmp_path, 9, SeriesDescription="Abd lung 1.0", AcquisitionTime="103000")
    assert numbers(assign(tmp_path)) == {"NC": 2, "ART": 3, "PV": 4, "DL": 5}


def test_protocol_name_and_study_description_are_no_evidence(tmp_path: Path) -> None:
    add(tmp_path, 2, ProtocolName="arterial", StudyDescription="arterial", SeriesDescription="Abdomen")
    ambiguous(tmp_path, ["ART"])


def test_three_phases_of_four(tmp_path: Path) -> None:
    write_phases(tmp_path)
    assert numbers(assign(tmp_path, ["ART", "PV", "DL"])) == {"ART": 3, "PV": 4, "DL": 5}
    assert list(assign(tmp_path, ["DL", "ART"])) == ["DL", "ART"]


def test_three_phases_alone(tmp_path: Path) -> None:
    write_phases(tmp_path, ["ART", "PV", "DL"])
    assert numbers(assign(tmp_path, ["ART", "PV", "DL"])) == {"ART": 3, "PV": 4, "DL": 5}


def test_order_serves_three_phase_models_only_with_four_series(tmp_path: Path) -> None:
    write_phases(tmp_path, **BARE)
    assert numbers(assign(tmp_path, ["ART", "PV", "DL"])) == {"ART": 3, "PV": 4, "DL": 5}
    for path in (tmp_path / "s2").iterdir():
        path.unlink()
    ambiguous(tmp_path, ["ART", "PV", "DL"])


# ---- missing


@pytest.mark.parametrize("missing", PHASES)
def test_a_missing_phase_is_12_and_says_what_was_found(tmp_path: Path, missing: str) -> None:
    write_phases(tmp_path, [phase for phase in PHASES if phase != missing])
    with pytest.raises(PhaseMissing) as caught:
        assign(tmp_path)
    assert f"no series for phase {missing};" in caught.value.message
    assert all(
        f"{phase} (series {number})" in caught.value.message
        for number, phase in enumerate(PHASES, 2)
        if phase != missing
    )
    assert f"--phase {missing}=" in caught.value.hint


def test_three_series_without_words_are_12(tmp_path: Path) -> None:
    write_phases(tmp_path, ["NC", "ART", "PV"], **BARE)
    with pytest.raises(PhaseMissing, match="found: none"):
        assign(tmp_path)


def test_one_word_for_all_series_is_13(tmp_path: Path) -> None:
    """Four acquisitions called "portal": nothing is missing, but only a person can tell them apart."""
    write_phases(tmp_path, SeriesDescription="MARKER portal")
    error = ambiguous(tmp_path)
    assert error.key == "times_contradict"
    assert "MARKER" not in f"{error.message}{error.hint}{error.table}"


# ---- contradictions


def test_descriptions_against_delays_are_13(tmp_path: Path) -> None:
    write_phases(tmp_path, ContrastBolusStartTime="101900")
    add(
        tmp_path,
        3,
        SeriesDescription="delayed",
        AcquisitionTime="101935",
        ContrastBolusStartTime="101900",
        SeriesInstanceUID=uid("series", "ART"),
    )
    error = ambiguous(tmp_path)
    assert error.key == "evidence_contradicts"


def test_descriptions_against_times_are_13(tmp_path: Path) -> None:
    """Every description is clear, but the delayed series was acquired first."""
    write_phases(tmp_path, ["NC", "ART", "PV"])
    write_phases(tmp_path, ["DL"], AcquisitionTime="101400")
    error = ambiguous(tmp_path)
    assert error.key == "times_contradict"
    assert "--phase NC=2 --phase ART=3 --phase PV=4 --phase DL=5" in error.hint


def test_swapped_descriptions_are_13_and_named(tmp_path: Path) -> None:
    """Two phases are claimed twice or by the wrong series, two by none: the order objects."""
    write_phases(tmp_path, ["ART", "DL"])
    write_phases(tmp_path, ["PV"], SeriesDescription="arterial")
    write_phases(tmp_path, ["NC"], SeriesDescription="delayed")
    error = ambiguous(tmp_path)
    assert error.key == "times_contradict"
    assert error.message.endswith("contradict each other: series 2, series 4")
    assert error.hint.endswith("--phase NC=2 --phase ART=3 --phase PV=4 --phase DL=5")


def test_two_phases_at_one_time_are_13(tmp_path: Path) -> None:
    write_phases(tmp_path, ["NC", "ART", "DL"])
    write_phases(tmp_path, ["PV"], AcquisitionTime="101935")
    assert ambiguous(tmp_path).key == "times_contradict"


@pytest.mark.parametrize("time", [None, "000000"])
def test_unknown_or_overwritten_times_are_told(tmp_path: Path, time: str | None) -> None:
    write_phases(tmp_path, AcquisitionTime=time, ContrastBolusStartTime="101900")
    assert evidence(assign(tmp_path))["PV"] == ("description:portalvenos",)
    assert notices(tmp_path) == {"times_unknown"}


def test_two_acquisitions_of_a_phase_are_13(tmp_path: Path) -> None:
    write_phases(tmp_path)
    add(tmp_path, 7, SeriesDescription="late art", AcquisitionTime="101950")
    error = ambiguous(tmp_path)
    assert error.key == "several_acquisitions"
    assert {row["series"] for row in error.table} == {"2", "3", "4", "5", "7"}


def test_table_and_hint_settle_it(tmp_path: Path) -> None:
    write_phases(tmp_path, ["NC", "DL"])
    write_phases(tmp_path, ["ART", "PV"], **BARE)
    add(tmp_path, 8, AcquisitionTime="101950")
    error = ambiguous(tmp_path)
    assert [row["series"] for row in error.table] == ["2", "3", "8", "4", "5"]
    assert error.table[1] == {
        "series": "3", "slices": "8", "start": "275 s", "thickness": "2.5 mm", "phase": "unknown", "evidence": "none",
    }  # fmt: skip
    assert error.hint.endswith("--phase NC=2 --phase ART=3 --phase PV=8 --phase DL=5")
    assert numbers(assign(tmp_path, ART="3", PV="4")) == {"NC": 2, "ART": 3, "PV": 4, "DL": 5}


# ---- reconstructions


@pytest.mark.parametrize(
    ("decisive", "worse"),
    [
        ("image_type", {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}),
        ("kernel", {"ConvolutionKernel": "B70f"}),
        ("kernel", {"ConvolutionKernel": "FC52"}),
        ("kernel", {"ConvolutionKernel": "LUNG"}),
        ("kernel", {"ConvolutionKernel": "UNHEARD OF"}),
        ("thickness", {"SliceThickness": "5"}),
        ("series_number", {}),
        ("geometry", {"PixelSpacing": lambda index: [1.5, 1.0 + 0.1 * (index == 3)]}),
    ],
)
def test_preferred_reconstruction(tmp_path: Path, decisive: str, worse: dict[str, Any]) -> None:
    write_phases(tmp_path)
    number = 9 if decisive == "series_number" else 1  # the lower number would win otherwise
    add(tmp_path, number, SeriesDescription="arteriell", AcquisitionTime="101935", **worse)
    matches = assign(tmp_path)
    assert matches["ART"].series.number == 3
    assert matches["ART"].evidence == ("description:arteriell", f"preferred:{decisive}")
    assert "reconstruction_chosen" in notices(tmp_path)


def test_the_reconstruction_that_covers_the_box_is_preferred(tmp_path: Path) -> None:
    write_phases(tmp_path)
    add(tmp_path, 9, slices=20, SeriesDescription="arteriell", AcquisitionTime="101935")
    region = Region((-5.0, -5.0, 20.0), (5.0, 5.0, 30.0))
    matches, _ = assign_phases(read_study(tmp_path), PHASES, {}, region=region)
    assert (matches["ART"].series.number, matches["ART"].evidence[-1]) == (9, "preferred:coverage")
    assert assign(tmp_path)["ART"].series.number == 3


def test_a_real_tie_is_13(tmp_path: Path) -> None:
    write_phases(tmp_path)
    add(tmp_path / "again", 3, SeriesDescription="arteriell", AcquisitionTime="101935")
    assert ambiguous(tmp_path).key == "several_reconstructions"


# ---- overrides


def test_overrides_by_uid_number_and_folder(tmp_path: Path) -> None:
    write_phases(tmp_path, **BARE)
    for spec in (uid("series", "PV"), "4", "s4", "s4/"):
        matches = assign(tmp_path, ["ART"], ART=spec)
        assert numbers(matches) == {"ART": 4}
        assert matches["ART"].evidence == ("override",)


def test_a_number_wins_over_a_folder_of_that_name(tmp_path: Path) -> None:
    write_phases(tmp_path)
    (tmp_path / "s5").rename(tmp_path / "3")
    assert numbers(assign(tmp_path, ART="3"))["ART"] == 3


def test_one_override_leaves_the_rest_to_evidence(tmp_path: Path) -> None:
    write_phases(tmp_path)
    add(tmp_path, 7, SeriesDescription="late art", AcquisitionTime="101950")
    assert numbers(assign(tmp_path, ART="7")) == {"NC": 2, "ART": 7, "PV": 4, "DL": 5}


def test_overrides_win_over_tags_and_times_with_a_notice(tmp_path: Path) -> None:
    write_phases(tmp_path)
    matches = assign(tmp_path, NC="5", ART="4", PV="3", DL="2")
    assert numbers(matches) == {"NC": 5, "ART": 4, "PV": 3, "DL": 2}
    assert notices(tmp_path, NC="5", ART="4", PV="3", DL="2") == {
        "override_contradicts_tags",
        "override_contradicts_times",
    }


def test_an_override_against_the_times_of_others_is_13(tmp_path: Path) -> None:
    write_phases(tmp_path)
    add(tmp_path, 9, AcquisitionTime="103000")
    assert ambiguous(tmp_path, ART="9").key == "times_contradict"


def test_an_override_may_name_an_excluded_series(tmp_path: Path) -> None:
    write_phases(tmp_path, ["NC", "PV", "DL"])
    add(tmp_path, 9, SeriesDescription="MPR ax", AcquisitionTime="101935")
    assert numbers(assign(tmp_path, ART="9"))["ART"] == 9
    assert notices(tmp_path, ART="9") == {"override_contradicts_tags"}


def test_a_faulty_series_stops_only_when_chosen(tmp_path: Path) -> None:
    write_phases(tmp_path)
    add(tmp_path, 9, SeriesDescription="lung", PixelSpacing=[0, 0])
    assert numbers(assign(tmp_path)) == {"NC": 2, "ART": 3, "PV": 4, "DL": 5}
    with pytest.raises(GeometryRefused, match="series 9"):
        assign(tmp_path, NC="9")


def test_notices_of_chosen_series_are_passed_on(tmp_path: Path) -> None:
    write_phases(tmp_path, LossyImageCompression="01")
    assert notices(tmp_path) == {"lossy_compression"}


def test_override_mistakes(tmp_path: Path) -> None:
    write_phases(tmp_path, ["NC", "ART", "PV"])
    with pytest.raises(UsageError, match="model's phases"):
        assign(tmp_path, ["NC", "ART"], DL="3")
    with pytest.raises(UsageError, match="one series for two phases"):
        assign(tmp_path, ["NC", "ART"], NC="3", ART="3")
    for spec in ("77", "", "9" * 5000, "²"):
        with pytest.raises(PhaseMissing) as caught:
            assign(tmp_path, NC=spec)
        assert caught.value.key == "override_not_found"


def test_acquisitions_of_one_series_are_named_by_part(tmp_path: Path) -> None:
    write_phases(tmp_path, ["NC", "PV", "DL"])
    for number, time in [(31, "101935"), (32, "101950")]:
        tags: dict[str, Any] = {"SeriesInstanceUID": uid("both"), "SeriesNumber": 3, "SeriesDescription": "arteriell"}
        add(tmp_path, number, AcquisitionNumber=number, AcquisitionTime=time, **tags)
    assert {row["series"] for row in ambiguous(tmp_path).table} == {"2", "3#1", "3#2", "4", "5"}
    assert ambiguous(tmp_path, ART="3").key == "override_ambiguous"
    chosen = assign(tmp_path, ART="3#2")["ART"].series
    assert (chosen.part, chosen.folder) == (2, "s32")
