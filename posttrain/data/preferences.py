"""Preferences: pairs of completions of one prompt, the better one first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from launch.batch import TensorBatch, shaped
from posttrain.data.packing import Document

__all__ = ["PreferenceBatch", "pad_pairs"]


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


def pad_pairs(pairs: Sequence[tuple[Document, Document]]) -> PreferenceBatch:
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
    return PreferenceBatch(tokens, mask)
