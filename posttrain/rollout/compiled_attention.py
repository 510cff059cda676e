"""Attention of few tokens to their caches, compiled: the part of a pass that reads most memory.

Arrays are C-contiguous and in float32; other layouts would be compiled anew. ``Decoding`` has the
readable twin.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from posttrain.rollout.compiled_kernels import compiled, exponentials, largest, normalize, sum_of
from posttrain.rollout.vectors import (
    LANES,
    add,
    add_product,
    fetch,
    load,
    spread,
    store,
    total,
    zeros,
)

__all__ = ["attend"]

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
f32 = np.float32

_AHEAD = 3
"""Tokens between asking for a slot's cache and reading it. The caches of a rollout are larger than
the processor's, and each slot's begins elsewhere, so it would wait for every one of them."""
_LINE = 16
"""Numbers in a line of the processor's cache."""


@compiled("reassoc")
def _score(
    queries: Floats, q: int, width: int, keys: Floats, k: int, scores: Floats, s: int, count: int
) -> None:
    """Write a query's scores against ``count`` keys.

    The query begins at ``queries[q]``, the first key at ``keys[k]``, its score is ``scores[s]``.
    """
    whole = width - width % LANES
    for c in range(count):
        key = k + c * width
        sums = zeros()
        for j in range(0, whole, LANES):
            sums = add_product(sums, load(queries, q + j), load(keys, key + j))
        score = total(sums)
        for j in range(whole, width):
            score += queries[q + j] * keys[key + j]
        scores[s + c] = score


@compiled("reassoc")
def _score_two(
    queries: Floats,
    q: int,
    width: int,
    keys: Floats,
    k: int,
    scores: Floats,
    s: int,
    step: int,
    count: int,
) -> None:
    """Do what ``_score`` does for two queries, one after the other; theirs are ``step`` apart."""
    whole = width - width % LANES
    for c in range(count):
        key = k + c * width
        first, second = zeros(), zeros()
        for j in range(0, whole, LANES):
            part = load(keys, key + j)
            first = add_product(first, load(queries, q + j), part)
            second = add_product(second, load(queries, q + width + j), part)
        one, two = total(first), total(second)
        for j in range(whole, width):
            one += queries[q + j] * keys[key + j]
            two += queries[q + width + j] * keys[key + j]
        scores[s + c] = one
        scores[s + step + c] = two


@compiled("reassoc")
def _score_each(
    queries: Floats,
    q: int,
    each: int,
    width: int,
    keys: Floats,
    k: int,
    scores: Floats,
    s: int,
    step: int,
    count: int,
) -> None:
    """Score ``each`` queries, one after the other; the scores of the next are ``step`` further."""
    for h in range(0, each - 1, 2):
        _score_two(queries, q + h * width, width, keys, k, scores, s + h * step, step, count)
    if each % 2:
        h = each - 1
        _score(queries, q + h * width, width, keys, k, scores, s + h * step, count)


@compiled("reassoc")
def _weigh(
    weights: Floats, w: int, count: int, values: Floats, v: int, out: Floats, o: int, width: int
) -> None:
    """Add ``count`` values, each times its weight, to ``width`` numbers from ``out[o]`` on.

    The first weight is ``weights[w]``, the first value begins at ``values[v]``.
    """
    whole = width - width % LANES
    for j in range(0, whole, LANES):
        # Four sums: one alone would wait for itself in every addition.
        a, b, c, d = load(out, o + j), zeros(), zeros(), zeros()
        value = v + j
        for i in range(w, w + count - 3, 4):
            a = add_product(a, spread(weights, i), load(values, value))
            b = add_product(b, spread(weights, i + 1), load(values, value + width))
            c = add_product(c, spread(weights, i + 2), load(values, value + 2 * width))
            d = add_product(d, spread(weights, i + 3), load(values, value + 3 * width))
            value += 4 * width
        for i in range(w + count - count % 4, w + count):
            a = add_product(a, spread(weights, i), load(values, value))
            value += width
        store(out, o + j, add(add(a, b), add(c, d)))
    for j in range(whole, width):
        for i in range(count):
            out[o + j] += weights[w + i] * values[v + i * width + j]


@compiled("reassoc")
def _weigh_two(
    weights: Floats,
    w: int,
    step: int,
    count: int,
    values: Floats,
    v: int,
    out: Floats,
    o: int,
    width: int,
) -> None:
    """Do what ``_weigh`` does for two heads, one after the other; weights are ``step`` apart."""
    whole = width - width % LANES
    for j in range(0, whole, LANES):
        a, b, c, d = load(out, o + j), zeros(), load(out, o + width + j), zeros()
        value = v + j
        for i in range(w, w + count - 1, 2):
            part, other = load(values, value), load(values, value + width)
            a = add_product(a, spread(weights, i), part)
            b = add_product(b, spread(weights, i + 1), other)
            c = add_product(c, spread(weights, i + step), part)
            d = add_product(d, spread(weights, i + step + 1), other)
            value += 2 * width
        if count % 2:
            i, part = w + count - 1, load(values, value)
            a = add_product(a, spread(weights, i), part)
            c = add_product(c, spread(weights, i + step), part)
        store(out, o + j, add(a, b))
        store(out, o + width + j, add(c, d))
    for j in range(whole, width):
        for i in range(count):
            value = values[v + i * width + j]
            out[o + j] += weights[w + i] * value
            out[o + width + j] += weights[w + step + i] * value


@compiled("reassoc")
def _weigh_each(
    weights: Floats,
    w: int,
    step: int,
    count: int,
    values: Floats,
    v: int,
    out: Floats,
    o: int,
    each: int,
    width: int,
) -> None:
    """Add weighted values for ``each`` heads, one after the other; weights are ``step`` apart."""
    for h in range(0, each - 1, 2):
        _weigh_two(weights, w + h * step, step, count, values, v, out, o + h * width, width)
    if each % 2:
        h = each - 1
        _weigh(weights, w + h * step, count, values, v, out, o + h * width, width)


@compiled()
def _copy(x: Floats, i: int, out: Floats, o: int, width: int) -> None:
    whole = width - width % LANES
    for j in range(0, whole, LANES):
        store(out, o + j, load(x, i + j))
    for j in range(whole, width):
        out[o + j] = x[i + j]


@compiled()
def _ask(x: Floats, i: int, count: int) -> None:
    for line in range(i, i + count, _LINE):
        fetch(x, line)


@compiled("reassoc")
def _weights(scores: Floats, rows: int) -> None:
    """Replace each row of scores by the weights of a softmax, but for what they are divided by."""
    count = len(scores) // rows
    for i in range(0, len(scores), count):
        top = largest(scores, i, count)
        for c in range(np.uint64(i), np.uint64(i + count)):
            scores[c] -= top
    exponentials(scores)  # one long loop, which vector units like


@compiled("reassoc")
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
    queries, group, room = out.shape[1] // width, keys.shape[1] // heads, keys.shape[2]
    each = queries // heads  # of the queries, that share a key's head
    scratch = np.empty(queries * (prefix + room), np.float32)
    pairs = qkv.view(np.complex64)
    # Offsets into flat arrays: a slice counts its references, which costs as much as reading it.
    rows, flat = qkv.reshape(-1), out.reshape(-1)
    own_k, own_v = keys.reshape(-1), values.reshape(-1)
    prefix_k, prefix_v = prefix_keys.reshape(-1), prefix_values.reshape(-1)
    for n in range(len(lines)):
        line, column, slot, row = lines[n], columns[n], n % group, n * qkv.shape[1]
        place = prefix + column
        if len(norms):
            parts = qkv[n, : norms.size].reshape(norms.shape)
            for h in range(len(norms)):
                normalize(parts[h : h + 1], norms[h], eps, parts[h : h + 1])
        ahead = n + _AHEAD
        if ahead < len(lines):
            for h in range(heads):
                to = ((lines[ahead] * heads + h) * group + ahead % group) * room * width
                _ask(own_k, to, (columns[ahead] + 1) * width)
                _ask(own_v, to, (columns[ahead] + 1) * width)
        for j in range(turns.shape[1]):
            pairs[n, j] *= turns[place - starts[line], j]
        for h in range(heads):
            key = row + (queries + h) * width
            to = (((line * heads + h) * group + slot) * room + column) * width
            _copy(rows, key, own_k, to, width)
            _copy(rows, key + heads * width, own_v, to, width)
        first = max(starts[line], place - back)
        own = max(0, first - prefix)  # the first column of the slot's own cache
        shared = max(0, prefix - first)  # columns of the prefix
        added = column + 1 - own
        seen = shared + added
        results = n * out.shape[1]
        for h in range(heads):
            mine = (((line * heads + h) * group + slot) * room + own) * width
            shares = ((line * heads + h) * prefix + first) * width
            q, s = row + h * each * width, h * each * seen
            _score_each(rows, q, each, width, prefix_k, shares, scratch, s, seen, shared)
            _score_each(rows, q, each, width, own_k, mine, scratch, s + shared, seen, added)
        _weights(scratch[: queries * seen], queries)
        for j in range(out.shape[1]):
            out[n, j] = 0
        for h in range(heads):
            mine = (((line * heads + h) * group + slot) * room + own) * width
            shares = ((line * heads + h) * prefix + first) * width
            o, s = results + h * each * width, h * each * seen
            _weigh_each(scratch, s, seen, shared, prefix_v, shares, flat, o, each, width)
            _weigh_each(scratch, s + shared, seen, added, own_v, mine, flat, o, each, width)
        for h in range(queries):
            scale = f32(1.0) / sum_of(scratch[h * seen : (h + 1) * seen])
            for j in range(h * width, (h + 1) * width):
                out[n, j] *= scale
