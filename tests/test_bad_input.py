"""What users get wrong: each costs one clear message and exit code 2, or is handled, said once, and ends with 0."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_FLAGS, make_photos, save_image
from PIL import Image

from skipway import durable
from skipway.run import Run
from skipway.training import place


def expect_refused(result, *words: str) -> None:
    """Exit code 2, one message on standard error with these words, no traceback."""
    assert result.code == 2, result.out + result.err
    message = " ".join(result.err.split())
    assert message.startswith("skipway: ")
    assert "Traceback" not in result.out + result.err
    for word in words:
        assert word in message, message


# handled


def odd_photos(root: Path) -> Path:
    """Two classes of images in every odd form that is handled."""
    make_photos(root, num=12)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    image, ants = Image.fromarray(pixels), root / "ants"
    image.convert("L").save(ants / "grey.png")
    image.quantize(16).save(ants / "palette.png")
    image.convert("CMYK").save(ants / "cmyk.jpg")
    image.convert("RGBA").save(ants / "rgba.png")
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(ants / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(ants / "rotated.jpg", exif=exif)
    return root


def test_odd_images_are_trained_without_a_word(skipway, tmp_path):
    result = skipway("train", odd_photos(tmp_path / "p"), *TINY_FLAGS, "--image-size", "16", "--out", "run")
    assert result.code == 0, result.err
    assert "left out" not in result.out
    assert Run.open("run").summary["num_train"] + Run.open("run").summary["num_val"] == 30


@pytest.mark.parametrize("mode", ["skip", "stop"])
def test_truncated_jpegs_and_text_files(skipway, tmp_path, mode):
    root = make_photos(tmp_path / "p")
    save_image(root / "ants" / "cut.jpg", 1, (16, 16))
    whole = (root / "ants" / "cut.jpg").read_bytes()
    (root / "ants" / "cut.jpg").write_bytes(whole[: len(whole) - 60])
    if mode == "skip":
        (root / "bees" / "notes.txt").write_text("hello")
    result = skipway("train", root, *TINY_FLAGS, "--bad-files", mode, "--out", "run")
    if mode == "stop":
        expect_refused(result, "ants/cut.jpg", "--bad-files skip")
    else:
        assert result.code == 0, result.err
        said = " ".join(result.out.split())
        assert said.count("ants/cut.jpg") == 1
        assert said.count("bees/notes.txt (not an image file)") == 1
        assert set(Run.open("run").summary["bad_files"]) == {"ants/cut.jpg", "bees/notes.txt"}


# refused


def test_missing_folder(skipway):
    expect_refused(skipway("train", "no/such/folder"), "no such folder: no/such/folder")


def test_misspelt_data_set_suggests_the_nearest(skipway):
    expect_refused(
        skipway("train", "fashion-sampel"),
        "unknown data set 'fashion-sampel'. Did you mean 'fashion-sample'?",
    )


def test_file_in_place_of_a_folder(skipway, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"x")
    expect_refused(skipway("train", tmp_path / "x.jpg"), "is a file of no kind that holds a data set; name a folder")
    (tmp_path / "x.zip").write_bytes(b"x")
    expect_refused(skipway("train", tmp_path / "x.zip"), "is not a whole zip archive")


def test_empty_folder(skipway, tmp_path):
    (tmp_path / "empty").mkdir()
    expect_refused(skipway("train", tmp_path / "empty"), "holds no images in class folders")


def test_images_without_class_folders(skipway, tmp_path):
    save_image(tmp_path / "flat" / "a.png", 0)
    expect_refused(skipway("train", tmp_path / "flat"), "holds no images in class folders: one folder a class")


def test_class_with_no_images(skipway, photos):
    (photos / "wasps").mkdir()
    expect_refused(skipway("train", photos), "class folder wasps", "has no images")


def test_one_class_only(skipway, tmp_path):
    expect_refused(skipway("train", make_photos(tmp_path / "p", classes=("ants",))), "one class only ('ants')")


def test_class_in_val_that_train_lacks(skipway, tmp_path):
    make_photos(tmp_path / "p", splits=("train",), num=3)
    make_photos(tmp_path / "p", splits=("val",), classes=("ants", "wasps"), num=3)
    expect_refused(skipway("train", tmp_path / "p"), "val has classes that train lacks: wasps")


def test_no_train_split(skipway, tmp_path):
    expect_refused(
        skipway("train", make_photos(tmp_path / "p", splits=("val", "test"))),
        "val and test but no train split",
    )


def test_two_folders_for_one_split(skipway, tmp_path):
    expect_refused(
        skipway("train", make_photos(tmp_path / "p", splits=("train", "val", "valid"), num=2)),
        "two val folders",
    )


def test_too_few_images_to_hold_any_out(skipway, tmp_path):
    expect_refused(skipway("train", make_photos(tmp_path / "p", num=1)), "too few images to hold some out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "resnet21"], "unknown network 'resnet21'. Did you mean 'resnet20'?"),
        (["--recipe", "dmeo"], "unknown recipe 'dmeo'. Did you mean 'demo'?"),
        (["--epoch", "3"], "Did you mean --epochs?"),
        (["--schedule", "cosin"], "Did you mean"),
        (["--epochs", "many"], "--epochs"),
        (["--epochs", "0"], "train.epochs must be at least 1, got 0"),
        (["--lr", "-1"], "train.lr must be at least 0, got -1"),
        (["--device", "tpu9"], "train.device 'tpu9' is not to be had here"),
        (["--config", "none.toml"], "config file none.toml cannot be read"),
        (["--stages", "3y"], "network.stages[0] must look like 3x32/2"),
        (
            ["--batch-size", "37"],
            "train.batch_size 37 is larger than the 36 training images; --batch-size 36 or less",
        ),
        (["--network", "resnet18", "--stem", "imagenet"], "--image-size must be at least 32, got 16"),
        (["--image-size", "2"], "--image-size must be at least 4, got 2"),
        (["--weights", "none"], "no such weights file or run folder: none"),
    ],
)
def test_setting_that_cannot_be(skipway, photos, arguments, words):
    expect_refused(skipway("train", photos, *arguments), words)
    assert not Path("runs").exists()


def test_unknown_field_in_a_config_file(skipway, photos):
    Path("c.toml").write_text("[train]\nepoch = 3\n")
    expect_refused(
        skipway("train", photos, "--config", "c.toml"),
        "unknown field of train 'epoch'. Did you mean 'epochs'?",
    )


def test_unknown_verb(skipway):
    expect_refused(skipway("trian", "x"), 'Did you mean "train"?')


def test_weights_of_other_shapes(skipway, photos, trained):
    result = skipway("train", photos, "--weights", trained.folder, "--network", "tutorial")
    expect_refused(result, "do not fit the network", "stem.conv.weight is [4, 3, 3, 3], the network's is [16, 3, 3, 3]")
    assert not Path("runs").exists()


def test_weights_that_are_none(skipway, photos, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"hello")
    expect_refused(skipway("train", photos, "--weights", tmp_path / "w.safetensors"), "is not a whole safetensors file")
    expect_refused(skipway("predict", tmp_path / "w.safetensors", photos), "is not a whole safetensors file")


@pytest.mark.parametrize("verb", ["evaluate", "predict", "describe"])
def test_run_folder_that_is_not_one(skipway, photos, verb):
    more = [photos] if verb == "predict" else []
    expect_refused(skipway(verb, photos, *more), "is not a run folder: it has no spec.toml")
    expect_refused(skipway(verb, photos / "none", *more), "no such")


def test_damaged_run_folder(skipway, trained, photos, tmp_path):
    folder = Path(shutil.copytree(trained.folder, tmp_path / "copy"))
    whole = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    expect_refused(skipway("evaluate", folder), "is not a whole safetensors file")
    (folder / "weights.safetensors").unlink()
    expect_refused(skipway("predict", folder, photos), "no such weights file")
    (folder / "spec.toml").write_text("[[[")
    expect_refused(skipway("describe", folder), "not a TOML file")


def test_output_folder_with_other_things_in_it(skipway, photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    expect_refused(
        skipway("train", photos, *TINY_FLAGS, "--out", tmp_path / "mine"),
        "is not empty and is not a run folder",
    )
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_output_folder_with_an_unfinished_run_of_other_settings(skipway, photos, trained, tmp_path):
    folder = Path(shutil.copytree(trained.folder, tmp_path / "copy"))
    (folder / "summary.json").write_text('{"status": "running"}')
    before = (folder / "metrics.jsonl").read_bytes()
    expect_refused(
        skipway("train", photos, *TINY_FLAGS, "--out", folder),
        "holds an unfinished run with other settings",
        "->",
    )
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_run_cut_off_before_its_first_checkpoint_starts_again(skipway, photos, trained, tmp_path):
    folder = tmp_path / "young"
    folder.mkdir()
    for name in ("spec.toml", "classes.json", "preprocess.json", "summary.json"):
        shutil.copy(trained.folder / name, folder)
    (folder / "summary.json").write_text('{"status": "running"}')
    flags = ["--config", folder / "spec.toml", "--out", folder]
    assert skipway("train", "", *flags).code == 0
    assert Run.open(folder).finished
    (folder / "summary.json").write_text('{"status": "running"}')
    shutil.rmtree(folder / "checkpoints")
    expect_refused(skipway("train", "", *flags), "holds a run that lost its spec.toml or its checkpoints")


def test_batches_of_one_need_more_than_one_pixel(skipway, photos):
    flags = ["--batch-size", "1", "--image-size", "4", "--network", "resnet20"]
    expect_refused(skipway("train", photos, *flags), "--image-size 5 or more, or --batch-size 2")
    flags[3] = "5"
    assert skipway("train", photos, *flags, "--epochs", "1").code == 0


def test_data_of_a_run_that_are_gone(skipway, trained, photos, tmp_path):
    text = (trained.folder / "weights.safetensors").read_bytes()
    gone = str(trained.spec.data.path).encode()
    copy = tmp_path / "w.safetensors"
    copy.write_bytes(text.replace(gone, gone[:-6] + b"absent"))
    expect_refused(skipway("evaluate", copy), "the run's own data: no such folder", "skipway evaluate RUN DATA")


def test_output_folder_inside_the_data(skipway, photos):
    expect_refused(skipway("train", photos, "--out", photos / "run"), "lies inside the data")
    assert sorted(p.name for p in photos.iterdir()) == ["ants", "bees"]


def test_run_that_lost_its_spec_is_not_overwritten(skipway, photos, trained, tmp_path):
    folder = Path(shutil.copytree(trained.folder, tmp_path / "copy"))
    (folder / "spec.toml").unlink()
    before = (folder / "weights.safetensors").read_bytes()
    expect_refused(skipway("train", photos, *TINY_FLAGS, "--out", folder), "lost its spec.toml")
    assert (folder / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", "[]"),
        ("classes.json", "5"),
        ("preprocess.json", '{"image_size": -4, "channels": 3, "mean": [0], "std": [1]}'),
        ("metrics.jsonl", "null\n"),
        ("spec.toml", "network = 3"),
        ("spec.toml", ""),
    ],
)
def test_damaged_file_of_an_unfinished_run(skipway, photos, trained, tmp_path, name, text):
    folder = Path(shutil.copytree(trained.folder, tmp_path / "copy"))
    (folder / "summary.json").write_text('{"status": "running"}')
    (folder / name).write_text(text)
    flags = ["--config", trained.folder / "spec.toml", "--out", folder]
    result = skipway("train", trained.spec.data.path, *flags)
    assert result.code == 2, result.out
    assert result.err.startswith("skipway: ")


@pytest.mark.parametrize("text", ["recipe = 5", "[network]\nname = ['x']", "[network]\nstages = 5", "[train]\nlr = []"])
def test_config_of_wrong_types(skipway, photos, text):
    Path("c.toml").write_text(text)
    expect_refused(skipway("train", photos, "--config", "c.toml"))


def test_image_beside_the_class_folders_is_named(skipway, photos):
    save_image(photos / "loose.png", 1)
    result = skipway("train", photos, *TINY_FLAGS)
    assert result.code == 0
    assert "loose.png (lies beside the class folders, not in one)" in " ".join(result.out.split())


def test_output_folder_below_a_file(skipway, photos, tmp_path):
    (tmp_path / "file").write_text("x")
    expect_refused(skipway("train", photos, "--out", tmp_path / "file" / "run"), "cannot be made", "is a file")
    expect_refused(skipway("train", photos, "--out", tmp_path / "file"), "is a file")


def test_no_permission_in_the_output_folder(skipway, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(place.os, "access", lambda *_: False)  # tests may run as root, whom nothing is forbidden
    expect_refused(skipway("train", photos, "--out", tmp_path / "run"), "no permission to write in")
    assert not (tmp_path / "run").exists()


def test_no_space_in_the_output_folder(skipway, photos, tmp_path, monkeypatch):
    usage = type(shutil.disk_usage("/"))(100, 99, 1)
    monkeypatch.setattr(place.shutil, "disk_usage", lambda _: usage)
    expect_refused(skipway("train", photos, "--out", tmp_path / "run"), "no space for a run in", "MB wanted")
    assert not (tmp_path / "run").exists()


def test_disk_that_fills_up_during_training(skipway, photos, monkeypatch):
    write = durable.write_synced

    def full(path, content):
        if path.name == ".weights.safetensors.tmp":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(durable, "write_synced", full)
    expect_refused(skipway("train", photos, *TINY_FLAGS), "No space left on device")


def test_predict_without_a_readable_image(skipway, trained, tmp_path):
    (tmp_path / "x.png").write_bytes(b"x")
    unreadable = skipway("predict", trained.folder, tmp_path / "x.png")
    assert unreadable.code == 2
    assert "none of the images can be read" in unreadable.err
    expect_refused(skipway("predict", trained.folder, tmp_path / "none.png"), "no images at")
    expect_refused(skipway("predict", trained.folder), "name at least one image")
    expect_refused(skipway("predict", trained.folder, tmp_path / "x.png", "--top", "0"), "top must be at least 1")


def test_all_training_images_unreadable(skipway, tmp_path):
    root = make_photos(tmp_path / "p", num=8)
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    expect_refused(skipway("train", root, *TINY_FLAGS), "none of the training images can be read")


def test_unknown_split_and_classes(skipway, trained, tmp_path):
    expect_refused(skipway("evaluate", trained.folder, "--split", "tset"), "has no split 'tset'; it has")
    wasps = make_photos(tmp_path / "w", classes=("ants", "wasps"), num=2)
    expect_refused(skipway("evaluate", trained.folder, wasps), "classes that the network does not know: wasps")


def test_no_network_of_that_pattern(skipway):
    expect_refused(skipway("networks", "vgg*"), "unknown network (of skipway's own) 'vgg*'")
