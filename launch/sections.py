"""The sections of a report: what a run shows, its curves, its time, its config.

Functions of a `RunRecord` that return HTML; `Layout` numbers their headings and pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from launch import page
from launch.page import duration, escape, number
from launch.pictures import picture
from launch.records import RunRecord, flat_config

if TYPE_CHECKING:
    from launch.curves import Line

__all__ = [
    "Layout",
    "chart",
    "charts",
    "config",
    "facts",
    "fold",
    "item",
    "last_figures",
    "message",
    "problems",
    "samples",
    "seconds_of",
    "stage_title",
    "story",
    "time_budget",
    "written",
]

Record = Mapping[str, object]
_MOST_SAMPLES = 8


class Layout:
    """Numbers what a page holds: the anchors of its headings, the prefixes of its pictures' ids."""

    def __init__(self) -> None:
        self.contents: list[tuple[int, str, str]] = []
        self._pictures = 0

    def heading(self, depth: int, text: str) -> str:
        """Return a heading of level ``depth`` and enter it in the contents."""
        anchor = f"s{len(self.contents) + 1}"
        self.contents.append((depth, anchor, page.clean(text)))
        return f'<h{depth} id="{anchor}">{escape(text)}</h{depth}>'

    def picture(self, source: Path | str, label: str) -> str:
        """Return a picture as HTML; one that cannot be shown, as a message."""
        self._pictures += 1
        try:
            return picture(source, label=label, prefix=f"p{self._pictures}-")
        except OSError as error:
            reason = error.strerror or str(error)
        except ValueError as error:
            reason = str(error)
        where = f"{source.name}: " if isinstance(source, Path) else ""
        return message(f"This figure cannot be shown: {where}{reason}.")


def message(text: str) -> str:
    """Return a remark of the report's own."""
    return f'<p class="message">{escape(text)}</p>'


def fold(summary: str, inside: str) -> str:
    """Return HTML that opens when its summary is pressed."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def problems(run: RunRecord) -> Iterator[str]:
    """Say what could not be read."""
    if run.problems:
        entries = "".join(f"<li>{escape(problem)}</li>" for problem in run.problems)
        yield f'<ul class="problems" role="note">{entries}</ul>'


def stage_title(run: RunRecord) -> str:
    """Return a stage's name for reading.

    >>> stage_title(RunRecord(folder=Path("stages/1-cold-start")))
    'cold start'
    """
    return run.folder.name.lstrip("0123456789").strip("-_ ").replace("-", " ") or run.folder.name


def story(layout: Layout, run: RunRecord, *, depth: int) -> Iterator[str]:
    """Lay out the run's items in order; figures that follow each other share a grid."""
    for is_figure, group in groupby(run.items, key=lambda shown: shown.get("kind") == "figure"):
        if is_figure:
            figures = [
                f'<figure><figcaption><span class="title">{escape(shown.get("name", "figure"))}'
                f"</span></figcaption>{item(layout, run, shown)}</figure>"
                for shown in group
            ]
            yield f'<div class="figures">{"".join(figures)}</div>'
        else:
            for shown in group:
                heading = layout.heading(depth, str(shown.get("name") or shown.get("kind")))
                yield f"<section>{heading}{item(layout, run, shown)}</section>"


def item(layout: Layout, run: RunRecord, shown: Record) -> str:
    """Return one item as HTML, without a heading."""
    kind, name, rows = shown.get("kind"), str(shown.get("name", "")), shown.get("rows")
    given = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    if kind == "figure":
        return _file(layout, run, shown)
    if kind == "note":
        return f'<div class="prose">{page.prose(str(shown.get("text", "")))}</div>'
    if kind == "table":
        return page.table(given, caption=name)
    if kind == "samples":
        return page.samples(given)
    return message(f"An item of kind {kind!r}, which this version does not show.")


def _file(layout: Layout, run: RunRecord, shown: Record) -> str:
    """Return the picture of a figure item; only files inside the run folder are shown."""
    file, name = shown.get("file"), str(shown.get("name", "figure"))
    if not isinstance(file, str) or not file:
        return message(f"The figure {name} names no file.")
    path = run.folder / file
    if not path.resolve().is_relative_to(run.folder.resolve()):
        return message(f"The figure {name} lies outside the run folder: {file}.")
    return layout.picture(path, name)


def samples(layout: Layout, run: RunRecord, *, depth: int) -> Iterator[str]:
    """Show the first and the last texts that the run sampled."""
    if run.samples:
        rows = run.samples[:_MOST_SAMPLES]
        steps = [step for step in (row.get("step") for row in rows) if isinstance(step, int)]
        when = f", steps {steps[0]} to {steps[-1]}" if steps and steps[0] != steps[-1] else ""
        heading = layout.heading(depth, "Samples along the way")
        inside = fold(f"The first and the last texts{when}", page.samples(rows))
        yield f"<section>{heading}{inside}</section>"


def charts(layout: Layout, run: RunRecord, *, depth: int) -> Iterator[str]:
    """Show every metric over steps; those of one family and scale share a chart."""
    from launch import curves

    groups = curves.families(run.metrics)
    if not groups:
        return
    heading = layout.heading(depth, "Metrics")
    if len(run.metrics) == 1:
        rows = [
            {"metric": name, "value": run.metrics[0][name]} for names in groups for name in names
        ]
        yield f"<section>{heading}{page.table(rows, caption='Metrics')}</section>"
        return
    drawn = []
    for names in groups:
        labels = [name.partition("/")[2] or name for name in names]
        title = names[0] if len(names) == 1 else names[0].partition("/")[0]
        lines = [
            curves.metric_line(run.metrics, name, label, colour)
            for colour, (name, label) in enumerate(zip(names, labels, strict=True))
        ]
        drawn.append(chart(layout, title, lines))
    yield f'<section>{heading}<div class="charts">{"".join(drawn)}</div></section>'


def chart(layout: Layout, title: str, lines: Sequence[Line]) -> str:
    """Return one chart with its legend and its first and last figures in words."""
    from launch import curves

    panel = curves.Panel(lines=lines, legend=False)
    words = [(line, _ends(line.values)) for line in lines]
    if len(lines) == 1:
        legend = f'<span class="ends">{escape(words[0][1])}</span>'
    else:
        entries = "".join(
            f'<li><i style="background:var(--series-{line.colour + 1})"></i>{escape(line.label)} '
            f'<span class="ends">{escape(ends)}</span></li>'
            for line, ends in words
        )
        legend = f'<ul class="legend">{entries}</ul>'
    described = "; ".join(f"{line.label} {ends}" for line, ends in words)
    figure = curves.svg(curves.draw_panels([panel], width=3.9, height=2.1))
    drawn = layout.picture(figure, f"{title} over steps: {described}")
    caption = f'<figcaption><span class="name">{escape(title)}</span>{legend}</figcaption>'
    return f'<figure class="chart">{caption}{drawn}</figure>'


def _ends(values: Sequence[float]) -> str:
    """Say where a metric began and ended."""
    finite = [value for value in values if math.isfinite(value)]
    missing = len(values) - len(finite)
    lost = f" ({missing} not finite)" if missing else ""
    if not finite:
        return f"no finite value{lost}"
    first, last = number(finite[0]), number(finite[-1])
    return (last if len(finite) == 1 else f"{first} \u2192 {last}") + lost


def time_budget(layout: Layout, run: RunRecord, *, depth: int) -> Iterator[str]:
    """Show where the time went: each phase's seconds and share, and the shares over steps."""
    from launch import curves

    phases = curves.phase_seconds(run.metrics)
    counted = sum(phases.values())
    if counted <= 0:
        return
    total = max(seconds_of(run), counted)
    if total > 1.005 * counted:
        phases["all else"] = total - counted
    rows = "".join(
        f'<tr><th scope="row"><i style="background:var(--series-{index})"></i>{escape(name)}</th>'
        f'<td class="number">{duration(spent)}</td><td class="number">{spent / total:.0%}</td>'
        f'<td class="bar"><span style="width:{100 * spent / total:.1f}%;'
        f'background:var(--series-{index})"></span></td></tr>'
        for index, (name, spent) in _numbered(phases)
    )
    drawn = ""
    if len(run.metrics) > 1:
        shares = ", ".join(f"{name} {spent / total:.0%}" for name, spent in phases.items())
        figure = curves.svg(curves.draw_time_shares(run.metrics))
        drawn = layout.picture(figure, f"Share of each phase in the time over steps: {shares}")
        drawn = f"<figure><figcaption>Share of each phase over steps</figcaption>{drawn}</figure>"
    yield (
        f"<section>{layout.heading(depth, 'Time budget')}<div class='budget'><table>"
        f"<thead><tr><th scope='col'>phase</th><th scope='col' class='number'>time</th>"
        f"<th scope='col' class='number'>share</th><td></td></tr></thead>"
        f"<tbody>{rows}</tbody></table>{drawn}</div></section>"
    )


def _numbered(phases: Mapping[str, float]) -> Iterator[tuple[int, tuple[str, float]]]:
    """Number the phases as the figure colours them; what is left over is grey."""
    for index, (name, spent) in enumerate(phases.items()):
        yield (8 if name == "all else" else index % 8 + 1), (name, spent)


def config(run: RunRecord) -> Iterator[str]:
    """Show the complete config, folded."""
    if run.config_yaml.strip():
        yield fold("Config", f'<pre tabindex="0">{escape(run.config_yaml.strip())}</pre>')


def seconds_of(run: RunRecord) -> float:
    """Return the run's seconds, its stages' included."""
    own = [v for v in (record.get("seconds") for record in run.metrics) if _is_figure(v)]
    # Stages lie within the run's own time; a run stopped in a stage has no record of its own yet.
    return max(float(str(own[-1])) if own else 0.0, sum(map(seconds_of, run.stages)))


def last_figures(run: RunRecord) -> dict[str, tuple[float, float]]:
    """Return the first and the last finite figure of each metric that is not the clock's."""
    ends: dict[str, tuple[float, float]] = {}
    for record in run.metrics:
        for name, value in record.items():
            if _is_figure(value) and name != "step" and name.split("/")[0] != "seconds":
                figure = float(str(value))
                ends[name] = (ends.get(name, (figure, figure))[0], figure)
    return ends


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """Return the key facts of a run as names and HTML: size, time, seed, headline metrics.

    The metrics are the first that the run logs, those held out before others; a run that logs none
    itself is told by its last stage that does.
    """
    found: list[tuple[str, str]] = []
    steps = sum(map(_steps, [run, *run.stages]))
    if steps:
        found.append(("steps", number(steps)))
    if seconds_of(run):
        found.append(("time", duration(seconds_of(run))))
    settings = flat_config(run.config_yaml) or {}
    told = next((part for part in (run, *reversed(run.stages)) if len(part.metrics) > 1), run)
    ends = [
        (name, figures)
        for name, figures in last_figures(told).items()
        if name.split("/")[0] not in ("speed", "learning_rate")
    ]
    ends.sort(key=lambda item: not item[0].startswith("heldout"))
    for name, (first, last) in ends[:3]:
        change = f'<span class="from">{number(first)} \u2192</span> ' if first != last else ""
        found.append((name, f"{change}{number(last)}"))
    found += [(key, escape(settings[key])) for key in ("seed",) if key in settings]
    return found


def _steps(run: RunRecord) -> int:
    steps = [s for s in (record.get("step") for record in run.metrics) if isinstance(s, int)]
    return max(steps, default=len(run.metrics))


def written(run: RunRecord) -> datetime | None:
    """Return when the run last wrote a record."""
    times = [
        path.stat().st_mtime
        for part in [run, *run.stages]
        for path in (part.folder / "metrics.jsonl", part.folder / "items.jsonl")
        if path.exists()
    ]
    return datetime.fromtimestamp(max(times)) if times else None


def _is_figure(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (isinstance(value, float) or abs(value) < 2**1000)
        and math.isfinite(value)
    )
