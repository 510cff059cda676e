"""The clipped surrogate of a batch, token by token: what GRPO, DAPO and Dr. GRPO share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posttrain.objectives.base import check_clip, counted
from rl.estimators.policy import clipped_surrogate

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["TokenDivergence", "check_surrogate", "token_divergences", "token_gains"]

TokenDivergence = Callable[[Tensor, Tensor], Tensor]
"""Estimates KL(policy || reference) per token from ``(log_probs, ref_log_probs)``."""


def token_gains(
    log_probs: Tensor,
    batch: RolloutBatch,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    r"""Return each token's gain, 0 where the mask is False.

        gain = min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)
        gain = max(gain, dual_clip A)  where A < 0

    The second line bounds what a token that became far likelier can lose (dual clip: Ye et al.
    2020, arXiv:1912.09729); without it a negative advantage has no lower bound.

    Args:
        log_probs: ``(B, T)`` nats, current policy.
        batch: The rollouts; ``mask``, ``old_log_probs`` and ``advantages`` are read.
        clip_low: How far the ratio may fall below 1 before a loss is cut off.
        clip_high: How far it may rise above 1 before a gain is cut off.
        dual_clip: The bound c >= 1, or None.

    Returns:
        ``(B, T)``, in units of the advantages.
    """
    advantages = counted(batch.advantages, batch.mask).detach()
    gains = clipped_surrogate(
        counted(log_probs, batch.mask),
        counted(batch.old_log_probs, batch.mask),
        advantages,
        clip_low,
        clip_high,
    )
    if dual_clip is None:
        return gains
    bound = dual_clip * advantages
    # Not torch.maximum, which halves the gradient where both are equal, as at w = dual_clip = 1.
    return torch.where((advantages < 0) & (gains < bound), bound, gains)


def token_divergences(log_probs: Tensor, batch: RolloutBatch, kl: TokenDivergence) -> Tensor:
    """Return each token's estimate of KL(policy || reference) in nats, 0 where the mask is False.

    It is not weighted by the ratio: the tokens are taken as the current policy's own.
    """
    if batch.ref_log_probs is None:
        raise ValueError(
            "kl_weight > 0 needs the reference's log-probabilities, but the batch has "
            "ref_log_probs=None: compute them with the frozen reference, or set kl_weight=0"
        )
    ref_log_probs = counted(batch.ref_log_probs, batch.mask).detach()
    return counted(kl(counted(log_probs, batch.mask), ref_log_probs), batch.mask)


def check_surrogate(
    clip_low: float, clip_high: float, kl_weight: float, dual_clip: float | None
) -> None:
    """Refuse settings under which the surrogate would push the wrong way."""
    check_clip(clip_low, clip_high)
    if not 0 <= kl_weight < float("inf"):
        raise ValueError(
            f"kl_weight={kl_weight}: it weighs a penalty, so use a finite number of 0 or more; "
            "0 needs no reference model"
        )
    if dual_clip is not None and not dual_clip >= 1:
        raise ValueError(
            f"dual_clip={dual_clip}: below 1 it would cut off losses at the policy that sampled; "
            "use 1 or more (the paper takes 3), or None"
        )
