"""What gated units keep of the tokens so far: all keys and values, or sums and one chunk."""

from __future__ import annotations

from torch import Tensor

__all__ = ["FLASHState", "GAUState"]


class _Rows:
    """Tensors whose first axis is rows, and a number of tokens."""

    __slots__ = ("length", "tensors")

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = list(tensors)
        self.length = 0
        """Tokens so far."""

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return sum(x.nbytes for x in self.tensors)

    def repeat(self, count: int) -> None:
        """Take each row ``count`` times: row r becomes ``r * count`` to ``r * count + count - 1``.

        In place.
        """
        self.tensors = [x.repeat_interleave(count, 0) for x in self.tensors]

    def check_rows(self, x: Tensor) -> None:
        """Raise ValueError where ``x`` has other rows."""
        if x.shape[0] != self.tensors[0].shape[0]:
            raise ValueError(
                f"x has {x.shape[0]} rows, but state {self.tensors[0].shape[0]}: each row goes on "
                "with its own; repeat or select the state's rows first"
            )

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, ``(R,)`` int64, in that order; one may come more than once.

        In place.
        """
        self.tensors = [x.index_select(0, rows) for x in self.tensors]


class GAUState(_Rows):
    """Keys ``(B, C, S)`` and values ``(B, C, E)`` of all tokens; room for C = ``columns``."""

    __slots__ = ()

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append n tokens' keys and values; return those of all tokens so far, views."""
        self.check_rows(values)
        columns, end = self.tensors[0].shape[1], self.length + keys.shape[1]
        if end > columns:
            raise ValueError(
                f"columns={columns}, but {keys.shape[1]} tokens after {self.length} make {end}: "
                "the state would overflow; make it with more columns"
            )
        for held, new in zip(self.tensors, (keys, values), strict=True):
            held[:, self.length : end] = new
        self.length = end
        return self.tensors[0][:, :end], self.tensors[1][:, :end]


class FLASHState(_Rows):
    """The sum of ``lin_k v^T`` over full chunks, and keys and values of the current one.

    Its tensors are memory ``(B, S, E)``, quad_k and lin_k ``(B, C, S)``, v ``(B, C, E)``; their
    size does not change. A chunk that is full is added to the memory.
    """

    __slots__ = ()

    @property
    def room(self) -> int:
        """Tokens until the current chunk is full, at least 1."""
        chunk = self.tensors[1].shape[1]
        return chunk - self.length % chunk

    def append(self, quad_k: Tensor, lin_k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append n <= ``room`` tokens.

        Returns:
            The memory before their chunk, and quad_k and v of the chunk so far, views.
        """
        self.check_rows(v)
        memory, *chunk = self.tensors
        start = self.length % chunk[0].shape[1]
        end = start + v.shape[1]
        for held, new in zip(chunk, (quad_k, lin_k, v), strict=True):
            held[:, start:end] = new
        self.length += v.shape[1]
        if end == chunk[0].shape[1]:
            self.tensors[0] = memory + chunk[1].mT.to(memory.dtype) @ chunk[2].to(memory.dtype)
        return memory, chunk[0][:, :end], chunk[2][:, :end]
