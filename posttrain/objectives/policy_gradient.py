"""REINFORCE: advantage times log-probability, without a ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from posttrain.objectives.base import count_rows, counted

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["PolicyGradient"]


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    r"""Plain policy gradient (Williams 1992; for language models Ahmadian et al. 2024).

        loss = -1/B \sum_i \sum_t A_{i,t} log_prob_{i,t}

    A sequence's log-probability is the sum of its tokens', so long sequences weigh more than short
    ones, as the gradient of an expected reward has it (arXiv:2402.14740, section 3). There is no
    ratio: it is right for one update on each rollout.
    """

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of sequences, a scalar."""
        return count_rows(batch.mask)

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of sequence losses, a scalar; ``log_probs`` is ``(B, T)``."""
        advantages = counted(batch.advantages, batch.mask).detach()
        return -(counted(log_probs, batch.mask) * advantages).sum()
