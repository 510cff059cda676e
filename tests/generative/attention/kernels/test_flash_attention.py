from __future__ import annotations

import pytest
import torch

from generative.attention.kernels.flash_attention import flash_attention
from generative.attention.naive import softmax_attention


def test_without_a_device_the_twin_computes() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, h, 9, 4, generator=g, dtype=torch.float64) for h in (4, 2, 2))
    ours = flash_attention(q, k, v, causal=True, scale=0.3)
    truth = softmax_attention(q, k, v, causal=True, scale=0.3)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def test_bad_input_is_named() -> None:
    q = torch.zeros(1, 1, 3, 2)
    with pytest.raises(TypeError, match=r"attend is torch.float32, expected bool"):
        flash_attention(q, q, q, attend=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="causal=True with T_q=3 queries and T_k=2 keys"):
        flash_attention(q, q[:, :, :2], q[:, :, :2], causal=True)
