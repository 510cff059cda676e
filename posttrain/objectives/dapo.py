"""Decoupled clipping and token-level loss: every token counts the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from posttrain.objectives.base import check_clip
from posttrain.objectives.surrogate import token_gains

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["DAPO"]


@dataclass(frozen=True, slots=True)
class DAPO:
    r"""Clip-higher surrogate, mean over tokens (DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 8).

        loss = -1/(\sum_i |o_i|) \sum_i \sum_t gain_{i,t}

    The wider upper limit leaves unlikely tokens room to grow, which keeps the entropy up. The
    paper has no KL penalty. Its dynamic sampling and overlong filtering concern which rollouts
    are trained on, not this formula.
    """

    clip_low: float = 0.2
    """How far the ratio may fall below 1 before a loss is cut off."""
    clip_high: float = 0.28
    """How far the ratio may rise above 1 before a gain is cut off."""

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of counted tokens, a scalar."""
        return batch.mask.sum()

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of token losses, a scalar; ``log_probs`` is ``(B, T)``."""
        return -token_gains(log_probs, batch, self.clip_low, self.clip_high).sum()
