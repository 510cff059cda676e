"""Controls for reinforcement learning: what a gain is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from launch.streams import key
from posttrain.rewards import Sample

__all__ = ["RandomReward"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomReward:
    """Pays 1 by a coin that knows nothing of the answer.

    A gain under it comes from the optimizer and the format of sampling, not from what is
    rewarded. The coin is keyed by prompt and completion, so resuming changes nothing.
    """

    probability: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability}: give a number between 0 and 1")

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 of zeros and ones."""
        coins = [key(self.seed, f"{s.prompt}\0{s.completion}") / 2**63 for s in samples]
        return torch.tensor([float(coin < self.probability) for coin in coins])
