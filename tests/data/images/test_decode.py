import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skipway.data.images import decode as decoding
from skipway.data.images.decode import decode, from_pil, read_header
from skipway.data.images.reading import Reading
from skipway.errors import ReadError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_colour_image_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    got = decode(encoded(Image.fromarray(pixels)), Reading(3))
    assert got.dtype == torch.uint8
    assert torch.equal(got, torch.from_numpy(pixels).permute(2, 0, 1))


def test_grey_becomes_three_equal_channels_and_colour_becomes_luma():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    three = decode(encoded(Image.fromarray(grey)), Reading(3))
    assert all(torch.equal(three[c], torch.from_numpy(grey)) for c in range(3))
    red = decode(encoded(Image.new("RGB", (4, 4), (255, 0, 0))), Reading(1))
    assert red.shape == (1, 4, 4)
    assert red.unique().tolist() == [76]  # 0.299 x 255


def test_palette_and_cmyk_become_rgb():
    image = Image.new("RGB", (8, 8), (200, 30, 60))
    palette = decode(encoded(image.convert("P", palette=Image.Palette.ADAPTIVE)), Reading(3))
    assert palette[:, 0, 0].tolist() == pytest.approx([200, 30, 60], abs=4)
    cmyk = decode(encoded(image.convert("CMYK"), "TIFF"), Reading(3))
    assert cmyk[:, 0, 0].tolist() == pytest.approx([200, 30, 60], abs=4)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    got = decode(encoded(image.convert(mode)), Reading(3))
    assert got[:, 0, 0].tolist() == [0, 0, 0]
    assert got[:, 0, 1].tolist() == [255, 255, 255]


def test_transparent_palette_is_laid_over_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 0, 0, 0])
    image.putpixel((1, 0), 1)
    got = decode(encoded(image, transparency=1), Reading(3))
    assert got[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_16_bit_grey_is_scaled_not_cut():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    got = decode(encoded(Image.fromarray(values)), Reading(1))
    assert got[0, 0].tolist() == [0, 1, 128, 255]


def test_float_grey_is_stretched_from_its_own_range():
    got = from_pil(Image.fromarray(np.array([[-1.0, 0.0, 1.0, np.nan]], dtype=np.float32)), 1)
    assert got[0, 0].tolist() == [0, 128, 255, 128]


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    got = decode(encoded(image, "PNG", exif=exif), Reading(3))
    assert got.shape == (3, 4, 2)
    assert got[:, 0, 1].tolist() == [255, 255, 255]


def test_animation_gives_its_first_frame():
    frames = [Image.new("L", (3, 3), v) for v in (10, 200)]
    got = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), Reading(1))
    assert got.unique().tolist() == [10]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_format_is_read(kind):
    data = encoded(Image.new("RGB", (9, 5), (90, 120, 30)), kind)
    assert decode(data, Reading(3)).shape == (3, 5, 9)
    header = read_header(data)
    assert (header.width, header.height) == (9, 5)


def test_other_formats_are_refused():
    with pytest.raises(ReadError, match="of a format that is not read"):
        decode(encoded(Image.new("RGB", (4, 4)), "TGA"), Reading(3), "x")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_image_is_named(data):
    with pytest.raises(ReadError, match=r"photo\.png: not an image"):
        decode(data, Reading(3), "photo.png")


def test_truncated_jpeg_is_named():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(pixels), "JPEG")
    with pytest.raises(ReadError, match=r"photo: .*truncated"):
        decode(whole[: len(whole) // 2], Reading(3), "photo")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 99)
    data = encoded(Image.new("RGB", (10, 10)))
    for read in (read_header, lambda d: decode(d, Reading(3))):
        with pytest.raises(ReadError, match="10x10 pixels are more than the 99"):
            read(data)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ReadError, match=r"none\.png: no such file"):
        decode(tmp_path / "none.png", Reading(3))


def test_read_error_travels_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(ReadError("a.png", "broken")))
    assert (error.name, error.reason, str(error)) == ("a.png", "broken", "a.png: broken")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]), st.data())
def test_damaged_bytes_give_an_image_or_a_read_error(noise, kind, data):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(pixels), kind)
    at = data.draw(st.integers(0, len(whole)))
    damaged = whole[:at] + noise + whole[at + len(noise) :]
    try:
        image = decode(damaged, Reading(3))
    except ReadError:
        return
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3


def test_every_file_of_a_malformed_collection_is_read_or_named(shared_data: Path, capfd):
    results = {"read": 0, "named": 0}
    for file in sorted((shared_data / "malformed").iterdir()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                image = decode(file, Reading(3))
            except ReadError as error:
                assert error.reason, file
                results["named"] += 1
            else:
                assert image.shape[0] == 3
                results["read"] += 1
    assert results["read"] > 100
    assert results["named"] > 100
