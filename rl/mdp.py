"""Finite Markov decision processes with a known model: the tables that planning works on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rl.outcomes import ROUNDING, Outcomes, OutcomeTable, outcomes_of_table

if TYPE_CHECKING:
    import gymnasium
    from scipy import sparse

    from rl.tabular_env import TabularEnv

__all__ = ["TabularMDP", "as_mdp", "grid_world"]

DENSE_ENTRIES = 10_000_000
"""A model that we build is sparse from this many transition probabilities on (80 MB dense)."""
_MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1], [0, 0]])  # up, right, down, left, stay


class TabularMDP:
    """A Markov decision process of S states and A actions (Zhao 2025, section 1.7).

    ``transitions[s, a, s']`` is the probability of *continuing* to s'. What a row lacks to 1 is
    the probability that the episode ends, so no terminal state or flag is needed: nothing is earned
    after the end. Unlike the book, whose episodes end in an absorbing state.

    The tables are copied and not to be written to.

    Args:
        transitions: ``(S, A, S)``, or a scipy CSR matrix ``(S * A, S)`` with row ``s * A + a``.
        rewards: ``(S, A)``, the expected reward of each action, also of one that ends the episode.
        start: ``(S,)``, the distribution of the first state; None is uniform over all states.
        max_episode_steps: After how many steps ``to_env()`` truncates; None is never.
        name: What error messages and plots call it.

    Raises:
        ValueError: Where an entry is negative or not finite, or a row sums to more than 1.

    >>> coin = TabularMDP([[[0.5]]], [[1.0]])  # goes on with probability 1/2
    >>> coin
    TabularMDP(states=1, actions=1)
    >>> coin.outcomes.terminated
    array([False,  True])
    """

    transitions: NDArray[np.float64] | sparse.csr_matrix[np.float64]
    rewards: NDArray[np.float64]
    start: NDArray[np.float64]
    max_episode_steps: int | None
    name: str | None

    def __init__(
        self,
        transitions: ArrayLike | sparse.csr_matrix[np.float64],
        rewards: ArrayLike,
        start: ArrayLike | None = None,
        *,
        max_episode_steps: int | None = None,
        name: str | None = None,
    ) -> None:
        self.rewards = _checked_rewards(rewards)
        self.states, self.actions = self.rewards.shape
        self.transitions = _checked_transitions(transitions, self.states, self.actions)
        self.start = _checked_start(start, self.states)
        self.max_episode_steps = max_episode_steps
        self.name = name

    def __repr__(self) -> str:
        name = f"{self.name}, " if self.name else ""
        return f"TabularMDP({name}states={self.states}, actions={self.actions})"

    @classmethod
    def from_env(cls, env: str | gymnasium.Env) -> TabularMDP:
        """Take the model out of an environment: ``env.unwrapped.P``, or Blackjack's exact one.

        The outcomes stay in the environment's order, so that sampling from them repeats the
        environment's own episodes. Blackjack's states are those of ``rl.blackjack``.

        Args:
            env: A gymnasium id or an instance, wrapped or not.

        Raises:
            ValueError: Where there is no such environment, or it carries no (true) model.
        """
        from rl.tabular_env import model_of

        return model_of(env)

    @classmethod
    def from_outcomes(
        cls,
        table: OutcomeTable,
        start: ArrayLike | None = None,
        *,
        max_episode_steps: int | None = None,
        name: str | None = None,
    ) -> TabularMDP:
        """Make a model of ``table[state][action]``, lists of (probability, s', reward, terminated).

        These outcomes, with a reward each, are what ``outcomes`` holds and ``to_env()`` plays;
        ``rewards`` holds their means.
        """
        from scipy import sparse

        states, actions = len(table), len(table[0])
        outcomes = outcomes_of_table(table, states, actions)
        earned = outcomes.probabilities * outcomes.rewards
        means = np.bincount(outcomes.pairs, earned, minlength=states * actions)
        goes_on = ~outcomes.terminated
        at = (outcomes.pairs[goes_on], outcomes.next_states[goes_on])
        matrix = sparse.csr_matrix(
            (outcomes.probabilities[goes_on], at), shape=(states * actions, states)
        )
        mdp = cls(
            _dense_if_small(matrix, states, actions),
            means.reshape(states, actions),
            start,
            max_episode_steps=max_episode_steps,
            name=name,
        )
        mdp.__dict__["outcomes"] = outcomes  # fills the cached property
        return mdp

    def to_env(self, max_episode_steps: int | None = None) -> gymnasium.Env[int, int]:
        """Return a gymnasium environment that plays this model; ``env.unwrapped.mdp`` is it.

        Args:
            max_episode_steps: Truncate episodes there; None takes the model's own limit, if any.
        """
        from gymnasium.wrappers import TimeLimit

        from rl.tabular_env import TabularEnv

        limit = self.max_episode_steps if max_episode_steps is None else max_episode_steps
        env: TabularEnv = TabularEnv(self)
        return env if limit is None else TimeLimit(env, limit)

    @property
    def matrix(self) -> NDArray[np.float64] | sparse.csr_matrix[np.float64]:
        """``(S * A, S)``, the transitions as something to multiply values by."""
        if isinstance(self.transitions, np.ndarray):
            return self.transitions.reshape(self.states * self.actions, self.states)
        return self.transitions

    @cached_property
    def csr(self) -> sparse.csr_matrix[np.float64]:
        """``(S * A, S)``, the transitions as a scipy CSR matrix without stored zeros."""
        from scipy import sparse

        return sparse.csr_matrix(self.matrix)

    @cached_property
    def endings(self) -> NDArray[np.float64]:
        """``(S, A)``, the probability that the episode ends; exactly 0 where it is rounding."""
        missing = 1.0 - np.asarray(self.csr.sum(axis=1)).reshape(self.states, self.actions)
        return np.where(missing > ROUNDING, missing, 0.0)

    @cached_property
    def outcomes(self) -> Outcomes:
        """The outcomes to sample from.

        A model made of arrays has one for each s' of positive probability, in ascending order, all
        paying ``rewards[s, a]``, and then, where the row lacks something to 1, the end, which shows
        s once more.
        """
        ending = self.endings.ravel()
        ends = np.flatnonzero(ending)
        goes_on = np.diff(self.csr.indptr).astype(np.int64)
        counts = goes_on + (ending > 0)
        pairs = np.repeat(np.arange(len(counts)), counts)
        last = np.cumsum(counts)[ends] - 1
        terminated = np.zeros(len(pairs), dtype=np.bool_)
        terminated[last] = True
        probabilities = np.empty(len(pairs))
        probabilities[last], probabilities[~terminated] = ending[ends], self.csr.data
        next_states = pairs // self.actions
        next_states[~terminated] = self.csr.indices
        return Outcomes.of(
            counts=counts,
            probabilities=probabilities,
            next_states=next_states,
            rewards=self.rewards.ravel()[pairs],
            terminated=terminated,
        )


def as_mdp(env: str | gymnasium.Env | TabularMDP) -> TabularMDP:
    """Return the model of an environment: a ``TabularMDP`` as it is, else ``from_env``."""
    return env if isinstance(env, TabularMDP) else TabularMDP.from_env(env)


def grid_world(
    rows: int,
    columns: int,
    *,
    forbidden: Sequence[tuple[int, int]],
    target: tuple[int, int],
    reward_step: float = 0.0,
    reward_forbidden: float = -1.0,
    reward_target: float = 1.0,
    reward_boundary: float = -1.0,
) -> TabularMDP:
    """Return the grid world that runs through Zhao 2025 (section 1.1).

    Actions 0 to 4 are up, right, down, left and stay. A step over the boundary leaves the agent
    where it is and pays ``reward_boundary``; any other pays by the cell it leads to. Forbidden
    cells can be entered. The target does not end the episode: staying there pays again.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        forbidden: Cells (row, column) from 0; state = row * columns + column.
        target: The cell that pays.
        reward_step: Paid for entering an ordinary cell, or staying there.
        reward_forbidden: Paid for entering a forbidden cell, or staying there.
        reward_target: Paid for entering the target, or staying there.
        reward_boundary: Paid for a step over the boundary.

    >>> grid = grid_world(2, 2, forbidden=[(0, 1)], target=(1, 1))
    >>> grid.rewards[0]  # the forbidden cell lies to the right
    array([-1., -1.,  0., -1.,  0.])
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"a grid of {rows} rows and {columns} columns has no cell: use 1 or more")
    for role, (row, column) in [("target", target), *(("forbidden", cell) for cell in forbidden)]:
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(
                f"{role} cell ({row}, {column}) lies outside the grid: rows are 0 to {rows - 1}, "
                f"columns 0 to {columns - 1}"
            )
    if tuple(target) in {tuple(cell) for cell in forbidden}:
        raise ValueError(f"cell {tuple(target)} is both target and forbidden: it can pay only once")
    from scipy import sparse

    entering = np.full((rows, columns), float(reward_step))
    for row, column in forbidden:
        entering[row, column] = reward_forbidden
    entering[target[0], target[1]] = reward_target
    states, actions = rows * columns, len(_MOVES)
    cells = np.stack(np.divmod(np.arange(states), columns), axis=-1)
    goals = cells[:, None] + _MOVES  # (S, A, 2)
    inside = ((goals >= 0) & (goals < [rows, columns])).all(-1)
    reached = np.where(inside[..., None], goals, cells[:, None])
    rewards = np.where(inside, entering[reached[..., 0], reached[..., 1]], reward_boundary)
    matrix = sparse.csr_matrix(
        (
            np.ones(states * actions),
            (reached @ [columns, 1]).ravel(),
            np.arange(states * actions + 1),
        ),
        shape=(states * actions, states),
    )
    name = f"grid {rows} x {columns}"
    return TabularMDP(_dense_if_small(matrix, states, actions), rewards, name=name)


def _dense_if_small(
    matrix: sparse.csr_matrix[np.float64], states: int, actions: int
) -> NDArray[np.float64] | sparse.csr_matrix[np.float64]:
    if states * actions * states > DENSE_ENTRIES:
        return matrix
    return matrix.toarray().reshape(states, actions, states)


def _checked_rewards(rewards: ArrayLike) -> NDArray[np.float64]:
    table = np.array(rewards, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"got rewards of shape {table.shape}: they are one per pair, (S, A)")
    for state, action in np.argwhere(~np.isfinite(table)):
        raise ValueError(
            f"rewards[{state}, {action}] is {table[state, action]}: not a finite number"
        )
    table.setflags(write=False)
    return table


def _checked_transitions(
    transitions: ArrayLike | sparse.csr_matrix[np.float64], states: int, actions: int
) -> NDArray[np.float64] | sparse.csr_matrix[np.float64]:
    from scipy import sparse

    if sparse.issparse(transitions):
        matrix = sparse.csr_matrix(transitions, dtype=np.float64, copy=True)
        if matrix.shape != (states * actions, states):
            raise ValueError(
                f"got sparse transitions of shape {matrix.shape} with rewards of shape "
                f"({states}, {actions}): expected (S * A, S) = {(states * actions, states)}"
            )
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        _check_entries(matrix.tocoo(), actions)
        _check_row_sums(np.asarray(matrix.sum(axis=1)).reshape(states, actions))
        return matrix
    table = np.array(transitions, dtype=np.float64)
    if table.shape != (states, actions, states):
        raise ValueError(
            f"got transitions of shape {table.shape} with rewards of shape ({states}, {actions}): "
            f"expected (S, A, S) = {(states, actions, states)}"
        )
    for state, action, successor in np.argwhere(~((table >= 0) & (table < np.inf))):
        _refuse_entry(state, action, successor, table[state, action, successor])
    _check_row_sums(table.sum(-1))
    table.setflags(write=False)
    return table


def _check_entries(matrix: sparse.coo_matrix[np.float64], actions: int) -> None:
    for k in np.flatnonzero(~((matrix.data >= 0) & (matrix.data < np.inf))):
        state, action = divmod(int(matrix.row[k]), actions)
        _refuse_entry(state, action, int(matrix.col[k]), matrix.data[k])


def _refuse_entry(state: int, action: int, successor: int, entry: float) -> None:
    raise ValueError(
        f"transitions[{state}, {action}, {successor}] is {entry}: not a probability, "
        "these are numbers from 0 to 1"
    )


def _check_row_sums(sums: NDArray[np.float64]) -> None:
    for state, action in np.argwhere(sums > 1 + ROUNDING):
        raise ValueError(
            f"transitions[{state}, {action}] sums to {sums[state, action]}, more than 1: it holds "
            "the probability of continuing to each state, and what it lacks to 1 is termination"
        )


def _checked_start(start: ArrayLike | None, states: int) -> NDArray[np.float64]:
    table = np.full(states, 1 / states) if start is None else np.array(start, dtype=np.float64)
    if table.shape != (states,):
        raise ValueError(
            f"got start of shape {table.shape}: it is a distribution over the states, ({states},)"
        )
    for state in np.flatnonzero(~((table >= 0) & (table < np.inf))):
        raise ValueError(f"start[{state}] is {table[state]}: not a probability")
    if abs(table.sum() - 1) > ROUNDING:
        raise ValueError(f"start sums to {table.sum()}: the first state is one of them, so use 1")
    table.setflags(write=False)
    return table
