"""Length-unbiased sequence policy optimisation: GSPO, each sequence weighed by its length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from posttrain.objectives.base import check_clip, count_rows
from posttrain.objectives.sequence import sequence_gains

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["LUSPO"]


@dataclass(frozen=True, slots=True)
class LUSPO:
    r"""GSPO without its length bias (Liu et al. 2026, arXiv:2602.05261).

        loss = -1/B \sum_i |o_i| min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)

    s_i is GSPO's. In GSPO a token of a long answer moves the loss less than one of a short answer,
    so lengths fall; here every token moves it alike. The limits are the paper's (section 5.1).
    """

    clips_sequences: ClassVar[bool] = True

    clip_low: float = 2e-3
    """How far the sequence's ratio may fall below 1 before a loss is cut off."""
    clip_high: float = 2.5e-3
    """How far the sequence's ratio may rise above 1 before a gain is cut off."""

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of sequences, a scalar."""
        return count_rows(batch.mask)

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of sequence losses, a scalar; ``log_probs`` is ``(B, T)``."""
        gains = sequence_gains(log_probs, batch, self.clip_low, self.clip_high)
        return -(batch.mask.sum(-1) * gains).sum()
