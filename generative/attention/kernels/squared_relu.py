"""The squared-ReLU attention of gated units as a Triton kernel, forward and backward.

The twin is ``generative.attention.gau.squared_relu_attention``, which has the whole matrix.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from generative.attention import gau
from generative.attention.checks import checked, checked_scale
from generative.attention.kernels.dispatch import on_kernels

if TYPE_CHECKING:
    from generative.attention.kernels._triton_attention import Weights

__all__ = ["squared_relu_attention"]

Context: TypeAlias = Any  # torch's, which takes any attribute


def squared_relu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attend: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    r"""Attention of the gated attention unit (Hua et al. 2022, arXiv:2202.10447, section 2).

        o_i = sum_j relu(scale q_i . k_j)^2 v_j,    over the j that i may look at

    The paper divides by the length, which would make an output depend on tokens after it; here
    nothing is divided. On a CUDA device with Triton no ``(T, T)`` tensor exists, forward or
    backward; elsewhere the twin computes.

    Args:
        q: ``(B, H, T_q, K)``, K at most 256 for the kernel.
        k: ``(B, H_kv, T_k, K)``; H is a multiple of H_kv.
        v: ``(B, H_kv, T_k, K_v)``, of any width.
        attend: bool, True = may look, broadcastable to ``(B, H, T_q, T_k)``.
        causal: Query i looks at keys up to i alone; for T_q = T_k. Holds besides ``attend``.
        scale: None is ``1 / sqrt(K)``.

    Returns:
        ``(B, H, T_q, K_v)``, dtype of ``q``. A row that may look nowhere is exactly 0.

    Raises:
        TypeError, ValueError: If an argument does not fit; the message names it.
    """
    if not on_kernels(q, k, v) or q.shape[-1] > 256:
        return gau.squared_relu_attention(q, k, v, attend=attend, causal=causal, scale=scale)
    q, k, v, attend = checked(q, k, v, attend=attend, causal=causal)
    if attend is not None:
        attend = attend.expand(*q.shape[:3], k.shape[2])
    return _SquaredReLU.apply(  # type: ignore[no-untyped-call]  # torch's
        q, k, v, attend, causal, checked_scale(scale, q)
    )


class _SquaredReLU(torch.autograd.Function):
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

        weights = kernels.Weights(softmax=False, scale=scale, causal=causal, attend=attend)
        ctx.save_for_backward(q, k, v, attend)
        ctx.weights = replace(weights, attend=None)
        return kernels.weigh(q, k, v, weights, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        from generative.attention.kernels import _triton_attention as kernels

        q, k, v, attend = ctx.saved_tensors
        weights: Weights = replace(ctx.weights, attend=attend)
        for_q, for_k, for_v = ctx.needs_input_grad[:3]
        return (
            kernels.weigh_slopes(q, k, grad, v, weights, transposed=False) if for_q else None,
            kernels.weigh_slopes(k, q, v, grad, weights, transposed=True) if for_k else None,
            kernels.weigh(k, q, grad, weights, transposed=True) if for_v else None,
            None,
            None,
            None,
        )
