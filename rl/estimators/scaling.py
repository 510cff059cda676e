"""Keep squares within the range of floating point, without a rounding of its own."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["binary_scale"]


def binary_scale(x: Tensor, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """Return the largest power of two not above ``max |x|``, and 1 where all of ``x`` is 0.

    ``x / scale`` lies in [-2, 2] and differs from ``x`` in the exponent alone, so a deviation can
    be taken of it where the squares of ``x`` would overflow or vanish.

    Args:
        x: Any shape, float; not empty along ``axis``.
        axis: Axes over which the largest magnitude is taken; all of them for ``None``.

    Returns:
        The shape of ``x`` with size 1 along ``axis``, no gradient.

    >>> binary_scale(torch.tensor([[-5.0, 1.0], [0.0, 0.0]]), axis=-1)
    tensor([[4.],
            [1.]])
    """
    axes = tuple(range(x.ndim)) if axis is None else axis
    largest = x.detach().abs().amax(axes, keepdim=True)
    _, exponent = largest.double().frexp()  # exact, where log2 would round up near a power of two
    scale = torch.ldexp(torch.ones_like(largest, dtype=torch.float64), exponent - 1)
    return torch.where(largest > 0, scale, 1.0).to(x.dtype)
