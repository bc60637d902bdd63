"""A diagnosis as one HTML file: nothing is fetched, pictures are inside, light and dark.

Everything that comes from the data (names, labels) is escaped. Pictures are read as the data is: in bounded processes.
"""

import base64
import html
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from skipway.cache import written_beside
from skipway.data.doctor.case import Finding, counted, shown
from skipway.data.doctor.examine import Diagnosis
from skipway.data.pool import Overrun, Pool
from skipway.data.source import Source
from skipway.errors import InputError, ReadError

GROUPS, MEMBERS, SINGLE, FILES = 24, 4, 24, 200  # shown of a finding: groups, pictures of each, pictures, names
SIDE = 112  # pixels of a picture's longer side
CLASSES = 60  # bars of classes
STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c1e21;--soft:#667;--line:#dde;--card:#f6f7f9;--bar:#4a78c2;
--bar2:#e0a030;--bar3:#5aa469;--error:#b3261e;--warning:#9a6700;--note:#556}
@media(prefers-color-scheme:dark){:root{--page:#15171a;--ink:#e6e8eb;--soft:#9aa3ad;--line:#333941;--card:#1e2226;
--bar:#7aa5ea;--bar2:#e5b65c;--bar3:#86c994;--error:#ff8a80;--warning:#e5b65c;--note:#9aa3ad}}
body{background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:1060px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}.soft{color:var(--soft)}
section.finding{background:var(--card);border-left:4px solid var(--note);border-radius:6px;padding:.6rem 1rem;
margin:.7rem 0}
section.error{border-color:var(--error)}section.warning{border-color:var(--warning)}
.severity{font-weight:600;text-transform:uppercase;font-size:.75rem;letter-spacing:.05em;margin-right:.6rem}
.error .severity{color:var(--error)}.warning .severity{color:var(--warning)}.note .severity{color:var(--note)}
.pictures{display:flex;flex-wrap:wrap;gap:.8rem;margin:.6rem 0}
.group{display:flex;gap:4px;border:1px solid var(--line);border-radius:6px;padding:6px;background:var(--page)}
figure{margin:0;width:116px}figure img{max-width:112px;max-height:112px;min-width:64px;display:block;
image-rendering:auto}
figcaption{font-size:.7rem;color:var(--soft);overflow-wrap:anywhere;line-height:1.25;margin-top:3px}
details{margin:.3rem 0}ul.files{font:.8rem/1.5 ui-monospace,monospace;overflow-wrap:anywhere;padding-left:1.2rem}
table{border-collapse:collapse;width:100%}td{padding:2px 8px 2px 0;vertical-align:middle;font-size:.85rem}
td.name{max-width:16rem;overflow-wrap:anywhere}td.bars{width:60%}
.bar{height:12px;display:inline-block;background:var(--bar)}.bar.b1{background:var(--bar2)}
.bar.b2{background:var(--bar3)}.bar.key{width:12px;margin:0 .4em 0 .8em}
"""


def check_place(path: Path) -> None:
    """Raise InputError where a report may not be written: over anything, or where there is no folder."""
    if not path.parent.is_dir():
        raise InputError(f"no such folder: {path.parent}")
    if path.exists():
        raise InputError(f"{path} is there already; choose another name for the report")


def write_report(found: Diagnosis, path: Path) -> None:
    """Write the report into a new file. Raises InputError where it is there already or cannot be written."""
    check_place(path)
    text = "".join(_page(found, _pictures(found.source, _wanted(found.findings))))
    try:
        with written_beside(path) as beside:
            beside.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"the report cannot be written to {path}: {error.strerror or error}") from error


def _page(found: Diagnosis, pictures: dict[int, str]) -> Iterator[str]:
    errors, warnings = found.count("error"), found.count("warning")
    said = f"{counted(errors, 'error')}, {counted(warnings, 'warning')}, {counted(found.count('note'), 'note')}"
    title = f"skipway doctor: {_safe(found.path)}"
    yield '<!doctype html><html lang="en"><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    yield f'<p class="soft">{counted(found.statistics["images"], "image")}: {said}</p>'
    for finding in found.findings:
        yield from _finding(finding, pictures)
    yield from _class_bars(found.statistics["classes"])
    yield from _size_bars(found.statistics["side_histogram"])
    yield "</html>\n"


def _finding(finding: Finding, pictures: dict[int, str]) -> Iterator[str]:
    yield f'<section class="finding {finding.severity}"><span class="severity">{finding.severity}</span>'
    yield f"<strong>{_safe(finding.message)}</strong>"
    if finding.advice:
        yield f'<div class="soft">{_safe(finding.advice)}</div>'
    remarks = finding.remarks or ("",) * len(finding.files)
    groups = [group[:MEMBERS] for group in finding.groups[:GROUPS]]
    groups = groups or [(place,) for place in range(min(len(finding.samples), SINGLE))]
    drawn = [group for group in groups if any(finding.samples[place] in pictures for place in group)]
    if drawn:
        yield '<div class="pictures">'
        for group in drawn:
            yield '<div class="group">'
            for place in group:
                picture = pictures.get(finding.samples[place], "")
                yield f'<figure><img alt="" src="{picture}">' if picture else "<figure>"
                yield f"<figcaption>{_safe(finding.files[place])}<br>{_safe(remarks[place])}</figcaption></figure>"
            yield "</div>"
        yield "</div>"
    if finding.files:
        is_open = "" if drawn or len(finding.files) > 20 else " open"
        yield f'<details{is_open}><summary class="soft">{counted(len(finding.files), "name")}</summary>'
        yield '<ul class="files">'
        for name, remark in list(zip(finding.files, remarks, strict=True))[:FILES]:
            yield f"<li>{_safe(name)}{f' <span class=soft>{_safe(remark)}</span>' if remark else ''}</li>"
        if len(finding.files) > FILES:
            yield f"<li>and {len(finding.files) - FILES:,} more: --json names all</li>"
        yield "</ul></details>"
    yield "</section>"


def _class_bars(classes: dict[str, dict[str, int]]) -> Iterator[str]:
    splits = list(dict.fromkeys(split for counts in classes.values() for split in counts))
    most = max([1, *(sum(counts.values()) for counts in classes.values())])
    legend = "".join(f'<span class="bar key b{place % 3}"></span>{_safe(split)}' for place, split in enumerate(splits))
    yield f'<h2>Images of each class</h2><p class="soft">{legend}</p><table>'
    for name, counts in list(classes.items())[:CLASSES]:
        bars = "".join(
            f'<span class="bar b{place % 3}" title="{_safe(split)} {counts.get(split, 0)}" '
            f'style="width:{95 * counts.get(split, 0) / most:.2f}%"></span>'
            for place, split in enumerate(splits)
        )
        told = " + ".join(f"{counts.get(split, 0):,}" for split in splits)
        yield f'<tr><td class="name">{_safe(name)}</td><td class="bars">{bars}</td><td>{told}</td></tr>'
    if len(classes) > CLASSES:
        yield f"<tr><td>and {len(classes) - CLASSES:,} more</td></tr>"
    yield "</table>"


def _size_bars(histogram: dict[str, list[float]]) -> Iterator[str]:
    edges, counts = histogram["edges"], histogram["counts"]
    yield "<h2>Shorter side of the images</h2><table>"
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            bar = f'<span class="bar" style="width:{95 * count / max(counts):.2f}%"></span>'
            name = f"{low:.0f} to {high:.0f} pixels"
            yield f'<tr><td class="name">{name}</td><td class="bars">{bar}</td><td>{count:,}</td></tr>'
    yield "</table>"


def _safe(text: str) -> str:
    return html.escape(shown(text))


def _wanted(findings: Iterable[Finding]) -> list[int]:
    """The samples to draw."""
    wanted: dict[int, None] = {}
    for finding in findings:
        places = [place for group in finding.groups[:GROUPS] for place in group[:MEMBERS]] or range(SINGLE)
        wanted.update((finding.samples[place], None) for place in places if place < len(finding.samples))
    return [sample for sample in wanted if sample >= 0]


def _pictures(source: Source, samples: list[int]) -> dict[int, str]:
    """sample -> a JPEG as a data URI, of those that can be read."""
    with Pool(_Draw(source), workers=1 if source.images is None else 0) as pool:
        drawn = dict(zip(samples, (result for [result] in pool.map([sample] for sample in samples)), strict=True))
    return {sample: uri for sample, uri in drawn.items() if not isinstance(uri, Overrun) and uri}


@dataclass(frozen=True)
class _Draw:
    """A worker's job: sample -> its picture, "" where it cannot be read."""

    source: Source

    def __call__(self, sample: int) -> str:
        try:
            image = self.source.read(sample, SIDE)
        except ReadError:
            return ""
        scale = SIDE / max(image.shape[-2:])
        if scale < 1:
            size = [max(round(side * scale), 1) for side in image.shape[-2:]]
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        buffer = io.BytesIO()
        Image.fromarray(_as_bytes(image)).save(buffer, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _as_bytes(image: Tensor) -> np.ndarray:
    """(C, H, W) -> (H, W) or (H, W, 3) uint8; deep values from their own least to most."""
    if image.dtype != torch.uint8:
        image = torch.nan_to_num(image.float())
        image = (image - image.amin()) * (255 / (image.amax() - image.amin()).clamp(min=1e-12))
    pixels = image.round().clamp(0, 255).to(torch.uint8) if image.dtype != torch.uint8 else image
    return pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy()
