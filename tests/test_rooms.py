"""The rooms' direction, the public face, and the habits that tools check."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from conftest import ROOT

import skipway


def test_imports_point_one_way_through_the_rooms():
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_code_is_formatted_linted_and_typed():
    for command in (["ruff", "check"], ["ruff", "format", "--check"], ["pyrefly", "check"]):
        tool = Path(sys.executable).with_name(command[0])
        done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_name_can_be_imported_and_is_documented():
    for name in skipway.__all__:
        assert getattr(skipway, name).__doc__, name
    assert set(skipway.__all__) <= set(dir(skipway))
    assert skipway.train.__module__ == "skipway.training.train"


def test_version_is_the_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == skipway.__version__


def test_import_is_instant():
    code = "import sys, skipway; print(sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_runs_hold_no_pickle():
    safe = 'torch.load(path, map_location="cpu", weights_only=True)'
    for path in (ROOT / "src").rglob("*.py"):
        code = path.read_text().replace(safe, "")
        assert not re.search(r"torch\.save|torch\.load|pickle\.load", code), path
