"""FLASH's mixed chunk attention: weights of chunks, running states, and what is made of them.

Imports triton, so it is imported where a kernel is about to run and nowhere else. Tensors are
``(B, T, .)``, cut into chunks g of C tokens. Forward and backward are sums of four kinds:

- ``chunk_weights``: ``P_g = relu(scale q k^T)^2`` of each chunk, ``(B, G, C, C)``, and on request
  the gradients of ``q k^T``, given those of ``P_g v``;
- ``states``: ``S_g = sum_{h < g} x_h^T y_h``, or over ``h > g``;
- ``mix``: ``A_g y_g + scale x_g S_g``, with A the weights, their gradients, or a transpose;
- ``project``: ``scale y_g S_g^T``.

Weights of a chunk are kept, T C numbers, because each is used for all E columns of values and
making it anew for each 128 of them costs as much as using it. Tiles above the causal diagonal are
neither made nor read. No atomics.

Cost of d = 768 (8 rows, T = 8,192, S = 128, E = 1,536, C = 256) in bfloat16, forward: 93 GFLOP, a
quarter of a chunk's weights being left out, .09 ms at an H200's 989 TFLOP/s. Memory: values twice
and outputs once, 201 MB each, states written and read, 101 MB each, queries, keys and weights
another 134 MB, so .94 GB, .20 ms at 4.8 TB/s. It is bound by memory; target: .5 ms.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from generative.attention.kernels.dispatch import on_its_device


@on_its_device
def chunk_weights(
    q: Tensor, k: Tensor, chunk: int, scale: float, of_out: Tensor | None, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Return causal weights of chunks, and the gradients of the scores if ``of_out`` is given.

    Args:
        q: ``(B, T, S)``.
        k: ``(B, T, S)``.
        chunk: C.
        scale: Factor of ``q k^T``.
        of_out: ``(B, T, E)``, gradients of ``P v``, or None.
        v: ``(B, T, E)``; not read without ``of_out``.

    Returns:
        Two of ``(B, G, C, C)`` in q's dtype, the same one twice without ``of_out``. Tiles above
        the diagonal are not written, and not read by ``mix``.
    """
    batch, tokens, width = q.shape
    chunks = triton.cdiv(tokens, chunk)
    sizes = _sizes(q.dtype, chunk, width, v.shape[2])
    weights = q.new_empty(batch, chunks, chunk, chunk)
    slopes = weights if of_out is None else torch.empty_like(weights)
    _chunk_weights[(batch * chunks * triton.cdiv(chunk, sizes["ROWS"]),)](
        q,
        k,
        v if of_out is None else of_out,
        v,
        weights,
        slopes,
        scale,
        tokens,
        chunks,
        chunk,
        width,
        v.shape[2],
        SLOPES=of_out is not None,
        **sizes,
    )
    return weights, slopes


@on_its_device
def states(x: Tensor, y: Tensor, chunk: int, *, backwards: bool) -> Tensor:
    """Return ``sum x_h^T y_h`` over chunks before each, or behind each, ``(B, G, S, E)``.

    They are bfloat16 for bfloat16, else float32, so that float16's range does not bound them.
    """
    batch, tokens, width = x.shape
    chunks = triton.cdiv(tokens, chunk)
    sizes = _sizes(x.dtype, chunk, width, y.shape[2])
    sizes["VALUES"] = min(sizes["VALUES"], 64)
    kept = x.dtype if x.dtype == torch.bfloat16 else torch.float32
    found = x.new_empty(batch, chunks, width, y.shape[2], dtype=kept)
    _states[(batch * triton.cdiv(y.shape[2], sizes["VALUES"]),)](
        x, y, found, tokens, chunks, chunk, width, y.shape[2], BACKWARDS=backwards, **sizes
    )
    return found


@on_its_device
def mix(
    weights: Tensor,
    y: Tensor,
    x: Tensor | None,
    state: Tensor | None,
    chunk: int,
    scale: float,
    *,
    transposed: bool,
) -> Tensor:
    """Return ``A_g y_g + scale x_g S_g`` of each chunk, ``(B, T, E)``.

    Args:
        weights: A, ``(B, G, C, C)``, lower triangular.
        y: ``(B, T, E)``.
        x: ``(B, T, S)``, or None for the first term alone.
        state: S, ``(B, G, S, E)``, or None.
        chunk: C.
        scale: Factor of the second term.
        transposed: Take ``A_g^T``.
    """
    batch, tokens, value_width = y.shape
    width = 1 if x is None else x.shape[2]
    chunks = triton.cdiv(tokens, chunk)
    sizes = _sizes(y.dtype, chunk, width, value_width)
    out = torch.empty_like(y)
    tiles = triton.cdiv(chunk, sizes["ROWS"]) * triton.cdiv(value_width, sizes["VALUES"])
    _mix[(batch * chunks * tiles,)](
        weights,
        y,
        y if x is None else x,
        y if state is None else state,
        out,
        scale,
        tokens,
        chunks,
        chunk,
        width,
        value_width,
        STATE=state is not None,
        TRANSPOSED=transposed,
        **sizes,
    )
    return out


@on_its_device
def project(y: Tensor, state: Tensor, chunk: int, scale: float) -> Tensor:
    """Return ``scale y_g S_g^T`` of each chunk, ``(B, T, S)``.

    Args:
        y: ``(B, T, E)``.
        state: S, ``(B, G, S, E)``.
        chunk: C.
        scale: Factor.
    """
    batch, tokens, value_width = y.shape
    width = state.shape[2]
    chunks = triton.cdiv(tokens, chunk)
    sizes = _sizes(y.dtype, chunk, width, value_width)
    out = y.new_empty(batch, tokens, width)
    _project[(batch * chunks * triton.cdiv(chunk, sizes["ROWS"]),)](
        y, state, out, scale, tokens, chunks, chunk, width, value_width, **sizes
    )
    return out


def _sizes(dtype: torch.dtype, chunk: int, width: int, value_width: int) -> dict[str, Any]:
    """Return tiles and how they are computed; precisions are those of ``_triton_linear``."""
    half = dtype.itemsize == 2
    return {
        "ROWS": max(16, min(128 if half else 32, triton.next_power_of_2(chunk))),
        "COLUMNS": max(16, min(64 if half else 32, triton.next_power_of_2(chunk))),
        "WIDTH": max(16, triton.next_power_of_2(width)),
        "VALUES": max(16, min(128 if half else 32, triton.next_power_of_2(value_width))),
        "WIDE_STATE": dtype != torch.bfloat16,
        "PRECISION": "tf32" if half else "ieee",
        "num_warps": 8 if half else 4,
        "num_stages": 3 if half else 2,
        "enable_fp_fusion": True,
    }


@triton.jit
def _load(x, batch, at, last, tokens, first, width, SIZE: tl.constexpr):
    """Load tokens ``at`` before ``last`` from column ``first`` on, 0 elsewhere."""
    columns = first + tl.arange(0, SIZE)
    there = (at < last)[:, None] & (columns < width)[None, :]
    return tl.load(
        x + (batch * tokens + at)[:, None] * width + columns[None, :], mask=there, other=0.0
    )


@triton.jit
def _store(x, found, batch, at, last, tokens, first, width, SIZE: tl.constexpr):
    columns = first + tl.arange(0, SIZE)
    tl.store(
        x + (batch * tokens + at)[:, None] * width + columns[None, :],
        found.to(x.dtype.element_ty),
        mask=(at < last)[:, None] & (columns < width)[None, :],
    )


@triton.jit
def _chunk_weights(
    q,
    k,
    of_out,
    v,
    weights,
    slopes,
    scale,
    tokens,
    chunks,
    chunk,
    width,
    value_width,
    SLOPES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    WIDE_STATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(chunk, ROWS)
    tile = tl.program_id(0) % tiles
    number = tl.program_id(0) // tiles % chunks
    batch = (tl.program_id(0) // tiles // chunks).to(tl.int64)
    begin = number * chunk
    last = tl.minimum(begin + chunk, tokens)
    i = tile * ROWS + tl.arange(0, ROWS)
    mine = _load(q, batch, begin + i, last, tokens, 0, width, WIDTH)
    place = (batch * chunks + number) * chunk * chunk + i[:, None].to(tl.int64) * chunk
    for first in range(0, tl.minimum(chunk, (tile + 1) * ROWS), COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        theirs = _load(k, batch, begin + j, last, tokens, 0, width, WIDTH)
        scores = tl.dot(mine, tl.trans(theirs), input_precision=PRECISION) * scale
        scores = tl.where(i[:, None] >= j[None, :], tl.maximum(scores, 0.0), 0.0)
        there = (i < chunk)[:, None] & (j < chunk)[None, :]
        found = (scores * scores).to(weights.dtype.element_ty)
        tl.store(weights + place + j[None, :], found, mask=there)
        if SLOPES:
            of_p = tl.zeros((ROWS, COLUMNS), tl.float32)
            for start in range(0, value_width, VALUES):
                a = _load(of_out, batch, begin + i, last, tokens, start, value_width, VALUES)
                b = _load(v, batch, begin + j, last, tokens, start, value_width, VALUES)
                of_p = tl.dot(a, tl.trans(b), of_p, input_precision=PRECISION)
            found = (2.0 * scale * scores * of_p).to(slopes.dtype.element_ty)
            tl.store(slopes + place + j[None, :], found, mask=there)


@triton.jit
def _states(
    x,
    y,
    found,
    tokens,
    chunks,
    chunk,
    width,
    value_width,
    BACKWARDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    WIDE_STATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slices = tl.cdiv(value_width, VALUES)
    part = tl.program_id(0) % slices
    batch = (tl.program_id(0) // slices).to(tl.int64)
    w, g = tl.arange(0, WIDTH), part * VALUES + tl.arange(0, VALUES)
    there = (w < width)[:, None] & (g < value_width)[None, :]
    place = w[:, None] * value_width + g[None, :]
    state = tl.zeros((WIDTH, VALUES), tl.float32)
    for step in range(chunks):
        number = chunks - 1 - step if BACKWARDS else step
        to = found + (batch * chunks + number) * width * value_width + place
        tl.store(to, state.to(found.dtype.element_ty), mask=there)
        begin = number * chunk
        last = tl.minimum(begin + chunk, tokens)
        for first in range(begin, last, COLUMNS):
            at = first + tl.arange(0, COLUMNS)
            keys = _load(x, batch, at, last, tokens, 0, width, WIDTH)
            values = _load(y, batch, at, last, tokens, part * VALUES, value_width, VALUES)
            state = tl.dot(tl.trans(keys), values, state, input_precision=PRECISION)


@triton.jit
def _mix(
    weights,
    y,
    x,
    state,
    out,
    scale,
    tokens,
    chunks,
    chunk,
    width,
    value_width,
    STATE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    WIDE_STATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(chunk, ROWS)
    slices = tl.cdiv(value_width, VALUES)
    tile = tl.program_id(0) % tiles  # neighbours share values and states
    part = tl.program_id(0) // tiles % slices
    number = tl.program_id(0) // tiles // slices % chunks
    batch = (tl.program_id(0) // tiles // slices // chunks).to(tl.int64)
    begin = number * chunk
    last = tl.minimum(begin + chunk, tokens)
    i = tile * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, VALUES), tl.float32)
    if STATE:
        w, g = tl.arange(0, WIDTH), part * VALUES + tl.arange(0, VALUES)
        place = state + (batch * chunks + number) * width * value_width
        held = tl.load(
            place + w[:, None] * value_width + g[None, :],
            mask=(w < width)[:, None] & (g < value_width)[None, :],
            other=0.0,
        )
        mine = _load(x, batch, begin + i, last, tokens, 0, width, WIDTH)
        if WIDE_STATE:
            mine = mine.to(tl.float32)
        sums = tl.dot(mine, held, input_precision=PRECISION) * scale
    first_column, end = 0, tl.minimum(chunk, (tile + 1) * ROWS)
    if TRANSPOSED:
        first_column, end = tile * ROWS // COLUMNS * COLUMNS, chunk
    place = weights + (batch * chunks + number) * chunk * chunk
    for first in range(first_column, end, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        if TRANSPOSED:
            where = place + j[None, :] * chunk + i[:, None]
        else:
            where = place + i[:, None] * chunk + j[None, :]
        p = tl.load(where, mask=(i < chunk)[:, None] & (j < chunk)[None, :], other=0.0)
        values = _load(y, batch, begin + j, last, tokens, part * VALUES, value_width, VALUES)
        sums = tl.dot(p, values, sums, input_precision=PRECISION)
    # Rows of a tile beyond the chunk belong to the next one.
    _store(out, sums, batch, begin + i, last, tokens, part * VALUES, value_width, VALUES)


@triton.jit
def _project(
    y,
    state,
    out,
    scale,
    tokens,
    chunks,
    chunk,
    width,
    value_width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    WIDE_STATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(chunk, ROWS)
    tile = tl.program_id(0) % tiles
    number = tl.program_id(0) // tiles % chunks
    batch = (tl.program_id(0) // tiles // chunks).to(tl.int64)
    begin = number * chunk
    last = tl.minimum(begin + chunk, tokens)
    i = tile * ROWS + tl.arange(0, ROWS)
    w = tl.arange(0, WIDTH)
    place = state + (batch * chunks + number) * width * value_width
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, value_width, COLUMNS):
        g = start + tl.arange(0, COLUMNS)
        mine = _load(y, batch, begin + i, last, tokens, start, value_width, COLUMNS)
        held = tl.load(
            place + w[:, None] * value_width + g[None, :],
            mask=(w < width)[:, None] & (g < value_width)[None, :],
            other=0.0,
        )
        if WIDE_STATE:
            mine = mine.to(tl.float32)
        sums = tl.dot(mine, tl.trans(held), sums, input_precision=PRECISION)
    _store(out, sums * scale, batch, begin + i, last, tokens, 0, width, WIDTH)
