r"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), in the half-split layout.

Feature j of the first half of a head and feature j of the second half are the two coordinates
that position p turns by the angle ``p * inverse_frequencies[j]``, as in Llama, Qwen and Mistral
checkpoints. (The paper pairs neighbouring features; the two differ by a fixed permutation.)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apply_rotary", "rotary_tables"]


def rotary_tables(
    positions: Tensor, inverse_frequencies: Tensor, *, scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Cosines and signed sines of every angle, as ``apply_rotary`` takes them.

    Args:
        positions: ``(...)`` integers.
        inverse_frequencies: ``(K/2,)``, radians per position.
        scaling: Multiplies both tables (YaRN's attention factor).

    Returns:
        Cosines and sines, each ``(..., K)`` float32; the first half of the sines is negated.

    >>> cos, sin = rotary_tables(torch.tensor([0, 1]), torch.tensor([torch.pi / 2]))
    >>> cos.round().int().tolist(), sin.round().int().tolist()
    ([[1, 1], [0, 0]], [[0, 0], [-1, 1]])
    """
    angles = positions[..., None].to(torch.float32) * inverse_frequencies.to(torch.float32)
    cos, sin = angles.cos(), angles.sin()
    if scaling != 1.0:
        cos, sin = cos * scaling, sin * scaling
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    r"""Turn each pair of features by its position's angle.

        y_1 = x_1 cos - x_2 sin,    y_2 = x_2 cos + x_1 sin

    Args:
        x: ``(..., K)``, queries or keys.
        cos: Broadcasts to ``x``, from ``rotary_tables``.
        sin: Likewise; its first half is negated. With ``-sin`` this is the inverse, and so the
            gradient.

    >>> cos, sin = rotary_tables(torch.tensor([1]), torch.tensor([torch.pi / 2]))
    >>> apply_rotary(torch.tensor([[3.0, 4.0]]), cos, sin).round().int().tolist()
    [[-4, 3]]
    """
    half = x.shape[-1] // 2
    swapped = x.unflatten(-1, (2, half)).flip(-2).flatten(-2)
    return torch.addcmul(x * cos, swapped, sin)
