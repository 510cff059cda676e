import random
import time
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.packing import Document, PackedBatch, pack


def document(tokens: Sequence[int], mask: Sequence[bool] | None = None) -> Document:
    return Document(tokens, [True] * len(tokens) if mask is None else mask)


def rows_of(batch: PackedBatch) -> list[list[tuple[list[int], list[bool]]]]:
    """Take a batch apart again by its positions alone; the last piece of a row may be padding."""
    rows = []
    for tokens, mask, positions in zip(
        batch.tokens.tolist(), batch.mask.tolist(), batch.position_ids.tolist(), strict=True
    ):
        starts = [i for i, position in enumerate(positions) if position == 0]
        pieces = list(zip(starts, [*starts[1:], len(positions)], strict=True))
        assert all(positions[i:j] == list(range(j - i)) for i, j in pieces)
        rows.append([(tokens[i:j], mask[i:j]) for i, j in pieces])
    return rows


def first_fit_decreasing(sizes: Sequence[int], length: int) -> int:
    """The readable truth: how many rows the textbook's loop opens."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        for row, room in enumerate(rooms):
            if room >= size:
                rooms[row] -= size
                break
        else:
            rooms.append(length - size)
    return len(rooms)


def test_pack_fills_rows_as_worked_by_hand() -> None:
    # Longest first: c (4) opens row one, a (3) opens row two, b (2) fits row one, d (1) row two.
    batch = pack(
        [
            document([1, 2, 3]),
            document([4, 5], [True, False]),
            document([6, 7, 8, 9], [True, True, False, True]),
            document([10]),
        ],
        length=6,
    )
    assert batch.tokens.tolist() == [[1, 2, 3, 10, 0, 0], [4, 5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 2, 3]]
    assert batch.mask.tolist() == [
        [False, True, True, False, False, False],
        [False, False, False, True, False, True],
    ]
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 1, 1]]
    assert (batch.tokens.dtype, batch.mask.dtype) == (torch.int64, torch.bool)
    assert batch.position_ids.dtype == torch.int64


@given(st.lists(st.integers(1, 12), max_size=40), st.integers(12, 30), st.randoms())
def test_pack_keeps_every_document_whole_and_once(
    sizes: list[int], length: int, rng: random.Random
) -> None:
    documents = [
        document([index + 1] * size, [rng.random() < 0.5 for _ in range(size)])
        for index, size in enumerate(sizes)
    ]
    rows = rows_of(pack(documents, length=length))
    assert len(rows) == first_fit_decreasing(sizes, length)
    found = []
    for row in rows:
        inside = [piece for piece in row if piece[0][0] != 0]
        padding = [piece for piece in row if piece[0][0] == 0]
        assert len(padding) <= 1
        assert row == inside + padding
        assert all(not any(mask) for _, mask in padding)
        assert [p[0][0] for p in inside] == sorted(p[0][0] for p in inside)  # in their order
        found += inside
    assert [row[0][0][0] for row in rows] == sorted(row[0][0][0] for row in rows)
    assert sorted(found) == [(list(d.tokens), [False, *d.mask[1:]]) for d in documents]


def test_pack_takes_tensors_and_nothing() -> None:
    mask = torch.tensor([True, True])
    batch = pack([Document(torch.tensor([3, 4]), mask)], length=2)
    assert batch.tokens.tolist() == [[3, 4]]
    assert mask.tolist() == [True, True]
    assert pack([], length=3).tokens.shape == (0, 3)
    assert len(pack([], length=3)) == 0


def test_pack_names_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="document 1 has 5 tokens, more than a row of length=4"):
        pack([document([1]), document([1] * 5)], length=4)
    with pytest.raises(ValueError, match="document 2 is empty"):
        pack([document([1]), document([1] * 2), document([])], length=4)
    with pytest.raises(ValueError, match="length=0"):
        pack([], length=0)
    with pytest.raises(ValueError, match="3 tokens has a mask of 2"):
        Document([1, 2, 3], [True, True])


def test_pack_takes_seconds_for_a_hundred_thousand_documents() -> None:
    rng = random.Random(0)
    documents = [document([1] * rng.randint(1, 40)) for _ in range(100_000)]
    started = time.perf_counter()
    batch = pack(documents, length=64)
    assert time.perf_counter() - started < 5
    used = sum(len(d) for d in documents)
    assert used / batch.tokens.numel() > 0.98


def test_packed_documents_do_not_look_at_each_other() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    documents = [document([index + 1] * size) for index, size in enumerate((5, 3, 7, 2, 6))]
    batch = pack(documents, length=10)
    with torch.no_grad():
        together = model(batch.tokens, position_ids=batch.position_ids, use_cache=False).logits
        for row, piece in enumerate(rows_of(batch)):
            start = 0
            for tokens, _ in piece:
                alone = model(torch.tensor([tokens]), use_cache=False).logits[0]
                part = together[row, start : start + len(tokens)]
                torch.testing.assert_close(part, alone, rtol=0, atol=1e-5)
                start += len(tokens)
