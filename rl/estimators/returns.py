"""Returns: what was paid from a step on, discounted, and what is still to be expected after it.

Time is the last axis. A terminal state is ``discount = 0``. The last step of a segment, terminal or
merely truncated, is ``trace = 0``: there the return ends with ``next_values``, so a truncated
episode still bootstraps. The tensor ends a segment as a trace of 0 does. No return carries a
gradient, and what a discount or a trace of 0 cuts off counts for nothing, not even NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl.estimators.segments import accumulate, ended, following, steps, weighted

__all__ = ["discounted_returns", "lambda_returns", "n_step_returns"]


def discounted_returns(rewards: Tensor, discounts: Tensor, bootstrap: Tensor) -> Tensor:
    r"""Discounted sums of the rewards to come (Sutton & Barto 2018, eq. 3.9).

        G_t = r_t + discount_t * G_{t+1},  G_T = bootstrap

    Episodes may end inside, with a discount of 0. One that is truncated inside has a value to
    bootstrap from that this function does not see: use ``lambda_returns`` with traces of 1 and 0.

    Args:
        rewards: ``(..., T)``.
        discounts: ``(..., T)``, gamma or 0.
        bootstrap: ``(...,)``, V(s_T) of the state after the last step.

    Returns:
        ``(..., T)`` returns in units of reward.

    >>> discounted_returns(torch.ones(3), torch.tensor([0.5, 0.0, 0.5]), torch.tensor(4.0))
    tensor([1.5000, 1.0000, 3.0000])
    """
    rewards, discounts = steps(rewards=rewards, discounts=discounts)
    if bootstrap.shape != rewards.shape[:-1]:
        raise ValueError(
            f"got bootstrap of shape {tuple(bootstrap.shape)} for rewards of shape "
            f"{tuple(rewards.shape)}: it is the value after the last step, so give the shape of "
            "the rewards without the last axis"
        )
    next_values = bootstrap.unsqueeze(-1).expand(rewards.shape)
    return lambda_returns(rewards, discounts, next_values, torch.ones_like(rewards))


def n_step_returns(
    rewards: Tensor, discounts: Tensor, next_values: Tensor, traces: Tensor, n: int
) -> Tensor:
    r"""Rewards of n steps, then the value of the state reached (Sutton & Barto 2018, eq. 7.1).

        G_t^1 = r_t + discount_t * V(s_{t+1})
        G_t^k = r_t + discount_t * G_{t+1}^{k-1} where trace_t = 1, else G_t^1

    So a return has fewer than n rewards where its segment ends before.

    Args:
        rewards: ``(..., T)``.
        discounts: ``(..., T)``, gamma or 0.
        next_values: ``(..., T)``, V(s_{t+1}), of the state that the action led to.
        traces: ``(..., T)``, 1, or 0 at the end of a segment.
        n: Rewards in a return, at least 1.

    Returns:
        ``(..., T)`` returns G_t^n in units of reward.

    >>> one, half = torch.ones(4), torch.full((4,), 0.5)
    >>> n_step_returns(one, half, 4 * one, torch.tensor([1.0, 1.0, 0.0, 1.0]), n=2)
    tensor([2.5000, 2.5000, 3.0000, 3.0000])
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: a return has a whole number of rewards, so use 1 or more")
    rewards, discounts, next_values, traces = steps(
        rewards=rewards, discounts=discounts, next_values=next_values, traces=traces
    )
    if ((traces != 0) & (traces != 1)).any():
        raise ValueError(
            f"got traces between {traces.min().item():g} and {traces.max().item():g}: an n-step "
            "return goes on (1) or ends (0) at a step; for a lambda take lambda_returns"
        )
    goes_on = ended(traces) == 1
    returns = rewards + weighted(discounts, next_values)
    for _ in range(min(n, rewards.shape[-1]) - 1):
        returns = rewards + weighted(
            discounts, torch.where(goes_on, following(returns), next_values)
        )
    return returns


def lambda_returns(
    rewards: Tensor, discounts: Tensor, next_values: Tensor, traces: Tensor
) -> Tensor:
    r"""Returns of all lengths, mixed by their traces (Sutton & Barto 2018, eq. 12.18).

        G_t = r_t + discount_t * ((1 - trace_t) * V(s_{t+1}) + trace_t * G_{t+1})

    and at the last step, whatever its trace, G_t = r_t + discount_t * V(s_{t+1}). A trace of 1
    everywhere gives ``discounted_returns``, of 0 the targets of TD(0).

    Args:
        rewards: ``(..., T)``.
        discounts: ``(..., T)``, gamma or 0.
        next_values: ``(..., T)``, V(s_{t+1}), of the state that the action led to.
        traces: ``(..., T)``, lambda or 0.

    Returns:
        ``(..., T)`` returns in units of reward.

    >>> one, half = torch.ones(3), torch.full((3,), 0.5)
    >>> lambda_returns(one, half, 2 * one, torch.tensor([0.5, 0.0, 0.5]))
    tensor([2., 2., 2.])
    """
    rewards, discounts, next_values, traces = steps(
        rewards=rewards, discounts=discounts, next_values=next_values, traces=traces
    )
    traces = ended(traces)
    bootstrapped = rewards + weighted(discounts * (1 - traces), next_values)
    return accumulate(bootstrapped, discounts * traces)
