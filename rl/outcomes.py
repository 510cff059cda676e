"""What an action can lead to, as flat arrays that a compiled loop samples from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ROUNDING", "Outcome", "OutcomeTable", "Outcomes", "outcomes_of_table"]

ROUNDING = 1e-9
"""How far from 1 a sum of probabilities may be and still count as 1."""

Outcome = tuple[float, int, float, bool]
"""Probability, next state, reward, terminated: gymnasium's order."""
OutcomeTable = Mapping[int, Mapping[int, Sequence[Outcome]]] | Sequence[Sequence[Sequence[Outcome]]]
"""``table[state][action]`` lists the outcomes, as ``env.unwrapped.P`` does."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcomes:
    """The N outcomes of all pairs: those of ``i = state * actions + action`` lie in one slice.

    The slice is ``offsets[i]:offsets[i + 1]``. With u uniform in [0, 1), the first outcome whose
    ``cumulative`` exceeds u is the one drawn (the last, should rounding let none exceed it):
    gymnasium's own rule, so the same u leads to the same outcome.
    """

    offsets: NDArray[np.int64]
    """``(S * A + 1,)``, where each pair's outcomes begin; the last is N."""
    probabilities: NDArray[np.float64]
    """``(N,)``."""
    cumulative: NDArray[np.float64]
    """``(N,)``, the running sum of the probabilities within each pair."""
    next_states: NDArray[np.int64]
    """``(N,)``; where ``terminated``, the state that the environment shows last."""
    rewards: NDArray[np.float64]
    """``(N,)``."""
    terminated: NDArray[np.bool_]
    """``(N,)``, True where the episode ends with this outcome."""

    @staticmethod
    def of(
        *,
        counts: NDArray[np.int64],
        probabilities: NDArray[np.float64],
        next_states: NDArray[np.int64],
        rewards: NDArray[np.float64],
        terminated: NDArray[np.bool_],
    ) -> Outcomes:
        """Lay out outcomes that come pair by pair, ``counts[i]`` of them for pair i."""
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        cumulative = probabilities.copy()
        for k in range(1, int(counts.max(initial=0))):
            at = offsets[:-1][counts > k] + k
            cumulative[at] += cumulative[at - 1]
        return Outcomes(
            offsets=offsets,
            probabilities=probabilities,
            cumulative=cumulative,
            next_states=next_states,
            rewards=rewards,
            terminated=terminated,
        )

    @property
    def pairs(self) -> NDArray[np.int64]:
        """``(N,)``, the pair that each outcome belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def outcomes_of_table(table: OutcomeTable, states: int, actions: int) -> Outcomes:
    """Flatten ``table[state][action]``, in its own order, duplicates and all.

    Raises:
        ValueError: Where the outcomes of a pair do not sum to 1, or lead nowhere.
    """
    rows = [table[state][action] for state in range(states) for action in range(actions)]
    flat = [outcome for row in rows for outcome in row]
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    probabilities = np.array([outcome[0] for outcome in flat], dtype=np.float64)
    next_states = np.array([outcome[1] for outcome in flat], dtype=np.int64)
    outcomes = Outcomes.of(
        counts=counts,
        probabilities=probabilities,
        next_states=next_states,
        rewards=np.array([outcome[2] for outcome in flat], dtype=np.float64),
        terminated=np.array([outcome[3] for outcome in flat], dtype=np.bool_),
    )
    sums = np.bincount(outcomes.pairs, probabilities, minlength=len(rows))
    for pair in np.flatnonzero(~(np.abs(sums - 1) <= ROUNDING)):
        raise ValueError(
            f"the outcomes of state {pair // actions}, action {pair % actions} have probabilities "
            f"that sum to {sums[pair]}: they must sum to 1, one outcome of them happens"
        )
    for k in np.flatnonzero((next_states < 0) | (next_states >= states)):
        pair = outcomes.pairs[k]
        raise ValueError(
            f"an outcome of state {pair // actions}, action {pair % actions} leads to state "
            f"{next_states[k]}, but the states are 0 to {states - 1}"
        )
    return outcomes
