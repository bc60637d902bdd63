"""Faults that were found from outside, each with the command or call that showed it."""

import csv
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY, TINY_FLAGS, make_photos, save_image
from PIL import Image

import skipway as package
from skipway.data import files
from skipway.data.keep import cache_file
from skipway.data.loader import make_loader
from skipway.data.open import open_source
from skipway.data.preprocess import plain
from skipway.data.sources import index
from skipway.data.split import make_splits, write_split
from skipway.data_spec import DataSpec
from skipway.errors import InputError


def opened(path: Path, **options):
    spec = DataSpec(str(path), workers=0, **options)
    return open_source(spec), spec


def test_exclude_counts_beside_a_split_file(photos, tmp_path):
    source, spec = opened(photos)
    file, leave_out = tmp_path / "split.csv", tmp_path / "out.txt"
    file.write_bytes(write_split(source, make_splits(source, spec)))
    leave_out.write_text("ants/003.png\nbees/004.png\n")
    fewer, spec = opened(photos, split_file=str(file), exclude=str(leave_out))
    splits = make_splits(fewer, spec)
    names = {fewer.name(i) for i in torch.cat([splits.train, splits.val]).tolist()}
    assert len(names) == 38
    assert not names & {"ants/003.png", "bees/004.png"}


@pytest.mark.parametrize("other", [{"folds": 3}, {"group": "p(.)"}])
def test_split_file_goes_with_no_other_way_to_split(other):
    with pytest.raises(InputError, match=r"data\.split_file brings a whole split of its own"):
        DataSpec("x", split_file="split.csv", **other)


def test_a_carriage_return_in_a_name_survives_the_split_file(photos, tmp_path):
    (photos / "ants" / "003.png").rename(photos / "ants" / "cr\rx.png")
    source, spec = opened(photos)
    file = tmp_path / "split.csv"
    file.write_bytes(write_split(source, make_splits(source, spec)))
    again, spec = opened(photos, split_file=str(file))
    splits = make_splits(again, spec)
    assert len(splits.train) + len(splits.val) == 40
    assert {row[1] for row in csv.reader(io.StringIO(file.read_bytes().decode(), newline=""))} == {
        "split",
        "train",
        "val",
    }


def test_pack_ends_however_small_a_shard_is(photos, tmp_path):
    packed = package.pack(photos, tmp_path / "shards", shard_size_mb=1e-9)
    assert packed.shards == 40
    assert sum(packed.samples.values()) == 40


def test_the_decoded_cache_tells_folders_apart(tmp_path):
    """Same names, sizes and times, other pixels: BMP files unpacked from archives that normalise times."""
    pixels = []
    for name, seed in (("a", 0), ("b", 1)):
        rng = np.random.default_rng(seed)
        for i in range(8):
            file = tmp_path / name / ("x" if i % 2 else "y") / f"{i}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(file)
            os.utime(file, (1e9, 1e9))
        source, spec = opened(tmp_path / name, cache="on")
        loader = make_loader(source, plain(source, spec, 9), spec, wanted=torch.arange(8))
        [batch] = loader.batches(torch.arange(8), 8)
        pixels.append(batch.images)
        assert cache_file(loader, torch.arange(8)) is not None
    assert not torch.equal(*pixels)


@pytest.mark.parametrize("place", ["extra.tar", "ants/extra.tar", "train.parquet", "data/meta.parquet"])
def test_what_lies_among_images_takes_no_set_over(photos, place):
    path = photos / place
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            tar.add(photos / "bees", "bees")
    else:
        pq.write_table(pa.table({"img": [b"x"], "label": [0]}), path)
    if place.startswith("data/"):
        with pytest.raises(InputError, match="class folder data .* has no images"):
            opened(photos)
        return
    source, _ = opened(photos)
    assert source.classes == ("ants", "bees")
    assert len(source.splits["all"]) == 40
    assert list(source.bad) == [place]


def test_evaluate_needs_no_groups_of_other_data(tmp_path):
    for patient in range(8):
        for i in range(3):
            save_image(tmp_path / "own" / "ab"[patient % 2] / f"p{patient}_{i}.png", patient)
    run = package.train(
        tmp_path / "own", settings=TINY | {"data": {"group": r"p(\d)_", "workers": 0}}, out=tmp_path / "r"
    )
    other = make_photos(tmp_path / "other", classes=("a", "b"), num=3)
    assert package.evaluate(run, other).num_images == 6
    assert package.evaluate(run).num_images == run.summary["num_val"]


def test_the_index_looks_again_at_what_was_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "HEADERS_UP_TO", 10)
    monkeypatch.setattr("skipway.data.sources.folder.HEADERS_UP_TO", 10)
    root = make_photos(tmp_path / "p", num=10)
    (root / "ants" / "zbad.png").touch()
    (root / "ants" / "zgone.png").symlink_to(tmp_path / "later.png")
    source, _ = opened(root)
    assert list(source.bad.values()) == [index.EMPTY, index.NOTHING]
    assert index.load(root) is not None
    times = os.stat(root / "ants")
    (root / "ants" / "zbad.png").write_bytes((root / "ants" / "000.png").read_bytes())
    os.utime(root / "ants", ns=(times.st_atime_ns, times.st_mtime_ns))
    source, _ = opened(root)
    assert list(source.bad) == ["ants/zgone.png"]
    assert len(source.splits["all"]) == 21


def test_two_pictures_in_one_jpeg_are_packed(tmp_path):
    images = []
    for i in range(4):
        first, second = (Image.new("RGB", (16 + i, 12), (60 * i, k, 0)) for k in (0, 200))
        file = tmp_path / f"{i}.mpo"
        first.save(file, "MPO", save_all=True, append_images=[second])
        images.append(file.read_bytes())
    pq.write_table(pa.table({"img": images, "label": ["x", "y"] * 2}), tmp_path / "set.parquet")
    packed = package.pack(tmp_path / "set.parquet", tmp_path / "shards")
    assert packed.samples == {"all": 4}
    assert len(opened(tmp_path / "shards")[0].splits["all"]) == 4


def test_preview_shows_names_that_are_no_text(tmp_path):
    root = make_photos(tmp_path / "p", num=6)
    for name in ("ants", "bees"):
        (root / name / "000.png").rename(root / name / "\udcff1.png")
    assert package.preview(root, out=tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize("part", ["index", "decoded"])
def test_a_cache_that_cannot_be_written_costs_nothing(photos, tmp_path, monkeypatch, part):
    package.pack(photos, tmp_path / "shards")
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / part).rmdir() if (tmp_path / "cache" / part).is_dir() else None
    (tmp_path / "cache" / part).write_text("a file where a folder should be")
    assert len(opened(tmp_path / "shards")[0].splits["all"]) == 40


@pytest.mark.parametrize(("classes", "num", "kind"), [(("a",), 5, "one class"), (("a", "b"), 1, "splits")])
def test_doctor_calls_an_error_what_training_refuses(tmp_path, skipway, classes, num, kind):
    root = make_photos(tmp_path / "p", classes=classes, num=num)
    found = package.doctor(root)
    assert found.exit_code == 11
    assert kind in {finding.kind for finding in found.findings}
    assert skipway("train", root, *TINY_FLAGS).code == 2


def test_doctor_counts_without_the_excluded(photos, tmp_path):
    (tmp_path / "out.txt").write_text("ants/003.png\n")
    assert package.doctor(DataSpec(str(photos), exclude=str(tmp_path / "out.txt"))).statistics["images"] == 39


def test_replace_replaces_files_whose_header_is_bad(photos):
    (photos / "ants" / "003.png").write_bytes(b"no image")
    for way, count in (("skip", 39), ("replace", 40)):
        source, spec = opened(photos, bad_files=way)
        assert len(source.splits["all"]) == count
        loader = make_loader(source, plain(source, spec, 8), spec)
        seen = [batch.labels for batch in loader.batches(source.splits["all"], 16)]
        assert sum(map(len, seen)) == count
        assert list(loader.bad) == ["ants/003.png"]


def test_a_frame_that_no_file_has_is_explained(tmp_path, skipway):
    nibabel = pytest.importorskip("nibabel")
    for i in range(24):
        file = tmp_path / "scans" / "ab"[i % 2] / f"{i}.nii"
        file.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 3), np.float32), np.eye(4)), file)
    result = skipway("train", tmp_path / "scans", *TINY_FLAGS, "--frame", 99)
    assert result.code == 2
    assert "a/0.nii" in result.err
    assert "3" in result.err


def test_names_with_colons_are_no_pictures(tmp_path, skipway):
    root = make_photos(tmp_path / "p", classes=(":bug:", "b"), num=6)
    (root / "b" / ":car:.png").write_bytes(b"no image")
    result = skipway("train", root, *TINY_FLAGS, "--out", tmp_path / "run")
    assert "b/:car:.png" in result.out
    assert ":bug:" in skipway("evaluate", tmp_path / "run").out


def test_a_run_says_that_its_data_path_is_relative(photos, tmp_path, skipway, monkeypatch):
    monkeypatch.chdir(photos.parent)
    package.train("photos", settings=TINY, out=tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = skipway("evaluate", tmp_path / "run")
    assert result.code == 2
    assert "as seen from where the run was started" in result.err
