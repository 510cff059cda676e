"""FLASH's mixed chunk attention as Triton kernels, forward and backward.

The twin is ``generative.attention.gau.flash_mixing``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from generative.attention import gau
from generative.attention.checks import check_key_mask
from generative.attention.kernels.dispatch import on_kernels

__all__ = ["flash_mixing"]

Context: TypeAlias = Any  # torch's, which takes any attribute

_WIDEST = 256


def flash_mixing(
    quad_q: Tensor,
    quad_k: Tensor,
    lin_q: Tensor,
    lin_k: Tensor,
    v: Tensor,
    *,
    chunk: int,
    causal: bool = False,
    attend: Tensor | None = None,
    quad_scale: float | None = None,
    lin_scale: float | None = None,
) -> Tensor:
    r"""Mixed chunk attention (Hua et al. 2022, arXiv:2202.10447, section 3).

        o_t = sum_{s in t's chunk, s <= t} relu(quad_scale quad_q_t . quad_k_s)^2 v_s
              + lin_scale lin_q_t . sum_{s in earlier chunks} lin_k_s v_s^T

    On a CUDA device with Triton and ``causal``, states of chunks are summed in one pass over the
    values and outputs made in another. Elsewhere, and where not causal, the twin computes.

    Args:
        quad_q: ``(B, T, S)``, queries within a chunk; S at most 256 for the kernel.
        quad_k: ``(B, T, S)``, keys within a chunk.
        lin_q: ``(B, T, S)``, queries across chunks.
        lin_k: ``(B, T, S)``, keys across chunks.
        v: ``(B, T, E)``, values of both.
        chunk: C, tokens of a chunk; part of the model. The last chunk may be shorter.
        causal: Tokens see those before them and themselves.
        attend: bool, True = may be looked at, broadcastable to ``(B, 1, 1, T)``: a mask of keys.
        quad_scale: None is ``1 / sqrt(S)``.
        lin_scale: None is ``1 / (C sqrt(S))``.

    Returns:
        ``(B, T, E)``, dtype of ``v``; sums are float32 for half precision.

    Raises:
        TypeError, ValueError: If an argument does not fit; the message names it.
    """
    inputs = (quad_q, quad_k, lin_q, lin_k, v)
    if not (causal and on_kernels(*inputs) and _fit(*inputs, chunk=chunk)):
        return gau.flash_mixing(
            *inputs,
            chunk=chunk,
            causal=causal,
            attend=attend,
            quad_scale=quad_scale,
            lin_scale=lin_scale,
        )
    if attend is not None:
        hidden = ~check_key_mask(attend, quad_q[:, None], quad_k[:, None]).squeeze(1).mT
        quad_k, lin_k, v = (x.masked_fill(hidden, 0.0) for x in (quad_k, lin_k, v))
    scales = gau.mixing_scales(quad_q.shape[2], chunk, quad_scale, lin_scale)
    size = min(chunk, v.shape[1])
    return _Mixing.apply(  # type: ignore[no-untyped-call]  # torch's
        quad_q, quad_k, lin_q, lin_k, v, size, *scales
    )


def _fit(*inputs: Tensor, chunk: int) -> bool:
    """Whether shapes are as the kernels ask; the twin says what is wrong with others."""
    *queries_and_keys, v = inputs
    first = queries_and_keys[0]
    return (
        all(x.ndim == 3 and x.shape == first.shape for x in queries_and_keys)
        and v.ndim == 3
        and v.shape[:2] == first.shape[:2]
        and first.shape[2] <= _WIDEST
        and chunk >= 1
    )


class _Mixing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        quad_q: Tensor,
        quad_k: Tensor,
        lin_q: Tensor,
        lin_k: Tensor,
        v: Tensor,
        chunk: int,
        quad_scale: float,
        lin_scale: float,
    ) -> Tensor:
        from generative.attention.kernels import _triton_mixing as kernels

        inputs = tuple(x.contiguous() for x in (quad_q, quad_k, lin_q, lin_k, v))
        quad_q, quad_k, lin_q, lin_k, v = inputs
        ctx.save_for_backward(*inputs)
        ctx.settings = chunk, quad_scale, lin_scale
        weights, _ = kernels.chunk_weights(quad_q, quad_k, chunk, quad_scale, None, v)
        states = kernels.states(lin_k, v, chunk, backwards=False)
        return kernels.mix(weights, v, lin_q, states, chunk, lin_scale, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        r"""Return the gradients, with ``R_g = sum_{h > g} lin_q_h^T do_h`` in the place of S_g.

        dv = P^T do + lin_scale lin_k R,  dlin_q = lin_scale do S^T,  dlin_k = lin_scale v R^T,
        dquad_q = dS quad_k,  dquad_k = dS^T quad_q,  dS = 2 quad_scale relu(.) (do v^T)
        """
        from generative.attention.kernels import _triton_mixing as kernels

        quad_q, quad_k, lin_q, lin_k, v = ctx.saved_tensors
        chunk, quad_scale, lin_scale = ctx.settings
        grad = grad.to(v.dtype).contiguous()
        weights, slopes = kernels.chunk_weights(quad_q, quad_k, chunk, quad_scale, grad, v)
        before = kernels.states(lin_k, v, chunk, backwards=False)
        behind = kernels.states(lin_q, grad, chunk, backwards=True)
        return (
            kernels.mix(slopes, quad_k, None, None, chunk, 1.0, transposed=False),
            kernels.mix(slopes, quad_q, None, None, chunk, 1.0, transposed=True),
            kernels.project(grad, before, chunk, lin_scale),
            kernels.project(v, behind, chunk, lin_scale),
            kernels.mix(weights, grad, lin_k, behind, chunk, lin_scale, transposed=True),
            None,
            None,
            None,
        )
