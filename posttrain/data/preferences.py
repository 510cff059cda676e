"""Preferences: pairs of completions of one prompt, the better one first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from launch.batch import TensorBatch, shaped
from posttrain.data.packing import Document

__all__ = ["Pair", "PairWithMargin", "PreferenceBatch", "pad_pairs", "unrelated_pairs"]

Pair = tuple[Document, Document]
"""The chosen document and the rejected one: a prompt with either completion."""


class PairWithMargin(tuple[Document, Document]):
    """A pair that says by how much the chosen document is better, in units of reward.

    >>> better, worse = Document([5, 6], [False, True]), Document([5, 8], [False, True])
    >>> pad_pairs([PairWithMargin(better, worse, 1.5), (better, worse)]).margin
    tensor([1.5000, 1.5000, 0.0000, 0.0000])
    """

    margin: float

    def __new__(cls, chosen: Document, rejected: Document, margin: float) -> Self:
        """Return the pair; the margin is finite and 0 or more."""
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin={margin}: by how much chosen wins is finite and 0 or more")
        pair = super().__new__(cls, (chosen, rejected))
        pair.margin = float(margin)
        return pair


@dataclass(frozen=True, slots=True, eq=False)
class PreferenceBatch(TensorBatch):
    """Rows 2i are chosen, rows 2i + 1 rejected; right-padded. It is split in pairs.

    Column t of every field is about ``tokens[:, t]``.

    >>> tokens = torch.arange(12).view(4, 3)
    >>> batch = PreferenceBatch(tokens, tokens > 3)
    >>> len(batch), [part.tokens[:, 0].tolist() for part in batch.split(1)]
    (2, [[0, 3], [6, 9]])
    """

    tokens: Tensor = shaped("B T")
    """int64, prompt then completion."""
    mask: Tensor = shaped("B T")
    """bool, True at the completion: what is compared. Not prompt or padding."""
    ref_log_probs: Tensor | None = shaped("B T", default=None)
    """float32 nats, under the frozen reference; objectives without one do not read it."""
    reference_point: Tensor | None = shaped("B", default=None)
    """float32 nats, KTO's z_0 of the whole batch, the same in every row; None is 0."""
    margin: Tensor | None = shaped("B", default=None)
    """float32, by how much a reward has to prefer the chosen row, the same in both rows of a pair;
    None is 0."""

    def __post_init__(self) -> None:
        TensorBatch.__post_init__(self)
        if len(self.tokens) % 2:
            raise ValueError(
                f"got {len(self.tokens)} rows, not a multiple of 2: rows 2i are chosen and rows "
                "2i + 1 rejected, so every chosen completion needs its rejected one"
            )

    def __len__(self) -> int:
        return len(self.tokens) // 2

    def rows(self, start: int, stop: int) -> Self:
        """Return the pairs from ``start`` to ``stop`` (exclusive) as a batch, without a copy."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = {k: v[2 * start : 2 * stop] for k, v in values.items() if v is not None}
        return replace(self, **parts)


def pad_pairs(pairs: Sequence[Pair]) -> PreferenceBatch:
    """Return pairs (chosen, rejected) as a batch, padded to the longest.

    Raises:
        ValueError: A document has no counted token: there is nothing to prefer.

    >>> better, worse = Document([5, 6, 7], [False, True, True]), Document([5, 8], [False, True])
    >>> pad_pairs([(better, worse)]).tokens
    tensor([[5, 6, 7],
            [5, 8, 0]])
    """
    documents = [document for pair in pairs for document in pair]
    longest = max(map(len, documents), default=0)
    tokens = torch.zeros(len(documents), longest, dtype=torch.int64)
    mask = torch.zeros(len(documents), longest, dtype=torch.bool)
    for row, document in enumerate(documents):
        tokens[row, : len(document)] = torch.as_tensor(document.tokens)
        mask[row, 1 : len(document)] = torch.as_tensor(document.mask).bool()[1:]
        if not mask[row].any():
            kind = "rejected" if row % 2 else "chosen"
            raise ValueError(
                f"pair {row // 2}: the {kind} document has no token that counts, so there is "
                "nothing to compare; is its completion empty?"
            )
    margins = [pair.margin if isinstance(pair, PairWithMargin) else 0.0 for pair in pairs]
    margin = torch.tensor(margins).repeat_interleave(2) if any(margins) else None
    return PreferenceBatch(tokens, mask, margin=margin)


def unrelated_pairs(pairs: Sequence[tuple[Pair, Pair]], row_length: int) -> list[Pair]:
    """Return, of each two pairs, the prompts of the first with the completions of the second.

    A completion begins at a document's first token that counts, and is cut off at ``row_length``.
    KTO estimates its reference point on such.

    >>> one = Document([1, 2, 9], [False, False, True])
    >>> other = Document([3, 8, 7], [False, True, True])
    >>> unrelated_pairs([((one, one), (other, other))], row_length=9)[0][0]
    Document(tokens=[1, 2, 8, 7], mask=[False, False, True, True])
    """
    return [(_joined(a, c, row_length), _joined(b, d, row_length)) for (a, b), (c, d) in pairs]


def _joined(prompt: Document, completion: Document, row_length: int) -> Document:
    end, start = (_first_counted(document) for document in (prompt, completion))
    tokens = [*map(int, prompt.tokens[:end]), *map(int, completion.tokens[start:])]
    mask = [False] * end + [bool(x) for x in completion.mask[start:]]
    return Document(tokens[:row_length], mask[:row_length])


def _first_counted(document: Document) -> int:
    """Return where the completion begins; a document's first token is never one."""
    return next((i for i, counts in enumerate(document.mask) if counts and i), len(document))
