"""Sorting, copying and reversing sequences of symbols: tasks that are learnt to the last symbol.

A sequence is held out by its own content: one in ``1 / HELD_OUT_SHARE`` is never trained on,
whatever the seed, so that a right answer to it is no memory.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from launch.batch import TensorBatch, shaped
from launch.conversion import load_object
from launch.errors import UsageError

__all__ = [
    "BEGIN",
    "END",
    "SPECIAL",
    "Answer",
    "SequenceBatch",
    "Sequences",
    "checked_answer",
    "copied",
    "in_reverse",
    "is_held_out",
    "parse_answer",
    "sorted_up",
]

BEGIN, END = 0, 1
"""Every target begins with the one and ends with the other; a source has neither."""
SPECIAL = 2
"""Tokens before the first symbol."""
HELD_OUT_SHARE = 16
"""One sequence in so many is held out."""

Answer = Callable[[Sequence[int]], list[int]]
"""From a source's symbols to those of its target, of which there are as many."""


def copied(symbols: Sequence[int]) -> list[int]:
    """Return the symbols as they are."""
    return list(symbols)


def in_reverse(symbols: Sequence[int]) -> list[int]:
    """Return the last symbol first.

    >>> in_reverse([3, 2, 5])
    [5, 2, 3]
    """
    return list(reversed(symbols))


def sorted_up(symbols: Sequence[int]) -> list[int]:
    """Return the symbols from the least to the greatest, repeated ones as often as they come.

    >>> sorted_up([3, 2, 5, 2])
    [2, 2, 3, 5]
    """
    return sorted(symbols)


def parse_answer(text: str) -> Answer:
    """Read ``--answer sort``, ``copy``, ``reverse`` or ``module:function``.

    Raises:
        UsageError: There is no such name, or it is no function.
    """
    known: dict[str, Answer] = {"sort": sorted_up, "copy": copied, "reverse": in_reverse}
    if text in known:
        return known[text]
    found = load_object(text, "") if ":" in text else None
    if not callable(found):
        raise UsageError(f"{text}: expected {', '.join(known)} or module:function")
    return cast(Answer, found)


def is_held_out(symbols: Sequence[int]) -> bool:
    """Return whether a sequence is never trained on; it follows from the sequence alone.

    >>> sum(is_held_out([a, b, c]) for a in range(16) for b in range(16) for c in range(16))
    256
    """
    return zlib.crc32(bytes(symbols)) % HELD_OUT_SHARE == 0


def checked_answer(answer: Answer, symbols: Sequence[int], vocabulary: int) -> list[int]:
    """Return the answer to ``symbols``.

    Raises:
        UsageError: It is not as many integers from ``SPECIAL`` to ``vocabulary - 1``.
    """
    told = answer(symbols)
    try:
        found = [operator.index(token) for token in told]
    except TypeError:
        found = []
    if len(found) != len(symbols) or not all(SPECIAL <= x < vocabulary for x in found):
        raise UsageError(
            f"answer turns {list(symbols)} into {told}: expected a list of as many symbols, from "
            f"{SPECIAL} to {vocabulary - 1}"
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SequenceBatch(TensorBatch):
    """Sources and their targets, padded on the right."""

    source: Tensor = shaped("B S")
    """int64."""
    source_mask: Tensor = shaped("B S")
    """bool, False at padding."""
    target: Tensor = shaped("B T")
    """int64, ``BEGIN`` and the answer: what the decoder is given."""
    labels: Tensor = shaped("B T")
    """int64, the answer and ``END``: what is to follow each token of ``target``."""
    mask: Tensor = shaped("B T")
    """bool, True where a label counts."""
    seeds: Tensor = shaped("B")
    """int64, what the dropout of a row follows from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """Which sequences are drawn: lengths and symbols evenly."""

    symbols: int = 16
    """How many kinds there are; at most 254."""
    shortest: int = 4
    longest: int = 16

    def __post_init__(self) -> None:
        if not 2 <= self.symbols <= 256 - SPECIAL:
            raise ValueError(f"symbols={self.symbols}: give 2 to {256 - SPECIAL}")
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"shortest={self.shortest}, longest={self.longest}: lengths go from at least 1 "
                "upwards"
            )
        if self.symbols**self.longest < 1_000:
            raise ValueError(
                f"symbols={self.symbols}, longest={self.longest}: of fewer than 1,000 longest "
                "sequences, too few could be held out; give more of either"
            )

    @property
    def vocabulary(self) -> int:
        """V: ``BEGIN``, ``END`` and the symbols."""
        return SPECIAL + self.symbols

    def draw(self, generator: torch.Generator, *, held_out: bool) -> list[int]:
        """Return one sequence of tokens that is, or is not, held out."""
        while True:  # a length may have no held-out sequence, so it is drawn anew as well
            span = self.longest - self.shortest + 1
            length = self.shortest + int(torch.randint(span, (), generator=generator))
            drawn = torch.randint(self.symbols, (length,), generator=generator) + SPECIAL
            sequence = [int(token) for token in drawn.tolist()]
            if is_held_out(sequence) == held_out:
                return sequence

    def batch(
        self,
        sources: Sequence[Sequence[int]],
        answer: Answer,
        seeds: Sequence[int] | None = None,
    ) -> SequenceBatch:
        """Return sources with their answers, padded to the longest that may be drawn.

        Seeds are for dropout, one a row; None is 0 for each.

        Raises:
            UsageError: An answer is not as many symbols as its source.
        """
        rows, width = len(sources), self.longest
        source = torch.full((rows, width), END)
        target, labels = torch.full((rows, width + 1), END), torch.full((rows, width + 1), END)
        lengths = torch.tensor([len(symbols) for symbols in sources], dtype=torch.int64)[:, None]
        for row, symbols in enumerate(sources):
            answered = checked_answer(answer, symbols, self.vocabulary)
            source[row, : len(symbols)] = torch.tensor(symbols)
            target[row, : len(symbols) + 1] = torch.tensor([BEGIN, *answered])
            labels[row, : len(symbols)] = torch.tensor(answered)
        return SequenceBatch(
            source=source,
            source_mask=torch.arange(width) < lengths,
            target=target,
            labels=labels,
            mask=torch.arange(width + 1) <= lengths,
            seeds=torch.tensor(seeds or [0] * rows, dtype=torch.int64),
        )
