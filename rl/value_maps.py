"""Pictures of values and policies of grids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FROZEN_LAKE_ARROWS", "GRID_ARROWS", "plot_values"]

GRID_ARROWS = "↑→↓←○"
"""Of ``grid_world`` (the circle is to stay), and of CliffWalking."""
FROZEN_LAKE_ARROWS = "←↓→↑"
MOST_WRITTEN = 400
"""Cells in which a number can still be read."""


def plot_values(
    shape: tuple[int, int],
    values: ArrayLike,
    policy: ArrayLike | None = None,
    *,
    arrows: str = GRID_ARROWS,
    title: str | None = None,
) -> Figure:
    """Draw the values of a grid's cells as colours and numbers, and the policy as arrows.

    Beyond 400 cells nobody could read numbers and arrows, and colour stands alone.

    Args:
        shape: Rows and columns; state = row * columns + column.
        values: ``(rows * columns,)``.
        policy: Actions ``(rows * columns,)``; None draws no arrows.
        arrows: The sign of each action, in order.
        title: Above the picture.

    Returns:
        A matplotlib figure, to ``savefig``; no window opens.
    """
    rows, columns = shape
    table = np.asarray(values, dtype=np.float64)
    actions = None if policy is None else np.asarray(policy)
    for name, given in [("values", table), ("policy", actions)]:
        if given is not None and given.shape != (rows * columns,):
            raise ValueError(
                f"got {name} of shape {given.shape}: a grid of {rows} x {columns} cells has "
                f"({rows * columns},), with state = row * columns + column"
            )
    if actions is not None and not np.isin(actions, range(len(arrows))).all():
        raise ValueError(
            f"the policy takes actions {actions.min()} to {actions.max()}, but arrows={arrows!r} "
            f"has signs for 0 to {len(arrows) - 1} alone"
        )
    from matplotlib.figure import Figure

    size = 1.5 + 0.8 * min(columns, 16), 0.8 + 0.8 * min(rows, 16)  # inches
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table.reshape(shape), cmap="viridis")
    figure.colorbar(image, ax=axes, label="value")
    axes.set(xlabel="column", ylabel="row", title=title)
    axes.locator_params(integer=True)
    if rows * columns <= MOST_WRITTEN:
        middle = (table.min() + table.max()) / 2
        for state, value in enumerate(table):
            sign = "" if actions is None else f"{arrows[actions[state]]}\n"
            row, column = divmod(state, columns)
            colour = "black" if value > middle else "white"
            axes.text(column, row, f"{sign}{value:.3g}", ha="center", va="center", color=colour)
    return figure
