"""What a phantom study says about itself in its DICOM headers: languages, times, kernels, identifiers.

Pixels and files are `phantom_dicom`'s. Everything follows from the phantom's seed, UIDs included. Nothing in a header
or in the folder's names gives the diagnosis away, as in a real study.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom.uid import PYDICOM_ROOT_UID, UID, generate_uid

from fourphase.benchmarks.phantoms.phantom import PHASES, Phantom
from fourphase.benchmarks.phantoms.scan import Scan

__all__ = ["SeriesHeader", "StudyHeader", "make_header"]


@dataclass(frozen=True)
class _Language:
    """Phase names as archives hold them; `charset` is SpecificCharacterSet (0008,0005)."""

    charset: tuple[str, ...]
    descriptions: tuple[str, str, str, str]


_LANGUAGES = (
    _Language(("ISO_IR 100",), ("Liver w/o contrast", "Liver arterial", "Liver portal venous", "Liver delayed")),
    _Language(("ISO_IR 100",), ("ABD NON CON", "LATE ART", "PVP 70s", "DELAYED 3 MIN")),
    _Language(("ISO_IR 100",), ("Leber nativ", "Leber arteriell", "Leber portalvenös", "Leber Spätphase")),
    _Language(("ISO_IR 192",), ("Foie sans inj", "Foie artériel", "Foie portal", "Foie tardif")),
    _Language(("ISO_IR 100",), ("Hígado sin contraste", "Hígado arterial", "Hígado portal", "Hígado tardío")),
    _Language(("ISO_IR 100",), ("Fegato senza mdc", "Fegato arteriosa", "Fegato portale", "Fegato tardiva")),
    _Language(("ISO_IR 192",), ("Fígado sem contraste", "Fígado arterial", "Fígado portal", "Fígado tardio")),
    _Language(("GB18030",), ("肝脏 平扫", "肝脏 动脉期", "肝脏 门脉期", "肝脏 延迟期")),
    _Language(("ISO_IR 192",), ("腹部 平扫", "腹部 动脉期", "腹部 静脉期", "腹部 平衡期")),
    _Language(("", "ISO 2022 IR 87"), ("肝臓 単純", "肝臓 動脈相", "肝臓 門脈相", "肝臓 遅延相")),
    _Language(("", "ISO 2022 IR 149"), ("간 조영전", "간 동맥기", "간 문맥기", "간 지연기")),
)
_KERNELS = ("B30f", "STANDARD", "B", "FC18", "Br40d")
_AGENTS = ("IOMEPROL 400", "IOHEXOL 350", "IOPROMIDE 370")
#: Seconds after the injection starts, (earliest, latest); the native scan comes before it.
_DELAYS = {"NC": (-240.0, -60.0), "ART": (27.0, 40.0), "PV": (62.0, 80.0), "DL": (170.0, 240.0)}


@dataclass(frozen=True)
class SeriesHeader:
    """One phase's series."""

    uid: UID
    number: int
    description: str
    acquisition_number: int
    acquisition_time: str
    folder: str


@dataclass(frozen=True)
class StudyHeader:
    """What all series share, and the series by phase.

    Attributes:
        charset: SpecificCharacterSet.
        bolus_time: ContrastBolusStartTime; '' in studies that do not record it.
        head_to_feet: whether InstanceNumber runs from the head down.
        signed: stored values are signed with intercept 0, instead of unsigned 12 bit with intercept -1024.
    """

    patient: str
    date: str
    study_time: str
    study_uid: UID
    frame_of_reference_uid: UID
    charset: tuple[str, ...]
    agent: str
    bolus_time: str
    kernel: str
    head_to_feet: bool
    signed: bool
    series: dict[str, SeriesHeader]
    localizer: SeriesHeader
    dose_sheet: SeriesHeader

    def instance_uid(self, series: SeriesHeader, number: int) -> UID:
        """The SOPInstanceUID of a series' image."""
        return generate_uid(prefix=PYDICOM_ROOT_UID, entropy_srcs=[series.uid, "image", str(number)])


def make_header(phantom: Phantom, scan: Scan) -> StudyHeader:
    """A random but reproducible header for a phantom whose series all look like `scan`.

    UIDs depend on everything the pixels depend on, so no two different images share one.
    """
    rng = np.random.default_rng([*phantom.entropy, 6])
    seed, kind = phantom.entropy
    language = _LANGUAGES[int(rng.integers(len(_LANGUAGES)))]
    kernel, agent = str(rng.choice(_KERNELS)), str(rng.choice(_AGENTS))
    start = int(rng.integers(8 * 3600, 16 * 3600))
    delays = {phase: round(float(rng.uniform(*_DELAYS[phase]))) for phase in PHASES}
    entropy = [phantom.kind, str(seed), str(phantom.difficulty), str(scan.shape)]
    step, names = int(rng.choice((1, 100))), _folder_names(rng, len(PHASES) + 2)

    def series(index: int, name: str, text: str, seconds: int) -> SeriesHeader:
        number = 1 + index * step
        return SeriesHeader(_uid(entropy, name), number, text, index + 1, _clock(start + seconds), names[index])

    texts = [f"{text} {scan.thickness:g} {kernel}" for text in language.descriptions]
    return StudyHeader(
        patient=f"PHANTOM-{seed:06d}-{kind}",
        date=f"2020{1 + seed % 12:02d}{1 + seed % 28:02d}",
        study_time=_clock(start - 600),
        study_uid=_uid(entropy, "study"),
        frame_of_reference_uid=_uid(entropy, "frame of reference"),
        charset=language.charset,
        agent=agent,
        bolus_time=_clock(start) if rng.random() < 0.75 else "",
        kernel=kernel,
        head_to_feet=bool(rng.random() < 0.5),
        signed=bool(rng.random() < 0.3),
        series={phase: series(i + 1, phase, texts[i], delays[phase]) for i, phase in enumerate(PHASES)},
        localizer=series(0, "localizer", "Topogram", -400),
        dose_sheet=series(len(PHASES) + 1, "dose sheet", "Dose Report", 400),
    )


def _uid(entropy: list[str], name: str) -> UID:
    return generate_uid(prefix=PYDICOM_ROOT_UID, entropy_srcs=[*entropy, name])


def _clock(seconds: int) -> str:
    """Seconds since midnight -> DICOM TM."""
    return f"{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"


def _folder_names(rng: np.random.Generator, count: int) -> list[str]:
    """Names that say nothing and do not sort like the series."""
    return [f"{number:08X}" for number in rng.choice(2**31, size=count, replace=False)]
