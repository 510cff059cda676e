"""Supervised fine-tuning: the likelihood of given tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from posttrain.objectives.base import Masked, counted

__all__ = ["SFT"]


@dataclass(frozen=True, slots=True)
class SFT:
    """Negative log-likelihood, mean over the counted tokens of all rows.

    It looks at the mask alone, so it takes packed documents and rollouts alike; of rollouts it
    is the step of rejection sampling.
    """

    def denominator(self, batch: Masked) -> Tensor:
        """Return the number of counted tokens, a scalar."""
        return batch.mask.sum()

    def __call__(self, log_probs: Tensor, batch: Masked) -> Tensor:
        """Return the sum of token losses in nats, a scalar; ``log_probs`` is ``(B, T)``."""
        return -counted(log_probs, batch.mask).sum()
