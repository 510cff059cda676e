"""How sure a mean over questions is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Interval", "gain_with_interval", "mean_with_interval"]

_ELEMENTS_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the interval around it."""

    mean: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def verdict(self) -> str:
        """What a difference of this interval is called: a gain, a loss, or, if it holds 0, none.

        >>> Interval(0.1, 0.0, 0.2).verdict, Interval(-0.2, -0.3, -0.1).verdict
        ('no gain', 'loss')
        """
        if self.low > 0:
            return "gain"
        return "loss" if self.high < 0 else "no gain"


def mean_with_interval(
    per_question: Tensor, *, seed: int = 0, level: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Mean over questions and its percentile bootstrap interval (Efron 1979).

    Questions are drawn with replacement, because the question is the unit that varies; the samples
    of one question belong together, so average them first.

    Args:
        per_question: ``(N,)`` finite numbers, one for each question, such as its pass@1.
        seed: Of the resampling. The same seed draws the same questions for every quantity, so
            two models on the same questions are compared under the same draws.
        level: Share of the bootstrap means that the interval covers.
        resamples: Bootstrap means; 10,000 make the ends stable to about a hundredth of the width.

    Raises:
        ValueError: No question, a value that is not finite (names the row), a bad level or count.

    >>> print(mean_with_interval(torch.tensor([1.0, 1.0, 1.0])))
    1.000 [1.000, 1.000]
    """
    values = torch.as_tensor(per_question).detach().cpu().to(torch.float64)
    if values.dim() != 1 or len(values) == 0:
        raise ValueError(
            f"per_question has shape {tuple(values.shape)}: expected (N,), one number for each of "
            "at least one question"
        )
    wrong = (~values.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"per_question is {values[wrong[0]].item()} in row {wrong[0]}: a mean needs finite "
            "numbers; leave out questions that have none"
        )
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a share between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: at least one is needed, 10,000 are usual")
    means = _bootstrap_means(values, seed, resamples).sort().values
    mean = math.fsum(values.tolist()) / len(values)
    tail = (1 - level) / 2
    # Rounding may put the ends of a constant an ulp beside its mean.
    return Interval(mean, min(mean, _quantile(means, tail)), max(mean, _quantile(means, 1 - tail)))


def gain_with_interval(
    before: Tensor, after: Tensor, *, seed: int = 0, level: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Mean of ``after - before`` over the same questions, and its bootstrap interval.

    The questions are paired, so what makes one harder than another cancels.

    Args:
        before: ``(N,)``, one number for each question.
        after: ``(N,)``, of the same questions in the same order.
        seed: Of the resampling.
        level: Share of the bootstrap means that the interval covers.
        resamples: Bootstrap means.

    Raises:
        ValueError: They are not as many, or as ``mean_with_interval`` has it.

    >>> print(gain_with_interval(torch.zeros(4), torch.full((4,), 0.5)))
    0.500 [0.500, 0.500]
    """
    if before.shape != after.shape:
        raise ValueError(
            f"before has shape {tuple(before.shape)} and after {tuple(after.shape)}: a gain is "
            "measured on the same questions"
        )
    difference = after.double() - before.double()
    return mean_with_interval(difference, seed=seed, level=level, resamples=resamples)


def _bootstrap_means(values: Tensor, seed: int, resamples: int) -> Tensor:
    """Return ``(resamples,)`` means of N questions drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _ELEMENTS_AT_ONCE // len(values))
    parts = []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), len(values))
        drawn = torch.randint(len(values), shape, generator=generator)
        parts.append(values[drawn].mean(dim=1))
    return torch.cat(parts)


def _quantile(ordered: Tensor, share: float) -> float:
    """Return a quantile by linear interpolation; ``torch.quantile`` takes no more than 2^24."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    low, high = ordered[below].item(), ordered[above].item()
    return low + (place - below) * (high - low)
