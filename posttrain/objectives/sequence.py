"""A sequence's ratio and advantage: what GSPO, LUSPO and GMPO share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from posttrain.objectives.base import counted
from rl.estimators.policy import clipped_surrogate

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["row_means", "sequence_advantages", "sequence_gains", "sequence_log_ratios"]


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    """Return each row's mean over its counted tokens, ``(B,)``; 0 for a row without any."""
    return counted(values, mask).sum(-1) / mask.sum(-1).clamp(min=1)


def sequence_log_ratios(log_probs: Tensor, batch: RolloutBatch) -> Tensor:
    """Return ``log s_i``, ``(B,)`` nats: the mean over a row's counted tokens of ``log w``."""
    old_log_probs = counted(batch.old_log_probs, batch.mask).detach()
    return row_means(counted(log_probs, batch.mask) - old_log_probs, batch.mask)


def sequence_advantages(batch: RolloutBatch) -> Tensor:
    """Return each row's advantage, ``(B,)``: the mean of what its counted tokens carry.

    Outcome advantages are the same for all of them; weights that differ, such as those against a
    mismatch, are averaged.
    """
    return row_means(batch.advantages, batch.mask).detach()


def sequence_gains(
    log_probs: Tensor, batch: RolloutBatch, clip_low: float, clip_high: float
) -> Tensor:
    """Return each row's ``min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)``, ``(B,)``."""
    log_ratios = sequence_log_ratios(log_probs, batch)
    zeros = log_ratios.new_zeros(log_ratios.shape)
    return clipped_surrogate(log_ratios, zeros, sequence_advantages(batch), clip_low, clip_high)
