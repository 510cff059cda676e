"""Features of numbered states; ``rl.features`` has them too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.linear_arrays import Floats, check_counts, finite_array

__all__ = ["Aggregation", "FeatureTable", "OneHot", "dense_features", "observation_rows"]

Ints: TypeAlias = NDArray[np.int64]


class OneHot:
    """A feature for each state: a table as a linear function.

    Args:
        sizes: S, for states 0 to S - 1, observations ``(B, 1)``; or the sizes of D components, such
            as ``(32, 11, 2)`` for Blackjack, the last of which is numbered fastest.

    >>> OneHot(3)([[2], [0]])
    array([[0., 0., 1.],
           [1., 0., 0.]])
    """

    def __init__(self, sizes: int | Sequence[int]) -> None:
        self.sizes = (sizes,) if isinstance(sizes, int | np.integer) else tuple(sizes)
        check_counts("sizes", *self.sizes)
        self.size = math.prod(self.sizes)
        """d."""

    def active(self, observations: ArrayLike) -> Ints:
        """Return the number of each state, ``(B, 1)``."""
        parts = _numbers(observations, self.sizes, "OneHot")
        return np.ravel_multi_index(tuple(parts.T), self.sizes)[:, None]

    def __call__(self, observations: ArrayLike) -> Floats:
        """Return the features ``(B, d)``, one of them 1."""
        return dense_features(self.active(observations), self.size)


class Aggregation:
    """A feature for each group of states, which share one value (Sutton & Barto 2018, section 9.3).

    Args:
        groups: ``(S,)`` integers from 0, the group of each state.

    >>> Aggregation([0, 0, 1])([[0], [1], [2]])
    array([[1., 0.],
           [1., 0.],
           [0., 1.]])
    """

    def __init__(self, groups: ArrayLike) -> None:
        given = np.asarray(groups)
        if given.ndim != 1 or not given.size or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"got groups of shape {given.shape} and type {given.dtype}: expected integers "
                "(S,), the group of each state, such as np.arange(1000) // 100"
            )
        if given.min() < 0:
            raise ValueError(f"a group is {given.min()}: groups count from 0")
        self.groups: Ints = given.astype(np.int64)
        self.size = int(self.groups.max()) + 1
        """d."""

    def active(self, observations: ArrayLike) -> Ints:
        """Return the group of each state, ``(B, 1)``."""
        return self.groups[_numbers(observations, (len(self.groups),), "Aggregation")]

    def __call__(self, observations: ArrayLike) -> Floats:
        """Return the features ``(B, d)``, one of them 1."""
        return dense_features(self.active(observations), self.size)


class FeatureTable:
    """Features that are listed, a row for each state.

    Args:
        features: ``(S, d)``.

    >>> FeatureTable([[1, 2], [3, 4]])([[1]])
    array([[3., 4.]])
    """

    def __init__(self, features: ArrayLike) -> None:
        self.features = finite_array("features", features, "S", "d")
        self.size = self.features.shape[1]
        """d."""

    def __call__(self, observations: ArrayLike) -> Floats:
        """Return the features ``(B, d)``."""
        states = _numbers(observations, (len(self.features),), "a table of features")
        return self.features[states[:, 0]]


def observation_rows(observations: ArrayLike, dimensions: int) -> Floats:
    """Return observations as float64 ``(B, dimensions)``, without NaN."""
    rows = np.asarray(observations, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != dimensions:
        raise ValueError(
            f"got observations of shape {rows.shape}: these features take (B, {dimensions})"
        )
    if np.isnan(rows).any():
        raise ValueError("an observation holds NaN: it has no features; mend the environment")
    return rows


def dense_features(active: Ints, size: int) -> Floats:
    """Return ``(B, size)``: how often each feature is named in a row of ``active`` ``(B, k)``."""
    features = np.zeros((len(active), size))
    np.add.at(features, (np.arange(len(active))[:, None], active), 1.0)
    return features


def _numbers(observations: ArrayLike, sizes: tuple[int, ...], name: str) -> Ints:
    """Return observations ``(B, D)`` that are numbers from 0 to below ``sizes``, as integers."""
    rows = observation_rows(observations, len(sizes))
    numbered = (rows >= 0) & (rows < sizes) & (rows == np.floor(rows))
    for row, axis in np.argwhere(~numbered):
        raise ValueError(
            f"an observation has {rows[row, axis]:g} where {name} takes whole numbers from 0 to "
            f"{sizes[axis] - 1}: for a continuous space use TileCoding or another feature of a box"
        )
    return rows.astype(np.int64)
