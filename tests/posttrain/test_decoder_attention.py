from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from posttrain import decoder_short_attention
from posttrain.decoder_attention import attend, attend_densely, rotate
from posttrain.decoder_layout import Heads, Layout, rounded, sequences, shared_sequences

HEADS = Heads(queries=4, keys=2, width=6, scale=6**-0.5)
LAYOUTS: dict[str, Callable[[], Layout]] = {
    "one": lambda: sequences(torch.tensor([5])),
    "equal": lambda: sequences(torch.tensor([4, 4, 4, 4])),
    "unequal": lambda: sequences(torch.tensor([1, 9, 3, 2, 8, 1])),
    "short-before-long": lambda: sequences(torch.tensor([2, 30])),
    "long-before-short": lambda: sequences(torch.tensor([30, 2])),
    "three-plain-runs": lambda: sequences(torch.tensor([1, 3, 12])),
    "shared": lambda: shared_sequences(torch.tensor([4, 4]), torch.tensor([2, 2, 2, 2])),
    "shared-unequal": lambda: shared_sequences(
        torch.tensor([3, 7, 1]), torch.tensor([2, 0, 5, 1, 4, 4])
    ),
    "shared-nothing-follows": lambda: shared_sequences(torch.tensor([3, 2]), torch.zeros(4).long()),
}


def random(layout: Layout, dtype: torch.dtype) -> Tensor:
    g = torch.Generator().manual_seed(1)
    count = rounded(layout.real)
    return torch.randn(count, 8 * 6, generator=g, dtype=dtype, requires_grad=True)


def by_hand(qkv: Tensor, starts: list[list[int]]) -> Tensor:
    """Attention of each token to the listed ones, in plain loops."""
    queries, keys, values = HEADS.split(qkv)  # (N, 2, 2, 6), (N, 2, 6), (N, 2, 6)
    rows = []
    for t, seen in enumerate(starts):
        scores = torch.einsum("hrk,shk->hrs", queries[t], keys[seen]) * HEADS.scale
        rows.append(torch.einsum("hrs,shk->hrk", scores.softmax(-1), values[seen]).flatten())
    return torch.stack(rows)


def test_slots_are_left_out_only_where_blocks_lie_in_token_order() -> None:
    assert sequences(torch.tensor([30, 2])).slots is None
    layout = sequences(torch.tensor([2, 30]))
    assert [block.start for block in layout.blocks] == [2, 0]
    assert layout.slots is not None
    assert layout.slots.tolist() == [30, 31, *range(30)]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("path", ["short", "flash", "dense"])
def test_each_token_sees_its_sequence_and_its_prefix(
    name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = LAYOUTS[name]()
    seen: list[list[int]] = [[] for _ in range(layout.real)]
    for block in layout.blocks:
        group = 1
        if block.prefix is not None:
            group = len(block.tokens) // len(layout.blocks[block.prefix].tokens)
        for s, (row, length) in enumerate(zip(block.tokens, block.lengths, strict=True)):
            before: list[int] = []
            if block.prefix is not None:
                prompt = layout.blocks[block.prefix]
                before = prompt.tokens[s // group, : int(prompt.lengths[s // group])].tolist()
            for t in range(int(length)):
                seen[int(row[t])] = before + row[: t + 1].tolist()
    assert all(seen)
    if path == "flash":
        monkeypatch.setattr(decoder_short_attention, "_KEYS", 0)
    qkv = random(layout, torch.float64)
    function = attend_densely if path == "dense" else attend
    ours = function(qkv, HEADS, layout)[: layout.real]
    truth = by_hand(qkv, seen)
    torch.testing.assert_close(ours, truth)
    g = torch.Generator().manual_seed(2)
    above = torch.randn(truth.shape, generator=g, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(ours, qkv, above)[0], torch.autograd.grad(truth, qkv, above)[0]
    )


@pytest.mark.parametrize("path", ["short", "flash"])
def test_attend_passes_gradcheck(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "flash":
        monkeypatch.setattr(decoder_short_attention, "_KEYS", 0)
    layout = shared_sequences(torch.tensor([2, 1]), torch.tensor([2, 1, 0, 2]))
    g = torch.Generator().manual_seed(1)
    heads = Heads(queries=2, keys=1, width=2, scale=0.7)
    shape = (rounded(layout.real), 8)
    qkv = torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attend(x, heads, layout)[: layout.real], qkv)


def test_a_window_hides_what_lies_further_back() -> None:
    layout = sequences(torch.tensor([6]))
    qkv = random(layout, torch.float64)
    seen = [[0], [0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]
    torch.testing.assert_close(attend(qkv, HEADS, layout, window=2)[:6], by_hand(qkv, seen))


def test_a_window_reaches_back_into_the_prefix() -> None:
    layout = shared_sequences(torch.tensor([3, 2]), torch.tensor([2, 1, 1, 2]))
    qkv = random(layout, torch.float64)
    # prompts 0-2 and 3-4; then 5-6 and 7 after the first, 8 and 9-10 after the second
    seen = [[0], [0, 1], [1, 2], [3], [3, 4], [2, 5], [5, 6], [2, 7], [4, 8], [4, 9], [9, 10]]
    torch.testing.assert_close(attend(qkv, HEADS, layout, window=2)[:11], by_hand(qkv, seen))


def test_rotate_passes_gradcheck() -> None:
    g = torch.Generator().manual_seed(1)
    qkv = torch.randn(3, 8, generator=g, dtype=torch.float64, requires_grad=True)
    turns = torch.randn(3, 3, generator=g, dtype=torch.complex128)
    assert torch.autograd.gradcheck(lambda x: rotate(x, turns), qkv)
    torch.testing.assert_close(rotate(qkv, turns)[:, 6:], qkv[:, 6:])
