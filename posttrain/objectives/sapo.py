"""Soft adaptive policy optimisation: a gate in place of the clip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posttrain.objectives.base import count_rows, counted
from posttrain.objectives.sequence import row_means

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["SAPO"]


@dataclass(frozen=True, slots=True)
class SAPO:
    r"""Sigmoid gate of the ratio (Gao et al. 2025, arXiv:2511.20347, section 3).

        f    = 4/tau sigmoid(tau (w - 1))
        loss = -1/B \sum_i 1/|o_i| \sum_t f_{i,t} A_{i,t}

    tau is ``temperature_positive`` where A > 0, else ``temperature_negative``. At w = 1 the
    gradient is that of w A; away from it, it fades instead of ending at a limit. It fades faster
    where A is negative, because lowering one token raises all others.
    """

    temperature_positive: float = 1.0
    """How fast the gradient of a gain (A > 0) fades with the ratio's distance from 1."""
    temperature_negative: float = 1.05
    """The same of a loss (A <= 0)."""

    def __post_init__(self) -> None:
        for name in ("temperature_positive", "temperature_negative"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name}={getattr(self, name)}: it scales the gate, so use a positive finite "
                    "number; the paper takes 1.0 and 1.05"
                )

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of sequences, a scalar."""
        return count_rows(batch.mask)

    def __call__(self, log_probs: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of sequence losses, a scalar; ``log_probs`` is ``(B, T)``."""
        advantages = counted(batch.advantages, batch.mask).detach()
        old_log_probs = counted(batch.old_log_probs, batch.mask).detach()
        log_ratios = counted(log_probs, batch.mask) - old_log_probs
        ratios = log_ratios.clamp(max=math.log(torch.finfo(log_ratios.dtype).max) / 2).exp()
        # Not torch.where of two numbers, which is float32 whatever the advantages are.
        tau = torch.full_like(advantages, self.temperature_negative)
        tau = tau.masked_fill(advantages > 0, self.temperature_positive)
        gates = 4 / tau * torch.sigmoid(tau * (ratios - 1))
        return -row_means(gates * advantages, batch.mask).sum()
