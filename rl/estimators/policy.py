"""What a policy gains on chosen actions, and how undecided it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["clipped_surrogate", "entropy", "squashed_gaussian_log_prob"]


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    r"""Per-token gain of PPO (Schulman et al. 2017, arXiv:1707.06347, eq. 7).

        w = exp(log_probs - old_log_probs)
        gain = min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)

    Two limits instead of the paper's one (clip-higher: Yu et al. 2025, arXiv:2503.14476, eq. 8).
    The gradient goes through ``log_probs`` alone. A ratio beyond the range of floating point
    stays at its end, so a gain that does not depend on it has no NaN gradient.

    Args:
        log_probs: ``(..., T)`` nats under the current policy.
        old_log_probs: ``(..., T)`` nats under the policy before the update.
        advantages: ``(..., T)``.
        clip_low: How far the ratio may fall below 1 before a loss is cut off.
        clip_high: How far it may rise above 1 before a gain is cut off.

    Returns:
        ``(..., T)`` gains, to be maximised, in units of the advantages.

    >>> log_probs = torch.tensor([2.0, 2.0, 0.5, 0.5]).log()
    >>> advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    >>> clipped_surrogate(log_probs, torch.zeros(4), advantages, 0.25, 0.5)
    tensor([ 1.5000, -2.0000,  0.5000, -0.7500])
    """
    old_log_probs, advantages = old_log_probs.detach(), advantages.detach()
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.clamp(max=math.log(torch.finfo(log_ratio.dtype).max) - 1).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def entropy(logits: Tensor) -> Tensor:
    r"""Shannon entropy of ``softmax(logits)`` in nats, over the last axis.

        H = -\sum_i p_i log p_i,  0 log 0 = 0

    A logit of -inf is a choice that is ruled out: it adds nothing and gets gradient 0.

    Args:
        logits: ``(..., V)``, at least one of them finite.

    Returns:
        ``(...,)`` nats, between 0 and log V.

    >>> entropy(torch.tensor([0.0, 0.0, -torch.inf]))
    tensor(0.6931)
    """
    log_probs = logits.log_softmax(-1)
    # Filled before the product: 0 * -inf is NaN, and so would be its gradient.
    finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
    return -(log_probs.exp() * finite).sum(-1)


def squashed_gaussian_log_prob(pre_tanh: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    r"""Log-density of tanh(u), u Gaussian (SAC, Haarnoja et al. 2018, arXiv:1801.01290, eq. 21).

        log pi(tanh u) = \sum_i log N(u_i; mean_i, exp(log_std_i)^2) - log(1 - tanh(u_i)^2)
        log(1 - tanh(u)^2) = log 4 + log sigmoid(2 u) + log sigmoid(-2 u)

    The second line is exact also where tanh(u) rounds to 1 or -1; so take u as it was drawn, not
    from an action. Where the action is then scaled, subtract the logarithm of the scale for each
    component.

    Args:
        pre_tanh: ``(..., D)``, u.
        mean: ``(..., D)`` of u.
        log_std: ``(..., D)``, logarithm of the standard deviation of u. Leading axes broadcast.

    Returns:
        ``(...,)`` nats, summed over the last axis.

    >>> zero = torch.zeros(2)  # twice -log(2 pi) / 2
    >>> squashed_gaussian_log_prob(zero, zero, zero)
    tensor(-1.8379)
    """
    _check_components(pre_tanh, mean, log_std)
    standardized = (pre_tanh - mean) * (-log_std).exp()
    log_density = -standardized.square() / 2 - log_std - math.log(2 * math.pi) / 2
    # Not 2 (log 2 - u - softplus(-2 u)): torch's softplus drops the last digits beyond 20.
    log_slope = math.log(4) + F.logsigmoid(2 * pre_tanh) + F.logsigmoid(-2 * pre_tanh)
    return (log_density - log_slope).sum(-1)


def _check_components(pre_tanh: Tensor, mean: Tensor, log_std: Tensor) -> None:
    shapes = [x.shape for x in (pre_tanh, mean, log_std)]
    try:
        torch.broadcast_shapes(*shapes)
        fit = all(shapes) and len({shape[-1] for shape in shapes}) == 1
    except RuntimeError:
        fit = False
    if not fit:
        given = ", ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(
            f"got pre_tanh, mean and log_std of shapes {given}: the last axis holds the components "
            "of the action, in all three the same number, and the axes before it must broadcast"
        )
