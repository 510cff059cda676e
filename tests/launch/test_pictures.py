import base64
from pathlib import Path

import pytest

from launch.pictures import picture

DRAWN = """<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x">
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
 width="72pt" height="36pt" viewBox="0 0 72 36">
<metadata>m</metadata><defs><style type="text/css">*{stroke-linejoin: round}</style></defs>
<g id="figure_1"><defs><path id="m1" d="M 0 0"/></defs>
<use xlink:href="#m1" style="fill: #68707d; clip-path: url(#c1)"/>
<clipPath id="c1"><rect/></clipPath><text onclick="x()">a &lt; b</text></g></svg>"""


def test_drawn_svg_stands_inline_with_ids_of_its_own_and_colours_of_the_page() -> None:
    shown = picture(DRAWN, label='the "loss" & more', prefix="p1-")
    assert shown.startswith("<svg")
    assert 'aria-label="the &quot;loss&quot; &amp; more"' in shown
    assert 'id="p1-m1"' in shown
    assert 'href="#p1-m1"' in shown
    assert "url(#p1-c1)" in shown
    assert "fill: var(--muted,#68707d)" in shown
    assert "a &lt; b" in shown
    for gone in ("figure_1", "onclick", "<style", "metadata", "http", "DOCTYPE", "plate"):
        assert gone not in shown


def test_figure_in_other_colours_gets_a_plate() -> None:
    shown = picture(DRAWN.replace("#68707d", "#112233"), label="x", prefix="")
    assert 'class="drawn plate"' in shown
    assert "var(" not in shown


@pytest.mark.parametrize(
    "harm",
    [
        "<script>x()</script>",
        "<foreignObject/>",
        '<a href="#m1"/>',
        '<image href="https://example.org/x.png"/>',
        '<use href="other.svg#m"/>',
        '<rect style="fill: url(https://example.org/x)"/>',
        "<style>@import 'https://example.org'</style>",
        "<style>body {display: none}</style>",
        "</svg>broken",
    ],
)
def test_svg_that_may_run_or_fetch_becomes_an_inert_image(harm: str) -> None:
    text = DRAWN.replace("<metadata>m</metadata>", harm)
    shown = picture(text, label="x", prefix="")
    encoded = base64.b64encode(text.encode()).decode()
    assert shown == f'<img class="plate" src="data:image/svg+xml;base64,{encoded}" alt="x">'


def test_png_is_a_data_uri(tmp_path: Path) -> None:
    path = tmp_path / "a.PNG"
    path.write_bytes(b"\x89PNG")
    shown = picture(path, label="<x>", prefix="")
    assert shown == '<img class="plate" src="data:image/png;base64,iVBORw==" alt="&lt;x&gt;">'


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.html is no picture that a page can show: use \.svg"):
        picture(tmp_path / "a.html", label="", prefix="")
