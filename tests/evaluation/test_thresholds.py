import pytest
import torch
import torchmetrics.functional.classification as peer
from hypothesis import given
from hypothesis import strategies as st

from skipway.evaluation.thresholds import auroc, average_precision, best_threshold, cuts, mean, ratio

# Probabilities from a small set, so that many are equal.
samples = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40)


def tensors(pairs):
    return torch.tensor([p for p, _ in pairs]) / 8, torch.tensor([y for _, y in pairs])


@given(samples)
def test_ranking_scores_are_the_peers(pairs):
    p, y = tensors(pairs)
    found = cuts(p, y)
    if y.any():
        want = peer.binary_average_precision(p, y.int()).item()
        assert average_precision(found) == pytest.approx(want, abs=1e-6)
    else:
        assert average_precision(found) is None
    if y.any() and not y.all():
        assert auroc(found) == pytest.approx(peer.binary_auroc(p, y.int()).item(), abs=1e-6)
    else:
        assert auroc(found) is None


@given(samples, st.randoms(use_true_random=False))
def test_the_order_of_samples_changes_nothing(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    one, other = cuts(*tensors(pairs)), cuts(*tensors(shuffled))
    for function in (average_precision, auroc, best_threshold):
        assert function(one) == function(other)


@given(samples)
def test_auroc_is_the_chance_of_ranking_a_pair_right(pairs):
    p, y = tensors(pairs)
    if y.any() and not y.all():
        better, worse = p[y][:, None], p[~y][None]
        want = ((better > worse).double() + (better == worse).double() / 2).mean().item()
        assert auroc(cuts(p, y)) == pytest.approx(want)


@given(samples)
def test_no_threshold_has_a_higher_f1_than_the_best(pairs):
    p, y = tensors(pairs)

    def f1(threshold):
        named = p.double() >= threshold
        return 2 * (named & y).sum().item() / max((named.sum() + y.sum()).item(), 1)

    best = best_threshold(cuts(p, y))
    assert 0 <= best <= 1
    assert f1(best) == pytest.approx(max(f1(t / 64) for t in range(66)) if y.any() else f1(0.5))


def test_closed_forms():
    perfect = cuts(torch.tensor([0.9, 0.8, 0.2, 0.1]), torch.tensor([1, 1, 0, 0]))
    assert (average_precision(perfect), auroc(perfect), best_threshold(perfect)) == (1, 1, pytest.approx(0.5))
    constant = cuts(torch.full((5,), 0.3), torch.tensor([1, 0, 0, 1, 0]))
    assert (average_precision(constant), auroc(constant)) == (pytest.approx(0.4), 0.5)
    assert best_threshold(constant) == pytest.approx(0.15)  # naming all is the best that can be done
    backwards = cuts(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([0, 0, 1]))
    assert (average_precision(backwards), auroc(backwards)) == (pytest.approx(1 / 3), 0)
    assert best_threshold(cuts(torch.tensor([0.9, 0.1]), torch.tensor([0, 0]))) == 0.5


def test_threshold_between_neighbouring_floats_tells_them_apart():
    high = torch.tensor(0.3)
    low = torch.nextafter(high, torch.tensor(0.0))
    threshold = best_threshold(cuts(torch.stack([high, low]), torch.tensor([1, 0])))
    assert low.double().item() < threshold <= high.double().item()


def test_what_is_undefined_is_left_out():
    assert mean([1.0, None, 0.0]) == 0.5
    assert mean([None]) is None
    assert ratio(0, 0) is None
    assert ratio(1, 2) == 0.5
