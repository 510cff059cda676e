"""Runs beside each other: what differs in their configs, their figures, curves and items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launch import page, sections
from launch.page import escape, number
from launch.records import RunRecord, flat_config
from launch.sections import Layout

__all__ = ["comparison"]


def comparison(layout: Layout, runs: Sequence[RunRecord], names: Sequence[str]) -> Iterator[str]:
    """Yield the parts of a page that compares ``runs``, which are called ``names``."""
    chips = "".join(
        f'<li><i style="background:var(--series-{i % 8 + 1})"></i>{escape(name)} '
        f'<span class="ends">{escape(run.recipe)}</span></li>'
        for i, (run, name) in enumerate(zip(runs, names, strict=True))
    )
    yield (
        f'<header class="masthead"><p class="eyebrow">monro \u00b7 comparison</p>'
        f'<h1>{escape(" against ".join(names))}</h1><ul class="legend">{chips}</ul></header>'
    )
    for run, name in zip(runs, names, strict=True):
        for problem in sections.problems(run):
            yield f"<section><p>{escape(name)}</p>{problem}</section>"
    yield _configs(layout, runs, names)
    yield from _figures(layout, runs, names, depth=2)
    yield from _charts(layout, runs, names, depth=2)
    yield from _items(layout, runs, names)
    for stage in dict.fromkeys(stage.name for run in runs for stage in run.stages):
        yield from _stage(layout, runs, names, stage)


def _stage(
    layout: Layout, runs: Sequence[RunRecord], names: Sequence[str], stage: str
) -> Iterator[str]:
    """Compare the runs that have this stage."""
    found = [
        next((part for part in run.stages if part.name == stage), RunRecord(folder=run.folder))
        for run in runs
    ]
    title = sections.stage_title(next(run for run in found if run.name == stage))
    heading = layout.heading(2, title)
    parts = [
        *_figures(layout, found, names, depth=3),
        *_charts(layout, found, names, depth=3),
    ]
    inside = "".join(parts) or sections.message("Nothing is logged in this stage.")
    yield f'<section class="stage">{heading}{inside}</section>'


def _configs(layout: Layout, runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    flat = [flat_config(run.config_yaml) or {} for run in runs]
    keys = dict.fromkeys(key for config in flat for key in config)
    rows: list[dict[str, object]] = [
        {"key": key} | {name: config.get(key) for name, config in zip(names, flat, strict=True)}
        for key in keys
        if len({config.get(key) for config in flat}) > 1
    ]
    heading = layout.heading(2, "Config differences")
    if not all(flat):
        lacking = [name for name, config in zip(names, flat, strict=True) if not config]
        inside = sections.message(f"No readable config.yaml in {', '.join(lacking)}.")
    elif not rows:
        inside = sections.message("The configs are the same.")
    else:
        inside = page.table(rows, caption="Config differences")
    return f"<section>{heading}{inside}</section>"


def _figures(
    layout: Layout, runs: Sequence[RunRecord], names: Sequence[str], *, depth: int
) -> Iterator[str]:
    """Show the last figure of each metric, run by run."""
    ends = [sections.last_figures(run) for run in runs]
    metrics = dict.fromkeys(metric for figures in ends for metric in figures)
    if not metrics:
        return
    rows: list[dict[str, object]] = []
    times = [sections.seconds_of(run) for run in runs]
    for metric in ["seconds", *metrics] if any(times) else metrics:
        values = [figures.get(metric, (None, None))[1] for figures in ends]
        if metric == "seconds":
            values = [time or None for time in times]
        row: dict[str, object] = {"metric": metric} | dict(zip(names, values, strict=True))
        if len(runs) == 2:
            first, second = values
            row["difference"] = _difference(first, second)
        rows.append(row)
    heading = layout.heading(depth, "Final figures")
    yield f"<section>{heading}{page.table(rows, caption='Final figures')}</section>"


def _difference(first: float | None, second: float | None) -> str | None:
    if first is None or second is None:
        return None
    return ("+" if second > first else "") + number(second - first)


def _charts(
    layout: Layout, runs: Sequence[RunRecord], names: Sequence[str], *, depth: int
) -> Iterator[str]:
    """Overlay the metrics that at least two runs have."""
    from launch import curves

    holders = [set().union(*run.metrics) if run.metrics else set[str]() for run in runs]
    order = dict.fromkeys(
        name for run in runs for group in curves.families(run.metrics) for name in group
    )
    drawn = []
    for metric in order:
        having = [i for i, holder in enumerate(holders) if metric in holder]
        if len(having) > 1:
            lines = [curves.metric_line(runs[i].metrics, metric, names[i], i) for i in having]
            drawn.append(sections.chart(layout, metric, lines))
    if drawn:
        heading = layout.heading(depth, "Curves")
        yield f'<section>{heading}<div class="charts">{"".join(drawn)}</div></section>'


def _items(layout: Layout, runs: Sequence[RunRecord], names: Sequence[str]) -> Iterator[str]:
    """Show figures and tables of the same name beside each other."""
    keys = [
        (item.get("kind"), item.get("name"))
        for item in runs[0].items
        if item.get("kind") in ("figure", "table")
    ]
    for kind, name in keys:
        parts = []
        for run, title in zip(runs, names, strict=True):
            for item in run.items:
                if (item.get("kind"), item.get("name")) != (kind, name):
                    continue
                inside = sections.item(layout, run, item)
                caption = f'<figcaption><span class="name">{escape(title)}</span></figcaption>'
                parts.append(f"<figure>{caption}{inside}</figure>")
        if len(parts) > 1:
            heading = layout.heading(2, str(name))
            grid = "figures" if kind == "figure" else "stacked"
            yield f'<section>{heading}<div class="{grid}">{"".join(parts)}</div></section>'
