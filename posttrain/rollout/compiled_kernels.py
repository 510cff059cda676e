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

from posttrain.rollout.vectors import LANES, greater, greatest, load

__all__ = ["compiled", "draw", "exponentials", "largest", "normalize", "sum_of", "swiglu"]

Function = TypeVar("Function", bound=Callable[..., object])
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Doubles = NDArray[np.float64]
f32 = np.float32

_BLOCK = 32
"""Ids whose weights are summed in float32 before the sums are summed in float64."""


def compiled(*freedoms: str) -> Callable[[Function], Function]:
    """Return a decorator that compiles, with LLVM's names of what may be done to float32 sums."""
    options = {"error_model": "numpy", "fastmath": {"contract", "nsz", *freedoms}}

    def decorated(function: Function) -> Function:
        try:
            return njit(function, cache=True, **options)
        except RuntimeError:  # there is no folder to write to
            return njit(function, **options)

    return decorated


@compiled()
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


@compiled("reassoc")
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


@compiled()
def swiglu(gate: Floats, up: Floats) -> None:
    """Replace ``(N, F)`` gate by ``silu(gate) * up``."""
    rows, width = gate.shape
    for i in range(rows):
        for j in range(width):
            gate[i, j] = gate[i, j] / (f32(1.0) + _exp(-gate[i, j])) * up[i, j]


@compiled("reassoc")
def exponentials(x: Floats) -> None:
    """Replace numbers by their exponentials."""
    for i in range(len(x)):
        x[i] = _exp(x[i])


@compiled()
def largest(x: Floats, i: int, count: int) -> f32:
    """Return the largest of ``count`` numbers from ``x[i]`` on, none of them NaN.

    One number after the other would wait for the one before: LLVM makes no vectors of it.
    """
    top = x[i]
    if count >= LANES:
        tops = load(x, i)
        for j in range(i + LANES, i + count - LANES + 1, LANES):
            tops = greater(load(x, j), tops)
        top = greatest(tops)
    for j in range(i + count - count % LANES, i + count):
        top = x[j] if x[j] > top else top
    return top


@compiled("reassoc")
def sum_of(x: Floats) -> f32:
    """Return the sum, added up in float32 in any order."""
    total = f32(0.0)
    for i in range(len(x)):
        total += x[i]
    return total


@compiled()
def draw(logits: Floats, uniforms: Doubles, tokens: Integers, log_probs: Floats) -> None:
    """Draw a token per row of ``(N, V)``, at temperature 1, by the inverse of the CDF.

    First among blocks of ids, then within the block, as ``sampling.draw``. ``(N,)`` tokens and
    log-probs are written; ``(N,)`` uniforms are float64.
    """
    rows, vocabulary = logits.shape
    weights = np.empty(vocabulary, np.float32)
    upto = np.empty(-(-vocabulary // _BLOCK), np.float64)
    for n in range(rows):
        top = largest(logits[n], 0, vocabulary)
        for i in range(vocabulary):
            weights[i] = logits[n, i] - top
        exponentials(weights)
        total = 0.0
        for b in range(len(upto)):
            total += float(sum_of(weights[b * _BLOCK : (b + 1) * _BLOCK]))
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
