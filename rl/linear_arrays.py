"""What the linear methods ask of their arrays, and the linear systems that they solve."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Floats", "check_counts", "check_fractions", "finite_array", "solve_unique"]

Floats: TypeAlias = NDArray[np.float64]


def finite_array(name: str, given: ArrayLike, *shape: int | str) -> Floats:
    """Return ``given`` as finite float64 of this shape; a letter in it stands for any size.

    Raises:
        ValueError: Another shape, NaN or infinity.
    """
    array = np.asarray(given, dtype=np.float64)
    sizes = [size if isinstance(size, int) else None for size in shape]
    fits = array.ndim == len(sizes) and all(
        size in (None, found) for size, found in zip(sizes, array.shape, strict=True)
    )
    if not fits:
        expected = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"got {name} of shape {array.shape}: expected ({expected})")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinity: use finite numbers")
    return array


def check_fractions(name: str, numbers: ArrayLike) -> None:
    """Raise ValueError where a number, such as a discount or a trace, is not in [0, 1]."""
    array = np.asarray(numbers, dtype=np.float64)
    outside = array[~((array >= 0) & (array <= 1))]
    if outside.size:
        raise ValueError(f"{name}={outside.flat[0]} is outside [0, 1]")


def check_counts(name: str, *counts: int, least: int = 1) -> None:
    """Raise ValueError where a count is not a whole number of at least ``least``."""
    for count in counts:
        whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
        if not whole or count < least:
            raise ValueError(f"{name}={count!r}: use a whole number of {least} or more")


def solve_unique(matrix: Floats, right: Floats, *, otherwise: str) -> Floats:
    """Return x of ``matrix @ x = right``, where there is exactly one.

    Rows and columns are first brought to one scale, so that the units of a feature do not matter.

    Raises:
        ValueError: The matrix is singular but for rounding; ``otherwise`` says what to do.
    """
    from scipy.linalg.lapack import dgecon, dgetrf, dgetrs

    rows = np.abs(matrix).max(1, initial=0)
    columns = (np.abs(matrix) / np.where(rows > 0, rows, 1)[:, None]).max(0, initial=0)
    if (rows > 0).all() and (columns > 0).all():
        scaled = matrix / rows[:, None] / columns
        factors, pivots, failed = dgetrf(scaled)
        certainty, _ = dgecon(factors, np.abs(scaled).sum(0).max())  # 1 / condition number
        if not failed and certainty > np.finfo(np.float64).eps:
            vector = right.ndim == 1
            found, _ = dgetrs(factors, pivots, (right.T / rows).T)
            return np.asarray(found if not vector else found.reshape(-1)) / (
                columns if vector else columns[:, None]
            )
    rank = np.linalg.matrix_rank(matrix)
    raise ValueError(f"the {len(matrix)} equations have rank {rank} within rounding: {otherwise}")
