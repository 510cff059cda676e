"""CISPO: the ratio is capped as a weight, and no token loses its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posttrain.objectives.base import check_clip, counted

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["CISPO"]


@dataclass(frozen=True, slots=True)
class CISPO:
    r"""Policy gradient with capped weights (MiniMax 2025, arXiv:2506.13585, eq. 4 and 5).

        loss = -1/(\sum_i |o_i|) \sum_i \sum_t stop_gradient(min(w, 1 + clip_high)) A log_prob

    Clipping a surrogate takes the gradient from the rare tokens at which reasoning turns; capping
    the weight keeps it for every token. As in the paper's runs there is no lower limit. The paper
    tunes the cap without naming it; 0.28 is DAPO's, and 4 (a weight of at most 5) is ScaleRL's
    (Khatri et al. 2025, arXiv:2510.13786).
    """

    clip_high: float = 0.28
    """The weight is at most ``1 + clip_high``."""

    def __post_init__(self) -> None:
        check_clip(0.0, self.clip_high)

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of counted tokens, a scalar."""
        return batch.mask.sum()

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of token losses, a scalar; ``log_probs`` is ``(B, T)``."""
        log_probs = counted(log_probs, batch.mask)
        advantages = counted(batch.advantages, batch.mask)
        ratios = (log_probs - counted(batch.old_log_probs, batch.mask)).exp()
        largest = min(1 + self.clip_high, torch.finfo(ratios.dtype).max)
        weights = ratios.clamp(max=largest) * advantages
        return -(weights.detach() * log_probs).sum()
