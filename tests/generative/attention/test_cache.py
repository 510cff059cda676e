from __future__ import annotations

import torch

from generative.attention.cache import StaticCache


def numbered(rows: int = 3, heads: int = 2, columns: int = 2) -> StaticCache:
    """Every key is 100 row + 10 head + column, every value its negative."""
    cache = StaticCache(layers=1, rows=rows, heads=heads, columns=columns, width=1)
    for column in range(columns):
        keys = 100 * torch.arange(rows)[:, None] + 10 * torch.arange(heads) + column
        cache.write(0, column, torch.stack((keys, -keys))[..., None].float())
    return cache


def test_write_puts_keys_and_values_into_their_column() -> None:
    cache = numbered()
    assert cache.keys(0)[2, 1, :, 0].tolist() == [210.0, 211.0]
    assert cache.values(0)[2, 1, :, 0].tolist() == [-210.0, -211.0]


def test_keep_orders_rows_and_chooses_heads() -> None:
    cache = numbered()
    cache.keep(torch.tensor([2, 0]))
    assert cache.keys(0)[:, :, 0, 0].tolist() == [[200.0, 210.0], [0.0, 10.0]]
    cache.keep(torch.tensor([1, 0]), torch.tensor([[1], [0]]))
    assert cache.keys(0)[:, :, 1, 0].tolist() == [[11.0], [201.0]]
    assert cache.values(0)[:, :, 1, 0].tolist() == [[-11.0], [-201.0]]


def test_widen_keeps_what_was_written() -> None:
    cache = numbered()
    cache.widen(5)
    assert cache.columns == 5
    assert cache.keys(0)[1, 1, :, 0].tolist() == [110.0, 111.0, 0.0, 0.0, 0.0]


def test_fill_writes_the_first_columns_of_some_rows() -> None:
    cache = StaticCache(layers=1, rows=2, heads=1, columns=3, width=1)
    cache.fill(0, slice(1, 2), 2, torch.tensor([[5.0, 6.0], [7.0, 8.0]]).view(2, 1, 1, 2, 1))
    assert cache.keys(0)[..., 0].tolist() == [[[0.0, 0.0, 0.0]], [[5.0, 6.0, 0.0]]]
    assert cache.values(0)[..., 0].tolist() == [[[0.0, 0.0, 0.0]], [[7.0, 8.0, 0.0]]]
