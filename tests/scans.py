"""Scans made by hand, and what the network sees of an image; for the tests of DICOM, NIfTI and both."""

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import torch
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from skipway.data.images.decode import decode
from skipway.data.images.reading import Reading
from skipway.data.preprocess import Preprocess

DEEP = Reading(1, deep=True)
FLIPS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), max_size=4)  # places, bits
FULL = Reading(1, deep=True, window="full")


def damaged(whole: bytes, flips: list[tuple[int, int]], cut: float) -> tuple[bytes, bytes]:
    """A file with some bits flipped, and its beginning, of that share."""
    content = bytearray(whole)
    for place, bit in flips:
        content[place % len(content)] ^= 1 << bit
    return bytes(content), bytes(content[: int(cut * len(content))])


def reaches_network(file: bytes | Path, how: Reading = DEEP) -> np.ndarray:
    """What the network would see at the image's own size, unnormalised: (H, W) or (H, W, 3)."""
    image = decode(file, how)
    assert image.dtype == torch.float32
    assert image.permute(1, 2, 0).is_contiguous()
    preprocess = Preprocess(image.shape[-1], (0.0,) * how.channels, (1.0,) * how.channels, how)
    if image.shape[1] != image.shape[2]:
        image = torch.nn.functional.pad(image, (0, max(image.shape[1] - image.shape[2], 0), 0, 0))
        return image.permute(1, 2, 0).numpy().squeeze()
    seen = preprocess.normalise(preprocess.fit(image)[None])[0].permute(1, 2, 0).numpy()
    return seen[:, :, 0] if how.channels == 1 else seen


def same(got: np.ndarray, want: np.ndarray) -> None:
    """Equal to 1 unit in the last place of float32."""
    np.testing.assert_allclose(got, want.astype(np.float32), rtol=2**-23, atol=1e-12)


def dicom(pixels: np.ndarray, *, bits: int = 0, interpretation: str = "MONOCHROME2", **elements: Any) -> bytes:
    """A DICOM file of (H, W), (frames, H, W) or colour (H, W, 3) pixels."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = SecondaryCaptureImageStorage, "1.2.3", "OT"
    data.SamplesPerPixel = 1 if "MONO" in interpretation or "PALETTE" in interpretation else 3
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = interpretation
    frames = pixels.ndim == 3 and data.SamplesPerPixel == 1
    if frames:
        data.NumberOfFrames = len(pixels)
    data.Rows, data.Columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    data.BitsAllocated = 8 * pixels.itemsize
    if pixels.dtype.kind == "f":
        setattr(data, "FloatPixelData" if pixels.itemsize == 4 else "DoubleFloatPixelData", pixels.tobytes())
    else:
        data.BitsStored = bits or data.BitsAllocated
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
        data["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for name, value in elements.items():
        setattr(data, name, value)
    return written(data)


def written(data: Dataset) -> bytes:
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def opened(file: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(file))


def values_of(data: Dataset) -> np.ndarray:
    return np.asarray(apply_modality_lut(data.pixel_array, data), np.float64)


def random(*shape: int, dtype: str = "uint16", low: int = 0, high: int = 4096) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def lut(first: int, entries: np.ndarray, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item.LUTData = entries.tolist()
    item["LUTData"].VR = "US"
    return item


def nifti(volume: np.ndarray, affine: np.ndarray | None = None, *, second: bool = False, **header: Any) -> bytes:
    image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image)(volume, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    return image.to_bytes()


def item_of(**elements: Any) -> Dataset:
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item
