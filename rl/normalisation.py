"""Running mean and variance, and what agents scale by them: observations and rewards.

Nothing here changes by being used: only ``update`` (for rewards, the call) takes in new data, and
not even that once ``frozen`` is set, as it is in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from launch.errors import UsageError

__all__ = ["ObservationNormaliser", "Reducer", "RewardNormaliser", "RunningMoments"]

Reducer: TypeAlias = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes, such as ``run.sum``; every process has to call it."""


class RunningMoments:
    """Mean and variance of everything seen so far, element by element, in float64.

    A batch is merged as a whole (Chan, Golub and LeVeque 1983, "Algorithms for computing the
    sample variance", eq. 2.1):

        delta = mean_b - mean_a,    mean = mean_a + delta n_b / n
        M = M_a + M_b + delta^2 n_a n_b / n,    variance = M / n

    Unlike Stable-Baselines3's RunningMeanStd, no made-up first sample takes part.

    >>> moments = RunningMoments((2,))
    >>> moments.update([[1.0, 0.0], [3.0, 0.0]])
    >>> moments.mean, moments.variance
    (array([2., 0.]), array([1., 0.]))
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.shape = shape
        self.count = 0.0
        self.mean = np.zeros(shape)
        self._squares = np.zeros(shape)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Of the population; 1 before anything has been seen."""
        if self.count == 0:
            return np.ones(self.shape)
        return self._squares / self.count

    def update(self, batch: ArrayLike, *, total: Reducer | None = None) -> None:
        """Take in a batch ``(N, *shape)``.

        Args:
            batch: N may be 0.
            total: Sums over processes: then all end with the moments of all their batches.
        """
        rows = np.asarray(batch, np.float64)
        if rows.shape[1:] != self.shape or rows.ndim == 0:
            raise ValueError(
                f"got a batch of shape {rows.shape}: it is (N, ...) of the shape {self.shape}"
            )
        sums = np.concatenate([[len(rows)], rows.sum(0).ravel()])
        count, *flat = _reduced(sums, total)
        if count == 0:
            return
        mean = np.reshape(flat, self.shape) / count
        squares = _reduced(((rows - mean) ** 2).sum(0), total)
        both, delta = self.count + count, mean - self.mean
        self.mean = self.mean + delta * (count / both)
        self._squares = self._squares + squares + delta**2 * (self.count * count / both)
        self.count = both

    def state_dict(self) -> dict[str, Any]:
        """Return count, mean and sum of squared deviations."""
        return {
            "count": float(self.count),
            "mean": torch.from_numpy(np.array(self.mean)),
            "squares": torch.from_numpy(np.array(self._squares)),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Take what ``state_dict`` returned; lists will do for tensors."""
        mean = np.asarray(state_dict["mean"], np.float64)
        if mean.shape != self.shape:
            raise UsageError(
                f"the saved moments have shape {mean.shape}, and these {self.shape}: "
                "they are of another environment"
            )
        self.count = float(state_dict["count"])
        self.mean = mean.copy()
        self._squares = np.asarray(state_dict["squares"], np.float64).copy()


class ObservationNormaliser:
    """Observations with mean 0 and variance 1, clipped.

        x -> clip((x - mean) / sqrt(variance + epsilon), -clip, clip)

    Update it once a rollout with all that was observed, on every process together: then neither
    the number of processes nor the order of environments changes a figure but by rounding.

    Args:
        shape: Of one observation.
        clip: In standard deviations.
        epsilon: Keeps what never varies at 0.
    """

    def __init__(
        self, shape: tuple[int, ...], *, clip: float = 10.0, epsilon: float = 1e-8
    ) -> None:
        _check(clip, epsilon)
        self.moments = RunningMoments(shape)
        self.clip, self.epsilon = clip, epsilon
        self.frozen = False

    def update(self, observations: NDArray[Any], *, total: Reducer | None = None) -> None:
        """Take in ``(..., *shape)`` observations, unless frozen."""
        if not self.frozen:
            shape = self.moments.shape
            self.moments.update(np.reshape(observations, (-1, *shape)), total=total)

    def __call__(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """Return ``(..., *shape)`` float32, and take in nothing."""
        scaled = (observations - self.moments.mean) / np.sqrt(self.moments.variance + self.epsilon)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the moments, clip and epsilon."""
        return self.moments.state_dict() | {"clip": self.clip, "epsilon": self.epsilon}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Take what ``state_dict`` returned; lists will do for tensors."""
        self.moments.load_state_dict(state_dict)
        self.clip, self.epsilon = float(state_dict["clip"]), float(state_dict["epsilon"])


class RewardNormaliser:
    r"""Rewards in standard deviations of the discounted return.

        R_t = gamma R_{t-1} + r_t  (0 before an episode),    r -> clip(r / sqrt(var(R) + epsilon))

    This is what Stable-Baselines3's VecNormalize does. The mean stays, so that no reward changes
    its sign. Given a rollout at once, its R are all taken in before any of its rewards is scaled.

    Args:
        count: B, environments of this process.
        discount: gamma.
        first: Number of the first environment among those of all processes.
        clip: In standard deviations.
        epsilon: Added to the variance.
    """

    def __init__(
        self,
        count: int,
        *,
        discount: float,
        first: int = 0,
        clip: float = 10.0,
        epsilon: float = 1e-8,
    ) -> None:
        _check(clip, epsilon)
        if not 0 <= discount <= 1:
            raise UsageError(f"discount={discount}: it lies between 0 and 1")
        self.moments = RunningMoments()
        self.discount, self.first = discount, first
        self.clip, self.epsilon = clip, epsilon
        self.frozen = False
        self._running = np.zeros(count)

    def __call__(
        self,
        rewards: NDArray[Any],
        ended: NDArray[np.bool_],
        valid: NDArray[np.bool_] | None = None,
        *,
        total: Reducer | None = None,
    ) -> NDArray[np.float32]:
        """Take in rewards, unless frozen, and return them scaled.

        Args:
            rewards: ``(B,)`` of one step, or ``(B, T)`` of a rollout.
            ended: Of the same shape: terminated or truncated.
            valid: Of the same shape; False is not a step.
            total: Sums over processes.
        """
        count = len(self._running)
        if rewards.shape != ended.shape or rewards.shape[:1] != (count,) or rewards.ndim > 2:
            raise ValueError(
                f"got rewards of shape {rewards.shape} and ends of shape {ended.shape}: "
                f"both are ({count},) or ({count}, T)"
            )
        if not self.frozen:
            kept = np.ones_like(ended) if valid is None else valid
            self.moments.update(self._returns(rewards, ended, kept), total=total)
        scaled = rewards / np.sqrt(self.moments.variance + self.epsilon)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)

    def _returns(
        self, rewards: NDArray[Any], ended: NDArray[np.bool_], valid: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return the running returns of all valid steps, one after another."""
        seen = []
        columns = (x.reshape(len(self._running), -1).T for x in (rewards, ended, valid))
        for reward, end, counts in zip(*columns, strict=True):
            running = self.discount * self._running + reward
            seen.append(running[counts])
            self._running = np.where(counts, np.where(end, 0.0, running), self._running)
        return np.concatenate(seen) if seen else np.zeros(0)

    def state_dict(self) -> dict[str, Any]:
        """Return the moments and the running return of each environment."""
        running = torch.from_numpy(self._running.copy())
        return self.moments.state_dict() | {"first": self.first, "running": running}

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Take what ``state_dict`` returned, also where it holds more environments than ours."""
        start = self.first - int(state_dict["first"])
        running = np.asarray(state_dict["running"], np.float64)
        own = running[start : start + len(self._running)] if start >= 0 else running[:0]
        if len(own) != len(self._running):
            raise UsageError(
                f"the checkpoint holds the running returns of {len(running)} environments from "
                f"{state_dict['first']} on, and this process runs {len(self._running)} from "
                f"{self.first} on: resume with as many as the run began with"
            )
        self.moments.load_state_dict(state_dict)
        self._running = own.copy()


def _reduced(sums: NDArray[np.float64], total: Reducer | None) -> NDArray[np.float64]:
    return sums if total is None else total(torch.from_numpy(np.array(sums))).cpu().numpy()


def _check(clip: float, epsilon: float) -> None:
    if not clip > 0:
        raise UsageError(f"clip={clip}: it is a number of standard deviations above 0")
    if not epsilon > 0:
        raise UsageError(f"epsilon={epsilon}: it keeps from dividing by 0, so use more than 0")
