"""The house's colours: plain hex in a figure's file, CSS variables in the report's page.

A figure drawn in these colours follows the reader's light or dark scheme once it stands in a page,
and stays an ordinary picture everywhere else.
"""

__all__ = ["INK", "MUTED", "PALETTE", "RULE", "SERIES"]

INK = "#1c2027"
"""Text and titles."""
MUTED = "#68707d"
"""Labels of axes, remarks."""
RULE = "#dcdfe4"
"""Axes and grid lines."""
SERIES = ("#2b5fd9", "#d4631a", "#1f8a5b", "#a6459c", "#0b8196", "#96740a", "#c23a4b", "#6b7686")
"""Lines, in order; each stands 3:1 or more against both schemes' paper."""

PALETTE = {INK: "--ink", MUTED: "--muted", RULE: "--rule"} | {
    series: f"--series-{index}" for index, series in enumerate(SERIES, start=1)
}
"""The CSS variable that stands for each colour in the report's page."""
