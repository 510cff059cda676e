r"""Feature maps: what linear attention puts in the place of ``exp(q . k)``.

A feature map is any callable on ``(..., K)`` that returns ``(..., M)``; it is applied to queries
and keys alike, and ``phi(q) . phi(k)`` is the weight of a key. Maps whose features are not
negative make the normaliser a sum of weights; it is then 0 only where nothing is looked at. Half
precision reaches a map as float32, so the weights of a learnt map are kept in float32.

Maps that are exponentials overflow when they are computed as they stand. They are therefore
``LogFeatures``: linear attention asks them for ``log phi`` and takes out of a query the greatest
log feature of that query, out of a row the greatest of the keys up to it. Both cancel in the
normalised result, which is what exact arithmetic would give, and neither looks ahead. (The
stabiliser of Performer's own code is the greatest over the whole sequence, so it leaks.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Exp",
    "FeatureMap",
    "LogFeatures",
    "PositiveRandomFeatures",
    "elu_plus_one",
    "exp",
    "relu",
]

FeatureMap: TypeAlias = Callable[[Tensor], Tensor]
"""``(..., K) -> (..., M)``."""


class LogFeatures(ABC):
    """A map whose features are exponentials, which linear attention keeps from overflowing."""

    @abstractmethod
    def log(self, x: Tensor) -> Tensor:
        """Return ``log phi(x)``, ``(..., K) -> (..., M)``."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``phi(x)`` as it stands, ``(..., K) -> (..., M)``."""
        return self.log(x).exp()


@dataclass(frozen=True, slots=True)
class Exp(LogFeatures):
    """``phi(x) = exp(x)``, feature by feature."""

    def log(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


exp = Exp()
"""``phi(x) = exp(x)`` feature by feature; linear attention computes it without overflow."""


def elu_plus_one(x: Tensor) -> Tensor:
    """``elu(x) + 1``: ``x + 1`` above 0, ``exp(x)`` below (Katharopoulos et al. 2020, eq. 7).

    arXiv:2006.16236. All features are positive.

    >>> elu_plus_one(torch.tensor([-1.0, 0.0, 2.0]))
    tensor([0.3679, 1.0000, 3.0000])
    """
    return F.elu(x) + 1.0


def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``; a query whose features are all 0 looks at nothing and is answered by 0.

    >>> relu(torch.tensor([-1.0, 0.0, 2.0]))
    tensor([0., 0., 2.])
    """
    return F.relu(x)


class PositiveRandomFeatures(LogFeatures):
    r"""Performer's positive features (FAVOR+; Choromanski et al. 2021, arXiv:2009.14794, lemma 1).

        phi(x)_m = exp(w_m . x' - |x'|^2 / 2) / sqrt(M),    x' = x / K^(1/4)

    so that ``phi(q) . phi(k)`` estimates ``exp(q . k / sqrt(K))``, softmax attention's weight,
    without bias. The directions w are Gaussian, orthogonal within each block of K of them.

    Args:
        width: K, features of a query.
        features: M, random features; the variance of the estimate falls as 1 / M.
        generator: Draws the directions; one on the CPU with a fixed seed draws the same anywhere.

    >>> features = PositiveRandomFeatures(4, 4096, generator=torch.Generator().manual_seed(0))
    >>> q, k = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    >>> round(float(features(q) @ features(k)), 1), round(math.exp(1 / 2), 1)
    (1.6, 1.6)
    """

    def __init__(self, width: int, features: int, *, generator: torch.Generator) -> None:
        if width < 1 or features < 1:
            raise ValueError(f"width={width}, features={features}: both must be at least 1")
        blocks = []
        for _ in range(-(-features // width)):
            gaussian = torch.randn(
                width, width, generator=generator, dtype=torch.float64, device=generator.device
            )
            orthogonal, triangular = torch.linalg.qr(gaussian)
            # Signs that make the rotation uniform (Haar); lengths as Gaussian rows have them.
            signs = torch.where(triangular.diagonal() < 0, -1.0, 1.0).to(orthogonal)
            lengths = torch.randn(
                width, width, generator=generator, dtype=torch.float64, device=generator.device
            ).norm(dim=1, keepdim=True)
            blocks.append((orthogonal * signs).t() * lengths)
        self.directions = torch.cat(blocks)[:features]
        """``(M, K)`` float64."""

    def log(self, x: Tensor) -> Tensor:
        """Return ``log phi(x)``, ``(..., K) -> (..., M)``."""
        features, width = self.directions.shape
        if x.shape[-1] != width:
            raise ValueError(
                f"the features were drawn for width={width}, but x has {x.shape[-1]} on its last "
                "axis; draw features of that width"
            )
        x = x * width**-0.25
        directions = self.directions.to(x)
        half = 0.5 * x.square().sum(-1, keepdim=True)
        return x @ directions.t() - half - 0.5 * math.log(features)
