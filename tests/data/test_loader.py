import dataclasses
import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_photos, save_image

from skipway import randomness
from skipway.data import keep, pool
from skipway.data.augmentation.augment import Augment
from skipway.data.files import FileSource
from skipway.data.keep import cache_file, keep_decoded
from skipway.data.loader import Loader, make_loader
from skipway.data.preprocess import Preprocess, plain
from skipway.data.source import ArraySource
from skipway.data.sources.folder import open_folder
from skipway.data_spec import AugmentSpec, DataSpec
from skipway.errors import InputError, ReadError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photos of many sizes, one of them cut in half."""
    folder = tmp_path / "p"
    for i in range(24):
        save_image(folder / ("ants" if i % 2 else "bees") / f"{i:02}.jpg", i, (40 + 9 * i, 90 - 2 * i))
    broken = folder / "ants" / "11.jpg"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    return folder


def source_of(root: Path, **options) -> tuple[FileSource, DataSpec]:
    spec = DataSpec(str(root), **options)
    return open_folder(root, spec), spec


def loader_of(root: Path, *, kept: bool = False, size: int = 20, **options) -> Loader:
    source, spec = source_of(root, **options)
    return make_loader(source, plain(source, spec, size), spec, wanted=torch.arange(len(source)) if kept else None)


def fingerprint(loader: Loader, epochs: int = 2) -> str:
    """A hash of every pixel after augmentation, every label and id over some epochs."""
    digest = hashlib.sha256()
    changes = AugmentSpec(randaugment=1, color_jitter=0.3, mixup=0.2)
    augment = Augment(changes, loader.preprocess, num_classes=2, seed=3)
    for epoch in range(1, epochs + 1):
        order = randomness.order(torch.arange(len(loader.source)), seed=3, epoch=epoch)
        for batch in loader.batches(order, 5):
            pixels = augment.pixels(batch, epoch)
            inputs, targets = augment.mix(loader.preprocess.normalise(pixels), batch, epoch)
            for tensor in (inputs, targets, batch.labels, batch.indices):
                digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_batches_are_the_same_bits_however_they_come(root, monkeypatch):
    """Workers 0, 1 and 4; streamed, kept in memory, built into the cache, mapped from the cache."""
    streamed = {workers: fingerprint(loader_of(root, workers=workers)) for workers in (0, 1, 4)}
    in_memory = loader_of(root, kept=True, workers=2)
    assert in_memory.in_memory
    cached = [loader_of(root, kept=True, workers=2, cache="on") for _ in range(2)]
    assert all(loader.in_memory for loader in cached)
    results = {*streamed.values(), fingerprint(in_memory), *map(fingerprint, cached)}
    assert len(results) == 1
    assert fingerprint(loader_of(root, workers=0, size=21)) not in results


def test_batches_are_the_same_bits_without_fork(root, monkeypatch):
    def batches(loader: Loader) -> tuple[list[list[torch.Tensor]], dict[str, str]]:
        order = randomness.order(torch.arange(24), seed=1, epoch=1)
        found = [[b.images, b.labels, b.indices] for b in loader.batches(order, 7)]
        loader.close()
        return found, loader.bad

    loaders = [loader_of(root, workers=1) for _ in range(2)]
    forked, bad = batches(loaders[0])
    monkeypatch.setattr(pool, "_FORKS", False)
    spawned, bad_spawned = batches(loaders[1])
    assert bad == bad_spawned
    assert list(bad) == ["ants/11.jpg"]
    assert len(spawned) == len(forked) == 4
    for got, want in zip(spawned, forked, strict=True):
        assert all(map(torch.equal, got, want))
    assert max(images.max() for images, _, _ in spawned) > 0


@pytest.mark.parametrize("bad_files", ["skip", "replace"])
def test_a_bad_file_costs_the_same_however_it_comes(root, bad_files):
    ways = [
        loader_of(root, bad_files=bad_files, workers=2),
        loader_of(root, kept=True, bad_files=bad_files, workers=2),
        loader_of(root, bad_files=bad_files, workers=0),
    ]
    found = []
    for loader in ways:
        batches = list(loader.batches(torch.arange(24), 6))
        found.append([batch.indices.tolist() for batch in batches])
        assert list(loader.bad) == ["ants/11.jpg"]
        for batch in batches:
            assert torch.equal(batch.labels, loader.source.labels[batch.indices])
            for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
                assert torch.equal(image, loader.read(index))
    assert found[0] == found[1] == found[2]
    counts = [len(part) for part in found[0]]
    assert sum(counts) == (23 if bad_files == "skip" else 24)


def test_a_replacement_has_the_label_of_the_bad_file(root):
    loader = loader_of(root, bad_files="replace", workers=1)
    bad = next(i for i in range(24) if loader.source.name(i) == "ants/11.jpg")
    [batch] = loader.batches(torch.tensor([bad, 0, *range(12, 24)]), 99)
    assert batch.indices[0] != bad
    assert batch.labels[0] == loader.source.labels[bad]
    [again] = loader_of(root, bad_files="replace", workers=0).batches(torch.tensor([bad, 0, *range(12, 24)]), 99)
    assert torch.equal(batch.indices, again.indices)


def test_bad_files_stop_where_asked(root):
    for kept in (False, True):
        with pytest.raises(ReadError, match=r"ants/11\.jpg.*--bad-files skip"):
            list(loader_of(root, kept=kept, bad_files="stop", workers=1).batches(torch.arange(24), 6))


class Hostile(FileSource):
    """A source of which two files do what no file should."""

    def read(self, index: int, at_least: int = 0) -> torch.Tensor:
        if index == 3:
            time.sleep(60)
        if index == 7:
            list(iter(lambda: bytearray(1 << 28), None))
        return super().read(index, at_least)


@pytest.mark.faults
def test_files_that_sleep_or_allocate_are_left_out(root, monkeypatch):
    monkeypatch.setitem(
        pool.Pool.__init__.__kwdefaults__, "time_limit_s", 8
    )  # a busy machine takes seconds to give 1 GiB
    source, spec = source_of(root, workers=2)
    hostile = Hostile(*(getattr(source, f.name) for f in dataclasses.fields(source)))
    loader = Loader(hostile, plain(hostile, spec, 16), spec)
    seen = torch.cat([batch.indices for batch in loader.batches(torch.arange(24), 6)])
    reasons = {source.name(3): "took more than 8 s to read", source.name(7): "needs more than 1 GiB to read"}
    assert set(reasons.items()) <= set(loader.bad.items())
    assert len(loader.bad) == 3
    assert sorted({*range(24)} - {*seen.tolist()}) == sorted([3, 7, *(i for i in range(24) if "11" in source.name(i))])


def test_cache_is_keyed_by_files_and_preprocessing(root, tmp_path):
    def name(**options):
        loader = loader_of(root, workers=0, **options)
        return cache_file(loader, torch.arange(24))

    first = name()
    assert first == name()
    assert first is not None
    assert first.is_relative_to(tmp_path / "cache")
    assert len({first, name(size=21), name(fit="pad"), cache_file(loader_of(root), torch.arange(23))}) == 4
    image = root / "bees" / "00.jpg"
    save_image(image, 77, (41, 41))
    assert name() != first


def test_cache_is_asked_for_where_it_does_not_fit_into_memory(root, monkeypatch):
    monkeypatch.setattr(keep, "IN_MEMORY", 100)
    questions = []

    def answer(yes):
        def confirm(question):
            questions.append(question)
            return yes

        return confirm

    source, spec = source_of(root, workers=1)
    fitted = plain(source, spec, 20)
    for confirm, want in ((None, False), (answer(False), False), (answer(True), True), (None, True)):
        loader = make_loader(source, fitted, spec, wanted=torch.arange(24), confirm=confirm)
        assert loader.in_memory is want
    assert len(questions) == 2
    assert "0.0 GB" in questions[0]
    off = make_loader(source, fitted, dataclasses.replace(spec, cache="off"), wanted=torch.arange(24))
    assert not off.in_memory


@pytest.mark.parametrize("deep", [False, True])
def test_images_in_memory_stream_at_a_size_that_does_not_fit(deep, monkeypatch):
    images = torch.randint(0, 256, (9, 3, 12, 12), dtype=torch.uint8)
    images = images.float() - 900 if deep else images
    source = ArraySource(images, torch.arange(9) % 2, ("a", "b"), {"train": torch.arange(9)}, "there")
    spec = DataSpec("there", workers=1)
    found = []
    for room in (1 << 20, 100):
        monkeypatch.setattr(keep, "IN_MEMORY", room)
        loader = make_loader(source, plain(source, spec, 20), spec, wanted=torch.arange(9))
        assert loader.in_memory is (room > 100)
        found.append(torch.cat([batch.images for batch in loader.batches(torch.arange(9), 4)]))
        loader.close()
    assert found[0].shape == (9, 3, 20, 20)
    assert found[0].dtype == images.dtype
    assert torch.equal(*found)


def test_cache_needs_space(root, monkeypatch):
    monkeypatch.setattr(keep.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="decoded cache needs .* has 0.0 GB free; --cache off"):
        loader_of(root, kept=True, cache="on", workers=0)


@pytest.mark.faults
def test_a_killed_build_leaves_no_cache_and_the_next_one_sweeps(root, tmp_path):
    child = os.fork()
    if not child:
        loader = loader_of(root, workers=0, cache="on")

        def die(done, total):
            os.kill(os.getpid(), signal.SIGKILL)

        keep_decoded(loader, torch.arange(24), progress=die)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    folder = tmp_path / "cache" / "decoded"
    assert [path.suffix for path in folder.iterdir()] == [".tmp"]
    loader = loader_of(root, kept=True, cache="on", workers=0)
    assert loader.in_memory
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".pixels"]
    want = fingerprint(loader_of(root, workers=0))
    assert fingerprint(loader) == want


def test_damaged_cache_is_named(root, tmp_path):
    loader_of(root, kept=True, cache="on", workers=0)
    [pixels] = (tmp_path / "cache" / "decoded").glob("*.pixels")
    pixels.write_bytes(b"short")
    with pytest.raises(InputError, match="is damaged: remove it"):
        loader_of(root, kept=True, cache="on", workers=0)


def test_progress_is_told(root):
    told = []
    source, spec = source_of(root, workers=0)
    wanted = torch.arange(24)
    make_loader(source, plain(source, spec, 8), spec, wanted=wanted, progress=lambda *args: told.append(args))
    assert told[-1] == (24, 24)


def test_large_jpegs_are_decoded_smaller_and_look_alike(tmp_path):
    ramp = np.linspace(0, 255, 640)[None, :, None] * np.ones((480, 1, 3))
    from PIL import Image

    (tmp_path / "p" / "a").mkdir(parents=True)
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "p" / "a" / "x.jpg", quality=95)
    source, spec = source_of(tmp_path / "p")
    small = source.read(0, at_least=64)
    assert min(small.shape[1:]) in range(64, 128)
    fitted = plain(source, spec, 64)
    difference = fitted.fit(small).int() - fitted.fit(source.read(0)).int()
    assert difference.abs().max() <= 3


@pytest.mark.parametrize(("shape", "want"), [((10, 20), (4, 8)), ((20, 10), (8, 4)), ((1, 50), (1, 8))])
def test_pad_keeps_the_shape_and_squash_fills(shape, want):
    image = torch.full((3, *shape), 200, dtype=torch.uint8)
    padded = Preprocess(8, (0.0,) * 3, (1.0,) * 3, how="pad").fit(image)
    rows, columns = (padded[0] == 200).any(1).sum().item(), (padded[0] == 200).any(0).sum().item()
    assert padded.shape == (3, 8, 8)
    assert (rows, columns) == want
    assert (padded == 0).sum() == 3 * (64 - want[0] * want[1])
    squashed = Preprocess(8, (0.0,) * 3, (1.0,) * 3, how="squash").fit(image)
    assert squashed.unique().tolist() == [200]


def test_grey_photos_and_small_sets_still_stream_with_one_epoch(tmp_path):
    source, spec = source_of(make_photos(tmp_path / "q", num=3), workers=0)
    assert not make_loader(source, plain(source, spec, 8), spec).in_memory


def test_what_predictions_were_normalised_by_serves_training_too():
    preprocess = Preprocess(5, (0.11, 0.22, 0.33), (0.44, 0.55, 0.66))
    images = torch.rand(2, 3, 5, 5)
    with torch.inference_mode():
        want = preprocess.normalise(images)
    images.requires_grad_()
    got = preprocess.normalise(images)
    assert torch.equal(got, want)
    got.sum().backward()
    assert images.grad is not None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("deep", [False, True])
def test_normalise_gives_the_same_bits_in_both_memory_formats(channels, deep):
    images = torch.rand(3, channels, 5, 7) if deep else torch.randint(0, 256, (3, channels, 5, 7), dtype=torch.uint8)
    kept = images.clone()
    preprocess = Preprocess(5, (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.1)[:channels])
    last = preprocess.normalise(images.contiguous(memory_format=torch.channels_last))
    first = preprocess.normalise(images)
    white = 1 if deep else 255
    mean, std = (torch.tensor(v[:channels]).view(1, -1, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.1)))
    assert torch.equal(last, first)
    assert torch.allclose(first, (images / white - mean) / std, atol=1e-5)
    assert torch.equal(images, kept)
