from __future__ import annotations

import base64
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from fourphase.runtime import decode_pool, decoders
from fourphase.runtime import stored_values as stored_values_module
from fourphase.runtime.codestream import JPEG_LS_FRAME, SEQUENCE_END, CodestreamError, codestream_of, single_frame
from fourphase.runtime.decode_pool import DecodePool
from fourphase.runtime.decode_worker import FrameFormat
from fourphase.runtime.dicom_file import quiet_pydicom
from fourphase.runtime.errors import EnvironmentFault, PixelDataError
from fourphase.runtime.headers import read_slice_header
from fourphase.runtime.pixels import read_hu
from fourphase.runtime.preprocess import VoxelWindow
from fourphase.runtime.series import Series
from fourphase.runtime.stored_values import stored_values as read_stored
from fourphase.runtime.study import read_study
from tests.support.dicom import COMPRESSED, stored_values, write_series

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
SHAPE = (4, 40, 48)
WINDOW = VoxelWindow(slice(1, 3), slice(5, 31), slice(7, 30))
WHOLE = VoxelWindow(slice(0, 4), slice(0, 40), slice(0, 48))

FORM = FrameFormat(str(JPEGLSLossless), "MONOCHROME2", 40, 48, 16, 12, 12)


def read(folder: Path) -> Series:
    (series,) = read_study(folder).series
    return series


def crop(values: NDArray[Any], window: VoxelWindow = WINDOW) -> NDArray[Any]:
    return values[window.slices, window.rows, window.columns]


def refused(folder: Path, window: VoxelWindow = WINDOW) -> PixelDataError:
    with pytest.raises(PixelDataError) as caught:
        read_hu(read(folder), window)
    return caught.value


# ---- values


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED])
@pytest.mark.parametrize("signed", [False, True])
def test_every_lossless_syntax_gives_the_same_hu(tmp_path: Path, syntax: str, signed: bool) -> None:
    """Independent: the numbers that were written."""
    values = stored_values(SHAPE)
    stored = (values.astype(np.int16) - 1500) if signed else values
    intercept = 476 if signed else -1024
    write_series(tmp_path, stored, transfer_syntax=syntax, RescaleIntercept=intercept)
    hu = read_hu(read(tmp_path), WINDOW)
    assert hu.dtype == np.int16
    np.testing.assert_array_equal(hu, crop(values.astype(np.int32) - 1024))


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_stored_values_of_real_files_equal_pydicom(name: str) -> None:
    """GE and Siemens CT, signed, 13 to 16 bits, native and JPEG 2000 whose sign contradicts the header."""
    path = Path(str(get_testdata_file(name, read=False)))
    with quiet_pydicom():
        expected = pydicom.dcmread(path).pixel_array
        header = read_slice_header(path, "")
    window = VoxelWindow(slice(0, 1), slice(3, header.rows - 5), slice(1, header.columns - 2))
    np.testing.assert_array_equal(read_stored(header, window), expected[window.rows, window.columns])


def test_every_slice_has_its_own_slope_and_intercept(tmp_path: Path) -> None:
    values = stored_values(SHAPE)
    slopes, intercepts = [1.0, 0.5, 2.0, 1.5], [-1024.0, -512.25, -2100.0, -1600.0]
    write_series(
        tmp_path, values, RescaleSlope=lambda index: slopes[index], RescaleIntercept=lambda index: intercepts[index]
    )
    hu = read_hu(read(tmp_path), WHOLE)
    assert hu.dtype == np.float32
    expected = values * np.array(slopes)[:, None, None] + np.array(intercepts)[:, None, None]
    np.testing.assert_allclose(hu, np.clip(expected, -1024, 3071), atol=1e-3)


def test_clipped_to_the_hu_range(tmp_path: Path) -> None:
    values = stored_values(SHAPE)
    values[:, 0, 0], values[:, 0, 1] = 0, 4095
    write_series(tmp_path, values, RescaleIntercept=-1090, RescaleSlope=1)
    assert read_hu(read(tmp_path), WHOLE)[0, 0, :2].tolist() == [-1024, 3005]
    other = tmp_path / "other"
    write_series(other, values, RescaleIntercept=-1000, RescaleSlope=1)
    assert read_hu(read(other), WHOLE)[0, 0, :2].tolist() == [-1000, 3071]


@pytest.mark.parametrize("limit", [None, 210])
def test_padding_becomes_background(tmp_path: Path, limit: int | None) -> None:
    values = stored_values(SHAPE)
    values[:, :5, :5] = np.arange(200, 225).reshape(5, 5)
    write_series(tmp_path, values, PixelPaddingValue=200, PixelPaddingRangeLimit=limit)
    corner = read_hu(read(tmp_path), WHOLE)[2, :5, :5]
    expected = np.arange(200, 225).reshape(5, 5) - 1024
    expected[expected + 1024 <= (limit or 200)] = -1024
    np.testing.assert_array_equal(corner, expected)


def test_signed_padding_outside_the_plausible_range(tmp_path: Path) -> None:
    """GE: -2000 outside the reconstruction circle would otherwise look like corruption."""
    values = stored_values(SHAPE).astype(np.int16)
    values[:, :20] = -2000
    write_series(tmp_path / "told", values, BitsStored=16, HighBit=15, PixelPaddingValue=-2000)
    assert (read_hu(read(tmp_path / "told"), WHOLE)[:, :20] == -1024).all()
    write_series(tmp_path / "untold", values, BitsStored=16, HighBit=15)
    assert refused(tmp_path / "untold", WHOLE).key == "hu_implausible"


@pytest.mark.parametrize(("bits", "high"), [(12, 11), (12, 13), (12, 15), (14, 13)])
@pytest.mark.parametrize("signed", [False, True])
def test_unused_bits_are_cut_away(tmp_path: Path, bits: int, high: int, signed: bool) -> None:
    values = stored_values(SHAPE).astype(np.int32) - (1074 if signed else 0)
    shift = high + 1 - bits
    cells = (values & ((1 << bits) - 1)) << shift
    overlay = np.random.default_rng(1).integers(0, 2**16, SHAPE) & ~(((1 << bits) - 1) << shift)
    cells = (cells | overlay).astype(np.uint16)
    write_series(
        tmp_path,
        cells,
        BitsStored=bits,
        HighBit=high,
        PixelRepresentation=int(signed),
        RescaleIntercept=50 if signed else -1024,
    )
    np.testing.assert_array_equal(read_hu(read(tmp_path), WINDOW), crop(values + (50 if signed else -1024)))


def test_sixteen_bit_values_do_not_overflow(tmp_path: Path) -> None:
    values = stored_values(SHAPE).astype(np.int64) + 60_000
    write_series(tmp_path, values.astype(np.uint16), BitsStored=16, HighBit=15, RescaleIntercept=-61_024)
    np.testing.assert_array_equal(read_hu(read(tmp_path), WINDOW), crop(values - 61_024))


def test_eight_bit_cells(tmp_path: Path) -> None:
    values = stored_values(SHAPE)
    bytes_only = (values >> 4).astype(np.uint8)
    odd = bytes_only[:, :39, :47]  # an odd number of bytes is padded
    write_series(tmp_path, odd, BitsAllocated=8, BitsStored=8, HighBit=7, RescaleSlope=16)  # type: ignore[arg-type]
    expected = odd.astype(int) * 16 - 1024
    np.testing.assert_array_equal(read_hu(read(tmp_path), WINDOW), crop(expected))


# ---- only what is needed


def test_only_the_windows_slices_are_opened(tmp_path: Path) -> None:
    paths = write_series(tmp_path, stored_values(SHAPE))
    series = read(tmp_path)
    paths[0].unlink()
    paths[3].write_bytes(b"no longer DICOM")
    assert read_hu(series, WINDOW).shape == WINDOW.shape
    paths[1].unlink()
    with pytest.raises(PixelDataError, match="slice 2 of 4"):
        read_hu(series, WINDOW)


def test_a_link_that_took_a_files_place_is_not_followed(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "study", stored_values(SHAPE))
    series = read(tmp_path / "study")
    paths[1].rename(tmp_path / "elsewhere")
    paths[1].symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PixelDataError, match="cannot be read"):
        read_hu(series, WINDOW)


# ---- refusals


@pytest.mark.parametrize("syntax", [*NATIVE[:3], *COMPRESSED])
@pytest.mark.parametrize("cut", [1, 12, 700])
def test_truncated_pixels_are_15(tmp_path: Path, syntax: str, cut: int) -> None:
    paths = write_series(tmp_path, stored_values(SHAPE), transfer_syntax=syntax)
    raw = paths[2].read_bytes()
    paths[2].write_bytes(raw[:-cut])
    error = refused(tmp_path)
    assert error.code == 15
    assert "series 1, slice 3 of 4," in error.message
    assert str(tmp_path) not in error.message + error.hint


def test_truncated_deflated_pixels_are_15(tmp_path: Path) -> None:
    paths = write_series(tmp_path, stored_values(SHAPE), transfer_syntax=DeflatedExplicitVRLittleEndian)
    raw = paths[2].read_bytes()
    paths[2].write_bytes(raw[:-100])
    assert refused(tmp_path).code == 15


@pytest.mark.parametrize(
    ("key", "elements"),
    [
        ("rescale_invalid", {"RescaleSlope": 0}),
        ("rescale_invalid", {"RescaleSlope": None}),
        ("rescale_invalid", {"RescaleIntercept": None}),
        ("rescale_invalid", {"RescaleSlope": "1e9"}),
        ("pixel_format", {"BitsAllocated": 32}),
        ("pixel_format", {"BitsStored": 17}),
        ("pixel_format", {"BitsStored": 0}),
        ("pixel_format", {"HighBit": 3}),
        ("pixel_data_length", {"Rows": 39}),
        ("pixel_data_length", {"Columns": 40}),
        ("pixel_data_truncated", {"Rows": 41}),
        ("pixel_limits", {"Columns": 4097}),
        ("hu_implausible", {"RescaleIntercept": -3000}),
        ("hu_implausible", {"RescaleSlope": 5}),
        ("hu_implausible", {"PixelRepresentation": 1, "BitsStored": 11, "HighBit": 10}),
    ],
)
def test_refusals(tmp_path: Path, key: str, elements: dict[str, Any]) -> None:
    write_series(tmp_path, stored_values(SHAPE), **elements)
    assert refused(tmp_path).key == key


@pytest.mark.parametrize("value", ["nan", "inf", "1_0", "1,0", "", "0x1", "1\\1"])
def test_slopes_that_are_no_numbers_are_refused(tmp_path: Path, value: str) -> None:
    for path in write_series(tmp_path, stored_values(SHAPE), RescaleSlope="9.0000001"):
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"9.0000001 ", value.encode().ljust(10)))
    assert refused(tmp_path).key == "rescale_invalid"


def test_implausible_share_is_of_one_slice(tmp_path: Path) -> None:
    """A little metal is accepted; more than 0.5 % of a slice is not."""
    values = stored_values(SHAPE) - 600
    few, many = int(0.005 * 26 * 23), int(0.005 * 26 * 23) + 1
    values[1, 5, 7 : 7 + few] = 4095
    write_series(tmp_path / "few", values, RescaleIntercept=0, RescaleSlope=1, BitsStored=16, HighBit=15)
    read_hu(read(tmp_path / "few"), WINDOW)
    values[1, 5, 7 : 7 + many] = 4095
    write_series(tmp_path / "many", values, RescaleIntercept=0, RescaleSlope=1, BitsStored=16, HighBit=15)
    assert "slice 2 of 4" in refused(tmp_path / "many").message


@pytest.mark.parametrize("number", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.53"])
def test_unsupported_syntaxes_are_named(tmp_path: Path, number: str) -> None:
    for path in write_series(tmp_path, stored_values(SHAPE), transfer_syntax=JPEGLSLossless):
        raw = path.read_bytes()
        path.write_bytes(raw.replace(JPEGLSLossless.encode(), number.encode()))
    error = refused(tmp_path)
    assert error.key == "transfer_syntax_unsupported"
    assert number in error.message


def test_a_window_beyond_memory_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, stored_values(SHAPE))
    huge = VoxelWindow(slice(0, 4), slice(0, 40_000), slice(0, 40_000))
    assert refused(tmp_path, huge).key == "pixel_limits"


# ---- hostile compression


def test_a_codestream_larger_than_the_header_never_reaches_the_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in write_series(tmp_path, stored_values(SHAPE), transfer_syntax=JPEG2000Lossless):
        raw = bytearray(path.read_bytes())
        start = raw.index(b"\xff\x4f\xff\x51")
        struct.pack_into(">II", raw, start + 8, 12_000, 12_000)
        path.write_bytes(bytes(raw))
    monkeypatch.setattr(stored_values_module, "decode", lambda *_: pytest.fail("the decoder was called"))
    assert "contradicts" in refused(tmp_path).message


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_a_codestream_without_end_never_reaches_the_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    """CharLS takes seconds over such a frame of a few bytes."""
    for path in write_series(tmp_path, stored_values(SHAPE), transfer_syntax=syntax):
        raw = path.read_bytes()
        end = raw.rindex(b"\xff\xd9")
        path.write_bytes(raw[:end] + b"\xff\x00" + raw[end + 2 :])
    monkeypatch.setattr(stored_values_module, "decode", lambda *_: pytest.fail("the decoder was called"))
    assert "no end" in refused(tmp_path).message


@pytest.fixture
def bad_decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, str], None]]:
    """Makes one slice's frame, of any compressed series, a word for tests.support.bad_decoder."""
    pool = DecodePool(2, decoder="tests.support.bad_decoder", limit_s=20.0)
    monkeypatch.setattr(decode_pool, "_shared", pool)
    words: dict[bytes, bytes] = {}

    def say(path: Path, word: str) -> None:
        frame = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
        words[frame.rstrip(b"\0")] = word.encode()

    real = pool.decode
    monkeypatch.setattr(
        pool, "decode", lambda frame, form: real(words.get(frame.rstrip(b"\0"), b"fine 1024"), form), raising=True
    )
    yield say
    pool.close()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("abort", "slice 3 of 4, cannot be decompressed: its decoder crashed"),
        ("allocate", "slice 3 of 4, cannot be decompressed: its decoder ran out of memory"),
        ("panic", "slice 3 of 4, cannot be decompressed"),
    ],
)
def test_whatever_a_decoder_does_is_15(
    tmp_path: Path, bad_decoder: Callable[[Path, str], None], word: str, says: str
) -> None:
    paths = write_series(tmp_path, stored_values(SHAPE), transfer_syntax=JPEGLSLossless)
    bad_decoder(paths[2], word)
    error = refused(tmp_path, WHOLE)
    assert (error.code, error.key) == (15, "pixel_data_undecodable")
    assert says in error.message
    assert "MARKER" not in error.message + error.hint
    bad_decoder(paths[2], "fine 1024")
    assert (read_hu(read(tmp_path), WHOLE) == 0).all()  # 1024 stored, and the pool lives


def test_of_several_faulty_slices_the_first_is_named(tmp_path: Path, bad_decoder: Callable[[Path, str], None]) -> None:
    """The later one fails earlier."""
    paths = write_series(tmp_path, stored_values(SHAPE), transfer_syntax=JPEGLSLossless)
    bad_decoder(paths[1], "late")
    bad_decoder(paths[2], "raise")
    bad_decoder(paths[3], "abort")
    for _ in range(3):
        assert "slice 2 of 4" in refused(tmp_path, WHOLE).message


def test_termination_while_a_decoder_hangs(tmp_path: Path) -> None:
    """As SIGTERM ends a command: in 5 s, with 143, although the decoder never answers."""
    write_series(tmp_path, stored_values(SHAPE), transfer_syntax=JPEGLSLossless)
    code = f"""
import os, signal, sys
sys.path[:] = {sys.path!r}
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
from pathlib import Path
from fourphase.runtime import decode_pool, decode_worker
from fourphase.runtime.pixels import read_hu
from fourphase.runtime.preprocess import VoxelWindow
from fourphase.runtime.study import read_study
pool = decode_pool._shared = decode_pool.DecodePool(2, decoder="tests.support.bad_decoder")
real = pool.decode
real(b"fine 1", decode_worker.FrameFormat("", "", 2, 2, 16, 12, 12))
pool.decode = lambda frame, form: os.write(1, b"decoding\\n") and real(b"sleep", form)
(series,) = read_study(Path({str(tmp_path)!r})).series
read_hu(series, VoxelWindow(slice(0, 4), slice(0, 40), slice(0, 48)))
"""
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    try:
        assert program.stdout.readline() == "decoding\n"
        time.sleep(0.5)
        started = time.monotonic()
        program.send_signal(signal.SIGTERM)
        assert program.wait(15) == 143
        assert time.monotonic() - started < 5
    finally:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("raised", [ValueError, BaseException, RecursionError, MemoryError, KeyboardInterrupt])
def test_what_a_decoder_raises_in_its_process(monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]) -> None:
    """A panic in Rust code is a BaseException; lack of memory and interruption are told apart."""

    def explode(*_: object) -> NDArray[np.uint16]:
        raise raised("MARKER")

    monkeypatch.setitem(decoders.DECODERS, JPEGLSLossless, decoders.Decoder("pyjpegls", JPEG_LS_FRAME, explode))
    kept = raised in (MemoryError, KeyboardInterrupt)
    with pytest.raises(raised if kept else decoders.DecoderFailed) as caught:
        decoders.decode_here(b"", FORM)
    assert kept or "MARKER" not in str(caught.value)


def test_a_missing_decoder_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jpeg_ls", None)
    with pytest.raises(EnvironmentFault, match="pyjpegls"):
        decoders.decode_here(b"", FORM)


@pytest.mark.parametrize(
    ("signed", "value", "fits"),
    [
        *[(False, 0, True), (False, 4095, True), (False, 4096, False), (False, 0xFFFF, False)],
        *[(True, 0x07FF, True), (True, 0xF800, True), (True, 0x3000, False), (True, 0x0800, True)],
    ],
)
def test_values_that_the_stored_bits_cannot_hold(signed: bool, value: int, fits: bool) -> None:
    cells = np.zeros((40, 48), np.uint16)
    cells[7, 9] = value
    wide = FORM._replace(precision=16)
    assert decoders.fits_stored_bits(cells, wide, signed=signed) is fits
    assert decoders.fits_stored_bits(cells, FORM, signed=signed)  # the codestream's precision bounds them itself


def test_a_jpeg_lossless_slice_beyond_its_stored_bits_is_15(tmp_path: Path) -> None:
    """gdcm codes 16 bits; the header says 12."""
    values = stored_values(SHAPE)
    write_series(tmp_path / "fits", values, transfer_syntax=JPEGLosslessSV1)
    read_hu(read(tmp_path / "fits"), WINDOW)
    values[2, 0, 0] = 5000  # outside the window, too
    write_series(tmp_path / "not", values, transfer_syntax=JPEGLosslessSV1, BitsStored=16, HighBit=15)
    for path in (tmp_path / "not").iterdir():
        raw = path.read_bytes()
        stored, high = b"\x28\x00\x01\x01US\x02\x00", b"\x28\x00\x02\x01US\x02\x00"
        path.write_bytes(raw.replace(stored + b"\x10", stored + b"\x0c").replace(high + b"\x0f", high + b"\x0b"))
    error = refused(tmp_path / "not")
    assert error.key == "pixel_data_undecodable"
    assert "slice 3 of 4" in error.message


def test_an_rle_segment_longer_than_the_image_is_damaged() -> None:
    """pydicom warns and cuts it. PS3.5 G.3.1: 2 as a header byte is a literal run of 3."""
    header = struct.pack("<16I", 2, 64, 70, *[0] * 13)
    form = FrameFormat(str(RLELossless), "MONOCHROME2", 1, 4, 16, 12, 16)
    exact = header + bytes([3, 0, 1, 2, 3, 0]) + bytes([3, 4, 5, 6, 7, 0])
    assert decoders.decode_here(exact, form).tolist() == [[4, 256 + 5, 512 + 6, 768 + 7]]
    for longer in (bytes([4, 4, 5, 6, 7, 8]), bytes([0xFC, 4, 0, 0])):  # 5 literal bytes; 5 times the same
        with pytest.raises(decoders.DecoderFailed):
            decoders.decode_here(header + exact[64:70] + longer, form)


def test_a_damaged_jpeg_lossless_scan_that_decodes_is_refused(tmp_path: Path) -> None:
    """libjpeg fills the image and only says so on stderr, which only the child listens to."""
    values = stored_values((2, 40, 48))
    (path, _) = write_series(tmp_path, values, transfer_syntax=JPEGLosslessSV1)
    frame = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    form = FrameFormat(str(JPEGLosslessSV1), "MONOCHROME2", 40, 48, 16, 12, 16)
    told = 0
    for place in range(len(frame) // 2, len(frame) // 2 + 40):
        mutant = frame[:place] + bytes([frame[place] ^ 0x5A]) + frame[place + 1 :]
        try:
            here = decoders.decode_here(mutant, form)
        except decoders.DecoderFailed:
            continue
        assert (here != values[0]).any()
        try:
            decode_pool.shared_pool().decode(mutant, form)
        except decoders.DecoderFailed:
            told += 1
    assert told >= 3


#: 1000 + 16 y + 7 x, 32 x 32, coded without loss by OpenJPH 0.26.3: no package here codes HTJ2K.
HTJ2K = (
    "/0//UQApQAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI"
    "kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAKkAAf+TwAAmifYFB3QAwAASwAATAP4BB3QA"
    "SP4CB3QAwAASwAATgL4AgnQAIkX+AGNUAMAAE8AAFUDee6pwAnUAkBAI5MAhAey2AMAAFZAABaLu7u7u58Cnp6fCeABGwzAMwzD+"
    "/YQge/YQgey6AMAALTgABa4kSZIkSZL5/wCnp6enp6enQn0A3t3d3d3d3d3/eGcnv3ye/fJ798nsvwD/2Q=="
)


@pytest.mark.parametrize("number", ["1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"])
def test_htj2k_of_another_encoder(tmp_path: Path, number: str) -> None:
    row, column = np.mgrid[:32, :32]
    values = np.repeat((1000 + 16 * row + 7 * column)[None].astype(np.uint16), 3, axis=0)
    for path in write_series(tmp_path, values, transfer_syntax=JPEG2000Lossless):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = encapsulate([base64.b64decode(HTJ2K)], has_bot=False)
        dataset.file_meta.TransferSyntaxUID = UID(number)
        dataset.save_as(path)
    window = VoxelWindow(slice(0, 3), slice(2, 30), slice(3, 32))
    np.testing.assert_array_equal(read_hu(read(tmp_path), window), crop(values.astype(np.int32) - 1024, window))


@pytest.mark.skipif(shutil.which("dcmcjpeg") is None, reason="DCMTK is not installed")
@pytest.mark.parametrize(("option", "syntax"), [("+e1", JPEGLosslessSV1), ("+el", JPEGLossless)])
def test_jpeg_lossless_of_another_encoder(tmp_path: Path, option: str, syntax: str) -> None:
    """DCMTK's encoder: nothing in its files is taken for damage."""
    values = stored_values(SHAPE)
    for path in write_series(tmp_path, values):
        subprocess.run(["dcmcjpeg", option, path, path], check=True, capture_output=True)
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_hu(read(tmp_path), WINDOW), crop(values.astype(np.int32) - 1024))


@pytest.mark.skipif(shutil.which("dcmcrle") is None, reason="DCMTK is not installed")
def test_rle_of_another_encoder(tmp_path: Path) -> None:
    values = stored_values((4, 41, 47))
    for path in write_series(tmp_path, values):
        subprocess.run(["dcmcrle", path, path], check=True, capture_output=True)
    np.testing.assert_array_equal(read_hu(read(tmp_path), WINDOW), crop(values.astype(np.int32) - 1024))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(syntax=st.sampled_from([RLELossless, JPEGLSLossless, JPEG2000Lossless]), data=st.data())
def test_flipped_bytes_give_voxels_or_15(
    tmp_path_factory: pytest.TempPathFactory, syntax: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("mutant")
    (path, _) = write_series(folder, stored_values((2, 40, 48)), transfer_syntax=syntax)
    raw = bytearray(path.read_bytes())
    start = raw.index(b"\xe0\x7f\x10\x00")
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(start + 12, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw))
    try:
        hu = read_hu(read(folder), VoxelWindow(slice(0, 2), slice(0, 40), slice(0, 48)))
    except PixelDataError:
        return
    assert hu.min() >= -1024
    assert hu.max() <= 3071


# ---- codestreams


@pytest.mark.parametrize(("syntax", "precision"), [(JPEGLosslessSV1, 16), (JPEGLSLossless, 12), (JPEG2000Lossless, 12)])
def test_codestream_claims(tmp_path: Path, syntax: str, precision: int) -> None:
    (path, _) = write_series(tmp_path, stored_values((2, 40, 48)), transfer_syntax=syntax)
    value = pydicom.dcmread(path).PixelData
    claim = codestream_of(single_frame(value + SEQUENCE_END))
    assert (claim.rows, claim.columns, claim.components, claim.precision) == (40, 48, 1, precision)


def test_fragments_are_joined() -> None:
    item = b"\xfe\xff\x00\xe0"
    parts = [b"", b"abcd", b"ef"]
    value = b"".join(item + struct.pack("<I", len(part)) + part for part in parts)
    whole = value + SEQUENCE_END
    assert single_frame(whole + b"trailing") == b"abcdef"
    for cut in range(len(whole)):
        with pytest.raises(CodestreamError):
            single_frame(whole[:cut])


@given(st.binary(max_size=200))
def test_garbage_codestreams_are_refused(garbage: bytes) -> None:
    for start in (b"", b"\xff\xd8", b"\xff\x4f\xff\x51", b"\xff\xd8\xff"):
        try:
            codestream_of(start + garbage + b"\xff\xd9")
        except CodestreamError as error:
            assert str(error)  # noqa: PT017
