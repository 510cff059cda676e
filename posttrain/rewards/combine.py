"""Several rewards as one, and rewards scored with their parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.rewards.base import Reward, Sample
from posttrain.rewards.checking import check_rewards, checked, reward_name
from posttrain.rewards.late import Late
from posttrain.rewards.model import ModelReward

__all__ = ["WeightedSum", "check_reward", "score"]


@dataclass(frozen=True)
class WeightedSum:
    """``sum_i weight_i * reward_i``. It keeps nothing: ``parts`` gives each reward for the log.

    A call is ``combine(parts(samples))``; who wants the parts as well makes the two steps.

    >>> both = WeightedSum({"twice": (2.0, lambda s: [1.0, 0.0]), "free": (0.0, lambda s: [5, 7])})
    >>> samples = [Sample(prompt="", completion="", answer="")] * 2
    >>> both(samples)
    tensor([2., 0.])
    >>> both.parts(samples)["free"]
    tensor([5., 7.])
    """

    rewards: Mapping[str, tuple[float, Reward]]
    """Name, to be logged as ``reward/<name>``, to weight and reward. A reward at weight 0 is
    logged and checked all the same."""

    def __post_init__(self) -> None:
        if not isinstance(self.rewards, Mapping) or not self.rewards:
            raise ValueError(
                "WeightedSum needs a mapping from names to (weight, reward), such as "
                '{"accuracy": (1.0, AnswerReward()), "format": (0.1, FormatReward())}'
            )
        for name, pair in self.rewards.items():
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise ValueError(f"reward {name}: expected (weight, reward), got {pair!r}")
            weight, reward = pair
            if not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"reward {name}: the weight {weight!r} is not a finite number")
            if not callable(reward):
                raise ValueError(
                    f"reward {name}: {reward!r} cannot be called; a reward takes samples and "
                    "returns one number for each"
                )

    @property
    def timeouts(self) -> int:
        """Samples that hit a limit so far, over all rewards that count them."""
        return sum(getattr(reward, "timeouts", 0) for _, reward in self.rewards.values())

    def __call__(self, samples: Sequence[Sample], /) -> Tensor:
        """Return the ``(B,)`` float32 weighted sum.

        Raises:
            RewardError: A reward broke its contract; the error names it and the row.
        """
        return self.combine(self.parts(samples))

    def parts(
        self, samples: Sequence[Sample], *, seconds: float | None = None
    ) -> dict[str, Tensor]:
        """Return each reward's own ``(B,)`` values, without weights; ``seconds`` limits each."""
        return {
            name: checked(name, reward, samples, seconds=seconds)
            for name, (_, reward) in self.rewards.items()
        }

    def combine(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of what ``parts`` returned."""
        terms = [weight * parts[name].double() for name, (weight, _) in self.rewards.items()]
        total = torch.stack(terms).sum(0)
        return check_rewards(" + ".join(self.rewards), total, len(total))


def score(
    reward: Reward, samples: Sequence[Sample], *, seconds: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return ``(B,)`` rewards and their parts by name; a reward that is no sum has no parts.

    Args:
        reward: Any reward; what it returns is checked.
        samples: B samples.
        seconds: Wall-clock limit of each reward's call.

    Raises:
        RewardError: A reward broke its contract, or took longer.
    """
    if isinstance(reward, WeightedSum):
        parts = reward.parts(samples, seconds=seconds)
        return reward.combine(parts), parts
    return checked(reward_name(reward), reward, samples, seconds=seconds), {}


def check_reward(reward: Reward) -> None:
    """Raise UsageError for what can be seen of a reward before any work, as a missing model."""
    if isinstance(reward, ModelReward):
        reward.check()
    elif isinstance(reward, WeightedSum):
        for _, part in reward.rewards.values():
            check_reward(part)
    elif isinstance(reward, Late):
        check_reward(reward.first)
        check_reward(reward.then)
