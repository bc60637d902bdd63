import socket
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_voi_lut, apply_windowing
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless
from scans import DEEP, FULL, dicom, item_of, lut, opened, random, reaches_network, same, values_of, written

from skipway.data.images import reading
from skipway.data.images.decode import decode, read_header
from skipway.data.images.reading import Reading
from skipway.errors import ReadError

_FOLDER = Path(pydicom.__file__).parent / "data/test_files"  # in the wheel; pydicom's own finder would download more
DICOM_FILES = sorted(p for p in _FOLDER.rglob("*") if p.is_file() and (p.suffix == ".dcm" or p.name.isdigit()))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a test tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def by_pydicom(path: Path) -> tuple[Dataset, np.ndarray, int]:
    """The file, its middle frame and how many frames there are, or whatever pydicom raises."""
    data = pydicom.dcmread(path, force=True)
    if not data.file_meta.get("TransferSyntaxUID"):
        data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    frames = int(data.get("NumberOfFrames") or 1)
    return data, data.pixel_array[frames // 2] if frames > 1 else data.pixel_array, frames


def windowed(values: np.ndarray, data: Dataset) -> np.ndarray:
    """pydicom's windowing, from its range onto 0 to 1."""
    with np.errstate(over="ignore"):
        low, high = apply_windowing(np.array([-1e12, 1e12]), data)
    return (apply_windowing(values, data) - low) / (high - low)


def test_there_are_files_to_compare_with():
    assert len(DICOM_FILES) > 80


@pytest.mark.parametrize("path", DICOM_FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
@pytest.mark.filterwarnings("ignore")  # of pydicom, in the oracle; ours are checked below
def test_pydicoms_own_files_match_its_arithmetic(path, recwarn):
    try:
        data, stored, frames = by_pydicom(path)
    except Exception:
        with pytest.raises(ReadError):
            decode(path, DEEP)
        return
    recwarn.clear()
    header = read_header(path)
    grey = "MONO" in data.PhotometricInterpretation
    assert (header.height, header.width, header.frames, header.grey) == (data.Rows, data.Columns, frames, grey)
    if not grey:
        colour = apply_color_lut(stored, data) if "PALETTE" in data.PhotometricInterpretation else stored
        white = {"uint8": 255, "uint16": 65535, "uint32": 1}[colour.dtype.name]
        same(decode(path, Reading(3, deep=True)).permute(1, 2, 0).numpy(), colour / np.float32(white))
        assert header.deep == (white != 255)
        assert not recwarn.list
        return
    assert header.deep
    values = np.asarray(apply_modality_lut(stored, data), np.float64)
    white_is_0 = data.PhotometricInterpretation == "MONOCHROME1"
    ends = np.array([0, 2**data.BitsStored - 1]) - (2 ** (data.BitsStored - 1) if data.PixelRepresentation else 0)
    full = apply_modality_lut(ends, data).sum() - values if white_is_0 else values
    assert np.array_equal(decode(path, FULL)[0].numpy(), full.astype(np.float32))
    window = "WindowWidth" in data and data.WindowWidth is not None
    assert header.windowed == window
    seen = windowed(values, data) if window else full
    same(decode(path, DEEP)[0].numpy(), 1 - seen if window and white_is_0 else seen)
    assert not recwarn.list


def test_most_of_pydicoms_files_are_read():
    read = 0
    for path in DICOM_FILES:
        try:
            read += decode(path, DEEP).isfinite().all().item()
        except ReadError:
            continue
    assert read > 70


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
def test_windows_are_the_standards(interpretation, function, dtype):
    low, high = (-100, 100) if dtype.startswith("i") else (0, 200)
    pixels = random(9, 9, dtype=dtype, low=low, high=high)
    chosen = {"VOILUTFunction": function} if function else {}
    file = dicom(
        pixels,
        interpretation=interpretation,
        RescaleSlope=2.5,
        RescaleIntercept=-30,
        WindowCenter=40,
        WindowWidth=77,
        **chosen,
    )
    want = windowed(values_of(opened(file)), opened(file))
    got = reaches_network(file)
    same(got, 1 - want if interpretation == "MONOCHROME1" else want)
    assert 0 <= got.min() < got.max() <= 1
    eight = decode(file, Reading(1))
    assert eight.dtype == torch.uint8
    assert np.abs(eight[0].numpy() - 255 * got).max() <= 0.51


def test_the_linear_window_by_hand():
    pixels = np.array([[0, 9, 10, 11, 12, 13, 14, 20]], np.uint16)  # center 12, width 5: 11.5 -+ 2
    got = reaches_network(dicom(pixels, WindowCenter=12, WindowWidth=5))
    assert got.tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]
    assert reaches_network(dicom(pixels, WindowCenter=12, WindowWidth=1)).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    asked = Reading(1, deep=True, window="12/5")
    assert reaches_network(dicom(pixels, WindowCenter=1, WindowWidth=2), asked).tolist() == got.tolist()
    narrow = Reading(1, deep=True, window="12/0.5")
    assert reaches_network(dicom(pixels), narrow).tolist() == [0, 0, 0, 0, 0.5, 1, 1, 1]


def test_of_several_windows_the_first_counts():
    pixels = random(5, 5)
    first = dicom(pixels, WindowCenter=1000, WindowWidth=500)
    several = dicom(pixels, WindowCenter=[1000, 40], WindowWidth=[500, 80])
    assert np.array_equal(reaches_network(several), reaches_network(first))


@pytest.mark.parametrize("width", [0, 0.5, -3])
def test_a_window_that_means_nothing_is_named(width):
    file = dicom(random(4, 4), WindowCenter=40, WindowWidth=width)
    with pytest.raises(ReadError, match=rf"x\.dcm: its window is {width:g} wide; --window full"):
        decode(file, DEEP, "x.dcm")
    assert np.array_equal(reaches_network(file, FULL), random(4, 4))


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
@pytest.mark.parametrize("bits", [12, 16])
def test_white_of_monochrome1_is_the_end_of_the_stored_bits(dtype, bits):
    low = -(1 << (bits - 1)) if dtype == "int16" else 0
    pixels = random(6, 6, dtype=dtype, low=low, high=low + (1 << bits))
    file = dicom(pixels, bits=bits, interpretation="MONOCHROME1", RescaleSlope=0.5, RescaleIntercept=7)
    high = low + (1 << bits) - 1
    want = (low + high - pixels.astype(np.float64)) * 0.5 + 7
    assert np.array_equal(reaches_network(file, FULL), want.astype(np.float32))
    assert np.array_equal(reaches_network(file, DEEP), want.astype(np.float32))  # no window of its own


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_tables_are_honoured(bits):
    pixels = random(8, 8, high=300)
    table = (np.sqrt(np.arange(200) / 199) * (2**bits - 1)).round().astype(np.uint16)
    file = dicom(pixels, VOILUTSequence=[lut(50, table, bits)], WindowCenter=40, WindowWidth=80)
    want = apply_voi(pixels, opened(file)) / (2.0**bits - 1)
    assert read_header(file).windowed
    same(reaches_network(file), want)
    assert np.array_equal(want, apply_voi_lut(pixels, opened(file)) / (2.0**bits - 1))  # it wins over the window
    assert np.array_equal(reaches_network(file, FULL), pixels)


def test_a_modality_table_gives_the_files_units():
    pixels = random(8, 8, high=300)
    table = (np.arange(200) ** 1.5).astype(np.uint16)
    file = dicom(pixels, ModalityLUTSequence=[lut(50, table, 16)], WindowCenter=900, WindowWidth=1000)
    assert np.array_equal(reaches_network(file, FULL), apply_modality_lut(pixels, opened(file)))
    same(reaches_network(file), windowed(values_of(opened(file)), opened(file)))


def test_enhanced_files_have_rescale_and_window_frame_by_frame():
    pixels = random(3, 6, 6)
    groups = [
        item_of(
            PixelValueTransformationSequence=[item_of(RescaleSlope=n + 1, RescaleIntercept=-n, RescaleType="US")],
            FrameVOILUTSequence=[item_of(WindowCenter=100 * n + 50, WindowWidth=1000)],
        )
        for n in range(3)
    ]
    file = dicom(pixels, PerFrameFunctionalGroupsSequence=groups)
    shared = dicom(pixels, SharedFunctionalGroupsSequence=groups[1:2])
    assert read_header(file).windowed
    for n, frame in enumerate(("first", "middle", "last")):
        alone = dicom(pixels[n], RescaleSlope=n + 1, RescaleIntercept=-n, WindowCenter=100 * n + 50, WindowWidth=1000)
        assert np.array_equal(reaches_network(file, Reading(1, deep=True, frame=frame)), reaches_network(alone))
    assert np.array_equal(reaches_network(shared), reaches_network(file))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_pixels_keep_their_values(dtype):
    pixels = np.random.default_rng(0).normal(size=(5, 5)).astype(dtype)
    pixels[1, 1] = np.nan
    want = pixels.astype(np.float32)
    want[1, 1] = 0
    assert np.array_equal(reaches_network(dicom(pixels)), want)
    with pytest.raises(ReadError, match="not one finite value"):
        decode(dicom(pixels * np.nan), DEEP)


def test_pixels_of_one_bit_are_0_and_1():
    bits = random(8, 8, dtype="uint8", high=2)
    file = dicom(np.packbits(bits, axis=1, bitorder="little"), BitsAllocated=1, BitsStored=1, HighBit=0, Columns=8)
    assert np.array_equal(reaches_network(file), bits)


def test_colour_keeps_its_depth_and_becomes_luma():
    for dtype, white in (("uint8", 255), ("uint16", 65535)):
        pixels = random(6, 6, 3, dtype=dtype, high=white + 1)
        file = dicom(pixels, interpretation="RGB")
        header = read_header(file)
        assert (header.deep, header.grey) == (white > 255, False)
        assert np.array_equal(reaches_network(file, Reading(3, deep=True)), pixels / np.float32(white))
        want = (pixels / white) @ np.array([0.299, 0.587, 0.114])
        np.testing.assert_allclose(reaches_network(file), want, atol=1e-6)
        eight = decode(file, Reading(3)).permute(1, 2, 0).numpy()
        assert np.abs(eight - pixels / (white / 255)).max() <= 0.51


def test_frames_are_chosen():
    pixels = random(5, 4, 4)
    file = dicom(pixels)
    for frame, number in (("first", 0), ("middle", 2), ("last", 4), ("3", 3)):
        got = reaches_network(file, Reading(1, deep=True, frame=frame))
        assert np.array_equal(got, pixels[number])
    with pytest.raises(ReadError, match=r"has 5 frames, numbered from 0, so there is no frame 5$"):
        decode(file, Reading(1, deep=True, frame="5"), "x")
    with pytest.raises(ReadError, match="has 1 frame, numbered"):
        decode(dicom(pixels[0]), Reading(1, deep=True, frame="1"), "x")


def test_only_the_frame_asked_for_is_read(tmp_path):
    (tmp_path / "x.dcm").write_bytes(dicom(random(200, 128, 128)))
    decode(tmp_path / "x.dcm", DEEP)
    tracemalloc.start()
    decode(tmp_path / "x.dcm", DEEP)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 128 * 128 * 2 / 4


@pytest.mark.parametrize("syntax", ["deflated", "rle"])
def test_packed_files_are_read(syntax):
    pixels = random(3, 8, 8)
    data = opened(dicom(pixels, WindowCenter=2000, WindowWidth=3000))
    if syntax == "rle":
        data.compress(RLELossless, generate_instance_uid=False)
    else:
        data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    assert np.array_equal(
        reaches_network(written(data)), reaches_network(dicom(pixels[1], WindowCenter=2000, WindowWidth=3000))
    )


def test_a_compression_without_decoder_is_named_when_it_is_opened():
    data = opened(dicom(random(4, 4)))
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = pydicom.encaps.encapsulate([b"1234"])
    data["PixelData"].is_undefined_length = True
    for read in (lambda: read_header(written(data), "x"), lambda: decode(written(data), DEEP, "x")):
        with pytest.raises(
            ReadError, match=r"x: compressed as JPEG-LS .*4\.80\), which needs a decoder: pip install pylib"
        ):
            read()


def test_what_is_no_image_is_named(tmp_path):
    report = item_of(Modality="SR", SOPClassUID="1.2", SOPInstanceUID="1.3")
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report.file_meta.MediaStorageSOPClassUID, report.file_meta.MediaStorageSOPInstanceUID = UID("1.2"), UID("1.3")
    with pytest.raises(ReadError, match=r"x: is DICOM without an image \(of modality SR\)"):
        read_header(written(report), "x")
    (tmp_path / "x.dcm").write_bytes(b"not DICOM at all, but long enough to be read as if it were, perhaps")
    with pytest.raises(ReadError):
        read_header(tmp_path / "x.dcm")
    for garbage in (b"", b"\0" * 60, b"\xff" * 60):
        with pytest.raises(ReadError):
            decode(bytes(128) + b"DICM" + garbage, DEEP, "x")
    with pytest.raises(ReadError, match=r"none\.dcm: no such file"):
        decode(tmp_path / "none.dcm", DEEP)
    with pytest.raises(ReadError, match=r"photometric interpretation CMYK is not read"):
        decode(dicom(random(4, 4), PhotometricInterpretation="CMYK"), DEEP)


def test_truncated_pixels_are_named():
    whole = dicom(random(32, 32))
    with pytest.raises(ReadError, match="x: "):
        decode(whole[:-100], DEEP, "x")
    assert read_header(whole[:-100]).width == 32


def test_a_dicom_header_that_claims_too_much_is_refused(monkeypatch):
    file = dicom(random(4, 4), Rows=65535, Columns=65535)
    for read in (lambda: read_header(file, "x"), lambda: decode(file, DEEP, "x")):
        with pytest.raises(ReadError, match="65535x65535 pixels are more than the 100,000,000 that are read"):
            read()
    for sides in ((0, 4), (4, 0)):
        with pytest.raises(ReadError):
            decode(dicom(random(4, 4), Rows=sides[0], Columns=sides[1]), DEEP)
    assert reading.MAX_PIXELS == 100_000_000
