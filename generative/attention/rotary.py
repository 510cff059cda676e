r"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864).

Position p turns the j-th pair of a head's features by the angle ``p * frequencies[j]``. The paper
pairs neighbouring features; Llama, Qwen and Mistral checkpoints pair feature j of the first half
with feature j of the second. A fixed permutation, ``neighbours``, leads from the latter to the
former; scores do not change where queries and keys are permuted alike. With neighbours, a pair is
a complex number and the turn is one multiplication, which is several times as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apply_rotary", "neighbours", "rotary_frequencies", "rotary_turns", "turn"]


def rotary_frequencies(width: int, *, base: float = 10_000.0) -> Tensor:
    r"""Return ``base^(-2 j / K)`` for the pairs j = 0 .. K/2 - 1 (section 3.2.2).

    Args:
        width: K, features of a head; even.
        base: The slowest pair turns by little more than ``1 / base`` radians a position.

    Returns:
        ``(K/2,)`` float32, radians per position.

    >>> rotary_frequencies(4)
    tensor([1.0000, 0.0100])
    """
    if width < 2 or width % 2:
        raise ValueError(f"width={width}: features turn in pairs, so give an even number of them")
    if not base > 0:
        raise ValueError(f"base={base}: frequencies are its powers, so give a positive number")
    return (base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)).float()


def rotary_turns(positions: Tensor, frequencies: Tensor, *, scaling: float = 1.0) -> Tensor:
    r"""Return ``scaling * exp(i p f_j)``, complex64.

    Args:
        positions: ``(...)`` integers.
        frequencies: ``(K/2,)``, radians per position.
        scaling: Multiplies queries and keys besides (YaRN's attention factor).

    Returns:
        ``(..., K/2)``.

    >>> turns = rotary_turns(torch.tensor([0, 1]), torch.tensor([torch.pi / 2]))
    >>> torch.view_as_real(turns).round().int().tolist()
    [[[1, 0]], [[0, 1]]]
    """
    angles = positions[..., None].to(torch.float32) * frequencies.to(torch.float32)
    cos, sin = angles.cos(), angles.sin()
    if scaling != 1.0:
        cos, sin = cos * scaling, sin * scaling
    return torch.complex(cos, sin)


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring features ``(..., K)`` by ``(..., K/2)``; the conjugate turns back.

    >>> quarter = torch.tensor([1j])
    >>> turn(torch.tensor([3.0, 4.0]), quarter)
    tensor([-4.,  3.])
    """
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.view_as_complex(exact.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def neighbours(width: int) -> Tensor:
    """Return the permutation that puts the pairs of the half-split layout side by side.

    >>> neighbours(6)
    tensor([0, 3, 1, 4, 2, 5])
    """
    return torch.arange(width).view(2, -1).t().reshape(-1)


def apply_rotary(x: Tensor, turns: Tensor) -> Tensor:
    r"""Turn features in the half-split layout; the readable twin of ``turn``.

        y_1 = x_1 cos - x_2 sin,    y_2 = x_2 cos + x_1 sin

    Args:
        x: ``(..., K)``, queries or keys.
        turns: ``(..., K/2)`` of ``rotary_turns``; broadcasts to the pairs of ``x``.

    >>> apply_rotary(torch.tensor([3.0, 4.0]), torch.tensor([1j]))
    tensor([-4.,  3.])
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = turns.real, turns.imag
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
