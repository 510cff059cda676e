"""Rewards and advantages of single tokens: what a critic's actor is paid, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posttrain.objectives.base import counted
from rl.estimators import generalized_advantages, masked_standardize
from rl.estimators.segments import following

__all__ = ["token_advantages", "token_rewards", "whitened"]


def token_rewards(scores: Tensor, mask: Tensor, penalties: Tensor | None = None) -> Tensor:
    """Return ``(B, T)`` rewards: the score at a row's last counted token, less the penalties.

    Args:
        scores: ``(B,)``, of whole completions; a row without a counted token loses its own.
        mask: ``(B, T)`` bool, the tokens that the policy chose.
        penalties: ``(B, T)``, of each token, such as a weighed estimate of the KL; None is 0.

    >>> mask = torch.tensor([[False, True, True, False]])
    >>> token_rewards(torch.tensor([1.0]), mask, torch.full((1, 4), 0.25))
    tensor([[ 0.0000, -0.2500,  0.7500,  0.0000]])
    """
    after = mask.flip(-1).cumsum(-1).flip(-1)  # counted tokens from this one on
    rewards = torch.where(mask & (after == 1), scores[:, None].to(torch.float32), 0.0)
    return rewards if penalties is None else rewards - counted(penalties, mask)


def token_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, trace: float
) -> Tensor:
    r"""Generalized advantages over a row's counted tokens (Schulman et al. 2016, arXiv:1506.02438).

        delta_t = r_t + discount V_{t+1} - V_t
        A_t     = delta_t + discount trace A_{t+1}

    t + 1 is the row's next counted token: what a tool wrote in between is passed over. The last
    one is terminal, whether the completion stopped or was cut off.

    Args:
        rewards: ``(B, T)``.
        values: ``(B, T)``, of the state before each token.
        mask: ``(B, T)`` bool; where it is False nothing counts, not even NaN.
        discount: Gamma.
        trace: Lambda; 1 makes an advantage the rewards to come, less the value.

    Returns:
        ``(B, T)`` advantages in units of reward, 0 where the mask is False, no gradient.

    >>> mask = torch.tensor([[False, True, False, True]])
    >>> rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    >>> values = torch.tensor([[9.0, 0.5, 9.0, 0.75]])
    >>> token_advantages(rewards, values, mask, discount=1.0, trace=0.5)
    tensor([[0.0000, 0.3750, 0.0000, 0.2500]])
    """
    order = mask.int().argsort(dim=-1, descending=True, stable=True)  # counted tokens to the left
    rewards, values = (counted(x.detach(), mask).gather(-1, order) for x in (rewards, values))
    place = torch.arange(mask.shape[-1], device=mask.device)
    goes_on = place < mask.sum(-1, keepdim=True) - 1
    advantages = generalized_advantages(
        rewards,
        values,
        following(values),
        torch.where(goes_on, discount, 0.0),
        torch.where(goes_on, trace, 0.0),
    )
    return counted(torch.zeros_like(advantages).scatter(-1, order, advantages), mask)


def whitened(
    advantages: Tensor,
    mask: Tensor,
    *,
    gather: Callable[[Tensor], Tensor] = lambda x: x,
    rank: int = 0,
) -> Tensor:
    """Return advantages of mean 0 and deviation 1 over the counted tokens of all processes.

    Args:
        advantages: ``(B, T)``, of this process.
        mask: ``(B, T)`` bool.
        gather: Returns the rows of every process, in order of rank.
        rank: Of this process.

    >>> mask = torch.tensor([[False, True, True]])
    >>> whitened(torch.tensor([[0.0, 1.0, 3.0]]), mask)
    tensor([[ 0., -1.,  1.]])
    """
    mine = advantages[mask]
    first = int(gather(torch.tensor([len(mine)]))[:rank].sum())
    every = gather(mine)
    standardized = masked_standardize(every, torch.ones_like(every, dtype=torch.bool))
    out = torch.zeros_like(advantages)
    out[mask] = standardized[first : first + len(mine)]
    return out
