"""Keys and values of the tokens so far.

``StaticCache`` holds those of every layer, written column by column and never cleared, for engines
that keep the columns themselves. The others hold one layer's, count their tokens, and give back
what the next query sees: ``StaticKeyValues`` all, ``SlidingKeyValues`` a window in constant memory,
``QuantizedKeyValues`` all in a quarter of float32's bytes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "KeyValues",
    "QuantizedKeyValues",
    "SlidingKeyValues",
    "StaticCache",
    "StaticKeyValues",
]


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


class KeyValues(Protocol):
    """Keys and values of one layer, for B sequences of equally many tokens."""

    @property
    def length(self) -> int:
        """Tokens appended so far, also those that are no longer held."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        ...

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append n tokens; return what they and their past see, the last token last.

        Args:
            keys: ``(B, H_kv, n, K)``.
            values: ``(B, H_kv, n, K_v)``.

        Returns:
            ``(B, H_kv, T_k, K)`` and ``(B, H_kv, T_k, K_v)``, in the order of time. Query i of n is
            aligned at the end: key j is ``T_k - n + i - j`` tokens before it.
        """
        ...

    def repeat(self, count: int) -> None:
        """Take each row ``count`` times, in place: row r becomes ``r * count`` and those after."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``(R,)`` int64, in that order, in place; one may come more than once."""
        ...


class _Rows:
    """Tensors whose first axis is that of rows, and a number of tokens."""

    __slots__ = ("_held", "length")

    def __init__(self, held: list[Tensor]) -> None:
        self._held = held
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(x.nbytes for x in self._held)

    def repeat(self, count: int) -> None:
        """Take each row ``count`` times, in place: row r becomes ``r * count`` and those after."""
        self._held = [x.repeat_interleave(count, dim=0) for x in self._held]

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``(R,)`` int64, in that order, in place; one may come more than once."""
        self._held = [x.index_select(0, rows) for x in self._held]

    def _check(self, keys: Tensor, values: Tensor) -> None:
        for name, x, held in (("keys", keys, self._held[0]), ("values", values, self._held[1])):
            rows, heads, _, width = held.shape
            if x.ndim != 4 or (*x.shape[:2], x.shape[3]) != (rows, heads, width):
                raise ValueError(
                    f"{name} has shape {tuple(x.shape)}, but the cache holds (B, H_kv, n, K) of "
                    f"({rows}, {heads}, n, {width})"
                )
        if keys.shape[2] != values.shape[2]:
            raise ValueError(
                f"keys has {keys.shape[2]} tokens and values {values.shape[2]}: every token has "
                "one of each"
            )

    def _room(self, tokens: int) -> slice:
        """Return the columns that the next tokens go to."""
        columns, end = self._held[0].shape[2], self.length + tokens
        if end > columns:
            raise ValueError(
                f"columns={columns}, but {tokens} tokens after {self.length} make {end}: the "
                "cache would overflow. Make it with more columns, or slide a window"
            )
        return slice(self.length, end)


def _empty(
    rows: int,
    heads: int,
    columns: int,
    widths: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device | str,
) -> list[Tensor]:
    return [torch.zeros(rows, heads, columns, n, dtype=dtype, device=device) for n in widths]


class StaticKeyValues(_Rows):
    """Room for ``columns`` tokens, filled one after the other; what is returned are views.

    >>> cache = StaticKeyValues(rows=1, heads=1, columns=4, width=2)
    >>> keys, values = cache.append(torch.ones(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
    >>> cache.length, keys.shape, cache.nbytes
    (3, torch.Size([1, 1, 3, 2]), 64)
    """

    __slots__ = ()

    def __init__(
        self,
        *,
        rows: int,
        heads: int,
        columns: int,
        width: int,
        value_width: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take memory for all columns at once. ``value_width`` is K_v, None the same as K."""
        super().__init__(_empty(rows, heads, columns, (width, value_width or width), dtype, device))

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append n tokens and return all; see ``KeyValues``.

        Raises:
            ValueError: If shapes do not fit, or the columns do not suffice.
        """
        self._check(keys, values)
        place = self._room(keys.shape[2])
        for held, new in zip(self._held, (keys, values), strict=True):
            held[:, :, place] = new
        self.length = place.stop
        all_keys, all_values = self._held
        return all_keys[:, :, : place.stop], all_values[:, :, : place.stop]


class SlidingKeyValues(_Rows):
    """The last ``window`` tokens in constant memory: token t is in column ``t % window``.

    What n appended tokens see begins ``window - 1`` tokens before the first of them. So the caller
    masks, of n > 1, what lies ``window`` or more before each; one token sees all that is returned.

    >>> cache = SlidingKeyValues(rows=1, heads=1, window=2, width=1)
    >>> for token in range(3):
    ...     x = torch.full((1, 1, 1, 1), float(token))
    ...     keys, _ = cache.append(x, x)
    >>> keys.flatten().tolist(), cache.length
    ([1.0, 2.0], 3)
    """

    __slots__ = ()

    def __init__(
        self,
        *,
        rows: int,
        heads: int,
        window: int,
        width: int,
        value_width: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take memory for the window. ``value_width`` is K_v, None the same as K."""
        if window < 1:
            raise ValueError(f"window={window}: a token sees at least itself")
        super().__init__(_empty(rows, heads, window, (width, value_width or width), dtype, device))

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append n tokens; return ``min(length, window - 1) + n`` of them, see ``KeyValues``.

        Raises:
            ValueError: If shapes do not fit.
        """
        self._check(keys, values)
        window = self._held[0].shape[2]
        old = self._columns(max(0, self.length - window + 1), self.length)
        self.length += keys.shape[2]
        new = self._columns(max(self.length - keys.shape[2], self.length - window), self.length)
        seen = []
        for held, x in zip(self._held, (keys, values), strict=True):
            seen.append(torch.cat((held[:, :, old], x.to(held.dtype)), dim=2))
            held[:, :, new] = x[:, :, -len(new) :].to(held.dtype)
        return seen[0], seen[1]

    def _columns(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=self._held[0].device) % self._held[0].shape[2]


class QuantizedKeyValues(_Rows):
    r"""Room for ``columns`` tokens in int8, with a float32 scale for each token and head.

        scale = max_j |x_j| / 127,    code = round(x / scale),    x' = scale code

    So ``|x' - x| <= max_j |x_j| / 254`` in each feature, up to rounding of float32. What is
    returned went through the codes also for the tokens just appended, so that tokens appended
    together give what they give one by one. No gradient passes.

    >>> cache = QuantizedKeyValues(rows=1, heads=1, columns=1, width=3)
    >>> x = torch.tensor([127.0, -3.0, 0.6]).view(1, 1, 1, 3)
    >>> cache.append(x, x)[0].flatten().tolist()
    [127.0, -3.0, 1.0]
    """

    __slots__ = ("_dtype",)

    def __init__(
        self,
        *,
        rows: int,
        heads: int,
        columns: int,
        width: int,
        value_width: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take memory for all columns. ``dtype`` is that of what ``append`` returns."""
        codes = _empty(rows, heads, columns, (width, value_width or width), torch.int8, device)
        super().__init__(codes + _empty(rows, heads, columns, (1, 1), torch.float32, device))
        self._dtype = dtype

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append n tokens and return all, from their codes; see ``KeyValues``.

        Raises:
            ValueError: If shapes do not fit, or the columns do not suffice.
        """
        self._check(keys, values)
        place = self._room(keys.shape[2])
        seen = []
        for codes, scales, x in zip(self._held[:2], self._held[2:], (keys, values), strict=True):
            exact = x.detach().float()
            scale = exact.abs().amax(dim=-1, keepdim=True) / 127
            scales[:, :, place] = scale
            codes[:, :, place] = (exact / scale.masked_fill(scale == 0, 1.0)).round().to(torch.int8)
            whole = slice(0, place.stop)
            seen.append((codes[:, :, whole] * scales[:, :, whole]).to(self._dtype))
        self.length = place.stop
        return seen[0], seen[1]
