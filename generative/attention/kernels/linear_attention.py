"""Causal linear attention as Triton kernels, forward and backward.

The twin is ``generative.attention.linear.linear_attention_chunked``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from generative.attention.checks import (
    check_causal,
    check_key_mask,
    check_qkv,
    repeat_heads,
)
from generative.attention.features import FeatureMap, LogFeatures, elu_plus_one, relu
from generative.attention.kernels.dispatch import on_kernels
from generative.attention.linear import linear_attention_chunked

__all__ = ["causal_linear_attention"]

Context: TypeAlias = Any  # torch's, which takes any attribute

_FUSED: dict[FeatureMap, str] = {elu_plus_one: "elu_plus_one", relu: "relu"}
_WIDEST = 256


def causal_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: FeatureMap,
    normalize: bool = True,
    attend: Tensor | None = None,
) -> Tensor:
    r"""Causal linear attention (Katharopoulos et al. 2020, arXiv:2006.16236, eq. 8 to 11).

        o_t = sum_{s <= t} phi(q_t) . phi(k_s) v_s / sum_{s <= t} phi(q_t) . phi(k_s)

    On a CUDA device with Triton, states of segments are summed first and outputs made from them;
    ``elu_plus_one`` and ``relu`` are computed as queries and keys are loaded. Elsewhere, and for
    ``LogFeatures``, which need their own care against overflow, the twin computes.

    Args:
        q: ``(B, H, T, K)``.
        k: ``(B, H_kv, T, K)``; H is a multiple of H_kv.
        v: ``(B, H_kv, T, K_v)``.
        feature_map: phi, ``(..., K) -> (..., M)``; M is at most 256 for the kernel.
        normalize: Divide by the sum of weights; False leaves the sum.
        attend: bool, True = may be looked at, broadcastable to ``(B, H, 1, T)``; keys alone.

    Returns:
        ``(B, H, T, K_v)``, dtype of q. Exactly 0, with gradients 0, where the sum of weights is 0.

    Raises:
        TypeError, ValueError: If an argument does not fit; the message names it.
    """
    check_qkv(q, k, v)
    check_causal(True, q, k)
    hidden = None if attend is None else ~check_key_mask(attend, q, k).mT  # (B|1, H|1, T|1, 1)
    if not on_kernels(q, k, v) or isinstance(feature_map, LogFeatures):
        return linear_attention_chunked(
            q, k, v, feature_map=feature_map, normalize=normalize, attend=attend
        )
    if hidden is None and q.shape[-1] <= _WIDEST and feature_map in _FUSED:
        return _run(q, k, v, feature_map, normalize)
    if hidden is not None:
        if hidden.shape[1] > 1:
            k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
    queries, keys = feature_map(q), feature_map(k)
    if not on_kernels(queries, keys, v) or queries.shape[-1] > _WIDEST:
        return linear_attention_chunked(
            q, k, v, feature_map=feature_map, normalize=normalize, attend=attend
        )
    if hidden is not None:
        keys = keys.masked_fill(hidden, 0.0)
    return _run(queries, keys, v, None, normalize)


def _run(q: Tensor, k: Tensor, v: Tensor, fused: FeatureMap | None, normalize: bool) -> Tensor:
    return _LinearAttention.apply(  # type: ignore[no-untyped-call]  # torch's
        q, k, v, fused, normalize
    )


class _LinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, q: Tensor, k: Tensor, v: Tensor, fused: FeatureMap | None, normalize: bool
    ) -> Tensor:
        from generative.attention.kernels._triton_linear import causal_sums

        mapped = "none" if fused is None else _FUSED[fused]
        out, totals = causal_sums(q, k, v, mapped=mapped, normalize=normalize)
        ctx.save_for_backward(q, k, v, *((out, totals) if normalize else ()))
        ctx.fused = fused
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        r"""Return the gradients, with ``g_t = do_t / n_t`` and ``a_t = -do_t . o_t / n_t``.

        dphi(q_t) = sum_{s <= t} (g_t . v_s + a_t) phi(k_s)
        dphi(k_s) = sum_{t >= s} (v_s . g_t + a_t) phi(q_t)
        dv_s      = sum_{t >= s} phi(k_s) . phi(q_t) g_t
        """
        from generative.attention.kernels._triton_linear import causal_sums

        q, k, v, *normal = ctx.saved_tensors
        a = None
        if normal:
            out, totals = normal
            inverse = torch.where(totals == 0, 0.0, 1.0 / totals)
            a = -(grad.float() * out.float()).sum(-1) * inverse
            grad = grad.float() * inverse[..., None]
        grad = grad.to(v.dtype)
        heads = q.shape[1]
        with torch.enable_grad():
            q, k = (x.detach().requires_grad_() for x in (q, k))
            queries, keys = (q, k) if ctx.fused is None else (ctx.fused(q), ctx.fused(k))
        phi_q, phi_k = queries.detach(), keys.detach()
        for_q, for_k, for_v = ctx.needs_input_grad[:3]
        grad_q = grad_k = grad_v = None
        if for_q:
            found, _ = causal_sums(grad, v, phi_k, of_row=a)
            (grad_q,) = torch.autograd.grad(queries, q, found)
        if for_k:
            values = repeat_heads(v, heads)
            found, _ = causal_sums(values, grad, phi_q, of_column=a, backwards=True)
            (grad_k,) = torch.autograd.grad(keys, k, _of_groups(found, k))
        if for_v:
            spread = repeat_heads(phi_k, heads)
            found, _ = causal_sums(spread, phi_q, grad, backwards=True)
            grad_v = _of_groups(found, v)
        return grad_q, grad_k, grad_v, None, None


def _of_groups(x: Tensor, like: Tensor) -> Tensor:
    """Sum over the query heads that share a head of ``like``."""
    if x.shape[1] == like.shape[1]:
        return x
    return x.unflatten(1, (like.shape[1], -1)).sum(2, dtype=torch.float32).to(like.dtype)
