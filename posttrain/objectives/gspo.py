"""Group sequence policy optimisation: one ratio for each sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from posttrain.objectives.base import check_clip, count_rows
from posttrain.objectives.sequence import sequence_gains

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["GSPO"]


@dataclass(frozen=True, slots=True)
class GSPO:
    r"""Clipped ratio of whole sequences (Zheng et al. 2025, arXiv:2507.18071, eq. 5 to 7).

        s_i  = exp(1/|o_i| \sum_t log w_{i,t})
        loss = -1/B \sum_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)

    The reward is of a sequence, so the ratio is too, and clipping leaves out whole sequences. A
    mean of log-ratios hardly moves, hence limits a thousand times as narrow as a token's: those
    here are the paper's (section 5.1). Rows without a counted token are no sequences.
    """

    clips_sequences: ClassVar[bool] = True

    clip_low: float = 3e-4
    """How far the sequence's ratio may fall below 1 before a loss is cut off."""
    clip_high: float = 4e-4
    """How far the sequence's ratio may rise above 1 before a gain is cut off."""

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of sequences, a scalar."""
        return count_rows(batch.mask)

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of sequence losses, a scalar; ``log_probs`` is ``(B, T)``."""
        return -sequence_gains(log_probs, batch, self.clip_low, self.clip_high).sum()
