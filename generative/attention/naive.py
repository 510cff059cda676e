"""Attention in its plainest form, float64-capable: the truth that all faster forms are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.attention.checks import (
    accumulated,
    allowed,
    check_bias,
    checked,
    checked_scale,
    repeat_heads,
)
from generative.attention.features import FeatureMap

__all__ = [
    "gated_attention_unit",
    "gated_delta_rule",
    "linear_attention",
    "mixed_chunk_attention",
    "softmax_attention",
    "squared_relu_attention",
]


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
    q, k, v, attend = checked(q, k, v, attend=attend, causal=causal)
    bias = None if bias is None else check_bias(bias, q, k)
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


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: FeatureMap,
    causal: bool = False,
    normalize: bool = True,
    attend: Tensor | None = None,
    decay: Tensor | None = None,
) -> Tensor:
    r"""Linear attention with its whole matrix of weights (arXiv:2006.16236, eq. 4).

        a_ts = phi(q_t) . phi(k_s) gamma^(t - s),    o_t = sum_s a_ts v_s / sum_s a_ts

    This and what follows check nothing.

    Args:
        q: ``(B, H, T, K)``.
        k: ``(B, H_kv, T_k, K)``.
        v: ``(B, H_kv, T_k, K_v)``.
        feature_map: phi, ``(..., K) -> (..., M)``.
        causal: Keys after the query have weight 0.
        normalize: Divide by the sum of weights; False leaves the sum.
        attend: bool, True = may look, broadcastable to ``(B, H, T, T_k)``.
        decay: gamma, ``(H,)``, with ``causal``; None is 1.

    Returns:
        ``(B, H, T, K_v)``; 0 where the sum of weights is 0.
    """
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    weights = feature_map(q) @ feature_map(k).mT
    rows = torch.arange(q.shape[2], device=q.device)[:, None]
    columns = torch.arange(k.shape[2], device=q.device)
    if causal:
        weights = weights.masked_fill(columns > rows, 0.0)
    if decay is not None:
        weights = weights * decay.to(weights)[:, None, None] ** (rows - columns).clamp(min=0)
    if attend is not None:
        weights = weights.masked_fill(~attend, 0.0)
    if not normalize:
        return weights @ v
    total = weights.sum(-1, keepdim=True)
    nothing = total == 0
    return (weights @ v / total.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, *, beta: Tensor, log_decay: Tensor | None = None
) -> Tensor:
    r"""Gated delta rule, token by token (Yang et al. 2024, arXiv:2412.06464, eq. 10).

        S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,    o_t = S_t^T q_t

    Args:
        q: ``(B, H, T, K)``.
        k: ``(B, H_kv, T, K)``.
        v: ``(B, H_kv, T, K_v)``.
        beta: ``(B, H, T)``, how much of what the memory held at k_t is replaced.
        log_decay: ``(B, H, T)``, log alpha; None is 0.

    Returns:
        ``(B, H, T, K_v)``.
    """
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    memory = q.new_zeros(*k.shape[:2], k.shape[3], v.shape[3])
    identity = torch.eye(k.shape[3], dtype=q.dtype, device=q.device)
    outputs = []
    for t in range(q.shape[2]):
        key, value, b = k[:, :, t], v[:, :, t], beta[:, :, t, None, None]
        memory = (identity - b * key[..., :, None] * key[..., None, :]) @ memory
        if log_decay is not None:
            memory = memory * log_decay[:, :, t, None, None].exp()
        memory = memory + b * key[..., :, None] * value[..., None, :]
        outputs.append((q[:, :, t, None] @ memory)[:, :, 0])
    return torch.stack(outputs, 2)


def squared_relu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attend: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    r"""``o_t = sum_s relu(scale q_t . k_s)^2 v_s``; arguments as ``gau.squared_relu_attention``."""
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    weights = F.relu(checked_scale(scale, q) * q @ k.mT) ** 2
    if causal:
        weights = weights.tril()
    if attend is not None:
        weights = weights.masked_fill(~attend, 0.0)
    return weights @ v


def gated_attention_unit(
    gates: Tensor,
    values: Tensor,
    z: Tensor,
    scales: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    causal: bool = False,
    attend: Tensor | None = None,
) -> Tensor:
    r"""Gated attention unit between its projections (Hua et al. 2022, arXiv:2202.10447, section 2).

        q, k = z * scales + offsets,    o = gates * (relu(scale q k^T)^2 values)

    Args:
        gates: ``(B, T, E)``, u.
        values: ``(B, T, E)``, v.
        z: ``(B, T, S)``, shared by queries and keys.
        scales: ``(2, S)``, of the queries and of the keys.
        offsets: ``(2, S)``.
        scale: Of the scores.
        causal: Tokens see those before them and themselves.
        attend: bool, broadcastable to ``(B, 1, T, T)``.

    Returns:
        ``(B, T, E)``.
    """
    q, k = z * scales[0] + offsets[0], z * scales[1] + offsets[1]
    weights = F.relu(scale * q @ k.mT) ** 2
    if causal:
        weights = weights.tril()
    if attend is not None:
        weights = weights.masked_fill(~attend.squeeze(1), 0.0)
    return gates * (weights @ values)


def mixed_chunk_attention(
    quad_q: Tensor,
    quad_k: Tensor,
    lin_q: Tensor,
    lin_k: Tensor,
    v: Tensor,
    *,
    chunk: int,
    causal: bool = False,
    attend: Tensor | None = None,
    quad_scale: float,
    lin_scale: float,
) -> Tensor:
    """Mix by one whole (T, T) matrix what ``gau.flash_mixing`` mixes chunk by chunk."""
    places = torch.arange(v.shape[1], device=v.device)
    rows, columns = places[:, None] // chunk, places // chunk
    quadratic = F.relu(quad_scale * quad_q @ quad_k.mT) ** 2 * (rows == columns)
    linear = lin_scale * lin_q @ lin_k.mT
    if causal:
        quadratic, linear = quadratic.tril(), linear * (columns < rows)
    weights = quadratic + linear
    if attend is not None:
        weights = weights.masked_fill(~attend.squeeze(1), 0.0)
    return weights @ v
