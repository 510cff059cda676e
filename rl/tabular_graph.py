"""What episodes can reach: a method that waits for their end should not wait for ever."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rl.mdp import TabularMDP
from rl.proper import NONE, ending_actions, staying_pairs

__all__ = ["check_ends", "check_ends_under_any_policy", "reached_states"]


def reached_states(mdp: TabularMDP, taken: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return ``(S,)``, True for the states in which an action comes to be chosen.

    Args:
        mdp: The model, with its start.
        taken: ``(S, A)``, True for the actions taken with positive probability.
    """
    reached = mdp.start > 0
    while True:
        tried = (reached[:, None] & taken).ravel()
        more = reached | (mdp.csr.T @ tried.astype(np.float64) > 0)
        if (more == reached).all():
            return reached
        reached = more


def check_ends(mdp: TabularMDP, taken: NDArray[np.bool_]) -> None:
    """Raise a ValueError where a state is reached from which no episode ends."""
    stuck = reached_states(mdp, taken) & (ending_actions(mdp, taken) == NONE)
    for state in np.flatnonzero(stuck):
        raise ValueError(
            f"in state {state}, which is reached, the actions taken never lead to the end of the "
            "episode, so it would be waited for in vain: set a time limit, max_episode_steps="
        )


def check_ends_under_any_policy(mdp: TabularMDP) -> None:
    """Raise a ValueError where some policy keeps an episode going, wherever it begins."""
    for pair in staying_pairs(mdp):
        raise ValueError(
            f"some policies never end an episode that begins in state {pair // mdp.actions}, and a "
            "greedy policy may become one of them: set a time limit, max_episode_steps="
        )
