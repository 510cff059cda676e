"""Softmax attention on torch's fused kernels, with the conventions of this package."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from generative.attention.checks import (
    allowed,
    check_bias,
    check_qkv,
    checked,
    checked_scale,
    repeat_heads,
)

__all__ = ["attention", "attention_backend"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attend: Tensor | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    r"""Scaled dot-product attention, as ``naive.softmax_attention``, by the fastest kernel.

    ``torch.nn.functional.scaled_dot_product_attention`` leaves open what a row gets that may look
    nowhere (by kernel and version NaN, 0 or a mean), and cannot hold a mask besides ``is_causal``.
    Here such a row is 0 with gradients of 0, and ``attend``, ``causal`` and ``bias`` all hold. With
    ``causal`` beside one of the others the mask takes ``T_q T_k`` elements;
    ``flash.flash_attention`` takes none.

    Args:
        q: ``(B, H, T_q, K)``.
        k: ``(B, H_kv, T_k, K)``; H is a multiple of H_kv.
        v: ``(B, H_kv, T_k, K_v)``.
        attend: bool, True = may look, broadcastable to ``(B, H, T_q, T_k)``.
        causal: Query i looks at keys up to i alone; for T_q = T_k. Holds besides ``attend``.
        bias: Added to the scores, broadcastable alike; -inf there means the same as False.
        scale: None is ``1 / sqrt(K)``.

    Returns:
        ``(B, H, T_q, K_v)``, dtype of ``q``.

    Raises:
        TypeError, ValueError: If an argument does not fit; the message names it.
    """
    check_qkv(q, k, v)
    scale = checked_scale(scale, q)
    if scale <= 0:  # torch multiplies -inf by it, on the CPU in version 2.13
        q, scale = q * scale, 1.0
    call = _planned(q, k, v, attend, causal, bias)
    out = F.scaled_dot_product_attention(
        call.q,
        call.k,
        call.v,
        attn_mask=call.mask,
        is_causal=call.causal,
        scale=scale,
        enable_gqa=call.grouped,
    )[..., : v.shape[3]]
    return out if call.nowhere is None else out.masked_fill(call.nowhere, 0.0)


def attention_backend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attend: Tensor | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> SDPBackend:
    """Say which kernel ``attention`` runs for these arguments; they are the same.

    It is torch's own choice, so it follows devices, dtypes, widths, what requires a gradient and
    ``torch.nn.attention.sdpa_kernel``. ``SDPBackend.MATH`` is the one that holds all scores.

    Raises:
        TypeError, ValueError: As ``attention``.

    >>> q = torch.zeros(1, 1, 4, 8)
    >>> attention_backend(q, q, q, causal=True).name
    'FLASH_ATTENTION'
    """
    call = _planned(q, k, v, attend, causal, bias)
    checked_scale(scale, q)  # no kernel minds which
    return _choice(call)


class _Call(NamedTuple):
    """The arguments of torch's function, and the rows to be 0 afterwards."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool
    grouped: bool
    nowhere: Tensor | None


def _choice(call: _Call) -> SDPBackend:
    picked = torch._fused_sdp_choice(
        call.q, call.k, call.v, call.mask, 0.0, call.causal, enable_gqa=call.grouped
    )
    return SDPBackend(picked)


def _planned(
    q: Tensor, k: Tensor, v: Tensor, attend: Tensor | None, causal: bool, bias: Tensor | None
) -> _Call:
    q, k, v, attend = checked(q, k, v, attend=attend, causal=causal)
    bias = None if bias is None else check_bias(bias, q, k)
    grouped = q.shape[1] != k.shape[1]
    if attend is None and bias is None:
        return _fused(_Call(q, k, v, None, causal, grouped, None))
    mask, nowhere = _joined(allowed(attend, causal, q, k), bias, q.dtype)
    if bias is not None:
        q = q.masked_fill(nowhere, 0.0)  # what stands there, be it NaN, reaches no gradient of k
    return _fused(_Call(q, k, v, mask, False, grouped, nowhere))


def _joined(mask: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return one mask, and ``(B|1, H|1, T_q|1, 1)``, the rows that may look nowhere.

    Those rows look everywhere instead, so that no kernel divides 0 by 0. As they are replaced by 0
    afterwards, the gradient that comes back to them is 0, and so is all that follows from it.
    """
    if bias is None:
        assert mask is not None
        nowhere = ~mask.any(dim=-1, keepdim=True)
        return mask | nowhere, nowhere
    bias = bias.to(dtype)
    if mask is not None:
        bias = bias.masked_fill(~mask, -torch.inf)
    nowhere = (bias == -torch.inf).all(dim=-1, keepdim=True)
    return bias.masked_fill(nowhere, 0.0), nowhere


def _fused(call: _Call) -> _Call:
    """Change what keeps torch from a fused kernel, where O(T) memory is enough to change it."""
    unequal = call.grouped or call.v.shape[3] != call.k.shape[3]
    if not unequal or torch.compiler.is_compiling() or _choice(call) != SDPBackend.MATH:
        return call
    k, v = (repeat_heads(x, call.q.shape[1]) for x in (call.k, call.v))
    whole = call._replace(k=k, v=v, grouped=False)
    short = v.shape[3] - k.shape[3]
    q, k = (F.pad(x, (0, max(0, short))) for x in (call.q, k))
    wide = whole._replace(q=q, k=k, v=F.pad(v, (0, max(0, -short))))
    return next((x for x in (whole, wide) if _choice(x) != SDPBackend.MATH), call)
