"""Training, scoring and predicting where images have several labels, two classes, or classes of uneven size."""

import csv
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, make_photos
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

import skipway as package
from skipway.data.loader import Loader
from skipway.errors import InputError
from skipway.run import Run, load_model, read_safetensors, read_saved
from skipway.training import ending
from skipway.training.loop import Trainer

NAMES = ("red", "green", "blue")


def settings(**train: Any) -> dict[str, dict[str, Any]]:
    return TINY | {"train": TINY["train"] | train}


def train(data: Path, out: Path, options: dict | None = None, console: Console | None = None) -> Run:
    return package.train(data, settings=options or TINY, out=out, console=console or Console(file=io.StringIO()))


def channels_on(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(num, 8, 8, 3) images whose bright channels are their labels, (num, 3); one in eight has none."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(num)[:, None] >> np.arange(3) & 1).astype(np.uint8)
    noise = rng.integers(0, 50, (num, 8, 8, 3))
    return (noise + 200 * labels[:, None, None, :]).astype(np.uint8), labels


def write(path: Path, names: tuple[str, ...] = NAMES, **splits: int) -> Path:
    arrays: dict[str, np.ndarray] = {"classes": np.array(names)}
    for seed, (split, num) in enumerate(splits.items()):
        images, labels = channels_on(num, seed)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels[:, [NAMES.index(n) for n in names]]}
    np.savez(path, **arrays)  # pyrefly: ignore
    return path


@pytest.fixture
def several(tmp_path: Path) -> Path:
    return write(tmp_path / "several.npz", train=48, val=16, test=24)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that learned three labels; shared by the tests, which only read it."""
    root = tmp_path_factory.mktemp("labelled")
    return train(write(root / "several.npz", train=96, val=16, test=24), root / "run", settings(epochs=16))


def test_labels_are_learned_and_the_records_say_map(labelled):
    metrics = labelled.metrics()
    assert list(metrics[0]) == [
        "epoch", "train_loss", "train_label_accuracy", "val_loss", "val_map", "lr", "images_per_s", "time_s",
    ]  # fmt: skip
    best = max(metrics, key=lambda m: (m["val_map"], -m["val_loss"]))
    summary = labelled.summary
    assert (summary["best_epoch"], summary["val_map"]) == (best["epoch"], best["val_map"])
    assert summary["val_map"] == summary["test_map"] == 1.0
    assert metrics[-1]["train_label_accuracy"] > 0.9
    assert "val_accuracy" not in summary
    assert "any number of labels an image, best by mAP; binary cross-entropy; each image once an epoch" in " ".join(
        summary["chosen"]
    )
    assert summary["scores"]["split"] == "test"
    assert summary["scores"]["map"] == 1.0
    assert labelled.spec.train.loss == "bce"


def test_thresholds_are_chosen_on_validation_and_travel_with_the_weights(labelled, tmp_path):
    saved = read_saved(labelled.folder)
    assert saved.thresholds is not None
    assert labelled.thresholds == saved.thresholds
    assert json.loads((labelled.folder / "thresholds.json").read_text()) == dict(
        zip(NAMES, saved.thresholds, strict=True)
    )
    val = package.evaluate(labelled, split="val").labels
    assert val is not None
    assert tuple(row.threshold for row in val.labels) == saved.thresholds
    assert val.macro_f1 == val.micro_f1 == 1.0  # they separate what mAP 1 says can be
    alone = tmp_path / "w.safetensors"
    alone.write_bytes((labelled.folder / "weights.safetensors").read_bytes())
    predictor = package.load(alone)
    images, labels = channels_on(8, 99)
    predictions = predictor.predict(list(images), top=1)
    for prediction, row in zip(predictions, labels, strict=True):
        assert prediction.chosen is not None
        assert set(prediction.chosen) == {n for n, y in zip(NAMES, row, strict=True) if y}
        assert len(prediction.names) == max(1, row.sum())
        assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
        assert [r["name"] for r in prediction.ranked() if r["chosen"]] == list(prediction.chosen)
    preprocess = predictor.model.preprocess
    inputs = preprocess.normalise(preprocess.fit(torch.from_numpy(images[7]).permute(2, 0, 1))[None])
    with torch.inference_mode():
        want = predictor.model.network(inputs).sigmoid()
    torch.testing.assert_close(predictor.probabilities([images[7]]), want)


def test_evaluate_says_what_training_said(labelled):
    result = package.evaluate(labelled)
    assert (result.split, result.num_images, result.confusion, result.top5_accuracy) == ("test", 24, [], None)
    summary = labelled.summary
    assert result.labels is not None
    assert result.labels.map == summary["test_map"]
    assert result.loss == pytest.approx(summary["test_loss"], rel=1e-5)
    assert result.accuracy == result.labels.subset_accuracy == summary["scores"]["subset_accuracy"]
    assert result.classes == NAMES


def test_other_data_may_have_some_of_the_labels_in_another_order(labelled, tmp_path):
    whole = package.evaluate(labelled, str(write(tmp_path / "whole.npz", test=40))).labels
    some = package.evaluate(labelled, str(write(tmp_path / "some.npz", ("blue", "red"), test=40)))
    assert some.classes == ("blue", "red")
    assert whole is not None
    assert some.labels is not None
    assert some.labels.labels == (whole.labels[2], whole.labels[0])
    with pytest.raises(InputError, match="classes that the network does not know: pink"):
        path = write(tmp_path / "pink.npz", test=40)
        with np.load(path) as file:
            np.savez(path, **{**file, "classes": np.array(["red", "green", "pink"])})  # pyrefly: ignore
        package.evaluate(labelled, str(path))


def test_kinds_of_data_are_not_mixed_up(labelled, trained, tmp_path):
    images, labels = channels_on(8, 0)
    np.savez(tmp_path / "one.npz", test_images=images, test_labels=labels[:, 0], classes=np.array(["red", "green"]))
    with pytest.raises(InputError, match="has one label an image, the network was trained for several"):
        package.evaluate(labelled, str(tmp_path / "one.npz"))
    several = write(tmp_path / "s.npz", test=8)
    with np.load(several) as file:
        two = {**file, "test_labels": file["test_labels"][:, :2], "classes": np.array(["ants", "bees"])}
        np.savez(several, **two)  # pyrefly: ignore
    with pytest.raises(InputError, match="has several labels an image, the network was trained for one"):
        package.evaluate(trained, str(several))


def test_command_shows_labels(labelled, skipway, tmp_path):
    shown = skipway("evaluate", labelled.folder).out
    for words in ("mAP 100.00%", "micro F1", "all labels right", "threshold", "green"):
        assert words in shown
    table = json.loads(skipway("evaluate", labelled.folder, "--json").out)
    assert table["labels"]["map"] == 1.0
    assert [row["name"] for row in table["labels"]["labels"]] == list(NAMES)
    images, _ = channels_on(8, 5)
    for i in (0, 3):
        Image.fromarray(images[i]).save(tmp_path / f"{i}.png")
    none, two = skipway("predict", labelled.folder, tmp_path / "0.png", tmp_path / "3.png").out.splitlines()
    assert "+" not in none
    assert ("+red" in two, "+green" in two, "+blue" in two) == (True, True, False)
    answer = json.loads(skipway("predict", labelled.folder, tmp_path / "3.png", "--json", "--top", "1").out)
    assert {r["name"] for r in answer["predictions"] if r["chosen"]} == {"red", "green"}


def test_live_view_shows_map(several, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    train(several, tmp_path / "run", settings(epochs=1), console)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    for words in ("labels ok", "mAP", "validation mAP", "test mAP", "3 labels"):
        assert words in said
    assert "accuracy" not in said


class Killed(Exception):
    pass


EVERYTHING = {
    "augment": {"mixup": 0.2, "cutmix": 1.0, "erasing_rate": 0.25},
    "train": TINY["train"]
    | {"epochs": 3, "loss": "focal", "class_weights": "balanced", "sampler": "balanced", "label_smoothing": 0.1},
}


@pytest.mark.parametrize("kind", ["several", "photos"])
@pytest.mark.parametrize("at", [(1, 2), (3, 0)])
def test_run_cut_off_goes_on_to_the_same_bits_on_any_number_of_workers(request, tmp_path, monkeypatch, kind, at):
    data = request.getfixturevalue(kind)
    options = TINY | EVERYTHING
    whole = train(data, tmp_path / "whole", options)
    step, per_epoch = Trainer._step, len(whole.steps()) // 3

    def cut(self, batch, epoch, number):
        if (epoch, number - (epoch - 1) * per_epoch) == at:
            raise Killed
        return step(self, batch, epoch, number)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_step", cut)
        train(data, tmp_path / "cut", options)
    resumed = train(data, tmp_path / "cut", options | {"data": {"workers": 2}})
    assert resumed.finished
    assert whole.steps() == resumed.steps()
    assert whole.thresholds == resumed.thresholds
    a, b = load_model(whole.folder).network.state_dict(), load_model(resumed.folder).network.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_run_cut_off_while_it_chose_thresholds_chooses_them_again(several, tmp_path, monkeypatch):
    whole = train(several, tmp_path / "whole")

    def killed(self, *_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ending, "draw_curves", killed)
        train(several, tmp_path / "run")
    run = train(several, tmp_path / "run")
    assert run.finished
    assert run.thresholds == whole.thresholds
    assert read_saved(run.folder).thresholds == run.thresholds


def test_stopped_run_predicts_at_one_half(several, tmp_path, monkeypatch):
    step = Trainer._step

    def interrupt(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", interrupt)
    run = train(several, tmp_path / "run")
    assert run.summary["status"] == "stopped"
    assert load_model(run.folder).thresholds == (0.5, 0.5, 0.5)
    assert package.load(run.folder).predict(channels_on(1, 0)[0][0])[0].chosen is not None


def test_damaged_thresholds_are_refused(labelled, tmp_path):
    state, metadata = read_safetensors(labelled.folder / "weights.safetensors")
    for text in (
        "{",
        "[0.5]",
        '{"red": 0.5}',
        '{"red": 0.5, "green": 2, "blue": 0.5}',
        '{"red": NaN, "green": 0, "blue": 0}',
    ):
        save_file(state, tmp_path / "w.safetensors", metadata | {"thresholds": text})
        with pytest.raises(InputError, match="is damaged"):
            package.load(tmp_path / "w.safetensors")


def test_cross_entropy_on_several_labels_is_refused_and_leaves_nothing(several, tmp_path):
    with pytest.raises(InputError, match=r"train\.loss cross_entropy is for one label an image.*--loss bce"):
        train(several, tmp_path / "run", settings(loss="cross_entropy"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_one_label_an_image_is_learned_by_other_losses(photos, tmp_path, loss):
    run = train(photos, tmp_path / "run", settings(epochs=8, loss=loss, precision="fp32"))
    assert run.summary["val_accuracy"] == 1.0
    assert run.thresholds is None
    evaluation = package.evaluate(run)
    assert evaluation.loss == pytest.approx(run.metrics()[run.summary["best_epoch"] - 1]["val_loss"], rel=1e-4)
    path = photos / "bees" / "000.png"
    predictor = package.load(run.folder)
    p = predictor.probabilities([path])
    assert p.sum().item() == pytest.approx(1)
    preprocess = predictor.model.preprocess
    inputs = preprocess.normalise(preprocess.fit(torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1))[None])
    with torch.inference_mode():
        logits = predictor.model.network(inputs)
    each = logits.sigmoid() if loss == "bce" else logits.exp()
    torch.testing.assert_close(p, each / each.sum())
    assert predictor.predict(path)[0].chosen is None


def test_loop_shows_classes_as_the_sampler_says(tmp_path, monkeypatch):
    data = make_photos(tmp_path / "p", splits=("val",), num=4)
    make_photos(data, splits=("train",), classes=("ants",), num=28)
    make_photos(data, splits=("train",), classes=("bees",), num=4)
    shown = []
    batches = Loader.batches

    def spy(self, order, batch_size):
        if batch_size == 8:
            shown.append(self.source.labels[order].bincount().tolist())
        return batches(self, order, batch_size)

    monkeypatch.setattr(Loader, "batches", spy)
    run = train(data, tmp_path / "run", settings(sampler="balanced"))
    assert "every class equally often in an epoch" in " ".join(run.summary["chosen"])
    assert shown == [[16, 16], [16, 16]]  # of 28 and of 4 images


def test_each_choice_changes_the_training(tmp_path):
    images, labels = channels_on(48, 0)
    rare = labels[:, 0] | labels[:, 1] == 0  # fewer of them
    keep = ~rare | (np.arange(48) % 16 == 0)
    np.savez(tmp_path / "several.npz", images=images[keep], labels=labels[keep])
    photos = make_photos(tmp_path / "photos", classes=("ants",), num=24)
    make_photos(photos, classes=("bees",), num=12)
    for data, losses in ((tmp_path / "several.npz", ("bce", "focal")), (photos, ("bce", "focal", "auto"))):
        seen = set()
        for loss in losses:
            for weighting, sampler in (("none", "shuffle"), ("balanced", "shuffle"), ("none", "balanced")):
                name = f"{data.name}-{loss}-{weighting}-{sampler}"
                options = settings(epochs=1, loss=loss, class_weights=weighting, sampler=sampler)
                seen.add(train(data, tmp_path / name, options).steps()[-1]["loss"])
        assert len(seen) == 3 * len(losses)


def test_table_with_several_columns_goes_all_the_way(tmp_path, skipway):
    images, labels = channels_on(48, 3)
    rows = [["file", *NAMES]]
    for i, (image, row) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        rows.append([f"{i:02}.png", *map(str, row)])
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    flags = ["--stages", "1x4", "1x8/2", "--stem-width", "4", "--workers", "0", "--epochs", "6", "--batch-size", "8"]
    out = tmp_path / "out"
    told = skipway(
        "train", tmp_path / "labels.csv", "--label", *NAMES, "--image-size", "8", "--lr", "0.1", *flags, "--out", out
    )
    assert told.code == 0, told.err
    run = Run.open(out)
    assert run.classes == NAMES
    assert run.summary["val_map"] > 0.9
    assert "+red" in skipway("predict", out, tmp_path / "01.png").out
