import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def scene(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A colour image of (width, height) with shapes at all scales, as photos have them: (seed) decides everything."""
    rng = np.random.default_rng(seed)
    layers = torch.zeros(1, 3, size[1], size[0])
    for cells, strength in ((3, 60.0), (6, 40.0), (12, 30.0), (24, 20.0)):
        noise = torch.from_numpy(rng.normal(0, strength, (1, 3, cells, cells))).float()
        grey = torch.from_numpy(rng.normal(0, strength, (1, 1, cells, cells))).float()
        layers += F.interpolate(noise / 2 + grey, layers.shape[-2:], mode="bicubic")
    pixels = (128 + layers[0]).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))
