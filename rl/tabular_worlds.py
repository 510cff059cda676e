"""Environments as the loops of tabular learning see them: states and actions are indices.

A world is an environment of gymnasium (`GymWorld`) or its model (``rl.tabular_fast.Model``).
"""

from __future__ import annotations

import math
from typing import Any, Protocol, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from rl.mdp import TabularMDP
from rl.tabular_env import gymnasium_env
from rl.tabular_updates import Floats, Ints

__all__ = [
    "Env",
    "GymWorld",
    "World",
    "begin",
    "open_env",
    "reset",
    "shows_all",
    "step",
    "time_limit",
]

Env: TypeAlias = "str | gymnasium.Env[Any, Any] | TabularMDP"
"""A gymnasium id, an instance, or a model."""


class World(Protocol):
    """What the loops ask of an environment."""

    @property
    def states(self) -> int:
        """S."""

    @property
    def actions(self) -> int:
        """A."""

    @property
    def earned(self) -> Floats:
        """``(1,)``, the running episode's sum of rewards, undiscounted."""

    @property
    def length(self) -> Ints:
        """``(1,)``, its steps so far."""

    def reset(self) -> int:
        """Begin an episode and return its first state."""

    def begin(self, state: int) -> int:
        """Begin an episode in a state of the model; only a model can. Return what is seen."""

    def step(self, action: int) -> tuple[int, float, bool, bool]:
        """Act: next state, reward, terminated, truncated."""


def reset(world: World) -> int:
    """Begin an episode; the compiled loop reads ``rl.tabular_fast`` instead."""
    return world.reset()


def begin(world: World, state: int) -> int:
    """Begin an episode in ``state``; the compiled loop reads ``rl.tabular_fast`` instead."""
    return world.begin(state)


def step(world: World, action: int) -> tuple[int, float, bool, bool]:
    """Act; the compiled loop reads ``rl.tabular_fast`` instead."""
    return world.step(action)


class GymWorld:
    """An environment of gymnasium whose observations and actions can be numbered.

    Discrete spaces count from their ``start``; a tuple of them, such as Blackjack's, is numbered
    with its last component fastest: ``(sum * 11 + dealer) * 2 + usable``.

    Raises:
        ValueError: Where the observations or the actions are not finitely many.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], seed: int) -> None:
        self._env = env
        self._seed: int | None = seed
        name = env.spec.id if env.spec else type(env.unwrapped).__name__
        self._sizes, self._starts = _numbering(env.observation_space, f"observations of {name}")
        if not isinstance(env.action_space, spaces.Discrete):
            raise ValueError(
                f"the actions of {name} are {env.action_space}, not Discrete: a table needs a "
                "column for each; use a method with function approximation"
            )
        self._first_action = int(env.action_space.start)
        self.states = math.prod(self._sizes)
        self.actions = int(env.action_space.n)
        self.earned = np.zeros(1)
        self.length = np.zeros(1, np.int64)

    def reset(self) -> int:
        """Reset the environment, the first time with the seed."""
        observation, _ = self._env.reset(seed=self._seed)
        self._seed = None
        self.earned[0] = 0.0
        self.length[0] = 0
        return self._number(observation)

    def begin(self, state: int) -> int:
        """Refuse: an environment begins where it likes."""
        raise NotImplementedError(f"an environment cannot be put into state {state}")

    def step(self, action: int) -> tuple[int, float, bool, bool]:
        """Step the environment."""
        observation, reward, terminated, truncated, _ = self._env.step(self._first_action + action)
        self.length[0] += 1
        if not math.isfinite(reward):
            raise ValueError(
                f"the environment returned a reward of {reward} at step {self.length[0]} of "
                "an episode: it would spread over the whole table; mend the environment"
            )
        self.earned[0] += float(reward)
        return self._number(observation), float(reward), bool(terminated), bool(truncated)

    def _number(self, observation: Any) -> int:  # noqa: ANN401 (gymnasium's own type)
        state = 0
        parts = np.asarray(observation).reshape(-1)
        for size, start, part in zip(self._sizes, self._starts, parts, strict=True):
            digit = part - start
            if not 0 <= digit < size:
                raise ValueError(
                    f"the environment returned the observation {observation!r}, which is not in "
                    "its observation_space; mend the environment"
                )
            state = state * size + int(digit)
        return state


def _numbering(space: spaces.Space[Any], name: str) -> tuple[list[int], list[int]]:
    """Return how many values each component of a space has, and the first of them."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)], [int(space.start)]
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return [int(n) for n in space.nvec], [int(start) for start in space.start]
    parts = space.spaces if isinstance(space, spaces.Tuple) else ()
    if parts and all(isinstance(part, spaces.Discrete) for part in parts):
        return [int(part.n) for part in parts], [int(part.start) for part in parts]
    raise ValueError(
        f"the {name} are {space}, but a table needs a row for each of finitely many states: "
        "bring them into classes by an ObservationWrapper to Discrete, or use rl.linear"
    )


def open_env(env: Env, max_episode_steps: int | None) -> gymnasium.Env[Any, Any]:
    """Make the environment, with a time limit of its own or of ours.

    Args:
        env: An id, an instance or a model.
        max_episode_steps: Replaces the limit of an id or a model. An instance keeps its own where
            that is shorter.
    """
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps={max_episode_steps}: an episode has at least 1 step")
    if isinstance(env, TabularMDP):
        return env.to_env(max_episode_steps)
    return gymnasium_env(env, max_episode_steps=max_episode_steps)


def time_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """Return after how many steps an environment truncates, as far as its wrappers say."""
    limits = []
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            limits.append(int(env._max_episode_steps))
        env = env.env
    return min(limits, default=None)


def shows_all(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether nothing is to be noticed of an environment but its transitions.

    So its model can take its place: it is not rendered, and its wrappers only count and check.
    """
    rendered = env.render_mode is not None
    while isinstance(env, gymnasium.Wrapper):
        if not isinstance(env, (TimeLimit, OrderEnforcing, PassiveEnvChecker)):
            return False
        env = env.env
    return not rendered
