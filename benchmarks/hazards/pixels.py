"""Hazards of values: how stored values become HU, how they are packed, and what damage does to them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, RLELossless

from fourphase.benchmarks.hazards.codecs import COMPRESSED, UNCOMPRESSED, codestream, replace_codestream, transcode
from fourphase.benchmarks.hazards.hazard import EXACT, MIDDLE, ROUNDED, Bound, Case, Hazard, change, change_all
from fourphase.benchmarks.hazards.study import HURT, INTERCEPT
from fourphase.benchmarks.phantoms.dicom_writer import fill

__all__ = ["PIXELS"]

Stored = NDArray[np.int64]

PIXELS_TEST = "tests/runtime/test_pixels.py::"
STUDY = "tests/runtime/test_study.py::"
#: Slope and intercept of each slice in turn, as PET-CTs and some reconstructions write them.
_RESCALES = ((1.0, -1024.0), (0.5, -1024.0), (2.0, -1000.0), (1.25, -1100.0))
#: Outside the reconstruction circle, as one vendor writes it: -3024 HU.
_PADDING = -2000
_BOMB_SIDE = 60_000
_BOMB_INFLATED = 2**29
_NAMES = {
    "implicit": "implicit VR",
    "big_endian": "big endian",
    "deflated": "deflated",
    "rle": "RLE",
    "jpeg_lossless_57": "JPEG Lossless (.57)",
    "jpeg_lossless_70": "JPEG Lossless (.70)",
    "jpeg_ls": "JPEG-LS",
    "jpeg_2000": "JPEG 2000",
}


def _hu(case: Case, index: int) -> NDArray[np.float64]:
    return np.rint(case.sound.hu(HURT, case.sound.grid.points(index)))


def _store(dataset: Dataset, stored: Stored, elements: dict[str, Any]) -> None:
    """Cells of 16 bits, whatever their sign."""
    fill(dataset, elements)
    dataset.PixelData = (stored & 0xFFFF).astype("<u2").tobytes()


def _rescales(case: Case) -> None:
    for index, path in enumerate(case.paths()):
        slope, intercept = _RESCALES[index % len(_RESCALES)]
        stored = np.rint((_hu(case, index) - intercept) / slope).astype(np.int64)
        rescale = {"RescaleSlope": f"{slope:g}", "RescaleIntercept": f"{intercept:g}"}
        change(path, partial(_store, stored=stored, elements={"BitsStored": 16, "HighBit": 15, **rescale}))


def _padding(case: Case) -> None:
    for index, path in enumerate(case.paths()):
        stored = (_hu(case, index) - INTERCEPT).astype(np.int64)
        outside = case.sound.grid.points(index)[..., 0] > case.sound.body_end + 6.5
        stored[outside] = _PADDING

        def edit(dataset: Dataset, stored: Stored = stored) -> None:
            _store(dataset, stored, {"BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1})
            dataset.add_new("PixelPaddingValue", "SS", _PADDING)

        change(path, edit)


def _garbage(case: Case, *, signed: bool) -> None:
    """Something else, once an overlay, in the four unused bits."""
    rng = np.random.default_rng(4)
    intercept = 0 if signed else INTERCEPT
    for index, path in enumerate(case.paths()):
        stored = (_hu(case, index) - intercept).astype(np.int64) & 0xFFF
        stored |= rng.integers(0, 16, stored.shape) << 12
        elements = {"PixelRepresentation": int(signed), "RescaleIntercept": str(intercept)}
        change(path, partial(_store, stored=stored, elements=elements))


def _transcode(case: Case, syntax: UID) -> None:
    for path in case.paths():
        transcode(path, syntax)


def _set(case: Case, **elements: Any) -> None:
    """The whole series says so."""
    change_all(case.paths(), lambda dataset: fill(dataset, elements))


def _no_rescale(case: Case) -> None:
    def edit(dataset: Dataset) -> None:
        del dataset.RescaleSlope, dataset.RescaleIntercept

    change(case.path(MIDDLE), edit)


def _slope(case: Case, text: str) -> None:
    """Written over the old value, which pydicom would not do."""
    path = case.path(MIDDLE)
    old, new = b"(\x00S\x10DS\x02\x001 ", f"DS{chr(len(text))}\0{text}".encode("ascii")
    raw = path.read_bytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, old[:4] + new))


def _truncated(case: Case) -> None:
    path = case.path(MIDDLE)
    path.write_bytes(path.read_bytes()[:-2400])


def _flip(case: Case, syntax: UID, place: float) -> None:
    """One byte of one slice's codestream is turned over, at a share of its length."""
    _transcode(case, syntax)
    frame = bytearray(codestream(case.path(MIDDLE)))
    frame[int(place * len(frame))] ^= 0xFF
    replace_codestream(case.path(MIDDLE), bytes(frame))


def _rle_bomb(case: Case) -> None:
    """A few kilobytes that claim 7.2 GB of pixels."""
    run = b"\x81\x00" * 1000
    header = np.array([2, 64, 64 + len(run), *[0] * 13], dtype="<u4").tobytes()

    def edit(dataset: Dataset) -> None:
        dataset.Rows = dataset.Columns = _BOMB_SIDE
        dataset.PixelData = encapsulate([header + run + run], has_bot=False)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = RLELossless

    change_all(case.paths(), edit)


def _deflate_bomb(case: Case) -> None:
    """Half a megabyte that inflates to half a gigabyte, beside the slices."""
    transcode(case.path(MIDDLE), UNCOMPRESSED["deflated"])
    raw = case.path(MIDDLE).read_bytes()
    start = 144 + int.from_bytes(raw[140:144], "little")
    dataset = zlib.decompress(raw[start:], -zlib.MAX_WBITS)
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [squeezer.compress(dataset)]
    pieces += [squeezer.compress(bytes(2**20)) for _ in range(_BOMB_INFLATED // 2**20)]
    case.path(MIDDLE).write_bytes(raw[:start] + b"".join([*pieces, squeezer.flush()]))


def _lossless(name: str, syntax: UID) -> Hazard:
    test = (
        "test_big_endian_and_deflated_headers"
        if name in ("big_endian", "deflated")
        else "test_files_without_preamble_are_found"
        if name == "implicit"
        else ""
    )
    held = STUDY + test if test else PIXELS_TEST + "test_every_lossless_syntax_gives_the_same_hu"
    return Hazard(
        f"syntax_{name}", f"stored as {_NAMES[name]}", partial(_transcode, syntax=syntax), "read", held, EXACT
    )


def _flipped(name: str, place: float, ours: str, test: str, bound: Bound = EXACT, note: str = "") -> Hazard:
    apply: Callable[[Case], None] = partial(_flip, syntax=COMPRESSED[name], place=place)
    what = f"one byte of a {_NAMES[name]} slice turned over{note}"
    return Hazard(f"flip_{name}", what, apply, ours, PIXELS_TEST + test, bound)


PIXELS = (
    Hazard(
        "rescale_per_slice",
        "every slice with its own rescale slope and intercept",
        _rescales,
        "read: rescale_differs",
        PIXELS_TEST + "test_every_slice_has_its_own_slope_and_intercept",
        ROUNDED,
    ),
    Hazard(
        "padding",
        "padding value of -3024 HU beside the body",
        _padding,
        "read",
        PIXELS_TEST + "test_signed_padding_outside_the_plausible_range",
    ),
    Hazard(
        "unused_bits",
        "12 of 16 bits, unsigned, something else in the other four",
        partial(_garbage, signed=False),
        "read",
        PIXELS_TEST + "test_unused_bits_are_cut_away",
    ),
    Hazard(
        "unused_bits_signed",
        "12 of 16 bits, signed, something else in the other four",
        partial(_garbage, signed=True),
        "read",
        PIXELS_TEST + "test_unused_bits_are_cut_away",
    ),
    Hazard(
        "monochrome1",
        "MONOCHROME1 on CT",
        partial(_set, PhotometricInterpretation="MONOCHROME1"),
        "read: monochrome1",
        STUDY + "test_doubtful_pixels_are_told",
    ),
    Hazard(
        "lossy",
        "compressed with loss once, and says so",
        partial(_set, LossyImageCompression="01"),
        "read: lossy_compression",
        STUDY + "test_doubtful_pixels_are_told",
    ),
    Hazard(
        "no_rescale",
        "one slice without rescale slope and intercept",
        _no_rescale,
        "refused: 15 rescale_invalid",
        PIXELS_TEST + "test_refusals",
    ),
    Hazard(
        "slope_not_finite",
        "one slice with the rescale slope NaN",
        partial(_slope, text="NaN "),
        "refused: 15 rescale_invalid",
        PIXELS_TEST + "test_slopes_that_are_no_numbers_are_refused",
    ),
    Hazard(
        "truncated",
        "one slice cut within its pixels",
        _truncated,
        "refused: 15 pixel_data_truncated",
        PIXELS_TEST + "test_truncated_pixels_are_15",
    ),
    *(_lossless(name, syntax) for name, syntax in (UNCOMPRESSED | COMPRESSED).items()),
    _flipped("rle", 0.3, "refused: 15 pixel_data_undecodable", "test_flipped_bytes_give_voxels_or_15"),
    _flipped(
        "jpeg_lossless_70",
        0.35,
        "refused: 15 pixel_data_undecodable",
        "test_a_damaged_jpeg_lossless_scan_that_decodes_is_refused",
    ),
    _flipped("jpeg_ls", 0.4, "refused: 15 pixel_data_undecodable", "test_flipped_bytes_give_voxels_or_15"),
    _flipped("jpeg_2000", 0.3, "read", "test_flipped_bytes_give_voxels_or_15", Bound(0.05, 0.5), " (2 HU, not seen)"),
    Hazard(
        "rle_bomb",
        "RLE slices of 4 kB that claim 60000 x 60000 pixels",
        _rle_bomb,
        "refused: 15 pixel_limits",
        PIXELS_TEST + "test_refusals",
    ),
    Hazard(
        "deflate_bomb",
        "a slice of 0.5 MB that inflates to 0.5 GB",
        _deflate_bomb,
        "refused: 14 slices_missing",
        STUDY + "test_deflate_bomb_is_bounded",
    ),
)
