"""Where training images are cut and mirrored: shifted windows, random resized crops, flips; whole batches at once.

Windows are gathered row by row: in a batch whose channels lie side by side, a row of a window is one piece of memory.
Random resized crops are two matrix products, over rows and over columns, with weights of each sample's own. Their
numbers are whole ones, so that sums are exact and the bits depend on no batch size and no order of summation.

Images on an accelerator are cut there, all in one gather. Which pixels comes from the CPU.
"""

import numpy as np
import torch
from torch import Tensor

from skipway.data.sending import sent
from skipway.data_spec import AugmentSpec

TRIES = 10  # boxes drawn until one fits into the image; then the whole image, as torchvision does
LARGER = 8 / 7  # random crops are taken out of images so much larger: 256 for 224 pixels
WEIGHT, DEEP_WEIGHT = 2**12, 2**20  # what a filter's whole weights add up to, within rounding
FINER = 8  # between the two products pixels are multiples of 1/8: 8 + 3 + 12 bits are exact in float32
DEEP = 2**24 - 1  # steps that a deep image's range is cut into: 24 + 3 + 20 bits are exact in float64


def source_size(spec: AugmentSpec, own: tuple[int, int] | None, image_size: int) -> int:
    """Pixels a side that training images are held at, before augmentation brings them to `image_size`.

    Args:
        spec: whether there are random resized crops; else it is `image_size`.
        own: (height, width) where the source's images are all alike: small square ones are held as they are.
        image_size: what the network sees.
    """
    if not spec.random_resized_crop:
        return image_size
    larger = round(image_size * LARGER)
    return min(own[0], larger) if own and own[0] == own[1] else larger


def flip(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror some images of a batch.

    Args:
        images: (B, C, H, W) of any type.
        flips: (B,) bool.

    Returns:
        (B, C, H, W), new, channels_last in memory.
    """
    if images.device.type != "cpu":
        return flipped(images, flips)
    return _flip_in_place(images.clone(memory_format=torch.channels_last), flips)


def _flip_in_place(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror some images where they are; channels_last. Whole images are copied as single pieces of memory."""
    chosen = flips.nonzero()[:, 0].numpy()
    if not len(chosen) or not images.numel():
        return images
    pixels = images.permute(0, 2, 3, 1).numpy()  # (B, H, W, C), contiguous
    pieces = pixels.reshape(len(pixels), -1).view(np.dtype((np.void, pixels[0].nbytes)))[:, 0]  # (B,), no copy
    some = torch.from_numpy(pieces[chosen].view(pixels.dtype).reshape(-1, *pixels.shape[1:])).permute(0, 3, 1, 2)
    back = some.flip(-1).permute(0, 2, 3, 1).contiguous().numpy()
    pieces[chosen] = back.reshape(len(chosen), -1).view(pieces.dtype)[:, 0]
    return images


def pad_and_crop(images: Tensor, start: Tensor, *, pad: int, mode: str, flips: Tensor | None = None) -> Tensor:
    """A window of each padded image, mirrored where `flips` says so.

    Args:
        images: (B, C, S, S) of any type; alone they may be on an accelerator.
        start: (B, 2) int64, top and left of the window in the padded image, 0 to 2 * pad.
        pad: pixels on each side.
        mode: "zero" (of deep images: their least value, which is black) or "reflect".
        flips: (B,) bool.

    Returns:
        (B, C, S, S), channels_last in memory.
    """
    if images.device.type != "cpu":
        return gathered(images, start, pad=pad, mode=mode, flips=flips)
    num, channels, size = images.shape[:3]
    padded = _padded(images, pad, mode)  # (B, P, P, C)
    side, pixel = padded.shape[1], channels * padded.itemsize
    piece = np.dtype((np.void, size * pixel))  # a row of a window, as one item; they begin at every pixel
    rows = np.ndarray((num * side * side - size + 1,), piece, buffer=padded, strides=(pixel,))
    lines = torch.arange(num)[:, None] * side + start[:, :1] + torch.arange(size)  # (B, S)
    windows = rows[(lines * side + start[:, 1:]).numpy()].view(padded.dtype).reshape(num, size, size, channels)
    out = torch.from_numpy(windows).permute(0, 3, 1, 2)
    return out if flips is None else _flip_in_place(out, flips)


def flipped(images: Tensor, flips: Tensor) -> Tensor:
    """`flip` as one choice between each image and its mirror image."""
    return torch.where(flips[:, None, None, None], images.flip(-1), images).contiguous(
        memory_format=torch.channels_last
    )


def gathered(images: Tensor, start: Tensor, *, pad: int, mode: str, flips: Tensor | None = None) -> Tensor:
    """`pad_and_crop` where the images are, as one gather; which rows and columns is worked out on the CPU.

    So few kernels are launched: of small images each takes longer to launch than to run.
    """
    size, device = images.shape[-1], images.device
    places = start[:, :, None] + torch.arange(size)  # (B, 2, S): rows and columns of the padded image
    if flips is not None:
        places[:, 1] = torch.where(flips[:, None], places[:, 1].flip(1), places[:, 1])
    if mode == "reflect":
        places = _reflected(places - pad, size)
    else:
        images = _in_black(images, pad)
    rows, columns = sent(places.transpose(0, 1).contiguous(), device)  # (B, S) each
    number = torch.arange(len(images), device=device)[:, None, None]
    return images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _in_black(images: Tensor, pad: int) -> Tensor:
    """(B, C, S, S) -> (B, C, S + 2 pad, S + 2 pad), channels_last in memory."""
    black = images.new_zeros(()) if images.dtype == torch.uint8 else images.amin((1, 2, 3), keepdim=True)
    side = images.shape[-1] + 2 * pad
    shape, last = (*images.shape[:2], side, side), torch.channels_last
    padded = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=last)
    padded.copy_(black.expand_as(padded))[..., pad:-pad, pad:-pad] = images
    return padded


def _reflected(place: Tensor, size: int) -> Tensor:
    """Positions beyond an image's edges -> those in it that they mirror."""
    place = size - 1 - (size - 1 - place.abs()).abs()
    return place.clamp(0, size - 1)  # a single pixel has no neighbours


def _padded(images: Tensor, pad: int, mode: str) -> np.ndarray:
    """(B, C, S, S) -> (B, S + 2 pad, S + 2 pad, C)."""
    num, channels, size = images.shape[:3]
    if mode == "reflect":
        place = _reflected(torch.arange(-pad, size + pad), size)
        images = images.permute(0, 2, 3, 1)
        return images.index_select(1, place).index_select(2, place).contiguous().numpy()
    pixels = images.numpy()
    padded = np.zeros((num, size + 2 * pad, size + 2 * pad, channels), pixels.dtype)
    if images.dtype != torch.uint8:
        padded += pixels.min((1, 2, 3)).reshape(-1, 1, 1, 1)
    inside = padded[:, pad : pad + size, pad : pad + size]
    if images.is_contiguous():
        for channel in range(channels):  # twice as fast as all at once
            inside[..., channel] = pixels[:, channel]
    else:
        inside[:] = pixels.transpose(0, 2, 3, 1)
    return padded


def boxes(draws: Tensor, least: float, size: int) -> Tensor:
    """The boxes of random resized crops (Szegedy et al. 2014, arXiv:1409.4842), drawn by torchvision's rule.

    Area from `least` of the image to all of it, width over height from 3/4 to 4/3 (log-uniform), sides rounded to
    pixels, drawn again where it is wider or higher than the image; after ten draws the whole image.

    Args:
        draws: (B, 22) uniform numbers: ten of area, ten of shape, top, left.
        least: share of the area.
        size: of the square images.

    Returns:
        (B, 4) int64: top, left, height, width.
    """
    area = size * size * (least + draws[:, :TRIES] * (1 - least))  # (B, 10)
    log_ratio = (2 * draws[:, TRIES : 2 * TRIES] - 1) * float(np.log(4 / 3))
    width = (area * torch.exp(log_ratio)).sqrt().round().long()
    height = (area / torch.exp(log_ratio)).sqrt().round().long()
    fits = (width > 0) & (height > 0) & (width <= size) & (height <= size)
    first = fits.byte().argmax(1, keepdim=True)  # the first that fits
    found = fits.gather(1, first)
    sides = torch.cat([height.gather(1, first), width.gather(1, first)], 1)
    sides = torch.where(found, sides, size)  # (B, 2)
    corner = (draws[:, 2 * TRIES :] * (size - sides + 1)).long()
    return torch.cat([corner, sides], 1)


def resized_crop(images: Tensor, box: Tensor, size: int, flips: Tensor | None = None) -> Tensor:
    """Each sample's own box, resampled to a square with an antialiased triangle filter.

    Args:
        images: (B, C, H, W) uint8 or float32.
        box: (B, 4) int64: top, left, height, width.
        size: S, pixels a side of the result.
        flips: (B,) bool: which are mirrored.

    Returns:
        (B, C, S, S) of the same type, channels_last in memory.
    """
    deep = images.dtype != torch.uint8
    work, weight = (torch.float64, DEEP_WEIGHT) if deep else (torch.float32, WEIGHT)
    num, channels, height, width = images.shape
    rows = _filter(box[:, 0], box[:, 2], height, size, weight)  # (B, S, H)
    columns = _filter(box[:, 1], box[:, 3], width, size, weight)  # (B, S, W)
    if flips is not None:
        columns = torch.where(flips[:, None, None], columns.flip(1), columns)
    low, step = _levels(images) if deep else (0.0, 1.0)
    pixels = ((images.double() - low) / step).round() if deep else images
    pixels = pixels.permute(0, 2, 1, 3).to(work, memory_format=torch.contiguous_format)  # (B, H, C, W)
    once = rows.to(work) @ pixels.reshape(num, height, channels * width)
    once = once.mul_(FINER / rows.sum(2, keepdim=True).to(work)).round_().view(num, size * channels, width)
    twice = (once @ columns.to(work).mT).view(num, size, channels, size).permute(0, 1, 3, 2)
    twice = twice / (FINER * columns.sum(2)[:, None, :, None].to(work))
    twice = twice * step + low if deep else twice.round_().clamp_(0, 255)
    return twice.to(images.dtype).contiguous().permute(0, 3, 1, 2)


def _levels(images: Tensor) -> tuple[Tensor, Tensor]:
    """Least value and step of each deep image's own whole-number scale; (B, 1, 1, 1) float64 each."""
    low, high = (f((1, 2, 3), keepdim=True).double() for f in (images.amin, images.amax))
    return low, torch.where(high > low, (high - low) / DEEP, 1.0)


def _filter(start: Tensor, length: Tensor, size_in: int, size_out: int, total: int) -> Tensor:
    """Weights of a triangle filter inside each sample's stretch of a side: whole numbers that add up to about `total`.

    As wide as a pixel of the larger of the two grids and cut off at the ends of the stretch, as torchvision's
    antialiased resized_crop. (B,), (B,) -> (B, size_out, size_in) float32.
    """
    scale = (length / size_out).view(-1, 1, 1)
    wide = 1 / scale.clamp(min=1)
    middle, pixel = (torch.arange(size, device=start.device) + 0.5 for size in (size_out, size_in))
    centre = start.view(-1, 1, 1) + middle.view(1, -1, 1) * scale  # (B, size_out, 1)
    weights = (pixel * wide - centre * wide).abs_().neg_().add_(1).clamp_(min=0)
    begin, end = start.view(-1, 1, 1), (start + length).view(-1, 1, 1)
    weights *= (pixel > begin) & (pixel < end)
    return weights.mul_(total / weights.double().sum(2, keepdim=True).float()).round_()
