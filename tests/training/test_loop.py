import dataclasses
import io
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, make_photos, newest, ours
from rich.console import Console

import skipway
from skipway.compose import compose
from skipway.errors import InputError
from skipway.run import Run, load_model
from skipway.training import ending, loop
from skipway.training.checkpoint import Position
from skipway.training.loop import Trainer
from skipway.training.place import claimed
from skipway.training.progress import Stops, View
from skipway.training.vault import Vault

FILES = {
    "spec.toml", "classes.json", "preprocess.json", "metrics.jsonl", "steps.jsonl", "weights.safetensors",
    "checkpoints", "curves.png", "mistakes.png", "summary.json", "split.csv", "engine.json",
}  # fmt: skip


def tiny(**train: Any) -> dict[str, dict[str, Any]]:
    return TINY | {"train": TINY["train"] | train}


def quiet() -> Console:
    return Console(file=io.StringIO())


def run_tiny(data: Path | str, out: Path | str | None = None, settings: dict | None = None) -> Run:
    return skipway.train(data, settings=settings or TINY, out=out, console=quiet())


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_model(run.folder).network.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def cut_at(step: Any, at: int) -> Any:
    """A training step that ends the process's run at some step, as a kill would."""

    def cut(self, batch, epoch, number):
        if number == at:
            raise Killed
        return step(self, batch, epoch, number)

    return cut


def test_run_folder_is_complete_and_tells_the_truth(tmp_path):
    data = make_photos(tmp_path / "p", splits=("train", "val", "test"))
    run = run_tiny(data, tmp_path / "run", tiny(epochs=3))
    assert {p.name for p in run.folder.iterdir()} == FILES
    metrics = run.metrics()
    assert [m["epoch"] for m in metrics] == [1, 2, 3]
    assert list(metrics[0]) == [
        "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "images_per_s", "time_s",
    ]  # fmt: skip
    assert all(0 <= m[k] <= 1 for m in metrics for k in ("train_accuracy", "val_accuracy"))
    assert [s["step"] for s in run.steps()] == list(range(1, 16))
    assert metrics[0]["train_loss"] == pytest.approx(sum(s["loss"] for s in run.steps()[:5]) / 5)
    best = max(metrics, key=lambda m: (m["val_accuracy"], -m["val_loss"]))
    summary = run.summary
    assert summary["status"] == "finished"
    assert (summary["best_epoch"], summary["val_accuracy"]) == (best["epoch"], best["val_accuracy"])
    evaluation = skipway.evaluate(run)
    assert evaluation.split == "test"
    assert summary["test_accuracy"] == evaluation.accuracy
    assert summary["test_loss"] == pytest.approx(evaluation.loss, rel=1e-5)
    assert run.classes == ("ants", "bees")
    spec = run.spec
    assert (ours(spec).stem, spec.network.num_classes, spec.network.in_channels) == ("cifar", 2, 3)
    assert spec.data.image_size == 16


def test_a_separable_set_is_learned(photos, tmp_path):
    run = run_tiny(photos, tmp_path / "run", tiny(epochs=8))
    assert run.summary["val_accuracy"] == 1.0
    assert run.metrics()[-1]["train_loss"] < 0.3
    assert run.summary["test_accuracy"] is None
    assert run.summary["num_test"] is None


def test_weights_file_alone_predicts(photos, tmp_path):
    run = run_tiny(photos, tmp_path / "run", tiny(epochs=8))
    alone = tmp_path / "w.safetensors"
    alone.write_bytes((run.folder / "weights.safetensors").read_bytes())
    predictor = skipway.load(alone)
    assert predictor.classes == ("ants", "bees")
    assert predictor.predict(photos / "bees" / "000.png")[0].name == "bees"


def test_same_spec_and_seed_give_the_same_bits_with_any_workers(photos, tmp_path):
    first = weights(run_tiny(photos, tmp_path / "a"))
    assert same(first, weights(run_tiny(photos, tmp_path / "b")))
    two = TINY | {"data": {"workers": 2}}
    assert same(first, weights(run_tiny(photos, tmp_path / "c", two)))
    assert not same(first, weights(run_tiny(photos, tmp_path / "d", tiny(seed=1))))


EVERYTHING: dict[str, dict[str, Any]] = {
    "network": TINY["network"],
    "data": {"workers": 0},
    "augment": {"randaugment": 1, "mixup": 0.2, "cutmix": 1.0, "erasing_rate": 0.25},
    "train": {
        "epochs": 3, "batch_size": 8, "optimizer": "adamw", "schedule": "onecycle", "ema_decay": 0.9,
        "label_smoothing": 0.1, "grad_clip": 1.0,
    },
}  # fmt: skip


class Killed(Exception):
    pass


@pytest.mark.parametrize("settings", [tiny(epochs=3), EVERYTHING], ids=["sgd", "everything"])
@pytest.mark.parametrize("at", [(1, 2), (2, 3), (3, 0)])
def test_run_cut_off_anywhere_goes_on_to_the_same_bits(photos, tmp_path, monkeypatch, settings, at):
    whole = run_tiny(photos, tmp_path / "whole", settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_step", cut_at(Trainer._step, (at[0] - 1) * 4 + at[1]))
        run_tiny(photos, tmp_path / "cut", settings)
    resumed = run_tiny(photos, tmp_path / "cut", settings)
    assert resumed.summary["status"] == "finished"
    assert same(weights(whole), weights(resumed))
    for name in ("train_loss", "val_loss", "val_accuracy", "lr"):
        assert [m[name] for m in whole.metrics()] == [m[name] for m in resumed.metrics()]
    assert whole.steps() == resumed.steps()


def test_stop_signal_leaves_a_loadable_run_that_goes_on(photos, tmp_path, monkeypatch):
    whole = run_tiny(photos, tmp_path / "whole")
    step = Trainer._step

    def interrupt(self, batch, epoch, number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, epoch, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupt)
        stopped = run_tiny(photos, tmp_path / "run")
    assert stopped.summary["status"] == "stopped"
    assert stopped.summary["epochs"] == 1
    assert len(stopped.metrics()) == 1
    assert stopped.network()(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
    assert same(weights(whole), weights(run_tiny(photos, tmp_path / "run")))


def test_stop_in_the_first_epoch_leaves_a_loadable_run(photos, tmp_path, monkeypatch):
    step = Trainer._step

    def interrupt(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", interrupt)
    run = run_tiny(photos, tmp_path / "run")
    assert (run.summary["status"], run.summary["epochs"], run.summary["best_epoch"]) == ("stopped", 0, None)
    assert skipway.load(run.folder).predict(photos / "ants" / "000.png")[0].names


def test_second_signal_ends_at_once_and_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT)
    with Stops() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.why
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_outside_the_main_thread(photos, tmp_path):
    thread = threading.Thread(target=run_tiny, args=(photos, tmp_path / "run"))
    thread.start()
    thread.join()
    assert Run.open(tmp_path / "run").finished


def test_without_out_runs_are_numbered_and_unfinished_ones_go_on(photos, monkeypatch):
    first = run_tiny(photos)
    assert first.folder == Path("runs/photos-custom-1")
    assert run_tiny(photos).folder == Path("runs/photos-custom-2")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_step", cut_at(Trainer._step, 4))
        run_tiny(photos)
    assert run_tiny(photos, settings=tiny(seed=4)).folder == Path("runs/photos-custom-4")
    assert run_tiny(photos).folder == Path("runs/photos-custom-3")
    assert len(list(Path("runs").iterdir())) == 4


def test_finished_run_is_never_overwritten(photos, tmp_path):
    run = run_tiny(photos, tmp_path / "run")
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    console = quiet()
    skipway.train(photos, settings=tiny(epochs=9), out=run.folder, console=console)
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before
    assert isinstance(console.file, io.StringIO)
    assert "is finished with other settings (train.epochs: 2 -> 9;" in " ".join(console.file.getvalue().split())


def test_test_split_is_read_once_at_the_end(tmp_path, monkeypatch):
    data = make_photos(tmp_path / "p", splits=("train", "val", "test"))
    sizes = []

    def spied(score):
        def spy(network, batches, preprocess, **options):
            found = score(network, batches, preprocess, **options)
            scores = found[0] if isinstance(found, tuple) else found
            sizes.append((int(scores.indices.min()), len(scores.labels)))
            return found

        return spy

    monkeypatch.setattr(loop, "score", spied(loop.score))
    monkeypatch.setattr(ending, "score_with_tta", spied(ending.score_with_tta))
    run_tiny(data, tmp_path / "run")
    assert sizes == [(40, 40), (40, 40), (80, 40)]  # validation twice, then the test, once


def test_averaged_weights_are_the_ones_kept(photos, tmp_path):
    run = run_tiny(photos, tmp_path / "run", tiny(epochs=1, ema_decay=0.5))
    tensors = newest(run.folder)
    kept = weights(run)
    assert all(torch.equal(kept[k], tensors[f"average.{k}"]) for k in kept)
    assert not torch.equal(kept["stem.conv.weight"], tensors["network.stem.conv.weight"])


def test_given_weights_start_the_run_and_fix_the_stem(photos, tmp_path):
    first = run_tiny(photos, tmp_path / "first", TINY | {"network": {**TINY["network"], "stem": "imagenet"}})
    settings = tiny(epochs=1, lr=1e-9, weights=str(first.folder))
    settings["augment"] = {"flip": False, "pad_crop": 0.0}
    second = run_tiny(photos, tmp_path / "second", settings)
    assert ours(second.spec).stem == "imagenet"
    old, new = weights(first), weights(second)
    torch.testing.assert_close(old["stem.conv.weight"], new["stem.conv.weight"], rtol=0, atol=1e-6)


def test_clipped_gradients_bound_the_step(photos, tmp_path):
    """Plain SGD at rate 1 without decay: a step is as long as the gradient, so at most as long as the clip."""
    sgd = {"momentum": 0.0, "lr": 1.0, "weight_decay": 0.0, "schedule": "constant", "warmup_epochs": 0.0, "epochs": 1}
    stages = (skipway.StageSpec(1, 4), skipway.StageSpec(1, 8, 2))
    spec = skipway.NetworkSpec(stages, shortcut="zero_pad", stem="cifar", stem_width=4, num_classes=2)
    start = weights_of(skipway.build(spec))
    moved = []
    for clip in (0.0, 1e-3):
        run = run_tiny(photos, tmp_path / str(clip), tiny(**sgd, grad_clip=clip, precision="fp32"))
        end = weights_of(run.network())
        moved.append((end - start).norm().item())
    assert moved[1] <= 4 * 1e-3 * 1.01  # four steps
    assert moved[0] > 10 * moved[1]


def weights_of(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_precision_and_format_are_as_asked(photos, tmp_path):
    plain = run_tiny(photos, tmp_path / "a", tiny(precision="fp32", channels_last=False))
    fast = run_tiny(photos, tmp_path / "b", tiny(precision="bf16"))
    assert plain.spec.train.precision == "fp32"
    assert weights(fast)["stem.conv.weight"].dtype == torch.float32
    assert plain.metrics()[0]["train_loss"] == pytest.approx(fast.metrics()[0]["train_loss"], rel=0.05)
    assert plain.metrics()[0]["train_loss"] != fast.metrics()[0]["train_loss"]


def test_loss_gone_bad_stops_with_a_word_and_keeps_the_best(photos, tmp_path, monkeypatch):
    step = Trainer._step

    def broken(self, batch, epoch, number):
        made = step(self, batch, epoch, number)
        return dataclasses.replace(made, loss=made.loss * float("nan")) if epoch == 2 else made

    monkeypatch.setattr(Trainer, "_step", broken)
    with pytest.raises(InputError, match=r"no longer a finite number in epoch 2.*lower --lr"):
        run_tiny(photos, tmp_path / "run")
    assert load_model(tmp_path / "run").classes == ("ants", "bees")
    assert len(Run.open(tmp_path / "run").metrics()) == 1


def test_disk_full_keeps_what_was_there(photos, tmp_path, monkeypatch):
    def full(self, name, files, **options):
        if name != Position().name:
            files = {**files, "more": lambda path: (path.write_bytes(b"half"), no_space(path))}
        write(self, name, files, **options)

    def no_space(path):
        raise OSError(28, "No space left on device", str(path))

    write = Vault.write
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Vault, "write", full)
        run_tiny(photos, tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".*"))
    assert run_tiny(photos, tmp_path / "run").finished


def test_bad_files_are_named_counted_and_kept_in_the_summary(photos, tmp_path):
    (photos / "ants" / "notes.txt").write_text("x")
    whole = (photos / "bees" / "003.png").read_bytes()
    (photos / "bees" / "003.png").write_bytes(whole[: len(whole) // 2])
    console = quiet()
    run = skipway.train(photos, settings=TINY, out=tmp_path / "run", console=console)
    assert set(run.summary["bad_files"]) == {"ants/notes.txt", "bees/003.png"}
    assert isinstance(console.file, io.StringIO)
    said = " ".join(console.file.getvalue().split())
    assert "left out 2 files that cannot be read: ants/notes.txt (not an image file), bees/003.png" in said
    assert said.count("bees/003.png") == 1


def test_settings_left_open_are_settled_and_said(photos, tmp_path):
    console = quiet()
    run = skipway.train(photos, settings=TINY | {"train": {"epochs": 1}}, out=tmp_path / "r", console=console)
    assert run.spec.train.batch_size == 16
    assert run.spec.train.lr == pytest.approx(0.1 * 16 / 128)
    said = " ".join(run.summary["chosen"])
    for words in (
        "36 train, 4 validation (held out of train), no test split",
        "stem cifar",
        "batches of 16",
        "learning rate 0.0125",
    ):
        assert words in said


def test_live_view_shows_bars_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    view = View("resnet20 on x", epochs=2, steps=3, notes=["a note"], done=0, console=console)
    row = {
        "epoch": 1,
        "train_loss": 1.0,
        "train_accuracy": 0.5,
        "val_loss": 2.0,
        "val_accuracy": 0.25,
        "images_per_s": 99.0,
        "time_s": 1.0,
    }
    with view:
        view.start_epoch(1)
        for _ in range(3):
            view.step(torch.tensor(0.5), 1234.0)
        view.end_epoch(row, 0.25, is_best=True)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for words in ("epoch 1/2", "loss 0.500", "1,234 images/s", "best 25.00%", "a note"):
        assert words in text


def test_no_code_branches_on_a_data_sets_name():
    sources = Path(loop.__file__).parent.parent.rglob("*.py")
    allowed = {"builtin.py", "recipes.py", "cli.py"}
    for path in sources:
        if path.name not in allowed:
            assert '"fashion' not in path.read_text(), path
            assert '"cifar10' not in path.read_text(), path


def test_train_takes_a_spec_object(photos, tmp_path):
    spec = compose(str(photos), settings=TINY)
    small = dataclasses.replace(spec, train=dataclasses.replace(spec.train, epochs=1))
    run = skipway.train(small, out=tmp_path / "run", console=quiet())
    assert len(run.metrics()) == 1
    network = skipway.NetworkSpec((skipway.StageSpec(1, 4),), stem_width=4)
    plain = {k: v for k, v in tiny(epochs=1).items() if k != "network"}
    other = skipway.train(photos, network=network, settings=plain, out=tmp_path / "other", console=quiet())
    assert ours(other.spec).stages == (skipway.StageSpec(1, 4),)
    named = skipway.train(
        photos, network="tutorial", settings={"train": {"epochs": 1}}, out=tmp_path / "n", console=quiet()
    )
    assert named.spec.network.name == "tutorial"
    assert json.loads((named.folder / "classes.json").read_text()) == ["ants", "bees"]


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    folder = tmp_path / "new" / "run"
    with claimed(folder):
        with pytest.raises(InputError, match="is being trained by another process"), claimed(folder):
            pass
        (folder / "x").write_text("kept")
    with claimed(folder):
        pass
    assert [p.name for p in folder.iterdir()] == ["x"]
    with claimed(tmp_path / "other" / "run"):
        pass
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("change", ["renamed", "grown"])
def test_run_does_not_go_on_with_other_data(photos, tmp_path, monkeypatch, change):
    def cut(self, *_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_step", cut)
        run_tiny(photos, tmp_path / "run")
    if change == "renamed":
        (photos / "ants").rename(photos / "wasps")
    else:
        make_photos(photos, num=30)
    with pytest.raises(InputError, match="the data in .* changed since"):
        run_tiny(photos, tmp_path / "run")


def test_other_workers_go_on_with_the_same_run(photos, monkeypatch):
    def cut(self, *_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_step", cut)
        run_tiny(photos)
    assert run_tiny(photos, settings=TINY | {"data": {"workers": 1}}).folder == Path("runs/photos-custom-1")


def test_odd_names_of_classes_and_folders_do_not_break_a_run(tmp_path):
    data = make_photos(tmp_path / "d$^$ [/x]", classes=("$^$", "$_b$ [bold]", "ünï 🐝"), num=8)
    run = run_tiny(data, tmp_path / "out [/b]")
    assert run.finished
    assert run.classes == ("$^$", "$_b$ [bold]", "ünï 🐝")


def test_unreadable_test_split_costs_the_test_accuracy_only(tmp_path):
    data = make_photos(tmp_path / "p", splits=("train", "test"))
    for path in (data / "test").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    run = run_tiny(data, tmp_path / "run")
    assert run.finished
    assert run.summary["test_accuracy"] is None
    assert len(run.summary["bad_files"]) == 40


def test_bad_test_files_stop_the_run_where_asked(tmp_path):
    data = make_photos(tmp_path / "p", splits=("train", "test"))
    broken = data / "test" / "ants" / "000.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError, match=r"test/ants/000\.png"):
        run_tiny(data, tmp_path / "run", TINY | {"data": {"workers": 0, "bad_files": "stop"}})


def test_cut_last_line_of_the_records_is_dropped(photos, tmp_path):
    run = run_tiny(photos, tmp_path / "run")
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "tra')
    assert [m["epoch"] for m in run.metrics()] == [1, 2]
