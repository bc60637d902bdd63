import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipway import randomness
from skipway.data.sampler import make_sampler, rarest_label

counts = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0)


def labels_of(sizes):
    """Labels of a source in which every other sample is in no split, and the train split's indices."""
    labels = torch.tensor([k for k, n in enumerate(sizes) for _ in range(n)]).repeat_interleave(2)
    return labels, randomness.order(torch.arange(0, len(labels), 2), seed=9, epoch=0)


@given(counts, st.integers(0, 2**62), st.integers(1, 1000))
def test_shuffle_shows_each_image_once_in_the_order_it_always_had(sizes, seed, epoch):
    labels, train = labels_of(sizes)
    got = make_sampler(train, labels, "shuffle", seed=seed).epoch(epoch)
    assert torch.equal(got, randomness.order(train, seed=seed, epoch=epoch))
    assert torch.equal(got.sort().values, train.sort().values)


@given(counts, st.sampled_from(["balanced", "sqrt"]), st.integers(0, 2**62), st.integers(1, 50))
def test_classes_have_their_exact_share_and_repeat_as_late_as_can_be(sizes, how, seed, epoch):
    labels, train = labels_of(sizes)
    got = make_sampler(train, labels, how, seed=seed).epoch(epoch)
    assert len(got) == len(train)
    assert torch.isin(got, train).all()
    wanted = torch.tensor([n ** (0.5 if how == "sqrt" else 0) if n else 0.0 for n in sizes])
    wanted = len(train) * wanted / wanted.sum()
    shown = labels[got].bincount(minlength=len(sizes))
    assert ((shown - wanted).abs() < 1).all()
    for k, size in enumerate(sizes):
        members = train[labels[train] == k]
        times = torch.tensor([int((got == m).sum()) for m in members])
        assert not size or times.max() - times.min() <= 2  # the end of one round, and the start of another


@pytest.mark.parametrize("how", ["balanced", "sqrt"])
def test_every_image_is_shown_before_one_comes_again_over_epochs_too(how):
    labels, train = labels_of([40, 7, 3])
    sampler = make_sampler(train, labels, how, seed=3)
    shown = torch.cat([sampler.epoch(epoch) for epoch in range(1, 13)])
    for k in range(3):
        members = train[labels[train] == k]
        times = torch.tensor([int((shown == m).sum()) for m in members])
        assert times.max() - times.min() <= 1
    first = [sampler.epoch(1)[labels[sampler.epoch(1)] == 0]]
    assert len(first[0].unique()) == len(first[0])  # the large class repeats none within an epoch


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    labels, train = labels_of([20, 10, 2])
    sampler = make_sampler(train, labels, "balanced", seed=1)
    third = sampler.epoch(3)
    sampler.epoch(1)
    torch.manual_seed(5)
    assert torch.equal(third, make_sampler(train, labels, "balanced", seed=1).epoch(3))
    assert not torch.equal(third, sampler.epoch(4))
    assert not torch.equal(third, make_sampler(train, labels, "balanced", seed=2).epoch(3))
    shuffled = make_sampler(train[torch.randperm(len(train))], labels, "balanced", seed=1).epoch(3)
    assert torch.equal(third.sort().values, shuffled.sort().values)  # whichever way the split lists its images


def test_images_that_come_twice_do_not_come_in_a_row():
    labels, train = labels_of([199, 1])
    got = make_sampler(train, labels, "balanced", seed=0).epoch(1)
    rare = (labels[got] == 1).long()
    assert rare.sum() == 100
    changes = (rare[1:] != rare[:-1]).sum().item()
    assert 70 < changes < 130  # a fair coin changes 99.5 times of 199; in a row it would be once or twice
    halves = rare.view(2, 100).sum(1)
    assert 30 < halves[0] < 70


def test_rare_class_fills_many_places_at_once():
    labels = torch.cat([torch.zeros(200_000, dtype=torch.int64), torch.ones(1, dtype=torch.int64)])
    got = make_sampler(torch.arange(200_001), labels, "balanced", seed=0).epoch(2)
    assert labels[got].sum().item() in (100_000, 100_001)


def test_image_of_several_labels_counts_for_the_rarest():
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0]], dtype=torch.uint8)
    assert rarest_label(labels).tolist() == [1, 0, 3, 2, 2, 1]  # 4, 3 and 2 images have them
    assert rarest_label(torch.tensor([2, 0])).tolist() == [2, 0]
    train = torch.tensor([0, 1, 2, 3])
    sampler = make_sampler(train, labels, "balanced", seed=0)
    assert sorted(sampler.epoch(1).tolist()) == [0, 1, 2, 3]  # four classes: three labels, and none
