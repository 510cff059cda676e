"""A penalty for saying the same again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.rewards.base import Sample

__all__ = ["RepetitionPenalty", "repeated_share"]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Minus the share of n-grams that stood before (Yeo et al. 2025, arXiv:2502.03373, C.2).

    The n-grams are of tokens, or of words where a sample has no tokens; the paper's are of words.
    A completion shorter than an n-gram repeats nothing.

    >>> RepetitionPenalty(2)([Sample(prompt="", completion="", answer="", tokens=(1, 2, 1, 2, 1))])
    tensor([-0.5000])
    """

    n: int = 20
    """Tokens of an n-gram. Short ones repeat in any good text."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n={self.n}: an n-gram has at least one token")

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 between -1 and 0."""
        shares = [
            repeated_share(sample.tokens or sample.completion.split(), self.n) for sample in samples
        ]
        return 0.0 - torch.tensor(shares, dtype=torch.float32)


def repeated_share(units: Sequence[Hashable], n: int) -> float:
    """Return the share of n-grams that stood before; 0 if there is none.

    >>> repeated_share("abcabc", 3)
    0.25
    """
    count = len(units) - n + 1
    if count < 1:
        return 0.0
    return 1 - len({tuple(units[i : i + n]) for i in range(count)}) / count
