from pathlib import Path

import pytest
from conftest import make_photos
from hypothesis import given
from hypothesis import strategies as st

from skipway.data.exclude import read_list, write_list
from skipway.data.open import open_source
from skipway.data_spec import DataSpec
from skipway.errors import InputError


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "good", splits=("train", "val"), classes=("a", "b"), num=12)


@given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1)))
def test_any_names_come_back(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("lists") / "list.txt"
    write_list(path, names, data="x\n#")
    assert read_list(path) == names


def test_only_a_list_is_written_over(good, skipway, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("my own notes")
    result = skipway("doctor", good, "--fix-list", mine)
    assert (result.code, mine.read_text()) == (2, "my own notes")
    assert "no list of files to leave out" in result.err
    write_list(tmp_path / "list.txt", ["a"], data="x")
    write_list(tmp_path / "list.txt", ["b", "#c", '"d"', " e", "f\ng", "h\udcff"], data="x\n")
    assert read_list(tmp_path / "list.txt") == ["b", "#c", '"d"', " e", "f\ng", "h\udcff"]


def test_listed_files_are_left_out_of_every_split(good, tmp_path):
    listed = tmp_path / "list.txt"
    whole = open_source(DataSpec(str(good), workers=0))
    listed.write_text("train/a/000.png\ntrain/a/was-here.jpg\n")
    source = open_source(DataSpec(str(good), exclude=str(listed), workers=0))
    assert {name: len(part) for name, part in source.splits.items()} == {"train": 23, "val": 24}
    left = set(whole.splits["train"].tolist()) - set(source.splits["train"].tolist())
    assert [whole.name(index) for index in left] == ["train/a/000.png"]
    assert "names 1 of 2 files that the data lacks, such as train/a/was-here.jpg" in source.bad[str(listed)]
    for text, told in (("nowhere.jpg\n", "names no sample"), ('"broken\n', "line 1")):
        listed.write_text(text)
        with pytest.raises(InputError, match=told):
            open_source(DataSpec(str(good), exclude=str(listed), workers=0))
    with pytest.raises(InputError, match="cannot be read"):
        open_source(DataSpec(str(good), exclude=str(tmp_path / "none.txt"), workers=0))
