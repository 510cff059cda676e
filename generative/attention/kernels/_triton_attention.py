"""Attention tile by tile: softmax and squared ReLU, forward and backward, in three kernels.

Imports triton, so it is imported where a kernel is about to run and nowhere else. With P the
weights of queries for keys and S what they are a function of, both of them known tile by tile
only, all that is needed is

- ``softmax_forward``: ``P v`` with the sums of P found on the way (FlashAttention-2, Dao 2023,
  arXiv:2307.08691, algorithm 1);
- ``weigh``: ``P y``, or ``P^T y`` with the roles of queries and keys changed. It is the forward
  pass of squared ReLU and the gradient of the values of both;
- ``weigh_slopes``: ``(dP/dS) z`` or its transpose: the gradients of queries and of keys.

The kernels are in ``_triton_attention_tiles``; here their arguments are laid out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from generative.attention.kernels import _triton_attention_tiles as kernels
from generative.attention.kernels.dispatch import on_its_device

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """How the weights of a tile follow from queries and keys."""

    softmax: bool
    """``exp(scale q.k - normaliser)``; else ``relu(scale q.k)^2``."""
    scale: float
    causal: bool
    attend: Tensor | None
    """``(B, H, T_q, T_k)`` bool, expanded, or None."""
    normaliser: Tensor | None = None
    """``(B, H, T_q)`` float32, base 2; for softmax."""
    delta: Tensor | None = None
    """``(B, H, T_q)`` float32, ``sum_j P_ij dP_ij``; for the gradients of softmax."""

    @property
    def factor(self) -> float:
        """What ``q.k`` is multiplied by before it is squared, or raised to a power of 2."""
        return self.scale * _LOG2_E if self.softmax else self.scale


@on_its_device
def softmax_forward(q: Tensor, k: Tensor, v: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Return ``softmax(scale q k^T) v`` and the binary logarithm of the sums, ``(B, H, T_q)``.

    A row that may look nowhere is 0, its normaliser is infinite.
    """
    q, k, v = (x.contiguous() for x in (q, k, v))
    batch, heads, rows, width = q.shape
    out = q.new_empty(batch, heads, rows, v.shape[3])
    normaliser = q.new_empty(batch, heads, rows, dtype=torch.float32)
    sizes = _sizes(q.dtype, width)
    kernels.softmax_forward[(triton.cdiv(rows, sizes["ROWS"]) * batch * heads,)](
        q,
        k,
        v,
        *_mask(weights),
        out,
        normaliser,
        weights.factor,
        heads,
        heads // k.shape[1],
        rows,
        k.shape[2],
        width,
        v.shape[3],
        CAUSAL=weights.causal,
        MASKED=weights.attend is not None,
        VALUES=max(16, triton.next_power_of_2(v.shape[3])),
        **sizes,
    )
    return out, normaliser


@on_its_device
def weigh(x: Tensor, z: Tensor, y: Tensor, weights: Weights, *, transposed: bool) -> Tensor:
    """Return ``P y``: queries x, keys z and values y; or, transposed, ``P^T y``.

    Args:
        x: ``(B, H, T_q, K)``; transposed the keys, ``(B, H_kv, T_k, K)``.
        z: ``(B, H_kv, T_k, K)``; transposed the queries.
        y: As many rows as z, ``(B, H_kv or H, T, W)``.
        weights: What P is.
        transposed: Whether the rows of P are summed over, with the heads of each group.

    Returns:
        As many rows as x, ``(B, H or H_kv, T, W)``.
    """
    x, z, y = (t.contiguous() for t in (x, z, y))
    batch, heads, rows, width = x.shape
    out = y.new_empty(batch, heads, rows, y.shape[3])
    sizes = _sizes(x.dtype, width)
    values = min(triton.next_power_of_2(y.shape[3]), 256 if x.dtype.itemsize == 2 else 64)
    values = max(16, values)
    tiles = triton.cdiv(y.shape[3], values) * triton.cdiv(rows, sizes["ROWS"])
    kernels.weigh[(tiles * batch * heads,)](
        x,
        z,
        y,
        *_mask(weights),
        *_sums(weights, x),
        out,
        weights.factor,
        *_heads(x, z, transposed),
        rows,
        z.shape[2],
        width,
        y.shape[3],
        SOFTMAX=weights.softmax,
        CAUSAL=weights.causal,
        MASKED=weights.attend is not None,
        TRANSPOSED=transposed,
        VALUES=values,
        **sizes,
    )
    return out


@on_its_device
def weigh_slopes(
    x: Tensor, z: Tensor, of_x: Tensor, of_z: Tensor, weights: Weights, *, transposed: bool
) -> Tensor:
    """Return the gradient of the queries, or, transposed, of the keys.

    Args:
        x: ``(B, H, T_q, K)`` queries; transposed the keys.
        z: ``(B, H_kv, T_k, K)`` keys; transposed the queries.
        of_x: The gradient of the output; transposed the values. As many rows as x.
        of_z: The values; transposed the gradient of the output. As many rows as z.
        weights: What P is.
        transposed: Whether the rows of P are summed over, with the heads of each group.
    """
    x, z, of_x, of_z = (t.contiguous() for t in (x, z, of_x, of_z))
    batch, heads, rows, width = x.shape
    out = torch.empty_like(x)
    sizes = _sizes(x.dtype, width)
    values = min(triton.next_power_of_2(of_x.shape[3]), 128 if x.dtype.itemsize == 2 else 32)
    values = max(16, values)
    kernels.weigh_slopes[(triton.cdiv(rows, sizes["ROWS"]) * batch * heads,)](
        x,
        z,
        of_x,
        of_z,
        *_mask(weights),
        *_sums(weights, x),
        out,
        weights.factor,
        weights.scale if weights.softmax else 2.0 * weights.scale,
        *_heads(x, z, transposed),
        rows,
        z.shape[2],
        width,
        of_x.shape[3],
        SOFTMAX=weights.softmax,
        CAUSAL=weights.causal,
        MASKED=weights.attend is not None,
        TRANSPOSED=transposed,
        VALUES=values,
        **sizes,
    )
    return out


def _sizes(dtype: torch.dtype, width: int) -> dict[str, Any]:
    """Return the tile of queries and keys, and how it is computed.

    float32 is multiplied as such (``ieee``), not in TF32, whatever torch's switches say.
    """
    half = dtype.itemsize == 2
    rows, columns = ((128, 64) if width <= 128 else (64, 32)) if half else (32, 32)
    return {
        "ROWS": rows,
        "COLUMNS": columns,
        "WIDTH": max(16, triton.next_power_of_2(width)),
        "PRECISION": "ieee",
        "num_warps": 8 if half else 4,
        "num_stages": 3 if half else 2,
        "enable_fp_fusion": True,
    }


def _mask(weights: Weights) -> tuple[object, ...]:
    attend = weights.attend
    if attend is None:
        return (None, 0, 0, 0, 0)
    return (attend.view(torch.uint8), *attend.stride())


def _sums(weights: Weights, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return normaliser and delta, or whatever where there are none: they are not read."""
    first = like if weights.normaliser is None else weights.normaliser
    return first, first if weights.delta is None else weights.delta


def _heads(x: Tensor, z: Tensor, transposed: bool) -> tuple[int, int, int]:
    """Return the query heads, how many heads of x share one of z, and the reverse."""
    if transposed:
        return z.shape[1], 1, z.shape[1] // x.shape[1]
    return x.shape[1], x.shape[1] // z.shape[1], 1
