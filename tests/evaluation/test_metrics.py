import json

import pytest
import torch
import torchmetrics.functional.classification as peer
from conftest import make_photos, save_image
from hypothesis import given
from hypothesis import strategies as st

import skipway
from skipway.data.images.decode import decode
from skipway.data.images.reading import Reading
from skipway.data.loader import Batch
from skipway.data.preprocess import Preprocess
from skipway.data.source import ArraySource
from skipway.errors import InputError
from skipway.evaluation.metrics import Scores
from skipway.evaluation.pictures import curves, mistakes
from skipway.evaluation.task import OneLabel, at_once, full_fp32, score


def scores() -> Scores:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.3, 0.3, 0.4]])
    return Scores(probabilities, torch.tensor([0, 1, 1, 0]), torch.arange(4), 0.5)


def test_scores_count_by_hand():
    s = scores()
    assert s.predictions.tolist() == [0, 1, 0, 2]
    assert s.accuracy == 0.5
    assert s.top(2) == 1.0
    assert s.top(99) == 1.0
    assert s.confusion().tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert s.class_accuracy() == [0.5, 0.5, None]


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 5]), st.integers(1, 30))
def test_scores_are_the_peers(seed, k, num):
    generator = torch.Generator().manual_seed(seed)
    p = (torch.randint(0, 5, (num, k), generator=generator).float() / 2).softmax(1)
    labels = torch.randint(0, k, (num,), generator=generator)
    s = Scores(p, labels, torch.arange(num), 0.5)
    f1 = peer.multiclass_f1_score(s.predictions, labels, num_classes=k, average="none")
    seen = torch.cat([s.predictions, labels]).bincount(minlength=k) > 0
    assert s.macro_f1 == pytest.approx(f1[seen].mean().item(), abs=1e-6)
    recall = peer.multiclass_recall(s.predictions, labels, num_classes=k, average="none")
    assert s.balanced_accuracy == pytest.approx(recall[labels.bincount(minlength=k) > 0].mean().item(), abs=1e-6)
    json.dumps(s.report(tuple("abcde"[:k])), allow_nan=False)
    binary = s.binary(tuple("abcde"[:k]))
    if k != 2:
        assert binary is None
        return
    assert binary is not None
    assert binary.positive == "b"
    for name, function in (
        ("precision", peer.binary_precision),
        ("recall", peer.binary_recall),
        ("specificity", peer.binary_specificity),
        ("f1", peer.binary_f1_score),
    ):
        value = getattr(binary, name)
        assert value is None or value == pytest.approx(function(s.predictions, labels).item(), abs=1e-6), name
    assert (binary.auroc is None) == (len(labels.unique()) == 1)
    if binary.auroc is not None:
        assert binary.auroc == pytest.approx(peer.binary_auroc(p[:, 1], labels).item(), abs=1e-6)


def test_binary_scores_by_hand():
    p = torch.tensor([0.9, 0.6, 0.4, 0.2, 0.1])
    s = Scores(torch.stack([1 - p, p], 1), torch.tensor([1, 0, 1, 0, 0]), torch.arange(5), 0.5)
    binary = s.binary(("healthy", "ill"))
    assert binary is not None
    assert (binary.positive, binary.precision, binary.recall) == ("ill", 0.5, 0.5)
    assert (binary.specificity, binary.f1) == (pytest.approx(2 / 3), 0.5)
    assert binary.auroc == pytest.approx(5 / 6)
    assert binary.average_precision == pytest.approx((1 + 2 / 3) / 2)
    one_kind = Scores(torch.tensor([[0.9, 0.1]]), torch.tensor([0]), torch.arange(1), 0.5).binary(("a", "b"))
    assert one_kind is not None
    assert (one_kind.auroc, one_kind.average_precision, one_kind.precision, one_kind.recall) == (None,) * 4
    assert one_kind.specificity == 1


def test_one_against_all_gives_sigmoids_over_their_sum():
    logits = torch.tensor([[2.0, -1.0, 0.5], [-80.0, -90.0, -100.0]])
    labels = torch.tensor([1, 0])
    s = OneLabel("bce").judge(logits, labels, torch.arange(2))
    sigmoids = logits.double().sigmoid()
    want = sigmoids / sigmoids.sum(1, keepdim=True)
    torch.testing.assert_close(s.probabilities.double(), want, atol=1e-6, rtol=1e-5)
    assert s.loss == pytest.approx(-want[torch.arange(2), labels].log().mean().item(), rel=1e-5)
    assert s.predictions.tolist() == [0, 0]


class Brightness(torch.nn.Module):
    """Logits are the image's mean, and zero; in training mode it gives nonsense."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        mean = x.mean((1, 2, 3)) * self.scale
        return torch.stack([mean, 0 * mean], 1) if not self.training else torch.full((len(x), 2), float("nan"))


def test_score_normalises_and_restores_the_mode():
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    batches = [
        Batch(images[:2], torch.tensor([1, 0]), torch.tensor([7, 8])),
        Batch(images[2:], torch.tensor([0]), torch.tensor([9])),
    ]
    network = Brightness().train()
    got = score(network, batches, Preprocess(4, (0.5,), (0.25,), Reading(1)), task=OneLabel())
    assert isinstance(got, Scores)
    logits = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [-1.2, 0.0]])
    torch.testing.assert_close(got.probabilities, logits.softmax(1))
    assert got.loss == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0, 0])).item(), rel=1e-5
    )
    assert got.indices.tolist() == [7, 8, 9]
    assert got.accuracy == pytest.approx(2 / 3)
    assert network.training
    with pytest.raises(InputError, match="none of the images can be read"):
        score(network, [], Preprocess(4, (0.5,), (0.25,), Reading(1)), task=OneLabel())


def png_size(data: bytes) -> tuple[int, int]:
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def picture(data: bytes) -> torch.Tensor:
    return decode(data, Reading(3))


def test_mistakes_shows_images_and_is_not_blank():
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    source = ArraySource(images, torch.tensor([0, 1, 1, 0]), ("a", "b", "c" * 40), {}, "x")
    shown = picture(mistakes(source, scores(), source.classes, "a title"))
    blank = picture(
        mistakes(source, Scores(torch.eye(3), torch.arange(3), torch.arange(3), 0.0), source.classes, "a title")
    )
    dark = [(p < 100).float().mean().item() for p in (shown, blank)]
    assert dark[0] > 3 * dark[1]  # two images with two lines of names each, against the title alone


def test_curves_draws_one_epoch_and_many():
    def rows(count):
        return [
            {"epoch": e, "train_loss": 1 / e, "val_loss": 1.2 / e, "train_accuracy": 0.5, "val_accuracy": 0.4}
            for e in range(1, count + 1)
        ]

    steps = [{"epoch": 1 + s // 4, "step": s + 1, "loss": 1.0, "lr": 0.1} for s in range(12)]
    assert png_size(curves(rows(3), steps, "t"))[0] > 1000
    assert png_size(curves(rows(1), [], "t"))[0] > 1000


def test_evaluate_scores_the_runs_own_splits(trained):
    own = skipway.evaluate(trained)
    assert (own.split, own.num_images) == ("val", 4)
    assert own.accuracy == trained.summary["val_accuracy"]
    assert skipway.evaluate(trained.folder, split="train").num_images == 36
    assert skipway.evaluate(trained.folder / "weights.safetensors", split="all").num_images == 40
    assert sum(map(sum, own.confusion)) == 4
    assert own.binary is not None
    assert own.binary.positive == "bees"
    assert own.balanced_accuracy == own.macro_f1 == own.accuracy == 1
    assert own.labels is None
    assert trained.summary["scores"] == {
        "split": "val", "balanced_accuracy": 1.0, "macro_f1": 1.0, "binary": vars(own.binary),
    }  # fmt: skip
    with pytest.raises(InputError, match="has no split 'test'; it has"):
        skipway.evaluate(trained, split="test")
    with pytest.raises(InputError, match="device 'tpu' is not to be had here"):
        skipway.evaluate(trained, device="tpu")


def test_evaluate_maps_classes_of_other_data_by_name(trained, tmp_path):
    other = make_photos(tmp_path / "other", splits=("test",), classes=("bees",), num=3)
    make_photos(tmp_path / "other", splits=("test",), classes=("ants",), num=2)
    for i in range(3):
        save_image(other / "test" / "bees" / f"{i:03}.png", i, brightness=127)
    result = skipway.evaluate(trained, str(other))
    assert (result.split, result.num_images) == ("test", 5)
    assert result.accuracy == 1.0
    assert result.class_accuracy == {"ants": 1.0, "bees": 1.0}
    make_photos(tmp_path / "wasps", classes=("ants", "wasps"), num=2)
    with pytest.raises(InputError, match="classes that the network does not know: wasps"):
        skipway.evaluate(trained, str(tmp_path / "wasps"))
    with pytest.raises(InputError, match="has 1 channels, the network takes 3"):
        skipway.evaluate(renamed_classes(trained, tmp_path), "fashion-sample")


def renamed_classes(run, tmp_path):
    """The same weights under Fashion-MNIST's class names, so that only the channels differ."""
    from safetensors.torch import save_file

    from skipway.data.builtin import FASHION_CLASSES
    from skipway.run import read_safetensors

    tensors, metadata = read_safetensors(run.folder / "weights.safetensors")
    metadata["classes"] = json.dumps([*FASHION_CLASSES])
    path = tmp_path / "renamed.safetensors"
    save_file(tensors, path, metadata)
    return path


def test_fp32_on_cuda_is_not_rounded_while_scoring():
    usual = torch.backends.cudnn.allow_tf32
    with full_fp32(torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == usual
    with full_fp32(torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32 == usual


@pytest.mark.parametrize(
    ("kind", "size", "images"), [("cpu", 32, 256), ("cpu", 224, 20), ("cuda", 224, 256), ("cuda", 1024, 12)]
)
def test_fewer_large_images_are_answered_at_once(kind, size, images):
    assert at_once(size, torch.device(kind)) == images
