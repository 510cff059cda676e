"""Lays a run folder out as one HTML page that needs nothing else; draws nothing itself.

The page shows what the run put into its folder, in order, then its stages, then what can be made
of any run: curves of its metrics, where the time went, its config. It may be made again at any
time, during a run too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch import page, sections
from launch.comparison import comparison
from launch.errors import UsageError
from launch.folder import atomic_write
from launch.page import escape
from launch.records import RunRecord, read_run
from launch.sections import Layout

__all__ = ["compare_reports", "write_report"]


def write_report(folder: Path) -> Path:
    """Make ``folder/report.html`` of a run folder; return its path.

    Raises:
        UsageError: ``folder`` holds no run.
    """
    run = read_run(Path(folder))
    title = run.recipe or run.name
    layout = Layout()
    parts = list(_run(layout, run))
    if not parts:
        parts = [sections.message("Nothing is logged yet: make this report again later.")]
    body = "\n".join([_masthead(run, title), *sections.problems(run), *parts])
    heading = title if title == run.name else f"{title} \u00b7 {run.name}"
    text = page.document(title=heading, contents=layout.contents, body=body)
    return _write(run.folder / "report.html", text)


def compare_reports(folders: Sequence[Path], target: Path | None = None) -> Path:
    """Lay runs out beside each other on one page; of a single run, make its report again.

    Args:
        folders: Run folders; the first is what the others are compared with.
        target: The page; by default ``A-vs-B.html`` beside the first folder.

    Raises:
        UsageError: No folder is given, one holds no run, or one is given twice.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise UsageError("no run folder is given: name one to report, or several to compare")
    if len(paths) == 1 and target is None:
        return write_report(paths[0])
    runs = [read_run(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("a run folder is given twice: a comparison needs different runs")
    names = names_apart(paths)
    layout = Layout()
    body = "\n".join(comparison(layout, runs, names))
    if target is None:
        target = paths[0].resolve().parent / f"{'-vs-'.join(names).replace(os.sep, '-')}.html"
    title = " against ".join(names)
    return _write(target, page.document(title=title, contents=layout.contents, body=body))


def names_apart(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart.

    >>> names_apart([Path("/runs/a/seed-0"), Path("/runs/b/seed-0"), Path("/runs/c")])
    ['a/seed-0', 'b/seed-0', 'c']
    """
    parts = [path.resolve().parts for path in paths]

    def name(index: int) -> str:
        for length in range(1, len(parts[index])):
            end = parts[index][-length:]
            if sum(other[-length:] == end for other in parts) == 1:
                return "/".join(end)
        return str(paths[index])

    return [name(index) for index in range(len(paths))]


def _write(path: Path, text: str) -> Path:
    try:
        atomic_write(path, text)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"the report {path} cannot be written: {reason}") from None
    return path


def _masthead(run: RunRecord, title: str) -> str:
    moment = sections.written(run)
    when = ""
    if moment:
        words = f"{moment.day} {moment:%B %Y, %H:%M}"
        when = f' \u00b7 <time datetime="{moment:%Y-%m-%dT%H:%M}">{words}</time>'
    return (
        f'<header class="masthead"><p class="eyebrow">monro \u00b7 run report</p>'
        f'<h1>{escape(title)}</h1><p class="where">{escape(run.name)}{when}</p>'
        f"{_facts(run)}</header>"
    )


def _facts(run: RunRecord) -> str:
    facts = sections.facts(run)
    entries = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in facts
    )
    return f'<dl class="facts">{entries}</dl>' if entries else ""


def _run(layout: Layout, run: RunRecord) -> Iterator[str]:
    """Yield the parts of a run's page below its head."""
    yield from sections.story(layout, run, depth=2)
    for index, stage in enumerate(run.stages, start=1):
        yield _stage(layout, stage, index)
    yield from sections.charts(layout, run, depth=2)
    yield from sections.time_budget(layout, run, depth=2)
    yield from sections.samples(layout, run, depth=2)
    yield from sections.config(run)


def _stage(layout: Layout, run: RunRecord, index: int) -> str:
    heading = layout.heading(2, sections.stage_title(run))
    head = f'<header><p class="eyebrow">Stage {index}</p>{heading}{_facts(run)}</header>'
    parts = [
        *sections.problems(run),
        *sections.story(layout, run, depth=3),
        *sections.charts(layout, run, depth=3),
        *sections.time_budget(layout, run, depth=3),
        *sections.samples(layout, run, depth=3),
        *(_stage(layout, stage, i) for i, stage in enumerate(run.stages, start=1)),
        *sections.config(run),
    ]
    inside = "".join(parts) or sections.message("Nothing is logged in this stage yet.")
    return f'<section class="stage">{head}{inside}</section>'
