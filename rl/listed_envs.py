"""Single gymnasium environments, stepped one after another in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from launch.errors import UsageError
from rl.spaces import (
    Observations,
    Space,
    as_tensors,
    check_actions,
    check_numbers,
    copy_rows,
    empty_rows,
    equal,
    row,
    write_row,
)
from rl.vector_env import EnvStep, EpisodeLog, episode_seed, own_rows

__all__ = ["ListedEnvs", "time_limit"]

Env: TypeAlias = gymnasium.Env[Any, Any]


class ListedEnvs:
    """A ``VectorEnv`` of single environments.

    An environment's state is the number of its episode and the actions since: a checkpoint keeps
    these, and restoring resets the environment with the episode's seed and takes the actions
    again. So it needs nothing of the environment but that its seed determines it, and serves
    those that cannot be copied, such as Box2D's.

    Args:
        envs: One object for each environment.
        seed: Of all episodes.
        first: Number of the first environment among those of all processes.
        max_episode_steps: Truncate there, if the environment's own limit does not come earlier.
        quota: Episodes that each environment runs before it rests; None never rests.
        name: What messages call the environment.

    Raises:
        UsageError: No environments, one of them twice, or spaces that agents do not take.
    """

    def __init__(
        self,
        envs: Sequence[Env],
        *,
        seed: int,
        first: int = 0,
        max_episode_steps: int | None = None,
        quota: int | None = None,
        name: str = "",
    ) -> None:
        if len({id(env) for env in envs}) < len(envs):
            raise UsageError(
                "the function that makes an environment returned the same one twice: "
                "return a new one from each call"
            )
        self.envs, self.seed, self.first = list(envs), seed, first
        self.count = len(self.envs)
        self.name = name or str(self.envs[0])
        self.observation_space: Space = self.envs[0].observation_space
        self.action_space: Space = self.envs[0].action_space
        for env in self.envs:
            if env.observation_space != self.observation_space:
                _refuse_spaces(env.observation_space, self.observation_space)
            if env.action_space != self.action_space:
                _refuse_spaces(env.action_space, self.action_space)
        own_limit = time_limit(self.envs[0])
        limits = [limit for limit in (max_episode_steps, own_limit) if limit is not None]
        self.time_limit = min(limits, default=None)
        self._whole = isinstance(self.action_space, spaces.Discrete)
        self._maskers = [getattr(env.unwrapped, "action_masks", None) for env in self.envs]
        self._observations = empty_rows(self.observation_space, self.count)
        self._actions: list[list[Any]] = [[] for _ in self.envs]
        self._returns = [0.0] * self.count
        self._masks: NDArray[np.bool_] | None = None
        self._log = EpisodeLog(self.count, quota)
        self._begun = False

    def reset(self) -> Observations:
        """Begin the first episode of every environment."""
        self._log.clear(self.count)
        self._masks = None
        for index in range(self.count):
            self._begin(index)
        self._begun = True
        self._check(np.zeros(self.count))
        return copy_rows(self._observations)

    def step(self, actions: NDArray[Any]) -> EnvStep:
        """Act in every environment that does not rest."""
        if not self._begun:
            raise UsageError("call reset() before step(): no episode has begun")
        actions = check_actions(actions, self.action_space, self.count)
        rewards = np.zeros(self.count)
        terminated, truncated = np.zeros((2, self.count), np.bool_)
        valid = self._log.valid
        for i, action in enumerate(actions):
            if valid[i]:
                rewards[i], terminated[i], truncated[i] = self._act(i, action)
        self._check(rewards)
        reached = observations = copy_rows(self._observations)
        ended = np.flatnonzero(terminated | truncated).tolist()
        for i in ended:
            if self._log.end(i, self._returns[i], len(self._actions[i])):
                self._begin(i)
        if ended:
            self._check(np.zeros(self.count))
            observations = copy_rows(self._observations)
        return EnvStep(
            observations, reached, rewards.astype(np.float32), terminated, truncated, valid
        )

    def action_masks(self) -> NDArray[np.bool_] | None:
        """Return ``(B, A)`` from ``action_masks()`` or ``info["action_mask"]``."""
        return None if self._masks is None else self._masks.copy()

    def take_episodes(self) -> tuple[list[float], list[int]]:
        """Return raw returns and lengths of the episodes ended since the last call."""
        return self._log.take()

    def state_dict(self) -> dict[str, Any]:
        """Return the episode, the actions since it began and the observation of every one."""
        entries = [
            self._log.entry(i)
            | {
                "actions": torch.from_numpy(np.array(self._actions[i])),
                "observation": as_tensors(row(self._observations, i)),
            }
            for i in range(self.count)
        ]
        return {"kind": self.name, "first": self.first, "environments": entries}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Observations:
        """Take what ``state_dict`` returned; return the observations to act on next.

        Raises:
            UsageError: The same seed and actions lead to another observation.
        """
        entries = own_rows(state_dict, kind=self.name, first=self.first, count=self.count)
        self._log.load(entries)
        for i, entry in enumerate(entries):
            self._replay(i, entry)
        self._begun = True
        return copy_rows(self._observations)

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _begin(self, index: int) -> None:
        """Reset an environment to the start of its current episode."""
        seed = episode_seed(self.seed, self._log.episodes[index], self.first + index)
        observation, info = self.envs[index].reset(seed=seed)
        self._actions[index], self._returns[index] = [], 0.0
        self._see(index, observation, info)

    def _act(self, index: int, action: object) -> tuple[float, bool, bool]:
        """Act in one environment; return reward, terminated and truncated."""
        observation, reward, terminated, truncated, info = self.envs[index].step(action)
        self._actions[index].append(action)
        self._returns[index] += float(reward)
        self._see(index, observation, info)
        steps = len(self._actions[index])
        late = self.time_limit is not None and steps >= self.time_limit
        return float(reward), bool(terminated), bool(truncated) or late

    def _see(self, index: int, observation: object, info: Mapping[str, Any]) -> None:
        try:
            write_row(self._observations, index, observation)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UsageError(
                f"environment {self.first + index} gave an observation that is not in its space "
                f"{self.observation_space}: {error}"
            ) from error
        if self._whole:
            masker = self._maskers[index]
            given = masker() if masker is not None else info.get("action_mask")
            if given is not None or self._masks is not None:
                self._mask(index, given)

    def _mask(self, index: int, given: object) -> None:
        """Keep the actions that may be taken now; where none are named, all may."""
        actions = int(self.action_space.n)
        mask = np.ones(actions, np.bool_) if given is None else np.asarray(given, np.bool_)
        if mask.shape != (actions,) or not mask.any():
            raise UsageError(
                f"environment {self.first + index} gave the action mask {given}: it needs one "
                f"entry for each of the {actions} actions, and at least one that may be taken"
            )
        if self._masks is None:
            self._masks = np.ones((self.count, actions), np.bool_)
        self._masks[index] = mask

    def _replay(self, index: int, entry: Mapping[str, Any]) -> None:
        self._begin(index)
        for action in entry["actions"].numpy():
            self._act(index, action)
        if not equal(row(self._observations, index), entry["observation"]):
            raise UsageError(
                f"environment {self.first + index} ({self.name}) cannot be resumed: reset with the "
                f"seed of its episode and given the same {len(self._actions[index])} actions, it "
                "came to another observation; let it draw all its chance from self.np_random, "
                "which reset(seed=...) seeds"
            )

    def _check(self, rewards: NDArray[np.float64]) -> None:
        steps = [len(actions) for actions in self._actions]
        check_numbers(self._observations, rewards, first=self.first, steps=steps)


def time_limit(env: Env) -> int | None:
    """Return after how many steps a wrapper of ``env`` truncates an episode; None is never."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            return int(env._max_episode_steps)
        env = env.env
    return None


def _refuse_spaces(one: Space, other: Space) -> None:
    raise UsageError(
        f"the environments differ: one has the space {one}, another {other}; "
        "a vector of environments needs the same spaces in all of them"
    )
