from pathlib import Path

import torch
from conftest import make_photos

from skipway.data import pool
from skipway.data.sources.decoded import decode_all
from skipway.data.sources.folder import open_folder
from skipway.data_spec import DataSpec


def test_without_fork_the_pixels_come_back_too(tmp_path: Path, monkeypatch):
    root = make_photos(tmp_path / "p", num=4)
    spec = DataSpec(str(root), workers=1, cache="off")
    source = open_folder(root, spec)
    broken = root / "ants" / "002.png"
    broken.write_bytes(broken.read_bytes()[:300])  # its header was read already
    forked = decode_all(source, spec)
    monkeypatch.setattr(pool, "_FORKS", False)
    spawned = decode_all(source, spec)
    assert forked is not None
    assert spawned is not None
    assert spawned.bad == forked.bad
    assert list(spawned.bad) == [2]
    assert spawned.images.equal(forked.images)
    for index in (0, 1, *range(3, 8)):
        assert spawned.images[index].equal(source.read(index))
    assert torch.equal(spawned.images[2], torch.zeros(3, 16, 16, dtype=torch.uint8))
