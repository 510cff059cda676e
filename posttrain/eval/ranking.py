"""How well scores put right things above wrong ones: the area under the ROC curve."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.eval.intervals import Interval

__all__ = ["auc", "auc_with_interval"]

_ELEMENTS_AT_ONCE = 2**22


def auc(scores: Tensor, labels: Tensor) -> float:
    r"""Return the probability that a right item scores above a wrong one (Hanley and McNeil 1982).

        (\sum_{right i, wrong j} [s_i > s_j] + [s_i = s_j] / 2) / (right wrong)

    Args:
        scores: ``(N,)`` finite numbers.
        labels: ``(N,)``, an item above a half is right.

    Raises:
        ValueError: All items are right, or none is, so there is nothing to compare.

    >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.875
    """
    right, level = _levels(scores, labels)
    return float(_areas(right, level, torch.ones(1, len(right)))[0])


def auc_with_interval(
    scores: Tensor,
    labels: Tensor,
    groups: Tensor,
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2_000,
) -> Interval:
    """Return ``auc`` and its percentile bootstrap interval over groups (Efron 1979).

    Args:
        scores: ``(N,)`` finite numbers.
        labels: ``(N,)``, an item above a half is right.
        groups: ``(N,)`` integers; items of one group, such as the steps of a solution, are drawn
            together, because they are alike.
        seed: Of the resampling.
        level: Share of the bootstrap areas that the interval covers.
        resamples: Bootstrap areas; those without right or without wrong items do not count.

    Raises:
        ValueError: As ``auc``, or a level that is no share.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a share between 0 and 1, such as 0.95")
    right, order = _levels(scores, labels)
    names, member = torch.as_tensor(groups).unique(return_inverse=True)
    generator, count = torch.Generator().manual_seed(seed), len(names)
    at_once = max(1, _ELEMENTS_AT_ONCE // max(1, len(right)))
    areas = []
    for start in range(0, resamples, at_once):
        drawn = torch.randint(count, (min(at_once, resamples - start), count), generator=generator)
        times = torch.zeros(len(drawn), count).scatter_add_(1, drawn, torch.ones(drawn.shape))
        areas.append(_areas(right, order, times[:, member]))
    found = torch.cat(areas)
    found = found[found.isfinite()]
    mean = auc(scores, labels)
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = found.quantile(tail).tolist() if len(found) else (0.0, 1.0)
    return Interval(mean, min(mean, low), max(mean, high))


def _levels(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(N,)`` bool, which are right, and each item's rank among the different scores."""
    scores = torch.as_tensor(scores).detach().cpu().double()
    right = torch.as_tensor(labels).detach().cpu() > 0.5
    if scores.dim() != 1 or scores.shape != right.shape:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)} and labels {tuple(right.shape)}: expected "
            "(N,) for both"
        )
    if not bool(scores.isfinite().all()):
        raise ValueError("a score is not finite: a ranking needs finite numbers")
    if not 0 < int(right.sum()) < len(right):
        raise ValueError(
            f"{int(right.sum())} of {len(right)} items are right: a ranking is judged on right "
            "and wrong ones, so give both"
        )
    return right, scores.unique(return_inverse=True)[1]


def _areas(right: Tensor, level: Tensor, times: Tensor) -> Tensor:
    """Return ``(R,)`` areas of items that count ``(R, N)`` times; NaN without right or wrong."""
    shape = (len(times), int(level.max()) + 1)
    by_level = [
        torch.zeros(shape, dtype=torch.float64).index_add_(1, level, (times * kind).double())
        for kind in (right, ~right)
    ]
    rights, wrongs = by_level
    below = wrongs.cumsum(1) - wrongs
    total = rights.sum(1) * wrongs.sum(1)
    return (rights * (below + wrongs / 2)).sum(1) / total
