import csv
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY_FLAGS, make_photos, save_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skipway.data.files import DiskFiles, FileSource
from skipway.data.open import open_source
from skipway.errors import InputError, ReadError
from skipway.spec import DataSpec


def opened(path: Path | str, **options) -> FileSource:
    source = open_source(DataSpec(path=str(path), workers=0, **options))
    assert isinstance(source, FileSource)
    return source


def images_in(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        save_image(folder / name, seed, (8, 8))
    return folder


@pytest.fixture
def abc(tmp_path) -> Path:
    """A folder of a.png, b.png and c.png."""
    return images_in(tmp_path / "t", "a.png", "b.png", "c.png")


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def classes_by_name(source: FileSource) -> dict[str, str]:
    return {source.name(i): source.classes[label] for i, label in enumerate(source.labels.tolist())}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "image,label\na.png,cat\nb.png,dog\nc.png,cat\n"),
        ("t.csv", "\ufefflabel;Path\r\ncat;a.png\r\ndog;b.png\r\n\r\ncat;c.png"),
        ("t.csv", 'image, label\n"a.png", "cat"\nb.png, dog\nc.png, cat\n'),
        ("t.csv", 'note,file_name,class\n"two\nlines, one field",a.png,cat\n"a ""quote""",b.png,dog\n,./c.png,cat\n'),
        ("t.tsv", "image\tlabel\na.png\tcat\nb.png\tdog\nc.png\tcat\n"),
        ("t.csv", "who,where,what\nx,a.png,cat\ny,b.png,dog\nx,c.png,cat\n"),
        (
            "t.jsonl",
            '{"image": "a.png", "label": "cat"}\n\n{"label": "dog", "image": "b.png"}\n{"image":"c.png","label":"cat"}',
        ),
        (
            "T.NDJSON",
            '{"image": "a.png", "y": "cat", "z": {}}\n{"image": "b.png", "y": "dog"}\n{"image":"c.png","y":"cat"}\n',
        ),
    ],
)
def test_tables_as_people_write_them(abc, name, text):
    options = {"label": ("what",)} if "who" in text else {}
    source = opened(table(abc, text, name), **options)
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, 0]
    assert [source.name(i).removeprefix("./") for i in range(3)] == ["a.png", "b.png", "c.png"]
    assert list(source.splits) == ["all"]
    assert source.read(1).shape == (3, 8, 8)
    assert source.bad == {}


def test_paths_may_be_absolute_or_lead_out_of_the_folder(tmp_path, abc):
    images_in(tmp_path, "up.png")
    source = opened(table(abc, f"image,label\n../up.png,x\n{abc / 'a.png'},y\nb.png,x\n"))
    assert [source.read(i).shape for i in range(3)] == [(3, 8, 8)] * 3


NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=4)
ROWS = st.lists(st.one_of(st.none(), NAMES), min_size=1, max_size=8).filter(any)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=ROWS,
    stems=st.lists(NAMES.filter(lambda s: not set(s) & set('/\\:*?"<>|')), min_size=8, max_size=8, unique=True),
)
def test_any_table_is_the_same_source_in_every_format(labels, stems):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [f"{i}{stem}.png" for i, stem in enumerate(stems[: len(labels)])]
        for path in paths:
            save_image(folder / path, 0, (2, 2))
        text = io.StringIO()
        csv.writer(text).writerows([("image", "label"), *zip(paths, labels, strict=True)])
        sources = [opened(table(folder, text.getvalue()))]
        rows = [{"image": p, "label": label} for p, label in zip(paths, labels, strict=True)]
        sources.append(opened(table(folder, "\n".join(map(json.dumps, rows)), "t.jsonl")))
        pq.write_table(pa.table({"image": paths, "label": pa.array(labels, pa.string())}), folder / "t.parquet")
        sources.append(opened(folder / "t.parquet"))
        expected = {p: label for p, label in zip(paths, labels, strict=True) if label}
        for source in sources:
            assert classes_by_name(source) == expected
            assert set(source.classes) == set(expected.values())
            assert source.classes == sources[0].classes
            assert source.fingerprint == sources[0].fingerprint
            assert set(source.bad) == set(paths) - set(expected)


def test_cells_with_several_labels(abc):
    text = "image,tags\na.png,cat|dog\nb.png,\nc.png,dog | ape|\n"
    source = opened(table(abc, text), separator="|")
    assert source.classes == ("ape", "cat", "dog")
    assert source.labels.dtype == torch.uint8
    assert source.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 1]]
    assert source.bad == {}
    rows = [{"image": "a.png", "tags": ["cat", "dog"]}, {"image": "b.png"}, {"image": "c.png", "tags": ["ape", "dog"]}]
    lists = opened(table(abc, "\n".join(map(json.dumps, rows)), "t.jsonl"))
    assert torch.equal(lists.labels, source.labels)


def test_several_columns_of_0_and_1(abc):
    text = "image,age,zebra,ant\na.png,7,1,0\nb.png,8,0,\nc.png,9,1,True\n"
    source = opened(table(abc, text), label=("zebra", "ant"))
    assert source.classes == ("zebra", "ant")
    assert source.labels.dtype == torch.uint8
    assert source.labels.tolist() == [[1, 0], [0, 0], [1, 1]]
    with pytest.raises(InputError, match=r"column 'age' of t\.csv must be 0 or 1 .* got '7'"):
        opened(abc / "t.csv", label=("zebra", "age"))


def test_split_column_is_used(abc):
    source = opened(table(abc, "image,label,Subset\na.png,x,Train\nb.png,y,training\nc.png,x,valid\n"))
    assert {name: rows.tolist() for name, rows in source.splits.items()} == {"train": [0, 1], "val": [2]}
    source = opened(table(abc, "image,label,split\na.png,x,train\nb.png,y,\nc.png,x,test\n"))
    assert {name: rows.tolist() for name, rows in source.splits.items()} == {"train": [0], "test": [1]}
    assert source.bad == {"row 2 of t.csv": "names no split"}
    source = opened(table(abc, "image,label,fold\na.png,x,1\nb.png,y,2\nc.png,x,1\n"))
    assert list(source.splits) == ["all"]
    with pytest.raises(InputError, match=r"column 'split' of t\.csv holds holdout; a split is one of train, training"):
        opened(table(abc, "image,label,split\na.png,x,train\nb.png,y,holdout\nc.png,x,test\n"))
    with pytest.raises(InputError, match=r"test has classes that train lacks: z"):
        opened(table(abc, "image,label,split\na.png,x,train\nb.png,y,train\nc.png,z,test\n"))


def test_groups_by_column_or_by_pattern(abc):
    path = table(abc, "image,label,patient\na.png,x,p1\nb.png,y,\nc.png,x,p1\n")
    groups = opened(path, group="patient").groups
    assert groups is not None
    assert groups[0] == groups[2] != groups[1]
    groups = opened(path, group="([ab])", label=("label",)).groups
    assert groups is not None
    assert len(groups.unique()) == 3
    with pytest.raises(InputError, match=r"unknown column of t\.csv 'patent'\. Did you mean 'patient'"):
        opened(path, group="patent")


def test_rows_without_use_are_left_out_and_named(abc):
    images_in(abc, "d.png")
    (abc / "broken.png").write_bytes(b"no image")
    (abc / "empty.png").write_bytes(b"")
    (abc / "folder.png").mkdir()
    rows = "a.png,x\nnone.png,x\nb.png,\n,x\nempty.png,x\nfolder.png,x\na.png,x\nbroken.png,y\nd.png,y\n"
    source = opened(table(abc, "image,label\n" + rows), label=("label",))
    assert [source.name(i) for i in source.splits["all"].tolist()] == ["a.png", "d.png"]
    assert source.labels[source.splits["all"]].tolist() == [0, 1]
    assert source.bad == {
        "none.png": "no such file",
        "b.png": "no label in t.csv",
        "row 4 of t.csv": "names no image",
        "empty.png": "empty (0 bytes)",
        "folder.png": "not a regular file",
        "row 7 of t.csv": "lists an image again",
        "broken.png": "not an image, or of a format that is not read",
    }
    with pytest.raises(ReadError, match=r"--bad-files skip"):
        opened(abc / "t.csv", bad_files="stop")


def test_an_image_listed_twice_must_agree_with_itself(abc):
    with pytest.raises(
        InputError, match=r"a\.png stands in t\.csv with different labels, in rows 1 and 3; .*--separator"
    ):
        opened(table(abc, "image,label\na.png,x\nb.png,y\na.png,y\n"))
    with pytest.raises(InputError, match=r"a\.png stands in t\.csv with different splits, in rows 1 and 3"):
        opened(table(abc, "image,label,split\na.png,x,train\nb.png,y,train\na.png,x,test\n"))


def test_fingerprint_follows_the_images(abc):
    path = table(abc, "image,label\na.png,x\nb.png,y\n")
    before = opened(path).fingerprint
    assert opened(path).fingerprint == before
    os.utime(abc / "a.png", ns=(1, 1))
    assert opened(path).fingerprint != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "has no rows"),
        ("t.csv", b"image,label\n", "has no rows"),
        ("t.jsonl", b"\n\n", "has no rows"),
        ("t.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not a text file, whatever its name says"),
        ("t.csv", "image,label\na.png,ä\n".encode("latin-1"), "is not UTF-8 text"),
        ("t.csv", "image,label\na.png,x\n".encode("utf-16"), "is not a text file"),
        ("t.csv", b"image,label\na.png,x\nb.png\n", "line 3 of .* has 1 fields, the header 2"),
        ("t.csv", b"image,label\na.png,x,y\n", "line 2 of .* has 3 fields, the header 2"),
        ("t.csv", b'image,label\na.png,"x\n', "cannot be read as CSV"),
        ("t.csv", b"image,label,label\na.png,x,y\n", "two columns called 'label'"),
        ("t.csv", b"a.png,x\nb.png,y\n", "the first line of .* must name the columns"),
        (
            "t.csv",
            b"what,label\nx,y\nx,z\n",
            "no column names files that are there; name one with --image; it has what, label",
        ),
        ("t.csv", b"image,one,two\na.png,x,y\n", "which column holds the labels.*--label; it has image, one, two"),
        (
            "t.csv",
            b"image,label\nq.png,x\nr.png,y\n",
            r"none of the files .* such as .*q\.png: no such file; paths count",
        ),
        ("t.csv", b"image,label\na.png,\nb.png,\n", "column 'label' of t.csv holds no label in any row"),
        ("t.csv", b"image,label\na.png,x\x07\nb.png,\n", "whose characters cannot be written down"),
        ("t.jsonl", b'{"image": "a.png"', "line 1 of .* is not JSON"),
        ("t.jsonl", b"[" * 100_000, "line 1 of .* is not JSON"),
        ("t.jsonl", b'["a.png", "x"]', "line 1 of .* is not a JSON object"),
        ("t.jsonl", b'{"image": 3, "label": "x"}', "column 'image' of t.jsonl must hold paths, got 3"),
        ("t.jsonl", b'{"image": "a\\u0000", "label": "x"}', "none of the files"),
        ("t.jsonl", b'{"image": "\\ud800", "label": "x"}', "none of the files"),
        ("t.jsonl", b'{"image": "a.png", "label": {"a": 1}}', "neither text nor a number"),
        ("t.jsonl", b'{"image": "a.png", "label": [[1]]}', "neither text nor a number"),
        ("t.parquet", b"PAR1", "is not a parquet file, or is damaged"),
    ],
)
def test_tables_that_cannot_be_used(abc, name, content, message):
    (abc / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        opened(abc / name)


def test_column_that_is_not_there(abc):
    path = table(abc, "image,label,quality\na.png,x,1\nb.png,y,2\n")
    for options in ({"label": ("qualty",)}, {"image": "qualty"}):
        with pytest.raises(
            InputError,
            match=r"unknown column of t\.csv 'qualty'\. Did you mean 'quality'\? Known: image, label, quality",
        ):
            opened(path, **options)


def test_parquet_of_paths(abc):
    columns = {
        "image": ["a.png", "b.png", "c.png"],
        "label": pa.array(["x", "y", "x"]).dictionary_encode(),
        "other": [{}] * 3,
    }
    pq.write_table(pa.table({k: v for k, v in columns.items() if k != "other"}), abc / "t.parquet")
    source = opened(abc / "t.parquet")
    assert classes_by_name(source) == {"a.png": "x", "b.png": "y", "c.png": "x"}
    pq.write_table(pa.table({"image": ["a.png"], "label": pa.array([None], pa.string())}), abc / "t.parquet")
    with pytest.raises(InputError, match="holds no label in any row"):
        opened(abc / "t.parquet")


def test_many_rows_stay_in_flat_arrays(tmp_path):
    """No list or dict as long as the table is left in the source."""
    folder = tmp_path / "t"
    folder.mkdir()
    save_image(folder / "x.png", 0, (2, 2))
    num = 300
    for i in range(num):
        os.link(folder / "x.png", folder / f"{i}.png")
    source = opened(table(folder, "image,label\n" + "".join(f"{i}.png,{i % 7}\n" for i in range(num))))
    assert isinstance(source.files, DiskFiles)
    parts = [source.labels, *source.splits.values(), source.files.names.blob, source.files.names.ends]
    assert all(isinstance(part, (torch.Tensor, np.ndarray)) for part in parts)
    assert len(source.bad) == 0
    assert source.labels.tolist() == [i % 7 for i in range(num)]


def test_training_from_tables(tmp_path, skipway):
    root = make_photos(tmp_path / "p", num=8)
    rows = [(str(path.relative_to(root)), path.parent.name) for path in sorted(root.glob("*/*.png"))]
    table(root, "\n".join(map(",".join, [("image", "label"), *rows])))
    table(root, "\n".join(json.dumps({"image": i, "label": label}) for i, label in rows), "t.jsonl")
    pq.write_table(pa.table({"image": [r[0] for r in rows], "label": [r[1] for r in rows]}), root / "t.parquet")
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        result = skipway("train", root / name, *TINY_FLAGS, "--out", tmp_path / f"run-{name}")
        assert result.code == 0, result.err
