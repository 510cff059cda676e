from __future__ import annotations

import pytest
import torch

from generative.attention.kernels.squared_relu import squared_relu_attention


def test_three_tokens_by_hand() -> None:
    # q = k = (1, -1, 2), scale 1/2. Causal weights: 1/4; 0 and 1/4; 1, 0 and 4.
    # v = (4, 8, 1): 1; 2; 4 + 4 = 8.
    q = torch.tensor([1.0, -1.0, 2.0]).view(1, 1, 3, 1)
    v = torch.tensor([4.0, 8.0, 1.0]).view(1, 1, 3, 1)
    out = squared_relu_attention(q, q, v, causal=True, scale=0.5)
    assert out.flatten().tolist() == [1.0, 2.0, 8.0]


def test_gradients_by_finite_differences() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, h, 4, 2, generator=g, dtype=torch.float64).requires_grad_()
        for h in (2, 1, 1)
    )
    attend = torch.tensor([True, True, False, True])
    assert torch.autograd.gradcheck(
        lambda *x: squared_relu_attention(*x, attend=attend, causal=True), (q, k, v)
    )


def test_bad_input_is_named() -> None:
    q = torch.zeros(1, 1, 3, 2)
    with pytest.raises(TypeError, match=r"attend is torch.float32, expected bool"):
        squared_relu_attention(q, q, q, attend=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="causal=True with T_q=3 queries and T_k=2 keys"):
        squared_relu_attention(q, q[:, :, :2], q[:, :, :2], causal=True)
