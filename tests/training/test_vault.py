"""Checkpoints on disk: whole or not there, and never taken for whole when they are not."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from skipway import durable
from skipway.training import vault as vault_module
from skipway.training.vault import MANIFEST, POINTER, Found, Vault


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


def put(vault: Vault, name: str, *, keep: int = 3, content: bytes = b"x" * 100) -> None:
    vault.write(
        name, {"a.bin": lambda path: path.write_bytes(content), "b.json": lambda p: p.write_text("{}")}, keep=keep
    )


def test_the_newest_is_found_and_older_ones_go(vault: Vault):
    assert vault.find() == Found(None)
    for number in range(5):
        put(vault, f"epoch-{number:05d}", keep=2)
    assert vault.names() == ["epoch-00003", "epoch-00004"]
    assert vault.find() == Found(vault.folder / "epoch-00004")
    assert (vault.folder / POINTER).read_text() == "epoch-00004"
    put(vault, "epoch-00005", keep=1)
    assert vault.names() == ["epoch-00005"]
    assert sorted(path.name for path in vault.folder.iterdir()) == ["epoch-00005", "newest"]


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda c: (c / "a.bin").write_bytes(b"x" * 99), "a.bin has 99 bytes in place of 100"),
    (lambda c: (c / "a.bin").write_bytes(b"x" * 99 + b"y"), "a.bin does not have the SHA-256"),
    (lambda c: (c / "a.bin").unlink(), "a.bin', which is no file in it"),
    (lambda c: (c / MANIFEST).unlink(), "manifest.json cannot be read"),
    (lambda c: (c / MANIFEST).write_bytes(b"\xff{"), "manifest.json is damaged"),
    (lambda c: (c / MANIFEST).write_text("[1]"), "manifest.json is damaged"),
    (lambda c: (c / MANIFEST).write_text("{}"), "manifest.json is empty"),
    (lambda c: (c / MANIFEST).write_text('{"a.bin": {}}'), "manifest.json is damaged"),
    (lambda c: (c / MANIFEST).write_text('{"../../x": {}}'), r"manifest.json names '../../x'"),
    (lambda c: (c / MANIFEST).write_text("[" * 100_000), "manifest.json is damaged"),
    (lambda c: (c / MANIFEST).write_text('{"a\\u0000": {}}'), r"names 'a\x00', which is no file"),
    (lambda c: (os.mkfifo(c / "x"), (c / MANIFEST).write_text('{"x": {}}')), "names 'x', which is no file in it"),
]


@pytest.mark.parametrize(("harm", "why"), DAMAGE)
def test_a_damaged_one_is_named_and_the_one_before_is_used(vault: Vault, harm: Callable[[Path], object], why: str):
    put(vault, "epoch-00001")
    put(vault, "epoch-00002")
    harm(vault.folder / "epoch-00002")
    found = vault.find()
    assert found.folder == vault.folder / "epoch-00001"
    assert len(found.damaged) == 1
    assert str(vault.folder / "epoch-00002") in found.damaged[0]
    assert why in found.damaged[0]
    harm(vault.folder / "epoch-00001")
    assert vault.find().folder is None
    assert len(vault.find().damaged) == 2


def test_the_pointer_counts_before_names_and_its_loss_does_no_harm(vault: Vault):
    put(vault, "epoch-00001")
    put(vault, "epoch-00002")
    (vault.folder / POINTER).write_text("epoch-00001")
    assert vault.find().folder == vault.folder / "epoch-00001"
    for text in (b"epoch-00007", b"", b"\xff\xff"):
        (vault.folder / POINTER).write_bytes(text)
        assert vault.find().folder == vault.folder / "epoch-00002"
    (vault.folder / POINTER).unlink()
    assert vault.find() == Found(vault.folder / "epoch-00002")


@pytest.mark.parametrize("text", ["/etc", "..", ".", "../..", "x" * 5_000_000, "notes", "a\0b"])
def test_a_pointer_that_names_no_checkpoint_is_told_briefly(vault: Vault, text: str):
    put(vault, "epoch-00001")
    (vault.folder / "notes").mkdir()
    (vault.folder / POINTER).write_text(text)
    found = vault.find()
    assert found.folder == vault.folder / "epoch-00001"
    assert len(found.damaged) == 1
    assert len(found.damaged[0]) < 500


def test_what_is_not_ours_stays(vault: Vault):
    """Folders and files of others beside the checkpoints are neither taken for one nor removed."""
    put(vault, "epoch-00001")
    others = ["zzz", "a", "epoch", "epoch-x", ".mine.tmp"]
    for name in others:
        (vault.folder / name).mkdir()
        (vault.folder / name / "precious").write_text("x")
    (vault.folder / "README").write_text("x")
    (vault.folder / ".left.tmp").write_text("x")
    for number in (2, 3):
        put(vault, f"epoch-{number:05d}", keep=1)
    left = {path.name for path in vault.folder.iterdir()}
    assert left == {*others, "README", ".left.tmp", "epoch-00003", POINTER}
    assert vault.find() == Found(vault.folder / "epoch-00003")


def test_a_damaged_one_is_replaced_by_the_next_of_its_name(vault: Vault):
    put(vault, "epoch-00001")
    put(vault, "epoch-00002")
    put(vault, "epoch-00003")
    (vault.folder / "epoch-00003" / "a.bin").write_bytes(b"")
    put(vault, "epoch-00002")  # the run went on from before
    assert vault.names() == ["epoch-00001", "epoch-00002"]
    (vault.folder / "epoch-00002" / "a.bin").write_bytes(b"")
    put(vault, "epoch-00002")
    assert vault.find() == Found(vault.folder / "epoch-00002")
    assert not list(vault.folder.glob(".*"))


CALLS = ("fsync", "rename", "replace")


@pytest.mark.parametrize("stop", range(10))
def test_cut_off_before_any_call_a_whole_one_is_left(vault: Vault, monkeypatch: pytest.MonkeyPatch, stop: int):
    """As many times as a save calls the system, it ends there; what it made until then is not cleaned up."""
    put(vault, "epoch-00001", keep=1)
    count = 0

    class Cut(BaseException):
        pass

    def counted(call: Callable) -> Callable:
        def run(*arguments):
            nonlocal count
            if count == stop:
                raise Cut
            count += 1
            return call(*arguments)

        return run

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(getattr(os, name)))
        if stop < 9:
            with pytest.raises(Cut):
                put(vault, "epoch-00002", keep=1)
        else:
            put(vault, "epoch-00002", keep=1)
            assert count == 9
    found = vault.find()
    assert found.folder is not None
    assert found.damaged == ()
    assert found.folder.name == ("epoch-00001" if stop < 8 else "epoch-00002")
    put(vault, "epoch-00003", keep=1)
    assert sorted(path.name for path in vault.folder.iterdir()) == ["epoch-00003", "newest"]


def test_order_of_a_save(vault: Vault, monkeypatch: pytest.MonkeyPatch):
    """Files, manifest, their folder, the name, the folder of names, the pointer, and its name."""
    said: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def spied_fsync(number: int) -> None:
        said.append("sync " + Path(os.readlink(f"/proc/self/fd/{number}")).name)
        fsync(number)

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(os, "rename", lambda a, b: (said.append(f"name {Path(b).name}"), rename(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (said.append(f"name {Path(b).name}"), replace(a, b)))
    put(vault, "epoch-00001")
    assert said == [
        *(
            "sync a.bin",
            "sync b.json",
            "sync manifest.json",
            "sync .epoch-00001.tmp",
            "name epoch-00001",
            "sync checkpoints",
        ),
        *("sync .newest.tmp", "name newest", "sync checkpoints"),
    ]


def test_a_full_disk_leaves_what_was_there(vault: Vault):
    put(vault, "epoch-00001")

    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    with pytest.raises(OSError, match="No space left"):
        vault.write("epoch-00002", {"a.bin": lambda p: p.write_bytes(b"x"), "b.bin": full}, keep=1)
    assert vault.find() == Found(vault.folder / "epoch-00001")
    assert sorted(path.name for path in vault.folder.iterdir()) == ["epoch-00001", "newest"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "x.json"
    durable.write_whole(target, b"old")

    def broken(number: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        durable.write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.glob(".*")) == []


def test_manifest_says_what_the_files_are(vault: Vault):
    put(vault, "epoch-00001", content=b"abc")
    manifest = json.loads((vault.folder / "epoch-00001" / MANIFEST).read_text())
    # the SHA-256 of "abc" in FIPS 180-2, appendix B.1
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest["a.bin"] == {"sha256": wanted, "bytes": 3}
    assert vault_module.sha256(vault.folder / "epoch-00001" / "a.bin") == wanted
