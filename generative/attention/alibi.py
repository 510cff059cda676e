"""Attention with linear biases, ALiBi (Press et al. 2022, arXiv:2108.12409)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["alibi_bias", "alibi_slopes"]


def alibi_slopes(heads: int) -> Tensor:
    r"""Return each head's slope: a geometric sequence from ``2^(-8/H)``, of that ratio.

    For H that is no power of 2, as in the authors' code: the slopes of the next smaller power P,
    then every other one of ``2 P`` heads, from the first, until there are H.

    Args:
        heads: H, at least 1.

    Returns:
        ``(H,)`` float32, score per token of distance.

    >>> alibi_slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> alibi_slopes(3).tolist()
    [0.0625, 0.00390625, 0.25]
    """
    if heads < 1:
        raise ValueError(f"heads={heads}: give at least 1")
    power = 2 ** (heads.bit_length() - 1)
    regular = _geometric(power)
    between = _geometric(2 * power)[::2]
    return torch.cat((regular, between[: heads - power]))


def _geometric(heads: int) -> Tensor:
    exponents = torch.arange(1, heads + 1, dtype=torch.float64) * (-8 / heads)
    return (2.0**exponents).float()


def alibi_bias(queries: Tensor, keys: Tensor, slopes: Tensor) -> Tensor:
    r"""Return what is added to the scores: ``-slope_h |i - j|``.

    The paper's decoders look at the past alone, where it is ``slope_h (j - i)``. What scores get
    depends on distances alone, so sequences may be longer than those trained on.

    Args:
        queries: ``(T_q,)`` positions.
        keys: ``(T_k,)`` positions.
        slopes: ``(H,)`` of ``alibi_slopes``.

    Returns:
        ``(H, T_q, T_k)``, dtype of ``slopes``.

    >>> alibi_bias(torch.tensor([2]), torch.arange(3), torch.tensor([0.5])).tolist()
    [[[-1.0, -0.5, -0.0]]]
    """
    distances = (queries[:, None] - keys).abs()
    return -slopes[:, None, None].to(distances.device) * distances
