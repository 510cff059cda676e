"""Draws the curves that a report makes by itself: metrics over steps, and where the time went.

Pure functions of records (the lines of ``metrics.jsonl``) that return matplotlib figures, without
pyplot and its global state. The colours are those of `launch.palette`.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from launch.palette import INK, MUTED, RULE, SERIES

__all__ = [
    "STYLE",
    "Line",
    "Panel",
    "draw_panels",
    "draw_time_shares",
    "families",
    "metric_line",
    "phase_seconds",
    "svg",
]

Record = Mapping[str, object]

_STRETCHES = 160
"""More points than this are shown as the mean and range of so many equal stretches."""
_FEW = 30
"""So few points are marked, so that a reader sees where something was measured."""
_GREATEST = 1e290
"""What is greater is a gap: matplotlib's margins would overflow."""
_LONG = re.compile(r"\d+\.\d{3,}")
_TICKS = (1, 2, 2.5, 5, 10)
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.1,
    "legend.columnspacing": 1.3,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One metric over steps. Values that are not finite leave a gap."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int = 0
    """Index into ``launch.palette.SERIES``, modulo its length."""
    dashed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One set of axes: lines that share a scale."""

    lines: Sequence[Line]
    title: str = ""
    limits: tuple[float | None, float | None] = (None, None)
    """Bottom and top of the axis; None fits the data."""
    legend: bool = True


def metric_line(records: Sequence[Record], name: str, label: str = "", colour: int = 0) -> Line:
    """Take one metric out of the records that hold it; what is no number becomes a gap.

    >>> metric_line([{"step": 1, "loss": 0.5}, {"step": 2}, {"step": 3, "loss": None}], "loss")
    Line(label='loss', steps=[1.0, 3.0], values=[0.5, nan], colour=0, dashed=False)
    """
    pairs = [
        (_number(r.get("step", i)), _number(r[name])) for i, r in enumerate(records) if name in r
    ]
    pairs = [(step, value) for step, value in pairs if math.isfinite(step)]
    return Line(
        label=label or name,
        steps=[step for step, _ in pairs],
        values=[value for _, value in pairs],
        colour=colour,
    )


def families(records: Sequence[Record], *, widest: float = 20.0, most: int = 5) -> list[list[str]]:
    """Group the metrics that can share axes, in the order in which the records name them.

    Metrics of one family (``reward``, ``reward/accuracy``) share axes where their greatest
    absolute values are within a factor of ``widest``. The clock's ``seconds`` are left out, and
    ``speed`` comes last.

    >>> families([{"step": 1, "loss": 2.0, "length/mean": 30.0, "length/truncated": 0.1,
    ...            "reward": 0.4, "reward/format": 1.0, "seconds": 1.0, "seconds/update": 0.2}])
    [['loss'], ['length/mean'], ['length/truncated'], ['reward', 'reward/format']]
    """
    groups: list[tuple[str, float, list[str]]] = []
    for name, size in sorted(_sizes(records).items(), key=lambda item: _root(item[0]) == "speed"):
        for root, first, members in groups:
            near = size == first or (
                min(size, first) > 0 and max(size, first) <= widest * min(size, first)
            )
            if root == _root(name) and near and len(members) < most:
                members.append(name)
                break
        else:
            groups.append((_root(name), size, [name]))
    return [members for _, _, members in groups]


def phase_seconds(records: Sequence[Record]) -> dict[str, float]:
    """Return the total seconds of each ``seconds/<phase>``, in the order of their first record.

    >>> phase_seconds([{"seconds/a": 1.0}, {"seconds/a": 2.0, "seconds/b": 0.5, "seconds": 9.0}])
    {'a': 3.0, 'b': 0.5}
    """
    totals: dict[str, float] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith("seconds/"):
                spent = _number(value)
                phase = name.removeprefix("seconds/")
                totals[phase] = totals.get(phase, 0.0) + (
                    max(spent, 0.0) if math.isfinite(spent) else 0.0
                )
    return totals


def draw_panels(panels: Sequence[Panel], *, width: float = 4.6, height: float = 2.4) -> Figure:
    """Draw panels one above the other over a common axis of steps.

    Args:
        panels: From top to bottom.
        width: Of the figure, inches.
        height: Of each panel, inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height * len(panels)))
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            _draw_panel(axes, panel)
        rows[-1].xaxis.set_major_locator(MaxNLocator(5, steps=_TICKS, integer=True))
        rows[-1].set_xlabel("step", fontsize=8.5)
        _fit(figure, list(rows), panels)
    return figure


def draw_time_shares(
    records: Sequence[Record], *, width: float = 4.6, height: float = 2.0
) -> Figure:
    """Draw how the time of each stretch of steps is shared among the phases, stacked to 100%."""
    phases = phase_seconds(records)
    rows = [r for r in records if any(name.startswith("seconds/") for name in r)]
    size = max(1, math.ceil(len(rows) / 60))
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    edges = [_number(part[0].get("step", i)) for i, part in enumerate(parts)]
    edges += [_number(parts[-1][-1].get("step", len(parts))) + 1] if parts else []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots()
        bottom = [0.0] * len(parts)
        for index, phase in enumerate(phases):
            shares = [_share(part, phase) for part in parts]
            top = [a + b for a, b in zip(bottom, shares, strict=True)]
            colour = SERIES[index % len(SERIES)]
            axes.stairs(top, edges, baseline=bottom, fill=True, color=colour, alpha=0.85, lw=0)
            bottom = top
        _dress(axes)
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        if edges:
            axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_TICKS, integer=True))
        axes.set_xlabel("step", fontsize=8.5)
        figure.subplots_adjust(left=0.1, right=0.985, top=0.95, bottom=0.22)
    return figure


def svg(figure: Figure, *, salt: str = "monro") -> str:
    """Return ``figure`` as SVG with text as text, the same for the same figure.

    Args:
        figure: Any matplotlib figure.
        salt: Goes into the ids of shared paths.
    """
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": salt, "path.simplify": True}
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata=metadata)
    # Coordinates stand in tags; what stands between them is text, such as the labels of ticks.
    text = re.sub(r"<[^>]+>", lambda tag: _LONG.sub(_rounded, tag[0]), buffer.getvalue())
    return re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        _draw_line(axes, line)
    bottom, top = panel.limits
    axes.set_ylim(bottom, top)
    axes.margins(x=0.02)
    _dress(axes)
    axes.grid(axis="y", color=RULE, lw=0.6)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=_TICKS))
    if panel.title:
        axes.set_title(panel.title)
    if not any(abs(value) < _GREATEST for line in panel.lines for value in line.values):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no records", transform=axes.transAxes, ha="center", color=MUTED)
    elif panel.legend and len(panel.lines) > 1:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=5, borderaxespad=0.1)


def _dress(axes: Axes) -> None:
    """Fix what matplotlib would look up when it draws, maybe outside our style."""
    axes.tick_params(length=0, pad=5, labelsize=8.5, colors=MUTED)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set(color=MUTED, fontsize=8.5)


def _draw_line(axes: Axes, line: Line) -> None:
    colour = SERIES[line.colour % len(SERIES)]
    steps, means, lows, highs = _stretches(line)
    if lows != highs:
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.16, lw=0)
    finite = [(s, m) for s, m in zip(steps, means, strict=True) if math.isfinite(m)]
    axes.plot(
        steps,
        means,
        color=colour,
        label=line.label,
        linestyle=(0, (4, 2)) if line.dashed else "solid",
        marker="o" if len(finite) <= _FEW else None,
        markersize=3.2,
    )
    if finite:
        axes.plot(*finite[-1], "o", color=colour, markersize=4.0, clip_on=False)


def _stretches(line: Line) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return steps, means, least and greatest values of at most ``_STRETCHES`` equal parts."""
    size = math.ceil(len(line.steps) / _STRETCHES)
    if size <= 1:
        values = [v if abs(v) < _GREATEST else math.nan for v in line.values]
        return list(line.steps), values, values, values
    steps, means, lows, highs = [], [], [], []
    for start in range(0, len(line.steps), size):
        part = line.steps[start : start + size]
        values = [v for v in line.values[start : start + size] if abs(v) < _GREATEST]
        values = values or [math.nan]
        steps.append(sum(part) / len(part))
        means.append(sum(values) / len(values))
        lows.append(min(values))
        highs.append(max(values))
    return steps, means, lows, highs


def _fit(figure: Figure, rows: list[Axes], panels: Sequence[Panel]) -> None:
    """Give the axes the room that their labels leave; cheaper than a layout engine."""
    width, height = figure.get_size_inches()
    for axes in rows:
        axes.yaxis.get_major_formatter().set_locs(list(axes.yaxis.get_majorticklocs()))
    characters = max(len(label) for axes in rows for label in _tick_labels(axes))
    titled = any(panel.title or (len(panel.lines) > 1 and panel.legend) for panel in panels)
    offset = any(axes.yaxis.get_offset_text().get_text() for axes in rows)
    figure.subplots_adjust(
        left=(0.12 + 0.085 * characters) / width,
        right=1 - 0.12 / width,
        top=1 - (0.3 if titled else 0.18 if offset else 0.1) / height,
        bottom=0.44 / height,
        hspace=0.34,
    )


def _tick_labels(axes: Axes) -> list[str]:
    labels = axes.yaxis.get_major_formatter().format_ticks(list(axes.yaxis.get_majorticklocs()))
    axes.yaxis.get_offset_text().set_text(axes.yaxis.get_major_formatter().get_offset())
    return labels or [""]


def _share(part: Sequence[Record], phase: str) -> float:
    totals = phase_seconds(part)
    return totals.get(phase, 0.0) / (sum(totals.values()) or 1.0)


def _sizes(records: Sequence[Record]) -> dict[str, float]:
    """Return the greatest finite absolute value of each metric, in order of appearance."""
    sizes: dict[str, float] = {}
    for record in records:
        for name, value in record.items():
            if name == "step" or _root(name) == "seconds":
                continue
            size = abs(_number(value))
            if isinstance(value, str | list | dict):
                continue
            sizes[name] = max(sizes.get(name, 0.0), size if math.isfinite(size) else 0.0)
    return sizes


def _root(name: str) -> str:
    return name.split("/", 1)[0]


def _number(value: object) -> float:
    """Return a number as float; whatever is none (null, text) as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer beyond float64
        return math.nan
