"""Draws means with their intervals: a row for each thing compared, a panel for each quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from launch.curves import STYLE
from launch.palette import MUTED, RULE, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_ranges", "draw_tradeoff"]

Range = tuple[float, float, float]
"""Mean, low and high."""


def draw_ranges(
    names: Sequence[str],
    panels: Mapping[str, Sequence[Range]],
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    width: float = 1.6,
    height: float = 0.26,
) -> Figure:
    """Draw a dot and its interval for each name, in a panel for each quantity.

    Args:
        names: Of the rows, from top to bottom.
        panels: Title to one (mean, low, high) for each name.
        limits: Of every panel's axis.
        width: Of a panel, inches.
        height: Of a row, inches.

    Raises:
        ValueError: A panel has not one range for each name.
    """
    for title, ranges in panels.items():
        if len(ranges) != len(names):
            raise ValueError(f"{title} has {len(ranges)} ranges for {len(names)} names")
    left = 0.2 + 0.068 * max(map(len, names), default=0)
    size = (left + width * len(panels) + 0.2, height * len(names) + 0.75)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        row = figure.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
        for index, (axes, (title, ranges)) in enumerate(zip(row, panels.items(), strict=False)):
            _draw(axes, title, ranges, SERIES[index % len(SERIES)])
            axes.set_xlim(limits[0], limits[1] + 0.02 * (limits[1] - limits[0]))
        row[0].set_yticks(range(len(names)), names)
        row[0].set_ylim(len(names) - 0.4, -0.6)
        figure.subplots_adjust(
            left=left / size[0],
            right=1 - 0.15 / size[0],
            top=1 - 0.35 / size[1],
            bottom=0.32 / size[1],
            wspace=0.16,
        )
    return figure


def draw_tradeoff(
    lines: Mapping[str, Sequence[tuple[float, Range]]],
    *,
    across: str,
    title: str,
    width: float = 5.6,
    height: float = 3.2,
) -> Figure:
    """Draw what several ways reach over what they cost, with intervals.

    Args:
        lines: Label to (cost above 0, range), in order of cost; costs are on a logarithmic axis.
        across: What the cost is.
        title: What is reached.
        width: Of the figure, inches.
        height: Of the figure, inches.

    Raises:
        ValueError: A cost is not above 0.
    """
    wrong = [cost for places in lines.values() for cost, _ in places if not cost > 0]
    if wrong:
        raise ValueError(f"a cost is {wrong[0]}: a logarithmic axis needs more than 0")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots()
        for index, (label, places) in enumerate(lines.items()):
            colour = SERIES[index % len(SERIES)]
            costs, ranges = [cost for cost, _ in places], [found for _, found in places]
            axes.vlines(costs, [x[1] for x in ranges], [x[2] for x in ranges], color=colour, lw=0.8)
            axes.plot(costs, [x[0] for x in ranges], "o-", color=colour, label=label, ms=3.2)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:g}"))
        axes.set_xlabel(across, fontsize=8.5)
        axes.set_title(title)
        axes.grid(axis="y", color=RULE, lw=0.6)
        axes.tick_params(which="both", length=0, pad=4, labelsize=8.0, colors=MUTED)
        axes.legend(loc="lower right", ncols=2)
        figure.subplots_adjust(
            left=0.45 / width, right=1 - 0.15 / width, top=1 - 0.35 / height, bottom=0.5 / height
        )
    return figure


def _draw(axes: Axes, title: str, ranges: Sequence[Range], colour: str) -> None:
    places = range(len(ranges))
    axes.hlines(places, [x[1] for x in ranges], [x[2] for x in ranges], color=colour, lw=1.6)
    axes.plot([x[0] for x in ranges], places, "o", color=colour, markersize=3.8)
    axes.set_title(title)
    axes.grid(axis="x", color=RULE, lw=0.6)
    axes.tick_params(length=0, pad=4, labelsize=8.0, colors=MUTED)
