r"""Where a token stands: sinusoids that are added, and what a softmax mixer does to its heads.

An attention without positions does not know the order of its keys. The sinusoids of 2017 are added
to the embeddings once; ``Rotary`` turns queries and keys in every layer. Each kind is an object
that builds a module for a number of heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from generative.attention.alibi import alibi_bias, alibi_slopes
from generative.attention.relative_bias import RelativeBias, relative_buckets
from generative.attention.rotary import apply_rotary, rotary_frequencies, rotary_turns

__all__ = [
    "T5",
    "ALiBi",
    "HeadPositions",
    "NoPositions",
    "Positions",
    "Rotary",
    "sinusoidal_positions",
]


def sinusoidal_positions(positions: Tensor, width: int) -> Tensor:
    r"""Return the position encodings of Vaswani et al. 2017, arXiv:1706.03762, section 3.5.

        PE(p, 2i) = sin(p / 10000^(2i / D)),    PE(p, 2i + 1) = cos(p / 10000^(2i / D))

    Args:
        positions: ``(...)`` integers.
        width: D, even.

    Returns:
        ``(..., D)`` float32.

    >>> sinusoidal_positions(torch.tensor([0, 1]), 2)
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    if width < 2 or width % 2:
        raise ValueError(
            f"width={width}: sines and cosines alternate, so the width must be even and at least 2"
        )
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width
    angles = positions[..., None].double() / 10_000**exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).float()


class HeadPositions(nn.Module):
    """What a kind of positions does to the heads of one layer; this one does nothing."""

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return queries or keys ``(B, H, T, K)`` as they are at ``positions``, ``(T,)``."""
        return x

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """Return what is added to the scores, ``(H, T_q, T_k)``; None adds nothing.

        Args:
            queries: ``(T_q,)`` positions.
            keys: ``(T_k,)`` positions.
        """
        return None


class Positions(Protocol):
    """A kind of positions, as a config holds it."""

    def build(self, heads: int, head_size: int) -> HeadPositions:
        """Return the module of one layer."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NoPositions:
    """None: order is seen through the causal mask alone, or not at all."""

    def build(self, heads: int, head_size: int) -> HeadPositions:
        """Return a module that changes nothing."""
        return HeadPositions()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotary:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): scores depend on distances alone."""

    base: float = 10_000.0
    """Pair j of a head's K features turns by ``base ** (-2 j / K)`` radians a position."""

    def __post_init__(self) -> None:
        if not self.base > 0:
            raise ValueError(f"base={self.base}: the slowest frequency is 1 / base, so give > 0")

    def build(self, heads: int, head_size: int) -> HeadPositions:
        """Return a module that turns queries and keys."""
        if head_size % 2:
            raise ValueError(
                f"head_size={head_size}: rotary positions turn features in pairs, so a head needs "
                "an even number of them; change width or heads"
            )
        return _Turned(self.base, head_size)


class _Turned(HeadPositions):
    def __init__(self, base: float, head_size: int) -> None:
        super().__init__()
        self.base, self.head_size = base, head_size

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        frequencies = rotary_frequencies(self.head_size, base=self.base).to(x.device)
        turns = rotary_turns(positions, frequencies)
        return apply_rotary(x, turns).to(x.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class ALiBi:
    """Linear biases (Press et al. 2022, arXiv:2108.12409): the farther, the less, by head.

    It has no parameters, and goes on beyond the lengths trained on.
    """

    def build(self, heads: int, head_size: int) -> HeadPositions:
        """Return a module that adds to the scores."""
        return _Sloped(heads)


class _Sloped(HeadPositions):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.slopes = alibi_slopes(heads)

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        return alibi_bias(queries, keys, self.slopes.to(queries.device))


@dataclass(frozen=True, kw_only=True, slots=True)
class T5:
    """Learned biases of buckets of distances (Raffel et al. 2020, arXiv:1910.10683).

    Every layer has its own table; T5's layers share one.
    """

    buckets: int = 32
    farthest: int = 128
    """Distance from which all share the last bucket."""
    causal: bool = True
    """Whether all buckets are for the past, as in a decoder."""

    def __post_init__(self) -> None:
        relative_buckets(
            torch.zeros(0), buckets=self.buckets, farthest=self.farthest, causal=self.causal
        )

    def build(self, heads: int, head_size: int) -> HeadPositions:
        """Return a module that adds to the scores, at first nothing."""
        return _Bucketed(
            RelativeBias(heads, buckets=self.buckets, farthest=self.farthest, causal=self.causal)
        )


class _Bucketed(HeadPositions):
    def __init__(self, table: RelativeBias) -> None:
        super().__init__()
        self.table = table

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        found: Tensor = self.table(queries, keys)
        return found
