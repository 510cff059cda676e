"""Advantages: how much better a choice was than what was to be expected.

No advantage carries a gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rl.estimators.scaling import binary_scale
from rl.estimators.segments import accumulate, steps, weighted

__all__ = ["generalized_advantages", "group_relative_advantages", "leave_one_out_advantages"]

_STDS = ("population", "sample", None)


def group_relative_advantages(
    rewards: Tensor, *, std: Literal["population", "sample"] | None, eps: float = 0.0
) -> Tensor:
    r"""Advantages against the mean of the group (GRPO, Shao et al. 2024, arXiv:2402.03300, 4.1.2).

        A_i = (r_i - mean(r)) / (std(r) + eps)

    ``std=None`` divides by nothing (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783). A group of equal
    rewards gets exactly 0, whatever their mean would round to, also with ``eps=0``.

    Args:
        rewards: ``(..., P, G)``, the G completions of a prompt along the last axis.
        std: ``"population"`` divides the squares by G, ``"sample"`` by G - 1.
        eps: Added to the standard deviation, in units of reward.

    Returns:
        ``(..., P, G)`` advantages, in deviations (in units of reward for ``std=None``).

    >>> group_relative_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), std="population")
    tensor([[ 1., -1., -1.,  1.]])
    >>> group_relative_advantages(torch.tensor([[0.1, 0.1, 0.1]]), std="sample")
    tensor([[0., 0., 0.]])
    """
    if std not in _STDS:
        raise ValueError(
            f"std={std!r} is unknown: it is 'population' (squares divided by G), "
            "'sample' (by G - 1) or None (no division)"
        )
    if not eps >= 0:
        raise ValueError(f"eps={eps}: it is added to a standard deviation, so use 0 or more")
    offsets, scale = _offsets(rewards, least=2 if std == "sample" else 1)
    centred = offsets - offsets.mean(-1, keepdim=True)
    if std is None:
        return centred * scale
    count = rewards.shape[-1] - (std == "sample")
    deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    return torch.where(centred == 0, 0.0, centred / (deviation + eps / scale))


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    r"""Advantages against the mean of the others (RLOO, Ahmadian et al. 2024, arXiv:2402.14740).

        A_i = r_i - \sum_{j != i} r_j / (G - 1)

    Unlike the mean of the whole group, this baseline does not depend on the completion it is
    subtracted from, so the policy gradient stays unbiased. Equal rewards get exactly 0.

    Args:
        rewards: ``(..., P, G)``, the G completions of a prompt along the last axis; G >= 2.

    Returns:
        ``(..., P, G)`` advantages in units of reward.

    >>> leave_one_out_advantages(torch.tensor([[1.0, 0.0, 0.0]]))
    tensor([[ 1.0000, -0.5000, -0.5000]])
    """
    offsets, scale = _offsets(rewards, least=2)
    others = offsets.sum(-1, keepdim=True) - offsets
    return (offsets - others / (rewards.shape[-1] - 1)) * scale


def generalized_advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, discounts: Tensor, traces: Tensor
) -> Tensor:
    r"""Generalized advantage estimates (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

        delta_t = r_t + discount_t * V(s_{t+1}) - V(s_t)
        A_t     = delta_t + discount_t * trace_t * A_{t+1}

    A terminal state is ``discount = 0``. The last step of a segment, terminal or merely
    truncated, is ``trace = 0``; so a truncated episode still bootstraps from ``next_values``.
    What a discount or a trace of 0 cuts off counts for nothing, not even NaN.

    Args:
        rewards: ``(..., T)``, float.
        values: ``(..., T)``, V(s_t).
        next_values: ``(..., T)``, V(s_{t+1}), of the state that the action led to.
        discounts: ``(..., T)``, gamma or 0.
        traces: ``(..., T)``, lambda or 0.

    Returns:
        ``(..., T)`` advantages in units of reward.

    >>> one = torch.ones(3); zero = torch.zeros(3); half = torch.tensor([0.5, 0.5, 0.0])
    >>> generalized_advantages(one, zero, zero, half, half)
    tensor([1.3125, 1.2500, 1.0000])
    """
    rewards, values, next_values, discounts, traces = steps(
        rewards=rewards, values=values, next_values=next_values, discounts=discounts, traces=traces
    )
    deltas = rewards + weighted(discounts, next_values) - values
    return accumulate(deltas, discounts * traces)


def _offsets(rewards: Tensor, *, least: int) -> tuple[Tensor, Tensor]:
    """Return by how much each reward exceeds its group's smallest, and the scale of these figures.

    Measured so, equal rewards are 0 before anything can round; and divided by a power of two, the
    sums and squares of any rewards stay within the range of floating point.
    """
    if rewards.ndim == 0 or rewards.shape[-1] < least:
        raise ValueError(
            f"got rewards of shape {tuple(rewards.shape)}: the last axis holds the completions of "
            f"one prompt, and to be compared with one another they must be at least {least}"
        )
    rewards = rewards.detach()
    if not rewards.is_floating_point():
        rewards = rewards.to(torch.get_default_dtype())
    largest = binary_scale(rewards, -1)  # first, because a difference may be twice what it is of
    rewards = rewards / largest
    offsets = rewards - rewards.amin(-1, keepdim=True)
    scale = binary_scale(offsets, -1).clamp(max=1.0)  # of larger offsets the squares are in range
    return offsets / scale, scale * largest
