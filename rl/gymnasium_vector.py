"""Gymnasium's own vector environments behind our contract, in each of its autoreset modes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces, vector
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from launch.errors import UsageError
from rl.spaces import (
    Observations,
    Space,
    as_tensors,
    check_actions,
    check_numbers,
    empty_rows,
    equal,
    row,
    write_row,
)
from rl.vector_env import EnvStep, EpisodeLog, episode_seed, own_rows

__all__ = ["GymnasiumVectorEnvs"]

GymnasiumVector: TypeAlias = vector.VectorEnv[Any, Any, Any]


class GymnasiumVectorEnvs:
    """A ``VectorEnv`` of a ``gymnasium.vector.VectorEnv``.

    NEXT_STEP: the step after an end is a reset that ignores the action; its row is not valid, and
    the final observation stands in ``observations`` before. SAME_STEP: the final observation comes
    from ``infos["final_obs"]``. DISABLED: we reset what has ended.

    With DISABLED, gymnasium's SyncVectorEnv and AsyncVectorEnv run the same episodes as
    ``ListedEnvs`` and resume bit for bit. Others choose the chance of later episodes themselves:
    resuming begins new episodes, with a warning.

    Raises:
        UsageError: The environment does not say which mode it has.
    """

    def __init__(
        self, envs: GymnasiumVector, *, seed: int, first: int = 0, quota: int | None = None
    ) -> None:
        mode = envs.metadata.get("autoreset_mode")
        try:
            self._mode = AutoresetMode(mode)
        except ValueError:
            raise UsageError(
                f"{envs} has metadata['autoreset_mode']={mode!r}: set it to a "
                "gymnasium.vector.AutoresetMode, so that rows of resets can be told from steps"
            ) from None
        self.envs, self.seed, self.first = envs, seed, first
        self.count = int(envs.num_envs)
        self.name = str(envs)
        self.observation_space: Space = envs.single_observation_space
        self.action_space: Space = envs.single_action_space
        self.time_limit: int | None = None
        empty_rows(self.observation_space, self.count)  # refuses what has no fixed shape
        several = (vector.SyncVectorEnv, vector.AsyncVectorEnv)
        self._takes_seeds = isinstance(envs.unwrapped, several)
        self._exact = self._takes_seeds and self._mode is AutoresetMode.DISABLED
        self._log = EpisodeLog(self.count, quota)
        self._masks: NDArray[np.bool_] | None = None
        self._clear()

    def _clear(self) -> None:
        self._actions: list[list[NDArray[Any]]] = [[] for _ in range(self.count)]
        self._steps = [0] * self.count
        self._returns = np.zeros(self.count)
        self._resets = np.zeros(self.count, np.bool_)
        self._now: Observations | None = None

    def reset(self) -> Observations:
        """Begin the first episode of every environment."""
        self._log.clear(self.count)
        return self._reset_all()

    def step(self, actions: NDArray[Any]) -> EnvStep:
        """Act in every environment; those that have to reset do that instead."""
        if self._now is None:
            raise UsageError("call reset() before step(): no episode has begun")
        actions = check_actions(actions, self.action_space, self.count)
        given, rewards, terminated, truncated, infos = self.envs.step(actions)
        valid = self._log.valid & ~self._resets
        observations = self._rows(given)
        rewards = np.where(valid, np.asarray(rewards, np.float64), 0.0)
        terminated, truncated = (
            np.asarray(x, np.bool_) & ~self._resets for x in (terminated, truncated)
        )
        self._note(actions, rewards, infos)
        check_numbers(observations, rewards, first=self.first, steps=self._steps)
        ended = terminated | truncated
        reached = self._finish(observations, ended, infos)
        self._resets = ended if self._mode is AutoresetMode.NEXT_STEP else np.zeros_like(ended)
        self._now = observations
        rows = (terminated & valid, truncated & valid, valid)
        return EnvStep(observations, reached, rewards.astype(np.float32), *rows)

    def action_masks(self) -> NDArray[np.bool_] | None:
        """Return ``(B, A)`` from ``infos["action_mask"]``."""
        return None if self._masks is None else self._masks.copy()

    def take_episodes(self) -> tuple[list[float], list[int]]:
        """Return raw returns and lengths of the episodes ended since the last call."""
        return self._log.take()

    def state_dict(self) -> dict[str, Any]:
        """Return the episode, the actions since it began and the observation of every one."""
        if self._now is None:
            raise UsageError("call reset() before state_dict(): no episode has begun")
        entries = [
            self._log.entry(i)
            | {
                "actions": torch.from_numpy(np.array(self._actions[i])),
                "observation": as_tensors(row(self._now, i)),
            }
            for i in range(self.count)
        ]
        return {"kind": self.name, "first": self.first, "environments": entries}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Observations:
        """Take what ``state_dict`` returned; return the observations to act on next.

        Warns:
            RuntimeWarning: The episodes cannot be continued, so new ones begin.
        """
        entries = own_rows(state_dict, kind=self.name, first=self.first, count=self.count)
        self._log.load(entries)
        if self._exact:
            return self._replay(entries)
        warnings.warn(
            f"{self.name} cannot be resumed inside an episode: new episodes begin, so the run goes "
            "on, but not bit for bit; give a function that makes one environment instead",
            RuntimeWarning,
            stacklevel=2,
        )
        self._log.episodes = [episode + 1 for episode in self._log.episodes]
        return self._reset_all()

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    # -- the parts of a step -----------------------------------------------------------------

    def _rows(self, given: object) -> Observations:
        rows = empty_rows(self.observation_space, self.count)
        write_row(rows, slice(None), given)
        return rows

    def _note(
        self, actions: NDArray[Any], rewards: NDArray[np.float64], infos: Mapping[str, Any]
    ) -> None:
        """Keep what belongs to the running episodes."""
        self._returns += rewards
        for i in np.flatnonzero(~self._resets).tolist():
            self._steps[i] += 1
            if self._exact:
                self._actions[i].append(actions[i])
        self._see_masks(infos)

    def _finish(
        self, observations: Observations, ended: NDArray[np.bool_], infos: Mapping[str, Any]
    ) -> Observations:
        """Note the ends and begin anew; return what was reached, and change ``observations``."""
        if not ended.any():
            return observations
        reached = observations
        if self._mode is AutoresetMode.SAME_STEP:
            reached = self._final(observations, ended, infos)
        for i in np.flatnonzero(ended).tolist():
            self._log.end(i, float(self._returns[i]), self._steps[i])
            self._returns[i], self._steps[i], self._actions[i] = 0.0, 0, []
        if self._mode is AutoresetMode.DISABLED:
            reached = self._rows(observations)
            self._reset(ended, observations)
        return reached

    def _final(
        self, observations: Observations, ended: NDArray[np.bool_], infos: Mapping[str, Any]
    ) -> Observations:
        """Return what was reached, where ``observations`` are already of new episodes."""
        if "final_obs" not in infos:
            raise UsageError(
                f"{self.name} resets in the same step, but infos has no 'final_obs': without the "
                "final observation a truncated episode cannot be learned from"
            )
        reached = self._rows(observations)
        for i in np.flatnonzero(ended).tolist():
            write_row(reached, i, infos["final_obs"][i])
        check_numbers(reached, self._returns, first=self.first, steps=self._steps)
        return reached

    def _seeds(self) -> list[int]:
        episodes = enumerate(self._log.episodes)
        return [episode_seed(self.seed, episode, self.first + i) for i, episode in episodes]

    def _reset_all(self) -> Observations:
        self._clear()
        self._masks = None
        seeds = self._seeds()
        given, infos = self.envs.reset(seed=seeds if self._takes_seeds else seeds[0])
        self._now = self._rows(given)
        self._see_masks(infos)
        check_numbers(self._now, self._returns, first=self.first, steps=self._steps)
        return self._now

    def _reset(self, which: NDArray[np.bool_], observations: Observations) -> None:
        """Reset some environments, and put their first observations into ``observations``."""
        seeds = self._seeds() if self._takes_seeds else None
        given, infos = self.envs.reset(seed=seeds, options={"reset_mask": which.copy()})
        begun = self._rows(given)
        self._see_masks(infos)
        for i in np.flatnonzero(which).tolist():
            write_row(observations, i, row(begun, i))
        check_numbers(observations, self._returns, first=self.first, steps=self._steps)

    def _see_masks(self, infos: Mapping[str, Any]) -> None:
        if not isinstance(self.action_space, spaces.Discrete) or "action_mask" not in infos:
            return
        if self._masks is None:
            self._masks = np.ones((self.count, int(self.action_space.n)), np.bool_)
        given = np.asarray(infos.get("_action_mask", np.ones(self.count)), np.bool_)
        self._masks[given] = np.asarray(infos["action_mask"], np.bool_)[given]

    def _replay(self, entries: list[Any]) -> Observations:
        """Take the actions of the running episodes again, so that all arrive together.

        All environments step at once, so one with a short episode begins it later; until then its
        steps do not matter.
        """
        observations = self._reset_all()
        taken = [list(entry["actions"].numpy()) for entry in entries]
        most = max(len(actions) for actions in taken)
        waits = np.array([most - len(actions) for actions in taken])
        idle = [check_actions(a, self.action_space, 1)[0] for a in self._any_actions()]
        for t in range(most):
            late = [i for i in range(self.count) if t >= waits[i]]
            actions = np.stack(
                [taken[i][t - waits[i]] if i in late else idle[i] for i in range(self.count)]
            )
            given, rewards, terminated, truncated, infos = self.envs.step(actions)
            observations = self._rows(given)
            self._see_masks(infos)
            again = (waits == t + 1) | ((terminated | truncated) & (waits > t + 1))
            if again.any():
                self._reset(again, observations)
            self._returns[late] += np.asarray(rewards, np.float64)[late]
        self._actions, self._steps = taken, [len(actions) for actions in taken]
        for i, entry in enumerate(entries):
            if not equal(row(observations, i), entry["observation"]):
                raise UsageError(
                    f"environment {self.first + i} of {self.name} cannot be resumed: the same seed "
                    "and actions led to another observation"
                )
        self._now = observations
        return observations

    def _any_actions(self) -> list[NDArray[Any]]:
        self.action_space.seed(0)
        return [np.asarray([self.action_space.sample()]) for _ in range(self.count)]
