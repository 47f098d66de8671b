"""The parts of an HTML page in one file: no scripts, nothing fetched, light and dark, printable.

Every text is escaped. The page's Content-Security-Policy forbids scripts and all addresses but
data: URIs of pictures, whatever a run's config or class names contain.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d232b; --soft: #5b6571; --rule: #dfe3e8;
  --tint: #f5f7f9; --line-0: #2563a8; --line-1: #c2551d; --line-2: #2b7a4b; --line-3: #8b4aa8;
  --bad: #b3262a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e4e7eb; --soft: #9ba5b1;
  --rule: #30363e; --tint: #1c2126; --line-0: #6caaf0; --line-1: #f0935f; --line-2: #6cc591;
  --line-3: #c796e0; --bad: #f07b7b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption, footer { color: var(--soft); }
.grid-of { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.grid-of.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figcaption { font-size: .87rem; margin-top: .3rem; }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; }
figure.one img { width: auto; max-width: 100%; }
svg { display: block; width: 100%; height: auto; background: var(--tint); border-radius: 4px; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--rule); } svg .mark { stroke: var(--soft); stroke-dasharray: 3 3; }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg polyline.thin { stroke-width: .8; opacity: .45; } svg polyline.dots { stroke-width: 1.2; }
LINES
.key { display: inline-block; width: 1rem; height: .22rem; vertical-align: middle;
  margin: 0 .35rem 0 .8rem; border-radius: 2px; } .key:first-child { margin-left: 0; }
.key.thin { opacity: .45; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.4rem .3rem 0;
  border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; }
td.n { font-variant-numeric: tabular-nums; }
td code { overflow-wrap: anywhere; }
code, pre { font: .88em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--tint); padding: .8rem 1rem; border-radius: 4px; overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.bar { display: inline-block; height: .6rem; background: var(--line-0); border-radius: 2px; }
.note { border-left: 3px solid var(--line-1); padding-left: .8rem; }
details { margin-top: 1rem; } summary { cursor: pointer; color: var(--soft); }
footer { margin-top: 3rem; padding-top: .8rem; border-top: 1px solid var(--rule);
  font-size: .87rem; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; } }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --tint: #fff;
  --line-0: #2563a8; --line-1: #c2551d; --line-2: #2b7a4b; --line-3: #8b4aa8; --bad: #b3262a; }
  body { max-width: none; padding: 0; font-size: 10.5pt; } h2, h3 { break-after: avoid; }
  details { display: none; } tr, figure { break-inside: avoid; }
  .grid-of, .grid-of.wide { grid-template-columns: repeat(2, 1fr); }
  figure.one img { max-height: 9cm; } }
"""
_LINES = "\n".join(
    f"svg polyline.line-{i} {{ stroke: var(--line-{i}); }} svg circle.line-{i} "
    f"{{ fill: var(--line-{i}); }} .key.line-{i} {{ background: var(--line-{i}); }}"
    for i in range(4)
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# The first bytes of a whole picture, its last ones, and its media type.
_PICTURES = (
    (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82", "image/png"),
    (b"GIF8", b";", "image/gif"),
)


class Section(NamedTuple):
    """A part of a page: its heading, and its content as HTML."""

    title: str
    content: str


def page(title: str, about: str, sections: Iterable[Section], *, footer: str) -> str:
    """A whole page; sections without content are left out.

    Args:
      title: of the page.
      about: a sentence below it.
      sections: its parts.
      footer: a sentence at its end.
    """
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE.replace('LINES', _LINES)}</style>\n</head>\n<body>",
        f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(about)}</p>',
        *(f"<h2>{escape(s.title)}</h2>\n{s.content}" for s in sections if s.content),
        f"<footer>{escape(footer)}</footer>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph; `kind` is "soft" or "note"."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def facts(values: Mapping[str, Any]) -> str:
    """Names and values in two columns, without those that are None or ""."""
    rows = [
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in values.items()
        if value is not None and value != ""
    ]
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, code: bool = False) -> str:
    """A table of texts and numbers; "" without rows.

    Args:
      head: of the columns.
      rows: their cells.
      code: whether cells are in a typewriter's letters.
    """

    def cell(value: Any) -> str:
        text = escape(str(value))
        return f'<td class="n">{f"<code>{text}</code>" if code and text else text}</td>'

    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    if not body:
        return ""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def counts(values: Mapping[str, int]) -> str:
    """A table of counts with a bar for each."""
    most = max([*values.values(), 1])
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{count}</td><td style="width:14rem">'
        f'<span class="bar" style="width:{100 * count / most:.1f}%"></span></td></tr>'
        for name, count in values.items()
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>' if rows else ""


def chart(svg: str, title: str, legend: Sequence[tuple[str, int, str]] = ()) -> str:
    """A figure of curves.

    Args:
      svg: of `svg_curves.curves`.
      title: below it.
      legend: (name, colour, style) of the lines, where there are several.
    """
    keys = "".join(
        f'<span class="key line-{colour} {escape(style)}"></span>{escape(name)}'
        for name, colour, style in legend
    )
    below = f"{escape(title)}{': ' if keys else ''}{keys}"
    return f"<figure>{svg}<figcaption>{below}</figcaption></figure>"


def picture(content: bytes, caption: str, *, alone: bool = False) -> str:
    """A figure of a PNG or GIF file's bytes; a sentence in its place if they are not whole.

    Args:
      content: of the file.
      caption: below it.
      alone: whether it keeps its own size, rather than that of a grid's column.
    """
    found = [kind for first, last, kind in _PICTURES if _framed(content, first, last)]
    if not found:
        return paragraph(f"{caption}: this picture can't be read.", kind="note")
    data = base64.b64encode(content).decode()
    return (
        f'<figure{" class=one" if alone else ""}><img alt="{escape(caption)}" '
        f'src="data:{found[0]};base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def grid(figures: Iterable[str], *, wide: bool = False) -> str:
    """Figures in columns, as many as fit; "" without any."""
    content = "".join(figures)
    return f'<div class="grid-of{" wide" if wide else ""}">{content}</div>' if content else ""


def details(summary: str, content: str) -> str:
    """Content that a reader unfolds, left out in print; "" without any."""
    if not content:
        return ""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def listing(text: str) -> str:
    """Lines as they are."""
    return f"<pre>{escape(text)}</pre>"


def _framed(content: bytes, first: bytes, last: bytes) -> bool:
    return content.startswith(first) and content.endswith(last)
