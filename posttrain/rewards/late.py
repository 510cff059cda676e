"""A reward that another one takes the place of, late in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from posttrain.rewards.base import Reward, Sample

__all__ = ["Late", "reward_at"]


@dataclass(frozen=True, kw_only=True)
class Late:
    """One reward up to step ``after``, another from then on.

    DeepSeek-R1 pays for preferences in the last 400 of 1,700 steps alone, because longer training
    on them was seen to be gamed (version in Nature, methods). Without a step, as in an evaluation,
    it is ``then``.

    >>> reward = Late(first=lambda s: [0.0] * len(s), then=lambda s: [1.0] * len(s), after=2)
    >>> [reward_at(reward, step)([None]) for step in (1, 2, 3)]
    [[0.0], [0.0], [1.0]]
    """

    first: Reward
    then: Reward
    after: int
    """Last step that ``first`` scores; 0 scores none by it."""

    def __post_init__(self) -> None:
        if self.after < 0:
            raise ValueError(f"after={self.after}: give the last step of the first reward, >= 0")

    @property
    def timeouts(self) -> int:
        """Samples that hit a limit so far, in both."""
        return sum(getattr(reward, "timeouts", 0) for reward in (self.first, self.then))

    def at(self, step: int) -> Reward:
        """Return the reward that counts at ``step``."""
        return self.first if step <= self.after else self.then

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return what ``then`` returns."""
        return self.then(samples)


def reward_at(reward: Reward, step: int) -> Reward:
    """Return the reward that counts at ``step``: any but a ``Late`` one is the same at all."""
    return reward.at(step) if isinstance(reward, Late) else reward
