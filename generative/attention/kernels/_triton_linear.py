"""Causal sums of outer products: linear attention and its gradients, in three kernels.

    o_t = sum_{s <= t} (x_t . z_s + e) y_s,    e = 0, a_t or b_s,    perhaps divided by
    n_t = sum_{s <= t} x_t . z_s

With x, z, y = queries, keys, values this is linear attention. Its gradients are of the same form:
those of queries with e = a_t, those of keys, from the last token to the first, with e = b_s.

Imports triton, so it is imported where a kernel is about to run and nowhere else. Tokens are cut
into segments. One pass sums ``z^T y`` of each segment, one adds up the sums of earlier segments,
and one goes through each segment from its state on, a tile at a time: within a tile by a matrix of
weights, before it by the running state, which stays in registers. No atomics.

Cost of (B, H, T, K) = (2, 16, 16384, 128) in bfloat16, feature map fused: q, k, v, o are 134 MB
each; k and v are read twice, so 805 MB, and 16 segments' states are another 134 MB, .20 ms at an
H200's 4.8 TB/s. Products are ``2 (2 * 64 + 3 * 128) 128`` operations a token, 69 GFLOP, .07 ms at
989 TFLOP/s. It is bound by memory; target: .3 ms.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from generative.attention.kernels.dispatch import on_its_device

_PROGRAMS = 512  # about four for each multiprocessor of an H200
_MAPS = ("none", "elu_plus_one", "relu")


@on_its_device
def causal_sums(
    x: Tensor,
    z: Tensor,
    y: Tensor,
    *,
    of_row: Tensor | None = None,
    of_column: Tensor | None = None,
    mapped: str = "none",
    normalize: bool = False,
    backwards: bool = False,
    segment: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return o and n.

    Args:
        x: ``(B, H, T, K)``.
        z: ``(B, H_z, T, K)``; H is a multiple of H_z.
        y: ``(B, H_z, T, W)``.
        of_row: a, ``(B, H, T)`` float32, or None.
        of_column: b, ``(B, H_z, T)`` float32, or None; not both.
        mapped: What is applied to x and z as they are loaded: none, elu_plus_one or relu.
        normalize: Whether to divide; 0 where n is 0.
        backwards: Sum over ``s >= t`` instead.
        segment: Tokens of a segment, a multiple of 64; None takes what fills the device.

    Returns:
        ``(B, H, T, W)`` in y's dtype and ``(B, H, T)`` float32, which is n if ``normalize``.
    """
    x, z, y = (t.contiguous() for t in (x, z, y))
    batch, heads, tokens, width = x.shape
    value_width = y.shape[3]
    sizes = _sizes(x.dtype, width, value_width)
    slices = triton.cdiv(value_width, sizes["VALUES"])
    if segment is None:
        wanted = max(1, _PROGRAMS // (batch * heads * slices))
        segment = max(256, triton.next_power_of_2(triton.cdiv(tokens, wanted)))
    segments = triton.cdiv(tokens, segment)
    size = width * value_width + width + value_width
    states = x.new_empty(batch * z.shape[1], segments, size, dtype=torch.float32)
    out = y.new_empty(batch, heads, tokens, value_width)
    totals = x.new_empty(batch, heads, tokens, dtype=torch.float32)
    extra = 1 if of_row is not None else 2 if of_column is not None else 0
    added = (of_row if of_row is not None else of_column if of_column is not None else totals,)
    shape = (tokens, segments, segment, width, value_width)
    kinds = {"MAP": _MAPS.index(mapped), "EXTRA": extra, "BACKWARDS": backwards}
    if segments > 1:
        grid = (batch * z.shape[1] * segments * slices,)
        _segment_sums[grid](z, y, *added, states, *shape, **kinds, **sizes)
        block = 1024
        grid = (batch * z.shape[1] * triton.cdiv(size, block),)
        _earlier_sums[grid](states, segments, size, BLOCK=block, enable_fp_fusion=True)
    _outputs[(batch * heads * segments * slices,)](
        x,
        z,
        y,
        *added,
        states,
        out,
        totals,
        heads // z.shape[1],
        *shape,
        NORMALIZE=normalize,
        **kinds,
        **sizes,
    )
    return out, totals


def _sizes(dtype: torch.dtype, width: int, value_width: int) -> dict[str, Any]:
    """Return tiles and how they are computed.

    bfloat16 is multiplied with states rounded to it; float16, whose range a sum of many tokens can
    leave, with states in TF32, which has its precision and float32's range; float32 as such.
    """
    half = dtype.itemsize == 2
    most = (128 if width <= 128 else 64) if half else 32
    return {
        "TOKENS": 64 if half else 32,
        "WIDTH": max(16, triton.next_power_of_2(width)),
        "VALUES": max(16, min(most, triton.next_power_of_2(value_width))),
        "WIDE_STATE": dtype != torch.bfloat16,
        "PRECISION": "tf32" if half else "ieee",
        "num_warps": 8 if half else 4,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }


@triton.jit
def _load(
    x,
    head,
    first,
    last,
    tokens,
    start,
    width,
    MAP: tl.constexpr,
    BACKWARDS: tl.constexpr,
    TOKENS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Load tokens ``first`` on, before ``last``, and columns ``start`` on, mapped; 0 elsewhere."""
    step = first + tl.arange(0, TOKENS)
    at = tokens - 1 - step if BACKWARDS else step
    columns = start + tl.arange(0, SIZE)
    there = (step < last)[:, None] & (columns < width)[None, :]
    found = tl.load(
        x + (head * tokens + at)[:, None] * width + columns[None, :], mask=there, other=0.0
    )
    if MAP == 1:
        exact = found.to(tl.float32)
        exact = tl.where(exact > 0, exact + 1.0, tl.exp(tl.minimum(exact, 0.0)))
        found = tl.where(there, exact, 0.0).to(found.dtype)
    elif MAP == 2:
        found = tl.maximum(found.to(tl.float32), 0.0).to(found.dtype)
    return found


@triton.jit
def _load_numbers(x, head, first, last, tokens, BACKWARDS: tl.constexpr, TOKENS: tl.constexpr):
    step = first + tl.arange(0, TOKENS)
    at = tokens - 1 - step if BACKWARDS else step
    return tl.load(x + head * tokens + at, mask=step < last, other=0.0)


@triton.jit
def _segment_sums(
    z,
    y,
    extra,
    states,
    tokens,
    segments,
    segment,
    width,
    value_width,
    MAP: tl.constexpr,
    EXTRA: tl.constexpr,
    BACKWARDS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    WIDE_STATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slices = tl.cdiv(value_width, VALUES)
    part = tl.program_id(0) % slices
    number = tl.program_id(0) // slices % segments
    head = (tl.program_id(0) // slices // segments).to(tl.int64)
    begin = number * segment
    last = tl.minimum(begin + segment, tokens)
    state = tl.zeros((WIDTH, VALUES), tl.float32)
    keys = tl.zeros((WIDTH,), tl.float32)
    values = tl.zeros((VALUES,), tl.float32)
    for first in range(begin, last, TOKENS):
        theirs = _load(z, head, first, last, tokens, 0, width, MAP, BACKWARDS, TOKENS, WIDTH)
        y_s = _load(
            y, head, first, last, tokens, part * VALUES, value_width, 0, BACKWARDS, TOKENS, VALUES
        )
        state = tl.dot(tl.trans(theirs), y_s, state, input_precision=PRECISION)
        keys += tl.sum(theirs.to(tl.float32), 0)
        if EXTRA == 1:
            values += tl.sum(y_s.to(tl.float32), 0)
        if EXTRA == 2:
            b = _load_numbers(extra, head, first, last, tokens, BACKWARDS, TOKENS)
            values += tl.sum(y_s.to(tl.float32) * b[:, None], 0)
    w, g = tl.arange(0, WIDTH), part * VALUES + tl.arange(0, VALUES)
    to = states + (head * segments + number) * (width * value_width + width + value_width)
    there = (w < width)[:, None] & (g < value_width)[None, :]
    tl.store(to + w[:, None] * value_width + g[None, :], state, mask=there)
    if part == 0:
        tl.store(to + width * value_width + w, keys, mask=w < width)
    tl.store(to + width * value_width + width + g, values, mask=g < value_width)


@triton.jit
def _earlier_sums(states, segments, size, BLOCK: tl.constexpr):
    """Replace each segment's numbers by the sums of those of earlier segments."""
    blocks = tl.cdiv(size, BLOCK)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in range(segments):
        place = states + (head * segments + number) * size + at
        own = tl.load(place, mask=at < size, other=0.0)
        tl.store(place, total, mask=at < size)
        total += own


@triton.jit
def _outputs(
    x,
    z,
    y,
    extra,
    states,
    out,
    totals,
    share,
    tokens,
    segments,
    segment,
    width,
    value_width,
    NORMALIZE: tl.constexpr,
    MAP: tl.constexpr,
    EXTRA: tl.constexpr,
    BACKWARDS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    WIDE_STATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slices = tl.cdiv(value_width, VALUES)
    part = tl.program_id(0) % slices
    number = tl.program_id(0) // slices % segments
    head = (tl.program_id(0) // slices // segments).to(tl.int64)
    other = head // share
    begin = number * segment
    last = tl.minimum(begin + segment, tokens)
    w, g = tl.arange(0, WIDTH), part * VALUES + tl.arange(0, VALUES)
    start = states + (other * segments + number) * (width * value_width + width + value_width)
    state = tl.zeros((WIDTH, VALUES), tl.float32)
    keys = tl.zeros((WIDTH,), tl.float32)
    values = tl.zeros((VALUES,), tl.float32)
    if segments > 1:
        there = (w < width)[:, None] & (g < value_width)[None, :]
        state = tl.load(start + w[:, None] * value_width + g[None, :], mask=there, other=0.0)
        keys = tl.load(start + width * value_width + w, mask=w < width, other=0.0)
        values = tl.load(start + width * value_width + width + g, mask=g < value_width, other=0.0)
    past = tl.arange(0, TOKENS)[:, None] >= tl.arange(0, TOKENS)[None, :]
    for first in range(begin, last, TOKENS):
        mine = _load(x, head, first, last, tokens, 0, width, MAP, BACKWARDS, TOKENS, WIDTH)
        theirs = _load(z, other, first, last, tokens, 0, width, MAP, BACKWARDS, TOKENS, WIDTH)
        if NORMALIZE:  # before there are sums, which need the registers
            total = tl.sum(mine.to(tl.float32) * keys[None, :], 1)
            keys += tl.sum(theirs.to(tl.float32), 0)
        y_s = _load(
            y, other, first, last, tokens, part * VALUES, value_width, 0, BACKWARDS, TOKENS, VALUES
        )
        p = tl.dot(mine, tl.trans(theirs), input_precision=PRECISION)
        if EXTRA == 1:
            a = _load_numbers(extra, head, first, last, tokens, BACKWARDS, TOKENS)
            p += a[:, None]
        if EXTRA == 2:
            b = _load_numbers(extra, other, first, last, tokens, BACKWARDS, TOKENS)
            p += b[None, :]
        p = tl.where(past, p, 0.0)
        if WIDE_STATE:
            sums = tl.dot(mine.to(tl.float32), state, input_precision=PRECISION)
        else:
            sums = tl.dot(mine, state.to(mine.dtype), input_precision=PRECISION)
        sums = tl.dot(p.to(y_s.dtype), y_s, sums, input_precision=PRECISION)
        if EXTRA == 1:
            sums += a[:, None] * values[None, :]
            values += tl.sum(y_s.to(tl.float32), 0)
        if EXTRA == 2:
            sums += values[None, :]
            values += tl.sum(y_s.to(tl.float32) * b[:, None], 0)
        step = first + tl.arange(0, TOKENS)
        at = tokens - 1 - step if BACKWARDS else step
        if NORMALIZE:
            total += tl.sum(p, 1)
            inverse = tl.where(total == 0, 0.0, 1.0 / tl.where(total == 0, 1.0, total))
            sums = sums * inverse[:, None]
            if part == 0:
                tl.store(totals + head * tokens + at, total, mask=step < last)
        tl.store(
            out + (head * tokens + at)[:, None] * value_width + g[None, :],
            sums.to(out.dtype.element_ty),
            mask=(step < last)[:, None] & (g < value_width)[None, :],
        )
        state = tl.dot(tl.trans(theirs), y_s, state, input_precision=PRECISION)
