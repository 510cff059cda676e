from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from generative.attention.cache import (
    KeyValues,
    QuantizedKeyValues,
    SlidingKeyValues,
    StaticCache,
    StaticKeyValues,
)
from generative.attention.softmax import attention


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


# --- one layer's, which count their tokens ----------------------------------------------------

WINDOW = 4
KINDS: dict[str, Callable[[], KeyValues]] = {
    "static": lambda: StaticKeyValues(rows=2, heads=3, columns=11, width=4, value_width=5),
    "sliding": lambda: SlidingKeyValues(rows=2, heads=3, window=WINDOW, width=4, value_width=5),
    "int8": lambda: QuantizedKeyValues(rows=2, heads=3, columns=11, width=4, value_width=5),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def tokens(count: int = 11, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, rows, 3, count, 4, generator=g)
    return q, k, torch.randn(rows, 3, count, 5, generator=g)


def decoded(cache: KeyValues, sizes: list[int], window: int | None) -> Tensor:
    """Return the attention of 11 tokens, appended in parts of the given sizes."""
    q, k, v = tokens()
    parts = []
    for some_q, some_k, some_v in zip(*(x.split(sizes, dim=2) for x in (q, k, v)), strict=True):
        keys, values = cache.append(some_k, some_v)
        new, there = some_q.shape[2], keys.shape[2]
        before = torch.arange(there - new, there)[:, None] - torch.arange(there)
        attend = before >= 0
        if window is not None:
            attend &= before < window
        parts.append(attention(some_q, keys, values, attend=attend))
    return torch.cat(parts, dim=2)


@every_kind
@given(cuts=st.sets(st.integers(1, 10)))
def test_tokens_may_be_appended_in_any_parts(kind: str, cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), 11]
    sizes = [b - a for a, b in pairwise(edges)]
    window = WINDOW if kind == "sliding" else None
    one_by_one = decoded(KINDS[kind](), [1] * 11, window)
    torch.testing.assert_close(decoded(KINDS[kind](), sizes, window), one_by_one)
    q, k, v = tokens()
    distances = torch.arange(11)[:, None] - torch.arange(11)
    attend = (distances >= 0) & (distances < (window or 11))
    close = {"rtol": 0, "atol": 0.05} if kind == "int8" else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(one_by_one, attention(q, k, v, attend=attend), **close)


@every_kind
def test_rows_are_repeated_and_selected_in_order(kind: str) -> None:
    _, k, v = tokens()
    expected = KINDS[kind]()
    expected.append(k[:, :, :6], v[:, :, :6])
    keys, values = expected.append(k[:, :, 6:8], v[:, :, 6:8])
    cache = KINDS[kind]()
    cache.append(k[:, :, :6], v[:, :, :6])
    cache.repeat(2)  # rows 0, 0, 1, 1
    cache.select(torch.tensor([3, 0, 2]))
    order = torch.tensor([1, 0, 1])
    found = cache.append(k[order, :, 6:8], v[order, :, 6:8])
    assert cache.length == 8
    assert torch.equal(found[0], keys[order])
    assert torch.equal(found[1], values[order])


def test_a_cache_takes_the_bytes_that_it_says() -> None:
    # Two rows of three heads: 11 columns of 4 + 5 float32; a window of 4; 9 int8 and two scales.
    assert KINDS["static"]().nbytes == 2 * 3 * 11 * (4 + 5) * 4
    assert KINDS["sliding"]().nbytes == 2 * 3 * 4 * (4 + 5) * 4
    assert KINDS["int8"]().nbytes == 2 * 3 * 11 * (4 + 5 + 2 * 4)


def test_a_sliding_cache_stays_as_large_as_its_window() -> None:
    cache = SlidingKeyValues(rows=1, heads=1, window=3, width=1)
    size = cache.nbytes
    for token in range(100):
        x = torch.full((1, 1, 1, 1), float(token))
        keys, _ = cache.append(x, -x)
        assert keys.flatten().tolist() == list(range(max(0, token - 2), token + 1))
    # Of many at once those that its first token sees come too.
    x = torch.arange(100.0, 105).view(1, 1, 5, 1)
    keys, values = cache.append(x, -x)
    assert keys.flatten().tolist() == [98, 99, 100, 101, 102, 103, 104]
    assert torch.equal(values, -keys)
    assert (cache.nbytes, cache.length) == (size, 105)


@given(
    st.lists(
        st.floats(-(2.0**90), 2.0**90, width=32).map(lambda x: 0.0 if abs(x) < 2.0**-90 else x),
        min_size=3,
        max_size=3,
    )
)
def test_int8_is_within_its_bound(values: list[float]) -> None:
    x = torch.tensor(values).view(1, 1, 1, 3)
    found, _ = QuantizedKeyValues(rows=1, heads=1, columns=1, width=3).append(x, x)
    assert (found - x).abs().max() <= x.abs().max() / 254 * (1 + 1e-4)


def test_int8_keeps_a_scale_for_each_token_and_head() -> None:
    x = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[100.0, 50.0], [1e-3, 0.0]]])[None]
    cache = QuantizedKeyValues(rows=1, heads=2, columns=2, width=2, dtype=torch.bfloat16)
    keys, _ = cache.append(x, x)
    assert keys.dtype == torch.bfloat16
    # 0.5 is 63.5 of 127, rounded to even: 64.
    expected = torch.tensor([[[127.0, 64], [0, 0]], [[12700.0, 6400], [0.127, 0]]])[None] / 127
    torch.testing.assert_close(keys, expected.bfloat16())


@pytest.mark.parametrize("kind", ["static", "int8"])
def test_a_full_cache_says_so_and_takes_nothing(kind: str) -> None:
    _, k, v = tokens()
    cache = KINDS[kind]()
    cache.append(k[:, :, :9], v[:, :, :9])
    with pytest.raises(ValueError, match="columns=11, but 3 tokens after 9 make 12"):
        cache.append(k[:, :, :3], v[:, :, :3])
    keys, _ = cache.append(k[:, :, 9:], v[:, :, 9:])
    assert keys.shape[2] == cache.length == 11


@every_kind
def test_what_does_not_fit_is_refused(kind: str) -> None:
    _, k, v = tokens()
    cache = KINDS[kind]()
    with pytest.raises(ValueError, match=r"keys has shape \(1, 3, 11, 4\)"):
        cache.append(k[:1], v)
    with pytest.raises(ValueError, match=r"values has shape \(2, 3, 11, 4\).*\(2, 3, n, 5\)"):
        cache.append(k, v[..., :4])
    with pytest.raises(ValueError, match="keys has 11 tokens and values 10"):
        cache.append(k, v[:, :, 1:])
    with pytest.raises(ValueError, match="window=0"):
        SlidingKeyValues(rows=1, heads=1, window=0, width=1)
