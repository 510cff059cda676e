"""Replay memories: what was experienced, drawn again, evenly or by priority.

A row is a whole transition of up to n steps, put together when it is added (see ``rl.n_step``); so
any row may be drawn, wherever the ring's seam stands.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from launch.errors import UsageError
from rl.n_step import Columns, NStep, Rows
from rl.observations import TensorObservations, flatten, to_tensors, unflatten
from rl.spaces import Observations, Space, empty_rows
from rl.transitions import Transitions

__all__ = ["PrioritizedReplay", "Replay", "Transitions"]


class Replay:
    """The last ``capacity`` transitions, drawn evenly with replacement.

    Args:
        capacity: Rows.
        observation_space: Of one environment; Dict and Tuple too.
        action_space: Of one environment.
        n_step: Steps that a transition spans, where the episode does not end before.
        discount: gamma.
        seed: Of the memory's own draws.

    Raises:
        UsageError: A number out of range, or more rows than this machine's memory holds.
    """

    def __init__(
        self,
        capacity: int,
        observation_space: Space,
        action_space: Space,
        *,
        n_step: int = 1,
        discount: float,
        seed: int = 0,
    ) -> None:
        _check(capacity, n_step, discount)
        self.capacity, self.n_step, self.discount = capacity, n_step, discount
        self.generator = np.random.default_rng(seed)
        """Draws, where ``sample`` is given no other; part of the state."""
        self._layout = empty_rows(observation_space, 0)
        _check_memory(capacity, [observation_space, observation_space, action_space])
        self._observations = flatten(self._layout, empty_rows(observation_space, capacity))
        self._next_observations = [np.zeros_like(x) for x in self._observations]
        actions = empty_rows(action_space, capacity)
        if not isinstance(actions, np.ndarray):
            raise UsageError(f"got the action space {action_space}, expected one array an action")
        self._actions = actions
        self._rewards = np.zeros(capacity, np.float32)
        self._discounts = np.zeros(capacity, np.float32)
        self._added = 0
        self._pending: NStep | None = None

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    # -- adding ------------------------------------------------------------------------------

    def add(
        self,
        observations: Observations,
        actions: NDArray[Any],
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        next_observations: Observations,
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add one step of each of B environments; the arrays are copied.

        With n > 1 a step is held until n have come or its episode ends, and B must stay the same.

        Args:
            observations: ``(B, ...)`` acted on.
            actions: ``(B,)`` or ``(B, D)``.
            rewards: ``(B,)``.
            terminated: ``(B,)``: what follows is worth nothing.
            truncated: ``(B,)``: cut off; what follows is worth V of ``next_observations``.
            next_observations: ``(B, ...)`` what the actions led to; the final observation where an
                episode ended.
            valid: ``(B,)``, False where there was no step; None where all are.

        Raises:
            ValueError: A shape that does not fit; names both.
        """
        step = Rows(
            flatten(self._layout, observations),
            actions,
            rewards,
            self._discounts,
            flatten(self._layout, next_observations),
        )
        self._check_step(step)
        if self.n_step == 1:
            discounts = np.where(terminated, 0.0, self.discount)
            rows = step._replace(discounts=discounts)
            if valid is not None and not valid.all():
                rows = _take(rows, np.flatnonzero(valid))
            self._write(rows)
            return
        if self._pending is None:
            self._pending = NStep(self.n_step, self.discount, step.observations, actions)
        if len(rewards) != self._pending.count:
            raise ValueError(
                f"got a step of {len(rewards)} environments after steps of {self._pending.count}: "
                "sums over several steps need the same environments each time"
            )
        valid = np.ones(len(rewards), np.bool_) if valid is None else valid
        completed = self._pending.push(step, terminated, truncated, valid)
        if completed is not None:
            self._write(completed)

    def _check_step(self, step: Rows) -> None:
        count = (len(step.rewards),)
        pairs = [(step.actions, self._actions)]
        pairs += zip(step.observations, self._observations, strict=True)
        pairs += zip(step.next_observations, self._observations, strict=True)
        for given, stored in pairs:
            if given.shape != count + stored.shape[1:]:
                raise ValueError(
                    f"got an array of shape {given.shape}, expected {count + stored.shape[1:]}: "
                    "one row for each reward"
                )

    def _write(self, rows: Rows) -> NDArray[np.int64]:
        """Put whole transitions into the ring; return where."""
        if len(rows.rewards) > self.capacity:
            rows = _take(rows, np.arange(len(rows.rewards))[-self.capacity :])
        count, start = len(rows.rewards), self._added % self.capacity
        indices = np.arange(start, start + count)
        where: slice | NDArray[np.int64] = slice(start, start + count)
        if start + count > self.capacity:
            where = indices = indices % self.capacity
        for column, values in zip(self._observations, rows.observations, strict=True):
            column[where] = values
        for column, values in zip(self._next_observations, rows.next_observations, strict=True):
            column[where] = values
        self._actions[where] = rows.actions
        self._rewards[where] = rows.rewards
        self._discounts[where] = rows.discounts
        self._added += count
        return indices

    # -- drawing -----------------------------------------------------------------------------

    def sample(self, batch: int, generator: np.random.Generator | None = None) -> Transitions:
        """Draw ``batch`` transitions evenly, with replacement; all weights are 1.

        Args:
            batch: How many.
            generator: What draws; None takes the memory's own.

        Raises:
            ValueError: Nothing was added yet.
        """
        self._check_filled(batch)
        generator = self.generator if generator is None else generator
        return self.take(generator.integers(0, len(self), batch))

    def take(
        self, indices: NDArray[np.int64], weights: NDArray[np.float32] | None = None
    ) -> Transitions:
        """Return the rows ``indices`` as a copy; without ``weights`` they weigh 1."""
        if weights is None:
            weights = np.ones(len(indices), np.float32)
        return Transitions(
            observations=self._tensors(self._observations, indices),
            actions=torch.from_numpy(self._actions.take(indices, axis=0)),
            rewards=torch.from_numpy(self._rewards.take(indices)),
            discounts=torch.from_numpy(self._discounts.take(indices)),
            next_observations=self._tensors(self._next_observations, indices),
            weights=torch.from_numpy(weights),
            indices=torch.from_numpy(indices),
        )

    def _tensors(self, columns: Columns, indices: NDArray[np.int64]) -> TensorObservations:
        if isinstance(self._layout, np.ndarray):
            return torch.from_numpy(columns[0].take(indices, axis=0))
        arrays = (column.take(indices, axis=0) for column in columns)
        return to_tensors(unflatten(self._layout, arrays))

    def _check_filled(self, batch: int) -> None:
        if batch < 1 or not self._added:
            raise ValueError(
                f"cannot draw {batch} of {len(self)} transitions: at least one has to be added "
                f"before (with n_step={self.n_step} a step counts once {self.n_step} have come, or "
                "its episode has ended), and at least one asked for"
            )

    def update_priorities(self, indices: Tensor, errors: Tensor) -> None:
        """Do nothing: all rows are alike here. ``PrioritizedReplay`` takes the errors to heart."""

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what is filled, the steps that are held, and the generator's state."""

        def filled(columns: Sequence[NDArray[Any]]) -> list[Tensor]:
            return [torch.from_numpy(column[: len(self)].copy()) for column in columns]

        return {
            "capacity": self.capacity,
            "added": self._added,
            "observations": filled(self._observations),
            "next_observations": filled(self._next_observations),
            "others": filled([self._actions, self._rewards, self._discounts]),
            "pending": None if self._pending is None else self._pending.state_dict(),
            "generator": self.generator.bit_generator.state,
        }

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take what ``state_dict`` returned.

        Raises:
            UsageError: It is of a memory of another capacity or other spaces.
        """
        columns = [*self._observations, *self._next_observations]
        columns += [self._actions, self._rewards, self._discounts]
        saved = [*state_dict["observations"], *state_dict["next_observations"]]
        saved += state_dict["others"]
        shapes = [tuple(x.shape[1:]) for x in saved]
        if state_dict["capacity"] != self.capacity or shapes != [x.shape[1:] for x in columns]:
            raise UsageError(
                f"the saved replay memory has capacity {state_dict['capacity']} and rows of "
                f"{shapes}, this one {self.capacity} and {[x.shape[1:] for x in columns]}: resume "
                "with the config that the run began with"
            )
        for column, values in zip(columns, saved, strict=True):
            column[: len(values)] = values.numpy()
        self._added = int(state_dict["added"])
        pending = state_dict["pending"]
        self._pending = None
        if pending is not None:
            held = [x.numpy()[0] for x in pending["observations"]]
            actions = pending["actions"].numpy()[0]
            self._pending = NStep(self.n_step, self.discount, held, actions)
            self._pending.load_state_dict(pending)
        self.generator.bit_generator.state = state_dict["generator"]


class PrioritizedReplay(Replay):
    r"""Transitions drawn by their last error (Schaul et al. 2016, arXiv:1511.05952).

        p_i = |error_i| + epsilon,   P(i) = p_i^alpha / \sum_k p_k^alpha          (eq. 1)
        w_i = (N P(i))^-beta / max_j w_j                                        (section 3.4)

    Drawn from ``batch`` equal parts of the total, one of each (appendix B.2.1). The maximum of the
    weights is that of the batch. A new transition has the largest p that there ever was, at first
    1, so each is drawn soon.

    Args:
        capacity: Rows.
        observation_space: Of one environment.
        action_space: Of one environment.
        n_step: Steps that a transition spans.
        discount: gamma.
        seed: Of the memory's own draws.
        alpha: 0 draws evenly, 1 in proportion to the error.
        beta: 1 corrects the bias in full, 0 not at all; set it anew as it is annealed.
        epsilon: Keeps a transition without error in the draw.
    """

    def __init__(
        self,
        capacity: int,
        observation_space: Space,
        action_space: Space,
        *,
        n_step: int = 1,
        discount: float,
        seed: int = 0,
        alpha: float = 0.6,
        beta: float = 0.4,
        epsilon: float = 1e-6,
    ) -> None:
        from rl.sum_tree import SumTree  # loads numba

        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name}={value}: it lies between 0 and 1")
        if not epsilon > 0:
            raise UsageError(f"epsilon={epsilon}: use more than 0, or some rows are never drawn")
        super().__init__(
            capacity, observation_space, action_space, n_step=n_step, discount=discount, seed=seed
        )
        self.alpha, self.beta, self.epsilon = alpha, beta, epsilon
        self._largest = 1.0
        self._tree = SumTree(capacity)

    def _write(self, rows: Rows) -> NDArray[np.int64]:
        indices = super()._write(rows)
        self._tree.set(indices, np.full(len(indices), self._largest**self.alpha))
        return indices

    def sample(self, batch: int, generator: np.random.Generator | None = None) -> Transitions:
        """Draw ``batch`` transitions by priority, with the weights that undo the bias."""
        self._check_filled(batch)
        generator = self.generator if generator is None else generator
        indices, weights = self._tree.draw(generator.random(batch), len(self), self.beta)
        return self.take(indices, weights)

    def update_priorities(self, indices: Tensor, errors: Tensor) -> None:
        """Give the rows of a batch the priority of their new errors, ``(B,)`` each.

        Raises:
            ValueError: An error that is not finite.
        """
        priorities = np.abs(errors.detach().cpu().numpy().astype(np.float64)) + self.epsilon
        if not np.isfinite(priorities).all():
            row = int(np.isfinite(priorities).argmin())
            raise ValueError(
                f"got the error {errors[row].item()} in row {row}: it has to be finite"
            )
        self._largest = max(self._largest, float(priorities.max(initial=0.0)))
        self._tree.set(indices.cpu().numpy(), priorities**self.alpha)

    def state_dict(self) -> dict[str, Any]:
        """Return that of a ``Replay`` with the priorities."""
        weights = torch.from_numpy(self._tree.get(np.arange(len(self))))
        return super().state_dict() | {"priorities": weights, "largest": self._largest}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take what ``state_dict`` returned."""
        super().load_state_dict(state_dict)
        self._largest = float(state_dict["largest"])
        weights = state_dict["priorities"].numpy()
        self._tree.nodes[:] = 0.0
        self._tree.set(np.arange(len(weights)), weights)


def _take(rows: Rows, indices: NDArray[np.int64]) -> Rows:
    return Rows(
        [x[indices] for x in rows.observations],
        rows.actions[indices],
        rows.rewards[indices],
        rows.discounts[indices],
        [x[indices] for x in rows.next_observations],
    )


def _check(capacity: int, n_step: int, discount: float) -> None:
    if capacity < 1:
        raise UsageError(f"capacity={capacity}: a replay memory holds at least one transition")
    if n_step < 1:
        raise UsageError(f"n_step={n_step}: a transition spans at least one step")
    if not 0 <= discount <= 1:
        raise UsageError(f"discount={discount}: it lies between 0 and 1")


def _check_memory(capacity: int, spaces: Sequence[Space]) -> None:
    layouts = [empty_rows(space, 1) for space in spaces]
    row = sum(x.nbytes for layout in layouts for x in flatten(layout, layout)) + 8
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if capacity * row > there:
        raise UsageError(
            f"capacity={capacity}: at {row} bytes a transition this needs {capacity * row} bytes, "
            f"and this machine has {there}: use at most {there // row}, or smaller observations"
        )
