import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY_FLAGS, ours
from rich.console import Console

from skipway import tables
from skipway.flags import BY_NAME, FROM_DATA
from skipway.nn.describe import describe
from skipway.nn.drawing import draw
from skipway.nn.zoo import ZOO
from skipway.recipes import RECIPES
from skipway.run import Run
from skipway.spec import SECTIONS


def test_help_names_every_verb_and_loads_no_torch():
    code = "import sys, skipway.cli\ntry: skipway.cli.main(['--help'])\nexcept SystemExit as e: print('code', e.code)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split()[-3:] == ["code", "0", "False"], done.stderr
    for verb in ("train", "evaluate", "predict", "describe", "networks", "recipes"):
        assert verb in done.stdout


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "describe", "networks"])
def test_help_of_a_verb_has_examples(skipway, verb):
    result = skipway(verb, "--help")
    assert result.code == 0
    assert f"skipway {verb} " in result.out


def test_every_field_of_the_spec_is_a_flag(skipway):
    text = skipway("train", "--help").out
    for section, cls in SECTIONS.items():
        for f in dataclasses.fields(cls):
            if (section, f.name) not in BY_NAME | FROM_DATA:
                assert f"--{f.name.replace('_', '-')}" in text


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "skipway", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "0.1.0")


def test_train_evaluate_predict_in_a_row(skipway, photos):
    result = skipway("train", photos, *TINY_FLAGS, "--no-flip", "--milestones", "0.5", "0.9")
    assert result.code == 0, result.err
    assert "no test split: test accuracy is null" in result.out
    run = Run.open("runs/photos-custom-1")
    assert run.spec.augment.flip is False
    assert run.spec.train.milestones == (0.5, 0.9)
    shown = skipway("evaluate", run.folder)
    assert shown.code == 0
    assert "val split, 4 images" in shown.out
    as_json = json.loads(skipway("evaluate", run.folder, photos, "--json").out)
    assert as_json["num_images"] == 40
    lines = skipway("predict", run.folder, photos / "bees", "--json").out.splitlines()
    assert len(lines) == 20
    first = json.loads(lines[0])
    assert first["image"].endswith("bees/000.png")
    assert sum(p["probability"] for p in first["predictions"]) == pytest.approx(1)
    again = skipway("train", photos, *TINY_FLAGS, "--no-flip", "--milestones", "0.5", "0.9", "--out", run.folder)
    assert again.code == 0
    assert "is finished with these settings; nothing to do" in again.out


def test_config_file_is_laid_under_the_flags(skipway, photos, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        "[network]\nstages = ['1x4']\nstem_width = 4\n[data]\nworkers = 0\n[train]\nepochs = 3\nbatch_size = 8\n"
    )
    assert skipway("train", photos, "--config", config, "--epochs", "1", "--out", "run").code == 0
    spec = Run.open("run").spec
    assert (spec.train.epochs, spec.train.batch_size, ours(spec).stem_width) == (1, 8, 4)


def test_stopped_training_exits_with_75(skipway, photos, monkeypatch):
    from skipway.training.loop import Trainer
    from skipway.training.progress import StopRequested

    def stop(self, *_):
        raise StopRequested

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stop)
        result = skipway("train", photos, *TINY_FLAGS)
    assert result.code == 75
    assert "the same command goes on from there" in result.out
    assert skipway("train", photos, *TINY_FLAGS).code == 0
    assert Run.open("runs/photos-custom-1").finished


def test_interrupted_verb_says_so_and_exits_with_130(skipway, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("skipway.insight.see.subject_of", stop)
    result = skipway("see", "resnet20")
    assert result.code == 130
    assert result.err == "skipway: stopped\n"


def test_predict_names_images_and_skips_what_it_cannot_read(skipway, trained, photos):
    (photos / "bees" / "999.png").write_bytes(b"x")
    result = skipway("predict", trained.folder, photos / "bees", "--top", "1")
    assert result.code == 0
    assert result.out.count("bees 9") + result.out.count("bees 1") + result.out.count("bees 8") >= 18
    assert "999.png: not an image" in result.err
    assert "left out 1 file in all" in result.err


def test_describe_draws_the_skips(skipway, trained):
    result = skipway("describe", "tutorial")
    assert result.code == 0
    for words in (
        "43,242 parameters",
        "36,536,960 FLOPs",
        "╭─ identity",
        "╭─ projection",
        "╰─▶ +",
        "stage2.block2",
    ):
        assert words in result.out
    assert "╭─" not in skipway("describe", "plain20").out
    table = json.loads(skipway("describe", "resnet50", "--json").out)
    assert (table["parameters"], table["flops"]) == (25_557_032, 2 * table["macs"])
    assert table["input"] == [3, 224, 224]
    assert "input 3x16x16" in skipway("describe", trained.folder).out
    assert "3x64x64" in skipway("describe", "resnet18", "--image-size", "64").out


def test_describe_says_memory_receptive_field_and_warning(skipway):
    out = skipway("describe", "resnet50", "--batch-size", "32").out
    assert "a training step of 32 images keeps 2.75 GB of activations (fp32)" in out
    assert "one pixel of the last feature map sees 427x427 pixels, more than the whole image (224x224)" in out
    assert "warning" not in out
    out = skipway("describe", "tutorial").out
    assert "a training step of 1 image keeps 966.53 kB of activations (fp32)" in out
    assert "sees 25x25 pixels\n" in out
    out = skipway("describe", "resnet18", "--image-size", "64").out
    assert "warning: the imagenet stem reduces 64-pixel images 4 times" in out


def test_describe_leaves_out_what_is_not_known():
    known = describe("tutorial")
    layers = tuple(dataclasses.replace(row, receptive_field=0) for row in known.layers)
    console = Console(width=200, file=io.StringIO())
    console.print(tables.description(dataclasses.replace(known, layers=layers, activation_bytes=0, skips={})))
    assert isinstance(console.file, io.StringIO)
    out = console.file.getvalue()
    assert "43,242 parameters" in out
    assert "sees" not in out
    assert "keeps" not in out


def test_describe_draws_a_new_svg_file_and_no_other(skipway, tmp_path):
    path = tmp_path / "résnet.svg"
    result = skipway("describe", "resnet20", "--svg", path, "--json")
    assert result.code == 0
    assert json.loads(result.out)["parameters"] == 269_722
    assert path.read_text(encoding="utf-8") == draw(describe("resnet20"))
    path.write_text("mine")
    result = skipway("describe", "resnet20", "--svg", path)
    assert (result.code, result.out, path.read_text()) == (2, "", "mine")
    assert f"skipway: {path} exists; name a new file" in result.err
    result = skipway("describe", "resnet20", "--svg", "nowhere/picture.svg")
    assert (result.code, result.out) == (2, "")
    assert "skipway: nowhere/picture.svg: No such file or directory" in result.err


def test_networks_and_recipes_are_listed(skipway):
    everything = skipway("networks").out
    assert all(name in everything for name in ZOO)
    some = skipway("networks", "*50*").out
    assert "resnet50" in some
    assert "25,557,032" in some
    assert "resnet18" not in some
    assert all(name in skipway("recipes").out for name in RECIPES)


def test_every_recipe_trains(skipway, photos):
    for name in RECIPES:
        flags = [
            "--epochs",
            "1",
            "--batch-size",
            "8",
            "--workers",
            "0",
            "--stages",
            "1x64",
            "--stem-width",
            "4",
        ]
        assert skipway("train", photos, "--recipe", name, *flags, "--out", name).code == 0
        assert Run.open(name).spec.recipe == name


def test_readme_has_a_line_for_every_file():
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "src/skipway").rglob("*.py"):
        if path.name != "__init__.py":
            assert path.name in readme, f"{path.name} is missing in README's layout"
    assert "make demo" in readme
    assert "make test" in readme
    for picture in ("docs/demo-curves.png",):
        assert picture in readme
        assert Path(ROOT, picture).is_file()


def test_describe_takes_changes_and_a_weights_file(skipway, trained):
    plain = json.loads(skipway("describe", "resnet50", "--json").out)
    deep = json.loads(skipway("describe", "resnet50", "--stem", "deep", "--attention", "se", "--json").out)
    assert deep["input"] == plain["input"]
    assert deep["parameters"] > plain["parameters"]
    own = skipway("describe", "resnet20", "--stages", "1x16", "2x32/2").out
    assert own.startswith("custom")
    assert "stage2.block2" in own
    assert "shortcut: zero pad" in own
    assert "attention: conv 1x1" in skipway("describe", "seresnet18").out
    assert "input 3x16x16" in skipway("describe", trained.folder / "weights.safetensors").out
    assert skipway("describe", "timm:test_vit", "--act", "gelu").code == 2


def test_files_of_wrong_kinds_are_not_written(skipway):
    result = skipway("describe", "tutorial", "--svg", "picture.png")
    assert (result.code, Path("picture.png").exists()) == (2, False)
    assert "ends in .svg" in result.err


def test_networks_without_norm_and_frozen_fresh_weights_warn(skipway, photos):
    flags = ["--stages", "12x4", "--stem-width", "4", "--norm", "none", "--freeze", "stem", "--epochs", "1"]
    out = skipway("train", photos, *flags, "--batch-size", "8", "--workers", "0", "--lr", "1e-6", "--out", "run").out
    assert "warning: 12 blocks without normalisation hardly train as they are" in out
    assert "warning: what is frozen has fresh weights" in out
