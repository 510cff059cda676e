"""What the estimators over transitions share: one border, weights of 0 that win, one recursion."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

__all__ = [
    "accumulate",
    "check_equal_shapes",
    "constants",
    "ended",
    "following",
    "steps",
    "weighted",
]


def check_equal_shapes(**tensors: Tensor) -> None:
    """Refuse tensors of different shapes: broadcast, (B,) against (B, 1) would become (B, B)."""
    (first, like), *others = tensors.items()
    for name, x in others:
        if x.shape != like.shape:
            raise ValueError(
                f"got {name} of shape {tuple(x.shape)} for {first} of shape {tuple(like.shape)}: "
                "both hold one number for each transition and nothing is broadcast, so squeeze or "
                "expand one of them to the shape of the other"
            )


def constants(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors without gradient, in the smallest float type that holds them all."""
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors))
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    return [x.detach().to(dtype) for x in tensors]


def steps(**tensors: Tensor) -> list[Tensor]:
    """Return per-step tensors as ``constants``, all of one shape ``(..., T)``, or refuse them."""
    check_equal_shapes(**tensors)
    name, x = next(iter(tensors.items()))
    if x.ndim == 0:
        raise ValueError(f"got {name} of shape (): the last axis is time, so give at least (T,)")
    return constants(*tensors.values())


def following(x: Tensor) -> Tensor:
    """Return the entry of step t + 1 at step t, and 0 at the last step.

    >>> following(torch.tensor([1.0, 2.0, 3.0]))
    tensor([2., 3., 0.])
    """
    return torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], -1)


def ended(traces: Tensor) -> Tensor:
    """Return the traces with 0 at the last step, because there is none after it.

    >>> ended(torch.ones(3))
    tensor([1., 1., 0.])
    """
    return torch.cat([traces[..., :-1], torch.zeros_like(traces[..., -1:])], -1)


def weighted(weights: Tensor, x: Tensor) -> Tensor:
    """Return ``weights * x``, and 0 wherever the weight is 0, also if ``x`` is infinite or NaN.

    >>> weighted(torch.tensor([2.0, 0.0]), torch.tensor([3.0, torch.inf]))
    tensor([6., 0.])
    """
    return torch.where(weights == 0, 0.0, weights * x)


def accumulate(increments: Tensor, decays: Tensor) -> Tensor:
    """Return ``x_t = increments_t + decays_t x_{t+1}``, begun with 0 after the last step.

    >>> accumulate(torch.ones(3), torch.full((3,), 0.5))
    tensor([1.7500, 1.5000, 1.0000])
    """
    if increments.shape[-1] == 0:
        return increments.clone()
    columns = (x.unbind(-1) for x in (increments, decays, decays == 0))
    x: list[Tensor] = []
    for increment, decay, ends in reversed(list(zip(*columns, strict=True))):
        x.append(increment + torch.where(ends, 0.0, decay * x[-1]) if x else increment)
    return torch.stack(x[::-1], -1)
