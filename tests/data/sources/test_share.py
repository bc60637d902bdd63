import hashlib
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_photos
from hypothesis import given
from hypothesis import strategies as st

from skipway.data.files import FileSource, Names
from skipway.data.open import open_source
from skipway.data.source import ArraySource
from skipway.data.sources.pack import pack
from skipway.data.sources.share import shard_order, shard_part, share
from skipway.data.sources.tar_index import RAW, DiskBytes, MemberFiles
from skipway.data_spec import DataSpec
from skipway.errors import InputError


def sharded(counts: list[int]) -> FileSource:
    """A source of shards of so many samples; nothing of it can be read."""
    parts = np.repeat(np.arange(len(counts)), counts)
    rows = np.zeros((len(parts), 6), np.int64)
    rows[:, 0], rows[:, 1], rows[:, 4] = parts, np.arange(len(parts)) * 512, RAW
    files = MemberFiles(DiskBytes([Path(f"{i}.tar") for i in range(len(counts))]), rows, Names.of(map(str, parts)))
    labels = torch.zeros(len(parts), dtype=torch.int64)
    return FileSource(files, labels, ("a",), {"all": torch.arange(len(parts))})


def shards_of(source: FileSource) -> np.ndarray:
    assert isinstance(source.files, MemberFiles)
    return source.files.rows[:, 0]


counts_and_world = st.tuples(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 9))


@given(st.integers(0, 200), st.integers(1, 9))
def test_share_gives_each_sample_to_one_process(count, world):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    parts = [share(order, rank, world) for rank in range(world)]
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(counts_and_world, st.data())
def test_shard_parts_cover_everything_once_and_keep_to_their_shards(drawn, data):
    counts, world = drawn
    source = sharded(counts)
    chosen = data.draw(st.lists(st.booleans(), min_size=sum(counts), max_size=sum(counts)))
    indices = torch.tensor([i for i, take in enumerate(chosen) if take], dtype=torch.int64)
    parts = [shard_part(source, indices, rank=rank, world=world) for rank in range(world)]
    assert sorted(torch.cat(parts).tolist()) == indices.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    touched = [set(shards_of(source)[part.numpy()].tolist()) for part in parts]
    assert sum(map(len, touched)) <= len(set.union(*touched)) + world - 1  # a shard is split at most at each cut


@given(counts_and_world, st.integers(0, 5), st.integers(0, 5), st.integers(1, 60))
def test_shard_order_is_a_seeded_permutation(drawn, seed, epoch, window):
    source = sharded(drawn[0])
    indices = torch.arange(len(source))
    order = shard_order(source, indices, seed=seed, epoch=epoch, window=window)
    assert sorted(order.tolist()) == indices.tolist()
    again = shard_order(source, indices.flip(0), seed=seed, epoch=epoch, window=window)
    assert again.equal(order)  # whatever the order it is given


def test_shard_order_reads_from_few_shards_at_a_time():
    source = sharded([100] * 20)
    indices = torch.arange(2000)
    order = shard_order(source, indices, seed=0, epoch=3, window=200)
    shards = torch.from_numpy(shards_of(source))[order]
    for start in range(0, 2000, 100):
        assert len(shards[start : start + 100].unique()) <= 6
    first_seen = list(dict.fromkeys(shards.tolist()))
    assert first_seen != sorted(first_seen)
    assert not order.equal(shard_order(source, indices, seed=0, epoch=4, window=200))
    assert not order.equal(shard_order(source, indices, seed=1, epoch=3, window=200))
    within = order[shards == 5]
    assert not within.equal(within.sort().values)


def draw(number: int, seed: int, epoch: int, stream: str) -> int:
    """The draw that belongs to a number, in plain integers."""

    def mix(x: int) -> int:
        mask = 2**64 - 1
        z = (x + 0x9E3779B97F4A7C15) & mask
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    key = hashlib.blake2b(f"{seed}/{epoch}/{stream}".encode(), digest_size=8).digest()
    return mix(mix(mix(number ^ int.from_bytes(key, "little")))) >> 11


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 9), st.integers(0, 9), st.integers(1, 7))
def test_order_is_the_same_on_every_machine(counts, seed, epoch, window):
    shard_of = [part for part, count in enumerate(counts) for _ in range(count)]
    line = sorted(range(len(shard_of)), key=lambda i: (draw(shard_of[i], seed, epoch, "shards"), i))
    start = window * draw(0, seed, epoch, "window") >> 53
    places = sorted(range(len(line)), key=lambda p: ((p + start) // window, draw(line[p], seed, epoch, "order")))
    order = shard_order(sharded(counts), torch.arange(len(line)), seed=seed, epoch=epoch, window=window)
    assert order.tolist() == [line[place] for place in places]


def test_sources_without_shards_are_one():
    images = torch.zeros(10, 1, 2, 2, dtype=torch.uint8)
    source = ArraySource(images, torch.zeros(10, dtype=torch.int64), ("a",), {}, "x")
    order = shard_order(source, torch.arange(10), seed=0, epoch=0)
    assert sorted(order.tolist()) == list(range(10))
    assert order.tolist() != list(range(10))
    assert shard_part(source, torch.arange(10), rank=1, world=3).tolist() == [3, 4, 5]


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_ranks_that_are_none(rank, world):
    with pytest.raises(InputError, match="rank must"):
        share(torch.arange(3), rank, world)
    with pytest.raises(InputError, match="rank must"):
        shard_part(sharded([3]), torch.arange(3), rank=rank, world=world)


def see(folder: str, rank: int, world: int, epochs: int, results) -> None:
    """What a process reads: for each epoch the samples in order, and a sum over their pixels."""
    torch.set_num_threads(1)
    source = open_source(DataSpec(path=folder, workers=0))
    mine = shard_part(source, source.splits["train"], rank=rank, world=world)
    seen = []
    for epoch in range(epochs):
        order = shard_order(source, mine, seed=3, epoch=epoch)
        pixels = sum(int(source.read(index).sum()) for index in order.tolist())
        seen.append((order.tolist(), [source.name(i) for i in order.tolist()], pixels))
    results.put((rank, seen))


def read_by_two(folder: Path, epochs: int) -> list[list]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=see, args=(str(folder), rank, 2, epochs, results)) for rank in range(2)]
    for process in processes:
        process.start()
    seen = dict(results.get(timeout=240) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [seen[0], seen[1]]


def check_two(folder: Path, epochs: int) -> None:
    """Two processes see each sample once an epoch, in the order that the seed says."""
    source = open_source(DataSpec(path=str(folder)))
    train = source.splits["train"]
    seen = read_by_two(folder, epochs)
    for epoch in range(epochs):
        assert sorted(seen[0][epoch][0] + seen[1][epoch][0]) == train.tolist()
        assert len(set(seen[0][epoch][1] + seen[1][epoch][1])) == len(train)
        for rank in range(2):
            mine = shard_part(source, train, rank=rank, world=2)
            assert seen[rank][epoch][0] == shard_order(source, mine, seed=3, epoch=epoch).tolist()
    assert seen[0][0][0] != seen[0][1][0]
    assert seen[0][0][2] == seen[0][1][2]


def test_two_processes_see_every_sample_once_an_epoch(tmp_path):
    photos = make_photos(tmp_path / "photos", splits=("train", "val"), num=15)
    packed = pack(photos, tmp_path / "shards", shard_size_mb=0.01)
    assert packed.shards > 4
    check_two(tmp_path / "shards", epochs=2)


@pytest.mark.slow
def test_cifar10_in_shards_is_seen_once_an_epoch_by_two_processes(tmp_path, shared_data):
    packed = pack(shared_data / "cifar10", tmp_path / "shards", shard_size_mb=16)
    assert packed.samples == {"train": 50_000, "test": 10_000}
    assert packed.bad == {}
    check_two(tmp_path / "shards", epochs=2)
