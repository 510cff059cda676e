r"""FlashAttention in plain torch: softmax attention whose scores are never all there at once.

Dao et al. 2022 (arXiv:2205.14135), in the order of Dao 2023 (FlashAttention-2, arXiv:2307.08691).
Scores are made tile by tile, some queries against some keys, and used at once. A row's softmax
needs its largest score and its sum before the last tile is seen: both are kept as running values,
and what was summed so far is rescaled whenever the largest score grows (online softmax). Beside the
output the backward pass keeps one number a row, the logarithm of its sum, and makes the tiles anew.
Memory is O(T) instead of O(T^2); operations are the same, with one more product for each tile in
the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from generative.attention.checks import accumulated, checked, checked_scale

__all__ = ["flash_attention"]

Context: TypeAlias = Any  # torch's, which takes any attribute

ROWS = 256
"""Rows of a tile: queries, of all heads that share a key head together."""
COLUMNS = 512
"""Columns of a tile: keys. Measured: 128 to 1,024 each way are within a fifth of each other, less
pays for the calls, and with more rows and columns what is beside the diagonal is computed."""


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attend: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    r"""Scaled dot-product attention in O(T) memory: Dao 2023, algorithms 1 and 2.

    For each tile of queries i, over the tiles of keys j:

        s    = scale q_i k_j^T,    new = max(m, rowmax(s)),    p = exp(s - new)
        l    = exp(m - new) l + rowsum(p)
        o    = exp(m - new) o + p v_j,    m = new
        o_i  = o / l,    logsumexp_i = m + ln l

    and in the backward pass, with delta_i = rowsum(do_i o_i):

        p    = exp(s - logsumexp_i),    ds = scale p (do_i v_j^T - delta_i)
        dv_j += p^T do_i,    dq_i += ds k_j,    dk_j += ds^T q_i

    ``attend`` is read tile by tile and never expanded. Tiles above the diagonal are left out where
    ``causal`` is True. Gradients of gradients are refused; ``naive.softmax_attention`` has them.

    Args:
        q: ``(B, H, T_q, K)``.
        k: ``(B, H_kv, T_k, K)``; H is a multiple of H_kv.
        v: ``(B, H_kv, T_k, K_v)``.
        attend: bool, True = may look, broadcastable to ``(B, H, T_q, T_k)``.
        causal: Query i looks at keys up to i alone; for T_q = T_k. Holds besides ``attend``.
        scale: None is ``1 / sqrt(K)``.

    Returns:
        ``(B, H, T_q, K_v)``, dtype of ``q``; tiles are float32 for half precision. A row that may
        look nowhere is 0, and so are its gradients.

    Raises:
        TypeError, ValueError: If an argument does not fit; the message names it.
        RuntimeError: In a backward pass with ``create_graph=True``.
    """
    q, k, v, attend = checked(q, k, v, attend=attend, causal=causal)
    return _Flash.apply(q, k, v, attend, causal, checked_scale(scale, q))  # type: ignore[no-untyped-call]


class _Tiles:
    """Where tiles begin and end, and the scores of one.

    The G query heads that share a key head are rows of one tile, so no key is copied for them.
    """

    def __init__(
        self, q: Tensor, k: Tensor, attend: Tensor | None, causal: bool, scale: float
    ) -> None:
        self.queries, self.keys, self.causal, self.scale = q.shape[2], k.shape[2], causal, scale
        self.kv_heads, self.groups = k.shape[1], q.shape[1] // k.shape[1]
        self.q, self.k = self.grouped(q), k
        self.exact = accumulated(q.dtype)
        self.rows = max(1, ROWS // self.groups)
        if attend is not None:  # (B|1, H_kv|1, G|1, T_q|1, T_k|1)
            shared = attend.shape[1] == 1
            attend = attend.unflatten(1, (1, 1) if shared else (self.kv_heads, self.groups))
        self.attend = attend

    def grouped(self, x: Tensor) -> Tensor:
        """Return ``(B, H_kv, G, T, K)``, a view of ``(B, H, T, K)``."""
        return x.unflatten(1, (self.kv_heads, self.groups))

    def of_queries(self) -> Iterator[slice]:
        for start in range(0, self.queries, self.rows):
            yield slice(start, min(start + self.rows, self.queries))

    def of_keys(self, queries: slice) -> Iterator[slice]:
        """Yield those that a tile of queries may look at."""
        stop = queries.stop if self.causal else self.keys
        for start in range(0, stop, COLUMNS):
            yield slice(start, min(start + COLUMNS, self.keys))

    def part(self, grouped: Tensor, queries: slice) -> Tensor:
        """Return rows of a tile, ``(B, H_kv, G R, K)``, of ``(B, H_kv, G, T, K)``."""
        return grouped[:, :, :, queries].flatten(2, 3).to(self.exact)

    def apart(self, rows: Tensor) -> Tensor:
        """Return ``(B, H_kv, G, R, ...)`` of ``(B, H_kv, G R, ...)``; B may be 0."""
        return rows.unflatten(2, (self.groups, rows.shape[2] // self.groups))

    def scores(self, q: Tensor, k: Tensor, queries: slice, keys: slice) -> Tensor:
        """Return ``(B, H_kv, G R, C)``, -inf where a query may not look."""
        scores = (q @ k.mT).mul_(self.scale)
        tile = self.apart(scores)
        if self.attend is not None:
            rows = queries if self.attend.shape[3] > 1 else slice(None)
            columns = keys if self.attend.shape[4] > 1 else slice(None)
            tile.masked_fill_(~self.attend[..., rows, columns], -torch.inf)
        if self.causal and keys.stop - 1 > queries.start:
            size = (queries.stop - queries.start, keys.stop - keys.start)
            future = torch.ones(size, dtype=torch.bool, device=scores.device)
            tile.masked_fill_(future.triu(queries.start - keys.start + 1), -torch.inf)
        return scores


def _as_they_are(x: Tensor) -> torch.autocast:
    """Turn autocast off, which would halve the precision of tiles."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


class _Flash(torch.autograd.Function):
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
        tiles = _Tiles(q, k, attend, causal, scale)
        out = q.new_empty(*q.shape[:3], v.shape[3])
        log_sums = q.new_empty(q.shape[:3], dtype=tiles.exact)
        with _as_they_are(q):
            for queries in tiles.of_queries():
                rows = tiles.part(tiles.q, queries)
                o = rows.new_zeros(*rows.shape[:3], v.shape[3])
                total = rows.new_zeros(*rows.shape[:3], 1)
                largest = torch.full_like(total, torch.finfo(tiles.exact).min)
                for keys in tiles.of_keys(queries):
                    scores = tiles.scores(rows, k[:, :, keys].to(tiles.exact), queries, keys)
                    new = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
                    p = scores.sub_(new).exp_()
                    shrunk = largest.sub_(new).exp_()
                    total.mul_(shrunk).add_(p.sum(dim=-1, keepdim=True))
                    o.mul_(shrunk).add_(p @ v[:, :, keys].to(tiles.exact))
                    largest = new
                nowhere = total == 0
                o.div_(total.masked_fill_(nowhere, 1.0))
                # inf, not -inf, where a row may look nowhere: exp(s - inf) = 0 in the backward pass
                log_sum = (largest + total.log()).masked_fill_(nowhere, torch.inf)
                tiles.grouped(out)[:, :, :, queries] = tiles.apart(o)
                tiles.grouped(log_sums)[:, :, :, queries] = tiles.apart(log_sum)[..., 0]
        ctx.save_for_backward(q, k, v, attend, out, log_sums)
        ctx.causal, ctx.scale = causal, scale
        return out

    @staticmethod
    def backward(ctx: Context, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "flash_attention was asked for a gradient that can be differentiated again "
                "(create_graph=True), which its tiles do not have; use "
                "generative.attention.naive.softmax_attention for it"
            )
        q, k, v, attend, out, log_sums = ctx.saved_tensors
        tiles = _Tiles(q, k, attend, ctx.causal, ctx.scale)
        exact = tiles.exact
        dq, dk, dv = (torch.zeros_like(x, dtype=exact) for x in (q, k, v))
        with _as_they_are(q):
            for queries in tiles.of_queries():
                rows, d_o, o = (
                    tiles.part(x, queries)
                    for x in (tiles.q, tiles.grouped(d_out), tiles.grouped(out))
                )
                log_sum = tiles.part(tiles.grouped(log_sums)[..., None], queries)
                delta = (d_o * o).sum(dim=-1, keepdim=True)
                dq_rows = torch.zeros_like(rows)
                for keys in tiles.of_keys(queries):
                    some_k, some_v = (x[:, :, keys].to(exact) for x in (k, v))
                    p = tiles.scores(rows, some_k, queries, keys).sub_(log_sum).exp_()
                    dv[:, :, keys] += p.mT @ d_o
                    ds = (d_o @ some_v.mT).sub_(delta).mul_(p).mul_(ctx.scale)
                    dq_rows += ds @ some_k
                    dk[:, :, keys] += ds.mT @ rows
                tiles.grouped(dq)[:, :, :, queries] = tiles.apart(dq_rows)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None
