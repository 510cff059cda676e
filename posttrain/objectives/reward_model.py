r"""Reward models from comparisons: the Bradley-Terry likelihood of pairs.

It keeps the contract of ``posttrain.objectives.base``: a sum, and the number of pairs that it is
divided by. In place of log-probabilities it takes one score r for each row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BradleyTerry", "ComparisonObjective", "Comparisons"]


class Comparisons(Protocol):
    """A batch of pairs: rows 2i are chosen, rows 2i + 1 rejected."""

    @property
    def mask(self) -> Tensor:
        """``(B, T)`` bool, True at the completion's tokens."""
        ...

    @property
    def margin(self) -> Tensor | None:
        """``(B,)``, by how much the chosen row has to win; None is 0."""
        ...


@runtime_checkable
class ComparisonObjective(Protocol):
    """The loss of scores on pairs, as a sum and the number of pairs that it is divided by."""

    def denominator(self, batch: Comparisons, /) -> Tensor:
        """Return the number of pairs, a scalar that follows from the mask alone."""
        ...

    def __call__(self, scores: Tensor, batch: Comparisons, /) -> Tensor:
        """Return the sum to be minimised, a scalar; ``scores`` is ``(B,)``."""
        ...


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    r"""Negative log-likelihood that the chosen completion wins (Bradley and Terry 1952).

        loss = -log sigmoid(r(y_w) - r(y_l) - margin) + centring (r(y_w) + r(y_l))^2

    The margin is a pair's own, larger where raters were surer (Llama 2, Touvron et al. 2023,
    arXiv:2307.09288, eq. 2). The likelihood does not see a constant added to all rewards;
    ``centring`` draws their mean to 0 (Eisenstein et al. 2023, arXiv:2312.09244, eq. 2; 0.01 is
    usual). A pair of which either row has no counted token counts nowhere.

    >>> from posttrain.data.preferences import PreferenceBatch
    >>> batch = PreferenceBatch(torch.zeros(2, 2).long(), torch.ones(2, 2).bool())
    >>> BradleyTerry(centring=0.5)(torch.tensor([1.0, 1.0]), batch)  # log 2 + 0.5 * 2^2
    tensor(2.6931)
    """

    centring: float = 0.0
    """Weight of the squared sum of a pair's rewards."""

    def __post_init__(self) -> None:
        if not 0 <= self.centring < math.inf:
            raise ValueError(f"centring={self.centring}: a weight is finite and 0 or more")

    def denominator(self, batch: Comparisons) -> Tensor:
        """Return the number of pairs, a scalar."""
        return _pairs(batch).sum()

    def __call__(self, scores: Tensor, batch: Comparisons) -> Tensor:
        """Return the sum of pair losses, a scalar; ``scores`` is ``(B,)``."""
        pairs = _pairs(batch)
        chosen, rejected = torch.where(pairs[:, None], scores.view(-1, 2), 0.0).unbind(-1)
        margins = chosen - rejected
        if batch.margin is not None:
            margins = margins - torch.where(pairs, batch.margin[::2], 0.0)
        losses = -F.logsigmoid(margins)
        if self.centring:
            losses = losses + self.centring * (chosen + rejected).square()
        return torch.where(pairs, losses, 0.0).sum()


def _pairs(batch: Comparisons) -> Tensor:
    """Return ``(B / 2,)`` bool: pairs of which both rows have a counted token."""
    rows = batch.mask.any(-1)
    return rows[::2] & rows[1::2]
