"""The kernels of ``_triton_attention``; tensors are contiguous, heads of all rows in one sequence.

No sum is shared between programs, so there are no atomics and results are the same bits each time.
Tiles above a causal diagonal are not computed. Sums and weights are float32; weights are rounded to
the inputs' dtype before they are multiplied with values.

Cost, for T queries and keys, width K, value width W, causal: the squared ReLU multiplies
``T^2 / 2 (2 K ceil(W / 256) + 2 W)`` a row, as scores are computed again for each 256 columns of
values. For the gated unit of d = 768 (8 rows, T = 8,192, K = 128, W = 1,536) that is 1.24 TFLOP,
1.25 ms at an H200's 989 TFLOP/s; .90 ms of them would be left if scores were kept. Memory, 0.43 GB
read and written once, .09 ms at 4.8 TB/s, is no limit. Target: 3.5 ms, .36 of the peak.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(x, head, at, rows, first, width, SIZE: tl.constexpr):
    """Load rows ``at`` of a head from column ``first`` on, 0 beyond the last row and column."""
    columns = first + tl.arange(0, SIZE)
    there = (at < rows)[:, None] & (columns < width)[None, :]
    return tl.load(
        x + (head * rows + at)[:, None] * width + columns[None, :], mask=there, other=0.0
    )


@triton.jit
def _scores(
    x,
    z,
    i,
    j,
    rows,
    columns,
    query_head,
    factor,
    mask,
    mask_b,
    mask_h,
    mask_q,
    mask_k,
    heads,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return ``factor x z^T``, minus infinity where rows i may not look at columns j, float32."""
    scores = tl.dot(x, tl.trans(z), input_precision=PRECISION) * factor
    may = (i < rows)[:, None] & (j < columns)[None, :]
    if CAUSAL:
        since = i[:, None] - j[None, :]
        may = may & ((-since if TRANSPOSED else since) >= 0)
    if MASKED:
        start = mask + (query_head // heads) * mask_b + (query_head % heads) * mask_h
        if TRANSPOSED:
            where = start + i[:, None] * mask_k + j[None, :].to(tl.int64) * mask_q
        else:
            where = start + i[:, None].to(tl.int64) * mask_q + j[None, :] * mask_k
        may = may & (tl.load(where, mask=may, other=0) != 0)
    return tl.where(may, scores, float("-inf"))


@triton.jit
def softmax_forward(
    q,
    k,
    v,
    mask,
    mask_b,
    mask_h,
    mask_q,
    mask_k,
    out,
    normaliser,
    factor,
    heads,
    share,
    rows,
    columns,
    width,
    value_width,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
    VALUES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(rows, ROWS)
    tile = tiles - 1 - tl.program_id(0) % tiles  # the longest causal rows begin first
    head = (tl.program_id(0) // tiles).to(tl.int64)
    i = tile * ROWS + tl.arange(0, ROWS)
    x = _tile(q, head, i, rows, 0, width, WIDTH)
    greatest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, VALUES), tl.float32)
    last = columns
    if CAUSAL:
        last = tl.minimum(columns, (tile + 1) * ROWS)
    for first in range(0, last, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        z = _tile(k, head // share, j, columns, 0, width, WIDTH)
        y = _tile(v, head // share, j, columns, 0, value_width, VALUES)
        scores = _scores(
            x, z, i, j, rows, columns, head, factor, mask, mask_b, mask_h, mask_q, mask_k, heads,
            CAUSAL, MASKED, False, PRECISION,
        )  # fmt: skip
        new = tl.maximum(greatest, tl.max(scores, 1))
        finite = tl.where(new == float("-inf"), 0.0, new)  # a row that saw nothing yet
        p = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(greatest - finite)
        total = total * shrink + tl.sum(p, 1)
        sums = sums * shrink[:, None]
        sums = tl.dot(p.to(y.dtype), y, sums, input_precision=PRECISION)
        greatest = new
    saw = total > 0
    sums = sums / tl.where(saw, total, 1.0)[:, None]
    found = tl.where(saw, greatest + tl.log2(tl.where(saw, total, 1.0)), float("inf"))
    at = tl.arange(0, VALUES)
    tl.store(
        out + (head * rows + i)[:, None] * value_width + at[None, :],
        sums.to(out.dtype.element_ty),
        mask=(i < rows)[:, None] & (at < value_width)[None, :],
    )
    tl.store(normaliser + head * rows + i, found, mask=i < rows)


@triton.jit
def weigh(
    x,
    z,
    y,
    mask,
    mask_b,
    mask_h,
    mask_q,
    mask_k,
    normaliser,
    delta,
    out,
    factor,
    heads,
    share,
    members,
    rows,
    columns,
    width,
    value_width,
    SOFTMAX: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    VALUES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slices = tl.cdiv(value_width, VALUES)
    tiles = tl.cdiv(rows, ROWS)
    part = tl.program_id(0) % slices  # neighbours share queries and keys
    tile = (tl.program_id(0) // slices) % tiles
    head = (tl.program_id(0) // slices // tiles).to(tl.int64)
    begin, last = 0, columns
    if CAUSAL:
        if TRANSPOSED:
            begin = tile * ROWS // COLUMNS * COLUMNS
        else:
            tile = tiles - 1 - tile  # the longest rows begin first
            last = tl.minimum(columns, (tile + 1) * ROWS)
    i = tile * ROWS + tl.arange(0, ROWS)
    mine = _tile(x, head, i, rows, 0, width, WIDTH)
    sums = tl.zeros((ROWS, VALUES), tl.float32)
    for member in range(members):
        other = head // share * members + member
        query_head = other if TRANSPOSED else head
        for first in range(begin, last, COLUMNS):
            j = first + tl.arange(0, COLUMNS)
            theirs = _tile(z, other, j, columns, 0, width, WIDTH)
            p = _scores(
                mine, theirs, i, j, rows, columns, query_head, factor,
                mask, mask_b, mask_h, mask_q, mask_k, heads, CAUSAL, MASKED, TRANSPOSED, PRECISION,
            )  # fmt: skip
            if SOFTMAX:
                if TRANSPOSED:
                    found = tl.load(normaliser + other * columns + j, mask=j < columns, other=0.0)
                    p = tl.exp2(p - found[None, :])
                else:
                    found = tl.load(normaliser + head * rows + i, mask=i < rows, other=0.0)
                    p = tl.exp2(p - found[:, None])
            else:
                p = tl.maximum(p, 0.0)
                p = p * p
            values = _tile(y, other, j, columns, part * VALUES, value_width, VALUES)
            sums = tl.dot(p.to(values.dtype), values, sums, input_precision=PRECISION)
    at = part * VALUES + tl.arange(0, VALUES)
    tl.store(
        out + (head * rows + i)[:, None] * value_width + at[None, :],
        sums.to(out.dtype.element_ty),
        mask=(i < rows)[:, None] & (at < value_width)[None, :],
    )


@triton.jit
def weigh_slopes(
    x,
    z,
    of_x,
    of_z,
    mask,
    mask_b,
    mask_h,
    mask_q,
    mask_k,
    normaliser,
    delta,
    out,
    factor,
    slope,
    heads,
    share,
    members,
    rows,
    columns,
    width,
    value_width,
    SOFTMAX: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    VALUES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(rows, ROWS)
    tile = tl.program_id(0) % tiles
    head = (tl.program_id(0) // tiles).to(tl.int64)
    begin, last = 0, columns
    if CAUSAL:
        if TRANSPOSED:
            begin = tile * ROWS // COLUMNS * COLUMNS
        else:
            tile = tiles - 1 - tile
            last = tl.minimum(columns, (tile + 1) * ROWS)
    i = tile * ROWS + tl.arange(0, ROWS)
    mine = _tile(x, head, i, rows, 0, width, WIDTH)
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    for member in range(members):
        other = head // share * members + member
        query_head = other if TRANSPOSED else head
        for first in range(begin, last, COLUMNS):
            j = first + tl.arange(0, COLUMNS)
            theirs = _tile(z, other, j, columns, 0, width, WIDTH)
            p = _scores(
                mine, theirs, i, j, rows, columns, query_head, factor,
                mask, mask_b, mask_h, mask_q, mask_k, heads, CAUSAL, MASKED, TRANSPOSED, PRECISION,
            )  # fmt: skip
            of_p = tl.zeros((ROWS, COLUMNS), tl.float32)
            for start in range(0, value_width, VALUES):
                a = _tile(of_x, head, i, rows, start, value_width, VALUES)
                b = _tile(of_z, other, j, columns, start, value_width, VALUES)
                of_p = tl.dot(a, tl.trans(b), of_p, input_precision=PRECISION)
            if SOFTMAX:
                if TRANSPOSED:
                    found = tl.load(normaliser + other * columns + j, mask=j < columns, other=0.0)
                    mean = tl.load(delta + other * columns + j, mask=j < columns, other=0.0)
                    of_s = tl.exp2(p - found[None, :]) * (of_p - mean[None, :])
                else:
                    found = tl.load(normaliser + head * rows + i, mask=i < rows, other=0.0)
                    mean = tl.load(delta + head * rows + i, mask=i < rows, other=0.0)
                    of_s = tl.exp2(p - found[:, None]) * (of_p - mean[:, None])
            else:
                of_s = tl.maximum(p, 0.0) * of_p
            sums = tl.dot(of_s.to(theirs.dtype), theirs, sums, input_precision=PRECISION)
    at = tl.arange(0, WIDTH)
    tl.store(
        out + (head * rows + i)[:, None] * width + at[None, :],
        (sums * slope).to(out.dtype.element_ty),
        mask=(i < rows)[:, None] & (at < width)[None, :],
    )
