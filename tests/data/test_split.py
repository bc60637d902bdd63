import numpy as np
import pytest
import torch
from conftest import make_photos, save_image
from hypothesis import given, settings
from hypothesis import strategies as st

from skipway.data.open import open_source
from skipway.data.source import ArraySource
from skipway.data.split import fold_numbers, hold_out, make_splits, read_split, write_split
from skipway.data_spec import DataSpec
from skipway.errors import InputError


def opened(path, **options):
    return open_source(DataSpec(path=str(path), **options))


def source_of(labels: torch.Tensor, groups: torch.Tensor | None = None) -> ArraySource:
    images = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    return ArraySource(images, labels, ("a", "b", "c"), {}, "set", groups=groups)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(2, 4), st.floats(0.05, 0.5), st.integers(0, 99))
def test_groups_are_never_on_both_sides(num_groups, num_classes, fraction, seed):
    rng = np.random.default_rng(seed)
    groups = torch.from_numpy(rng.integers(0, num_groups, 200))
    labels = torch.from_numpy(rng.integers(0, num_classes, 200))
    if len(groups.unique()) < 2:
        return
    everything = torch.arange(200)
    kept, held = hold_out(everything, labels, fraction, seed, groups=groups)
    assert torch.equal(torch.cat([kept, held]).sort().values, everything)
    assert not set(groups[kept].tolist()) & set(groups[held].tolist())
    assert len(kept) > 0
    assert len(held) > 0


def test_grouped_split_keeps_the_share_of_every_class():
    groups = torch.arange(2000) // 4
    labels = (torch.arange(500) % 3).repeat_interleave(4)
    _, held = hold_out(torch.arange(2000), labels, 0.1, 0, groups=groups)
    share = labels[held].bincount() / labels.bincount()
    assert torch.allclose(share, torch.full((3,), 0.1), atol=0.02)
    other = hold_out(torch.arange(2000), labels, 0.1, 1, groups=groups)[1]
    assert not torch.equal(held, other)  # the seed chooses


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(0, 99), st.booleans())
def test_folds_are_a_partition_with_equal_classes(folds, seed, grouped):
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, 120))
    groups = torch.arange(120) // 2 if grouped else None
    indices = torch.arange(120)[torch.arange(120) % 5 != 0]
    numbers = fold_numbers(indices, labels, folds, seed, groups=groups)
    assert numbers.unique().tolist() == list(range(folds))
    counts = torch.stack([labels[indices[numbers == k]].bincount(minlength=3) for k in range(folds)])
    if grouped:
        for k in range(folds):
            inside, outside = indices[numbers == k] // 2, indices[numbers != k] // 2
            assert not set(inside.tolist()) & set(outside.tolist())
    else:
        assert (counts.max(0).values - counts.min(0).values).max() <= 1
        assert counts.sum(1).max() - counts.sum(1).min() <= 1


def test_every_image_is_held_out_in_one_fold():
    source = source_of(torch.arange(30) % 3)
    parts = [make_splits(source, DataSpec("x", folds=5, fold=k)) for k in range(5)]
    assert torch.equal(torch.cat([p.val for p in parts]).sort().values, torch.arange(30))
    assert all(not set(p.val.tolist()) & set(p.train.tolist()) for p in parts)
    with pytest.raises(InputError, match="more than the 30 images"):
        make_splits(source, DataSpec("x", folds=31))
    with pytest.raises(InputError, match="data.fold must be below data.folds"):
        DataSpec("x", folds=3, fold=3)


def test_several_labels_are_stratified_by_the_rarest():
    labels = torch.zeros(100, 3, dtype=torch.uint8)
    labels[:, 0] = 1
    labels[:10, 2] = 1
    splits = make_splits(source_of(labels), DataSpec("x"))
    assert labels[splits.val].sum(0).tolist() == [10, 0, 1]


def test_group_by_file_name(tmp_path):
    for patient in range(10):
        for image in range(4):
            save_image(tmp_path / "scans" / ("ill" if patient % 2 else "well") / f"p{patient:02}_{image}.png", patient)
    source = opened(tmp_path / "scans", group=r"p(\d+)_")
    splits = make_splits(source, DataSpec(str(tmp_path / "scans"), group=r"p(\d+)_", val_fraction=0.2))
    patients = [{source.name(i)[-8:-6] for i in part.tolist()} for part in (splits.train, splits.val)]
    assert not patients[0] & patients[1]
    assert len(patients[1]) == 2
    for pattern, message in (("(", "no regular expression"), ("p", "needs a bracket"), ("q(x)", "matches none")):
        with pytest.raises(InputError, match=message):
            opened(tmp_path / "scans", group=pattern)


def test_group_of_a_source_without_groups_is_refused():
    with pytest.raises(InputError, match="knows no groups"):
        make_splits(source_of(torch.arange(6) % 3), DataSpec("fashion-sample", group="x"))


def test_split_file_round_trips_by_name(tmp_path):
    root = make_photos(tmp_path / "p", num=6)
    (root / "ants" / "000.png").rename(root / "ants" / 'a,"b\nc.png')
    source = opened(root)
    splits = make_splits(source, DataSpec(str(root), val_fraction=0.3))
    file = tmp_path / "split.csv"
    file.write_bytes(write_split(source, splits))
    save_image(root / "ants" / "0.png", 99)  # every index moves; the names do not
    moved = opened(root)
    again = make_splits(moved, DataSpec(str(root), split_file=str(file)))
    for old, new in ((splits.train, again.train), (splits.val, again.val)):
        assert [source.name(i) for i in old.tolist()] == [moved.name(i) for i in new.tolist()]
    assert again.test is None


def test_split_file_that_does_not_fit(tmp_path):
    source = source_of(torch.arange(6) % 3)
    file = tmp_path / "split.csv"
    for text, message in (
        ("a,b\n", "no split file"),
        ("name,split\nset[0],train\n", "no validation images"),
        ("name,split\nset[9],train\n", r"names set\[9\], which the data lacks"),
        ("name,split\nset[0],dev\n", "must be train, val or test, got 'dev'"),
        ("name,split\nset[0],train\nset[0],val\n", r"names set\[0\] twice"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_split(file, source)
    with pytest.raises(InputError, match="cannot be read"):
        read_split(tmp_path / "none.csv", source)
