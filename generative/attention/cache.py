"""A key-value cache with a column for every token: written column by column, never cleared."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["StaticCache"]


class StaticCache:
    """Keys and values of every layer, each ``(B, H_kv, T, K)``.

    Columns that were not written hold anything; whoever reads takes a slice of those that were.

    >>> cache = StaticCache(layers=1, rows=2, heads=1, columns=3, width=2)
    >>> cache.write(0, 0, torch.zeros(2, 1, 2), torch.zeros(2, 1, 2))
    >>> cache.write(0, 1, torch.ones(2, 1, 2), torch.ones(2, 1, 2))
    >>> cache.keys[0][0, 0, :2].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """

    __slots__ = ("keys", "values")

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        heads: int,
        columns: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (rows, heads, columns, width)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(layers)]

    @property
    def columns(self) -> int:
        """Tokens that each row has room for."""
        return self.keys[0].shape[2]

    def write(self, layer: int, column: int, keys: Tensor, values: Tensor) -> None:
        """Put one token's ``(B, H_kv, K)`` keys and values of ``layer`` into ``column``."""
        self.keys[layer][:, :, column] = keys
        self.values[layer][:, :, column] = values

    def widen(self, columns: int) -> None:
        """Make room for ``columns`` tokens in all; those written stay."""
        for held in (self.keys, self.values):
            for i, old in enumerate(held):
                new = old.new_empty((*old.shape[:2], columns, old.shape[3]))
                new[:, :, : old.shape[2]] = old
                held[i] = new

    def keep(self, rows: Tensor, heads: Tensor | None = None) -> None:
        """Keep the given rows, in that order, and of each perhaps only some heads.

        Args:
            rows: ``(R,)`` int64.
            heads: ``(R, H)`` int64, those that each new row keeps; None keeps all.
        """
        for held in (self.keys, self.values):
            for i, old in enumerate(held):
                held[i] = old.index_select(0, rows) if heads is None else old[rows[:, None], heads]
