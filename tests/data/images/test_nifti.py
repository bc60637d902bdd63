import gzip
import itertools
import struct
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scans import DEEP, FULL, nifti, random, same

from skipway.data.images.decode import decode, read_header
from skipway.data.images.reading import Reading
from skipway.errors import ReadError

NIFTI_FILES = sorted(
    path for path in (Path(nibabel.__file__).parent / "tests/data").glob("*.nii*") if "dconn" not in path.name
)


def shown(volume: np.ndarray, axis: str, number: int) -> np.ndarray:
    """A slice of a volume whose axes lead right, anterior, superior, as a radiologist sees it."""
    place = {"sagittal": 0, "coronal": 1, "axial": 2}[axis]
    return np.take(volume, number, axis=place)[::-1, ::-1].T


def test_there_are_files_to_compare_with():
    assert len(NIFTI_FILES) == 7


@pytest.mark.parametrize("path", NIFTI_FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("frame", ["first", "middle", "last", "2"])
def test_nibabels_own_files_match_its_values(path, axis, frame):
    volume = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    volume = volume[..., 0] if volume.ndim == 4 else volume
    side = volume.shape[{"sagittal": 0, "coronal": 1, "axial": 2}[axis]]
    number = {"first": 0, "middle": side // 2, "last": side - 1, "2": 2}[frame]
    want = np.nan_to_num(shown(volume, axis, number), nan=0).astype(np.float32)
    how = Reading(1, deep=True, window="full", frame=frame, slice_axis=axis)
    assert np.array_equal(decode(path, how)[0].numpy(), want)
    content = path.read_bytes()
    assert torch.equal(decode(content, how), decode(path, how))
    if axis == "axial":
        header = read_header(path)
        assert (header.height, header.width, header.frames) == (*want.shape, side)
        assert (header.deep, header.grey, header.format) == (True, True, "NIFTI")


def test_the_layout_by_hand():
    volume = np.zeros((3, 4, 5), np.int16)
    volume[2, 3, 4] = 1  # the patient's right, anterior, superior
    for axis, shape in (("axial", (4, 3)), ("coronal", (5, 3)), ("sagittal", (5, 4))):
        image = decode(nifti(volume), Reading(1, deep=True, frame="last", slice_axis=axis))[0]
        assert image.shape == shape
        assert image.nonzero().tolist() == [[0, 0]]  # above, on the left


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=3)))
def test_every_orientation_shows_the_same(order, signs):
    volume = random(3, 4, 5, dtype="int16")
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, stored] = 2.5 * sign
    content = nifti(volume, affine)
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(content)).get_fdata()
    for axis in ("axial", "coronal", "sagittal"):
        got = decode(content, Reading(1, deep=True, frame="1", slice_axis=axis))[0].numpy()
        assert np.array_equal(got, shown(canonical, axis, 1))


def test_nifti_windows_are_exact_and_cal_min_to_cal_max_is_the_files_own():
    volume = random(4, 4, 3, dtype="int16", low=-1000, high=1000)
    middle = shown(volume, "axial", 1).astype(np.float64)
    asked = decode(nifti(volume), Reading(1, deep=True, window="40/400"))[0].numpy()
    same(asked, np.clip((middle + 160) / 400, 0, 1))
    content = nifti(volume, cal_min=-500, cal_max=300)
    assert read_header(content).windowed
    assert not read_header(nifti(volume)).windowed
    same(decode(content, DEEP)[0].numpy(), np.clip((middle + 500) / 800, 0, 1))
    same(decode(content, FULL)[0].numpy(), middle)
    eight = decode(nifti(volume), Reading(3))
    assert (eight.dtype, eight.shape[0], eight.min(), eight.max()) == (torch.uint8, 3, 0, 255)


def test_slope_and_intercept_are_applied():
    volume = random(4, 4, 3, dtype="int16")
    image = nibabel.Nifti1Image(volume, np.eye(4))
    image.header.set_slope_inter(0.25, -7)
    content = bytearray(image.to_bytes())
    content[112:120] = struct.pack("<2f", 0.25, -7)
    assert np.array_equal(decode(bytes(content), DEEP)[0].numpy(), shown(volume * 0.25 - 7, "axial", 1))


def test_other_forms_of_nifti_are_read(tmp_path):
    volume = random(4, 5, 6, dtype="int16")
    want = torch.from_numpy(shown(volume, "axial", 3).astype(np.float32))
    plain = nifti(volume)
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "y.nii").write_bytes(gzip.compress(plain))  # misnamed
    for file in (plain, gzip.compress(plain), nifti(volume, second=True), tmp_path / "x.nii.gz", tmp_path / "y.nii"):
        assert torch.equal(decode(file, DEEP)[0], want)
    series = np.stack([volume, volume + 1], axis=3)
    assert torch.equal(decode(nifti(series), DEEP)[0], want)
    flat = decode(nifti(volume[:, :, 3]), DEEP)[0]
    assert torch.equal(flat, want)
    thin = decode(nifti(volume[2:3]), DEEP)[0]  # one slice thick from left to right
    assert torch.equal(thin, torch.from_numpy(shown(volume, "sagittal", 2).astype(np.float32)))


def test_colour_nifti_and_values_that_are_not_finite():
    volume = np.zeros((4, 5, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for channel, name in enumerate("RGB"):
        volume[name] = random(4, 5, 3, dtype="uint8", high=256) // (channel + 1)
    want = np.stack([shown(volume[name], "axial", 1) for name in "RGB"]) / np.float32(255)
    assert np.array_equal(decode(nifti(volume), Reading(3, deep=True)).numpy(), want)
    assert not read_header(nifti(volume)).grey
    floats = np.full((2, 2, 1), np.nan, np.float32)
    floats[0, 0] = 3
    assert decode(nifti(floats), DEEP).unique().tolist() == [0, 3]
    with pytest.raises(ReadError, match="holds complex numbers"):
        read_header(nifti(np.zeros((2, 2, 2), np.complex64)))


def test_only_the_slice_is_read(tmp_path):
    path = tmp_path / "big.nii"
    head = bytearray(nifti(np.zeros((2, 2, 2), np.int16)))[:352]
    head[40:56] = struct.pack("<8h", 3, 512, 512, 4000, 1, 1, 1, 1)
    path.write_bytes(head)
    with open(path, "r+b") as stream:
        stream.truncate(352 + 512 * 512 * 4000 * 2)  # 2 GB with nothing in them
    tracemalloc.start()
    assert decode(path, DEEP).shape == (1, 512, 512)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sides", [(32767, 32767, 32767), (32767, 32767, 1), (2000, 2000, 2000), (0, 5, 5), (-3, 5, 5)])
def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(sides, packed):
    content = bytearray(nifti(np.zeros((8, 8, 8), np.int16)))
    content[40:56] = struct.pack("<8h", 3, *sides, 1, 1, 1, 1)
    bomb = gzip.compress(bytes(content)) if packed else bytes(content)
    tracemalloc.start()
    for read in (lambda: read_header(bomb, "x"), lambda: decode(bomb, DEEP, "x")):
        with pytest.raises(ReadError, match="x: "):
            read()
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
