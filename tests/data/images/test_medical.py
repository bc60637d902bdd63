import gzip
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from conftest import TINY_FLAGS
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import RLELossless
from scans import DEEP, FLIPS, FULL, damaged, dicom, lut, nifti, opened, random, values_of, written

import skipway as package
from skipway.data.images import medical
from skipway.data.images.decode import decode, is_image_name, read_header
from skipway.data.images.reading import Reading
from skipway.data.open import open_source
from skipway.data_spec import DataSpec
from skipway.errors import ReadError


def test_a_library_that_is_missing_is_named(monkeypatch):
    file = dicom(random(4, 4))
    for name, content in (("pydicom", file), ("nibabel", nifti(np.zeros((2, 2, 2), np.int16)))):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ReadError, match=rf"x: needs {name}: pip install 'skipway\[medical\]'"):
            read_header(content, "x")


# ---------------------------------------------------------------- which file is a scan


def test_scans_are_known_by_name_or_first_bytes(tmp_path, monkeypatch):
    file, volume = dicom(random(4, 4)), nifti(np.zeros((2, 2, 2), np.int16))
    for content in (file, volume, gzip.compress(volume), nifti(np.zeros((2, 2, 2), np.int16), second=True)):
        assert medical.is_scan(content)
        (tmp_path / "IM0001").write_bytes(content)
        assert medical.is_scan(str(tmp_path / "IM0001"))
        assert decode(tmp_path / "IM0001", DEEP).ndim == 3
    for content in (b"", b"hello", gzip.compress(b"hello"), b"\x1f\x8b", b"\x89PNG\r\n\x1a\n" + bytes(500)):
        assert not medical.is_scan(content)
    assert not medical.is_scan(str(tmp_path / "none"))
    for name in ("a.dcm", "a.DCM", "a.ima", "a.dicom", "a.nii", "a.NII.GZ"):
        assert medical.is_scan(str(tmp_path / name))
        assert is_image_name(name)

    def fail(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("builtins.open", fail)
    for name in ("a.png", "a.JPG", "a.tif"):
        assert not medical.is_scan(str(tmp_path / name))


COMPRESSED = opened(dicom(random(6, 6), WindowCenter=9, WindowWidth=9))
COMPRESSED.compress(RLELossless, generate_instance_uid=False)
SCANS = {
    "dicom": dicom(random(6, 6), RescaleSlope=1, RescaleIntercept=0, WindowCenter=40, WindowWidth=80),
    "frames": dicom(random(3, 6, 6), interpretation="MONOCHROME1"),
    "table": dicom(random(6, 6), VOILUTSequence=[lut(0, np.arange(300, dtype=np.uint16), 16)]),
    "rle": written(COMPRESSED),
    "nifti": nifti(random(4, 4, 4, dtype="int16")),
    "nifti-2": nifti(random(4, 4, 4, dtype="int16"), second=True),
    "nifti.gz": gzip.compress(nifti(random(4, 4, 4, dtype="int16"))),
}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SCANS)), FLIPS, st.floats(0, 1))
def test_damaged_scans_give_an_image_or_a_read_error(kind, flips, cut):
    for content, how in itertools.product(damaged(SCANS[kind], flips, cut), (DEEP, FULL, Reading(3))):
        try:
            read_header(content)
            image = decode(content, how)
        except ReadError as error:
            assert error.reason
            continue
        assert image.isfinite().all()
        assert image.shape[0] == how.channels


# ---------------------------------------------------------------- as a data set


def make_scans(root: Path, suffix: str, **elements: Any) -> Path:
    """benign around 0 Hounsfield units, malign around 30: alike once 4,096 values are cut to 8 bits."""
    for level, name in enumerate(("benign", "malign")):
        (root / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng(i).integers(1020, 1030, (16, 16)).astype(np.int16) + 30 * level
            if suffix == ".dcm":
                content = dicom(pixels, RescaleSlope=1, RescaleIntercept=-1024, **elements)
            else:
                content = nifti(np.repeat((pixels - 1024)[:, :, None], 3, axis=2))
            (root / name / f"{i:03}{suffix}").write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    return root


@pytest.mark.parametrize("suffix", [".dcm", ".nii", ".nii.gz"])
def test_a_folder_of_scans_is_deep_and_grey(tmp_path, suffix):
    source = open_source(DataSpec(str(make_scans(tmp_path / "scans", suffix)), workers=0))
    assert (source.deep, source.channels, source.size, source.bad) == (True, 1, (16, 16), {})
    assert source.read(0).dtype == torch.float32
    assert set(source.read(0).unique().tolist()) <= set(range(-4, 6))


FLAGS = [flag if at - 1 != TINY_FLAGS.index("--epochs") else "6" for at, flag in enumerate(TINY_FLAGS)]


@pytest.mark.parametrize("window", ["auto", "20/60", "full"])
def test_scans_train_evaluate_and_are_named_as_by_hand(tmp_path, skipway, window):
    folder = make_scans(tmp_path / "scans", ".dcm", WindowCenter=40, WindowWidth=400)
    run = tmp_path / "run"
    result = skipway("train", folder, *FLAGS, "--window", window, "--out", run)
    assert result.code == 0, result.err
    predictor = package.load(run)
    preprocess = predictor.model.preprocess
    assert preprocess.reading == Reading(1, deep=True, window=window)
    paths = sorted(folder.rglob("*.dcm"))
    units = np.stack([values_of(pydicom.dcmread(path)) for path in paths])
    center, width = {"auto": (40, 400), "20/60": (20, 60), "full": (0.0, 0.0)}[window]
    values = np.clip((units - (center - 0.5)) / (width - 1) + 0.5, 0, 1) if width else units
    inputs = ((values - preprocess.mean[0]) / preprocess.std[0]).astype(np.float32)
    with torch.no_grad():
        want = predictor.model.network(torch.from_numpy(inputs)[:, None]).softmax(1)
    torch.testing.assert_close(predictor.probabilities(paths), want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predictor.probabilities(list(values.astype(np.float32))), want, atol=1e-5, rtol=1e-4)
    right = [got.name == path.parent.name for got, path in zip(predictor.predict(paths), paths, strict=True)]
    assert np.mean(right) > 0.9
    evaluated = skipway("evaluate", run, folder, "--json")
    assert evaluated.code == 0, evaluated.err
    assert json.loads(evaluated.out)["accuracy"] == pytest.approx(np.mean(right))
