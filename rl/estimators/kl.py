"""Estimates of KL(policy || reference) from tokens that the policy drew.

Schulman 2020, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html. With
x ~ policy and log r = log reference(x) - log policy(x), each estimate is per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["k1", "k2", "k3"]


def k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    r"""Return ``-log r``: unbiased, of either sign, of high variance.

    Args:
        log_probs: ``(..., T)`` nats under the policy that drew the tokens.
        ref_log_probs: ``(..., T)`` nats under the reference.

    Returns:
        ``(..., T)`` nats.

    >>> k1(torch.tensor([-1.0]), torch.tensor([-3.0]))
    tensor([2.])
    """
    return log_probs - ref_log_probs


def k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    r"""Return ``(log r)^2 / 2``: never negative, of low variance and low bias.

    Args:
        log_probs: ``(..., T)`` nats under the policy that drew the tokens.
        ref_log_probs: ``(..., T)`` nats under the reference.

    Returns:
        ``(..., T)`` nats.

    >>> k2(torch.tensor([-1.0]), torch.tensor([-3.0]))
    tensor([2.])
    """
    return (ref_log_probs - log_probs).square() / 2


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    r"""Return ``(r - 1) - log r``: unbiased and never negative (arXiv:2402.03300, eq. 4).

    Args:
        log_probs: ``(..., T)`` nats under the policy that drew the tokens.
        ref_log_probs: ``(..., T)`` nats under the reference.

    Returns:
        ``(..., T)`` nats.

    >>> k3(torch.tensor([-1.0]), torch.tensor([-1.0]))
    tensor([0.])
    """
    log_ratio = ref_log_probs - log_probs
    # expm1, because exp(log r) - 1 has no correct digit left where the policies nearly agree.
    return torch.expm1(log_ratio) - log_ratio
