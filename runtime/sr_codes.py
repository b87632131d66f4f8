"""The codes of the structured report: which SNOMED CT, DICOM or private code says what. No content is built here.

A class that is not HCC or ICC gets a private code: a wrong SNOMED code would be a wrong diagnosis.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

from pydicom.sr.coding import Code

__all__ = ["ClassCodes", "class_codes", "clean", "cut", "phase_code", "private_code"]

#: Private coding scheme designators start with 99 (PS3.16 8.2).
SCHEME = "99FOURPHASE"
SCHEME_NAME = "fourphase private codes"

LIVER = Code("10200004", "SCT", "Liver")
LESION = Code("52988006", "SCT", "Lesion")
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
#: CID 100 has no four-phase CT of the liver; this is its code for a CT of any region.
CT_PROCEDURE = Code("25045-6", "LN", "CT unspecified body region")
PERCENT = Code("%", "UCUM", "Percent")
COMPUTED_TOMOGRAPHY = Code("CT", "DCM", "Computed Tomography")
MODALITY = Code("121139", "DCM", "Modality")
DEVICE = Code("121007", "DCM", "Device")
COMMENT = Code("121106", "DCM", "Comment")
SOURCE = Code("260753009", "SCT", "Source")
IMAGE_LIBRARY = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = Code("126200", "DCM", "Image Library Group")
SERIES_INSTANCE_UID = Code("112002", "DCM", "Series Instance UID")
FRAME_OF_REFERENCE_UID = Code("112227", "DCM", "Frame of Reference UID")
#: TID 1500, row 12.
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")

#: PS3.5 6.2: SH has at most 16 characters, LO 64.
_CODE_LENGTH, _MEANING_LENGTH = 16, 64

_PHASES = {"NC": "Unenhanced", "ART": "Arterial phase", "PV": "Portal venous phase", "DL": "Delayed phase"}


@dataclass(frozen=True)
class ClassCodes:
    """The codes of one class of the model.

    Attributes:
        finding: what the region is. A region is a structure, so of a pair of SNOMED CT codes the morphologic
            abnormality, which together with the finding site Liver says what and where.
        category: Morphologically Abnormal Structure where `finding` is one; None for a private code.
        prediction: what the model says the patient has: of the pair, the disorder.
        probability: the name of the number. DCM 111047 "Probability of cancer" would be wrong, both classes are one.
    """

    finding: Code
    category: Code | None
    prediction: Code
    probability: Code


def private_code(value: str, meaning: str) -> Code:
    """A code of our scheme; value and meaning are cut to what DICOM allows (16 and 64 characters)."""
    return Code(value[:_CODE_LENGTH], SCHEME, cut(clean(meaning), _MEANING_LENGTH))


def cut(text: str, length: int) -> str:
    """The text cut to `length` bytes of UTF-8. PS3.5 6.2 counts characters, but validators and archives count bytes."""
    return text.encode()[:length].decode("utf-8", "ignore").rstrip()


def clean(text: str) -> str:
    """The text without control characters and lone surrogates, which DICOM cannot hold; line ends become spaces."""
    spaced = " ".join(text.splitlines())
    return "".join(char for char in spaced if unicodedata.category(char) not in ("Cc", "Cs")).strip()


def class_codes(name: str) -> ClassCodes:
    """The codes of a class by the bundle's name for it; only exactly HCC and ICC have SNOMED CT codes."""
    if name in _KNOWN:
        return _KNOWN[name]
    token, words = _token(name), clean(name) or "a class without name"
    return ClassCodes(
        finding=private_code(f"C_{token}", f"Class {words}"),
        category=None,
        prediction=private_code(f"C_{token}", f"Class {words}"),
        probability=private_code(f"P_{token}", f"Probability of {words}"),
    )


def phase_code(phase: str) -> Code:
    """The private code of a contrast phase by the contract's name for it."""
    return private_code(f"F_{_token(phase)}", _PHASES.get(phase, f"Phase {clean(phase)}"))


def _token(name: str) -> str:
    """The name where it is short and plain, else 12 digits that stand for it."""
    plain = re.fullmatch(r"[A-Za-z0-9.+-]{1,14}", name)
    return name if plain else f"_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


_KNOWN = {
    "HCC": ClassCodes(
        finding=Code("25370001", "SCT", "Hepatocellular carcinoma"),
        category=ABNORMAL_STRUCTURE,
        prediction=Code("109841003", "SCT", "Liver cell carcinoma"),
        probability=private_code("P_HCC", "Probability of hepatocellular carcinoma (HCC)"),
    ),
    "ICC": ClassCodes(
        finding=Code("70179006", "SCT", "Cholangiocarcinoma"),
        category=ABNORMAL_STRUCTURE,
        prediction=Code("109842005", "SCT", "Intrahepatic bile duct carcinoma"),
        probability=private_code("P_ICC", "Probability of intrahepatic cholangiocarcinoma (ICC)"),
    ),
}
