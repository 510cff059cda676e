from __future__ import annotations

import pytest
import torch

from generative.attention.features import elu_plus_one, exp
from generative.attention.kernels.linear_attention import causal_linear_attention


def test_three_tokens_by_hand() -> None:
    # phi = 1 for all: running means of 1, 2, 6; without normaliser running sums.
    q = k = torch.zeros(1, 1, 3, 1)
    v = torch.tensor([1.0, 2.0, 6.0]).view(1, 1, 3, 1)
    out = causal_linear_attention(q, k, v, feature_map=elu_plus_one)
    assert out.flatten().tolist() == [1.0, 1.5, 3.0]
    out = causal_linear_attention(q, k, v, feature_map=exp, normalize=False)
    assert out.flatten().tolist() == [1.0, 3.0, 9.0]


def test_bad_input_is_named() -> None:
    q = torch.zeros(1, 1, 3, 2)
    with pytest.raises(ValueError, match=r"attend has shape \(1, 1, 3, 3\)"):
        causal_linear_attention(
            q, q, q, feature_map=exp, attend=torch.ones(1, 1, 3, 3, dtype=torch.bool)
        )
    with pytest.raises(ValueError, match="causal=True with T_q=3 queries and T_k=2 keys"):
        causal_linear_attention(q, q[:, :, :2], q[:, :, :2], feature_map=exp)
