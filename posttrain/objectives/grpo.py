"""Group-relative policy optimisation: every sequence counts the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from posttrain.objectives.base import count_rows
from posttrain.objectives.surrogate import (
    TokenDivergence,
    check_surrogate,
    token_divergences,
    token_gains,
)
from rl.estimators.kl import k3

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["GRPO"]


@dataclass(frozen=True, slots=True)
class GRPO:
    r"""Clipped surrogate and KL penalty (Shao et al. 2024, arXiv:2402.03300, eq. 3).

        loss = -1/B \sum_i 1/|o_i| \sum_t (gain_{i,t} - kl_weight KL_{i,t})

    The mean over a sequence's tokens, then over sequences: in a long answer each token counts
    less. Rows without a counted token are no sequences.
    """

    clip_low: float = 0.2
    """How far the ratio may fall below 1 before a loss is cut off."""
    clip_high: float = 0.2
    """How far the ratio may rise above 1 before a gain is cut off."""
    kl_weight: float = 0.0
    """Weight of KL(policy || reference); 0 needs no reference model."""
    kl: TokenDivergence = k3
    """The estimate of the KL, per token."""
    dual_clip: float | None = None
    """Where the advantage A is negative the gain is at least ``dual_clip * A``."""

    def __post_init__(self) -> None:
        check_surrogate(self.clip_low, self.clip_high, self.kl_weight, self.dual_clip)

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of sequences, a scalar."""
        return count_rows(batch.mask)

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of sequence losses, a scalar; ``log_probs`` is ``(B, T)``."""
        gains = token_gains(log_probs, batch, self.clip_low, self.clip_high, self.dual_clip)
        if self.kl_weight:
            gains = gains - self.kl_weight * token_divergences(log_probs, batch, self.kl)
        lengths = batch.mask.sum(-1).clamp(min=1)
        return -(gains.sum(-1) / lengths).sum()
