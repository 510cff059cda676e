"""Advantages: how much better a choice was than what was to be expected.

No advantage carries a gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rl.estimators.scaling import binary_scale
from rl.estimators.segments import accumulate, steps, weighted

__all__ = [
    "Std",
    "generalized_advantages",
    "group_relative_advantages",
    "leave_one_out_advantages",
    "maxrl_advantages",
    "process_supervised_advantages",
    "reinforce_plus_plus_advantages",
]

Std = Literal["population", "sample"] | None
"""How squares become a deviation: divided by their number, by one less, or not at all."""


def group_relative_advantages(
    rewards: Tensor,
    *,
    std: Std,
    eps: float = 0.0,
    over: Literal["group", "batch"] = "group",
) -> Tensor:
    r"""Advantages against the mean of the group (GRPO, Shao et al. 2024, arXiv:2402.03300, 4.1.2).

        A_i = (r_i - mean(r)) / (std(r) + eps)

    ``std=None`` divides by nothing (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783). A group of equal
    rewards gets exactly 0, whatever their mean would round to, also with ``eps=0``.

    ``over="batch"`` takes the deviation of all P G rewards, so that a group of nearly equal
    rewards is not blown up (Liu et al. 2025, arXiv:2508.08221); the mean is the
    group's all the same.

    Args:
        rewards: ``(..., P, G)``, the G completions of a prompt along the last axis.
        std: ``"population"`` divides the squares by G, ``"sample"`` by G - 1.
        eps: Added to the standard deviation, in units of reward.
        over: Whose deviation divides.

    Returns:
        ``(..., P, G)`` advantages, in deviations (in units of reward for ``std=None``).

    >>> group_relative_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), std="population")
    tensor([[ 1., -1., -1.,  1.]])
    >>> group_relative_advantages(torch.tensor([[0.1, 0.1, 0.1]]), std="sample")
    tensor([[0., 0., 0.]])
    """
    _check(std, eps)
    if over not in ("group", "batch"):
        raise ValueError(
            f"over={over!r} is unknown: the deviation is the 'group' or the 'batch' one"
        )
    offsets, scale = _offsets(rewards, least=2 if std == "sample" else 1)
    centred = offsets - offsets.mean(-1, keepdim=True)
    if std is None:
        return centred * scale
    if over == "batch":
        return _by_batch_deviation(centred * scale, rewards, std, eps)
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


def maxrl_advantages(rewards: Tensor) -> Tensor:
    r"""Advantages relative to the success rate (MaxRL, Tajwar et al. 2026, arXiv:2602.02710).

        A_i = (r_i - mean(r)) / mean(r),  0 where mean(r) = 0

    Of rewards of 0 and 1 it is the gradient of a truncated log-likelihood of success: the mean of
    the score over successful completions, less that over all. A problem that is seldom solved
    weighs as one over its success rate, where GRPO's weighs as one over a deviation. Equal rewards
    get exactly 0.

    Args:
        rewards: ``(..., P, G)``, 0 or more, the G completions of a prompt along the last axis.

    Returns:
        ``(..., P, G)`` advantages, in means of the group.

    Raises:
        ValueError: A reward is negative, so that a mean is no rate of success.

    >>> maxrl_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    tensor([[ 3., -1., -1., -1.],
            [ 0.,  0.,  0.,  0.]])
    """
    if (rewards < 0).any():
        raise ValueError(
            f"got a reward of {rewards.min():g}: maxrl divides by the mean reward as a rate of "
            "success, so rewards have to be 0 or more; add a constant, or use group-relative ones"
        )
    offsets, scale = _offsets(rewards, least=1)
    centred = offsets - offsets.mean(-1, keepdim=True)
    mean = (rewards.to(centred.dtype) / scale / rewards.shape[-1]).sum(-1, keepdim=True)
    return torch.where(centred == 0, 0.0, centred / mean)


def reinforce_plus_plus_advantages(rewards: Tensor, mask: Tensor, *, std: Std) -> Tensor:
    r"""Rewards z-scored over all tokens of a batch (REINFORCE++, Hu et al. 2025, arXiv:2501.03262).

        A_{i,t} = (r_i - mean(r)) / std(r),  mean and std over all counted tokens of all rows

    Every token carries its completion's reward, so long completions weigh more in mean and
    deviation. The baseline variant, which the paper takes for several completions a prompt,
    subtracts the group's mean first: pass ``group_relative_advantages(rewards, std=None)`` as
    the rewards. Equal rewards get exactly 0. The paper puts a KL penalty into the reward of each
    token; there is none here.

    Args:
        rewards: ``(B,)``, one a completion; that of a row without a counted token may be anything.
        mask: ``(B, T)`` bool, True = counts. Of the whole batch: gather before it is called.
        std: ``"population"`` divides the squares by the number of counted tokens, ``"sample"`` by
            one less, None does not divide.

    Returns:
        ``(B, T)`` advantages, 0 where the mask is False.

    >>> mask = torch.tensor([[True, True, True], [True, False, False]])
    >>> reinforce_plus_plus_advantages(torch.tensor([2.0, 6.0]), mask, std=None)
    tensor([[-1., -1., -1.],
            [ 3.,  0.,  0.]])
    """
    _check(std, 0.0)
    if mask.ndim != 2 or rewards.shape != mask.shape[:1]:
        raise ValueError(
            f"got rewards of shape {tuple(rewards.shape)} for a mask of shape "
            f"{tuple(mask.shape)}: rewards are (B,), one a row of the mask, which is (B, T)"
        )
    return _standardized(rewards[:, None].expand(mask.shape), mask, (0, 1), std, 0.0)


def process_supervised_advantages(
    step_rewards: Tensor, step_mask: Tensor, *, std: Std, eps: float = 0.0
) -> Tensor:
    r"""Advantages of steps that are rewarded each (Shao et al. 2024, arXiv:2402.03300, 4.1.3).

        z_{i,k} = (r_{i,k} - mean(r)) / (std(r) + eps),  over all counted steps of the group
        A_{i,k} = \sum_{j >= k} z_{i,j}

    A token's advantage is that of the step it belongs to. Equal rewards get exactly 0; what is
    masked counts for nothing, not even NaN.

    Args:
        step_rewards: ``(..., P, G, K)``, up to K steps in each of a prompt's G completions.
        step_mask: ``(..., P, G, K)`` bool, True = the step exists.
        std: ``"population"`` divides the squares by the group's number of counted steps,
            ``"sample"`` by one less, None does not divide.
        eps: Added to the standard deviation, in units of reward.

    Returns:
        ``(..., P, G, K)`` advantages, 0 where the mask is False.

    >>> steps = torch.tensor([[[1.0, 0.0], [1.0, torch.nan]]])
    >>> process_supervised_advantages(steps, ~steps.isnan(), std=None)
    tensor([[[-0.3333, -0.6667],
             [ 0.3333,  0.0000]]])
    """
    _check(std, eps)
    if step_rewards.shape != step_mask.shape or step_rewards.ndim < 2:
        raise ValueError(
            f"got step_rewards of shape {tuple(step_rewards.shape)} and a step_mask of shape "
            f"{tuple(step_mask.shape)}: both are (..., P, G, K), K steps of each completion"
        )
    scores = _standardized(step_rewards, step_mask, (-2, -1), std, eps)
    sums = scores.flip(-1).cumsum(-1).flip(-1)
    return torch.where(step_mask, sums, 0.0)


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


def _check(std: Std, eps: float) -> None:
    if std not in ("population", "sample", None):
        raise ValueError(
            f"std={std!r} is unknown: it is 'population' (squares divided by G), "
            "'sample' (by G - 1) or None (no division)"
        )
    if not eps >= 0:
        raise ValueError(f"eps={eps}: it is added to a standard deviation, so use 0 or more")


def _by_batch_deviation(centred: Tensor, rewards: Tensor, std: Std, eps: float) -> Tensor:
    """Return ``centred`` in deviations of all rewards of the last two axes."""
    if rewards.ndim < 2:
        raise ValueError(
            f"got rewards of shape {tuple(rewards.shape)}: over='batch' needs the groups of a "
            "batch, (..., P, G)"
        )
    if rewards.numel() == 0:
        return centred
    whole = rewards.flatten(-2)
    offsets, scale = _offsets(whole, least=2 if std == "sample" else 1)
    spread = offsets - offsets.mean(-1, keepdim=True)
    count = whole.shape[-1] - (std == "sample")
    deviation = (spread.square().sum(-1, keepdim=True) / count).sqrt()
    centred = centred / scale[..., None]
    return torch.where(centred == 0, 0.0, centred / (deviation + eps / scale)[..., None])


def _standardized(x: Tensor, mask: Tensor, axes: tuple[int, ...], std: Std, eps: float) -> Tensor:
    """Return ``(x - mean) / (std + eps)`` over the counted entries, 0 elsewhere, no gradient."""
    mask = mask.bool()
    x = x.detach()
    x = torch.where(mask, x if x.is_floating_point() else x.to(torch.get_default_dtype()), 0.0)
    if x.numel() == 0:
        return x
    count = mask.sum(axes, keepdim=True)
    largest = binary_scale(x, axes)
    least = torch.where(mask, x / largest, torch.inf).amin(axes, keepdim=True)
    # Measured from the least counted entry, equal entries are 0 before anything can round.
    offsets = torch.where(mask, x / largest - least, 0.0)
    scale = binary_scale(offsets, axes).clamp(max=1.0)
    offsets = offsets / scale
    mean = offsets.sum(axes, keepdim=True) / count.clamp(min=1)
    centred = torch.where(mask, offsets - mean, 0.0)
    if std is None:
        return centred * scale * largest
    squares = centred.square().sum(axes, keepdim=True)
    deviation = (squares / (count - int(std == "sample")).clamp(min=1)).sqrt()
    return torch.where(centred == 0, 0.0, centred / (deviation + eps / (scale * largest)))


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
