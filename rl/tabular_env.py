"""Between gymnasium's environments and models: take the model out, or play one."""

from __future__ import annotations

import copy
from typing import SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.toy_text.blackjack import BlackjackEnv
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from launch.errors import UsageError
from rl.blackjack import blackjack_outcomes, blackjack_start
from rl.mdp import TabularMDP
from rl.registered_envs import make_registered

__all__ = ["TabularEnv", "gymnasium_env", "model_of"]


class TabularEnv(gymnasium.Env[int, int]):  # type: ignore[misc]  # gymnasium is not followed
    """An environment that plays a model: one uniform number a reset, and one a step."""

    def __init__(self, mdp: TabularMDP) -> None:
        self.mdp = mdp
        self.observation_space = spaces.Discrete(mdp.states)
        self.action_space = spaces.Discrete(mdp.actions)
        self._starts = np.cumsum(mdp.start)
        self._state = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[int, dict[str, object]]:
        """Draw a first state."""
        super().reset(seed=seed)
        self._state = self._draw(self._starts)
        return self._state, {}

    def step(self, action: int) -> tuple[int, SupportsFloat, bool, bool, dict[str, object]]:
        """Draw an outcome of ``action``."""
        if not 0 <= action < self.mdp.actions:
            raise ValueError(f"action={action} is none of 0 to {self.mdp.actions - 1}")
        outcomes = self.mdp.outcomes
        pair = self._state * self.mdp.actions + int(action)
        first, end = outcomes.offsets[pair : pair + 2]
        k = first + self._draw(outcomes.cumulative[first:end])
        self._state = int(outcomes.next_states[k])
        return self._state, float(outcomes.rewards[k]), bool(outcomes.terminated[k]), False, {}

    def _draw(self, cumulative: NDArray[np.float64]) -> int:
        k = int(np.searchsorted(cumulative, self.np_random.random(), side="right"))
        return min(k, len(cumulative) - 1)


def gymnasium_env(
    env: str | gymnasium.Env, *, max_episode_steps: int | None = None
) -> gymnasium.Env:
    """Return the environment of an id; an instance is returned as it is.

    Args:
        env: An id or an instance.
        max_episode_steps: Replaces the limit of an id. An instance keeps its own where that is
            shorter.

    Raises:
        UsageError: Where there is none of this name and version; the message names one there is.
    """
    if isinstance(env, str):
        return make_registered(env, max_episode_steps=max_episode_steps)
    if isinstance(env, gymnasium.Env):
        return env if max_episode_steps is None else TimeLimit(env, max_episode_steps)
    raise TypeError(
        f"got {type(env).__name__} for an environment: it is a gymnasium id such as "
        "'FrozenLake-v1', a gymnasium environment or a TabularMDP"
    )


def model_of(env: str | gymnasium.Env) -> TabularMDP:
    """Return the model that an environment carries; see ``TabularMDP.from_env``."""
    made = gymnasium_env(env)
    bare = made.unwrapped
    name = bare.spec.id if bare.spec else type(bare).__name__
    limit = _limit(made, name)
    if isinstance(bare, TabularEnv):
        if bare.mdp.max_episode_steps == limit:
            return bare.mdp
        _ = bare.mdp.outcomes  # worked out once: what it keeps is in every copy
        mdp = copy.copy(bare.mdp)
        mdp.max_episode_steps = limit
        return mdp
    if isinstance(bare, BlackjackEnv):
        table = blackjack_outcomes(natural=bare.natural, sab=bare.sab)
        return TabularMDP.from_outcomes(
            table, blackjack_start(), max_episode_steps=limit, name=name
        )
    if not getattr(bare, "P", None):
        raise UsageError(
            f"{name} has no model (env.unwrapped.P), and planning needs the probability of every "
            "outcome; learn from its samples instead, or build a TabularMDP"
        )
    if getattr(bare, "fickle_passenger", False):
        raise ValueError(
            f"{name} with a fickle passenger does what its table P does not say; "
            "make it with fickle_passenger=False"
        )
    start = getattr(bare, "initial_state_distrib", None)
    if start is None:
        raise ValueError(
            f"{name} does not say where it starts (env.unwrapped.initial_state_distrib): "
            "use TabularMDP.from_outcomes(env.unwrapped.P, start)"
        )
    return TabularMDP.from_outcomes(bare.P, start, max_episode_steps=limit, name=name)


def _limit(env: gymnasium.Env, name: str) -> int | None:
    """Return after how many steps the wrappers truncate; refuse those that change the model."""
    transforming = gymnasium.ObservationWrapper, gymnasium.ActionWrapper, gymnasium.RewardWrapper
    limits = []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, transforming):
            raise UsageError(
                f"{type(env).__name__} changes {name}, but the model is that of the bare "
                "environment; take the wrapper off"
            )
        if isinstance(env, TimeLimit):
            limits.append(env._max_episode_steps)
        env = env.env
    return min(limits, default=None)
