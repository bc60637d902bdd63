"""What one slice or frame of a scan is once it was read, and which one was asked for."""

from dataclasses import dataclass

import numpy as np

from skipway.data.images.reading import MAX_PIXELS


@dataclass(frozen=True)
class Scan:
    """One image of a scan.

    Args:
        pixels: (H, W) float64, or colour as (H, W, 3 or 4) of the file's own type.
        windowed: values lie on 0 to 1.
    """

    pixels: np.ndarray
    windowed: bool


def choose(frame: str, count: int, what: str) -> int:
    """Which of so many frames (or slices): "first", "middle" (of an even number the later), "last", a number from 0.

    Raises:
        ValueError: there are not so many.
    """
    known = {"first": 0, "middle": count // 2, "last": count - 1}
    chosen = known[frame] if frame in known else int(frame)
    if chosen >= count:
        plural = "s" if count > 1 else ""
        raise ValueError(f"has {count} {what}{plural}, numbered from 0, so there is no {what} {frame}")
    return chosen


def given(window: str) -> tuple[float, float]:
    """A window "CENTER/WIDTH" as numbers."""
    center, width = window.split("/")
    return float(center), float(width)


def exact(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """From center - width / 2 to center + width / 2, on 0 to 1 (LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2)."""
    if not width > 0:
        raise ValueError(f"its window is {width:g} wide; --window full or CENTER/WIDTH passes it over")
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def check_size(width: int, height: int) -> None:
    """Refuse an image without pixels, or of too many, before any memory is taken. Raises ValueError."""
    if width < 1 or height < 1:
        raise ValueError(f"is {width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels are more than the {MAX_PIXELS:,} that are read")
