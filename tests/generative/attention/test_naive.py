from __future__ import annotations

import math

import torch

from generative.attention.naive import softmax_attention


def column(*values: float) -> torch.Tensor:
    """One row and head of tokens of width 1."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, -1, 1)


def test_weights_are_those_worked_by_hand() -> None:
    # Scores ln 1, ln 2, ln 5 give weights 1/8, 2/8, 5/8; of values 8, 16, 24 that is 1 + 4 + 15.
    k = column(0.0, math.log(2), math.log(5))
    out = softmax_attention(column(1.0), k, column(8, 16, 24), scale=1.0)
    torch.testing.assert_close(out, column(20.0))
    # Without the last key 1/3, 2/3: 8/3 + 32/3. By attend, and by a bias of -inf.
    seen = torch.tensor([True, True, False])
    out = softmax_attention(column(1.0), k, column(8, 16, 24), scale=1.0, attend=seen)
    torch.testing.assert_close(out, column(40 / 3))
    bias = torch.tensor([0.0, 0.0, -torch.inf])
    out = softmax_attention(column(1.0), k, column(8, 16, 24), scale=1.0, bias=bias)
    torch.testing.assert_close(out, column(40 / 3))
    # A bias of ln 3 on the first key makes 3/10, 2/10, 5/10: 2.4 + 3.2 + 12.
    bias = torch.tensor([math.log(3), 0.0, 0.0], dtype=torch.float64)
    out = softmax_attention(column(1.0), k, column(8, 16, 24), scale=1.0, bias=bias)
    torch.testing.assert_close(out, column(17.6))


def test_the_scale_divides_by_the_root_of_the_width() -> None:
    # q.k = 4 ln 3 over a width of 4: scores 2 ln 3 and 0, weights 9/10 and 1/10.
    q = torch.full((1, 1, 1, 4), math.log(3), dtype=torch.float64)
    k = torch.stack((torch.ones(4), torch.zeros(4))).double().view(1, 1, 2, 4)
    torch.testing.assert_close(softmax_attention(q, k, column(10, 0)), column(9.0))


def test_a_row_that_may_look_nowhere_is_zero_with_zero_gradients() -> None:
    q, k = column(1.0, 2.0).requires_grad_(), column(1.0, 2.0).requires_grad_()
    v = column(3.0, 5.0).requires_grad_()
    attend = torch.tensor([[True, True], [False, False]])
    out = softmax_attention(q, k, v, attend=attend)
    assert out[0, 0, 1] == 0
    out.sum().backward()
    assert q.grad is not None
    assert q.grad[0, 0, 1] == 0
    assert q.grad[0, 0, 0] != 0


def test_large_scores_neither_overflow_nor_vanish() -> None:
    q = torch.tensor([[1e4]]).view(1, 1, 1, 1)
    k = torch.tensor([1e4, -1e4]).view(1, 1, 2, 1)
    assert softmax_attention(q, k, torch.tensor([2.0, 7.0]).view(1, 1, 2, 1)).item() == 2.0


def test_half_precision_is_summed_in_float32() -> None:
    # 300 equal weights of value 1: summed in bfloat16 (8 bits) the total would stay at 256.
    ones = torch.ones(1, 1, 300, 1, dtype=torch.bfloat16)
    out = softmax_attention(ones[:, :, :1], ones, ones)
    assert out.dtype == torch.bfloat16
    assert out.item() == 1.0
