"""Dr. GRPO: every token counts the same, by a constant that no length changes."""

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

__all__ = ["DrGRPO"]


@dataclass(frozen=True, slots=True)
class DrGRPO:
    r"""GRPO without its length bias (Liu et al. 2025, arXiv:2503.20783, section 3.2).

        loss = -1/(B max_length) \sum_i \sum_t (gain_{i,t} - kl_weight KL_{i,t})

    A mean over each sequence's own length pays for short right answers and long wrong ones; a
    constant does not. The paper pairs it with advantages that are not divided by the group's
    deviation (``std=None``). Rows without a counted token are no sequences.
    """

    max_length: int
    """Tokens; the constant in place of a sequence's length, usually the most it may have."""
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
        if not self.max_length >= 1:
            raise ValueError(
                f"max_length={self.max_length}: it is the number of tokens that a sequence's sum "
                "is divided by, so use at least 1; usually sampling.max_tokens"
            )

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of sequences times ``max_length``, a scalar."""
        return count_rows(batch.mask) * self.max_length

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of token losses, a scalar; ``log_probs`` is ``(B, T)``."""
        gains = token_gains(log_probs, batch, self.clip_low, self.clip_high, self.dual_clip)
        if self.kl_weight:
            gains = gains - self.kl_weight * token_divergences(log_probs, batch, self.kl)
        return -gains.sum()
