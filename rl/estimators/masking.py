"""Sums, means and standardization of what a mask counts.

What stands where the mask is False counts for nothing, not even NaN or infinity, and gets gradient
exactly 0: it is replaced before any arithmetic. Masks broadcast against the values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl.estimators.scaling import binary_scale

__all__ = ["masked_mean", "masked_standardize", "masked_sum"]

Axis = int | tuple[int, ...] | None


def masked_sum(x: Tensor, mask: Tensor, axis: Axis = None) -> Tensor:
    """Sum over the counted entries; 0 where there are none.

    Args:
        x: Any shape.
        mask: bool, True = counts; broadcasts against ``x``.
        axis: Axes to sum over; all of them for ``None``.

    Returns:
        The shape of ``x`` without ``axis``.

    >>> masked_sum(torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([True, True, False]))
    tensor(3.)
    """
    counted = torch.where(mask.bool(), x, 0)
    return counted.sum(_axes(counted, axis))


def masked_mean(x: Tensor, mask: Tensor, axis: Axis = None) -> Tensor:
    """Mean over the counted entries; a mean over nothing is 0.

    Args:
        x: Any shape; integers give the default float type.
        mask: bool, True = counts; broadcasts against ``x``.
        axis: Axes to average over; all of them for ``None``.

    Returns:
        The shape of ``x`` without ``axis``.

    >>> masked_mean(torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([True, True, False]))
    tensor(1.5000)
    """
    x, mask = torch.broadcast_tensors(_floating(x), mask.bool())
    return masked_sum(x, mask, axis) / mask.sum(_axes(mask, axis)).clamp(min=1)


def masked_standardize(x: Tensor, mask: Tensor, axis: Axis = None) -> Tensor:
    """Shift and scale the counted entries to mean 0 and population deviation 1.

    The result is 0 where the mask is False, and where all counted entries are equal: then there
    is nothing to tell them apart by, whatever their mean would round to.

    Args:
        x: Any shape; integers give the default float type.
        mask: bool, True = counts; broadcasts against ``x``.
        axis: Axes that are standardized together; all of them for ``None``.

    Returns:
        The shape of ``x``.

    >>> x = torch.tensor([1.0, 3.0, torch.nan])
    >>> masked_standardize(x, torch.tensor([True, True, False]))
    tensor([-1.,  1.,  0.])
    """
    x, mask = torch.broadcast_tensors(_floating(x), mask.bool())
    if x.numel() == 0:
        return x.clone()
    axes = _axes(x, axis)
    count = mask.sum(axes, keepdim=True).clamp(min=1)
    # The difference of the largest numbers would overflow, and so would a power of two above them.
    x = x / binary_scale(torch.where(mask, x, 0.0), axes).clamp(max=1 / torch.finfo(x.dtype).tiny)
    least = torch.where(mask, x, torch.inf).detach().amin(axes, keepdim=True)
    # Measured from the least counted entry, equal entries are 0 before anything can round.
    offsets = torch.where(mask, x - least, 0.0)
    offsets = offsets / binary_scale(offsets, axes)
    centred = torch.where(mask, offsets - offsets.sum(axes, keepdim=True) / count, 0.0)
    variance = centred.square().sum(axes, keepdim=True) / count
    # A square root has no gradient at 0, so equal entries are taken out before it and after.
    standardized = centred / torch.where(variance == 0, 1.0, variance).sqrt()
    return torch.where(variance == 0, 0.0, standardized)


def _axes(x: Tensor, axis: Axis) -> int | tuple[int, ...]:
    return tuple(range(x.ndim)) if axis is None else axis


def _floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())
