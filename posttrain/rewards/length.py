"""Rewards of length: too long is penalised, and what a right answer's length is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posttrain.rewards.answer import AnswerReward
from posttrain.rewards.base import Reward, Sample
from posttrain.rewards.checking import checked, reward_name

__all__ = ["CosineLength", "OverlongPenalty"]


@dataclass(frozen=True)
class OverlongPenalty:
    r"""Soft overlong punishment (DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 13).

        0                                  length <= max_length - buffer
        (max_length - buffer - length) / buffer        up to max_length
        -1                                 length > max_length

    The length is ``len(sample.tokens)``, the stop token included. It is a part of a weighted sum:
    ``WeightedSum({"accuracy": (1.0, ...), "overlong": (1.0, OverlongPenalty(20480, 4096))})``.

    >>> samples = [Sample(prompt="", completion="", answer="", tokens=(7,) * n) for n in (6, 9, 11)]
    >>> OverlongPenalty(max_length=10, buffer=4)(samples)
    tensor([ 0.0000, -0.7500, -1.0000])
    """

    max_length: int
    """Tokens a completion may have."""
    buffer: int
    """Tokens before ``max_length`` over which the penalty grows."""

    def __post_init__(self) -> None:
        if not 1 <= self.buffer <= self.max_length:
            raise ValueError(
                f"max_length={self.max_length}, buffer={self.buffer}: the penalty grows over the "
                "last buffer tokens of max_length, so use 1 <= buffer <= max_length"
            )

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32 between -1 and 0."""
        lengths = torch.tensor([len(sample.tokens) for sample in samples], dtype=torch.float64)
        left = self.max_length - self.buffer - lengths
        return (left / self.buffer).clamp(-1, 0).float()


@dataclass(frozen=True)
class CosineLength:
    r"""Pay for right and wrong answers by length (Yeo et al. 2025, arXiv:2502.03373).

        reward = end + (start - end) (1 + cos(pi length / max_length)) / 2

    ``start`` is paid at length 0 and ``end`` at ``max_length``. A right answer is worth less the
    longer it is; a wrong one costs less, for a hard problem deserves more thought. A completion
    that was cut off, or is longer, gets ``exceeded``. The defaults are open-r1's; the paper's
    differ in scale.
    """

    max_length: int
    """Tokens a completion may have."""
    reward: Reward = field(default_factory=AnswerReward)
    """Tells right from wrong: an answer is right where this pays more than 0.5."""
    right: tuple[float, float] = (1.0, 0.5)
    """``(start, end)`` of right answers."""
    wrong: tuple[float, float] = (-1.0, -0.5)
    """``(start, end)`` of wrong answers."""
    exceeded: float = -1.0
    """For a completion that is too long."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length={self.max_length}: a completion has at least one token")
        for name in ("right", "wrong"):
            pair = getattr(self, name)
            if len(pair) != 2 or not all(map(math.isfinite, pair)):
                raise ValueError(f"{name}={pair!r}: give (reward at length 0, at max_length)")

    @property
    def timeouts(self) -> int:
        """Samples that hit a limit of the reward so far."""
        return int(getattr(self.reward, "timeouts", 0))

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return ``(B,)`` float32."""
        right = (checked(reward_name(self.reward), self.reward, samples) > 0.5).tolist()
        return torch.tensor(
            [self._pay(sample, ok) for sample, ok in zip(samples, right, strict=True)],
            dtype=torch.float32,
        )

    def _pay(self, sample: Sample, right: bool) -> float:
        length = len(sample.tokens)
        if sample.finish_reason == "length" or length > self.max_length:
            return self.exceeded
        start, end = self.right if right else self.wrong
        return end + (start - end) * (1 + math.cos(math.pi * length / self.max_length)) / 2
