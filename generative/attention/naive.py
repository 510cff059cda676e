"""Attention in its plainest form, float64-capable: the truth that all faster forms are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from generative.attention.checks import (
    accumulated,
    allowed,
    check_attend,
    check_bias,
    check_causal,
    check_qkv,
    checked_scale,
    repeat_heads,
    without_unseen,
)

__all__ = ["softmax_attention"]


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attend: Tensor | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    r"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

        s_ij = scale q_i . k_j + bias_ij
        o_i  = sum_j exp(s_ij) v_j / sum_j exp(s_ij),    over the j that i may look at

    A row that may look nowhere is 0, and so are its gradients. Memory is O(T_q T_k).

    Args:
        q: ``(B, H, T_q, K)``.
        k: ``(B, H_kv, T_k, K)``; H is a multiple of H_kv.
        v: ``(B, H_kv, T_k, K_v)``.
        attend: bool, True = may look, broadcastable to ``(B, H, T_q, T_k)``.
        causal: Query i looks at keys up to i alone; for T_q = T_k. Holds besides ``attend``.
        bias: Added to the scores, broadcastable alike; -inf there means the same as False.
        scale: None is ``1 / sqrt(K)``.

    Returns:
        ``(B, H, T_q, K_v)``, dtype of ``q``; sums are float32 for half precision.

    Raises:
        TypeError, ValueError: If an argument does not fit; the message names it.

    >>> q, k = torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1)  # equal scores: means
    >>> softmax_attention(q, k, torch.tensor([1.0, 3.0]).view(1, 1, 2, 1), causal=True).flatten()
    tensor([1., 2.])
    """
    check_qkv(q, k, v)
    check_causal(causal, q, k)
    attend = None if attend is None else check_attend(attend, q, k)
    bias = None if bias is None else check_bias(bias, q, k)
    k, v = without_unseen(k, v, attend)
    mask = allowed(attend, causal, q, k)
    exact = accumulated(q.dtype)
    keys, values = (repeat_heads(x.to(exact), q.shape[1]) for x in (k, v))
    scores = checked_scale(scale, q) * (q.to(exact) @ keys.mT)
    if bias is not None:
        scores = scores + bias.to(exact)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    largest = scores.amax(dim=-1, keepdim=True).detach().clamp(min=torch.finfo(exact).min)
    weights = (scores - largest).exp()
    total = weights.sum(dim=-1, keepdim=True)  # at least 1, or 0 for a row that may look nowhere
    return ((weights / (total + (total == 0))) @ values).to(q.dtype)
