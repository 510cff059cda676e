from __future__ import annotations

import pytest
import torch

from generative.attention.kernels.flash_mixing import flash_mixing


def test_four_tokens_by_hand() -> None:
    # Chunks of 2, all queries and keys 1, scales 1/2 and 3. Within a chunk each weight is 1/4, an
    # earlier chunk's sum of values counts 3 times. v = (4, 8, 12, 16):
    # 1; 1 + 2 = 3; 3 + 3 * 12 = 39; 3 + 4 + 36 = 43.
    ones = torch.ones(1, 4, 1)
    v = torch.tensor([4.0, 8.0, 12.0, 16.0]).view(1, 4, 1)
    out = flash_mixing(
        ones, ones, ones, ones, v, chunk=2, causal=True, quad_scale=0.5, lin_scale=3.0
    )
    assert out.flatten().tolist() == [1.0, 3.0, 39.0, 43.0]


def test_bad_input_is_named() -> None:
    x = torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match=r"lin_k has shape \(1, 3, 2\)"):
        flash_mixing(x, x, x, x[:, :3], x, chunk=2, causal=True)
    with pytest.raises(ValueError, match="chunk=0"):
        flash_mixing(x, x, x, x, x, chunk=0, causal=True)
