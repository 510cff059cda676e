"""The loss of a critic: half the squared error of its values, held near the old ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posttrain.objectives.base import counted

if TYPE_CHECKING:
    from posttrain.rollout.batch import RolloutBatch

__all__ = ["ValueLoss"]


@dataclass(frozen=True, slots=True)
class ValueLoss:
    r"""Half the mean squared error of values, clipped (Huang et al. 2024, arXiv:2403.17031, 2.2).

        held = V_old + clip(V - V_old, -clip, clip)
        loss = 1/(2 N) \sum_i \sum_t max((V - R)^2, (held - R)^2)

    N counts all tokens, as in ``DAPO``. The larger of the two errors has no gradient where the
    value has moved further than ``clip`` towards its return; so an update moves no value much
    further. It is PPO2's and InstructGPT's (Ouyang et al. 2022, arXiv:2203.02155); PPO's paper
    does not clip values.
    """

    clip: float | None = 0.2
    """How far a value may move from the old one, in units of reward; None does not clip."""

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(
                f"clip={self.clip}: it is how far a value may move from the old one, so use a "
                "number above 0, or None not to clip"
            )

    def denominator(self, batch: RolloutBatch) -> Tensor:
        """Return the number of counted tokens, a scalar."""
        return batch.mask.sum()

    def __call__(self, values: Tensor, batch: RolloutBatch) -> Tensor:
        """Return the sum of token losses, a scalar; ``values`` is ``(B, T)``, the critic's."""
        free, held = self._errors(values, batch)
        return 0.5 * (free if held is None else torch.maximum(free, held)).sum()

    def clipped(self, values: Tensor, batch: RolloutBatch) -> Tensor:
        """Return ``(B, T)`` bool, the counted tokens whose value has no gradient."""
        free, held = self._errors(values.detach(), batch)
        return torch.zeros_like(batch.mask) if held is None else held > free

    def _errors(self, values: Tensor, batch: RolloutBatch) -> tuple[Tensor, Tensor | None]:
        """Return squared errors of the values and of the held ones, 0 where nothing counts."""
        if batch.returns is None or (self.clip is not None and batch.values is None):
            raise ValueError(
                "the batch has no returns, or no values of the old critic to hold the new ones "
                "near: compute both before the update, as train_actor_critic does"
            )
        values = counted(values, batch.mask)
        returns = counted(batch.returns, batch.mask).detach()
        free = (values - returns).square()
        if self.clip is None or batch.values is None:
            return free, None
        old = counted(batch.values, batch.mask).detach()
        # Where the value has not moved too far, it is itself: the two errors are then bit-equal.
        near = (values - old).abs() <= self.clip
        held = torch.where(near, values, old + (values - old).clamp(-self.clip, self.clip))
        return free, (held - returns).square()
