"""One frame of a DICOM file.

Stored values pass the modality LUT, or rescale slope and intercept, and so get the file's own units. Then, for grey:

- The file's own window is the first view of its VOI LUT sequence, else the first window center and width, on 0 to 1.
  VOILUTFunction is honoured there: LINEAR (PS3.3 C.11.2.1.2.1: center - 0.5, width - 1), LINEAR_EXACT and SIGMOID
  (C.11.2.1.3). A window asked for is LINEAR, LINEAR_EXACT where it is narrower than 1, for which LINEAR has no meaning.
- MONOCHROME1 (white is the least value) is inverted: 1 - v in a window; without one v becomes low + high - v, with low
  and high the ends of the stored bits in the file's units (of float pixels: the frame's own).
- Frames of enhanced files take rescale and window of their functional groups. Padding values are values like others.

RGB, YBR and palette become RGB. Pixels of 1, 8, 16 and 32 bits and float are read; overlays, presentation states, dose
scaling and colour profiles are not applied. Compressed files need a decoder: pydicom's own reads RLE, its use of Pillow
JPEG of 8 bits and JPEG 2000; for others the message names the transfer syntax and what to install. Files without the
DICM mark are known by their suffix alone.
"""

from typing import Any, BinaryIO

import numpy as np

from skipway.data.images.reading import Header, Reading
from skipway.data.images.scan import Scan, check_size, choose, exact, given

_MORE_DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")


def read_header(stream: BinaryIO) -> Header:
    """Size and depth."""
    data = _opened(stream)
    grey = data.PhotometricInterpretation in _GREY
    bits = int(data.BitsAllocated)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        bits = int(data.RedPaletteColorLookupTableDescriptor[2])
    view = _group(data, 0, "FrameVOILUTSequence")
    windowed = grey and bool(view.get("VOILUTSequence") or _own_window(view))
    columns, rows = int(data.Columns), int(data.Rows)
    return Header(columns, rows, grey or bits > 8, grey, "DICOM", "", 1, _count(data), windowed)


def read(stream: BinaryIO, reading: Reading) -> Scan:
    """The frame that the reading asks for."""
    data = _opened(stream)
    frame = choose(reading.frame, _count(data), "frame")
    stored = _stored(stream, data, frame)
    if data.PhotometricInterpretation not in _GREY:
        return Scan(_colour(stored, data), False)
    stored = stored.astype(np.int64) if stored.dtype.kind in "bui" else stored.astype(np.float64)
    values = _rescaled(stored, data, frame)
    seen = _windowed(values, _group(data, frame, "FrameVOILUTSequence"), reading.window)
    if data.PhotometricInterpretation == "MONOCHROME2":
        return Scan(values if seen is None else seen, seen is not None)
    if seen is not None:
        return Scan(1 - seen, True)
    ends = _rescaled(_ends(stored, data), data, frame)
    return Scan(ends.sum() - values, False)


def _opened(stream: BinaryIO) -> Any:
    """All but the pixels, and what the file says of itself checked."""
    import pydicom

    data = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    if data.get("Rows") is None or data.get("Columns") is None:
        kind = data.get("Modality")
        raise ValueError(f"is DICOM without an image (of modality {kind})" if kind else "is no DICOM image")
    check_size(int(data.Columns), int(data.Rows))
    if data.PhotometricInterpretation not in (*_GREY, *_COLOUR):
        raise ValueError(f"photometric interpretation {data.PhotometricInterpretation} is not read")
    syntax = _syntax(data)
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise ValueError(f"transfer syntax {syntax.name} ({syntax}) is not read") from error
    if not decoder.is_available:
        raise ValueError(f"compressed as {syntax.name} ({syntax}), which needs a decoder: {_MORE_DECODERS}")
    return data


def _syntax(data: Any) -> Any:
    """The transfer syntax; for files that do not name it, the one it was read by."""
    from pydicom import uid

    named = data.file_meta.get("TransferSyntaxUID")
    if named:
        return uid.UID(named)
    implicit, little = data.original_encoding
    if not little:
        return uid.ExplicitVRBigEndian
    return uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian


def _stored(stream: BinaryIO, data: Any, frame: int) -> np.ndarray:
    """The pixels of one frame as stored, YBR as RGB; of the others nothing is decoded."""
    import pydicom
    from pydicom.pixels import pixel_array

    syntax = _syntax(data)
    stream.seek(0)
    try:
        if _count(data) == 1 or syntax.is_deflated:
            whole = pydicom.dcmread(stream, force=True)
            whole.file_meta.TransferSyntaxUID = syntax
            return pixel_array(whole, index=frame)
        return pixel_array(stream, index=frame, transfer_syntax_uid=syntax)
    except RuntimeError as error:  # of every decoder at hand
        raise ValueError(f"damaged, or of a kind of {syntax.name} that needs: {_MORE_DECODERS}") from error
    except ValueError as error:
        if "reshape" not in str(error):
            raise
        raise ValueError("truncated: it holds fewer pixels than its header says") from error


def _count(data: Any) -> int:
    return max(int(data.get("NumberOfFrames") or 1), 1)


def _group(data: Any, frame: int, keyword: str) -> Any:
    """Where the elements of a functional group stand for a frame: its own, the shared ones, or the file itself."""
    own = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = data.get("SharedFunctionalGroupsSequence") or []
    for groups in (*own[frame : frame + 1], *shared[:1]):
        if groups.get(keyword):
            return groups[keyword][0]
    return data


def _rescaled(stored: np.ndarray, data: Any, frame: int) -> np.ndarray:
    """Stored values -> float64 in the file's own units."""
    from pydicom.pixels import apply_modality_lut

    if data.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, data).astype(np.float64)
    place = _group(data, frame, "PixelValueTransformationSequence")
    slope, intercept = place.get("RescaleSlope"), place.get("RescaleIntercept")
    return stored * float(1 if slope is None else slope) + float(intercept or 0)


def _ends(stored: np.ndarray, data: Any) -> np.ndarray:
    """The least and the greatest value that the stored bits can say."""
    if stored.dtype.kind == "f":
        return np.array([stored.min(), stored.max()])
    bits = int(data.BitsStored)
    low = -(1 << (bits - 1)) if data.PixelRepresentation else 0
    return np.array([low, low + (1 << bits) - 1])


def _windowed(values: np.ndarray, view: Any, window: str) -> np.ndarray | None:
    """Values on 0 to 1 by the window asked for, or the file's own; None: there is none."""
    if window == "full":
        return None
    if "/" in window:
        center, width = given(window)
        return _linear(values, center, width) if width >= 1 else exact(values, center, width)
    if view.get("VOILUTSequence"):
        return _table(values, view)
    own = _own_window(view)
    if own is None:
        return None
    function = str(view.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - own[0]) / own[1]))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise ValueError(f"VOI LUT function {function} is not read; --window full or CENTER/WIDTH passes it over")
    return _linear(values, *own) if function == "LINEAR" else exact(values, *own)


def _own_window(view: Any) -> tuple[float, float] | None:
    """Center and width of the first window of several."""
    from pydicom.multival import MultiValue

    found = [view.get(name) for name in ("WindowCenter", "WindowWidth")]
    center, width = (value[0] if isinstance(value, MultiValue) and value else value for value in found)
    return None if center is None or width is None else (float(center), float(width))


def _linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, onto 0 to 1."""
    if not width >= 1:
        raise ValueError(f"its window is {width:g} wide; --window full or CENTER/WIDTH passes it over")
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def _table(values: np.ndarray, view: Any) -> np.ndarray:
    """The first VOI LUT, onto 0 to 1."""
    from pydicom.pixels import apply_voi

    count, first, bits = view.VOILUTSequence[0].LUTDescriptor
    last = first + (count or 65536) - 1
    whole = np.clip(np.floor(values), first, last).astype(np.int64)
    return apply_voi(whole, view, index=0) / (2.0**bits - 1)


def _colour(stored: np.ndarray, data: Any) -> np.ndarray:
    """(H, W, 3) of the file's own type."""
    from pydicom.pixels import apply_color_lut

    if data.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, data)
    if stored.ndim != 3 or stored.shape[2] < 3:
        raise ValueError(f"colour of shape {stored.shape} is not read")
    return stored[:, :, :3]
