"""FlashAttention as a Triton kernel, forward and backward, with grouped queries and masks.

The twin is ``generative.attention.flash.flash_attention``, the same algorithm in torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from generative.attention import flash
from generative.attention.checks import checked, checked_scale
from generative.attention.kernels.dispatch import on_kernels

if TYPE_CHECKING:
    from generative.attention.kernels._triton_attention import Weights

__all__ = ["flash_attention"]

Context: TypeAlias = Any  # torch's, which takes any attribute


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attend: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    r"""Scaled dot-product attention in O(T) memory (Dao 2023, arXiv:2307.08691, algorithm 1).

        o_i = sum_j exp(scale q_i . k_j) v_j / sum_j exp(scale q_i . k_j),
        over the j that i may look at

    On a CUDA device with Triton tiles of scores live in registers; elsewhere the twin computes.

    Args:
        q: ``(B, H, T_q, K)``.
        k: ``(B, H_kv, T_k, K)``; H is a multiple of H_kv.
        v: ``(B, H_kv, T_k, K_v)``.
        attend: bool, True = may look, broadcastable to ``(B, H, T_q, T_k)``.
        causal: Query i looks at keys up to i alone; for T_q = T_k. Holds besides ``attend``.
        scale: None is ``1 / sqrt(K)``.

    Returns:
        ``(B, H, T_q, K_v)``, dtype of ``q``. A row that may look nowhere is exactly 0.

    Raises:
        TypeError, ValueError: If an argument does not fit; the message names it.
    """
    if not on_kernels(q, k, v) or max(q.shape[-1], v.shape[-1]) > 256:
        return flash.flash_attention(q, k, v, attend=attend, causal=causal, scale=scale)
    q, k, v, attend = checked(q, k, v, attend=attend, causal=causal)
    if attend is not None:
        attend = attend.expand(*q.shape[:3], k.shape[2])
    return _Flash.apply(  # type: ignore[no-untyped-call]  # torch's
        q, k, v, attend, causal, checked_scale(scale, q)
    )


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attend: Tensor | None,
        causal: bool,
        scale: float,
    ) -> Tensor:
        from generative.attention.kernels import _triton_attention as kernels

        weights = kernels.Weights(softmax=True, scale=scale, causal=causal, attend=attend)
        out, normaliser = kernels.softmax_forward(q, k, v, weights)
        ctx.save_for_backward(q, k, v, out, normaliser, attend)
        ctx.weights = replace(weights, attend=None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        from generative.attention.kernels import _triton_attention as kernels

        q, k, v, out, normaliser, attend = ctx.saved_tensors
        delta = (grad.float() * out.float()).sum(-1)
        weights: Weights = replace(ctx.weights, attend=attend, normaliser=normaliser, delta=delta)
        grad = grad.to(q.dtype)
        for_q, for_k, for_v = ctx.needs_input_grad[:3]
        return (
            kernels.weigh_slopes(q, k, grad, v, weights, transposed=False) if for_q else None,
            kernels.weigh_slopes(k, q, v, grad, weights, transposed=True) if for_k else None,
            kernels.weigh(k, q, grad, weights, transposed=True) if for_v else None,
            None,
            None,
            None,
        )
