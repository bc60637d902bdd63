"""Checkpoints in several files, as processes write them that share out weights: read whole, by rows, all or none."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from skipway.errors import InputError
from skipway.training.parts import file_name, opened, read_parts
from skipway.training.vault import MANIFEST, Vault

WHOLE = torch.arange(15.0).reshape(5, 3)


def write(folder: Path, parts: list[dict[str, Tensor]]) -> None:
    folder.mkdir(exist_ok=True)
    for rank, tensors in enumerate(parts):
        save_file(tensors, folder / file_name(rank, len(parts)))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Rows 0 to 1, 2 to 3, 4, as torch.chunk shares them out; and a number that is alike in all."""
    chunks = [chunk.contiguous() for chunk in WHOLE.chunk(3)]
    write(tmp_path / "c", [{"w": chunks[0], "step": torch.tensor(7.0)}, {"w": chunks[1]}, {"w": chunks[2]}])
    return tmp_path / "c"


def test_parts_are_one_tensor(three):
    tensors = read_parts(three)
    assert tensors["w"].equal(WHOLE)
    assert (tensors["step"].item(), tensors["step"].shape) == (7, ())
    assert set(tensors) == {"w", "step"}


@pytest.mark.parametrize(("first", "last"), [(0, 5), (0, 1), (1, 3), (3, 5), (4, 5), (2, 2), (5, 5)])
def test_rows_are_those_of_the_whole(three, first, last):
    with opened(three) as parts:
        assert parts.rows("w", first, last).equal(WHOLE[first:last])
        assert parts.shape("w") == (5, 3)
        assert parts.shape("step") == ()


def test_one_file_is_read_alike(tmp_path):
    write(tmp_path / "c", [{"w": WHOLE}])
    with opened(tmp_path / "c") as parts:
        assert parts["w"].equal(WHOLE)
        assert parts.rows("w", 1, 4).equal(WHOLE[1:4])


def test_a_missing_part_is_told(three, tmp_path):
    (three / file_name(1, 3)).unlink()
    with pytest.raises(InputError, match="on a disk that all of them share"), opened(three):
        pass
    (three / file_name(1, 3)).write_bytes(b"no")
    with pytest.raises(InputError, match="does not hold whole safetensors files"), opened(three):
        pass
    with pytest.raises(InputError, match=r"no weights in place of state\.safetensors"), opened(tmp_path):
        pass


class Circle:
    """Threads that meet, as processes do."""

    def __init__(self, size: int):
        self._barrier = threading.Barrier(size)
        self._said: list[Any] = [None] * size

    def of(self, rank: int) -> Any:
        def meet(said: Any) -> list[Any]:
            self._said[rank] = said
            self._barrier.wait(20)
            found = list(self._said)
            self._barrier.wait(20)
            return found

        return meet


def together(folders: list[Path], write: Any) -> list[BaseException | None]:
    """A vault for each folder in a thread of its own; what each raised."""
    circle = Circle(len(folders))
    raised: list[BaseException | None] = [None] * len(folders)

    def one(rank: int) -> None:
        try:
            write(Vault(folders[rank], circle.of(rank), is_first=rank == 0), rank)
        except OSError as error:
            raised[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def save(vault: Vault, rank: int, name: str = "epoch-00001") -> None:
    files = {file_name(rank, 2): lambda path: save_file({"w": WHOLE.chunk(2)[rank].contiguous()}, path)}
    vault.write(name, files, keep=2)


def test_all_write_and_the_first_gives_the_name(tmp_path):
    assert together([tmp_path, tmp_path], save) == [None, None]
    found = Vault(tmp_path).find()
    assert found.folder is not None
    assert set(json.loads((found.folder / MANIFEST).read_text())) == {file_name(0, 2), file_name(1, 2)}
    assert read_parts(found.folder)["w"].equal(WHOLE)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_flipped_bit_in_any_part_is_noticed(tmp_path, rank):
    for name in ("epoch-00001", "epoch-00002"):
        together([tmp_path, tmp_path], lambda vault, rank, name=name: save(vault, rank, name))
    path = tmp_path / "checkpoints" / "epoch-00002" / file_name(rank, 2)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = Vault(tmp_path).find()
    assert found.folder is not None
    assert found.folder.name == "epoch-00001"
    assert file_name(rank, 2) in found.damaged[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_goes_wrong_in_one_is_told_in_all_and_leaves_the_old_one(tmp_path, rank):
    together([tmp_path, tmp_path], save)

    def failing(vault: Vault, own: int) -> None:
        def full(path: Path) -> None:
            raise OSError(28, "No space left on device", str(path))

        vault.write("epoch-00002", {"x": full if own == rank else lambda path: path.write_text("x")}, keep=2)

    raised = together([tmp_path, tmp_path], failing)
    assert all(f"process {rank}: [Errno 28] No space left" in str(error) for error in raised)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == ["epoch-00001"]
    assert Vault(tmp_path).find().damaged == ()


def test_a_disk_that_is_not_shared_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("skipway.training.vault.PATIENCE", 0.2)
    raised = together([tmp_path / "here", tmp_path / "there"], save)
    assert all("process 1: " in str(error) and "on a disk that all of them share" in str(error) for error in raised)
    assert not (tmp_path / "there").exists()
    assert list((tmp_path / "here" / "checkpoints").iterdir()) == []
