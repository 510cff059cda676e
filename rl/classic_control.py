"""Classic control, compiled: CartPole, MountainCar, Acrobot and Pendulum, many at once.

A transition is gymnasium's, operation by operation, so from the same state it leads to the same
observation, reward and end. First states have gymnasium's distribution, but come from a stream of
their own: uniform numbers from a counter that starts at the episode's seed (SplitMix64; Steele,
Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 16), because seeding
a generator for each episode would take longer than the episode's first ten steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control import AcrobotEnv, CartPoleEnv, MountainCarEnv, PendulumEnv
from numpy.typing import NDArray

from launch.errors import UsageError
from rl import classic_kernels as kernels
from rl.spaces import Space, check_actions
from rl.vector_env import EnvStep, EpisodeLog, episode_seed, own_rows

__all__ = ["CompiledEnvs", "Family", "compiled_family"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A compiled environment: its kernel, and the box in which episodes begin."""

    original: type[gymnasium.Env[Any, Any]]
    kernel: Callable[..., int]
    see: Callable[..., None]
    low: tuple[float, ...]
    high: tuple[float, ...]


_FAMILIES = {
    "CartPoleEnv": Family(
        original=CartPoleEnv,
        kernel=kernels.cart_pole,
        see=kernels.see_all,
        low=(-0.05,) * 4,
        high=(0.05,) * 4,
    ),
    "MountainCarEnv": Family(
        original=MountainCarEnv,
        kernel=kernels.mountain_car,
        see=kernels.see_all,
        low=(-0.6, 0),
        high=(-0.4, 0),
    ),
    "AcrobotEnv": Family(
        original=AcrobotEnv,
        kernel=kernels.acrobot,
        see=kernels.see_acrobot,
        low=(-0.1,) * 4,
        high=(0.1,) * 4,
    ),
    "PendulumEnv": Family(
        original=PendulumEnv,
        kernel=kernels.pendulum,
        see=kernels.see_pendulum,
        low=(-math.pi, -1.0),
        high=(math.pi, 1.0),
    ),
}


def compiled_family(env: str) -> Family | None:
    """Return the compiled environment that does what this id does; None if there is none."""
    spec = gymnasium.registry.get(env)
    if spec is None or not isinstance(spec.entry_point, str):
        return None
    module, _, name = spec.entry_point.partition(":")
    if not module.startswith("gymnasium.envs.classic_control.") or spec.kwargs:
        return None
    return None if spec.additional_wrappers else _FAMILIES.get(name)


class CompiledEnvs:
    """A ``VectorEnv`` of one compiled family; its state is a few numbers for each environment.

    Args:
        env: The id, which has a ``compiled_family``.
        count: B.
        seed: Of all episodes.
        first: Number of the first environment among those of all processes.
        max_episode_steps: None takes the registered limit.
        quota: Episodes that each environment runs before it rests; None never rests.
    """

    def __init__(
        self,
        env: str,
        count: int,
        *,
        seed: int,
        first: int = 0,
        max_episode_steps: int | None = None,
        quota: int | None = None,
    ) -> None:
        family = compiled_family(env)
        if family is None:
            raise UsageError(f"{env} has no compiled twin: make it with rl.envs.make_envs")
        self.name, self.count, self.seed, self.first = env, count, seed, first
        original = family.original()
        self.observation_space: Space = original.observation_space
        self.action_space: Space = original.action_space
        limit = max_episode_steps or gymnasium.registry[env].max_episode_steps
        self.time_limit: int | None = limit
        self._limit = math.inf if limit is None else float(limit)
        self._kernel, self._see = family.kernel, family.see
        self._low, self._high = np.array(family.low, float), np.array(family.high, float)
        self._rows = np.full((count, len(self._low) + 2), np.nan)
        self._flags = np.zeros((2, count), np.bool_)
        self._no_flags = np.zeros(count, np.bool_)
        self._no_flags.flags.writeable = False
        self._shape = (count, *self.observation_space.shape)
        self._action_shape = (count, *self.action_space.shape)
        whole = isinstance(self.action_space, gymnasium.spaces.Discrete)
        self._action_dtype = np.dtype(np.int64 if whole else np.float32)
        self._log = EpisodeLog(count, quota)
        self._begun = False

    def reset(self) -> NDArray[np.float32]:
        """Begin the first episode of every environment."""
        self._log.clear(self.count)
        for index in range(self.count):
            self._begin(index)
        self._begun = True
        return self._observe()

    def step(self, actions: NDArray[Any]) -> EnvStep:
        """Act in every environment."""
        if not self._begun:
            raise UsageError("call reset() before step(): no episode has begun")
        if actions.shape != self._action_shape or actions.dtype != self._action_dtype:
            actions = check_actions(actions, self.action_space, self.count)
        observations = np.empty(self._shape, np.float32)
        rewards = np.empty(self.count, np.float32)
        ended = self._kernel(self._rows, actions, observations, rewards, self._flags, self._limit)
        if ended > 0:
            return self._end(observations, rewards)
        if ended < 0:  # the kernel has seen an action that it does not know, and done nothing
            check_actions(actions, self.action_space, self.count)
        none, valid = self._no_flags, self._log.valid
        return EnvStep(observations, observations, rewards, none, none, valid)

    def action_masks(self) -> None:
        """Return None: every action may always be taken."""

    def take_episodes(self) -> tuple[list[float], list[int]]:
        """Return raw returns and lengths of the episodes ended since the last call."""
        return self._log.take()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every environment."""
        entries = [
            self._log.entry(i) | {"row": torch.from_numpy(self._rows[i].copy())}
            for i in range(self.count)
        ]
        return {"kind": self.name, "first": self.first, "environments": entries}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> NDArray[np.float32]:
        """Take what ``state_dict`` returned; return the observations to act on next."""
        entries = own_rows(state_dict, kind=self.name, first=self.first, count=self.count)
        self._log.load(entries)
        self._rows[:] = np.stack([entry["row"].numpy() for entry in entries])
        self._begun = True
        return self._observe()

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _begin(self, index: int) -> None:
        seed = episode_seed(self.seed, self._log.episodes[index], self.first + index)
        kernels.begin(self._rows, index, self._low, self._high, seed)

    def _observe(self) -> NDArray[np.float32]:
        observations = np.empty(self._shape, np.float32)
        for index in range(self.count):
            self._see(self._rows, index, observations)
        return observations

    def _end(self, reached: NDArray[np.float32], rewards: NDArray[np.float32]) -> EnvStep:
        """Begin new episodes where some have ended."""
        terminated, truncated = self._flags.copy()
        valid = self._log.valid
        observations = reached.copy()
        for index in np.flatnonzero(terminated | truncated).tolist():
            self._log.end(index, float(self._rows[index, -2]), int(self._rows[index, -1]))
            self._begin(index)
            self._see(self._rows, index, observations)
        return EnvStep(observations, reached, rewards, terminated, truncated, valid)
