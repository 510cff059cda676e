"""Pictures of where the heads of an attention look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_attention"]

_COLUMNS = 4


def draw_attention(
    maps: Tensor, keys: Sequence[str], queries: Sequence[str], names: Sequence[str]
) -> Figure:
    """Draw each head's weights: a row for every query, dark where it looks.

    Args:
        maps: ``(N, T, S)``, rows sum to 1.
        keys: S labels of the columns.
        queries: T labels of the rows.
        names: N titles.

    Returns:
        A matplotlib figure; no window opens.
    """
    expected = (len(names), len(queries), len(keys))
    if tuple(maps.shape) != expected:
        raise ValueError(
            f"maps of shape {tuple(maps.shape)} with {len(names)} names, {len(queries)} queries "
            f"and {len(keys)} keys: expected {expected}"
        )
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    from launch.curves import STYLE
    from launch.palette import SERIES

    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    shades = LinearSegmentedColormap.from_list("weights", ["#ffffff", SERIES[0]])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for panel, weights, name in zip(panels, maps.float().cpu().numpy(), names, strict=False):
            panel.imshow(weights, vmin=0, vmax=1, cmap=shades, aspect="equal")
            panel.set_title(name)
            panel.set_xticks(range(len(keys)), keys, fontsize=6.5)
            panel.set_yticks(range(len(queries)), queries, fontsize=6.5)
            panel.tick_params(length=0)
        for panel in list(panels)[len(names) :]:
            panel.set_visible(False)
    return figure
