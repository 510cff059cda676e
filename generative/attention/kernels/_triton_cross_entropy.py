"""The softmax of rows of logits and its gradient, one pass over memory each.

Imports triton, so it is imported where a kernel is about to run and nowhere else. Logits arrive as
the product wrote them; bias, scale, softmax and gradient happen in registers, in float32. The
forward pass reads each logit once, the backward pass reads and writes it once. So both are bound
by memory: 2 and 4 bytes a logit in bfloat16, where the same in torch's operations takes some 20.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from generative.attention.kernels.dispatch import on_its_device

_COLUMNS = 4096  # logits at a time


@on_its_device
def normalisers(
    logits: Tensor, bias: Tensor | None, labels: Tensor, own: Tensor, scale: float
) -> Tensor:
    """Return ``(n,)`` float32 log-sum-exp of ``scale (logits + bias)``, ``own`` at the label.

    Args:
        logits: ``(n, V)``, columns adjacent.
        bias: ``(V,)`` or None.
        labels: ``(n,)`` int64.
        own: ``(n,)`` float32.
        scale: Factor of all logits but the label's.
    """
    n, v = logits.shape
    found = own.new_empty(n)
    _normalisers[(n,)](
        logits,
        logits if bias is None else bias,
        labels,
        own,
        found,
        v,
        logits.stride(0),
        scale,
        HAS_BIAS=bias is not None,
        BLOCK=min(_COLUMNS, triton.next_power_of_2(v)),
        num_warps=8,
        enable_fp_fusion=True,
    )
    return found


@on_its_device
def replace_by_gradients(
    logits: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    found: Tensor,
    weights: Tensor,
    at_label: Tensor,
    scale: float,
) -> None:
    """Write ``weights exp(scale (logits + bias) - found)`` over the logits, ``at_label`` there.

    Args:
        logits: As for ``normalisers``; overwritten.
        bias: As there.
        labels: As there.
        found: ``(n,)`` of ``normalisers``.
        weights: ``(n,)`` float32.
        at_label: ``(n,)`` float32.
        scale: As there.
    """
    n, v = logits.shape
    block = min(_COLUMNS, triton.next_power_of_2(v))
    _replace_by_gradients[(n, triton.cdiv(v, block))](
        logits,
        logits if bias is None else bias,
        labels,
        found,
        weights,
        at_label,
        v,
        logits.stride(0),
        scale,
        HAS_BIAS=bias is not None,
        BLOCK=block,
        num_warps=8,
        enable_fp_fusion=True,
    )


@triton.jit
def _scaled(row, bias, at, columns, scale, HAS_BIAS: tl.constexpr):
    """Return scaled logits of some columns, float32, minus infinity beyond the last."""
    z = tl.load(row + at, mask=at < columns, other=0.0).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias + at, mask=at < columns, other=0.0).to(tl.float32)
    return tl.where(at < columns, z * scale, float("-inf"))


@triton.jit
def _normalisers(
    logits,
    bias,
    labels,
    own,
    found,
    columns,
    stride,
    scale,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + n)
    ours = tl.load(own + n)
    greatest = ours
    total = tl.zeros((), tl.float32) + 1.0  # exp(own - greatest)
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        z = _scaled(logits + n * stride, bias, at, columns, scale, HAS_BIAS)
        z = tl.where(at == label, float("-inf"), z)  # counted before the loop
        new = tl.maximum(greatest, tl.max(z, 0))
        total = total * tl.exp(greatest - new) + tl.sum(tl.exp(z - new), 0)
        greatest = new
    tl.store(found + n, greatest + tl.log(total))


@triton.jit
def _replace_by_gradients(
    logits,
    bias,
    labels,
    found,
    weights,
    at_label,
    columns,
    stride,
    scale,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = logits + n * stride
    z = _scaled(row, bias, at, columns, scale, HAS_BIAS)
    gradient = tl.load(weights + n) * tl.exp(z - tl.load(found + n))
    gradient = tl.where(at == tl.load(labels + n), tl.load(at_label + n), gradient)
    tl.store(row + at, gradient.to(logits.dtype.element_ty), mask=at < columns)
