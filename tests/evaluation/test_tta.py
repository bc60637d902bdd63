import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, make_photos
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import skipway as package
from skipway.data.images.reading import Reading
from skipway.data.loader import Batch
from skipway.data.preprocess import Preprocess, check_scored_size, scored_size
from skipway.data_spec import DataSpec
from skipway.errors import InputError
from skipway.evaluation.evaluate import evaluate
from skipway.evaluation.labels import LabelScores
from skipway.evaluation.task import ManyLabels, OneLabel, score, score_with_tta
from skipway.evaluation.tta import KINDS, averaged, views
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.network import ResNet
from skipway.run import Run
from skipway.shipping.predictor import load
from skipway.training.loop import Trainer

GREY = Preprocess(8, (0.5,), (0.25,), Reading(1))


class Little(nn.Module):
    """A convolution and a linear layer over all places: neither mirroring nor shifting leaves its logits alone."""

    def __init__(self, size: int, channels: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 3, padding=1)
        self.linear = nn.Linear(3 * size * size, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).relu().flatten(1))


def published(net: nn.Module, x: Tensor) -> Tensor:
    """Jordan 2024, section 3.6, in the words of the paper: six views by padding and slicing."""

    def both(images: Tensor) -> Tensor:
        return (net(images) + net(images.flip(3))) / 2

    side = x.shape[-1]
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    upper_left, lower_right = padded[:, :, 2:, 2:], padded[:, :, :side, :side]
    return both(x) / 2 + (both(upper_left) + both(lower_right)) / 4


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 9), st.integers(1, 3), st.integers(0, 10**6))
def test_flip_shift_is_the_papers_multicrop(size, channels, seed):
    torch.manual_seed(seed)
    net, x = Little(size, channels), torch.randn(3, channels, size, size)
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            plain, mean = averaged(net, x.contiguous(memory_format=layout), "flip_shift")
            torch.testing.assert_close(mean, published(net, x))
            torch.testing.assert_close(plain, net(x))
            torch.testing.assert_close(averaged(net, x, "flip")[1], (net(x) + net(x.flip(3))) / 2)
            assert torch.equal(*averaged(net, x, "none"))


@pytest.mark.parametrize(("kind", "num"), [("none", 1), ("flip", 2), ("flip_shift", 6)])
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 3, 5, 7)])
def test_shares_add_up_and_the_first_view_is_the_image(kind, num, shape):
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    found = list(views(x, kind))
    assert len(found) == num
    assert sum(share for share, _ in found) == 1
    assert torch.equal(found[0][1], x)
    assert all(view.shape == x.shape and view.dtype == x.dtype for _, view in found)
    if kind != "none":
        assert torch.equal(found[1][1], x.flip(-1))


def test_shifted_views_move_by_one_pixel_and_reflect_what_enters():
    x = torch.arange(9).view(1, 1, 3, 3)
    copies = [view[0, 0].tolist() for _, view in views(x, "flip_shift")]
    assert copies[2] == [[4, 5, 4], [7, 8, 7], [4, 5, 4]]  # 0 1 2 / 3 4 5 / 6 7 8 to the upper left
    assert copies[4] == [[4, 3, 4], [1, 0, 1], [4, 3, 4]]


def batches_of(labels: Tensor) -> list[Batch]:
    pixels = torch.randint(0, 256, (len(labels), 1, 8, 8), dtype=torch.uint8)
    parts = zip(pixels.split(4), labels.split(4), torch.arange(len(labels)).split(4), strict=True)
    return [Batch(*part) for part in parts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("several", [False, True])
def test_plain_scores_stay_what_they_are_and_the_others_come_beside_them(kind, several):
    task = ManyLabels((0.4,) * 4) if several else OneLabel()
    labels = torch.randint(0, 2, (10, 4)).to(torch.uint8) if several else torch.randint(0, 4, (10,))
    network, batches = Little(8).train(), batches_of(labels)
    plain, beside = score_with_tta(network, batches, GREY, task=task, tta=kind)
    assert network.training
    alone = score(network, batches, GREY, task=task)
    assert torch.equal(plain.probabilities, alone.probabilities)
    assert (plain.loss, plain.main) == (alone.loss, alone.main)
    if kind == "none":
        assert beside is None
        return
    assert type(beside) is type(plain)
    inputs = GREY.normalise(torch.cat([batch.images for batch in batches]))
    with torch.no_grad():
        mean = published(network, inputs) if kind == "flip_shift" else (network(inputs) + network(inputs.flip(3))) / 2
    want = task.judge(mean, labels, torch.arange(10))
    torch.testing.assert_close(beside.probabilities, want.probabilities)
    assert beside.loss == pytest.approx(want.loss, rel=1e-5)
    assert beside.loss != plain.loss
    if isinstance(beside, LabelScores):
        assert beside.thresholds.tolist() == pytest.approx([0.4] * 4)


def test_logits_of_one_class_against_all_others_are_averaged_before_they_are_probabilities():
    network, batches, task = Little(8), batches_of(torch.zeros(4, dtype=torch.int64)), OneLabel("bce")
    _, beside = score_with_tta(network, batches, GREY, task=task, tta="flip")
    inputs = GREY.normalise(batches[0].images)
    with torch.no_grad():
        p = ((network(inputs) + network(inputs.flip(3))) / 2).sigmoid()
    assert beside is not None
    torch.testing.assert_close(beside.probabilities, p / p.sum(1, keepdim=True))


def test_evaluate_reports_both_and_plain_alone_unless_asked(trained, skipway):
    alone = evaluate(trained)
    assert alone.tta is None  # the run was trained with tta none
    both = evaluate(trained, tta="flip_shift")
    assert dataclasses.replace(both, tta=None) == alone
    assert both.tta is not None
    assert (both.tta.kind, both.tta.map) == ("flip_shift", None)
    assert both.tta.loss != both.loss
    told = json.loads(skipway("evaluate", trained.folder, "--tta", "flip_shift", "--json").out)
    assert told["accuracy"] == alone.accuracy
    assert told["tta"] == dataclasses.asdict(both.tta)
    shown = skipway("evaluate", trained.folder, "--tta", "flip").out
    assert f"accuracy {alone.accuracy:.2%}" in shown
    assert "with test-time augmentation (flip): accuracy " in shown
    assert "test-time" not in skipway("evaluate", trained.folder).out
    wrong = skipway("evaluate", trained.folder, "--tta", "flop")
    assert wrong.code == 2
    assert "unknown tta 'flop'. Did you mean 'flip'? Known: none, flip, flip_shift" in wrong.err


def test_run_that_was_trained_so_is_evaluated_so(photos, tmp_path):
    settings = TINY | {"train": TINY["train"] | {"epochs": 1, "tta": "flip"}}
    run = package.train(photos, settings=settings, out=tmp_path / "run")
    found = evaluate(run)
    assert found.tta is not None
    assert found.tta.kind == "flip"
    assert evaluate(run, tta="none").tta is None


def test_several_labels_have_both_maps(tmp_path, skipway):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (24, 2)).astype(np.uint8)
    images = (rng.integers(0, 100, (24, 8, 8, 3)) + 150 * labels[:, None, None, [0, 1, 1]]).astype(np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    settings = TINY | {"train": TINY["train"] | {"epochs": 1, "tta": "flip_shift"}}
    run = package.train(tmp_path / "set.npz", settings=settings, out=tmp_path / "run")
    found = evaluate(run)
    assert found.tta is not None
    assert found.labels is not None
    assert found.tta.map is not None
    assert found.tta.top5_accuracy is None
    shown = skipway("evaluate", run.folder).out
    assert f"mAP {found.labels.map:.2%}" in shown
    assert f"(flip_shift): mAP {found.tta.map:.2%}" in shown


def test_size_that_a_network_is_scored_at():
    assert scored_size(DataSpec(image_size=32)) == 32
    assert scored_size(DataSpec(image_size=32, test_size=40)) == 40


def test_size_that_the_network_cannot_take_is_refused_in_its_own_flags_words():
    network = NetworkSpec(stages=(StageSpec(1, 8), StageSpec(1, 8, 2), StageSpec(1, 8, 2)), stem="space_to_depth")
    check_scored_size(DataSpec(image_size=10, test_size=0), network.check_image_size)  # training's own affair
    check_scored_size(DataSpec(image_size=10, test_size=10), network.check_image_size)
    check_scored_size(DataSpec(image_size=32, test_size=40), network.check_image_size)
    with pytest.raises(InputError, match=r"--test-size must be at least 16, got 12"):
        check_scored_size(DataSpec(image_size=32, test_size=12), network.check_image_size)
    with pytest.raises(InputError, match=r"--test-size must divide by 4, got 42"):
        check_scored_size(DataSpec(image_size=32, test_size=42), network.check_image_size)


def fixres(photos: Path, out: Path, **changes: dict) -> Run:
    """A run that trains at 12 pixels and is scored at 20."""
    sizes = {**TINY["data"], "image_size": 12, "test_size": 20}
    train = {**TINY["train"], "precision": "fp32", "tta": "flip"}
    return package.train(photos, settings={**TINY, "data": sizes, "train": train, **changes}, out=out)


@pytest.mark.parametrize("crops", [0.0, 0.5])
def test_network_trains_at_one_size_and_is_scored_and_used_at_another(tmp_path, monkeypatch, crops):
    seen: set[tuple[bool, int]] = set()
    forward = ResNet.forward

    def spy(self, x):
        seen.add((self.training, x.shape[-1]))
        return forward(self, x)

    monkeypatch.setattr(ResNet, "forward", spy)
    photos = make_photos(tmp_path / "photos", splits=("train", "val", "test"), num=12)
    run = fixres(photos, tmp_path / "run", augment={"random_resized_crop": crops})
    assert seen == {(True, 12), (False, 20)}
    assert run.preprocess.image_size == 20
    with safe_open(run.folder / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["preprocess"])["image_size"] == 20
    seen.clear()
    found = evaluate(run)
    load(run.folder).predict([photos / "test" / "ants" / "000.png"])
    assert seen == {(False, 20)}
    assert found.tta is not None
    plain, beside = run.summary["test_accuracy"], run.summary["test_accuracy_tta"]
    assert (plain, beside) == (found.accuracy, found.tta.accuracy)
    losses = run.summary["test_loss"], run.summary["test_loss_tta"]
    assert losses == pytest.approx((found.loss, found.tta.loss))
    assert losses[0] != losses[1]
    assert run.summary["val_accuracy"] == evaluate(run, split="val").accuracy


def test_run_with_two_sizes_goes_on_to_the_same_bits(photos, tmp_path, monkeypatch):
    whole = fixres(photos, tmp_path / "whole")
    step = Trainer._step

    def cut(self, batch, epoch, number):
        if epoch == 2:
            raise KeyboardInterrupt
        return step(self, batch, epoch, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_step", cut)
        fixres(photos, tmp_path / "cut")
    again = fixres(photos, tmp_path / "cut")
    assert len(again.metrics()) == 2
    assert again.steps() == whole.steps()
    assert again.preprocess == whole.preprocess
    weights, wanted = (load_file(run.folder / "weights.safetensors") for run in (again, whole))
    assert all(torch.equal(weights[key], value) for key, value in wanted.items())


def test_test_size_that_a_network_cannot_take_leaves_nothing(photos, tmp_path):
    sizes = {**TINY["data"], "image_size": 12, "test_size": 1}
    with pytest.raises(InputError, match=r"--test-size must be at least 2, got 1"):
        package.train(photos, settings={**TINY, "data": sizes}, out=tmp_path / "run")
    sizes["test_size"] = 20
    settings = {"data": {**sizes, "image_size": 16}, "network": {"name": "timm:vit_tiny_patch16_224"}}
    with pytest.raises(InputError, match=r"cannot take 3x20x20 images.*Another --test-size may suit it"):
        package.train(photos, settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
