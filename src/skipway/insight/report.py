"""What `see` found as one HTML file: nothing is fetched, pictures are inside, light and dark."""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from skipway.insight.experiment import Reading

WORDS = {"agrees": "as the paper says", "disagrees": "not as the paper says", "open": "cannot be said"}
STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c1e21;--soft:#5d6570;--line:#dfe3e8;--card:#f6f7f9;--good:#00674c;
--bad:#a03d00;--accent:#0060a0}
@media(prefers-color-scheme:dark){:root{--page:#15171a;--ink:#e6e8eb;--soft:#a3abb5;--line:#333941;--card:#1e2226;
--good:#5fd0aa;--bad:#ff9d66;--accent:#7ab8ec}}
body{background:var(--page);color:var(--ink);font:16px/1.55 system-ui,sans-serif;max-width:880px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin:0;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:0}.soft{color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.1rem 1.3rem;margin:1.4rem 0}
section img{width:100%;height:auto;background:#fff;border-radius:6px;margin:.8rem 0}
.verdict{font-weight:600}.agrees{color:var(--good)}.disagrees{color:var(--bad)}.open{color:var(--soft)}
blockquote{margin:.6rem 0;padding-left:.9rem;border-left:3px solid var(--line);color:var(--soft)}
pre{overflow:auto;font:.82rem/1.45 ui-monospace,monospace;background:var(--page);border:1px solid var(--line);
border-radius:6px;padding:.7rem}nav a{margin-right:.9rem}a{color:var(--accent)}ul{padding-left:1.2rem}
"""


@dataclass(frozen=True)
class Section:
    """One experiment on the page: who claims what, what is seen, the picture as SVG text, code that makes it again."""

    name: str
    title: str
    paper: str
    claim: str
    reading: Reading
    picture: str
    code: str
    seconds: float


def page(title: str, facts: str, sections: Sequence[Section], left_out: Mapping[str, str]) -> str:
    """The whole file."""
    safe = html.escape(title)
    links = "".join(f'<a href="#{s.name}">{html.escape(s.title)}</a> ' for s in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{safe}</title><style>{STYLE}</style></head><body><header><h1>{safe}</h1>"
        f'<p class="soft">{html.escape(facts)}</p><nav aria-label="experiments">{links}</nav></header><main>'
        f"{sections_html(sections, left_out)}</main></body></html>\n"
    )


def sections_html(sections: Sequence[Section], left_out: Mapping[str, str]) -> str:
    """The experiments, one below the other, and what was left out."""
    return "".join([*(part for section in sections for part in _section(section)), *_left_out(left_out)])


def _section(section: Section) -> Iterator[str]:
    said = " ".join(section.reading.sentences)
    picture = base64.b64encode(section.picture.encode()).decode()
    verdict = section.reading.verdict
    yield f'<section id="{section.name}"><h2>{html.escape(section.title)}</h2>'
    yield f"<blockquote>{html.escape(section.claim)} <em>{html.escape(section.paper)}</em></blockquote>"
    yield f'<p class="verdict {verdict}">This network: {WORDS[verdict]}</p><ul>'
    yield "".join(f"<li>{html.escape(sentence)}</li>" for sentence in section.reading.sentences)
    yield f'</ul><img alt="{html.escape(said, quote=True)}" src="data:image/svg+xml;base64,{picture}">'
    yield f'<details><summary class="soft">Python that makes it again ({section.seconds:.1f} s)</summary>'
    yield f"<pre>{html.escape(section.code)}</pre></details></section>"


def _left_out(left_out: Mapping[str, str]) -> Iterator[str]:
    if left_out:
        rows = "".join(f"<li>{html.escape(name)}: {html.escape(why)}</li>" for name, why in left_out.items())
        yield f'<section><h2>Left out</h2><ul class="soft">{rows}</ul></section>'
