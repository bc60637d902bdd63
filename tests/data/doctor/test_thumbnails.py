import io

import numpy as np
import pytest
import torch
from conftest import make_photos, save_image
from PIL import Image
from scenes import scene

from skipway.data.doctor import thumbnails
from skipway.data.doctor.thumbnails import glance_at, is_cut, look_at
from skipway.data.files import BytesFiles, file_source
from skipway.data.open import open_source
from skipway.data.source import ArraySource
from skipway.data_spec import DataSpec


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_missing_end_is_seen(kind):
    buffer = io.BytesIO()
    scene(1).save(buffer, kind)
    whole = buffer.getvalue()
    assert not is_cut(whole, kind)
    assert not is_cut(whole + b"\0" * 100, kind)
    assert is_cut(whole[: -12 if kind == "PNG" else -2], kind)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_row_says_what_the_file_holds(tmp_path, monkeypatch, on_disk):
    if on_disk:
        monkeypatch.setattr(thumbnails, "ON_DISK_FROM", 0)
    root = make_photos(tmp_path / "photos", num=6)
    save_image(root / "ants/000.png", seed=1, size=(40, 20))
    (root / "bees/000.png").write_bytes((root / "bees/001.png").read_bytes())
    source = open_source(DataSpec(str(root), workers=0))
    told = []
    looks = look_at(source, torch.arange(12), 0, progress=lambda *numbers: told.append(numbers))
    row = looks.table[0]
    pixels = np.asarray(Image.open(root / "ants/000.png"), np.float64) / 255
    assert (row["width"], row["height"], row["format"], row["mode"]) == (40, 20, b"PNG", b"RGB")
    assert row["mean"] == pytest.approx(pixels.mean((0, 1)), abs=1e-6)
    assert row["square"] == pytest.approx((pixels**2).mean((0, 1)), abs=1e-6)
    assert row["bytes"] == (root / "ants/000.png").stat().st_size
    assert (looks.table["content"][6], looks.table["pixels"][6]) == (
        looks.table["content"][7],
        looks.table["pixels"][7],
    )
    assert len({bytes(hashed) for hashed in looks.table["pixels"]}) == 11
    assert told[-1] == (12, 12)
    assert not looks.unreadable


def test_bytes_and_arrays_give_the_same_pixels():
    images, blobs = [scene(i, (32, 32)) for i in range(5)], []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        blobs.append(buffer.getvalue())
    labels = torch.zeros(5, dtype=torch.int64)
    files = file_source(BytesFiles.of(blobs, "b"), labels, ("a",), {}, DataSpec("b", workers=0))
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    array = ArraySource(pixels.contiguous(), labels, ("a",), {}, "b")
    of_files, of_array = (look_at(source, torch.arange(5), 0).table for source in (files, array))
    for column in ("width", "height", "pixels", "thumb"):
        assert (of_files[column] == of_array[column]).all(), column
    np.testing.assert_allclose(of_files["square"], of_array["square"], rtol=1e-5)  # summed in another order
    assert of_array["bytes"].sum() == 0


def test_a_glance_hashes_only_files_of_one_size(tmp_path, monkeypatch):
    root = make_photos(tmp_path / "photos", num=3)
    (root / "bees/twin.png").write_bytes((root / "ants/001.png").read_bytes())
    (root / "ants/long.png").write_bytes((root / "ants/000.png").read_bytes() + b"more")
    source = open_source(DataSpec(str(root), workers=0))
    looks = glance_at(source, torch.arange(8), 0)
    content = {source.name(i): bytes(looks.table["content"][i]) for i in range(8)}
    assert content["bees/twin.png"] == content["ants/001.png"]
    assert len(set(content.values())) == 7
    monkeypatch.setattr(thumbnails, "GLANCE_UP_TO", 7)
    assert not len(glance_at(source, torch.arange(8), 0).seen)
