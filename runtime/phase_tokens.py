"""SeriesDescription -> contrast phase, by words that mean one phase and nothing else.

Only the matched word ever leaves this module: descriptions are free text and may name the patient. ProtocolName and
StudyDescription are no evidence; real ones hold all four phase words at once.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["CLASSES", "class_of_description", "no_phase_word", "normalized"]

#: The four phases in the order of acquisition.
CLASSES = ("NC", "ART", "PV", "DL")

_LATE = r"(?:late|spaete?|spate?)"
_TARDIVE = r"tardi(?:f|ve|vo|va|o|a)"
_VENOUS = r"ven(?:ous|os[aoe]?|oes[ae]?)|veineu(?:x|se)"
#: As words: no letter may touch them, digits may. Accents are stripped before: "spät" reads "spat". The order counts:
#: the first class that matches at a place takes the text, so "late art" is arterial and "portal venous" one word.
_WORDS = {
    "ART": [
        rf"(?:{_LATE}[ -]*)?art(?:erial|eriell?e?|erios[ao])?(?:[ -]+{_TARDIVE})?",
        rf"(?:{_LATE}[ -]*)?h?ap",
    ],
    "PV": [
        rf"portal(?:e|is)?(?:[ -]*(?:{_VENOUS}))?",
        rf"porto[ -]*(?:{_VENOUS})",
        _VENOUS,
        "pvp?",
        r"(?<![\d.,])70 ?s(?:ec|ek)?",
    ],
    "NC": [
        r"non?[ -]?con(?:traste?)?",
        r"non[ -]?enhanced",
        "nc",
        "without",
        "w/o",
        r"wo con(?:trast)?",
        "plain",
        r"un-?enhanced",
        "native?",
        r"pre[ -]?con(?:traste?)?",
        "c-",
        r"ohne (?:km|kontrast(?:mittel)?)",
        r"sans (?:inj(?:ection)?|contraste)",
        "sin contraste",
        "senza (?:mdc|contrasto)",
        "basale",
        "sem contraste",
    ],
    "DL": [
        "delay(?:ed)?",
        "equilibrium",
        _LATE,
        _TARDIVE,
        "retard(?:ad[oa]|ee?)?",
        r"(?<![\d.,])[35] ?min(?:ute[ns]?)?",
        r"(?<![\d.,])180 ?s(?:ec|ek)?",
    ],
}
#: Chinese, Japanese and Korean write no spaces: these count anywhere.
_SUBSTRINGS = {
    "ART": ["动脉期", "動脈期", "動脈相", "动脉晚期", "동맥기"],
    "PV": ["门静脉期", "门脉期", "静脉期", "門靜脈期", "門脈相", "門脈期", "문맥기"],
    "NC": ["平扫", "平掃", "単純", "조영 ?전"],
    "DL": ["延迟期", "延遲期", "平衡期", "平衡相", "遅延相", "지연기"],
}
_WITHOUT, _WITH, _AND = "(?:w/?o|without)", "(?:with|w/?)", r" ?(?:&|\+|/|,|and)? ?"
#: "w/o & w", "C-/C+": both in one series, so it is no phase.
_BOTH = [
    f"{_WITHOUT}{_AND}{_WITH}",
    f"{_WITH}{_AND}{_WITHOUT}",
    r"c-[ /&,+]*c\+",
    r"c\+[ /&,+]*c-",
    r"c\+ ?/? ?-",
    r"c- ?/? ?\+",
    r"(?:mit (?:und|u\.?) ohne|ohne (?:und|u\.?) mit|avec et sans|sans et avec|con y sin|sin y con)",
]
_NO_PHASE = [
    "scout",
    "topo(?:gram(?:me)?)?",
    "locali[sz]er",
    "surview",
    "dose",
    "rapport",
    "report",
    "smart ?prep",
    "(?:pre)?monitor(?:ing)?",
    r"test[ -]?bolus",
    "(?:bolus)?tracking",
    "mpr",
    "mip",
    "vrt",
    "cor(?:onal)?",
    "sag(?:ittal)?",
    "lung(?:s|e|en)?",
    "bones?",
    "perfusion",
    "iodine",
    "vmi",
    "kev",
    "subtraction",
    "screen ?saved?",
]


def _as_words(patterns: list[str]) -> str:
    return f"(?<![a-z])(?:{'|'.join(patterns)})(?:phase)?(?![a-z])"


def normalized(text: str) -> str:
    """NFKC, case folded, accents stripped, white space and underscores as single spaces."""
    decomposed = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    stripped = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return " ".join(unicodedata.normalize("NFC", stripped).replace("_", " ").split())


def _class_pattern(name: str) -> str:
    substrings = "|".join(map(normalized, _SUBSTRINGS[name]))
    return f"(?P<{name}>{_as_words(_WORDS[name])}|{substrings})"


_PHASE = re.compile("|".join(map(_class_pattern, _WORDS)))
_EITHER = re.compile(_as_words(_BOTH))
_EXCLUDED = re.compile(_as_words(_NO_PHASE))


def class_of_description(description: str) -> tuple[str, str] | None:
    """(class, the first word that says so); None if no class is named, or more than one.

    >>> class_of_description("Leber arteriell 2.5 B30f")
    ('ART', 'arteriell')
    """
    text = normalized(description)
    if _EITHER.search(text):
        return None
    found = [(match.lastgroup or "", match.group()) for match in _PHASE.finditer(text)]
    return found[0] if len({name for name, _ in found}) == 1 else None


def no_phase_word(description: str) -> str | None:
    """The word by which a series is no contrast phase at all (scout, lung, MPR ...), or None."""
    match = _EXCLUDED.search(normalized(description))
    return match.group() if match else None
