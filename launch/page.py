"""The pieces of an HTML page: text made safe, numbers, paragraphs, tables, samples side by side.

Functions of values that return HTML. Every text of a user's or a model's goes through `escape`.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

__all__ = [
    "clean",
    "completion",
    "document",
    "duration",
    "escape",
    "number",
    "prose",
    "samples",
    "table",
]

_DASH, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
_LONGEST = 12_000
"""Characters of one completion that a page shows."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_TAG = re.compile(r"(</?(?:think|answer)>)")
_NUMBER = re.compile(r"[-+\u2212]?\d[\d.,]*(e[-+\u2212]?\d+)?%?|[-\u2013]?")
_INTERVAL = re.compile(r"([-+]?[\d.]+%?) (\[[-+]?[\d.]+%?, [-+]?[\d.]+%?\])")


def clean(text: object) -> str:
    r"""Return ``text`` with what no page may hold (control characters, half characters) replaced.

    >>> clean("a\x00b\ud800c") == "a\ufffdb\ufffdc"
    True
    """
    return _UNFIT.sub("\ufffd", str(text))


def escape(text: object) -> str:
    """Return ``text`` as HTML that shows just this text, in content and in attributes alike.

    >>> escape('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(clean(text), quote=True)


def number(value: float) -> str:
    """Return a number for reading: three or four figures, thousands apart, never a long tail.

    >>> [number(x) for x in (0.94123, 28.72, 1234567, 1234.5, 3e-4, 0.0, 2.0)]
    ['0.941', '28.7', '1,234,567', '1,234', '3e-4', '0', '2']
    """
    if math.isnan(value):
        return _DASH
    sign, size = (_MINUS if value < 0 else ""), abs(value)
    if math.isinf(size):
        return sign + "\N{INFINITY}"
    if size != 0 and not 1e-3 <= size < 1e12:
        mantissa, exponent = f"{size:.2e}".split("e")
        return f"{sign}{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    decimals = 0 if size == int(size) or size >= 1000 else 1 if size >= 100 else None
    return sign + (f"{size:.3g}" if decimals is None else f"{size:,.{decimals}f}")


def duration(seconds: float) -> str:
    """Return a time for reading.

    >>> [duration(x) for x in (0.0123, 3.21, 59.7, 252, 7505)]
    ['12 ms', '3.2 s', '60 s', '4 min 12 s', '2 h 05 min']
    """
    if not math.isfinite(seconds):
        return _DASH
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def prose(text: str) -> str:
    r"""Return paragraphs, ``- `` lists, ``# `` headings, ``**bold**``, ``*stress*``, `` `code` ``.

    >>> prose("It **rose**.\n\n- one\n- `<two>`")
    '<p>It <strong>rose</strong>.</p>\n<ul><li>one</li><li><code>&lt;two&gt;</code></li></ul>'
    """
    return "\n".join(_block(block) for block in re.split(r"\n\s*\n", clean(text)) if block.strip())


def _block(block: str) -> str:
    lines = [line for line in block.strip().splitlines() if line.strip()]
    bullets = [re.match(r"\s*[-*] +(.*)", line) for line in lines]
    if bullets[0]:
        entries: list[str] = []
        for line, bullet in zip(lines, bullets, strict=True):
            if bullet:
                entries.append(bullet[1])
            else:  # the bullet before goes on
                entries[-1] += " " + line.strip()
        return "<ul>" + "".join(f"<li>{_inline(entry)}</li>" for entry in entries) + "</ul>"
    heading = re.match(r"#{1,6} +(.*)", lines[0])
    if heading:
        rest = _block("\n".join(lines[1:])) if len(lines) > 1 else ""
        return f'<p class="heading">{_inline(heading[1])}</p>{rest}'
    return f"<p>{_inline(' '.join(line.strip() for line in lines))}</p>"


def _inline(text: str) -> str:
    parts = re.split(r"`([^`]+)`", text)
    for i, part in enumerate(parts):
        part = escape(part)
        if i % 2:
            parts[i] = f"<code>{part}</code>"
        else:
            part = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", part)
            parts[i] = re.sub(r"(?<![*\w])\*([^*\s][^*]*)\*(?![*\w])", r"<em>\1</em>", part)
    return "".join(parts)


def table(rows: Sequence[Mapping[str, object]], *, caption: str) -> str:
    """Return rows as a table; its columns are the keys in order of appearance.

    A cell is text, a number, or ``{"mean": ..., "low": ..., "high": ...}``; null is a dash.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return '<p class="message">This table has no rows.</p>'
    right = {key for key in columns if all(_numeric(row.get(key)) for row in rows)}
    head = "".join(f'<th scope="col"{_right(key, right)}>{escape(key)}</th>' for key in columns)
    body = []
    for row in rows:
        cells = [f"<td{_right(key, right)}>{_cell(row.get(key))}</td>" for key in columns]
        if columns[0] not in right:
            cells[0] = f'<th scope="row">{_cell(row.get(columns[0]))}</th>'
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _right(key: str, right: set[str]) -> str:
    return ' class="number"' if key in right else ""


def _numeric(value: object) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value) is not None or _INTERVAL.fullmatch(value) is not None
    return value is None or isinstance(value, int | float | Mapping)


def _cell(value: object) -> str:
    if value is None:
        return _DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _finite_number(value)
    if isinstance(value, Mapping) and {"mean", "low", "high"} <= value.keys():
        mean, low, high = (_cell(value[key]) for key in ("mean", "low", "high"))
        return f'{mean} <span class="interval">[{low}, {high}]</span>'
    if isinstance(value, Mapping | list):
        return f"<code>{escape(json.dumps(value, ensure_ascii=False, default=str))}</code>"
    interval = _INTERVAL.fullmatch(str(value))
    if interval:
        return f'{interval[1]} <span class="interval">{interval[2]}</span>'
    return escape(value)


def _finite_number(value: float) -> str:
    try:
        return number(value)
    except OverflowError:  # an integer beyond float64
        return escape(str(value)[:20] + "…")


def completion(text: str) -> str:
    """Return a model's text as HTML, with its think and answer elements set apart.

    >>> completion("<think>1+1")
    '<span class="tag">&lt;think&gt;</span><span class="think">1+1</span>'
    """
    left_out = len(text) - _LONGEST
    inside, parts = "", []
    for part in _TAG.split(text[:_LONGEST]):
        if _TAG.fullmatch(part):
            inside = "" if part[1] == "/" else part[1:-1]
            parts.append(f'<span class="tag">{escape(part)}</span>')
        elif part:
            parts.append(
                f'<span class="{inside}">{escape(part)}</span>' if inside else escape(part)
            )
    if left_out > 0:
        parts.append(f'<span class="message"> … and {left_out:,} characters more</span>')
    return "".join(parts)


def samples(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows of texts side by side.

    ``prompt`` and ``answer`` head a row; numbers become chips; every other text is a column, as is
    ``{"text": ..., "reward": ..., "correct": ...}``, whose other entries become its chips.
    """
    return "".join(_sample(row) for row in rows) or '<p class="message">No samples.</p>'


def _sample(row: Mapping[str, object]) -> str:
    chips, columns = [], []
    for key, value in row.items():
        if key == "prompt":
            continue
        if key == "answer":
            chips.append(_chip("answer", value))
        elif isinstance(value, Mapping) and "text" in value:
            columns.append((key, value))
        elif isinstance(value, str):
            columns.append((key, {"text": value}))
        else:
            chips.append(_chip(key, value))
    head = f'<p class="prompt">{completion(_words(row["prompt"]))}</p>' if "prompt" in row else ""
    texts = "".join(_column(key, value) for key, value in columns)
    return (
        f'<article class="samples"><header>{head}<p class="chips">{"".join(chips)}</p></header>'
        f'<div class="side">{texts}</div></article>'
    )


def _column(key: str, value: Mapping[str, object]) -> str:
    chips = "".join(_chip(name, entry) for name, entry in value.items() if name != "text")
    text = completion(_words(value["text"])) or "<em>(empty)</em>"
    return (
        f'<div class="sample"><h4>{escape(key)}</h4><div class="text">{text}</div>'
        f'<p class="chips">{chips}</p></div>'
    )


def _chip(key: str, value: object) -> str:
    if key == "correct" and isinstance(value, bool):
        mark, word = ("✓", "right") if value else ("✗", "wrong")
        return f'<span class="chip {word}">{mark} {word}</span>'
    return f'<span class="chip">{escape(key)} <b>{_cell(value)}</b></span>'


def _words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def document(*, title: str, contents: Sequence[tuple[int, str, str]], body: str) -> str:
    """Return a whole page: self-contained, and forbidden to fetch or run anything.

    Args:
        title: Plain text.
        contents: ``(depth, id, heading)`` of each section.
        body: HTML of the main part.
    """
    links = "".join(
        f'<li class="depth-{depth}"><a href="#{escape(anchor)}">{escape(heading)}</a></li>'
        for depth, anchor, heading in contents
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="monro">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{files("launch").joinpath("report.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<div class="page">
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main>
{body}
</main>
</div>
</body>
</html>
"""
