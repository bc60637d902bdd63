import hashlib
import io
import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_photos, save_image
from PIL import Image
from scenes import scene

import skipway as package
from skipway.data.doctor.examine import diagnose, quick_doctor
from skipway.data.exclude import read_list
from skipway.data.open import open_source
from skipway.data.source import ArraySource
from skipway.data_spec import DataSpec

NEWLINE, NFD = "line\nbreak.png", unicodedata.normalize("NFD", "\u00e9t\u00e9.png")


def tree_hash(root: Path) -> str:
    """Of all names, contents, links and times of change below a folder."""
    digest = hashlib.sha256()
    for place, folders, names in sorted(os.walk(root)):
        for name in sorted([*folders, *names]):
            path = Path(place, name)
            digest.update(os.fsencode(path) + str(path.lstat().st_mtime_ns).encode())
            digest.update(os.fsencode(os.readlink(path)) if path.is_symlink() else b"")
            digest.update(path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
    return digest.hexdigest()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.name


def by_kind(diagnosis: package.Diagnosis) -> dict[str, package.Finding]:
    kinds = {finding.kind: finding for finding in diagnosis.findings}
    single = [finding for finding in diagnosis.findings if finding.kind not in ("layout", "mode")]
    assert len({finding.kind for finding in single}) == len(single), "two findings of a kind"
    return kinds


def pairs_of(finding: package.Finding) -> set[frozenset[str]]:
    return {frozenset(finding.files[place] for place in group) for group in finding.groups}


def near_copy(image: Image.Image, way: int) -> bytes:
    """Re-encoded, resized, cropped or brightened."""
    width, height = image.size
    changed = (
        image,
        image.resize((width * 2 // 3, height * 2 // 3)),
        image.crop((3, 2, width - 2, height - 3)),
        image.point(lambda v: min(255, int(v * 1.15))),
    )[way % 4]
    return encoded(changed, "JPEG", quality=70)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with faults of every kind, in 300 good images of their own."""
    root = tmp_path_factory.mktemp("planted") / "data"
    for i in range(300):
        split = ("train", "train", "val", "test")[i % 4]
        name = ("ants", "bees")[i // 4 % 2] if split != "val" else "ants"  # val lacks bees
        put(root / split / name / f"p{i:03}-good.jpg", encoded(scene(i), "JPEG", quality=92))
    for i in range(100):
        name = ("ants", "bees")[i % 2]
        exact = encoded(scene(1000 + i), "JPEG", quality=90)
        for split in ("train", "test"):
            put(root / split / name / f"{split}-exact{i:03}.jpg", exact)
        original = scene(2000 + i)
        put(root / "train" / name / f"train-near{i:03}.jpg", encoded(original, "JPEG", quality=92))
        put(root / "test" / name / f"test-near{i:03}.jpg", near_copy(original, i))
    ants = root / "train/ants"
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png")):
        whole = encoded(scene(3000), kind)
        for percent in (10, 50, 90, 99):
            put(ants / f"cut{percent}.{suffix}", whole[: len(whole) * percent // 100])
        put(ants / f"no-end.{suffix}", encoded(scene(3001 + (kind == "PNG")), kind)[: -2 if kind == "JPEG" else -12])
    put(ants / "is-png.jpg", encoded(scene(3010), "PNG"))
    put(ants / "is-jpeg.png", encoded(scene(3011), "JPEG"))
    put(ants / "nothing.jpg", b"")
    put(ants / "text.jpg", b"not an image at all")
    put(ants / NEWLINE, encoded(scene(3012), "PNG"))
    put(ants / NFD, encoded(scene(3013), "PNG"))
    put(ants / ".DS_Store", b"litter")
    put(ants / "notes.txt", b"notes")
    put(root / "extra" / "x.jpg", encoded(scene(3014), "JPEG"))
    (root / "train" / "wasps").mkdir()
    (root / "train" / "loop").symlink_to(root / "train")
    (ants / "gone.jpg").symlink_to(ants / "nowhere.jpg")
    for split in ("train", "test"):
        put(root / split / "bees" / f"patient007-{split}.jpg", encoded(scene(4000 + (split == "test")), "JPEG"))
    exif = Image.Exif()
    exif[0x0112] = 6
    put(ants / "turned.jpg", encoded(scene(3020), "JPEG", exif=exif))
    put(ants / "cmyk.jpg", encoded(scene(3021).convert("CMYK"), "JPEG"))
    put(ants / "palette.png", encoded(scene(3022).quantize(64), "PNG"))
    put(ants / "alpha.png", encoded(scene(3023).convert("RGBA"), "PNG"))
    put(ants / "tiny.png", encoded(scene(3024, (12, 12)), "PNG"))
    put(ants / "long.png", encoded(scene(3025, (400, 100)), "PNG"))
    put(ants / "blank.png", encoded(Image.new("RGB", (96, 96), "red"), "PNG"))
    return root


def test_every_planted_fault_is_found_and_none_invented(planted):
    before = tree_hash(planted)
    found = package.doctor(DataSpec(str(planted), group=r"(patient\d+)", workers=2, image_size=64))
    assert tree_hash(planted) == before
    kinds = by_kind(found)

    def names(kind: str) -> set[str]:
        return {Path(name).name for name in kinds[kind].files}

    broken = {f"cut{percent}.{suffix}" for percent in (10, 50, 90, 99) for suffix in ("jpg", "png")}
    seen_broken = names("unreadable") | names("cut short")
    assert seen_broken == broken | {"nothing.jpg", "text.jpg", "gone.jpg", "no-end.jpg", "no-end.png"}
    assert {f"cut{percent}.{suffix}" for percent in (10, 50, 90) for suffix in ("jpg", "png")} <= names("unreadable")
    assert names("extension") == {"is-png.jpg", "is-jpeg.png"}
    assert names("names") == {NEWLINE, NFD}
    assert names("hidden") == {".DS_Store"}
    assert names("other files") == {"notes.txt"}
    assert kinds["misplaced"].files == ("extra",)
    assert kinds["link loop"].files == ("train/loop",)
    assert names("rotation") == {"turned.jpg"}
    assert names("tiny") == {"tiny.png"}
    assert names("long") == {"long.png"}
    assert names("blank") == {"blank.png"}
    assert kinds["missing class"].files == ("bees",)
    assert names("group leak") == {"patient007-train.jpg", "patient007-test.jpg"}
    assert any("class folder train/wasps" in f.message for f in found.findings if f.kind == "layout")
    modes = {name for finding in found.findings if finding.kind == "mode" for name in finding.files}
    assert {Path(name).name for name in modes} == {"cmyk.jpg", "palette.png", "alpha.png"}
    expected = {"unreadable", "cut short", "extension", "names", "hidden", "other files", "misplaced", "link loop"}
    expected |= {"rotation", "tiny", "long", "blank", "missing class", "group leak", "leak", "near leak", "layout"}
    assert set(kinds) - {"slow"} == expected | {"mode", "statistics", "sizes"}
    classes = [("ants", "bees")[i % 2] for i in range(100)]
    exact = {frozenset({f"{s}/{n}/{s}-exact{i:03}.jpg" for s in ("train", "test")}) for i, n in enumerate(classes)}
    assert pairs_of(kinds["leak"]) == exact
    near = {frozenset({f"{s}/{n}/{s}-near{i:03}.jpg" for s in ("train", "test")}) for i, n in enumerate(classes)}
    assert pairs_of(kinds["near leak"]) == near
    assert not {"copies", "near copies", "two labels", "near two labels"} & set(kinds)
    assert found.exit_code == 11
    leave_out = {Path(name).name for name in found.leave_out}
    assert {f"train-exact{i:03}.jpg" for i in range(100)} | {f"train-near{i:03}.jpg" for i in range(100)} <= leave_out
    assert leave_out - seen_broken == {Path(n).name for g in exact | near for n in g if n.startswith("train/")}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    for split, count in (("train", 24), ("val", 12)):
        for i in range(count):
            put(tmp_path / "good" / split / ("a", "b")[i % 2] / f"{i}.jpg", encoded(scene(i + 50 * len(split)), "JPEG"))
    return tmp_path / "good"


def test_good_data_are_told_to_be_good(good, skipway):
    result = skipway("doctor", good, "--image-size", "64", "--workers", "0")
    assert result.code == 0, result.out
    assert "36 images: nothing to do" in result.out
    assert "mean 0." in result.out


def test_the_command_writes_json_report_and_list(good, tmp_path, skipway):
    image = encoded(scene(900), "PNG")
    put(good / "train/a/one.png", image)
    put(good / "train/a" / NEWLINE, image)
    put(good / "val/b/<script>alert(1)</script>".replace("/script", "script"), b"x")
    put(good / "val/b/<i>.png", image)
    arguments = ["--html", "r.html", "--fix-list", "out.txt", "--image-size", "64"]
    result = skipway("doctor", good, "--json", *arguments)
    assert result.code == 11
    told = json.loads(result.out)
    kinds = {finding["kind"]: finding for finding in told["findings"]}
    assert set(kinds["leak"]["files"]) == {"train/a/one.png", f"train/a/{NEWLINE}", "val/b/<i>.png"}
    assert set(kinds) >= {"leak", "two labels", "names", "statistics", "sizes"}
    assert told["statistics"]["splits"] == {"train": 26, "val": 13}
    assert told["exit_code"] == 11
    page = Path("r.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "<script>" not in page
    assert "&lt;i&gt;.png" in page
    assert "line\\nbreak.png" in page
    assert set(read_list(Path("out.txt"))) == {"train/a/one.png", f"train/a/{NEWLINE}"}
    again = skipway("doctor", good, "--image-size", "64", "--exclude", "out.txt")
    assert again.code == 0, again.out
    table = skipway("doctor", good, "--image-size", "64").out
    assert table.index("error") < table.index("note")
    assert "line\\nbreak.png" in table
    refused = skipway("doctor", good, *arguments)
    assert refused.code == 2
    assert "r.html is there already" in refused.err


def test_copies_and_labels_within_one_set(tmp_path):
    root = make_photos(tmp_path / "photos", num=12)
    shutil.copy(root / "ants/003.png", root / "ants/copy.png")
    shutil.copy(root / "ants/004.png", root / "bees/other.png")
    found = package.doctor(DataSpec(str(root), workers=0))
    kinds = by_kind(found)
    assert pairs_of(kinds["copies"]) == {
        frozenset({"ants/003.png", "ants/copy.png"}), frozenset({"ants/004.png", "bees/other.png"})
    }  # fmt: skip
    assert pairs_of(kinds["two labels"]) == {frozenset({"ants/004.png", "bees/other.png"})}
    assert set(found.leave_out) == {"ants/copy.png", "bees/other.png"}


def test_classes_that_are_few_lopsided_or_alike(tmp_path):
    root = tmp_path / "photos"
    for name, count in (
        ("Cat", 33),
        ("cat ", 3),
        ("\u00e9t\u00e9", 12),
        (unicodedata.normalize("NFD", "\u00e9t\u00e9"), 11),
    ):
        for i in range(count):
            save_image(root / name / f"{i}.png", seed=hash((name, i)) % 2**31)
    findings = package.doctor(DataSpec(str(root), workers=0)).findings
    alike = [set(finding.files) for finding in findings if finding.kind == "label names"]
    assert {"Cat", "cat "} in alike
    assert len(alike) == 2
    kinds = {finding.kind: finding for finding in findings}
    assert kinds["few images"].files == ("cat ",)
    assert "11 times" in kinds["imbalance"].message


def test_nothing_there_is_one_error(tmp_path, skipway):
    (tmp_path / "empty/a").mkdir(parents=True)
    result = skipway("doctor", tmp_path / "empty")
    assert result.code == 2
    assert "holds no images in class folders" in result.err


def test_arrays_deep_and_several_labels():
    images = torch.stack([torch.from_numpy(np.array(scene(i, (32, 32)))).permute(2, 0, 1) for i in range(40)])
    images[39] = images[2]
    splits = {"train": torch.arange(30), "test": torch.arange(30, 40)}
    labels = torch.zeros(40, 2, dtype=torch.uint8)
    labels[:, 0], labels[::2, 1] = 1, 1
    for pixels in (images, images.float() / 3 - 40):
        source = ArraySource(pixels.contiguous(), labels, ("a", "b"), splits, "mine")
        found = diagnose(source, DataSpec("mine"))
        kinds = by_kind(found)
        assert pairs_of(kinds["leak"]) == {frozenset({"mine[2]", "mine[39]"})}
        assert found.leave_out == ("mine[2]",)
        white = 255 if pixels.dtype == torch.uint8 else 1
        want = pixels[:30].double().mean((0, 2, 3)) / white
        assert found.statistics["mean"] == pytest.approx(want.tolist(), abs=1e-3)
        want = pixels[:30].double().transpose(0, 1).flatten(1).std(1) / white
        assert found.statistics["std"] == pytest.approx(want.tolist(), rel=1e-3)
        assert {finding.kind for finding in quick_doctor(source, DataSpec("mine"))} >= {"leak", "two labels"}


def test_the_quick_look_decodes_nothing(planted, monkeypatch):
    spec = DataSpec(str(planted), group=r"(patient\d+)", workers=0, image_size=64)
    faults: list[str] = []
    source = open_source(spec, fault=faults.append)
    from skipway.data.files import FileSource

    monkeypatch.setattr(FileSource, "read", lambda *_: pytest.fail("decoded"))
    kinds = {finding.kind: finding for finding in quick_doctor(source, spec)}
    assert len(kinds["leak"].groups) == 100
    assert {"group leak", "extension", "rotation", "missing class", "unreadable"} <= set(kinds)
    assert "near leak" not in kinds


def test_damaged_files_of_all_kinds_are_named_with_a_reason(good, shared_data, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(good, mixed)
    put_in = [path for path in sorted((shared_data / "malformed").rglob("*")) if path.is_file()]
    for i, path in enumerate(put_in):
        shutil.copy(path, mixed / "train/a" / f"bad{i:03}{path.suffix}")
    before = tree_hash(mixed)
    found = package.doctor(DataSpec(str(mixed), workers=2))
    assert tree_hash(mixed) == before
    source = found.source
    in_use = {source.name(index) for part in source.splits.values() for index in part.tolist()}
    unreadable = {finding.kind: finding for finding in found.findings}["unreadable"]
    assert len(unreadable.files) == len(unreadable.remarks) > 50
    assert all(unreadable.remarks)
    passed_over = {name for name, reason in source.bad.items() if reason == "not an image file"}
    present = {f"train/a/bad{i:03}{path.suffix}" for i, path in enumerate(put_in)}
    assert found.statistics["read"] + len(set(unreadable.files) & in_use) == len(in_use)
    assert present <= in_use | set(unreadable.files) | passed_over
