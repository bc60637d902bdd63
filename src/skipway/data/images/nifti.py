"""One slice of a NIfTI volume.

Values are scl_slope x stored + scl_inter. Axes are turned to the nearest anatomical ones (as nibabel's canonical
orientation), voxels stay as they are (no resampling), and a slice is laid out as a radiologist's viewer shows it:

    axial      row 0 anterior, column 0 the patient's right; slices from feet to head
    coronal    row 0 superior, column 0 the patient's right; slices from back to front
    sagittal   row 0 superior, column 0 anterior; slices from left to right

A volume that is one slice thick along exactly one axis gives that slice. Of a series of volumes the first counts. A
file without a sound affine is taken as it is stored, as if its axes led right, anterior and superior. The file's own
window is cal_min to cal_max, where cal_max is the greater. A window is exact (center - width / 2 to center + width /
2), for values need not be whole numbers. Only what the slice needs is read, of .nii.gz all that lies before it too.
"""

import gzip
from typing import Any, BinaryIO

import numpy as np

from skipway.data.images.reading import Header, Reading
from skipway.data.images.scan import Scan, check_size, choose, exact, given

_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}
_RATIO = 1032  # the most that deflate packs into a byte


def read_header(stream: BinaryIO) -> Header:
    """Size and depth of an axial slice."""
    image = _opened(stream)
    shape = _volume(image.shape)
    axis, _ = _cut(image, shape, "axial")
    width, height = (shape[i] for i in _orientation(image, shape)[0] if i != axis)
    return Header(width, height, True, not _is_colour(image), "NIFTI", "", 1, shape[axis], bool(_own(image)))


def read(stream: BinaryIO, reading: Reading) -> Scan:
    """The slice that the reading asks for."""
    image = _opened(stream)
    shape = _volume(image.shape)
    axis, flipped = _cut(image, shape, reading.slice_axis)
    number = choose(reading.frame, shape[axis], "slice")
    place: list[Any] = [slice(None)] * min(3, len(image.shape)) + [0] * (len(image.shape) - 3)
    if axis < len(place):
        place[axis] = shape[axis] - 1 - number if flipped else number
    axes, flips = _orientation(image, shape)
    slab = np.asarray(image.dataobj[tuple(place)]).reshape([shape[i] for i in range(3) if i != axis])
    across, down = (i for i in axes if i != axis)
    pixels = slab.T if across < down else slab  # (down, across)
    pixels = pixels[:: 1 if flips[down] else -1, :: 1 if flips[across] else -1]  # greatest first
    if names := pixels.dtype.names:
        return Scan(np.stack([pixels[name] for name in names], axis=-1), False)
    values = pixels.astype(np.float64)
    if "/" in reading.window:
        return Scan(exact(values, *given(reading.window)), True)
    window = _own(image) if reading.window == "auto" else None
    return Scan(exact(values, *window), True) if window else Scan(values, False)


def _opened(stream: BinaryIO) -> Any:
    """The image with its header read and what it promises checked; no pixels yet."""
    import nibabel

    size = stream.seek(0, 2)
    stream.seek(0)
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    content: Any = gzip.GzipFile(fileobj=stream) if packed else stream
    first = content.read(8)
    content.seek(0)
    kind = nibabel.Nifti2Image if first[4:7] in (b"n+2", b"ni2") else nibabel.Nifti1Image
    if len(first) < 8 or first[4:7] == b"ni2":
        raise ValueError("is no whole NIfTI file")
    image = kind.from_stream(content)
    if bytes(image.header["magic"]).startswith(b"ni"):
        raise ValueError("is the header of a .hdr and .img pair; save it as .nii")
    shape = _volume(image.shape)
    for i in range(3):
        check_size(*(side for j, side in enumerate(shape) if j != i))
    dtype = image.header.get_data_dtype()
    if dtype.kind == "c":
        raise ValueError("holds complex numbers")
    promised = int(image.header.get_data_offset()) + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if promised > size * (_RATIO if packed else 1):
        raise ValueError(f"truncated: its header promises {promised:,} bytes")
    return image


def _volume(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The three sides in space."""
    if not shape or min(shape) < 1:
        raise ValueError(f"has the shape {shape}")
    x, y, z = (*shape, 1, 1, 1)[:3]
    return int(x), int(y), int(z)


def _orientation(image: Any, shape: tuple[int, int, int]) -> tuple[list[int], list[bool]]:
    """The stored axes that lead right, anterior, superior; and of each stored axis whether it leads backwards."""
    import nibabel

    turned = nibabel.io_orientation(image.affine)
    if not np.isfinite(turned).all():
        return [0, 1, 2], [False] * 3
    return [int(np.flatnonzero(turned[:, 0] == i)[0]) for i in range(3)], [sign < 0 for sign in turned[:, 1]]


def _cut(image: Any, shape: tuple[int, int, int], slice_axis: str) -> tuple[int, bool]:
    """The stored axis that slices are counted along, and whether it leads backwards."""
    axes, flips = _orientation(image, shape)
    thin = [i for i, side in enumerate(shape) if side == 1]
    axis = thin[0] if len(thin) == 1 else axes[_AXIS[slice_axis]]
    return axis, flips[axis]


def _own(image: Any) -> tuple[float, float] | None:
    """Center and width of the file's own window."""
    low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    return ((low + high) / 2, high - low) if high > low else None


def _is_colour(image: Any) -> bool:
    return image.header.get_data_dtype().names is not None
