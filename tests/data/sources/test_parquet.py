import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY_FLAGS, save_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from skipway.data import files
from skipway.data.files import FileSource
from skipway.data.images.decode import decode
from skipway.data.images.reading import Reading
from skipway.data.open import open_source
from skipway.data.source import ArraySource, Source
from skipway.data.sources import decoded, parquet
from skipway.data.sources.arrow import ArrowFiles, class_names
from skipway.data.sources.parquet import open_saved
from skipway.data.split import make_splits
from skipway.errors import InputError, ReadError
from skipway.spec import DataSpec


def opened(path: Path | str, *, workers: int = 0, **options: Any):
    return open_source(DataSpec(path=str(path), workers=workers, **options))


def pixels(source: Source) -> torch.Tensor:
    """The images of a source that has them in memory."""
    assert source.images is not None
    return source.images


def open_saved_at(path: Path):
    return open_saved(path, DataSpec(path=str(path)))


def make_parquet(
    folder: Path, split: str, images: list[bytes], labels: list, *, names: list[str] | None = None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    label_type = pa.string() if isinstance(labels[0], str) else pa.int64()
    schema = pa.schema([("img", image_type), ("label", label_type)])
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        schema = schema.with_metadata({"huggingface": json.dumps(features)})
    rows = [{"bytes": image, "path": None} for image in images]
    table = pa.table({"img": pa.array(rows, image_type), "label": labels}, schema=schema)
    pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def png(tmp_path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> bytes:
    save_image(tmp_path / "x.png", seed, size)
    return (tmp_path / "x.png").read_bytes()


def test_parquet_of_equal_images_lives_in_memory(tmp_path):
    images = [png(tmp_path, i) for i in range(6)]
    make_parquet(tmp_path / "h", "train", images[:4], [0, 1, 0, 1], names=["cat", "dog"])
    make_parquet(tmp_path / "h", "test", images[4:], [1, 0], names=["cat", "dog"])
    source = opened(tmp_path / "h")
    assert isinstance(source, ArraySource)
    assert source.classes == ("cat", "dog")
    assert source.labels[source.splits["train"]].tolist() == [0, 1, 0, 1]
    assert source.labels[source.splits["test"]].tolist() == [1, 0]
    save_image(tmp_path / "third.png", 2, (8, 8))
    assert torch.equal(source.read(int(source.splits["train"][2])), decode(tmp_path / "third.png", Reading(3)))


def test_parquet_of_unequal_images_streams_and_names_bad_rows(tmp_path):
    images = [png(tmp_path, 0), png(tmp_path, 1, (9, 12)), b"broken", png(tmp_path, 3)]
    make_parquet(tmp_path / "h" / "data", "train", images, ["b", "a", "b", "a"])
    source = opened(tmp_path / "h")
    assert isinstance(source, FileSource)
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [1, 0, 1, 0]
    assert source.size is None
    assert source.splits["train"].tolist() == [0, 1, 3]
    assert list(source.bad) == ["h[2]"]
    assert source.read(1).shape == (3, 12, 9)
    with pytest.raises(ReadError, match=r"h\[2\]"):
        opened(tmp_path / "h", bad_files="stop")


def test_parquet_in_memory_leaves_truncated_rows_out(tmp_path):
    images = [png(tmp_path, i, (40, 40)) for i in range(4)]
    images[1] = images[1][:200]
    make_parquet(tmp_path / "h", "train", images, [0, 1, 0, 1], names=["cat", "dog"])
    source = opened(tmp_path / "h")
    assert isinstance(source, ArraySource)
    assert source.splits["train"].tolist() == [0, 2, 3]
    assert list(source.bad) == ["h[1]"]


def test_parquet_that_is_none_or_lacks_columns(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.parquet").write_bytes(b"hello")
    with pytest.raises(InputError, match="is not a parquet file"):
        opened(tmp_path / "a")
    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "b" / "train.parquet")
    with pytest.raises(InputError, match=r"b needs a column of images.*it has x"):
        opened(tmp_path / "b")
    make_parquet(tmp_path / "c", "train", [png(tmp_path, 0)] * 2, [0, 7], names=["cat", "dog"])
    with pytest.raises(InputError, match=r"column 'label' of .* must lie in 0 \.\.\. 1 .* got 7"):
        opened(tmp_path / "c")


def test_missing_pyarrow_is_named_with_its_command(tmp_path, monkeypatch):
    make_parquet(tmp_path / "h", "train", [png(tmp_path, 0)] * 2, [0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    for open_it in (opened, open_saved_at):
        with pytest.raises(InputError, match=r"pip install 'skipway\[parquet\]'"):
            open_it(tmp_path / "h")


def write_columns(file: Path, columns: dict, features: dict | None = None) -> Path:
    """A parquet file of these columns."""
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file


def pngs(tmp_path: Path, num: int) -> list[bytes]:
    return [png(tmp_path, seed) for seed in range(num)]


CELLS = st.lists(st.none() | st.binary(max_size=5), max_size=6)


def test_labels_that_are_no_text(tmp_path):
    labels = pa.array([b"a", b"\xff"]).view(pa.string())
    file = write_columns(tmp_path / "x.parquet", {"image": pngs(tmp_path, 2), "label": labels})
    with pytest.raises(InputError, match=r"column 'label' of .* holds text that is not UTF-8"):
        opened(file)


@given(
    chunks=st.lists(CELLS, max_size=4),
    kind=st.sampled_from(["binary", "large", "struct", "view"]),
    cut=st.integers(0, 3),
)
def test_arrow_buffers_give_the_bytes_that_arrow_gives(chunks, kind, cut):
    types = {"binary": pa.binary(), "large": pa.large_binary(), "view": pa.binary_view()}
    if kind == "struct":
        arrow_type = pa.struct([("path", pa.string()), ("bytes", pa.binary())])
        arrays = [
            pa.array([c if c is None else {"bytes": c, "path": "x"} for c in chunk], arrow_type) for chunk in chunks
        ]
        oracle = [(cell or {}).get("bytes") or b"" for array in arrays for cell in array[cut:].to_pylist()]
    else:
        arrays = [pa.array(chunk, types[kind]) for chunk in chunks]
        oracle = [cell or b"" for array in arrays for cell in array[cut:].to_pylist()]
    found = ArrowFiles.of([array[cut:] for array in arrays], "t")
    assert [found.get(i) for i in range(len(found))] == oracle


def test_arrow_cells_without_images_are_hidden_by_their_struct():
    """A null struct over a child that holds bytes: the cell is empty."""
    child = pa.array([b"a", b"b"])
    array = pa.StructArray.from_arrays([child], ["bytes"], mask=pa.array([True, False]))
    found = ArrowFiles.of([array], "t")
    assert [found.get(0), found.get(1)] == [b"", b"b"]


def test_plain_binary_column_and_single_file(tmp_path):
    file = write_columns(tmp_path / "x.parquet", {"picture": pngs(tmp_path, 4), "y": [10, 9, 10, 9]})
    source = opened(file)
    assert source.classes == ("9", "10")
    assert source.labels.tolist() == [1, 0, 1, 0]
    assert list(source.splits) == ["all"]
    assert torch.equal(source.read(3), decode(png(tmp_path, 3), Reading(3)))
    assert source.name(3) == "x.parquet[3]"


def test_declared_classes_map_by_name_between_splits(tmp_path):
    images = pngs(tmp_path, 4)
    make_parquet(tmp_path / "h", "train", images, [0, 1, 2, 0], names=["ant", "bee", "cow"])
    make_parquet(tmp_path / "h", "validation", images, [0, 1, 2, 0], names=["cow", "ant", "bee"])
    source = opened(tmp_path / "h")
    assert source.classes == ("ant", "bee", "cow")
    assert source.labels[source.splits["train"]].tolist() == [0, 1, 2, 0]
    assert source.labels[source.splits["val"]].tolist() == [2, 0, 1, 2]
    make_parquet(tmp_path / "h", "test", images, [0, 1, 0, 0], names=["ant", "dog"])
    with pytest.raises(InputError, match="test has classes that train lacks: dog"):
        opened(tmp_path / "h")


def test_numbers_and_text_are_classes_in_any_order_between_splits(tmp_path):
    images = pngs(tmp_path, 3)
    write_columns(tmp_path / "h" / "test.parquet", {"image": images, "label": ["c", "a", "b"]})
    write_columns(tmp_path / "h" / "train.parquet", {"image": images, "label": ["a", "b", "c"]})
    source = opened(tmp_path / "h")
    assert source.labels[source.splits["test"]].tolist() == [2, 0, 1]
    write_columns(tmp_path / "h" / "test.parquet", {"image": images, "label": [1, 2, 3]})
    with pytest.raises(InputError, match="mixes labels of different types, such as 'a' and 1"):
        opened(tmp_path / "h")


def test_unlabelled_rows_are_left_out_and_named(tmp_path):
    images = pngs(tmp_path, 4)
    make_parquet(tmp_path / "h", "train", images, [0, -1, 1, None], names=["cat", "dog"])
    source = opened(tmp_path / "h")
    assert source.splits["train"].tolist() == [0, 2]
    assert source.bad == {"h[1]": "no label", "h[3]": "no label"}
    with pytest.raises(ReadError, match=r"h\[1\]: no label"):
        opened(tmp_path / "h", bad_files="stop")
    make_parquet(tmp_path / "h", "train", images, [-1] * 4, names=["cat", "dog"])
    with pytest.raises(InputError, match="no row of .* has a label"):
        opened(tmp_path / "h")


def test_lists_of_labels_are_multilabel(tmp_path):
    images = pngs(tmp_path, 3)
    feature = {"_type": "List", "feature": {"_type": "ClassLabel", "names": ["z", "a", "m"]}}
    file = write_columns(tmp_path / "x.parquet", {"image": images, "tags": [[0, 2], [], [1]]}, {"tags": feature})
    source = opened(file)
    assert source.classes == ("z", "a", "m")
    assert source.labels.dtype == torch.uint8
    assert source.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    text = opened(write_columns(tmp_path / "y.parquet", {"image": images, "tags": [["b", "a"], None, ["a"]]}))
    assert text.classes == ("a", "b")
    assert text.labels.tolist() == [[1, 1], [0, 0], [1, 0]]
    cells = write_columns(tmp_path / "z.parquet", {"image": images, "tags": ["b|a", "", "a"]})
    assert torch.equal(opened(cells, separator="|").labels, text.labels)


@pytest.mark.parametrize(
    "feature",
    [
        {"names": ["a", "b"], "_type": "ClassLabel"},
        {"feature": {"names": ["a", "b"], "_type": "ClassLabel"}, "_type": "Sequence"},
        [{"names": ["a", "b"], "_type": "ClassLabel"}],
    ],
)
def test_class_names_are_found_in_every_way_they_are_written(feature):
    assert class_names(feature) == ("a", "b")
    assert class_names({"dtype": "int64", "_type": "Value"}) == class_names(None) == ()


def test_columns_are_chosen_or_asked_for(tmp_path):
    images = pngs(tmp_path, 4)
    columns = {
        "a": images,
        "b": images[::-1],
        "fine": [0, 1, 2, 3],
        "coarse": [0, 0, 1, 1],
        "who": ["x", "y", "x", None],
    }
    file = write_columns(tmp_path / "x.parquet", columns)
    with pytest.raises(InputError, match=r"which column holds the labels\? .*--label; it has a, b, fine, coarse, who"):
        opened(file)
    source = opened(file, label=("coarse",), image="b", group="who")
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(source.read(0), decode(images[3], Reading(3)))
    assert source.groups is not None
    assert source.groups[0] == source.groups[2]
    assert len(source.groups.unique()) == 3
    wrong: list[dict[str, Any]] = [{"label": ("coarze",)}, {"label": ("fine",), "group": "coarze"}, {"image": "coarze"}]
    for options in wrong:
        with pytest.raises(InputError, match="unknown column of x.parquet 'coarze'. Did you mean 'coarse'"):
            opened(file, **options)
    with pytest.raises(InputError, match="column 'b' of .* is of type binary"):
        opened(file, label=("b",))


def test_split_column_divides_an_undivided_set(tmp_path):
    columns = {"image": pngs(tmp_path, 4), "label": [0, 1, 0, 1], "split": ["train", "dev", "Test", "train"]}
    source = opened(write_columns(tmp_path / "x.parquet", columns))
    assert {name: rows.tolist() for name, rows in source.splits.items()} == {"train": [0, 3], "val": [1], "test": [2]}


def test_files_that_name_no_split_are_one_set_or_passed_over(tmp_path):
    images = pngs(tmp_path, 2)
    write_columns(tmp_path / "h" / "0001.parquet", {"image": images, "label": [0, 1]})
    write_columns(tmp_path / "h" / "0002.parquet", {"image": images, "label": [1, 1]})
    source = opened(tmp_path / "h")
    assert source.labels[source.splits["all"]].tolist() == [0, 1, 1, 1]
    write_columns(tmp_path / "h" / "train.parquet", {"image": images, "label": [0, 1]})
    source = opened(tmp_path / "h")
    assert len(source) == 2
    assert source.bad["0001.parquet"] == "stands beside train, so it is passed over"


def test_damaged_and_empty_parquet(tmp_path):
    file = write_columns(tmp_path / "x.parquet", {"image": pngs(tmp_path, 8), "label": [0, 1] * 4})
    whole = file.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match="is not a parquet file, or is damaged"):
            opened(file)
    holes = bytearray(whole)
    holes[4 : len(whole) // 2] = bytes(len(whole) // 2 - 4)
    file.write_bytes(holes)
    with pytest.raises(InputError, match="is not a parquet file, or is damaged"):
        opened(file)
    empty = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(empty, file)
    with pytest.raises(InputError, match="holds no rows"):
        opened(file)


def test_deep_images_of_one_size_live_in_memory_as_they_are(tmp_path):
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    encoded = io.BytesIO()
    Image.fromarray(ramp).save(encoded, "PNG")
    source = opened(write_columns(tmp_path / "x.parquet", {"image": [encoded.getvalue()] * 2, "label": [0, 1]}))
    assert isinstance(source, ArraySource)
    assert source.deep
    assert source.images.shape == (2, 1, 8, 8)
    assert torch.equal(source.read(1), decode(encoded.getvalue(), Reading(1, deep=True)))
    assert source.read(1).unique().numel() == 64


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """A parquet file large enough to be kept, with one image that is broken; workers decode it."""
    monkeypatch.setattr(decoded, "KEEP_FROM", 4)
    images = pngs(tmp_path, 6)
    images[2] = images[2][:60]
    return write_columns(
        tmp_path / "x.parquet", {"image": images, "label": [0, 1, 0, 1, 0, 1], "other": list(range(6))}
    )


def cached() -> list[Path]:
    return sorted(Path(os.environ["SKIPWAY_CACHE"]).rglob("*.*"))


def test_decoded_pixels_are_kept_and_mapped(kept, monkeypatch):
    first = opened(kept, workers=2)
    [file] = cached()
    assert file.suffix == ".safetensors"
    monkeypatch.setattr(parquet, "file_source", None)  # nothing is decoded, nor are headers read
    again = opened(kept)
    assert torch.equal(pixels(again), pixels(first))
    assert pixels(again).stride() == pixels(first).stride()
    assert again.bad == first.bad
    assert list(first.bad) == ["x.parquet[2]"]
    assert again.splits["all"].tolist() == first.splits["all"].tolist() == [0, 1, 3, 4, 5]
    assert opened(kept, label=("other",)).classes == tuple("0123456"[:6])
    with pytest.raises(ReadError, match=r"x\.parquet\[2\]"):
        opened(kept, bad_files="stop")


def test_kept_pixels_follow_their_files(kept, tmp_path):
    before = pixels(opened(kept)).clone()
    write_columns(kept, {"image": pngs(tmp_path, 7)[1:], "label": [0, 1, 0, 1, 0, 1], "other": list(range(6))})
    assert not torch.equal(pixels(opened(kept)), before)
    assert len(cached()) == 2


@pytest.mark.parametrize("damage", [b"", b"\xff" * 200, None])
def test_damaged_cache_is_made_anew(kept, damage):
    before = pixels(opened(kept)).clone()
    [file] = cached()
    whole = file.read_bytes()  # the order of its facts may differ
    file.write_bytes(whole[:-5] if damage is None else damage)
    assert torch.equal(pixels(opened(kept)), before)
    assert sorted(file.read_bytes()) == sorted(whole)


def test_cache_off_or_out_of_reach_only_costs_time(kept, tmp_path, monkeypatch):
    assert isinstance(opened(kept, cache="off"), ArraySource)
    assert not cached()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "file"))
    assert isinstance(opened(kept), ArraySource)
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    assert isinstance(opened(kept), ArraySource)
    assert not cached()


@pytest.mark.parametrize("odd", [None, 3])
def test_sets_with_headers_unread_live_in_memory_if_all_are_alike(tmp_path, monkeypatch, odd):
    monkeypatch.setattr(files, "HEADERS_UP_TO", 2)
    monkeypatch.setattr(files, "SAMPLE", 2)
    monkeypatch.setattr(decoded, "HEADERS_UP_TO", 2)
    images = [png(tmp_path, i, (8, 9) if i == odd else (8, 8)) for i in range(6)]
    source = opened(write_columns(tmp_path / "x.parquet", {"image": images, "label": [0, 1] * 3}), workers=1)
    assert isinstance(source, ArraySource if odd is None else FileSource)
    assert source.read(3).shape == (3, 8 if odd is None else 9, 8)


def test_sets_too_large_for_memory_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "IN_MEMORY", 6 * 3 * 64 - 1)
    source = opened(write_columns(tmp_path / "x.parquet", {"image": pngs(tmp_path, 6), "label": [0, 1] * 3}))
    assert isinstance(source, FileSource)


def arrays(num: int, size: int = 8) -> list[np.ndarray]:
    return list(np.random.default_rng(num).integers(0, 256, (num, size, size, 3), dtype=np.uint8))


def saved_set(num: int, names: list[str]) -> datasets.Dataset:
    features = datasets.Features({"pic": datasets.Image(), "kind": datasets.ClassLabel(names=names)})
    rows = {"pic": [Image.fromarray(a) for a in arrays(num)], "kind": [i % len(names) for i in range(num)]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_saved_set_is_what_the_library_reads(tmp_path):
    theirs = saved_set(10, ["dog", "cat"])
    theirs.save_to_disk(tmp_path / "s", num_shards=3)
    source = opened(tmp_path / "s")
    assert source.classes == ("dog", "cat")
    assert list(source.splits) == ["all"]
    rows: Any = theirs
    for i, row in enumerate(rows):
        assert source.labels[i] == row["kind"]
        assert np.array_equal(source.read(i).permute(1, 2, 0).numpy(), np.asarray(row["pic"]))


def test_saved_splits_select_shuffle_and_map_by_name(tmp_path):
    parts: Any = {
        "train": saved_set(6, ["dog", "cat"]).shuffle(seed=0),
        "validation": saved_set(4, ["cat", "dog"]).select([3, 1, 2]),
        "extra": saved_set(2, ["dog", "cat"]),
    }
    both: Any = datasets.DatasetDict(parts)
    both.save_to_disk(tmp_path / "s")
    source = opened(tmp_path / "s")
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 6, "val": 3}
    assert source.bad == {"extra": "stands beside train and val, so it is passed over"}
    for split, ours in (("train", "train"), ("validation", "val")):
        for i, row in zip(source.splits[ours].tolist(), both[split], strict=True):
            assert source.classes[source.labels[i]] == both[split].features["kind"].names[row["kind"]]
            assert np.array_equal(source.read(i).permute(1, 2, 0).numpy(), np.asarray(row["pic"]))


def test_saved_lists_are_multilabel(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(), "tags": datasets.List(datasets.ClassLabel(names=["a", "b"]))}
    )
    rows = {"image": [Image.fromarray(a) for a in arrays(3)], "tags": [[1], [], [0, 1]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "s")
    source = opened(tmp_path / "s")
    assert source.classes == ("a", "b")
    assert source.labels.tolist() == [[0, 1], [0, 0], [1, 1]]


def test_saved_set_that_is_damaged(tmp_path):
    saved_set(4, ["dog", "cat"]).save_to_disk(tmp_path / "s")
    [data] = (tmp_path / "s").glob("*.arrow")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not an Arrow stream file, or is damaged"):
        opened(tmp_path / "s")
    data.unlink()
    with pytest.raises(InputError, match="is not an Arrow stream file, or is damaged"):
        opened(tmp_path / "s")
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / "s" / name).write_text("{")
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            opened(tmp_path / "s")
        (tmp_path / "s" / name).write_text("[]")
        with pytest.raises(InputError, match=rf"{name} is not what save_to_disk writes"):
            opened(tmp_path / "s")
    datasets.DatasetDict({"odd": saved_set(2, ["dog", "cat"])}).save_to_disk(tmp_path / "d")
    with pytest.raises(InputError, match="has the splits odd, of which none is train"):
        opened(tmp_path / "d")


def test_flipped_bytes_cost_an_image_or_a_message(tmp_path):
    """Arrow ends the process over some damaged lengths: that would end the tests."""
    saved_set(4, ["dog", "cat"]).save_to_disk(tmp_path / "s")
    [data] = (tmp_path / "s").glob("*.arrow")
    whole = np.frombuffer(data.read_bytes(), np.uint8)
    rng = np.random.default_rng(4)
    outcomes: set[type] = set()
    for _ in range(100):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 4)] = rng.integers(0, 256, 4)
        data.unlink()
        data.write_bytes(damaged.tobytes())
        try:
            outcomes.add(type(opened(tmp_path / "s")))
        except InputError:
            outcomes.add(InputError)
    assert {InputError, ArraySource} <= outcomes


def test_training_from_parquet_and_saved_sets(tmp_path, skipway):
    make_parquet(tmp_path / "h", "train", pngs(tmp_path, 12), [0, 1] * 6, names=["cat", "dog"])
    saved_set(12, ["dog", "cat"]).save_to_disk(tmp_path / "s")
    for name in ("h", "h/train-00000-of-00001.parquet", "s"):
        result = skipway("train", tmp_path / name, *TINY_FLAGS, "--out", tmp_path / f"run-{name.split('/')[-1]}")
        assert result.code == 0, result.err


def test_shared_cifar10_is_read_whole(shared_data):
    source = opened(shared_data / "cifar10")
    assert source.images is not None
    assert source.images.shape == (60_000, 3, 32, 32)
    assert source.classes[0] == "airplane"
    splits = make_splits(source, DataSpec(path="x"))
    assert (len(splits.train), len(splits.val)) == (45_000, 5_000)
    assert source.labels[splits.val].bincount().tolist() == [500] * 10
