"""Features of observations, for functions that are linear in their weights.

Each maps observations ``(B, D)`` to features ``(B, d)``, float64; d is its ``size``. Those of a box
scale it to [0, 1] first, and an observation beyond it counts as on its border. Features of which a
few are 1 and all others 0 also name those few: ``active``.

A feature of your own is any function of ``(B, D)`` to ``(B, d)``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.linear_arrays import Floats, check_counts
from rl.state_features import (
    Aggregation,
    FeatureTable,
    OneHot,
    dense_features,
    observation_rows,
)

__all__ = [
    "Aggregation",
    "BinaryFeatures",
    "FeatureTable",
    "Features",
    "Fourier",
    "OneHot",
    "Polynomial",
    "RadialBasis",
    "TileCoding",
]

Ints: TypeAlias = NDArray[np.int64]
Features: TypeAlias = Callable[[Floats], Floats]
"""Observations ``(B, D)`` to features ``(B, d)``."""
MOST_FEATURES = 2**31 - 1
"""More than any memory holds, or an index of tiles could."""


@runtime_checkable
class BinaryFeatures(Protocol):
    """Features of which a few are 1 (those named twice 2) and all others 0."""

    size: int
    """d."""

    def __call__(self, observations: ArrayLike) -> Floats:
        """Return all features, ``(B, d)``."""

    def active(self, observations: ArrayLike) -> Ints:
        """Return which are not 0, ``(B, k)``."""


class TileCoding:
    r"""Tile coding: each of several shifted grids tells in which of its tiles an observation is.

    Tiling k, from 0, is displaced by k / tilings tiles times (1, 3, 5, ...) along the D axes
    (Sutton & Barto 2018, section 9.5.4), within one tile. So a grid that covers the box needs one
    tile more along each axis than fit into it. ``tilings`` features are 1: a step size of
    ``a / tilings`` moves the value of an observation by the fraction a of its error.

    Args:
        low: ``(D,)``, the box's lower corner; finite, so for velocities without bound choose one.
        high: ``(D,)``, its upper corner.
        tilings: How many; best a power of two of at least 4 D.
        tiles: How many fit into the box along each axis, a number or ``(D,)``.
        hashed_size: None gives each tile a feature of its own. A number spreads all tiles over so
            many features by a hash, where tiles may share one (a feature that two active tiles
            share is 2); so memory does not grow with D.

    >>> coder = TileCoding(0.0, 1.0, tilings=2, tiles=2)  # tiles of 1/2, the second shifted by 1/4
    >>> coder.active([[0.1], [0.3]])
    array([[0, 3],
           [0, 4]])
    """

    def __init__(
        self,
        low: ArrayLike,
        high: ArrayLike,
        tilings: int = 8,
        tiles: int | Sequence[int] = 8,
        hashed_size: int | None = None,
    ) -> None:
        self._box = _Box(low, high)
        check_counts("tilings", tilings)
        dimensions = self._box.dimensions
        self.tilings, self.tiles = tilings, _per_dimension("tiles", tiles, dimensions)
        self.hashed_size = hashed_size
        steps = np.arange(tilings)[:, None] * (2 * np.arange(dimensions) + 1)
        self._offsets = (steps % tilings) / tilings  # (tilings, D), in tiles
        sides = [int(count) + 1 for count in self.tiles]
        every = tilings * math.prod(sides)
        self.size = every if hashed_size is None else hashed_size
        """d: ``hashed_size``, or the number of all tiles."""
        check_counts("hashed_size", self.size)
        _check_size(self.size, "use fewer tiles, or hashed_size=")
        if hashed_size is None:  # tiles are numbered along the last axis first, tilings last
            self._strides = np.array([math.prod(sides[k + 1 :]) for k in range(dimensions)])
            self._firsts = np.arange(tilings) * math.prod(sides)

    def active(self, observations: ArrayLike) -> Ints:
        """Return the tile in each tiling, ``(B, tilings)``."""
        unit = self._box(observations)
        places = (unit[:, None] * self.tiles + self._offsets).astype(np.int64)  # (B, tilings, D)
        if self.hashed_size is None:
            return places @ self._strides + self._firsts
        hashes = _scrambled(np.arange(self.tilings, dtype=np.uint64))
        for axis in range(places.shape[2]):
            hashes = _scrambled(hashes ^ places[..., axis].astype(np.uint64))
        return (hashes % np.uint64(self.hashed_size)).astype(np.int64)

    def __call__(self, observations: ArrayLike) -> Floats:
        """Return the features ``(B, d)``, ``tilings`` of them 1."""
        return dense_features(self.active(observations), self.size)


class Fourier:
    r"""The Fourier cosine basis (Konidaris, Osentoski & Thomas 2011; Sutton & Barto 2018, 9.5.2).

        x_i(s) = cos(pi s . c_i),   c_i in {0, ..., order}^D, s scaled to [0, 1]^D

    The paper gives feature i the step size alpha / ||c_i|| (alpha where c_i = 0): pass
    ``step_size=alpha * fourier.step_scales``.

    Args:
        low: ``(D,)``, the box's lower corner.
        high: ``(D,)``, its upper corner.
        order: The highest frequency, in half waves along the box.
        max_interactions: Keep the c_i that depend on at most so many coordinates; None keeps all
            (order + 1)^D.

    >>> Fourier(0.0, 1.0, order=2)([[0.0], [1.0]])
    array([[ 1.,  1.,  1.],
           [ 1., -1.,  1.]])
    """

    def __init__(
        self,
        low: ArrayLike,
        high: ArrayLike,
        order: int = 3,
        max_interactions: int | None = None,
    ) -> None:
        self._box = _Box(low, high)
        self.coefficients = _exponents(order, self._box.dimensions, max_interactions)
        """``(d, D)``, c_i."""
        norms = np.linalg.norm(self.coefficients, axis=1)
        self.step_scales = 1 / np.where(norms > 0, norms, 1)
        """``(d,)``, 1 / ||c_i||, or 1."""
        self.size = len(norms)
        """d."""

    def __call__(self, observations: ArrayLike) -> Floats:
        """Return the features ``(B, d)``."""
        return np.cos(np.pi * (self._box(observations) @ self.coefficients.T))


class Polynomial:
    r"""Products of powers of the coordinates (Sutton & Barto 2018, eq. 9.17).

        x_i(s) = \prod_j s_j^{c_ij},   c_i in {0, ..., order}^D, s scaled to [0, 1]^D

    The book does not scale; a box of 0 to 1 gives its features.

    Args:
        low: ``(D,)``, the box's lower corner.
        high: ``(D,)``, its upper corner.
        order: The highest power of a coordinate.
        max_interactions: Keep the c_i that depend on at most so many coordinates; None keeps all
            (order + 1)^D.

    >>> Polynomial([0, 0], [1, 1], order=1)([[0.5, 0.25]])  # 1, s_2, s_1, s_1 s_2
    array([[1.   , 0.25 , 0.5  , 0.125]])
    """

    def __init__(
        self,
        low: ArrayLike,
        high: ArrayLike,
        order: int = 3,
        max_interactions: int | None = None,
    ) -> None:
        self._box = _Box(low, high)
        self.exponents = _exponents(order, self._box.dimensions, max_interactions)
        """``(d, D)``, c_i."""
        self.size = len(self.exponents)
        """d."""

    def __call__(self, observations: ArrayLike) -> Floats:
        """Return the features ``(B, d)``."""
        return (self._box(observations)[:, None] ** self.exponents).prod(-1)


class RadialBasis:
    r"""Gaussian bumps on a grid (Sutton & Barto 2018, section 9.5.5).

        x_i(s) = exp(-sum_j (s_j - c_ij)^2 / (2 width_j^2)),   s scaled to [0, 1]^D

    Args:
        low: ``(D,)``, the box's lower corner.
        high: ``(D,)``, its upper corner.
        centers: How many along each axis, from border to border (a single one is in the middle); a
            number or ``(D,)``.
        width: Standard deviation in the scaled box, a number or ``(D,)``; None is the distance of
            neighbouring centers (1 for a single one).

    >>> RadialBasis(0.0, 4.0, centers=3, width=0.5)([[2.0]]).round(4)
    array([[0.6065, 1.    , 0.6065]])
    """

    def __init__(
        self,
        low: ArrayLike,
        high: ArrayLike,
        centers: int | Sequence[int] = 5,
        width: ArrayLike | None = None,
    ) -> None:
        self._box = _Box(low, high)
        counts = _per_dimension("centers", centers, self._box.dimensions)
        self.size = math.prod(counts.tolist())
        """d."""
        _check_size(self.size, "use fewer centers")
        axes = [np.linspace(0, 1, n) if n > 1 else np.full(1, 0.5) for n in counts]
        self.centers: Floats = np.array(list(itertools.product(*axes)))
        """``(d, D)``, in the scaled box."""
        spacing = 1 / np.maximum(counts - 1, 1)
        given = spacing if width is None else np.asarray(width, dtype=np.float64)
        if given.shape not in ((), counts.shape) or not ((given > 0) & (given < np.inf)).all():
            raise ValueError(
                f"width={width!r}: use a number above 0, or one for each of {len(counts)} axes"
            )
        self.width: Floats = np.broadcast_to(given, counts.shape)
        """``(D,)``, in the scaled box."""

    def __call__(self, observations: ArrayLike) -> Floats:
        """Return the features ``(B, d)``."""
        away = (self._box(observations)[:, None] - self.centers) / self.width
        return np.exp(-0.5 * (away**2).sum(-1))


class _Box:
    """Scales a box to [0, 1]; what lies beyond it counts as on its border."""

    def __init__(self, low: ArrayLike, high: ArrayLike) -> None:
        self.low = np.atleast_1d(np.array(low, dtype=np.float64))
        self.high = np.atleast_1d(np.array(high, dtype=np.float64))
        if self.low.ndim != 1 or self.low.shape != self.high.shape:
            raise ValueError(
                f"got low of shape {self.low.shape} and high of {self.high.shape}: give both as "
                "(D,), one bound for each component of an observation"
            )
        for axis in np.flatnonzero(~(np.isfinite(self.high - self.low) & (self.low < self.high))):
            raise ValueError(
                f"component {axis} lies between {self.low[axis]} and {self.high[axis]}: bounds are "
                "finite, low below high; choose them where the space has none"
            )
        self._span = self.high - self.low
        self.dimensions = len(self.low)

    def __call__(self, observations: ArrayLike) -> Floats:
        """Return ``(B, D)`` in [0, 1]."""
        rows = observation_rows(observations, self.dimensions)
        unit = (rows - self.low) / self._span
        return np.minimum(np.maximum(unit, 0), 1)


def _per_dimension(name: str, counts: int | Sequence[int], dimensions: int) -> Ints:
    listed = [counts] * dimensions if isinstance(counts, int | np.integer) else list(counts)
    if len(listed) != dimensions:
        raise ValueError(f"got {len(listed)} {name} for {dimensions} axes: give one for each")
    check_counts(name, *listed)
    return np.array(listed, dtype=np.int64)


def _exponents(order: int, dimensions: int, max_interactions: int | None) -> Floats:
    """Return ``(d, D)``: {0, ..., order}^D, at most ``max_interactions`` entries not 0."""
    check_counts("order", order, least=0)
    most = dimensions if max_interactions is None else min(max_interactions, dimensions)
    check_counts("max_interactions", most, least=0)
    size = sum(math.comb(dimensions, count) * order**count for count in range(most + 1))
    _check_size(size, "use a lower order, or max_interactions=")
    vectors = [
        vector
        for chosen in itertools.chain.from_iterable(
            itertools.combinations(range(dimensions), count) for count in range(most + 1)
        )
        for vector in itertools.product(
            *(range(1, order + 1) if axis in chosen else (0,) for axis in range(dimensions))
        )
    ]
    return np.array(sorted(vectors), dtype=np.float64).reshape(-1, dimensions)


def _check_size(size: int, remedy: str) -> None:
    if size > MOST_FEATURES:
        raise ValueError(f"these are {size} features: {remedy}")


def _scrambled(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits one to one (SplitMix64; Steele, Lea & Flood 2014, figure 16)."""
    codes = codes + np.uint64(0x9E3779B97F4A7C15)
    codes = (codes ^ (codes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    codes = (codes ^ (codes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return codes ^ (codes >> np.uint64(31))
