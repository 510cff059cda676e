"""How much of what is to be predicted the predictions explain."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["explained_variance", "variance_sums"]


def variance_sums(targets: Tensor, values: Tensor) -> Tensor:
    """Return what ``explained_variance`` needs; add it over any parts of a batch.

    Args:
        targets: ``(N,)``.
        values: ``(N,)``, predictions of the targets.

    Returns:
        ``(5,)`` float64: their number, and the sums of targets, squared targets, errors and
        squared errors.
    """
    targets = targets.detach().double()
    errors = targets - values.detach()
    columns = [targets.new_ones(len(targets)), targets, targets**2, errors, errors**2]
    return torch.stack(columns).sum(1)


def explained_variance(sums: Tensor) -> Tensor:
    r"""Return the share of the targets' variance that the values explain, a scalar.

        1 - Var(targets - values) / Var(targets)

    At most 1; 0 is what a constant explains, and what is returned where all targets are equal.

    Args:
        sums: ``(5,)``, of ``variance_sums``.

    >>> targets = torch.tensor([0.0, 0.0, 2.0, 2.0])
    >>> explained_variance(variance_sums(targets, torch.tensor([0.0, 0.0, 1.0, 1.0])))
    tensor(0.7500, dtype=torch.float64)
    """
    count, target, squares, error, error_squares = sums
    count = count.clamp(min=1)
    variance = squares / count - (target / count) ** 2
    left = error_squares / count - (error / count) ** 2
    return torch.where(variance > 0, 1 - left / variance, 0.0)
