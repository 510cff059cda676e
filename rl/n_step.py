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
        from rl.n_step_kernel import push  # loads numba

        self._push = push
        self.steps, self.discount, self.count = steps, discount, len(actions)
        self._observations = [np.zeros((steps, *x.shape), x.dtype) for x in observations]
        self._actions = np.zeros((steps, *actions.shape), actions.dtype)
        self._begun = np.zeros(self.count, np.int64)
        self._held = np.zeros((steps, self.count), np.bool_)
        self._rewards = np.zeros((steps, self.count))
        self._discounts = np.zeros((steps, self.count))
        # The same memory, with slots and environments along one axis.
        self._flat = [_rows(column) for column in (*self._observations, self._actions)]

    def push(
        self,
        step: Rows,
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        valid: NDArray[np.bool_],
    ) -> Rows | None:
        """Take in a step of B environments; return what it completes, oldest steps first."""
        taken, begins, environments, places = self._push(
            self._begun,
            self._held,
            self._rewards,
            self._discounts,
            np.asarray(step.rewards, np.float64),
            self.discount,
            terminated,
            truncated,
            valid,
        )
        for column, values in zip(self._flat, (*step.observations, step.actions), strict=True):
            column[begins] = values if len(taken) == self.count else values[taken]
        if not len(places):
            return None
        *observations, actions = (column.take(places, axis=0) for column in self._flat)
        return Rows(
            observations,
            actions,
            self._rewards.take(places),
            self._discounts.take(places),
            [values.take(environments, axis=0) for values in step.next_observations],
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


def _rows(column: NDArray[Any]) -> NDArray[Any]:
    """Return ``(n, B, ...)`` as ``(n * B, ...)``, without a copy."""
    return column.reshape(-1, *column.shape[2:])
