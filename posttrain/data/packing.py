"""Documents of different lengths in rows of one length, kept apart by their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from launch.batch import TensorBatch, shaped

__all__ = ["Document", "PackedBatch", "pack"]


@dataclass(frozen=True, eq=False)
class Document:
    """Tokens, and which of them are to be predicted."""

    tokens: Sequence[int] | Tensor
    mask: Sequence[bool] | Tensor
    """As long as ``tokens``, True where the loss counts. The first token is never predicted."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.mask):
            raise ValueError(
                f"a document of {len(self.tokens)} tokens has a mask of {len(self.mask)}: "
                "the mask needs one entry for each token"
            )

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedBatch(TensorBatch):
    """Rows filled with documents. A document begins wherever ``position_ids`` is 0.

    The padding at the end of a row is a document of its own, so that nothing looks at it.
    """

    tokens: Tensor = shaped("B T")
    """int64; 0 in padding."""
    mask: Tensor = shaped("B T")
    """bool, True where the loss counts; False at a document's first token and in padding."""
    position_ids: Tensor = shaped("B T")
    """int64, 0, 1, ... in each document, and again in padding."""

    @property
    def document_ids(self) -> Tensor:
        """``(B, T)`` int64: 0 for a row's first document, 1 for its second, and so on.

        Attention may look from i to j where these are equal and j <= i.
        """
        return (self.position_ids == 0).cumsum(1) - 1


def pack(documents: Sequence[Document], *, length: int) -> PackedBatch:
    """Pack ``documents`` whole into rows of ``length`` by first-fit decreasing.

    That takes at most 11/9 of the fewest rows possible, plus one (Dosa 2007). Within a row
    documents keep their order, and rows are in the order of their first documents.

    Args:
        documents: None empty, none longer than ``length``.
        length: Tokens in a row.

    Returns:
        ``(B, length)`` tensors; B is 0 if there are no documents.

    Raises:
        ValueError: A document is empty or longer than ``length``.

    >>> batch = pack([Document([5, 6, 7], [True] * 3), Document([8, 9], [False, True])], length=6)
    >>> batch.tokens.tolist(), batch.position_ids.tolist()
    ([[5, 6, 7, 8, 9, 0]], [[0, 1, 2, 0, 1, 0]])
    >>> batch.mask.tolist()
    [[False, True, True, False, True, False]]
    """
    if length < 1:
        raise ValueError(f"length={length}: a row needs at least one token")
    sizes = np.array([len(document) for document in documents], dtype=np.int64)
    for index in np.flatnonzero((sizes < 1) | (sizes > length))[:1]:
        if sizes[index] < 1:
            raise ValueError(f"document {index} is empty: leave out documents without tokens")
        raise ValueError(
            f"document {index} has {sizes[index]} tokens, more than a row of length={length}, and "
            "documents are never split: use longer rows, or shorten it"
        )
    rows = _first_fit_decreasing(sizes, length)
    order = np.argsort(rows, kind="stable")  # by row, then by document
    sizes, rows = sizes[order], rows[order]
    ends = np.cumsum(sizes)
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))  # the first document of each row
    used_before = np.repeat((ends - sizes)[firsts], np.diff(np.append(firsts, len(rows))))
    starts = rows * length + ends - sizes - used_before  # where each begins in the flat batch
    within = np.arange(sizes.sum()) - np.repeat(ends - sizes, sizes)
    places = np.repeat(starts, sizes) + within

    shape = (len(firsts), length)
    tokens = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.bool_)
    used = np.bincount(rows, weights=sizes, minlength=len(firsts)).astype(np.int64)
    position_ids = np.arange(length) - used[:, None]  # in padding; what is below 0 is filled now
    if len(documents):
        chosen = [documents[index] for index in order]
        tokens.reshape(-1)[places] = np.concatenate([_tokens(document) for document in chosen])
        mask.reshape(-1)[places] = np.concatenate([_mask(document) for document in chosen])
        mask.reshape(-1)[starts] = False
        position_ids.reshape(-1)[places] = within
    return PackedBatch(
        tokens=torch.from_numpy(tokens),
        mask=torch.from_numpy(mask),
        position_ids=torch.from_numpy(position_ids),
    )


def _tokens(document: Document) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.asarray(document.tokens, dtype=np.int64)


def _mask(document: Document) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray(document.mask, dtype=np.bool_)


def _first_fit_decreasing(
    sizes: np.ndarray[tuple[int], np.dtype[np.int64]], length: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return each document's row: longest first, each into the first row that has room.

    Documents of one size are placed together: each row in turn takes as many as it has room for,
    which is where they would go one by one. So the loop runs over sizes, not over documents.
    """
    placed = np.zeros(len(sizes), dtype=np.int64)
    by_size = np.argsort(-sizes, kind="stable")
    distinct, counts = np.unique(sizes[by_size], return_counts=True)
    room = np.zeros(0, dtype=np.int64)  # of open rows, which `names` numbers
    names = np.zeros(0, dtype=np.int64)
    opened = done = 0
    for size, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        fitting = np.minimum(room // size, count)
        before = np.cumsum(fitting) - fitting
        taken = np.clip(count - before, 0, fitting)
        room = room - taken * size
        left, a_row = count - int(taken.sum()), length // size
        new = np.full(-(-left // a_row), a_row, dtype=np.int64)
        if left:
            new[-1] = left - a_row * (len(new) - 1)
        names = np.append(names, np.arange(opened, opened + len(new)))
        room = np.append(room, length - new * size)
        opened += len(new)
        placed[by_size[done : done + count]] = np.repeat(names, np.append(taken, new))
        done += count
        open_rows = room >= distinct[0]
        room, names = room[open_rows], names[open_rows]
    firsts = np.full(opened, len(sizes), dtype=np.int64)
    np.minimum.at(firsts, placed, np.arange(len(sizes)))
    rank = np.empty(opened, dtype=np.int64)
    rank[np.argsort(firsts, kind="stable")] = np.arange(opened)
    return rank[placed]
