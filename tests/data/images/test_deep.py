import io
import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from conftest import TINY_FLAGS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scans import FLIPS, damaged

import skipway as package
from skipway.data.images import deep
from skipway.data.images import tiff as beyond
from skipway.data.images.decode import decode, read_header
from skipway.data.images.reading import Reading
from skipway.data.open import open_source
from skipway.data.preprocess import Preprocess
from skipway.data_spec import DataSpec
from skipway.errors import InputError, ReadError
from skipway.evaluation.metrics import Scores
from skipway.evaluation.pictures import mistakes

FLAGS = [flag if at - 1 != TINY_FLAGS.index("--epochs") else "6" for at, flag in enumerate(TINY_FLAGS)]
COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}


def png_16(pixels: np.ndarray, *, key: list[int] | None = None, orientation: int = 1) -> bytes:
    """(H, W) or (H, W, 2 to 4) uint16 as a PNG, written from the specification."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, COLOUR_TYPE[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0"
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            chunk(b"eXIf", exif),
            chunk(b"tRNS", np.array(key, ">u2").tobytes()) if key else b"",
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def random(*shape: int, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def reaches_network(data: bytes | Path, channels: int) -> np.ndarray:
    """What the network would see at the image's own size, unnormalised: (H, W) or (H, W, 3)."""
    image = decode(data, Reading(channels, deep=True))
    assert image.dtype == torch.float32
    assert image.permute(1, 2, 0).is_contiguous()
    assert image.shape[0] == channels
    preprocess = Preprocess(image.shape[-1], (0.0,) * channels, (1.0,) * channels, Reading(channels, deep=True))
    seen = preprocess.normalise(preprocess.fit(image)[None])[0].permute(1, 2, 0).numpy()
    return seen[:, :, 0] if channels == 1 else seen


def laid_over_white(pixels: np.ndarray) -> np.ndarray:
    values = pixels / np.float64(np.iinfo(pixels.dtype).max)
    return values[..., :-1] * values[..., -1:] + 1 - values[..., -1:]


# ---------------------------------------------------------------- 16 bits


def test_16_bit_grey_png_reaches_the_network_whole():
    pixels = random(9, 9)
    assert np.array_equal(reaches_network(png_16(pixels), 1), pixels / np.float32(65535))
    three = reaches_network(png_16(pixels), 3)
    assert all(np.array_equal(three[:, :, c], pixels / np.float32(65535)) for c in range(3))


def test_every_value_of_16_bits_stays_apart():
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert len(np.unique(reaches_network(png_16(pixels), 1))) == 65536
    colour = np.stack([pixels, pixels[::-1], pixels.T], axis=2)
    assert len(np.unique(reaches_network(png_16(colour), 3)[:, :, 0])) == 65536


def test_16_bit_colour_png_is_not_cut_to_8_bits():
    pixels = random(9, 9, 3)
    assert np.array_equal(reaches_network(png_16(pixels), 3), pixels / np.float32(65535))


def test_16_bit_colour_becomes_luma():
    pixels = random(6, 6, 3)
    want = (pixels / 65535) @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(reaches_network(png_16(pixels), 1), want, atol=1e-6)


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_of_16_bits_is_laid_over_white(channels):
    pixels = random(7, 7, channels)
    got = reaches_network(png_16(pixels), 3)
    np.testing.assert_allclose(got, np.broadcast_to(laid_over_white(pixels), (7, 7, 3)), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_16_bits_is_white(channels):
    pixels = random(5, 5, 3) if channels == 3 else random(5, 5)
    key = np.atleast_1d(pixels[2, 2]).tolist()
    got = reaches_network(png_16(pixels, key=key), channels)
    want = pixels / np.float32(65535)
    want[2, 2] = 1
    assert np.array_equal(got, want)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["grey png", "colour png", "grey tiff", "colour tiff"])
def test_orientation_is_applied(kind, orientation):
    small = random(3, 3, 3, dtype="uint8") if "colour" in kind else random(3, 3, dtype="uint8")
    image = Image.fromarray(small)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    want = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    pixels = small.astype(np.uint16) * 257
    tag = [(274, 3, 1, orientation, False)]
    data = png_16(pixels, orientation=orientation) if "png" in kind else tiff(pixels, extratags=tag)
    got = reaches_network(data, 3 if "colour" in kind else 1)
    np.testing.assert_allclose(got, want / 255, atol=1e-6)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_grey_tiff_reaches_the_network_whole(byteorder, compression):
    pixels = random(9, 9)
    data = tiff(pixels, byteorder=byteorder, compression=compression, photometric="minisblack")
    assert np.array_equal(reaches_network(data, 1), pixels / np.float32(65535))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}])
def test_16_bit_colour_tiff_reaches_the_network_whole(byteorder, options):
    pixels = random(9, 9, 3)
    data = tiff(pixels, byteorder=byteorder, photometric="rgb", **options)
    assert np.array_equal(reaches_network(data, 3), pixels / np.float32(65535))
    planes = tiff(np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate", **options)
    assert np.array_equal(reaches_network(planes, 3), pixels / np.float32(65535))


def test_opacity_of_a_16_bit_tiff_is_laid_over_white_and_other_extras_are_passed_over():
    pixels = random(6, 6, 4)
    apart = tiff(pixels, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_allclose(reaches_network(apart, 3), laid_over_white(pixels), atol=1e-6)
    unspecified = tiff(pixels, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(reaches_network(unspecified, 3), pixels[:, :, :3] / np.float32(65535))
    opacity = pixels[:, :, 3:].astype(np.float64) / 65535
    multiplied = np.concatenate([(pixels[:, :, :3] * opacity).round().astype(np.uint16), pixels[:, :, 3:]], axis=2)
    within = tiff(multiplied, photometric="rgb", extrasamples=["assocalpha"])
    np.testing.assert_allclose(reaches_network(within, 3), laid_over_white(pixels), atol=2e-5)


def test_white_of_12_bits_is_not_guessed():
    pixels = random(5, 5) >> 4
    assert reaches_network(png_16(pixels), 1).max() == pixels.max() / np.float32(65535) < 0.07


def test_a_tiff_whose_white_is_0_is_inverted():
    pixels = random(5, 5)
    data = tiff(pixels, photometric="miniswhite")
    assert np.array_equal(reaches_network(data, 1), (65535 - pixels) / np.float32(65535))


@pytest.mark.parametrize("white", [65535, 4095, 256])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("plain", [False, True])
def test_pgm_and_ppm_are_divided_by_their_own_white(white, channels, plain):
    pixels = np.random.default_rng(0).integers(0, white + 1, (4, 4, channels))
    magic = {(1, False): "P5", (3, False): "P6", (1, True): "P2", (3, True): "P3"}[channels, plain]
    head = f"{magic}\n# a comment\n4 4\n{white}\n".encode()
    body = " ".join(map(str, pixels.ravel())).encode() if plain else pixels.astype(">u2").tobytes()
    assert read_header(head + body).deep
    got = reaches_network(head + body, channels)
    assert np.array_equal(got.reshape(pixels.shape), pixels.astype(np.float32) / np.float32(white))
    with pytest.raises(ReadError):
        decode((head + body)[:-3] if not plain else head + b"1 2 3", Reading(channels, deep=True))


# ---------------------------------------------------------------- other depths


@pytest.mark.parametrize(
    ("dtype", "byteorder"), [(dtype, order) for dtype in ("int16", "int32", "uint32") for order in "<>"]
)
def test_signed_and_32_bit_values_stay_as_they_are(dtype, byteorder):
    pixels = random(6, 6, dtype=dtype)
    data = tiff(pixels, byteorder=byteorder, photometric="minisblack")
    assert read_header(data).deep
    assert np.array_equal(reaches_network(data, 1), pixels.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_values_stay_as_they_are(dtype):
    pixels = (np.random.default_rng(0).normal(size=(6, 6)) * 1e4).astype(dtype)
    data = tiff(pixels, photometric="minisblack")
    assert np.array_equal(reaches_network(data, 1), pixels.astype(np.float32))


def test_what_is_not_finite_becomes_0_unless_nothing_is():
    pixels = np.array([[1.5, np.nan], [np.inf, -np.inf]], np.float32)
    assert reaches_network(tiff(pixels), 1).tolist() == [[1.5, 0], [0, 0]]
    huge = np.array([[1e300, 2.0], [3.0, 4.0]])  # beyond float32
    assert reaches_network(tiff(huge, photometric="minisblack"), 1).tolist() == [[0, 2], [3, 4]]
    with pytest.raises(ReadError, match=r"x\.tif: holds not one finite value"):
        decode(tiff(pixels * np.nan), Reading(1, deep=True), "x.tif")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_8_bit_files_in_a_deep_reading_are_divided_by_255(mode):
    whole = Image.fromarray(random(8, 8, 4, dtype="uint8"), "RGBA")
    image = whole.convert(mode) if mode in ("RGBA", "LA") else whole.convert("RGB").convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    assert not read_header(buffer.getvalue()).deep
    got = reaches_network(buffer.getvalue(), 3)
    if mode in ("RGBA", "LA"):
        want = np.broadcast_to(laid_over_white(np.asarray(image)), (8, 8, 3))
        np.testing.assert_allclose(got, want, atol=1e-6)
    else:
        assert np.array_equal(got, np.asarray(image.convert("RGB")) / np.float32(255))


@pytest.mark.parametrize("order", ["I;16", "I;16B"])
def test_pillow_images_in_memory_keep_their_depth(order):
    pixels = random(4, 4)
    data = pixels.astype(">u2" if order == "I;16B" else "<u2").tobytes()
    got = deep.from_pil(Image.frombytes(order, (4, 4), data), 1)
    assert np.array_equal(got[0], pixels / np.float32(65535))


def test_headers_tell_what_is_deep():
    assert read_header(png_16(random(3, 3))).deep
    assert read_header(png_16(random(3, 3))).grey
    for channels in (2, 3, 4):
        assert read_header(png_16(random(3, 3, channels))).deep
    assert not read_header(png_16(random(3, 3, 3))).grey
    assert not read_header(tiff(random(3, 3, 3, dtype="uint8"), photometric="rgb")).deep
    rows = struct.pack("<2sIHHI", b"BM", 70, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, 16, 0, 16, 0, 0, 0, 0)
    assert not read_header(rows + bytes(16)).deep  # a BMP of 16 bits a pixel has 5 a channel


def test_the_library_that_a_tiff_needs_is_named_when_it_is_opened(monkeypatch):
    data = tiff(random(3, 3, 3), photometric="rgb", planarconfig="separate", compression="zlib")
    monkeypatch.setattr(beyond, "_WITHOUT_IMAGECODECS", ())
    for read in (lambda: read_header(data, "x.tif"), lambda: decode(data, Reading(3, deep=True), "x.tif")):
        with pytest.raises(
            ReadError, match=r"x\.tif: compressed by ADOBE_DEFLATE, which needs: pip install imagecodecs"
        ):
            read()
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for read in (lambda: read_header(data, "x.tif"), lambda: decode(data, Reading(3, deep=True), "x.tif")):
        with pytest.raises(ReadError, match=r"x\.tif: needs tifffile: pip install 'skipway\[medical\]'"):
            read()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint32"])
@pytest.mark.parametrize("planes", [False, True])
def test_colour_that_pillow_does_not_open_keeps_its_values(dtype, planes, tmp_path):
    pixels = (np.random.default_rng(0).random((5, 5, 3)) * 1000).astype(dtype)
    stored = np.moveaxis(pixels, 2, 0) if planes else pixels
    (tmp_path / "x.tif").write_bytes(tiff(stored, photometric="rgb", planarconfig="separate" if planes else "contig"))
    assert np.array_equal(reaches_network(tmp_path / "x.tif", 3), pixels.astype(np.float32))
    header = read_header(tmp_path / "x.tif")
    assert (header.deep, header.grey, header.format) == (True, False, "TIFF")
    eight = decode(tmp_path / "x.tif", Reading(3))
    assert (eight.dtype, eight.min(), eight.max()) == (torch.uint8, 0, 255)


FILES: dict[str, bytes] = {
    "png": png_16(random(6, 6, 3)),
    "tiff": tiff(random(6, 6, 3), photometric="rgb"),
    "grey tiff": tiff(random(6, 6)),
    "planes": tiff(random(3, 6, 6), photometric="rgb", planarconfig="separate"),
    "float colour": tiff(random(6, 6, 3).astype(np.float32), photometric="rgb"),
    "ppm": b"P6\n6 6\n1000\n" + (random(6, 6, 3) % 1000).astype(">u2").tobytes(),
}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FILES)), FLIPS, st.floats(0, 1))
def test_damaged_files_give_an_image_or_a_read_error(kind, flips, cut):
    for content in damaged(FILES[kind], flips, cut):
        try:
            image = decode(content, Reading(3, deep=True))
        except ReadError:
            continue
        assert image.isfinite().all()
        assert image.shape[0] == 3


# ---------------------------------------------------------------- as a data set


def make_deep_photos(root: Path, *, mixed: bool = False) -> Path:
    """ants below 300, bees above 400 of 65535: alike once they are cut to 8 bits."""
    for level, name in enumerate(("ants", "bees")):
        (root / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng(i).integers(0, 100, (16, 16)) + 400 * level
            (root / name / f"{i:03}.png").write_bytes(png_16(pixels.astype(np.uint16)))
    if mixed:
        Image.fromarray(random(16, 16, 3, dtype="uint8")).save(root / "bees" / "photo.png")
    return root


def test_a_folder_settles_depth_and_channels(tmp_path):
    deep_source = open_source(DataSpec(str(make_deep_photos(tmp_path / "grey")), workers=0))
    assert (deep_source.deep, deep_source.channels, deep_source.size) == (True, 1, (16, 16))
    mixed = open_source(DataSpec(str(make_deep_photos(tmp_path / "mixed", mixed=True)), workers=0))
    assert (mixed.deep, mixed.channels) == (True, 3)
    assert {mixed.read(i).shape[0] for i in range(len(mixed))} == {3}


@pytest.fixture
def deep_run(tmp_path: Path, skipway: Callable) -> tuple[Path, Path]:
    """A folder of 16-bit PNGs, and a run on it."""
    folder = make_deep_photos(tmp_path / "photos")
    result = skipway("train", folder, *FLAGS, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    return folder, tmp_path / "run"


def test_depth_is_learned_from_and_travels_with_the_model(deep_run, skipway):
    folder, run = deep_run
    predictor = package.load(run)
    preprocess = predictor.model.preprocess
    assert preprocess.reading == Reading(1, deep=True)
    paths = sorted(folder.rglob("*.png"))
    pixels = np.stack([tifffile_free_read(path) for path in paths])
    mean, std = np.float64(preprocess.mean[0]), np.float64(preprocess.std[0])
    inputs = torch.from_numpy(((pixels / 65535 - mean) / std).astype(np.float32))[:, None]
    with torch.no_grad():
        want = predictor.model.network(inputs).softmax(1)
    got = predictor.probabilities(paths)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)
    named = [prediction.name for prediction in predictor.predict(paths)]
    assert np.mean([name == path.parent.name for name, path in zip(named, paths, strict=True)]) > 0.9
    evaluated = skipway("evaluate", run, folder, "--json")
    assert evaluated.code == 0, evaluated.err
    accuracy = np.mean([name == path.parent.name for name, path in zip(named, paths, strict=True)])
    assert json.loads(evaluated.out)["accuracy"] == pytest.approx(accuracy)


def tifffile_free_read(path: Path) -> np.ndarray:
    """A grey PNG without filters, undone by hand. -> (16, 16) float64."""
    data = path.read_bytes()
    at = data.index(b"IDAT")
    rows = zlib.decompress(data[at + 4 : at + 4 + struct.unpack(">I", data[at - 4 : at])[0]])
    return np.frombuffer(rows, np.uint8).reshape(16, 33)[:, 1:].copy().view(">u2").astype(np.float64)


def test_every_form_of_a_deep_image_gives_the_same_answer(deep_run):
    folder, run = deep_run
    predictor = package.load(run)
    path = folder / "bees" / "004.png"
    array = np.asarray(Image.open(path)).astype(np.uint16)
    scaled = array / np.float32(65535)
    forms = [path, path.read_bytes(), Image.open(path), array, array[:, :, None], array.astype(">u2"), scaled]
    tensors = [torch.from_numpy(array)[None], torch.from_numpy(scaled)[None]]
    answers = predictor.predict([*forms, *tensors])
    assert all(answer == answers[0] for answer in answers)
    eight = predictor.probabilities([np.full((4, 4), 51, np.uint8), np.full((4, 4), 0.2, np.float32)])
    assert torch.equal(eight[0], eight[1])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.int32), r"must be uint8 \(0 to 255\), uint16 \(0 to 65535\) or float, got int32"),
        (np.full((4, 4), np.nan), "holds not one finite value"),
        (np.zeros((4, 4, 2), np.uint16), r"must be \(H, W\)"),
    ],
)
def test_other_arrays_are_refused_at_depth(deep_run, image, message):
    with pytest.raises(InputError, match=message):
        package.load(deep_run[1]).predict(image)


def test_mistakes_show_deep_images_stretched(tmp_path):
    source = open_source(DataSpec(str(make_deep_photos(tmp_path / "photos")), workers=0))
    indices = torch.arange(4)
    probabilities = torch.tensor([[0.1, 0.9]]).repeat(4, 1)
    scores = Scores(probabilities, torch.zeros(4, dtype=torch.int64), indices, 1.0)
    picture = np.asarray(Image.open(io.BytesIO(mistakes(source, scores, source.classes, "x"))).convert("L"))
    shown = picture[picture.shape[0] // 3 : -4]
    assert ((shown > 80) & (shown < 170)).mean() > 0.03  # greys between black and white
