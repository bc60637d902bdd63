"""The doctor's checks of files and classes; each looks at the case and yields what it finds. Copies: doctor_copies.py.

The bounds below are judgement, not theory: they are set so that a well-kept data set passes without a word.
"""

import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from skipway.data.doctor.case import Case, Finding, Severity, counted
from skipway.data.doctor.statistics import class_counts, mean_and_std, sizes
from skipway.data.files import DiskFiles
from skipway.data.images.reading import SUFFIXES, SUFFIXES_OF
from skipway.data.pool import TIME_LIMIT_S
from skipway.data.preprocess import choose_size
from skipway.data.source import is_multilabel
from skipway.data.sources.layout import is_litter
from skipway.data.split import make_splits
from skipway.errors import InputError

TINY, FAR_BELOW = 16, 4  # pixels; times smaller than the image size
HUGE = 40_000_000  # pixels
LONG = 3.0  # longer side over shorter side
SLOW_S = 1.0
FEW = 10  # images of a class in train
LOPSIDED = 10.0  # largest class over smallest
FLAT = 1 / 255
MODES: dict[str, tuple[Severity, str]] = {
    "CMYK": ("note", "CMYK: becomes RGB, without a colour profile"),
    "YCbCr": ("note", "YCbCr: becomes RGB"),
    "LAB": ("note", "LAB: becomes RGB"),
    "P": ("note", "a palette: becomes RGB"),
    "1": ("note", "one bit: becomes black and white"),
    "LA": ("note", "transparency: is laid over white"),
    "PA": ("note", "transparency: is laid over white"),
    "RGBA": ("note", "transparency: is laid over white"),
}
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")


def layout(case: Case) -> Iterator[Finding]:
    """What opening the data complained of, and what was passed over."""
    for fault in case.faults:
        yield Finding("layout", "error", fault, "training refuses this: add images, or remove or rename the folder")
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, reason in case.source.bad.items():
        groups.setdefault(_kind_of(reason), []).append((name, reason))
    broken = [*groups.get("unreadable", [])]
    broken += [(case.source.name(i), reason) for i, reason in sorted(case.looks.unreadable.items())]
    if broken:
        text = f"{counted(len(broken), 'file')} cannot be read"
        yield _named("unreadable", "error", text, "replace or remove them; --fix-list names them", broken)
    if found := groups.get("misplaced"):
        text = f"{counted(len(found), 'file or folder', 'files or folders')} in no class folder, passed over"
        yield _named("misplaced", "warning", text, "move them into a class folder, or out of the data", found)
    if found := groups.get("other"):
        text = f"{counted(len(found), 'file is', 'files are')} not an image file, passed over"
        yield _named("other files", "note", text, "", found)


def trainable(case: Case) -> Iterator[Finding]:
    """What training would refuse: nothing to tell apart, or nothing to hold out."""
    if len(case.source.classes) < 2 and not is_multilabel(case.source):
        yield Finding("one class", "error", f"there is one class only, '{case.source.classes[0]}'", "add another")
    try:
        make_splits(case.source, case.spec)
    except InputError as error:
        yield Finding("splits", "error", str(error), "training refuses this")


def _kind_of(reason: str) -> str:
    if reason.startswith(("stands beside", "lies beside")):
        return "misplaced"
    return "other" if reason == "not an image file" else "unreadable"


def _named(kind: str, severity: Severity, message: str, advice: str, found: list[tuple[str, str]]) -> Finding:
    return Finding(kind, severity, message, advice, tuple(name for name, _ in found), tuple(why for _, why in found))


def cut_short(case: Case) -> Iterator[Finding]:
    """Files that decode although their end is missing."""
    found = case.where(case.column("cut"))
    if len(found):
        text = f"{counted(len(found), 'file ends', 'files end')} before the image does, though it can be decoded"
        yield case.finding("cut short", "warning", text, "fetch them again: a copy was broken off", found)


def suffixes(case: Case) -> Iterator[Finding]:
    """Names whose ending is another format's."""
    found, remarks = [], []
    for sample, kind in zip(case.looks.seen.tolist(), case.column("format").tolist(), strict=True):
        name, fitting = case.source.name(sample).lower(), SUFFIXES_OF.get(kind.decode())
        if fitting and name.endswith(SUFFIXES) and not name.endswith(fitting):
            found.append(sample)
            remarks.append(f"is {kind.decode()}")
    if found:
        text = f"{counted(len(found), 'file has', 'files have')} the wrong extension; the content counts"
        yield case.finding("extension", "warning", text, "rename them: others go by the name", found, remarks)


def modes(case: Case) -> Iterator[Finding]:
    """Kinds of pixels that are changed when they are read, and depths that are mixed."""
    found = case.column("mode")
    for mode, (severity, what) in MODES.items():
        chosen = case.where(found == mode.encode())
        if len(chosen):
            yield case.finding("mode", severity, f"{counted(len(chosen), 'file')} of mode {mode}: {what}", "", chosen)
    deep = np.isin(found, [mode.encode() for mode in DEEP_MODES])
    if deep.any() and not deep[found != b""].all():
        chosen = case.where(deep if deep.sum() * 2 <= len(found) else ~deep)
        depth = "more" if deep.sum() * 2 <= len(found) else "only 8"
        text = f"{counted(len(chosen), 'file has', 'files have')} {depth} bits a channel, unlike the rest"
        yield case.finding("depth", "warning", text, "bring all to one depth: their values may not compare", chosen)
    grey = np.isin(found, [b"L", b"1", b"I;16", b"I", b"F"])
    if grey.any() and not grey[found != b""].all():
        minority = grey if grey.sum() * 2 <= len(found) else ~grey & (found != b"")
        what = "grey among colour" if grey.sum() * 2 <= len(found) else "colour among grey"
        chosen = case.where(minority)
        yield case.finding("grey", "note", f"{counted(len(chosen), 'image is', 'images are')} {what}", "", chosen)


def orientation(case: Case) -> Iterator[Finding]:
    """Rotations that EXIF asks for."""
    chosen = case.where(case.column("orientation") > 1)
    if len(chosen):
        text = f"{counted(len(chosen), 'file is', 'files are')} rotated by EXIF; the rotation is applied"
        yield case.finding("rotation", "note", text, "other programs may not apply it", chosen)


def dimensions(case: Case) -> Iterator[Finding]:
    """Tiny, huge and very long images."""
    width, height = case.column("width"), case.column("height")
    if not len(width):
        return
    short, pixels = np.minimum(width, height), width.astype(np.int64) * height
    alike = len(set(zip(width.tolist(), height.tolist(), strict=True))) == 1
    size = choose_size(case.source, case.spec.image_size)[0]
    tiny = (short < max(TINY, size / FAR_BELOW)) & (short > 0)
    for kind, chosen, text, advice in (
        ("tiny", tiny & (not alike), f"under {max(TINY, size // FAR_BELOW)} pixels a side, {size} are used",
         "leave them out, or train with a smaller --image-size"),
        ("huge", pixels > HUGE, f"over {HUGE // 10**6} million pixels", "shrink them: decoding takes most of the time"),
        ("long", (np.maximum(width, height) > LONG * short) & (not alike),
         f"more than {LONG:g} times as long as wide, and training sees a square",
         "crop them, or use --fit pad"),
    ):  # fmt: skip
        if chosen.any():
            remarks = [f"{w}x{h}" for w, h in zip(width[chosen].tolist(), height[chosen].tolist(), strict=True)]
            message = f"{counted(int(chosen.sum()), 'image')} {text}"
            yield case.finding(kind, "warning", message, advice, case.where(chosen), remarks)


def blank(case: Case) -> Iterator[Finding]:
    """Images of one colour."""
    channels = case.source.channels
    mean, square = (case.column(name)[:, :channels].astype(np.float64) for name in ("mean", "square"))
    flat = (square - mean**2 < FLAT**2).all(1) & (case.column("thumb").std((1, 2)) < 1)
    if flat.any():
        text = f"{counted(int(flat.sum()), 'image is', 'images are')} of one colour throughout"
        yield case.finding("blank", "warning", text, "leave them out: there is nothing to learn from", case.where(flat))


def slow(case: Case) -> Iterator[Finding]:
    """Files that take long to decode."""
    seconds = case.column("seconds")
    chosen = np.flatnonzero(seconds > SLOW_S)
    if len(chosen):
        chosen = chosen[np.argsort(-seconds[chosen])]
        text = f"{counted(len(chosen), 'file takes', 'files take')} more than {SLOW_S:g} s to decode"
        advice = f"shrink them: training leaves out what takes more than {TIME_LIMIT_S:g} s"
        yield case.finding("slow", "warning", text, advice, case.where(chosen), [f"{s:.1f} s" for s in seconds[chosen]])


def classes(case: Case) -> Iterator[Finding]:
    """Classes of few images, missing in a split, or out of proportion."""
    counts = class_counts(case)
    main = "train" if "train" in case.parts else next(iter(case.parts), "")
    own = {name: count.get(main, 0) for name, count in counts.items()}
    few = {name: count for name, count in own.items() if count < FEW}
    if few:
        text = f"{counted(len(few), 'class has', 'classes have')} fewer than {FEW} images{_in(main)}"
        advice = "add images, or join classes"
        yield _named("few images", "warning", text, advice, [(n, counted(c, "image")) for n, c in few.items()])
    for split in case.parts:
        lacking = [name for name, count in counts.items() if split != main and not count.get(split)]
        if lacking:
            text = f"{counted(len(lacking), 'class is', 'classes are')} missing in {split}"
            yield Finding("missing class", "warning", text, f"nothing in {split} will tell how they do", tuple(lacking))
    present = {name: count for name, count in own.items() if count}
    if len(present) > 1:
        most, least = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
        ratio = present[most] / present[least]
        if ratio >= LOPSIDED:
            text = f"the largest class has {ratio:.0f} times the images of the smallest{_in(main)}"
            advice = "try --sampler balanced or --class-weights balanced, and look at the accuracy of each class"
            sides = [(name, counted(present[name], "image")) for name in (most, least)]
            yield _named("imbalance", "warning", text, advice, sides)


def _in(split: str) -> str:
    return "" if split in ("", "all") else f" in {split}"


def label_names(case: Case) -> Iterator[Finding]:
    """Class names that a person would take for the same."""
    alike: dict[str, list[str]] = {}
    for name in case.source.classes:
        plain = unicodedata.normalize("NFKC", name).casefold()
        alike.setdefault("".join(letter for letter in plain if letter.isalnum()) or plain, []).append(name)
    for names in alike.values():
        if len(names) > 1:
            text = f"{len(names)} class names differ only in case, spaces, punctuation or the form of letters"
            yield Finding("label names", "warning", text, "if they mean the same, join them", tuple(names))


def group_leaks(case: Case) -> Iterator[Finding]:
    """Groups (patients, say) with images on two sides."""
    groups = case.source.groups
    if groups is None or len(case.parts) < 2:
        return
    split, numbers = case.split_numbers(), groups.numpy()
    placed = np.flatnonzero(split >= 0)
    pairs = np.unique(np.stack([numbers[placed], split[placed]], 1), axis=0)
    ids, sides = np.unique(pairs[:, 0], return_counts=True)
    torn = ids[sides > 1]
    if len(torn):
        found = placed[np.isin(numbers[placed], torn)]
        found = found[np.argsort(numbers[found], kind="stable")]
        names = list(case.parts)
        text = f"{counted(len(torn), 'group has', 'groups have')} images in more than one split"
        advice = "keep each group on one side: what is learnt of it in train makes the other score too good"
        remarks = [f"group {numbers[i]}, {names[split[i]]}" for i in found.tolist()]
        yield case.finding("group leak", "error", text, advice, found, remarks)


def file_names(case: Case) -> Iterator[Finding]:
    """Names that other programs trip over."""
    found = []
    for sample in case.looks.seen.tolist():
        name = case.source.name(sample)
        if unicodedata.normalize("NFC", name) != name or not name.isprintable():
            found.append(sample)
    if found:
        text = f"{counted(len(found), 'file name')} with line breaks, control characters or split accents (NFD)"
        yield case.finding("names", "note", text, "other programs may not find them", found)


def aside(case: Case) -> Iterator[Finding]:
    """Hidden files, and links that lead back up, in a folder."""
    files = getattr(case.source, "files", None)
    if not isinstance(files, DiskFiles) or not Path(files.root).is_dir():
        return
    litter, loops = [], []
    for place, folders, names in os.walk(files.root):
        below = Path(place).relative_to(files.root)
        litter += [str(below / name) for name in [*folders, *names] if is_litter(name)]
        loops += [str(below / name) for name in folders if _leads_up(Path(place, name))]
        folders[:] = [name for name in folders if not is_litter(name)]
    if loops:
        text = f"{counted(len(loops), 'link leads', 'links lead')} back to a folder above; not followed"
        yield Finding("link loop", "note", text, "remove them", tuple(sorted(loops)))
    if litter:
        text = f"{counted(len(litter), 'hidden file or folder', 'hidden files or folders')}, passed over"
        yield Finding("hidden", "note", text, "", tuple(sorted(litter)))


def _leads_up(path: Path) -> bool:
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def numbers(case: Case) -> Iterator[Finding]:
    """Mean, deviation and sizes."""
    if not len(case.looks.seen):
        return
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in mean_and_std(case))
    scale = "in the files' own values" if case.source.deep else "on 0 to 1"
    yield Finding("statistics", "note", f"mean {mean}, deviation {std} a channel, {scale}")
    common = [f"{s['width']}x{s['height']} ({s['count']:,})" for s in sizes(case)]
    number = len(np.unique(np.stack([case.column("width"), case.column("height")], 1), axis=0))
    text = f"{counted(number, 'size')}: {', '.join(common[:3])}{', ...' if number > 3 else ''}"
    yield Finding("sizes", "note", text)


HEADER_CHECKS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    layout, trainable, suffixes, modes, orientation, dimensions, classes, label_names, group_leaks, file_names,
)  # fmt: skip
CHECKS = (*HEADER_CHECKS, cut_short, blank, slow, aside, numbers)
