"""The order in which data is seen: a function of seed and position, so resuming needs no state."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from launch.streams import stream

__all__ = ["shuffled"]


def shuffled(size: int, start: int, count: int, seed: int) -> list[int]:
    """Return ``count`` indices of the endless sequence of shuffled epochs, from position ``start``.

    Epoch e is a permutation of ``range(size)`` keyed by (seed, e). Every index comes once an
    epoch, and no two processes or resumed runs see another order.

    >>> both = shuffled(5, 0, 10, seed=0)
    >>> sorted(both[:5]) == sorted(both[5:]) == [0, 1, 2, 3, 4]
    True
    >>> shuffled(5, 3, 4, seed=0) == both[3:7]
    True

    Raises:
        ValueError: There is nothing to draw from.
    """
    if size < 1:
        raise ValueError("there is no data: the sequence to draw from is empty")
    return [int(_epoch(size, i // size, seed)[i % size]) for i in range(start, start + count)]


@lru_cache(maxsize=4)
def _epoch(size: int, epoch: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return torch.randperm(size, generator=stream(seed, "epoch", epoch)).numpy()
