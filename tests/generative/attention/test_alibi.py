from __future__ import annotations

import pytest
import torch

from generative.attention.alibi import alibi_bias, alibi_slopes
from generative.attention.softmax import attention


def test_slopes_are_those_of_the_paper() -> None:
    # Section 3: for 8 heads 1/2, 1/4, ..., 1/256.
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    # 16 heads interpolate: 2^-0.5, 2^-1, ..., 2^-8.
    torch.testing.assert_close(alibi_slopes(16), 2.0 ** -(torch.arange(1, 17) / 2))


def test_heads_that_are_no_power_of_two_take_every_other_slope_of_the_next() -> None:
    # 12 = 8 + 4: then 2^-0.5, 2^-1.5, 2^-2.5, 2^-3.5 of 16 heads.
    expected = [2.0**-i for i in range(1, 9)] + [2.0 ** -(i + 0.5) for i in range(4)]
    torch.testing.assert_close(alibi_slopes(12), torch.tensor(expected))
    with pytest.raises(ValueError, match="heads=0"):
        alibi_slopes(0)


def test_bias_falls_with_the_distance_to_both_sides() -> None:
    bias = alibi_bias(torch.arange(3), torch.arange(3), torch.tensor([1.0, 0.5]))
    assert bias[0].tolist() == [[0, -1, -2], [-1, 0, -1], [-2, -1, 0]]
    assert bias[1].tolist() == [[0, -0.5, -1], [-0.5, 0, -0.5], [-1, -0.5, 0]]


def test_a_decoded_token_gets_the_row_of_the_whole() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 6, 8, generator=g) for _ in range(3))
    places, slopes = torch.arange(6), alibi_slopes(4)
    whole = attention(q, k, v, causal=True, bias=alibi_bias(places, places, slopes))
    last = attention(q[:, :, 5:], k, v, bias=alibi_bias(places[5:], places, slopes))
    torch.testing.assert_close(last, whole[:, :, 5:])
