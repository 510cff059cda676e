"""Learned biases of buckets of distances: T5 (Raffel et al. 2020, arXiv:1910.10683, 2.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["RelativeBias", "relative_buckets"]


def relative_buckets(
    distances: Tensor, *, buckets: int = 32, farthest: int = 128, causal: bool = False
) -> Tensor:
    r"""Return the bucket of each distance, as T5's published code has it.

    With n buckets for a direction, half of them hold one distance each, from 0; the others grow
    with the logarithm, and the last holds ``farthest`` and all beyond:

        n/2 + floor(ln(d / (n/2)) / ln(farthest / (n/2)) * n/2),    at most n - 1

    If ``causal``, keys after the query share bucket 0 and n is ``buckets``. Else n is half of it,
    and the upper half of the buckets is for keys after the query.

    Args:
        distances: ``(...)`` int64, position of the key less that of the query.
        buckets: In all; at least 4, and a multiple of 4 unless causal.
        farthest: Distance from which all share the last bucket; more than n / 2.
        causal: Whether queries look at the past alone.

    Returns:
        ``(...)`` int64, from 0 to ``buckets - 1``.

    >>> relative_buckets(torch.tensor([-2, -1, 0, 1, 2])).tolist()
    [2, 1, 0, 17, 18]
    """
    if buckets < 4 or (not causal and buckets % 4):
        raise ValueError(
            f"buckets={buckets}, expected at least 4, and a multiple of 4 unless causal: half of "
            "them are for keys after the query, and half of each half hold one distance each"
        )
    each = buckets if causal else buckets // 2
    single = each // 2
    if farthest <= single:
        raise ValueError(
            f"farthest={farthest} with {single} buckets of one distance each: nothing is left for "
            "the others; give more than that, or fewer buckets"
        )
    far = -distances.clamp(max=0) if causal else distances.abs()
    ratio = (far.clamp(min=1).float() / single).log() / math.log(farthest / single)
    grown = single + (ratio * (each - single)).long()
    found = torch.where(far < single, far, grown.clamp(max=each - 1))
    return found if causal else found + each * (distances > 0)


class RelativeBias(nn.Module):
    """A learned number for each bucket and head, which is added to the scores.

    T5 divides no scores by ``sqrt(K)``: pass ``scale=1.0`` to the attention to have its model.
    """

    def __init__(
        self, heads: int, *, buckets: int = 32, farthest: int = 128, causal: bool = False
    ) -> None:
        super().__init__()
        relative_buckets(torch.zeros(0), buckets=buckets, farthest=farthest, causal=causal)
        self.buckets, self.farthest, self.causal = buckets, farthest, causal
        self.weight = nn.Parameter(torch.zeros(buckets, heads))
        """``(buckets, H)``; at 0 it changes nothing."""

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return ``(H, T_q, T_k)``.

        Args:
            queries: ``(T_q,)`` positions.
            keys: ``(T_k,)`` positions.
        """
        found = relative_buckets(
            keys - queries[:, None],
            buckets=self.buckets,
            farthest=self.farthest,
            causal=self.causal,
        )
        return self.weight[found].permute(2, 0, 1)
