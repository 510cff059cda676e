"""Process reward models: the probability that a solution is still right after each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn import functional as F

__all__ = ["LabelledSteps", "StepObjective", "StepReward"]


class LabelledSteps(Protocol):
    """A batch of solutions whose steps have labels."""

    @property
    def mask(self) -> Tensor:
        """``(B, T)`` bool, True at the last token of each step with a label."""
        ...

    @property
    def labels(self) -> Tensor:
        """``(B, T)`` in 0..1, how probable it is that the step is right; 0 elsewhere."""
        ...


@runtime_checkable
class StepObjective(Protocol):
    """The loss of step scores, as a sum and the number of steps that it is divided by."""

    def denominator(self, batch: LabelledSteps, /) -> Tensor:
        """Return the number of labelled steps, a scalar that follows from the mask alone."""
        ...

    def __call__(self, scores: Tensor, batch: LabelledSteps, /) -> Tensor:
        """Return the sum to be minimised, a scalar; ``scores`` is ``(B, T)``."""
        ...


@dataclass(frozen=True, slots=True)
class StepReward:
    r"""Binary cross entropy of each step, mean over steps (Lightman et al. 2023, arXiv:2305.20050).

        loss = -y log sigmoid(score) - (1 - y) log sigmoid(-score)

    ``y`` may be a share, as Math-Shepherd's soft labels are (Wang et al. 2023, arXiv:2312.08935,
    eq. 2 and 4).

    >>> import torch
    >>> from posttrain.data.step_labels import StepBatch
    >>> one = torch.ones(1, 1)
    >>> batch = StepBatch(tokens=one.long(), mask=one.bool(), labels=one / 2)
    >>> StepReward()(torch.zeros(1, 1), batch)
    tensor(0.6931)
    """

    def denominator(self, batch: LabelledSteps) -> Tensor:
        """Return the number of labelled steps, a scalar."""
        return batch.mask.sum()

    def __call__(self, scores: Tensor, batch: LabelledSteps) -> Tensor:
        """Return the sum of step losses, a scalar; ``scores`` is ``(B, T)``."""
        counted, labels = scores[batch.mask], batch.labels[batch.mask].to(scores.dtype)
        return F.binary_cross_entropy_with_logits(counted, labels, reduction="sum")
