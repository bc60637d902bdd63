"""Images that are the same photo twice: to the bit, or re-encoded, resized, cropped, brightened, mirrored.

Near duplicates are found in three steps. Candidates are the nearest neighbours of 8x8 grey images. Each candidate
is laid over the other by a shift and a scale of each axis (Gauss-Newton on the pixels, coarse to fine). What then
decides is whether the fine detail agrees everywhere: the correlation of what a blur takes away, with its strength
made equal over the image. Two shirts, two chests or two pictures in the same frame agree in the coarse and differ
there; a photo and its copy do not. How far unrelated images of a set agree is measured on pairs that are alike but
not the nearest, and a pair has to stand well above that, over the set and around each image: where all images look
alike, less is taken for a copy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skipway.data.doctor.alignment import laid_over, match, shrink

SIDE = 32  # pixels of the images that are compared
EXACT_UP_TO = 200_000  # images; of more, candidates are near in the order of a 64-bit hash
ORDERS = 12  # of the hash's bits
COARSE = 8
NEIGHBOURS, MIRRORED_NEIGHBOURS = 8, 3
LIKENESS = 0.8  # correlation of candidates at 8x8
UNRELATED, RANK = 1000, 32  # pairs that the bar is measured on; which neighbour: so many copies of one photo are rare
AROUND = 6  # neighbours of that rank that an image's own bar is measured on
ABOVE = 5.0  # deviations that the detail of a pair stands above theirs
FLAT = 3.0  # grey levels of deviation: flatter images say nothing
BATCH = 4096
PRODUCTS = 1 << 26  # numbers of a matrix of products, at most


@dataclass(frozen=True)
class Bar:
    """The detail that must agree at 16x16 for a closer look, and at full size; the spread among unrelated images."""

    glance: float = 0.5
    detail: float = 0.8
    spread: float = 0.0


@dataclass(frozen=True)
class Pairs:
    """Near duplicates: (P, 2) int64 positions with the smaller first, and (P,) bool, whether one is mirrored."""

    places: Tensor
    mirrored: Tensor


def equal_rows(rows: np.ndarray) -> list[list[int]]:
    """Groups of two and more places that hold the same bytes, each in order; (N, B) uint8."""
    if not len(rows):
        return []
    keys = np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").reshape(-1)
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(counts)
    return [order[end - count : end].tolist() for end, count in zip(ends, counts, strict=True) if count > 1]


def near_pairs(thumbs: np.ndarray, *, progress: Callable[[int, int], object] | None = None) -> Pairs:
    """Pairs that show the same photo.

    Args:
        thumbs: (N, 32, 32) uint8 grey, the whole image squashed to a square. Equal ones should come once.
        progress: called with (done, total).

    Returns:
        The pairs; of many copies of one photo not every pair, but enough to join them.
    """
    telling = torch.from_numpy(np.flatnonzero(_deviations(thumbs) > FLAT))
    bar = _bar(thumbs, telling)
    candidates = [_candidates(thumbs, telling, flip) for flip in (False, True)]
    total, done = sum(map(len, candidates)), 0
    found, details, mirrored = [], [], []
    for flip, pairs in zip((False, True), candidates, strict=True):
        for part in pairs.split(BATCH):
            first, second = _take(thumbs, part[:, 0]), _take(thumbs, part[:, 1])
            same, detail = same_photo(first.flip(-1) if flip else first, second, bar)
            found.append(part[same])
            details.append(detail)
            mirrored.append(torch.full((len(detail),), flip))
            done += len(part)
            if progress:
                progress(done, total)
    if not found:
        return Pairs(torch.empty(0, 2, dtype=torch.int64), torch.empty(0, dtype=torch.bool))
    places = torch.cat(found)
    sure = _stands_out(thumbs, telling, places, torch.cat(details), bar.spread)
    return Pairs(places[sure], torch.cat(mirrored)[sure])


def same_photo(first: Tensor, second: Tensor, bar: Bar) -> tuple[Tensor, Tensor]:
    """Which pairs of (P, 1, 32, 32) float32 images of 0 to 255 are the same photo, (P,) bool, and those's detail."""
    shift = laid_over(first, second, (8, 16))
    same = match(shrink(first, 16), shrink(second, 16), shift).detail > bar.glance
    first, second, shift = first[same], second[same], shift[same]
    found = match(first, second, laid_over(first, second, (32,), shift))
    sure = found.same(bar.detail)
    same[same.clone()] = sure
    return same, found.detail[sure]


def _bar(thumbs: np.ndarray, telling: Tensor) -> Bar:
    """What unrelated images of this set do not reach."""
    least, count = Bar(), len(telling)
    if count < 4:
        return least
    chosen = telling[torch.linspace(0, count - 1, min(UNRELATED, count)).long()]
    others = _unrelated(thumbs, telling, chosen, 1)[:, 0]
    first, second = _take(thumbs, chosen), _take(thumbs, others)
    shift = laid_over(first, second, (8, 16))
    glance = match(shrink(first, 16), shrink(second, 16), shift).detail
    score = _score(match(first, second, laid_over(first, second, (32,), shift)).detail)
    middle = score.median()
    spread = float(1.4826 * (score - middle).abs().median())  # of the bulk, whatever copies are among them
    reached = float((middle + ABOVE * spread).tanh())
    return Bar(max(least.glance, float(glance.quantile(0.9))), max(least.detail, min(reached, 0.99)), spread)


def _stands_out(thumbs: np.ndarray, telling: Tensor, pairs: Tensor, detail: Tensor, spread: float) -> Tensor:
    """Which pairs agree far better than their first image does with others that are alike, (P,) bool."""
    if not len(pairs) or len(telling) < 4:
        return torch.ones(len(pairs), dtype=torch.bool)
    images, which = pairs[:, 0].unique(return_inverse=True)
    others = _unrelated(thumbs, telling, images, AROUND)
    wide = images[:, None].expand_as(others)
    scores = []
    for left, right in zip(wide.flatten().split(BATCH), others.flatten().split(BATCH), strict=True):
        first, second = _take(thumbs, left), _take(thumbs, right)
        scores.append(_score(match(first, second, laid_over(first, second, (8, 16, 32))).detail))
    around = torch.cat(scores).view_as(others).median(1).values[which]
    return _score(detail) > (around + ABOVE * spread).clamp(max=float(_score(torch.tensor(0.99))))


def _unrelated(thumbs: np.ndarray, telling: Tensor, images: Tensor, number: int) -> Tensor:
    """Images that are alike but not the nearest, (n, number)."""
    pool = telling[torch.linspace(0, len(telling) - 1, min(EXACT_UP_TO, len(telling))).long()]
    rows = _unit(_coarse(thumbs, pool)).T
    rank = min(RANK, len(pool) // 2)
    last = min(rank + number, len(pool))
    return torch.cat(
        [
            pool[(_unit(_coarse(thumbs, part)) @ rows).topk(last, 1).indices[:, rank:]]
            for part in images.split(_block(len(pool)))
        ]
    )


def _score(detail: Tensor) -> Tensor:
    """Fisher's z of correlations: their spread does not shrink towards 1."""
    return detail.clamp(-0.999, 0.999).atanh()


def joined(pairs: np.ndarray, count: int) -> list[list[int]]:
    """Groups of places that pairs (P, 2) join, each in order, of `count` places."""
    above = np.arange(count)

    def top(place: int) -> int:
        while above[place] != place:
            above[place] = above[above[place]]
            place = int(above[place])
        return place

    for a, b in pairs.tolist():
        a, b = sorted((top(a), top(b)))
        above[b] = a
    members: dict[int, list[int]] = {}
    for place in np.unique(pairs).tolist():
        members.setdefault(top(place), []).append(place)
    return list(members.values())


def _candidates(thumbs: np.ndarray, telling: Tensor, flip: bool) -> Tensor:
    """Pairs worth a look, (P, 2) int64."""
    if len(telling) < 2:
        return torch.empty(0, 2, dtype=torch.int64)
    coarse = _coarse(thumbs, telling)
    whole, turned = _unit(coarse), _unit(coarse.flip(-1) if flip else coarse)
    blocks = _by_product if len(coarse) <= EXACT_UP_TO else _by_hash
    found = torch.cat(list(blocks(turned, whole, MIRRORED_NEIGHBOURS if flip else NEIGHBOURS)))
    found = found[found[:, 0] != found[:, 1]]
    count = len(telling)  # a pair is looked at once: of mirrored ones it does not matter which is turned
    keys = (found.amin(1) * count + found.amax(1)).unique()
    return telling[torch.stack([keys // count, keys % count], 1)]


def _coarse(thumbs: np.ndarray, places: Tensor) -> Tensor:
    """(n, 1, 8, 8)."""
    return torch.cat([shrink(_take(thumbs, part), COARSE) for part in places.split(BATCH)])


def _by_product(queries: Tensor, rows: Tensor, neighbours: int) -> Iterator[Tensor]:
    """The most alike rows of every query, all products computed."""
    places = torch.arange(len(rows))
    for part in places.split(_block(len(rows))):
        likeness = queries[part] @ rows.T
        likeness[torch.arange(len(part)), part] = -1
        value, place = likeness.topk(min(neighbours, len(rows) - 1), 1)
        kept = value > LIKENESS
        yield torch.stack([part[:, None].expand_as(place)[kept], place[kept]], 1)


def _block(count: int) -> int:
    """How many queries are compared with so many rows at a time."""
    return max(PRODUCTS // max(count, 1), 1)


def _by_hash(queries: Tensor, rows: Tensor, neighbours: int) -> Iterator[Tensor]:
    """Rows near a query when all are sorted by 64 signs, in several orders of the signs: four in five on CIFAR-10."""
    count = len(rows)
    signs = [(part > part.median(1, keepdim=True).values).numpy() for part in (queries, rows)]
    both = np.concatenate(signs)
    rng = np.random.default_rng(0)
    for _ in range(ORDERS):
        packed = np.packbits(both[:, rng.permutation(both.shape[1])], axis=1)
        key = np.ascontiguousarray(packed).view(">u8")[:, 0]
        order = np.argsort(key, kind="stable")
        for step in range(1, 2 * neighbours + 1):
            a, b = order[:-step], order[step:]
            mixed = (a < count) != (b < count)
            query, row = np.minimum(a, b)[mixed], np.maximum(a, b)[mixed] - count
            for part in torch.from_numpy(np.stack([query, row], 1)).split(1 << 18):
                yield part[(queries[part[:, 0]] * rows[part[:, 1]]).sum(1) > LIKENESS]


def _unit(images: Tensor) -> Tensor:
    """Rows of mean 0 and length 1."""
    rows = images.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6)


def _take(thumbs: np.ndarray, places: Tensor) -> Tensor:
    return torch.from_numpy(thumbs[places.numpy()]).float()[:, None]


def _deviations(thumbs: np.ndarray) -> np.ndarray:
    """(N,) grey levels."""
    parts = [thumbs[i : i + BATCH].astype(np.float32).std((1, 2)) for i in range(0, len(thumbs), BATCH)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
