import json

import pytest
import torch
import torchmetrics.functional.classification as peer
from hypothesis import given
from hypothesis import strategies as st

from skipway.data.source import ArraySource
from skipway.evaluation.labels import LabelScores
from skipway.evaluation.pictures import curves, mistakes
from skipway.evaluation.task import ManyLabels


def random_scores(seed: int, num: int = 30, classes: int = 4) -> LabelScores:
    generator = torch.Generator().manual_seed(seed)
    p = torch.randint(0, 17, (num, classes), generator=generator) / 16
    labels = (torch.rand(num, classes, generator=generator) < 0.3).to(torch.uint8)
    thresholds = torch.rand(classes, generator=generator).double()
    return LabelScores(p, labels, torch.arange(num), 0.5, thresholds)


@given(st.integers(0, 10**6))
def test_scores_are_the_peers(seed):
    s = random_scores(seed)
    k, truth = s.labels.shape[1], s.labels.int()
    report = s.labels_report(tuple("abcd"))
    there = truth.any(0)
    ap = peer.multilabel_average_precision(s.probabilities, truth, num_labels=k, average="none")
    for row, want, known in zip(report.labels, ap.tolist(), there.tolist(), strict=True):
        assert row.average_precision == (pytest.approx(want, abs=1e-6) if known else None)
    assert report.map == pytest.approx(ap[there].mean().item(), abs=1e-6)
    named = s.predictions.int()
    f1 = peer.multilabel_f1_score(named, truth, num_labels=k, average="none")
    assert report.macro_f1 == pytest.approx(f1[there].mean().item(), abs=1e-6)
    assert report.micro_f1 == pytest.approx(
        peer.multilabel_f1_score(named, truth, num_labels=k, average="micro").item(), abs=1e-6
    )
    assert report.subset_accuracy == pytest.approx(peer.multilabel_exact_match(named, truth, num_labels=k).item())
    for j, row in enumerate(report.labels):
        if row.precision is not None:
            assert row.precision == pytest.approx(peer.binary_precision(named[:, j], truth[:, j]).item(), abs=1e-6)
        if row.recall is not None:
            assert row.recall == pytest.approx(peer.binary_recall(named[:, j], truth[:, j]).item(), abs=1e-6)


@given(st.integers(0, 10**6))
def test_best_thresholds_raise_every_f1(seed):
    s = random_scores(seed)
    tuned = LabelScores(s.probabilities, s.labels, s.indices, s.loss, torch.tensor(s.best_thresholds()).double())
    names = tuple("abcd")
    for before, after in zip(s.labels_report(names).labels, tuned.labels_report(names).labels, strict=True):
        assert (after.f1 or 0) >= (before.f1 or 0)


def test_label_that_no_image_has_is_left_out_and_named():
    p = torch.tensor([[0.9, 0.7], [0.2, 0.8]])
    s = LabelScores(p, torch.tensor([[1, 0], [0, 0]], dtype=torch.uint8), torch.arange(2), 0.1, torch.full((2,), 0.5))
    report = s.labels_report(("a", "b"))
    assert (report.map, report.macro_f1, report.without_positives) == (1.0, 1.0, ("b",))
    assert (report.labels[1].average_precision, report.labels[1].precision, report.labels[1].f1) == (None, 0.0, None)
    assert report.micro_f1 == 0.5  # one right, two wrong
    assert s.class_accuracy() == [1.0, 0.0]
    nothing = LabelScores(p, torch.zeros(2, 2, dtype=torch.uint8), torch.arange(2), 0.1, torch.full((2,), 0.9))
    assert (nothing.mean_average_precision, nothing.main) == (None, 0.0)
    assert nothing.best_thresholds() == (0.5, 0.5)
    json.dumps([s.report(("a", "b")), nothing.report(("a", "b"))], allow_nan=False)


def test_many_labels_judges_logits_by_sigmoids():
    logits, labels = torch.randn(6, 3), torch.randint(0, 2, (6, 3)).to(torch.uint8)
    s = ManyLabels((0.1, 0.5, 0.9)).judge(logits, labels, torch.arange(6))
    torch.testing.assert_close(s.probabilities, 1 / (1 + (-logits).exp()))
    y = labels.float()
    want = -(y * s.probabilities.log() + (1 - y) * (1 - s.probabilities).log()).mean()
    assert s.loss == pytest.approx(want.item(), rel=1e-5)
    assert s.thresholds.tolist() == [0.1, 0.5, 0.9]


def test_mistakes_are_the_furthest_from_their_thresholds():
    p = torch.tensor([[0.95, 0.1], [0.3, 0.6], [0.1, 0.9]])
    labels = torch.tensor([[0, 0], [1, 0], [1, 1]], dtype=torch.uint8)
    thresholds = torch.tensor([0.9, 0.5]).double()
    count, found = LabelScores(p, labels, torch.tensor([5, 6, 7]), 0.5, thresholds).mistakes(("cat", "dog"), 3)
    assert count == "4 of 6 label decisions wrong"
    assert [(m.index, m.lines) for m in found] == [  # 0.8 / 0.9, 0.6 / 0.9, 0.05 / 0.1 of the way
        (7, ("cat", "not named 10%")),
        (6, ("cat", "not named 30%")),
        (5, ("not cat", "named so 95%")),
    ]


def test_pictures_are_drawn_for_labels():
    s = random_scores(1)
    source = ArraySource(torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8), s.labels, tuple("abcd"), {}, "x")
    assert mistakes(source, s, source.classes, "t").startswith(b"\x89PNG")
    rows = [{"epoch": 1, "train_loss": 1.0, "val_loss": 1.2, "train_label_accuracy": 0.5, "val_map": 0.4}]
    assert curves(rows, [], "t", ManyLabels((0.5,))).startswith(b"\x89PNG")
