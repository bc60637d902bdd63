import dataclasses

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops
from hypothesis import given
from hypothesis import strategies as st

from skipway.errors import InputError
from skipway.spec import TrainSpec
from skipway.training.loss import (
    class_weights,
    cross_entropy,
    decision_weights,
    labels_right,
    make_objective,
    settle_loss,
)

CPU = torch.device("cpu")
LABELS = torch.tensor([0] * 6 + [1] * 3 + [2])
SEVERAL = torch.tensor([[1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.uint8)


def objective(labels=LABELS, k=3, **settings):
    settled, _ = settle_loss(TrainSpec(**settings), "x", multilabel=labels.ndim == 2, num_classes=k)
    return make_objective(settled, labels, k, CPU).loss


def logits(rows=5, k=3):
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(rows)) * 2


def test_auto_is_cross_entropy_or_binary_cross_entropy():
    z, t = logits(), torch.tensor([0, 1, 2, 2, 1])
    assert torch.equal(objective(label_smoothing=0.1)(z, t), cross_entropy(z, t, 0.1))
    z, y = logits(4), SEVERAL
    torch.testing.assert_close(objective(SEVERAL)(z, y), F.binary_cross_entropy_with_logits(z, y.float()))
    smoothed = 0.8 * y.float() + 0.1
    want = F.binary_cross_entropy_with_logits(z, smoothed)
    torch.testing.assert_close(objective(SEVERAL, label_smoothing=0.2)(z, y), want)


def test_one_against_all_takes_labels_and_smooths_over_classes():
    z, t = logits(), torch.tensor([0, 1, 2, 2, 1])
    want = F.binary_cross_entropy_with_logits(z, 0.7 * F.one_hot(t, 3) + 0.1)
    torch.testing.assert_close(objective(loss="bce", label_smoothing=0.3)(z, t), want)


def test_focal_is_the_papers_equations():
    z, t = logits(), torch.tensor([0, 1, 2, 2, 1])
    p = z.softmax(1)[torch.arange(5), t]
    torch.testing.assert_close(objective(loss="focal", focal_gamma=1.5)(z, t), -((1 - p) ** 1.5 * p.log()).mean())
    weights = class_weights(LABELS, 3, "balanced")
    want = -(weights[t] * (1 - p) ** 2 * p.log()).mean()
    torch.testing.assert_close(objective(loss="focal", class_weights="balanced")(z, t), want)
    z = logits(4)
    want = torchvision.ops.sigmoid_focal_loss(z, SEVERAL.float(), alpha=-1, gamma=2, reduction="mean")
    torch.testing.assert_close(objective(SEVERAL, loss="focal")(z, SEVERAL), want)


@pytest.mark.parametrize("weighting", ["none", "balanced", "sqrt"])
@pytest.mark.parametrize("labels", [LABELS, SEVERAL], ids=["one", "several"])
def test_focal_at_gamma_zero_is_cross_entropy(labels, weighting):
    z, t = logits(len(labels)), labels
    plain = objective(labels, class_weights=weighting, label_smoothing=0.1)(z, t)
    focal = objective(labels, loss="focal", focal_gamma=0.0, class_weights=weighting, label_smoothing=0.1)(z, t)
    torch.testing.assert_close(plain, focal)


ALL = [
    (loss, weighting, several)
    for several in (False, True)
    for loss in (("bce", "focal") if several else ("cross_entropy", "bce", "focal"))
    for weighting in ("none", "balanced", "sqrt")
]


@pytest.mark.parametrize(("loss", "weighting", "several"), ALL)
def test_loss_of_a_mixed_target_is_the_mix_of_the_losses(loss, weighting, several):
    labels = SEVERAL if several else LABELS
    function = objective(labels, loss=loss, class_weights=weighting, label_smoothing=0.1)
    z = logits(4)
    one = SEVERAL.float() if several else F.one_hot(LABELS[[0, 7, 9, 1]], 3).float()
    other, share = one.roll(1, 0), torch.tensor([0.2, 0.7, 1.0, 0.5])[:, None]
    for i in range(4):
        row, first, second = z[i : i + 1], one[i : i + 1], other[i : i + 1]
        got = function(row, first * share[i] + second * (1 - share[i]))
        want = share[i, 0] * function(row, first) + (1 - share[i, 0]) * function(row, second)
        torch.testing.assert_close(got, want)
    if not several:
        torch.testing.assert_close(function(z, one.argmax(1)), function(z, one))


@pytest.mark.parametrize(("loss", "weighting", "several"), ALL)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits_give_finite_losses_and_slopes(loss, weighting, several, gamma):
    labels = SEVERAL if several else LABELS
    z = torch.tensor([[300.0, -300.0, 0.0], [-300.0, 300.0, 0.0], [0.0, 0.0, 0.0], [90.0, 90.0, -9.0]]).requires_grad_()
    function = objective(labels, loss=loss, class_weights=weighting, focal_gamma=gamma)
    value = function(z, SEVERAL if several else torch.tensor([0, 0, 1, 2]))
    value.backward()
    assert value.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert function(z.detach().bfloat16(), labels[:4]).dtype == torch.float32


def test_class_weights_are_scikit_learns():
    torch.testing.assert_close(class_weights(LABELS, 3, "balanced"), 10 / (3 * torch.tensor([6.0, 3.0, 1.0])))
    absent = class_weights(LABELS, 4, "balanced")  # the fourth class has no images and does not count
    torch.testing.assert_close(absent, torch.cat([class_weights(LABELS, 3, "balanced"), torch.ones(1)]))
    root = class_weights(LABELS, 3, "sqrt")
    torch.testing.assert_close(root[0] / root[2], torch.tensor(6**-0.5))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50), st.sampled_from(["balanced", "sqrt"]))
def test_mean_weight_over_the_images_is_one(labels, how):
    labels = torch.tensor(labels)
    assert class_weights(labels, 6, how)[labels].mean().item() == pytest.approx(1, rel=1e-5)


def test_decision_weights_even_out_yes_and_no():
    labels = torch.cat([torch.ones(2, 1), torch.zeros(8, 1)]).repeat(1, 2).to(torch.uint8)
    labels[:, 1] = 1
    weights = decision_weights(labels, 2, "balanced")
    torch.testing.assert_close(weights.yes, torch.tensor([10 / 4, 1.0]))
    torch.testing.assert_close(weights.no, torch.tensor([10 / 16, 1.0]))
    root = decision_weights(labels, 2, "sqrt")
    assert (root.yes[0] / root.no[0]).item() == pytest.approx(2)  # root of 8 / 2
    assert (2 * root.yes[0] + 8 * root.no[0]).item() == pytest.approx(10)
    z = logits(10, 2)
    want = F.binary_cross_entropy_with_logits(z, labels.float(), weight=weights.no, pos_weight=weights.yes / weights.no)
    torch.testing.assert_close(objective(labels, 2, class_weights="balanced")(z, labels), want)
    single = decision_weights(LABELS, 3, "balanced")
    assert torch.equal(single.yes, class_weights(LABELS, 3, "balanced"))
    assert torch.equal(single.no, torch.ones(3))


def test_weighted_cross_entropy_does_not_depend_on_the_batch():
    function = objective(class_weights="balanced")
    z, t = logits(4), torch.tensor([0, 1, 2, 2])
    alone = torch.stack([function(z[i : i + 1], t[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(function(z, t), alone.mean())
    weights = class_weights(LABELS, 3, "balanced")
    torch.testing.assert_close(alone, weights[t] * F.cross_entropy(z, t, reduction="none"))


def test_labels_right_counts_shares_of_decisions():
    z = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    assert labels_right(z, torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)).item() == 1.5
    assert labels_right(z, torch.tensor([[0.6, 0.4], [0.2, 0.1]])).item() == 1.0


def test_cross_entropy_on_several_labels_is_refused_and_choices_are_said():
    train = TrainSpec(loss="cross_entropy")
    with pytest.raises(InputError, match="is for one label an image, and x has any number of them: --loss bce"):
        settle_loss(train, "x", multilabel=True, num_classes=3)
    settled, said = settle_loss(dataclasses.replace(train, loss="auto"), "x", multilabel=True, num_classes=3)
    assert settled.loss == "bce"
    assert said == "any number of labels an image, best by mAP; binary cross-entropy; each image once an epoch"
    rare = TrainSpec(loss="focal", class_weights="balanced", sampler="sqrt")
    assert settle_loss(rare, "x", multilabel=False, num_classes=2)[1] == (
        "one of two classes an image, the second is the positive one, best by accuracy; focal loss (gamma 2), classes "
        "weighted inversely to their images; classes in an epoch by the root of their images"
    )
