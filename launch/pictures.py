"""Puts pictures into a page: an SVG of matplotlib's inline, anything else as a data URI.

Inline, a figure's text can be selected and read aloud, and its colours follow the page's scheme.
A picture may come from anyone, so what could run or fetch something never gets into the page.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from xml.etree import ElementTree

from launch.page import clean, escape
from launch.palette import INK, MUTED, PALETTE, RULE

__all__ = ["picture"]

_TYPES = {
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
_KNOWN = re.compile(
    "svg|g|defs|path|use|text|tspan|clipPath|rect|line|circle|ellipse|poly(line|gon)|image|title|desc"
)
_DROPPED = frozenset({"metadata", "style"})
_XML = "{http://www.w3.org/XML/1998/namespace}"


def picture(source: Path | str, *, label: str, prefix: str) -> str:
    """Return a picture as HTML that asks for nothing outside itself.

    Args:
        source: A file, or the text of an SVG.
        label: What the picture shows, for those who do not see it; plain text.
        prefix: Makes the ids of this picture differ from all others on the page.

    Raises:
        ValueError: The file is of a kind that pages do not show.
        OSError: The file cannot be read.
    """
    if isinstance(source, Path):
        kind = _TYPES.get(source.suffix.lower())
        if kind is None:
            known = ", ".join(_TYPES)
            raise ValueError(f"{source.name} is no picture that a page can show: use {known}")
        data = source.read_bytes()
    else:
        kind, data = "image/svg+xml", source.encode()
    if kind == "image/svg+xml":
        inline = _inline(data, label, prefix)
        if inline is not None:
            return inline
    encoded = base64.b64encode(data).decode()
    return f'<img class="plate" src="data:{kind};base64,{encoded}" alt="{escape(label)}">'


def _inline(data: bytes, label: str, prefix: str) -> str | None:
    """Return a plain static SVG as an element of the page; None for any other."""
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError):
        return None
    if _local(root.tag) != "svg" or "viewBox" not in root.attrib or not _made_by_matplotlib(root):
        return None
    used = set(re.findall(rb"(?:url\(#|href=[\"']#)([\w.-]+)", data))
    for element in root.iter():
        if not _clean(element, {name.decode() for name in used}, prefix):
            return None
    left, top, width, height = (root.attrib["viewBox"].replace(",", " ").split() + ["0"] * 4)[:4]
    themed = any(colour.encode() in data for colour in (INK, MUTED, RULE))
    root.attrib = {
        "viewBox": f"{left} {top} {width} {height}",
        "role": "img",
        "aria-label": clean(label),
        "class": "drawn" if themed else "drawn plate",
        "style": f"--width:{_size(width):g}px;--ratio:{_size(width) / _size(height):.3f}",
    }
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"(?<=\S)\s*\n\s*", " ", text)
    if themed:
        text = re.sub(r"(?<=: )#[0-9a-f]{6}\b", _variable, text)
    return text


def _made_by_matplotlib(root: ElementTree.Element) -> bool:
    """Style sheets reach the whole page; matplotlib's one rule stands in the page's own."""
    sheets = [e.text or "" for e in root.iter() if _local(e.tag) == "style"]
    return all(re.fullmatch(r"\s*\*\{[a-z:; -]*\}\s*", sheet) for sheet in sheets)


def _clean(element: ElementTree.Element, used: set[str], prefix: str) -> bool:
    """Make one element fit for the page; return False for one that is not known to be harmless."""
    for child in list(element):
        if _local(child.tag) in _DROPPED:
            element.remove(child)
    element.tag = _local(element.tag)
    if not _KNOWN.fullmatch(element.tag):
        return False
    kept = {}
    for name, value in element.attrib.items():
        local = _local(name)
        if local == "id":
            if value in used:
                kept["id"] = prefix + value
        elif local == "href":
            if value.startswith("#"):
                kept["href"] = f"#{prefix}{value[1:]}"
            elif value.startswith("data:image/"):
                kept["href"] = value
            else:
                return False
        elif local.lower().startswith("on") or name.startswith(_XML):
            continue
        elif re.search(r"url\(\s*[^#\s]|@import|expression\(", value):
            return False
        else:
            kept[local] = value.replace("url(#", f"url(#{prefix}")
    element.attrib = kept
    return True


def _variable(found: re.Match[str]) -> str:
    name = PALETTE.get(found[0])
    return f"var({name},{found[0]})" if name else found[0]


def _local(tag: object) -> str:
    return tag.rsplit("}", 1)[-1] if isinstance(tag, str) else ""


def _size(text: str) -> float:
    try:
        return max(float(text), 1.0)
    except ValueError:
        return 1.0
