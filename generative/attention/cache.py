"""A key-value cache with a column for every token: written column by column, never cleared."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["StaticCache"]


class StaticCache:
    """Keys and values of every layer, each ``(B, H_kv, T, K)``.

    They are zero at first; columns that were not written are not meant to be read.

    >>> cache = StaticCache(layers=1, rows=2, heads=1, columns=3, width=2)
    >>> cache.write(0, 1, torch.ones(2, 2, 1, 2))
    >>> cache.keys(0)[0, 0].tolist()
    [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """

    __slots__ = ("_held",)

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
        shape = (2, rows, heads, columns, width)
        self._held = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

    @property
    def columns(self) -> int:
        """Tokens that each row has room for."""
        return self._held[0].shape[3]

    def keys(self, layer: int) -> Tensor:
        """``(B, H_kv, T, K)``, contiguous, a view."""
        return self._held[layer][0]

    def values(self, layer: int) -> Tensor:
        """``(B, H_kv, T, K)``, contiguous, a view."""
        return self._held[layer][1]

    def write(self, layer: int, column: int, keys_and_values: Tensor) -> None:
        """Put one token's ``(2, B, H_kv, K)``, keys before values, into ``column``."""
        self._held[layer][:, :, :, column] = keys_and_values

    def fill(self, layer: int, rows: slice, columns: int, keys_and_values: Tensor) -> None:
        """Put ``(2, rows, H_kv, columns, K)`` into the first columns of some rows."""
        self._held[layer][:, rows, :, :columns] = keys_and_values

    def widen(self, columns: int) -> None:
        """Make room for ``columns`` tokens in all; those written stay."""
        for i, old in enumerate(self._held):
            new = old.new_zeros((*old.shape[:3], columns, old.shape[4]))
            new[:, :, :, : old.shape[3]] = old
            self._held[i] = new

    def keep(self, rows: Tensor, heads: Tensor | None = None) -> None:
        """Keep the given rows, in that order, and of each perhaps only some heads.

        Args:
            rows: ``(R,)`` int64.
            heads: ``(R, H)`` int64, those that each new row keeps; None keeps all.
        """
        for i, old in enumerate(self._held):
            if heads is None:
                self._held[i] = old.index_select(1, rows)
            else:
                self._held[i] = old[:, rows[:, None], heads]
