"""What stands between the matrix products of a pass over few tokens, compiled.

Arrays are C-contiguous, in float32 unless said otherwise; other layouts would be compiled anew.
The torch operations of ``Decoding`` are the readable twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["attend", "draw", "normalize", "swiglu"]

Function = TypeVar("Function", bound=Callable[..., object])
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Doubles = NDArray[np.float64]
f32 = np.float32

_BLOCK = 32
"""Ids whose weights are summed in float32 before the sums are summed in float64."""


def _compiled(*freedoms: str) -> Callable[[Function], Function]:
    """Return a decorator that compiles, with LLVM's names of what may be done to float32 sums."""
    options = {"error_model": "numpy", "fastmath": {"contract", "nsz", *freedoms}}

    def compiled(function: Function) -> Function:
        try:
            return njit(function, cache=True, **options)
        except RuntimeError:  # there is no folder to write to
            return njit(function, **options)

    return compiled


@_compiled()
def _exp(x: f32) -> f32:
    """Return exp(x) to 1e-7 of itself, 0 below -87; unlike libm's, loops of it are vectorised.

    exp(x) = 2^k exp(r), k integer, r at most log(2)/2 from 0: Cephes' polynomial (Moshier, expf).
    """
    tiny = x < f32(-87.0)
    x = f32(-87.0) if tiny else x
    x = f32(88.0) if x > f32(88.0) else x
    biased = np.int32(x * f32(1.4426950408889634) + f32(127.5))
    k = f32(biased - 127)
    r = x - k * f32(0.693359375) - k * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * r * r + r + f32(1.0)
    return f32(0.0) if tiny else p * np.int32(biased << 23).view(np.float32)


@_compiled("reassoc")
def normalize(x: Floats, weight: Floats, eps: float, out: Floats) -> None:
    """Write the RMS norm of ``(N, D)`` rows to ``out``, which may be ``x``."""
    rows, width = x.shape
    for i in range(rows):
        total = f32(0.0)
        for j in range(width):
            total += x[i, j] * x[i, j]
        scale = f32(1.0) / np.sqrt(total / f32(width) + f32(eps))
        for j in range(width):
            out[i, j] = x[i, j] * scale * weight[j]


@_compiled()
def swiglu(gate: Floats, up: Floats) -> None:
    """Replace ``(N, F)`` gate by ``silu(gate) * up``."""
    rows, width = gate.shape
    for i in range(rows):
        for j in range(width):
            gate[i, j] = gate[i, j] / (f32(1.0) + _exp(-gate[i, j])) * up[i, j]


@_compiled("reassoc")
def _score(query: Floats, keys: Floats, scores: Floats) -> f32:
    """Write ``(T,)`` scores of a query against the first T keys; return the largest."""
    top = f32(-np.inf)
    for c in range(len(scores)):
        score = f32(0.0)
        for j in range(len(query)):
            score += query[j] * keys[c, j]
        scores[c] = score
        top = score if score > top else top
    return top


@_compiled("reassoc")
def _weigh(weights: Floats, values: Floats, out: Floats) -> None:
    """Add the first T values, each times its weight, to ``(K,)``; four at a time, for speed."""
    count = len(weights)
    c = 0
    while c + 3 < count:
        a0, a1, a2, a3 = weights[c], weights[c + 1], weights[c + 2], weights[c + 3]
        for j in range(len(out)):
            out[j] += (
                a0 * values[c, j]
                + a1 * values[c + 1, j]
                + a2 * values[c + 2, j]
                + a3 * values[c + 3, j]
            )
        c += 4
    while c < count:
        for j in range(len(out)):
            out[j] += weights[c] * values[c, j]
        c += 1


@_compiled("reassoc")
def _exponentials(x: Floats) -> None:
    for i in range(len(x)):
        x[i] = _exp(x[i])


@_compiled("reassoc")
def _sum(x: Floats) -> f32:
    total = f32(0.0)
    for i in range(len(x)):
        total += x[i]
    return total


@_compiled("reassoc")
def attend(
    qkv: Floats,
    norms: Floats,
    eps: float,
    turns: NDArray[np.complex64],
    lines: Integers,
    columns: Integers,
    starts: Integers,
    prefix_keys: Floats,
    prefix_values: Floats,
    keys: Floats,
    values: Floats,
    back: int,
    out: Floats,
) -> None:
    """Turn queries and keys, write keys and values to the cache, attend to all up to their column.

    Token after token: an earlier one of the same line has been written before a later one reads.

    Args:
        qkv: ``(N, (H + 2 H_kv) K)``; overwritten.
        norms: ``(H + H_kv, K)`` weights of the norms of queries and keys; ``(0, K)`` is no norm.
        eps: Of these norms.
        turns: ``(positions, (H + H_kv) K/2)``, the queries' times the scale of the scores.
        lines: ``(N,)``, each token's line of the cache; fewer than N leave the rest out.
        columns: ``(N,)``, each token's column of the cache.
        starts: ``(lines,)``, each line's first column, counted from its prefix's first.
        prefix_keys: ``(lines, H_kv, columns, K)``, what a line's slots share; it comes first.
        prefix_values: Likewise.
        keys: ``(lines, H_kv G, columns, K)``: token n is of slot ``n % G`` of its line.
        values: Likewise.
        back: How many columns back a query may look.
        out: ``(N, H K)``.
    """
    heads, prefix, width = prefix_keys.shape[1:]
    queries, group = out.shape[1] // width, keys.shape[1] // heads
    scratch = np.empty(queries * (prefix + keys.shape[2]), np.float32)
    for n in range(len(lines)):
        line, column, slot, row = lines[n], columns[n], n % group, qkv[n]
        place = prefix + column
        if len(norms):
            parts = row[: norms.size].reshape(norms.shape)
            for h in range(len(norms)):
                normalize(parts[h : h + 1], norms[h], eps, parts[h : h + 1])
        turn = turns[place - starts[line]]
        pairs = row[: 2 * len(turn)].view(np.complex64)
        for j in range(len(turn)):
            pairs[j] *= turn[j]
        for h in range(heads):
            k, v = (queries + h) * width, (queries + heads + h) * width
            for j in range(width):
                keys[line, h * group + slot, column, j] = row[k + j]
                values[line, h * group + slot, column, j] = row[v + j]
        first = max(starts[line], place - back)
        own = max(0, first - prefix)  # the first column of the slot's own cache
        shared = max(0, prefix - first)  # columns of the prefix
        seen = shared + column + 1 - own
        for h in range(queries):
            k = h * heads // queries
            query, scores = row[h * width : (h + 1) * width], scratch[h * seen : (h + 1) * seen]
            top = _score(query, keys[line, k * group + slot, own:], scores[shared:])
            if shared:
                top = max(top, _score(query, prefix_keys[line, k, first:], scores[:shared]))
            for c in range(seen):
                scores[c] -= top
        _exponentials(scratch[: queries * seen])  # one long loop, which vector units like
        for h in range(queries):
            k = h * heads // queries
            result, weights = (
                out[n, h * width : (h + 1) * width],
                scratch[h * seen : (h + 1) * seen],
            )
            result[:] = 0
            _weigh(weights[shared:], values[line, k * group + slot, own:], result)
            if shared:
                _weigh(weights[:shared], prefix_values[line, k, first:], result)
            scale = f32(1.0) / _sum(weights)
            for j in range(width):
                result[j] *= scale


@_compiled("reassoc", "nnan")
def _largest(x: Floats) -> f32:
    top = x[0]
    for i in range(len(x)):
        top = max(top, x[i])
    return top


@_compiled()
def draw(logits: Floats, uniforms: Doubles, tokens: Integers, log_probs: Floats) -> None:
    """Draw a token per row of ``(N, V)``, at temperature 1, by the inverse of the CDF.

    First among blocks of ids, then within the block, as ``sampling.draw``. ``(N,)`` tokens and
    log-probs are written; ``(N,)`` uniforms are float64.
    """
    rows, vocabulary = logits.shape
    weights = np.empty(vocabulary, np.float32)
    upto = np.empty(-(-vocabulary // _BLOCK), np.float64)
    for n in range(rows):
        top = _largest(logits[n])
        for i in range(vocabulary):
            weights[i] = logits[n, i] - top
        _exponentials(weights)
        total = 0.0
        for b in range(len(upto)):
            total += float(_sum(weights[b * _BLOCK : (b + 1) * _BLOCK]))
            upto[b] = total
        target = uniforms[n] * total
        block = 0
        while block < len(upto) - 1 and upto[block] <= target:
            block += 1
        within = weights[block * _BLOCK : (block + 1) * _BLOCK]
        whole = 0.0
        for i in range(len(within)):
            whole += float(within[i])
        rest = target - upto[block - 1] if block else target
        # Rounding may put the rest below 0 or beyond the block's end: an id with weight takes it.
        rest = min(max(rest, 0.0), whole * (1 - 2.0**-52))
        token, passed = 0, float(within[0])
        while passed <= rest and token < len(within) - 1:
            token += 1
            passed += float(within[token])
        token += block * _BLOCK
        tokens[n] = token
        log_probs[n] = np.float64(logits[n, token] - top) - np.log(total)
