"""Geometric-mean policy optimisation: tokens are clipped, then their ratios multiplied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posttrain.objectives.base import check_clip, count_rows, counted
from posttrain.objectives.sequence import row_means, sequence_advantages

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["GMPO"]


@dataclass(frozen=True, slots=True)
class GMPO:
    r"""Geometric mean of clipped ratios (Zhao et al. 2025, arXiv:2507.20673).

        l_{i,t} = min(log w, clip_high)   where A_i >= 0
        l_{i,t} = max(log w, -clip_low)   where A_i < 0
        loss    = -1/B \sum_i exp(1/|o_i| \sum_t l_{i,t}) A_i

    GRPO averages ratios, so one outlier moves a whole sequence; their geometric mean hardly feels
    it, which admits wider limits. Unlike GSPO it clips each token before the mean. The limits are
    in nats: the paper's ratio stays within (e^-0.4, e^0.4).
    """

    clip_low: float = 0.4
    """How far, in nats, the log-ratio may fall below 0 before a loss is cut off."""
    clip_high: float = 0.4
    """How far, in nats, the log-ratio may rise above 0 before a gain is cut off."""

    def __post_init__(self) -> None:
        check_clip(self.clip_low, self.clip_high)

    @property
    def ratio_limits(self) -> tuple[float, float]:
        """The limits of a token's ratio as distances from 1, for the log."""
        return -math.expm1(-self.clip_low), math.expm1(self.clip_high)

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of sequences, a scalar."""
        return count_rows(batch.mask)

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of sequence losses, a scalar; ``log_probs`` is ``(B, T)``."""
        old_log_probs = counted(batch.old_log_probs, batch.mask).detach()
        log_ratios = counted(log_probs, batch.mask) - old_log_probs
        advantages = sequence_advantages(batch)
        clipped = torch.where(
            advantages[:, None] >= 0,
            log_ratios.clamp(max=self.clip_high),
            log_ratios.clamp(min=-self.clip_low),
        )
        most = math.log(torch.finfo(log_ratios.dtype).max) - 1  # of a loss that nothing cuts off
        ratios = row_means(clipped, batch.mask).clamp(max=most).exp()
        return -(ratios * advantages).sum()
