"""Gated units as kinds of mixers: they stand in for attention and MLP together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from generative.attention.gau import FLASH, GAU
from generative.attention.positions import NoPositions, Positions

__all__ = ["GatedAttention", "MixedChunkAttention"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedAttention:
    """The gated attention unit, ``gau.GAU``: squared ReLU in the place of softmax."""

    is_gated_unit: ClassVar[bool] = True
    expansion: int = 2
    """E / D; with 2, two units have about the parameters of attention and its MLP."""
    key_size: int = 128
    """S, features of queries and keys."""
    positions: Positions = field(default_factory=NoPositions)
    """Such as turn queries and keys: ``Rotary``."""

    def build(self, width: int) -> nn.Module:
        """Return a ``GAU``."""
        return GAU(width, self.expansion, self.key_size, positions=self.positions)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedChunkAttention:
    """FLASH, ``gau.FLASH``: quadratic within chunks, linear across them."""

    is_gated_unit: ClassVar[bool] = True
    expansion: int = 2
    """E / D; with 2, two units have about the parameters of attention and its MLP."""
    key_size: int = 128
    """S, features of queries and keys."""
    chunk: int = 256
    """C, tokens within which all pairs are looked at; a part of the model."""
    positions: Positions = field(default_factory=NoPositions)
    """Such as turn queries and keys: ``Rotary``."""

    def build(self, width: int) -> nn.Module:
        """Return a ``FLASH``."""
        return FLASH(
            width,
            self.expansion,
            self.key_size,
            self.chunk,
            positions=self.positions,
        )
