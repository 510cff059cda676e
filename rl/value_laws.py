"""What a network says about an action's return: its mean, atoms, or quantiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["CategoricalValues", "ExpectedValues", "QuantileValues", "ValueLaw"]

A = TypeVar("A", Tensor, np.ndarray)


class ValueLaw(Protocol):
    """How many numbers there are for each action, and their mean."""

    @property
    def atoms(self) -> int:
        """Numbers for each action."""
        ...

    def mean(self, outputs: A) -> A:
        """Return Q values ``(B, A)`` of a network's outputs."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedValues:
    """One number for each action, Q itself: outputs ``(B, A)``."""

    @property
    def atoms(self) -> int:
        """1."""
        return 1

    def mean(self, outputs: A) -> A:
        """Return ``outputs``."""
        return outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoricalValues:
    r"""Probabilities of fixed returns (C51; Bellemare et al. 2017, arXiv:1707.06887, section 4).

        z_i = low + i (high - low) / (atoms - 1),   Q(s, a) = \sum_i z_i softmax(outputs)_i

    Outputs are logits ``(B, A, atoms)``.
    """

    atoms: int = 51
    low: float = -10.0
    """Smallest return that can be told apart, in units of reward."""
    high: float = 10.0
    """Largest."""

    def __post_init__(self) -> None:
        if self.atoms < 2:
            raise ValueError(f"atoms={self.atoms}: a distribution needs at least 2 returns")
        if not (self.low < self.high and math.isfinite(self.high - self.low)):
            raise ValueError(
                f"low={self.low}, high={self.high}: low has to be below high, and both finite"
            )

    def support(self) -> Tensor:
        """Return the returns z, ``(atoms,)``.

        >>> CategoricalValues(atoms=3, low=-1.0, high=1.0).support()
        tensor([-1.,  0.,  1.])
        """
        return torch.linspace(self.low, self.high, self.atoms)

    def mean(self, outputs: A) -> A:
        """Return Q values ``(B, A)`` of logits ``(B, A, atoms)``."""
        if isinstance(outputs, Tensor):
            return outputs.softmax(-1) @ self.support().to(outputs)
        weights = np.exp(outputs - outputs.max(-1, keepdims=True))
        return (weights @ self.support().numpy()) / weights.sum(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantileValues:
    r"""Equally likely returns (QR-DQN; Dabney et al. 2018, arXiv:1710.10044, section 4).

        Q(s, a) = 1/N \sum_i theta_i(s, a)

    Outputs are ``(B, A, atoms)``; number i (from 0) is the quantile at (2i + 1) / 2N.
    """

    atoms: int = 200

    def __post_init__(self) -> None:
        if self.atoms < 1:
            raise ValueError(f"atoms={self.atoms}: at least one quantile is needed")

    def levels(self) -> Tensor:
        """Return the middles of the N intervals of probability, ``(atoms,)``.

        >>> QuantileValues(atoms=4).levels()
        tensor([0.1250, 0.3750, 0.6250, 0.8750])
        """
        return (2 * torch.arange(self.atoms) + 1) / (2 * self.atoms)

    def mean(self, outputs: A) -> A:
        """Return Q values ``(B, A)`` of quantiles ``(B, A, atoms)``."""
        return outputs.mean(-1)
