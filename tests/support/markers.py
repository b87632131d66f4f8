"""Studies in which everything that may name a patient holds a marker, and the search for it in whatever came out.

>>> write_marked(tmp_path / MARKS[0].text / "study", MARKS[0])
>>> assert not leaks(MARKS[0], {"stderr": run.stderr}, [tmp_path / "out"])
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom._dicom_dict import DicomDictionary
from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from fourphase.runtime.decoders import FrameFormat, Unsigned
from tests.support.dicom import DESCRIPTIONS, write_phases

__all__ = ["ASCII", "BIRTH_DATE", "MARKS", "Mark", "decode_here", "edit_file", "leaks", "mark_file", "write_marked"]

#: The VRs that hold text (PS3.5 6.2), code strings and AE titles included.
TEXT = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
#: Their values are ASCII whatever the character set is.
ALWAYS_ASCII = ("AE", "CS", "UR")
#: What decides how the file is read, or what it is; SeriesDescription gets the marker behind its word.
DECISIVE = (
    *("SpecificCharacterSet", "ImageType", "Modality", "SeriesDescription", "SegmentationType"),
    *("ContentLabel", "ContentDescription", "ContentCreatorName", "ApprovalStatus", "StructureSetLabel"),
)
#: File meta information and directories; image pixel; what follows the pixels.
UNTOUCHED_GROUPS = (0x0000, 0x0002, 0x0004, 0x0028, 0x0062, 0x3006, 0x5400, 0x7FE0)
BIRTH_DATE = "19471213"
ASCII = "ZQXJ"


@dataclass(frozen=True)
class Mark:
    """What is put in, and in which character set (0008,0005) it is written.

    Attributes:
        text: four letters that nothing else contains.
    """

    name: str
    charset: str | tuple[str, ...]
    text: str
    codec: str

    def value(self, tag: int, vr: str) -> str:
        """The ASCII marker says where it leaked from."""
        return f"{ASCII}{tag:08X}" if vr in ALWAYS_ASCII or self.text == ASCII else self.text

    @cached_property
    def whole(self) -> tuple[bytes, ...]:
        """Every form in which the marker could turn up; ASCII in lower case."""
        return self._forms({self.text})

    @cached_property
    def parts(self) -> tuple[bytes, ...]:
        """Likewise of the marker and its halves: four bytes, which some binary file or other holds by chance."""
        return self._forms({self.text, self.text[:2], self.text[2:]}) if self.text != ASCII else self.whole

    def _forms(self, texts: set[str]) -> tuple[bytes, ...]:
        found = {ASCII.encode(), BIRTH_DATE.encode()}
        for text in texts | {unicodedata.normalize("NFKD", one) for one in texts}:
            for encoding in ("utf-8", "utf-16-le", "utf-16-be", "gb18030", self.codec):
                found |= set(_shown(_core(text.encode(encoding))))
            found |= {json.dumps(text)[1:-1].encode(), urllib.parse.quote(text).encode()}
        return tuple(sorted(needle.lower() for needle in found))


def _core(encoded: bytes) -> bytes:
    """Without the escape sequences of ISO 2022, which may stand further away."""
    return re.sub(rb"\x1b[()$][@-~]*?[A-Z@]", b"", encoded)


def _shown(raw: bytes) -> Iterator[bytes]:
    """Bytes as they are, as text of another character set, and as Python and JSON escape them."""
    yield raw
    yield raw.decode("latin-1").encode("utf-8")
    yield json.dumps(raw.decode("latin-1"))[1:-1].encode()
    yield json.dumps(raw.decode("utf-8", "surrogateescape"))[1:-1].encode()
    yield repr(raw)[2:-1].encode()
    yield ascii(raw.decode("utf-8", "surrogateescape"))[1:-1].encode()


MARKS = (
    Mark("ascii", "ISO_IR 100", ASCII, "ascii"),
    Mark("utf-8", "ISO_IR 192", "患者秘密", "utf-8"),
    Mark("gb18030", "GB18030", "患者秘密", "gb18030"),
    Mark("iso-2022", ("", "ISO 2022 IR 87"), "患者秘密", "iso2022_jp"),
)


def write_marked(study: Path, mark: Mark, **elements: Any) -> Path:
    """A four-phase study of `write_phases` with the marker everywhere: in elements, in names of files and folders.

    Every element of pydicom's dictionary that holds text is there, so all that PS3.15 Annex E lists; nested, private,
    in the file meta information and the preamble, too.
    """
    descriptions = {number: word for number, (word, _) in enumerate(DESCRIPTIONS.values(), 2)}
    written = write_phases(study, name=f"{mark.text}_IM", **elements)
    for number, paths in enumerate(written.values(), 2):
        word = elements.get("SeriesDescription", descriptions[number])
        for path in paths:
            mark_file(path, mark, SeriesDescription=f"{word} {mark.text}".replace("ä", "ae"))
        paths[0].parent.rename(study / f"{mark.text} s{number}")
    return study


def mark_file(path: Path, mark: Mark, **elements: Any) -> None:
    """Fills a DICOM file with the marker; `elements` replace what would be there."""
    dataset = dcmread(path)
    dataset.decode()  # while the old character set is known
    dataset.update(_elements(mark))
    _replace(dataset, elements)
    dataset.preamble = (ASCII.encode() + mark.text.encode()).ljust(128, b"\0")
    meta = dataset.file_meta
    for keyword in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ImplementationVersionName"):
        setattr(meta, keyword, ASCII)
    dataset.save_as(path)


def edit_file(path: Path, **elements: Any) -> None:
    """Replaces elements of a file, whatever their values are allowed to be."""
    dataset = dcmread(path)
    _replace(dataset, elements)
    dataset.save_as(path)


def _replace(dataset: Dataset, elements: Mapping[str, Any]) -> None:
    for keyword, value in elements.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        dataset[tag] = DataElement(tag, DicomDictionary[tag][0], value, validation_mode=IGNORE)


_made: dict[str, Dataset] = {}


def _elements(mark: Mark) -> Dataset:
    if mark.name in _made:
        return _made[mark.name]
    made = Dataset()
    charset = list(mark.charset) if isinstance(mark.charset, tuple) else mark.charset
    made[0x00080005] = DataElement(0x00080005, "CS", charset, validation_mode=IGNORE)
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if vr in TEXT and tag >> 16 not in UNTOUCHED_GROUPS and keyword not in DECISIVE:
            made[tag] = DataElement(tag, vr, mark.value(tag, vr), validation_mode=IGNORE)
    made[0x00100030] = DataElement(0x00100030, "DA", BIRTH_DATE)
    if mark.codec == "utf-8":  # a header that is longer than what is read at first
        made[0x00104000] = DataElement(0x00104000, "LT", mark.text * 2000)
    inner = Dataset()
    for tag, vr in ((0x00100010, "PN"), (0x00100020, "LO"), (0x00321060, "LO"), (0x00400007, "LO")):
        inner[tag] = DataElement(tag, vr, mark.value(tag, vr), validation_mode=IGNORE)
    for tag in (0x00101002, 0x00400275, 0x00081110, 0x00081140):  # other IDs, request, referenced study and image
        made[tag] = DataElement(tag, "SQ", Sequence([inner]))
    for group in (0x0009, 0x0029):
        block = made.private_block(group, ASCII, create=True)
        block.add_new(0x01, "LO", mark.value(group << 16, "LO"))
        block.add_new(0x02, "UN", mark.text.encode())
        block.add_new(0x03, "SQ", Sequence([inner]))
    made[0xFFFCFFFC] = DataElement(0xFFFCFFFC, "OB", ASCII.encode() + mark.text.encode("utf-16-le"))
    _made[mark.name] = made
    return made


def leaks(mark: Mark, streams: Mapping[str, str | bytes], folders: Iterable[Path], *, but: str = "sr.dcm") -> list[str]:
    """Where the marker stands: streams, names below the folders, contents of files (pictures' texts inflated, too).

    Args:
        but: name of the files whose content belongs to the patient.
    """
    found = []
    for name, stream in streams.items():
        found += _found(mark, name, stream.encode("utf-8", "surrogateescape") if isinstance(stream, str) else stream)
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            found += _found(mark, "a name", os.fsencode(path.relative_to(folder)))
            if path.is_file() and path.name != but:
                found += _found(mark, path.name, path.read_bytes())
            if path.suffix == ".png":
                found += _found(mark, "the texts of a picture", _picture_texts(path))
    return found


def _found(mark: Mark, where: str, data: bytes) -> list[str]:
    low = data.lower()
    needles = mark.whole if where.endswith((".png", ".npy")) else mark.parts
    places = [(needle, low.find(needle)) for needle in needles]
    return [f"{where}: {needle!r} in {data[max(0, at - 80) : at + 80]!r}" for needle, at in places if at >= 0]


def _picture_texts(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as picture:
        picture.load()
        return repr(sorted(picture.info.items())).encode()


def decode_here(frame: bytes, form: FrameFormat) -> Unsigned:
    """A decoder that says whom it decodes, on every stream that it has, and dies of a panic that quotes it."""
    os.write(1, ASCII.encode())
    os.write(2, ASCII.encode())
    raise _Panic(f"{ASCII} {frame[:20]!r}")


class _Panic(BaseException):
    """As pyo3's PanicException, no Exception."""
