"""What a run is told before its first epoch, and that it scores what it split."""

import io
import shutil

from conftest import TINY, make_photos, save_image
from rich.console import Console

import skipway
from skipway.data.split import read_split
from skipway.training.facts import doctor_notes


def test_training_says_at_its_start_what_the_doctor_sees(tmp_path):
    root = make_photos(tmp_path / "p", splits=("train", "val"), num=6)
    shutil.copy(root / "train" / "ants" / "000.png", root / "val" / "ants" / "again.png")
    console = Console(file=io.StringIO(), width=300)
    run = skipway.train(root, settings=TINY, out=tmp_path / "run", console=console)
    said = [note for note in run.summary["chosen"] if note.startswith("error: ")]
    assert len(said) == 1
    assert "train" in said[0]
    assert "val" in said[0]
    assert any("skipway doctor tells all" in note for note in run.summary["chosen"])


def test_clean_photos_are_not_remarked_upon(photos):
    from skipway.data.open import open_source
    from skipway.data_spec import DataSpec

    spec = DataSpec(str(photos), workers=1)
    assert doctor_notes(open_source(spec), spec) == []


def test_evaluate_scores_the_split_that_was_written_down(photos, tmp_path):
    """New files move every index and would change the draw; the run's own split stays."""
    run = skipway.train(photos, settings=TINY, out=tmp_path / "run", console=Console(file=io.StringIO()))
    for i in range(30):
        save_image(photos / "ants" / f"0{i:02}-new.png", 900 + i)
    again = skipway.evaluate(run)
    assert again.num_images == run.summary["num_val"]
    assert again.accuracy == run.summary["val_accuracy"]
    from skipway.data.open import open_source

    source = open_source(run.spec.data)
    val = read_split(run.folder / "split.csv", source).val
    assert not any("new" in source.name(i) for i in val.tolist())


def test_evaluate_of_other_data_ignores_what_names_its_own(photos, tmp_path):
    leave_out = tmp_path / "list.txt"
    leave_out.write_text("ants/003.png\n")
    settings = TINY | {"data": {"exclude": str(leave_out), "workers": 0}}
    run = skipway.train(photos, settings=settings, out=tmp_path / "run", console=Console(file=io.StringIO()))
    assert run.summary["num_train"] + run.summary["num_val"] == 39
    other = make_photos(tmp_path / "other", num=3)
    assert skipway.evaluate(run, other).num_images == 6
