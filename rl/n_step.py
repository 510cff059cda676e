"""Steps of B environments put together to transitions over n of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Columns", "NStep", "Rows"]

Columns: TypeAlias = Sequence[NDArray[Any]]
"""The arrays of one observation, or of many; several where the space is a Dict or Tuple."""


class Rows(NamedTuple):
    """K whole transitions."""

    observations: Columns
    actions: NDArray[Any]
    rewards: NDArray[Any]
    """Sums over the steps of each."""
    discounts: NDArray[Any]
    """Of what follows: a power of gamma, or 0."""
    next_observations: Columns
    """What the last step of each led to."""


class NStep:
    r"""Holds the last n - 1 steps of each environment until their sums are complete.

        R = \sum_{i < k} gamma^i r_{t+i},   discount = gamma^k, or 0 where the episode terminated

    with k = n, or less where the episode ends before. A terminated or truncated step completes all
    that is held of its environment, so no sum reaches into the next episode.

    Args:
        steps: n.
        discount: gamma.
        observations: Those of B environments, for shapes and types.
        actions: ``(B, ...)``, likewise.
    """

    def __init__(
        self, steps: int, discount: float, observations: Columns, actions: NDArray[Any]
    ) -> None:
        self.steps, self.discount, self.count = steps, discount, len(actions)
        self._observations = [np.zeros((steps, *x.shape), x.dtype) for x in observations]
        self._actions = np.zeros((steps, *actions.shape), actions.dtype)
        self._begun = np.zeros(self.count, np.int64)
        self._held = np.zeros((steps, self.count), np.bool_)
        self._rewards = np.zeros((steps, self.count))
        self._discounts = np.zeros((steps, self.count))

    def push(
        self,
        step: Rows,
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        valid: NDArray[np.bool_],
    ) -> list[Rows]:
        """Take in a step of B environments; return what it completes, oldest steps first."""
        taken = np.flatnonzero(valid)
        slots = self._begun[taken] % self.steps
        for column, values in zip(self._observations, step.observations, strict=True):
            column[slots, taken] = values[taken]
        self._actions[slots, taken] = step.actions[taken]
        self._held[slots, taken] = True
        self._rewards[slots, taken] = 0.0
        self._discounts[slots, taken] = 1.0
        self._rewards[:, taken] += self._discounts[:, taken] * step.rewards[taken]
        self._discounts[:, taken] *= self.discount
        self._begun[taken] += 1
        ended = valid & (terminated | truncated)
        completed = []
        for age in range(self.steps if ended.any() else 1):
            # The slot that is next in turn holds the oldest step, if n are held at all.
            slots = (self._begun + age) % self.steps
            held = self._held[slots, np.arange(self.count)]
            done = np.flatnonzero(held & (ended if age else valid))
            if len(done):
                completed.append(self._complete(slots[done], done, terminated, step))
        return completed

    def _complete(
        self,
        slots: NDArray[np.int64],
        environments: NDArray[np.int64],
        terminated: NDArray[np.bool_],
        step: Rows,
    ) -> Rows:
        where = slots, environments
        self._held[where] = False
        return Rows(
            [column[where] for column in self._observations],
            self._actions[where],
            self._rewards[where],
            np.where(terminated[environments], 0.0, self._discounts[where]),
            [values[environments] for values in step.next_observations],
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is held, as tensors."""
        return {
            "observations": [torch.from_numpy(column.copy()) for column in self._observations],
            "actions": torch.from_numpy(self._actions.copy()),
            "begun": torch.from_numpy(self._begun.copy()),
            "held": torch.from_numpy(self._held.copy()),
            "rewards": torch.from_numpy(self._rewards.copy()),
            "discounts": torch.from_numpy(self._discounts.copy()),
        }

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take what ``state_dict`` returned."""
        for column, saved in zip(self._observations, state_dict["observations"], strict=True):
            column[...] = saved.numpy()
        for name in ("actions", "begun", "held", "rewards", "discounts"):
            getattr(self, f"_{name}")[...] = state_dict[name].numpy()
