"""How files become tensors, and what a file's header says before it is decoded."""

from dataclasses import dataclass

from skipway.data_spec import DataSpec

SCANS = ("DICOM", "NIFTI")
SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "BMP": (".bmp",), "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm"), "TIFF": (".tif", ".tiff"), "WEBP": (".webp",),
    "DICOM": (".dcm", ".dicom", ".ima"), "NIFTI": (".nii", ".nii.gz"),
}  # fmt: skip
SCAN_SUFFIXES = tuple(suffix for kind in SCANS for suffix in SUFFIXES_OF[kind])
SUFFIXES = tuple(dict.fromkeys(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes))
PHOTO_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix not in SCAN_SUFFIXES)
MAX_PIXELS = 100_000_000  # of one image; more are refused before they are decoded


@dataclass(frozen=True)
class Reading:
    """How a file becomes a tensor; the same in training, evaluation and use.

    Args:
        channels: 1 or 3.
        deep: float32 at the file's own depth, instead of uint8. Whole numbers of photo formats then lie on 0 to 1
            (divided by 255 or 65535); windowed values of scans too; other values are the file's own.
        window, frame, slice_axis: scans only, as in DataSpec.
    """

    channels: int = 3
    deep: bool = False
    window: str = "auto"
    frame: str = "middle"
    slice_axis: str = "axial"

    @staticmethod
    def of(spec: DataSpec, channels: int = 3, *, deep: bool = False) -> "Reading":
        """What the spec says about reading."""
        return Reading(channels, deep, spec.window, spec.frame, spec.slice_axis)


PHOTO = Reading()  # three channels, uint8


@dataclass(frozen=True)
class Header:
    """What a file says of itself before it is decoded; width and height in pixels, before EXIF orientation.

    Args:
        deep: more than 8 bits a channel.
        grey: one channel.
        format: Pillow's name of the format, "DICOM" or "NIFTI".
        mode: Pillow's mode; "" for scans.
        orientation: of EXIF, 1 (upright) to 8.
        frames: how many; 1 where the header does not say.
        windowed: scans only: the file says which values are to be seen, so `--window auto` brings it to 0 to 1.
    """

    width: int
    height: int
    deep: bool
    grey: bool
    format: str
    mode: str = ""
    orientation: int = 1
    frames: int = 1
    windowed: bool = False
