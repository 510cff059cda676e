from __future__ import annotations

import pytest
import torch

from posttrain.data.packing import Document
from posttrain.data.preferences import PreferenceBatch, pad_pairs


def batch(pairs: int) -> PreferenceBatch:
    tokens = torch.arange(4 * pairs).view(2 * pairs, 2)
    return PreferenceBatch(tokens=tokens, mask=tokens >= 0, ref_log_probs=tokens.float())


def test_pairs_are_never_split() -> None:
    parts = list(batch(5).split(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert [part.tokens.shape for part in parts] == [(4, 2), (4, 2), (2, 2)]
    assert parts[2].tokens.tolist() == [[16, 17], [18, 19]]
    assert parts[2].ref_log_probs is not None
    assert parts[2].ref_log_probs.shape == (2, 2)
    assert parts[2].reference_point is None
    assert len(batch(3).empty()) == 0


def test_odd_rows_and_shapes_that_differ_are_refused() -> None:
    tokens = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"got 3 rows, not a multiple of 2"):
        PreferenceBatch(tokens, tokens == 0)
    with pytest.raises(ValueError, match=r"PreferenceBatch\.mask has T=1, but tokens has T=2"):
        PreferenceBatch(tokens[:2], tokens[:2, :1] == 0)


def test_pad_pairs_keeps_chosen_before_rejected() -> None:
    pairs = [
        (Document([1, 2, 3], [False, False, True]), Document([1, 4], [False, True])),
        (Document([5, 6], [False, True]), Document([5, 7, 8, 9], [False, True, True, False])),
    ]
    made = pad_pairs(pairs)
    assert made.tokens.tolist() == [[1, 2, 3, 0], [1, 4, 0, 0], [5, 6, 0, 0], [5, 7, 8, 9]]
    assert made.mask.int().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]
    assert len(pad_pairs([])) == 0


def test_an_empty_completion_is_named() -> None:
    good, empty = Document([1, 2], [False, True]), Document([1], [True])
    with pytest.raises(ValueError, match="pair 1: the rejected document has no token that counts"):
        pad_pairs([(good, good), (good, empty)])
